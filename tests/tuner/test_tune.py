"""What `tune` does with the lock around its measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ProjectFolder
from tests.locks import decision, lock
from tests.models import mlp
from tritonc.compiler.project import Project, open_project
from tritonc.schemas.lock import Lock
from tritonc.schemas.lock_file import write_lock
from tritonc.tuner.coverage import Coverage
from tritonc.tuner.plan import Settings, plan_of
from tritonc.tuner.study_setup import lock_to_extend
from tritonc.tuner.tune import _estimate, build

SPEC = """\
apiVersion: tritonc/v1
name: test
models: {mlp: {source: models/mlp.onnx}, other: {source: models/other.onnx}}
targets: {cpu: {device: cpu, cores: 2, backends: {onnxruntime: {accelerators: [none]}}}}
"""


@pytest.fixture
def p(project: Callable[..., ProjectFolder]) -> ProjectFolder:
    return project({"spec.yaml": SPEC, "models/mlp.onnx": mlp(), "models/other.onnx": mlp(seed=1)})


def locked(project: Project) -> Lock:
    decisions: list[Any] = [
        decision(project, model, "cpu", {"instance_count": 1}) for model in ("mlp", "other")
    ]
    return lock(project, *decisions)


def test_a_stale_decision_of_another_model_stops_the_build_alone(p: ProjectFolder):
    before = locked(open_project(p.path("spec.yaml")))
    p.write("models/other.onnx", mlp(seed=2))
    built, not_built = build(open_project(p.path("spec.yaml")), before, p.path("build"))
    assert built == {}
    assert "other on cpu: the evidence is stale" in str(not_built)
    assert not p.path("build").exists()


def test_what_is_locked_is_built(p: ProjectFolder):
    project = open_project(p.path("spec.yaml"))
    built, not_built = build(project, locked(project), p.path("build"))
    assert (list(built), not_built) == (["cpu"], None)
    assert "count: 1" in p.path("build/cpu/other/config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("known", "share"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)], ids=["nothing", "some", "all"]
)
def test_what_was_measured_before_takes_no_time_in_an_estimate(p: ProjectFolder, known: float, share: float):
    task, *_ = plan_of(open_project(p.path("spec.yaml")), Settings(), models=["mlp"]).tasks
    before = Coverage(wholly=round(known * len(task.space)), partly=1)
    estimate = _estimate(task, Settings(trials=3), (), before)
    assert estimate.seconds == pytest.approx(3 * 10.0 * share + 30.0, rel=0.05)
    assert estimate.trials == 3


def test_a_lock_of_another_spec_is_not_added_to(p: ProjectFolder):
    project = open_project(p.path("spec.yaml"))
    assert lock_to_extend(project) == Lock(spec="test")
    write_lock(project.spec_file.lock_path, locked(project))
    assert lock_to_extend(project).decision("other", "cpu") is not None
    write_lock(project.spec_file.lock_path, locked(project).model_copy(update={"spec": "old"}))
    assert lock_to_extend(project) == Lock(spec="test")
