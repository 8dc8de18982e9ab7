"""`tritonc candidates`: one repository a candidate, and an index of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_build import GPU, SPEC, names, tree
from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.compiler.pbtxt import parse_pbtxt


@pytest.fixture
def p(project: Any) -> ProjectFolder:
    folder: ProjectFolder = project({"spec.yaml": SPEC + GPU, "models/mlp.onnx": mlp()})
    return folder


def ok(p: ProjectFolder, *args: str | Path) -> str:
    done = p.run("candidates", "-o", p.path("out"), *args)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def index(p: ProjectFolder) -> list[dict[str, Any]]:
    spaces: list[dict[str, Any]] = json.loads(p.path("out/index.json").read_text())["spaces"]
    return spaces


def test_the_baseline_is_the_first_and_each_has_a_repository(p: ProjectFolder) -> None:
    ok(p, "--limit", "5", "--target", "cpu")
    (space,) = index(p)
    ids = [candidate["id"] for candidate in space["candidates"]]
    assert len(set(ids)) == 5
    assert ids[0] == space["baseline"]
    for candidate in space["candidates"]:
        folder = p.path("out") / candidate["repository"]
        config = parse_pbtxt((folder / "mlp/config.pbtxt").read_text())
        assert config.instance_group[0].count == candidate["knobs"]["instance_count"]
        assert (folder / "mlp/1/model.onnx").is_file()
        assert (folder / "server.args").is_file()


def test_the_size_of_the_space_is_printed_whatever_the_limit(p: ProjectFolder) -> None:
    stdout = ok(p, "--limit", "1")
    for space in index(p):
        assert space["size"] > 20
        assert f"{space['target']}/mlp: 1 of {space['size']} candidates" in stdout


def test_a_large_limit_writes_them_all(p: ProjectFolder) -> None:
    p.write(
        "spec.yaml", SPEC + "search: {instance_count: [1, 2], max_batch_size: 4, dynamic_batching: false}\n"
    )
    ok(p, "--limit", "1000000")
    (space,) = index(p)
    assert len(space["candidates"]) == space["size"] == len(names(p.path("out/cpu/mlp")))


def test_weights_are_linked_so_that_many_take_no_space(p: ProjectFolder) -> None:
    ok(p, "--limit", "3")
    for path in p.path("out").rglob("model.onnx"):
        assert path.samefile(p.path("models/mlp.onnx"))
    ok(p, "--limit", "3", "--weights", "copy")
    for path in p.path("out").rglob("model.onnx"):
        assert not path.samefile(p.path("models/mlp.onnx"))


def test_fewer_candidates_replace_more(p: ProjectFolder) -> None:
    ok(p, "--limit", "4")
    ok(p, "--limit", "2", "--target", "gpu")
    assert len(names(p.path("out/gpu/mlp"))) == 2
    assert not p.path("out/cpu").exists()


def test_two_runs_are_the_same_bytes(p: ProjectFolder, tmp_path: Path) -> None:
    ok(p, "--limit", "3")
    p.run("candidates", "-o", tmp_path / "second", "--limit", "3")
    assert tree(p.path("out")) == tree(tmp_path / "second")


def test_only_one_model(p: ProjectFolder) -> None:
    p.write("spec.yaml", SPEC.replace("targets:", "  second: {source: models/mlp.onnx}\ntargets:"))
    ok(p, "--model", "second", "--limit", "1")
    assert names(p.path("out/cpu")) == ["second"]


def test_every_problem_of_every_space_is_reported(p: ProjectFolder) -> None:
    text = SPEC.replace("targets:", "  second: {source: models/mlp.onnx, search: {nothing: 1}}\ntargets:")
    p.write("spec.yaml", text + "search: {no_knob: 1}\n")
    done = p.run("candidates", "-o", p.path("out"))
    assert done.exit_code == 2
    assert 'unknown knob "nothing"' in done.stderr
    assert 'unknown knob "no_knob"' in done.stderr
    assert not p.path("out").exists()


def test_json_says_the_same(p: ProjectFolder) -> None:
    document = json.loads(ok(p, "--limit", "2", "--output", "json"))
    assert document["schema_version"] == 1
    assert [(s["target"], s["written"]) for s in document["spaces"]] == [("cpu", 2), ("gpu", 2)]
