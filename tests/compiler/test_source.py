from __future__ import annotations

from pathlib import Path

import pytest

from tritonc.compiler.models.source import path_of_source
from tritonc.schemas.errors import ModelFileError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "project"
    (folder / "models").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("models/m.onnx", "models/m.onnx"),
        ("./models/m.onnx", "models/m.onnx"),
        ("file:models/m.onnx", "models/m.onnx"),
        ("FILE:models/a%20b.onnx", "models/a b.onnx"),
        ("models/a%20b.onnx", "models/a%20b.onnx"),
        ("./a:b.onnx", "a:b.onnx"),
        ("models/../models/m.onnx", "models/../models/m.onnx"),
        ("file://{folder}/m.onnx", "m.onnx"),
        ("file://localhost{folder}/m.onnx", "m.onnx"),
        ("file:{folder}/m.onnx", "m.onnx"),
        ("{folder}/m.onnx", "m.onnx"),
    ],
)
def test_paths_and_file_uris(folder: Path, source: str, path: str) -> None:
    assert path_of_source(source.format(folder=folder), folder) == folder / path


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("https://example.com/m.onnx", "is a remote source (https:); remote sources come later"),
        ("s3://bucket/m.onnx", "is a remote source (s3:)"),
        ("models:/resnet/1", "is a remote source (models:)"),
        ("file://server/m.onnx", 'is on another machine, "server"'),
        ("../m.onnx", "is outside the project's folder"),
        ("models/../../m.onnx", "is outside the project's folder"),
        ("file:..%2Fm.onnx", "is outside the project's folder"),
        ("/etc/passwd", "is outside the project's folder"),
        ("outside/m.onnx", "is outside the project's folder"),
        ("loop", "cannot be followed"),
        ("file:m%00", "holds a NUL character"),
    ],
)
def test_sources_that_are_refused(folder: Path, source: str, what: str) -> None:
    (folder / "outside").symlink_to(folder.parent)
    (folder / "loop").symlink_to("loop")
    with pytest.raises(ModelFileError) as caught:
        path_of_source(source, folder)
    assert caught.value.what.startswith(f"{source}: {what}")
    assert caught.value.hint


def test_a_link_that_stays_inside_is_followed(folder: Path) -> None:
    (folder / "latest").symlink_to("models")
    assert path_of_source("latest/m.onnx", folder) == folder / "latest/m.onnx"


def test_what_lies_outside_can_be_allowed(folder: Path) -> None:
    assert path_of_source("../m.onnx", folder, allow_outside=True) == folder / "../m.onnx"


def test_a_name_with_a_colon_is_told_how_to_be_written(folder: Path) -> None:
    with pytest.raises(ModelFileError, match=r"or \./a:b\.onnx if that is the name of a file"):
        path_of_source("a:b.onnx", folder)
