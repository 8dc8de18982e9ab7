"""The repository as a value: paths and the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.compiler.output.manifest import (
    MANIFEST_PATH,
    FileRecord,
    Manifest,
    parse_manifest,
    print_manifest,
)
from tritonc.compiler.project import open_project
from tritonc.compiler.repository import Repository, Weights, compile_candidate, compile_candidates
from tritonc.compiler.space import space_for


def repository(*paths: str) -> Repository:
    return Repository.of({PurePosixPath(path): b"x" for path in paths}, spec="s", spec_sha256="0" * 64)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("../x", "no path inside"),
        ("a/../../x", "no path inside"),
        ("/etc/x", "no path inside"),
        ("", "no path inside"),
        ("a\0b", "no path inside"),
        ("manifest.json", "own manifest"),
    ],
)
def test_no_path_leaves_the_repository(path: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        repository(path)


def test_a_path_below_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="a file of the repository and a folder"):
        repository("m/1", "m/1/model.onnx")


def test_files_are_sorted_and_listed_in_the_manifest() -> None:
    weights = Weights(Path("models/x.onnx"), "ab" * 32, 7)
    files = {PurePosixPath("m/config.pbtxt"): b"x", PurePosixPath("m/1/model.onnx"): weights}
    compiled = Repository.of(files, spec="ocr", spec_sha256="12" * 32, target="cpu")
    assert [str(path) for path in compiled.files] == ["m/1/model.onnx", "m/config.pbtxt", "manifest.json"]
    manifest = compiled.files[MANIFEST_PATH]
    assert isinstance(manifest, bytes)
    assert json.loads(manifest) == {
        "schema_version": 1,
        "spec": {"name": "ocr", "sha256": "12" * 32},
        "target": "cpu",
        "files": {
            "m/1/model.onnx": {"sha256": "ab" * 32, "size_bytes": 7},
            "m/config.pbtxt": {"sha256": hashlib.sha256(b"x").hexdigest(), "size_bytes": 1},
        },
    }


def test_a_changed_file_changes_one_line_of_the_manifest() -> None:
    one = {PurePosixPath(path): FileRecord("0" * 64, 1) for path in ("a", "b", "c")}
    other = {**one, PurePosixPath("b"): FileRecord("1" * 64, 1)}
    lines = [print_manifest(Manifest("s", "0" * 64, "t", files)).splitlines() for files in (one, other)]
    assert sum(a != b for a, b in zip(*lines, strict=True)) == 1


@pytest.mark.parametrize("files", [{}, {PurePosixPath('a"ü\\b'): FileRecord("0" * 64, 0)}])
def test_the_manifest_reads_back(files: dict[PurePosixPath, FileRecord]) -> None:
    manifest = Manifest("s", "0" * 64, "", files)
    assert parse_manifest(print_manifest(manifest)) == manifest


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"schema_version": 2}', b'{"schema_version": 1, "files": {"a": 1}}'],
)
def test_what_is_no_manifest_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_manifest(content)


def test_candidates_side_by_side_differ_from_each_alone_by_their_names(
    project: Callable[..., ProjectFolder],
) -> None:
    spec = """\
apiVersion: tritonc/v1
name: test
models: {mlp: {source: mlp.onnx}}
targets: {cpu: {device: cpu, cores: 2, backends: {onnxruntime: {accelerators: [none]}}}}
"""
    opened = open_project(project({"spec.yaml": spec, "mlp.onnx": mlp()}).path("spec.yaml"))
    one, other, *_ = space_for(opened, "mlp", "cpu")
    files = compile_candidates(opened, {"mlp-one": one, "mlp-other": other}).files
    for name, candidate in (("mlp-one", one), ("mlp-other", other)):
        alone = compile_candidate(opened, candidate).files
        config, expected = (
            each[PurePosixPath(folder, "config.pbtxt")] for each, folder in ((files, name), (alone, "mlp"))
        )
        assert isinstance(config, bytes)
        assert config.replace(f'name: "{name}"'.encode(), b'name: "mlp"') == expected
        assert files[PurePosixPath(name, "1/model.onnx")] == alone[PurePosixPath("mlp/1/model.onnx")]
