from __future__ import annotations

import errno
import hashlib
import subprocess
from pathlib import Path

import pytest

from tests import models
from tritonc.compiler.models.model_file import read_model_file
from tritonc.compiler.signature import signature_from_onnx
from tritonc.schemas.errors import ModelFileError


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    content = models.mlp().SerializeToString()
    path.write_bytes(content)
    file = read_model_file(path)
    assert file.path == path
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert file.size_bytes == len(content)
    assert file.external_data == ()
    assert file.signature == signature_from_onnx(path)


def test_digest_of_external_data_can_be_had_with_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    models.write_with_external_data(models.mlp(), path)
    script = "{ sha256sum < model.onnx; sha256sum weights.bin; } | sha256sum"
    printed = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert read_model_file(path).sha256 == printed.stdout.split()[0]


def test_digest_follows_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    models.write_with_external_data(models.mlp(), path)
    before = read_model_file(path)
    data = tmp_path / "weights.bin"
    assert before.external_data == (data,)
    data.write_bytes(data.read_bytes()[::-1])
    after = read_model_file(path)
    assert after.sha256 != before.sha256
    assert after.signature == before.signature


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_model_file(tmp_path / "model.onnx")


def test_a_file_that_cannot_be_hashed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_disk(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "model.onnx"
    path.write_bytes(models.mlp().SerializeToString())
    monkeypatch.setattr(hashlib, "file_digest", broken_disk)
    with pytest.raises(ModelFileError, match=r"model\.onnx: cannot be read: Input/output error"):
        read_model_file(path)
