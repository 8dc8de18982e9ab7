"""Small ONNX models for the benchmarks, made anew from a seed, a millisecond an execution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = (3, 64, 64)
SEQUENCE = (32, 256)


class _Graph:
    """Nodes and weights of a chain, and the name of the value it has come to."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def weight(self, *shape: int, inputs: int) -> str:
        """A weight whose outputs keep the variance of its `inputs`."""
        return self.constant((self._rng.standard_normal(shape) / np.sqrt(inputs)).astype(np.float32))

    def constant(self, values: np.ndarray[Any, Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def save(self, path: Path, last: str, shape: tuple[int, ...], output: tuple[int, ...]) -> None:
        self.nodes.append(helper.make_node("Identity", [last], ["y"]))
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])
            for name, dims in (("x", shape), ("y", output))
        ]
        graph = helper.make_graph(self.nodes, path.stem, ends[:1], ends[1:], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.save(model, path)


def write_mlp(path: Path, width: int = 1024, layers: int = 8) -> None:
    """Eight layers of 1024: reading the weights is most of the work, so batches pay."""
    graph, last = _Graph(), "x"
    for _ in range(layers):
        last = graph.node("MatMul", last, graph.weight(width, width, inputs=width))
        last = graph.node("Tanh", last)
    graph.save(path, last, (width,), (width,))


def write_cnn(path: Path, channels: int = 64) -> None:
    """Four convolutions over 64 x 64 pixels, the first with `channels`: computing is most of the work."""
    graph, last, before = _Graph(), "x", IMAGE[0]
    for factor, stride in ((1, 2), (2, 2), (4, 2), (4, 1)):
        weight = graph.weight(factor * channels, before, 3, 3, inputs=9 * before)
        last = graph.node("Conv", last, weight, strides=[stride, stride], pads=[1, 1, 1, 1])
        last = graph.node("Relu", last)
        before = factor * channels
    last = graph.node("Flatten", graph.node("GlobalAveragePool", last))
    last = graph.node("MatMul", last, graph.weight(before, 100, inputs=before))
    graph.save(path, last, IMAGE, (100,))


def write_transformer(
    path: Path, layers: int = 3, heads: int = 4, sequence: tuple[int, int] = SEQUENCE
) -> None:
    """Encoder layers over a few tokens, three over 32 of 256 unless told: many small operators."""
    graph, last = _Graph(), "x"
    tokens, width = sequence
    split = graph.constant(np.array([0, tokens, heads, width // heads], np.int64))
    joined = graph.constant(np.array([0, tokens, width], np.int64))
    scale = graph.constant(np.array(np.sqrt(width / heads), np.float32))
    for _ in range(layers):
        query, key, value = (
            graph.node(
                "Transpose",
                graph.node(
                    "Reshape", graph.node("MatMul", last, graph.weight(width, width, inputs=width)), split
                ),
                perm=perm,
            )
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        scores = graph.node("Div", graph.node("MatMul", query, key), scale)
        mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
        mixed = graph.node("Reshape", graph.node("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        last = _normalised(
            graph, width, last, graph.node("MatMul", mixed, graph.weight(width, width, inputs=width))
        )
        wide = graph.node("Relu", graph.node("MatMul", last, graph.weight(width, 4 * width, inputs=width)))
        narrow = graph.node("MatMul", wide, graph.weight(4 * width, width, inputs=4 * width))
        last = _normalised(graph, width, last, narrow)
    graph.save(path, last, sequence, sequence)


def _normalised(graph: _Graph, width: int, before: str, change: str) -> str:
    ones = graph.constant(np.ones(width, np.float32))
    return graph.node("LayerNormalization", graph.node("Add", before, change), ones, axis=-1)


MODELS: Mapping[str, Callable[[Path], None]] = {
    "cnn": write_cnn,
    "mlp": write_mlp,
    "transformer": write_transformer,
}
"""Writers by the name of the model."""
