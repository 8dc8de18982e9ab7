"""ONNX's shape inference, asked what the outputs' dims are when the inputs' are these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

Dim = int | str | None
"""A size, a symbol, or None for a dimension that nothing is known about."""

Shapes = Mapping[str, tuple[Dim, ...] | None]
"""Dimensions by tensor; None where even the rank is unknown."""

_NO_SYMBOLS = frozenset({"", "?", "-1", "None", "none", "unknown"})
"""What exporters write for any dimension they know nothing about: two of them are not the same dimension."""

_LARGEST_VALUE = 1024
"""Elements of a constant that may matter for a shape. Shape inference allocates as many as dims announce, so
that a damaged file of 300 bytes could take all memory."""


def declared_dims(value: onnx.ValueInfoProto) -> tuple[Dim, ...] | None:
    """Dims as the file declares them; sizes below 1, and symbols such as "?", say nothing."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(_dim(dim) for dim in tensor.shape.dim)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.dim_value > 0:
        return int(dim.dim_value)
    symbol: object = dim.dim_param  # bytes, where it is not UTF-8
    return symbol if isinstance(symbol, str) and symbol not in _NO_SYMBOLS else None


class ShapeInference:
    """Shape inference of one model, which is left as it is and needs no weights."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        # What the exporter inferred speaks of its own symbols.
        del self._model.graph.value_info[:]
        for value in self._model.graph.output:
            value.type.tensor_type.ClearField("shape")
        _forget_large_values(self._model.graph)

    def outputs(self, inputs: Shapes) -> Shapes:
        """Dims of the outputs when the inputs have these; a symbol that no input has is None."""
        import onnx
        from onnx import shape_inference

        for value in self._model.graph.input:
            if value.name in inputs:
                _set_dims(value, inputs[value.name] or ())
        try:
            result = shape_inference.infer_shapes(self._model, data_prop=True)
        except (
            shape_inference.InferenceError,
            onnx.checker.ValidationError,
            MemoryError,
            RuntimeError,
            ValueError,
        ):
            return {}
        given = {dim for dims in inputs.values() for dim in dims or () if isinstance(dim, str)}
        return {value.name: _dims_of(value, given) for value in result.graph.output}


def _dims_of(value: onnx.ValueInfoProto, given: set[str]) -> tuple[Dim, ...] | None:
    dims = declared_dims(value)
    return dims and tuple(dim if isinstance(dim, int) or dim in given else None for dim in dims)


def _set_dims(value: onnx.ValueInfoProto, dims: tuple[Dim, ...]) -> None:
    shape = value.type.tensor_type.shape
    shape.Clear()
    for dim in dims:
        new = shape.dim.add()
        if isinstance(dim, int):
            new.dim_value = dim
        elif dim is not None:
            new.dim_param = dim


def _forget_large_values(graph: onnx.GraphProto) -> None:
    """Makes the large constants inputs of the graph, whose names its subgraphs see too."""
    from onnx import helper

    forgotten: dict[str, onnx.TensorProto] = {}
    for part in _with_subgraphs(graph):
        for place in reversed(range(len(part.initializer))):
            if _is_large(part.initializer[place]):
                tensor = part.initializer.pop(place)
                forgotten[tensor.name] = tensor
        for place in reversed(range(len(part.node))):
            node = part.node[place]
            if node.op_type == "Constant" and len(node.attribute) == 1 and _is_large(node.attribute[0].t):
                forgotten[node.output[0] if node.output else ""] = part.node.pop(place).attribute[0].t
    declared = {value.name: value for value in graph.input}
    for name, tensor in forgotten.items():
        # A vector may be taken for a shape, and then each of its elements becomes a dimension.
        dims = tensor.dims if len(tensor.dims) > 1 else [None]
        value = declared.get(name) or graph.input.add()
        value.CopyFrom(helper.make_tensor_value_info(name, tensor.data_type, dims))


def _is_large(tensor: onnx.TensorProto) -> bool:
    return any(dim < 0 for dim in tensor.dims) or math.prod(tensor.dims) > _LARGEST_VALUE


def _with_subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_subgraphs(attribute.g)
