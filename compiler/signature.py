"""What a model file says about itself: inputs, outputs, dtypes, dims, and which axis is the batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritonc.compiler.models.batch_axis import has_batch_axis
from tritonc.compiler.models.onnx_file import OnnxFile, read_onnx
from tritonc.compiler.models.shape_inference import Dim, ShapeInference, Shapes, declared_dims
from tritonc.schemas.errors import ModelFileError

if TYPE_CHECKING:
    import onnx

OPEN = -1
"""A dimension of any size, as config.pbtxt writes it."""

_TYPES = {
    "BOOL": "TYPE_BOOL",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "FLOAT16": "TYPE_FP16",
    "FLOAT": "TYPE_FP32",
    "DOUBLE": "TYPE_FP64",
    "STRING": "TYPE_STRING",
    "BFLOAT16": "TYPE_BF16",
}
"""ONNX's TensorProto.DataType to Triton's inference.DataType (model_config.proto)."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output.

    Attributes:
        name: as the model file spells it.
        dtype: Triton's name of the element type, for example "TYPE_FP32".
        dims: without the batch axis where the signature has one; -1 for an open dimension; () is a scalar
            (with a batch axis: one value for each element of the batch).
    """

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a model, in the file's order.

    A model has a batch axis where dimension 0 of *every* input and output is open, and sizes given to the
    inputs' arrive at the outputs'. Everywhere else `has_batch_axis` is False and dims are full: a model
    whose batch is fixed at 1, for example, keeps that 1 as its first dim, and Triton serves it with
    `max_batch_size: 0`.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    has_batch_axis: bool

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of names, types, dims and batch axis: weights do not change it."""
        rows = [[(t.name, t.dtype, t.dims) for t in side] for side in (self.inputs, self.outputs)]
        text = json.dumps([*rows, self.has_batch_axis], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_batch_in_dims(self) -> Signature:
        """The same model without a batch axis: dims are full, and the first of each is open.

        This is what Triton serves with `max_batch_size: 0`.
        """
        if not self.has_batch_axis:
            return self
        inputs, outputs = (
            tuple(Tensor(t.name, t.dtype, (OPEN, *t.dims)) for t in side)
            for side in (self.inputs, self.outputs)
        )
        return Signature(inputs, outputs, has_batch_axis=False)


def signature_from_onnx(path: Path) -> Signature:
    """The signature of an ONNX file: the same on every machine, offline, without ONNX Runtime.

    Raises:
        ModelFileError: the file is missing, is no complete ONNX model, or has an input or output that Triton
            cannot serve.
    """
    return signature_of(read_onnx(path))


def signature_of(file: OnnxFile) -> Signature:
    """The signature of a model that has been read.

    Raises:
        ModelFileError: it has an input or output whose rank is unknown or that Triton has no type for.
    """
    graph = file.proto.graph
    # Up to IR version 3, every initializer is listed among the inputs too.
    constants = {tensor.name for tensor in graph.initializer}
    constants.update(sparse.values.name for sparse in graph.sparse_initializer)
    inputs = [value for value in graph.input if value.name not in constants]
    _require_names(file.path, [*inputs, *graph.output])
    types = {value.name: _triton_type(file.path, value) for value in (*inputs, *graph.output)}
    input_dims = _ranked(file.path, "input", {value.name: declared_dims(value) for value in inputs})
    declared = {value.name: declared_dims(value) for value in graph.output}
    if None in declared.values():
        inferred = ShapeInference(file.proto).outputs(input_dims)
        declared = {name: inferred.get(name) if dims is None else dims for name, dims in declared.items()}
    output_dims = _ranked(file.path, "output", declared)
    batch = has_batch_axis(file.proto, input_dims, output_dims)

    def tensors(all_dims: Mapping[str, tuple[Dim, ...]]) -> tuple[Tensor, ...]:
        return tuple(Tensor(name, types[name], _sizes(dims[batch:])) for name, dims in all_dims.items())

    return Signature(tensors(input_dims), tensors(output_dims), batch)


def _sizes(dims: tuple[Dim, ...]) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else OPEN for dim in dims)


def _require_names(path: Path, values: Sequence[onnx.ValueInfoProto]) -> None:
    """Refuses names that cannot be written into a config or shown: empty, not UTF-8 (bytes), unprintable."""
    for value in values:
        name: object = value.name
        if not (isinstance(name, str) and name and name.isprintable()):
            raise ModelFileError(path, f"an input or output is named {name!r}", "give it a readable name")


def _triton_type(path: Path, value: onnx.ValueInfoProto) -> str:
    import onnx

    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        raise ModelFileError(
            path,
            f'"{value.name}" is of type {kind.removesuffix("_type")}; Triton serves tensors only',
            "export the model with tensors (scikit-learn: zipmap=False)",
        )
    code = value.type.tensor_type.elem_type
    known = onnx.TensorProto.DataType.values()
    name = onnx.TensorProto.DataType.Name(code) if code in known else f"number {code}"
    if name not in _TYPES:
        raise ModelFileError(
            path, f'"{value.name}" has element type {name}, which Triton lacks', "cast it inside the model"
        )
    return _TYPES[name]


def _ranked(path: Path, side: str, dims: Shapes) -> dict[str, tuple[Dim, ...]]:
    for name, known in dims.items():
        if known is None:
            raise ModelFileError(
                path, f'{side} "{name}" does not say how many dimensions it has', "export it with a shape"
            )
    return {name: known for name, known in dims.items() if known is not None}
