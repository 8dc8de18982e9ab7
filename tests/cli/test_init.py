"""`tritonc init`: the written spec says what the file says, loads, and builds as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.compiler.signature import Signature, Tensor
from tritonc.compiler.starter import StarterModel, StarterTarget, starter_spec
from tritonc.schemas.spec_file import read_spec

TARGET = StarterTarget(cores=2, memory_gib=8, backends={"onnxruntime": ("none",), "openvino": ()})


def loaded(text: str) -> Any:
    return YAML(typ="safe").load(text)


def starter(signature: Signature, name: str = "m", source: str = "m.onnx") -> str:
    return starter_spec("project", [StarterModel(name, source, signature)], TARGET)


def image(*dims: int, has_batch_axis: bool = True) -> Signature:
    tensor = Tensor("x", "TYPE_FP32", dims)
    return Signature((tensor,), (Tensor("y", "TYPE_FP32", (10,)),), has_batch_axis)


def test_the_written_spec_loads_and_builds(project: Any) -> None:
    p: ProjectFolder = project({"models/mlp.onnx": mlp()})
    result = p.run("init", p.path("models/mlp.onnx"), "-o", p.path("spec.yaml"))
    assert result.exit_code == 0, result.stderr
    assert "mlp (models/mlp.onnx)" in result.stdout
    assert "next: tritonc build" in result.stdout
    model = read_spec(p.path("spec.yaml")).spec.models["mlp"]
    assert (model.source, model.max_batch_size) == ("models/mlp.onnx", 8)
    built = p.run("build", p.path("spec.yaml"))
    assert built.exit_code == 0, built.stderr
    assert p.path("build/cpu/mlp/config.pbtxt").is_file()


def test_a_spec_that_is_there_stays(project: Any) -> None:
    p: ProjectFolder = project({"m.onnx": mlp(), "spec.yaml": "mine"})
    result = p.run("init", p.path("m.onnx"), "-o", p.path("spec.yaml"))
    assert result.exit_code == 2
    assert "is already there; choose another name with -o, or replace it with --force" in result.stderr
    assert p.path("spec.yaml").read_text() == "mine"


def test_force_replaces_it_and_leaves_nothing_else(project: Any) -> None:
    p: ProjectFolder = project({"m.onnx": mlp(), "spec.yaml": "mine"})
    assert p.run("init", p.path("m.onnx"), "-o", p.path("spec.yaml"), "--force").exit_code == 0
    assert p.path("spec.yaml").read_text() != "mine"
    assert sorted(path.name for path in p.folder.iterdir()) == ["m.onnx", "spec.yaml"]


def test_every_model_that_cannot_be_read_is_reported_and_nothing_written(project: Any) -> None:
    p: ProjectFolder = project({"text.onnx": "no protobuf", "ok.onnx": mlp()})
    p.path("folder").mkdir()
    paths = [p.path(name) for name in ("text.onnx", "ok.onnx", "folder", "missing.onnx")]
    result = p.run("init", *paths, "-o", p.path("spec.yaml"))
    assert result.exit_code == 2
    for name in ("text.onnx", "folder", "missing.onnx"):
        assert str(p.path(name)) in result.stderr
    assert "ok.onnx" not in result.stderr
    assert not p.path("spec.yaml").exists()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_is_no_place_for_a_spec(project: Any, force: tuple[str, ...]) -> None:
    p: ProjectFolder = project({"m.onnx": mlp()})
    for out in (p.folder, Path()):
        result = p.run("init", p.path("m.onnx"), "-o", out, *force)
        assert result.exit_code == 2
        assert f"{out} is a folder; name the file too: -o {out / 'spec.yaml'}" in result.stderr


def test_a_spec_s_name_that_is_too_long_is_an_error(project: Any) -> None:
    p: ProjectFolder = project({"m.onnx": mlp()})
    result = p.run("init", p.path("m.onnx"), "-o", p.path("s" * 300))
    assert result.exit_code == 2
    assert "cannot be written: File name too long; choose another place with -o" in result.stderr


def test_a_model_s_name_that_yaml_cannot_hold_is_an_error(project: Any) -> None:
    p: ProjectFolder = project({})
    path = p.write("\udcff.onnx", mlp())
    result = p.run("init", path, "-o", p.path("spec.yaml"))
    assert result.exit_code == 2
    assert "is not UTF-8" in result.stderr
    assert not p.path("spec.yaml").exists()


def test_a_model_outside_the_spec_s_folder_says_where_the_spec_can_go(project: Any) -> None:
    p: ProjectFolder = project({"m.onnx": mlp()})
    p.path("specs").mkdir()
    result = p.run("init", p.path("m.onnx"), "-o", p.path("specs/spec.yaml"))
    assert result.exit_code == 2
    assert "lies outside the spec's folder" in result.stderr
    assert "put the spec above the models" in result.stderr


def test_a_folder_that_is_not_there_is_not_made(project: Any) -> None:
    p: ProjectFolder = project({"m.onnx": mlp()})
    result = p.run("init", p.path("m.onnx"), "-o", p.path("no/spec.yaml"))
    assert result.exit_code == 2
    assert "is not a folder; make it first" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_error(project: Any) -> None:
    p: ProjectFolder = project({"m.onnx": mlp()})
    p.folder.chmod(0o500)
    result = p.run("init", p.path("m.onnx"), "-o", p.path("spec.yaml"))
    p.folder.chmod(0o700)
    assert result.exit_code == 2
    assert "cannot be written: Permission denied" in result.stderr


def test_json_names_the_spec_and_its_models(project: Any) -> None:
    p: ProjectFolder = project({"m.onnx": mlp()})
    result = p.run("--output", "json", "init", p.path("m.onnx"), "-o", p.path("spec.yaml"))
    document = json.loads(result.stdout)
    assert document == {"schema_version": 1, "path": str(p.path("spec.yaml")), "models": {"m": "m.onnx"}}


def test_a_dash_prints_the_spec_of_the_current_folder(project: Any) -> None:
    p: ProjectFolder = project({"models/m.onnx": mlp()})
    command = [sys.executable, "-m", "tritonc", "init", "models/m.onnx", "-o", "-"]
    done = subprocess.run(command, cwd=p.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert loaded(done.stdout)["models"]["m"]["source"] == "models/m.onnx"
    assert sorted(path.name for path in p.folder.iterdir()) == ["models"]


def test_an_open_dimension_is_a_question_to_the_reader() -> None:
    text = starter(image(3, -1, -1))
    assert "# shapes: {x: [3, ?, ?]}" in text
    assert "# input x: fp32 [batch, 3, ?, ?]" in text
    assert "shapes" not in loaded(text)["models"]["m"]


def test_without_open_dimensions_there_is_no_question() -> None:
    assert "shapes" not in starter(image(3, 224, 224))


def test_a_model_without_a_batch_axis_gets_max_batch_size_0() -> None:
    assert loaded(starter(image(1, 3, has_batch_axis=False)))["models"]["m"]["max_batch_size"] == 0


def test_the_target_and_its_release_are_written_out() -> None:
    target = loaded(starter(image(3)))["targets"]["cpu"]
    assert target == {
        "device": "cpu",
        "cores": 2,
        "memory": "8GiB",
        "triton": "24.10",
        "backends": {"onnxruntime": {"accelerators": ["none"]}, "openvino": {}},
    }


@given(name=st.text(min_size=1, max_size=20), source=st.text(min_size=1, max_size=20))
def test_any_name_in_a_model_file_comes_back_from_the_yaml(name: str, source: str) -> None:
    tensors = (Tensor(name, "TYPE_INT64", (-1,)),)
    document = loaded(starter(Signature(tensors, tensors, has_batch_axis=True), source=source))
    assert document["models"]["m"]["source"] == source
    assert document["models"]["m"]["data"] == {name: {"range": [0, 1]}}
