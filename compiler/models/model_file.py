"""The file of one model, read and hashed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tritonc.compiler.models.onnx_file import read_onnx
from tritonc.compiler.signature import Signature, signature_of
from tritonc.schemas.errors import ModelFileError


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model as the disk has it.

    Attributes:
        path: the model file, absolute.
        sha256: of the file; where it has external data, of the lines that `sha256sum` would print for the
            model file (as "-") and each data file (under its path from the model's folder), sorted by path.
        size_bytes: of the model file, without external data.
        external_data: files that hold tensors kept outside the model file.
        file_sha256: of the model file alone, then of each file of `external_data`.
        signature: as the file declares it. Where the spec says `max_batch_size: 0`, without a batch axis.
    """

    path: Path
    sha256: str
    size_bytes: int
    external_data: tuple[Path, ...]
    file_sha256: tuple[str, ...]
    signature: Signature


def read_model_file(path: Path) -> ModelFile:
    """Reads the signature of a model and hashes all its bytes.

    Raises:
        ModelFileError: the file is missing, is no complete ONNX model, cannot be served, or its external data
            is missing.
    """
    onnx_file = read_onnx(path)
    signature = signature_of(onnx_file)
    try:
        size_bytes = path.stat().st_size
        sha256 = _sha256(path)
        file_sha256 = (sha256, *(_sha256(data) for data in onnx_file.external_data))
        if onnx_file.external_data:
            names = ("-", *(data.relative_to(path.parent).as_posix() for data in onnx_file.external_data))
            lines = [f"{digest}  {name}\n" for digest, name in zip(file_sha256, names, strict=True)]
            sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()
    except OSError as err:
        raise ModelFileError(path, f"cannot be read: {err.strerror}") from err
    return ModelFile(path, sha256, size_bytes, onnx_file.external_data, file_sha256, signature)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
