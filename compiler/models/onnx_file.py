"""One ONNX file, read without its weights: enough for shapes and types, whatever the file weighs."""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tritonc.compiler.models.protobuf_wire import without_weights
from tritonc.schemas.errors import ModelFileError

if TYPE_CHECKING:
    import onnx

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_EXPORT_AGAIN = "copy or export the file again"


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX model without the data of its large tensors.

    Attributes:
        path: the file it was read from.
        proto: the model; tensors of more than 1,024 bytes keep their name, type and dims only.
        external_data: the files that hold tensors kept outside the model file; they exist, long enough.
    """

    path: Path
    proto: onnx.ModelProto
    external_data: tuple[Path, ...] = ()


def read_onnx(path: Path) -> OnnxFile:
    """Reads a model file.

    Raises:
        ModelFileError: it is missing, is no complete ONNX model, or its external data is missing, truncated
            or outside the model's folder.
    """
    try:
        _regular_file_size_bytes(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            slim = _slim(path, content)
    except OSError as err:
        raise ModelFileError(path, f"cannot be read: {err.strerror}") from err
    proto = _parse(path, slim)
    # A tensor stored outside the file has an entry of this name; searching bytes is faster than the nodes.
    external_data = _external_data(path, proto) if b"location" in slim else ()
    return OnnxFile(path, proto, external_data)


def _regular_file_size_bytes(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ModelFileError(path, "does not exist", "check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise ModelFileError(path, "is a folder", "name the .onnx file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(path, "is not a regular file")
    if status.st_size == 0:
        raise ModelFileError(path, "is empty", "copy or export the file again")
    return status.st_size


def _slim(path: Path, content: mmap.mmap) -> bytes:
    if content[: len(_LFS_POINTER)] == _LFS_POINTER:
        raise ModelFileError(path, "is a Git LFS pointer, not the model itself", "run: git lfs pull")
    try:
        with memoryview(content) as view:
            return without_weights(view)
    except ValueError as err:
        raise ModelFileError(path, "is not an ONNX model, or is truncated", _EXPORT_AGAIN) from err


def _parse(path: Path, slim: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.ModelProto.FromString(slim)
    except DecodeError as err:
        raise ModelFileError(path, "is not an ONNX model, or is damaged", _EXPORT_AGAIN) from err
    # Protobuf accepts an unrelated or cut-off message as one whose fields are missing.
    if not (proto.ir_version and proto.graph.output and proto.opset_import):
        raise ModelFileError(
            path, "is not a complete ONNX model: it lacks a graph, outputs or opset", _EXPORT_AGAIN
        )
    return proto


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _sparse_tensors(graph.sparse_initializer)
    yield from _node_tensors(graph.node)


def _sparse_tensors(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for sparse in tensors:
        yield sparse.values
        yield sparse.indices


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            yield from _sparse_tensors((attribute.sparse_tensor, *attribute.sparse_tensors))
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)


def _external_data(path: Path, proto: onnx.ModelProto) -> tuple[Path, ...]:
    import onnx

    needed_bytes: dict[str, int] = {}
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location, end_bytes = _external_range(path, tensor)
            needed_bytes[location] = max(end_bytes, needed_bytes.get(location, 0))
    return tuple(_external_file(path, location, size) for location, size in sorted(needed_bytes.items()))


def _external_range(path: Path, tensor: onnx.TensorProto) -> tuple[str, int]:
    """File name and the byte up to which it is needed, as far as told: offset and length are optional."""
    entries = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    location = entries.get("location", "")
    parts = PurePosixPath(location)
    if not parts.name or parts.is_absolute() or ".." in parts.parts or not location.isprintable():
        raise ModelFileError(
            path,
            f'tensor "{tensor.name}" is stored in {location!r}, which is not inside the model\'s folder',
            "export the model with its data file beside it",
        )
    try:
        return str(parts), int(entries.get("offset", "0")) + int(entries.get("length", "0"))
    except ValueError as err:
        raise ModelFileError(
            path, f'tensor "{tensor.name}" has external data whose offset or length is no number'
        ) from err


def _external_file(path: Path, location: str, needed_bytes: int) -> Path:
    data = path.parent / location
    try:
        size_bytes = _regular_file_size_bytes(data)
    except ModelFileError as err:
        problem = err.what.removeprefix(f"{data}: ")
        raise ModelFileError(
            path, f"its external data file {location} {problem}", "copy it together with the model"
        ) from err
    except OSError as err:
        raise ModelFileError(
            path, f"its external data file {location} cannot be read: {err.strerror}"
        ) from err
    if size_bytes < needed_bytes:
        raise ModelFileError(
            path,
            f"its external data file {location} is truncated: {size_bytes} of at least {needed_bytes} bytes",
            "copy it together with the model",
        )
    return data
