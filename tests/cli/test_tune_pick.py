"""`tritonc tune --pick`: another configuration of the front is locked and built, and nothing is measured."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import ProjectFolder
from tests.locks import decision, lock, result
from tests.models import mlp
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import open_project
from tritonc.compiler.space import space_for
from tritonc.schemas.lock_file import read_lock, write_lock

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  mlp:
    source: models/mlp.onnx
    objective: {pareto: [throughput, p99_latency_ms, cost]}
targets:
  cpu:
    device: cpu
    cores: 2
    price_per_hour: 1.8
    backends: {onnxruntime: {accelerators: [none]}}
"""


@pytest.fixture
def p(project: Any) -> ProjectFolder:
    """A project whose lock has a front of three, with one, two and four instances."""
    folder: ProjectFolder = project({"spec.yaml": SPEC, "models/mlp.onnx": mlp()})
    opened = open_project(folder.path("spec.yaml"))
    front = tuple(result(member(folder, count), 60.0 * count) for count in (4, 2, 1))
    knobs = {"instance_count": 4}
    held = decision(opened, "mlp", "cpu", knobs, chosen=front[0], front=front, choice="knee")
    write_lock(folder.path("spec.lock.yaml"), lock(opened, held))
    return folder


def member(folder: ProjectFolder, count: int) -> Candidate:
    return member_of(folder, "mlp", count)


def member_of(folder: ProjectFolder, model: str, count: int) -> Candidate:
    space = space_for(open_project(folder.path("spec.yaml")), model, "cpu")
    return Candidate.of(model, "cpu", {**space.baseline.values, "instance_count": count})


def test_what_is_picked_is_locked_and_built(p: ProjectFolder):
    wanted = member(p, 1)
    done = p.run("tune", "--pick", wanted.id, "--output", "json")
    assert done.exit_code == 0, done.stderr
    [shown] = json.loads(done.stdout)["decisions"]
    assert (shown["choice"], shown["reason"]) == ("picked", "it was picked from the front")
    [held] = read_lock(p.path("spec.lock.yaml")).decisions
    assert (held.chosen.configuration.id, held.choice, len(held.front)) == (wanted.id, "picked", 3)
    config = p.path("build/cpu/mlp/config.pbtxt").read_text()
    assert "count: 1" in config
    assert ": picked by a person from a front of 3 (" in config
    assert p.run("build", "--check").exit_code == 0


def test_the_front_is_shown_with_units_and_intervals(p: ProjectFolder):
    done = p.run("tune", "--pick", member(p, 2).id)
    assert done.exit_code == 0, done.stderr
    assert "The front of throughput, p99_latency_ms, cost" in done.stdout
    for shown in (f"{member(p, 2).id} baseline", "inferences/s", "44.1 ms", "per million", "concurrency 12"):
        assert shown in done.stdout
    assert "Chosen is what a person picked." in done.stdout


def test_an_unknown_one_lists_the_front_and_changes_nothing(p: ProjectFolder):
    before = p.path("spec.lock.yaml").read_bytes()
    done = p.run("tune", "--pick", "0123456789")
    assert done.exit_code == 2
    ids = ", ".join(member(p, count).id for count in (4, 2, 1))
    assert f'--pick: "0123456789" is on no front; on that of mlp on cpu are {ids}' in done.stderr
    assert p.path("spec.lock.yaml").read_bytes() == before
    assert not p.path("build").exists()


def test_stale_evidence_is_not_picked_from(p: ProjectFolder):
    before = p.path("spec.lock.yaml").read_bytes()
    p.write("spec.yaml", SPEC.replace("objective:", "slo: {p99_latency_ms: 10}\n    objective:"))
    done = p.run("tune", "--pick", member(p, 1).id)
    assert done.exit_code == 2
    assert "the evidence is stale" in done.stderr
    assert p.path("spec.lock.yaml").read_bytes() == before


def test_without_a_front_there_is_nothing_to_pick(p: ProjectFolder):
    p.path("spec.lock.yaml").unlink()
    done = p.run("tune", "--pick", "0123456789")
    assert done.exit_code == 2
    assert "spec.lock.yaml: there is no front to pick from; write objective: {pareto: " in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--dry-run",), "--pick measures nothing: leave --dry-run out"),
        (("--engine", "local"), "--pick measures nothing: leave --engine out"),
        (("--seed", "0"), "--pick measures nothing: leave --seed out"),
        (("--model", "mpl"), 'the spec has no model "mpl"'),
        (("--target", "gpu"), 'the spec has no target "gpu"'),
    ],
)
def test_options_that_make_no_sense_beside_it_change_nothing(
    p: ProjectFolder, options: tuple[str, ...], said: str
):
    before = p.path("spec.lock.yaml").read_bytes()
    done = p.run("tune", "--pick", member(p, 1).id, *options)
    assert (done.exit_code, p.path("spec.lock.yaml").read_bytes()) == (2, before), done.stderr
    assert said in done.stderr
    assert not p.path("build").exists()


def test_the_front_of_a_model_that_the_spec_has_no_more_is_not_picked_from(p: ProjectFolder):
    p.write("spec.yaml", SPEC.replace("mlp:", "other:"))
    done = p.run("tune", "--pick", member_of(p, "other", 1).id)
    assert done.exit_code == 2
    assert "there is no front to pick from" in done.stderr
