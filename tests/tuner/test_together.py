"""Several models measured at the same time: on a real tritonserver, and what needs none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.models import mlp
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import joined
from tritonc.compiler.project import open_project
from tritonc.compiler.space import space_for
from tritonc.schemas.errors import EngineError
from tritonc.schemas.measurement import ClosedLoad, Failure, OpenLoad
from tritonc.schemas.spec import ClosedWorkload, Slo
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.engines import ServerFailure, Statistics, engine_named
from tritonc.tuner.inputs import read_inputs
from tritonc.tuner.joint_measurement import members_in
from tritonc.tuner.joint_trial import overlapping
from tritonc.tuner.joint_worth import JOINT_LOAD, Member
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.perf_analyzer import LoadData, perf_analyzer_at
from tritonc.tuner.sample import Sample
from tritonc.tuner.stand import Stand
from tritonc.tuner.together import TogetherMeasuring
from tritonc.tuner.window import Window

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  a: {source: a.onnx, max_batch_size: 4}
  b: {source: b.onnx, max_batch_size: 4}
targets: {cpu: {device: cpu, cores: 1, backends: {onnxruntime: {accelerators: [none]}}}}
together: [a, b]
"""
MODELS = ("a", "b")


def window(began_s: float, duration_s: float, load=ClosedLoad(concurrency=1)) -> Window:  # noqa: B008
    """A request each tenth of a second, answered within 50 ms."""
    send_s = np.arange(0, duration_s - 0.05, 0.1)
    planned_s = send_s if isinstance(load, OpenLoad) else np.empty(0)
    return Window(load, duration_s, send_s, np.full(len(send_s), 50.0), planned_s, began_s=began_s)


def sample(one: Window) -> Sample:
    return Sample(one.load, (one,), Statistics(0, 0, 0, 0, 0, 0, 0, 0, 0), 0, None)


def test_only_what_windows_have_in_common_counts():
    cut = overlapping({"a": sample(window(100.0, 2.0)), "b": sample(window(100.5, 2.0))})
    assert cut is not None
    first, second = (cut[model].windows[0] for model in MODELS)
    assert (first.began_s, first.duration_s) == pytest.approx((100.5, 1.5))
    assert (second.began_s, second.duration_s) == pytest.approx((100.5, 1.5))
    assert len(first.send_s) == len(second.send_s) == 15
    assert first.done_s.min() >= 0
    assert second.done_s.max() <= 1.5


def test_the_beginning_of_an_open_load_stays_as_its_plan_counts_from_there():
    load = OpenLoad(rate=10)
    cut = overlapping({"a": sample(window(100.0, 2.0, load)), "b": sample(window(100.5, 2.0))})
    assert cut is not None
    assert cut["a"].windows[0].began_s == 100.0
    assert cut["a"].windows[0].sustained


def test_windows_that_hardly_overlap_are_no_measurement():
    assert overlapping({"a": sample(window(100.0, 1.0)), "b": sample(window(100.8, 2.0))}) is None


class FailingStand:
    """A stand on which loading fails with one after another of these, and then works."""

    def __init__(self, *failures: Failure) -> None:
        self.failures = list(failures)

    def start(self) -> None:
        return None

    def name_of(self, candidate: Candidate) -> str:
        return candidate.model

    def serve_together(self, _members: object) -> None:
        if self.failures:
            raise ServerFailure(self.failures.pop(0))

    def recover(self, _failure: Failure) -> None:
        return None


def asked_for_outputs(candidates: int, *failures: Failure) -> tuple[TogetherMeasuring, list[str]]:
    """Baselines that were asked for their outputs before so many candidates, and what was warned about."""
    warnings: list[str] = []
    stand: Any = FailingStand(*failures)
    bench: Any = SimpleNamespace(inputs=())
    anything: Any = None
    own = [Candidate.of(model, "cpu", {"instance_count": 1}) for model in MODELS]
    measuring = TogetherMeasuring(
        stand,
        [Member(model, 1.0, anything, bench) for model in MODELS],
        baseline=joined(own),
        carried=lambda _candidate: None,
        on_load=lambda _candidate, _load: None,
        warn=warnings.append,
    )
    for _ in range(candidates):
        measuring._outputs.look()
    return measuring, warnings


def test_baselines_that_gave_no_outputs_are_asked_again_before_the_next_candidate():
    crash = Failure(reason="server_crashed", detail="a: the server ended (exit code -9)\nlast lines")
    measuring, warnings = asked_for_outputs(2, crash, crash)
    assert measuring._outputs.known == {"a": (), "b": ()}
    assert warnings == [
        "warning: the baseline gives no outputs to compare with (server_crashed: a: the server ended "
        "(exit code -9)); this candidate's outputs are not checked; where they have to be, mend that and run "
        "tritonc tune --fresh"
    ]


def test_baselines_that_never_give_outputs_are_given_up_and_that_is_said():
    broken = Failure(reason="load_failed", detail="a: no such file")
    measuring, warnings = asked_for_outputs(5, *[broken] * 5)
    assert measuring._outputs.known is None
    assert len(warnings) == 3
    assert "load_failed: a: no such file); this candidate's outputs are not checked" in warnings[1]
    assert "load_failed: a: no such file); outputs from now on are not checked" in warnings[2]


@dataclass
class Here:
    """Two models on one stand."""

    stand: Stand
    measuring: TogetherMeasuring
    baseline: Candidate
    others: tuple[Candidate, ...]
    warnings: list[str] = field(default_factory=list)


@contextmanager
def here(folder: Path, slo: Slo = Slo()) -> Iterator[Here]:  # noqa: B008
    (folder / "spec.yaml").write_text(SPEC)
    for number, model in enumerate(MODELS):
        (folder / f"{model}.onnx").write_bytes(mlp(seed=number).SerializeToString())
    project = open_project(folder / "spec.yaml")
    try:
        binary, env = engine_named("embedded").perf_analyzer()
    except EngineError as err:
        pytest.skip(str(err))
    warnings: list[str] = []
    with Stand(
        project, engine_named("embedded"), folder / "served", cores=(), on_start=lambda _restarted: None
    ) as stand:
        spaces = [space_for(project, model, "cpu") for model in MODELS]
        members = []
        for space in spaces:
            inputs = read_inputs(project, space.model)
            data = folder / f"load-{space.model}"
            data.mkdir()
            bench = Bench(
                generator=perf_analyzer_at(binary, env),
                data=LoadData.of(inputs, data),
                inputs=(inputs,),
                workload=ClosedWorkload(max_concurrency=2),
                slo=slo if space.model == "b" else Slo(p99_latency_ms=60_000),
                objective="throughput",
                accuracy=project.spec.models[space.model].accuracy,
            )
            own = StandMeasuring(
                stand,
                bench,
                baseline=space.baseline,
                compared_with=lambda: None,
                on_load=lambda _candidate, _load: None,
                warn=warnings.append,
            )
            members.append(Member(space.model, 1.0, own, bench))
        baseline = joined([space.baseline for space in spaces])
        measuring = TogetherMeasuring(
            stand,
            members,
            baseline=baseline,
            carried=lambda _candidate: None,
            on_load=lambda _candidate, _load: None,
            warn=warnings.append,
        )
        others = [next(one for one in space if one != space.baseline) for space in spaces]
        yield Here(stand, measuring, baseline, (joined(others),), warnings)


@pytest.mark.triton
@pytest.mark.slow
def test_both_models_are_measured_under_their_own_loads_at_the_same_time(tmp_path: Path):
    with here(tmp_path) as both:
        found = both.measuring.capacity(both.baseline)
        assert isinstance(found, Capacity), found
        assert set(found.members) == set(MODELS)
        assert found.slo_met
        assert set(found.violations) == {"a/p99_latency_ms"}
        rates = [seen.throughput.value for seen in found.members.values()]
        assert found.objective == pytest.approx(float(np.sqrt(np.prod(rates))))
        assert [step.load for step in found.steps] == [JOINT_LOAD]
        assert all(isinstance(seen.load, ClosedLoad) for seen in found.members.values())
        # The same loads again, interleaved with another candidate, both loaded side by side.
        other = both.measuring.capacity(both.others[0])
        assert isinstance(other, Capacity), other
        both.measuring.gather({both.baseline: found.measurement, both.others[0]: other.measurement})
        for candidate, known in ((both.baseline, found), (both.others[0], other)):
            seen = both.measuring.sample(candidate, JOINT_LOAD, 40)
            assert not isinstance(seen, Failure), seen
            pooled = both.measuring.pooled([seen])
            assert {m: each.load for m, each in members_in(pooled).items()} == {
                m: each.load for m, each in known.members.items()
            }
            assert all(each.requests >= 40 for each in members_in(pooled).values())
            assert pooled.memory_bytes == known.measurement.memory_bytes
        assert both.warnings == []


@pytest.mark.triton
@pytest.mark.slow
def test_who_breaks_a_limit_steps_down_and_the_other_one_does_not(tmp_path: Path):
    with here(tmp_path, Slo(p99_latency_ms=0.001)) as both:
        found = both.measuring.capacity(both.baseline)
        assert isinstance(found, Capacity), found
        assert not found.slo_met
        assert found.members["b"].load == ClosedLoad(concurrency=1)
        assert found.violations["b/p99_latency_ms"] > 0 >= found.violations["a/p99_latency_ms"]
        assert found.steps[0].throughput.value < found.measurement.throughput.value
        os.kill(both.stand.start().pid, signal.SIGKILL)  # somebody else did: it is measured again
        seen = both.measuring.sample(both.baseline, JOINT_LOAD, 1)
        assert not isinstance(seen, Failure), seen
        assert all((sample.load_s or 0) > 0 for sample in seen.members.values())
        assert both.measuring.lower(JOINT_LOAD, 0.5) is None  # b has one client already
