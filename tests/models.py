"""Small ONNX models, one for each trait of a model file that tritonc has to understand.

Every function returns a checked, runnable `onnx.ModelProto` with the same bytes each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dim = int | str | None
"""A number, a symbol, or None for a dimension that the file says nothing about."""

FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64


def tensor(name: str, dtype: int, dims: Sequence[Dim]) -> onnx.ValueInfoProto:
    """An input or output of a graph."""
    return helper.make_tensor_value_info(name, dtype, list(dims))


def weights(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    """Normal random FP32 values, small enough that outputs stay near 1."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) / np.float32(4)
    return numpy_helper.from_array(values, name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    ir_version: int = 8,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of one graph, in versions that every ONNX Runtime in use reads."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="tests")
    proto.ir_version = ir_version
    return proto


def mlp(batch: Dim = "batch", *, out_batch: Dim = "same", width: int = 8, seed: int = 0) -> onnx.ModelProto:
    """FP32 `x` [batch, 4] -> `y` [batch, 3], one hidden layer; `out_batch` names y's own symbol."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    initializers = [
        weights("w1", 4, width, seed=seed),
        weights("b1", width, seed=seed + 1),
        weights("w2", width, 3, seed=seed + 2),
        weights("b2", 3, seed=seed + 3),
    ]
    y_batch = batch if out_batch == "same" else out_batch
    return model(nodes, [tensor("x", FLOAT, [batch, 4])], [tensor("y", FLOAT, [y_batch, 3])], initializers)


def fixed_batch() -> onnx.ModelProto:
    """`mlp` whose batch is fixed at 1: no batch axis."""
    return mlp(1)


def conv(height: Dim = "height", width: Dim = "width") -> onnx.ModelProto:
    """FP32 `image` [batch, 3, height, width] -> `features` [batch, 2, height, width]."""
    nodes = [helper.make_node("Conv", ["image", "w"], ["features"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])]
    return model(
        nodes,
        [tensor("image", FLOAT, ["batch", 3, height, width])],
        [tensor("features", FLOAT, ["batch", 2, height, width])],
        [weights("w", 2, 3, 3, 3)],
    )


def text_recognition() -> onnx.ModelProto:
    """Traits of PP-OCRv4's recognizer: the symbols of the output differ from those of the input.

    FP32 `x` [DynamicDimension.0, 3, 48, DynamicDimension.1] -> `softmax` [DynamicDimension.2, .3, 5].
    """
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[48, 4], strides=[1, 4]),
        helper.make_node("Squeeze", ["c", "axis2"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Softmax", ["t"], ["softmax"], axis=2),
    ]
    return model(
        nodes,
        [tensor("x", FLOAT, ["DynamicDimension.0", 3, 48, "DynamicDimension.1"])],
        [tensor("softmax", FLOAT, ["DynamicDimension.2", "DynamicDimension.3", 5])],
        [weights("w", 5, 3, 48, 4), numpy_helper.from_array(np.array([2], np.int64), "axis2")],
    )


def two_inputs() -> onnx.ModelProto:
    """INT64 `ids` [batch, length], FP32 `scale` [batch, 1] -> `scores` [batch, length], `total` [batch]."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["scores"]),
        helper.make_node("ReduceSum", ["scores", "axis1"], ["total"], keepdims=0),
    ]
    return model(
        nodes,
        [tensor("ids", INT64, ["batch", "length"]), tensor("scale", FLOAT, ["batch", 1])],
        [tensor("scores", FLOAT, ["batch", "length"]), tensor("total", FLOAT, ["batch"])],
        [numpy_helper.from_array(np.array([1], np.int64), "axis1")],
    )


def scalar_input() -> onnx.ModelProto:
    """FP32 `x` [batch, 4] and a scalar `factor` [] -> `y` [batch, 4]: no room for a batch axis."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    return model(
        nodes,
        [tensor("x", FLOAT, ["batch", 4]), tensor("factor", FLOAT, [])],
        [tensor("y", FLOAT, ["batch", 4])],
    )


def no_inputs() -> onnx.ModelProto:
    """No input -> FP32 `y` [3]."""
    return model(
        [helper.make_node("Identity", ["w"], ["y"])], [], [tensor("y", FLOAT, [3])], [weights("w", 3)]
    )


def softmax() -> onnx.ModelProto:
    """FP32 `scores` [batch, 3] -> `probabilities` [batch, 3]: takes what `mlp` gives."""
    return model(
        [helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1)],
        [tensor("scores", FLOAT, ["batch", 3])],
        [tensor("probabilities", FLOAT, ["batch", 3])],
    )


def identity(dtype: int = FLOAT, dims: Sequence[Dim] = ("batch", 4)) -> onnx.ModelProto:
    """`x` -> `y`, the same, of any element type and dims."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])], [tensor("x", dtype, dims)], [tensor("y", dtype, dims)]
    )


def legacy() -> onnx.ModelProto:
    """`mlp` as IR version 3 wrote it: every initializer is listed among the inputs too."""
    proto = mlp()
    proto.ir_version = 3
    for initializer in proto.graph.initializer:
        proto.graph.input.append(tensor(initializer.name, initializer.data_type, list(initializer.dims)))
    return proto


def folded_batch() -> onnx.ModelProto:
    """FP32 `x` [batch, length, 4] -> `y` [rows, 4] with rows = batch x length: open, but no batch axis."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    return model(
        nodes,
        [tensor("x", FLOAT, ["batch", "length", 4])],
        [tensor("y", FLOAT, ["rows", 4])],
        [numpy_helper.from_array(np.array([-1, 4], np.int64), "shape")],
    )


def reduced_batch() -> onnx.ModelProto:
    """FP32 `x` [batch, 4] -> `y` [rows, 4], the mean over the batch: declared open, really 1."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)]
    return model(nodes, [tensor("x", FLOAT, ["batch", 4])], [tensor("y", FLOAT, ["rows", 4])])


def data_dependent() -> onnx.ModelProto:
    """FP32 `x` [batch, 4] -> INT64 `y` [found, 2], the places of its nonzero values."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"]),
        helper.make_node("Transpose", ["n"], ["y"], perm=[1, 0]),
    ]
    return model(nodes, [tensor("x", FLOAT, ["batch", 4])], [tensor("y", INT64, ["found", 2])])


def write_with_external_data(proto: onnx.ModelProto, path: Path, data: str = "weights.bin") -> None:
    """Writes the model to `path` and all its initializers to the file `data` beside it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(copy, str(path), save_as_external_data=True, location=data, size_threshold=0)
