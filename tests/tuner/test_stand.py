"""One server for one candidate after another, on a real tritonserver."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.models import mlp
from tritonc.compiler.project import Project, open_project
from tritonc.compiler.space import space_for
from tritonc.schemas.errors import EngineError
from tritonc.schemas.measurement import ClosedLoad, Failure, Measurement
from tritonc.tuner import measuring
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.engines import engine_named
from tritonc.tuner.inputs import read_inputs
from tritonc.tuner.measuring import StandMeasuring, _window_s
from tritonc.tuner.perf_analyzer import LoadData, perf_analyzer_at
from tritonc.tuner.stand import Stand, _children
from tritonc.tuner.verify import references_of

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("brief")]

SPEC = """\
apiVersion: tritonc/v1
name: test
models: {mlp: {source: mlp.onnx, max_batch_size: 4}}
targets: {cpu: {device: cpu, cores: 1, backends: {onnxruntime: {accelerators: [none]}}}}
"""
ONE_CLIENT = ClosedLoad(concurrency=1)


@dataclass
class Measured:
    """A stand with what measures on it, and what they said."""

    stand: Stand
    measuring: StandMeasuring
    candidates: list
    starts: list[bool] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def signal_server(self, number: signal.Signals) -> None:
        os.kill(self.stand.start().pid, number)


@contextmanager
def measured(folder: Path, on_start: Callable[[Measured], None] = lambda _: None) -> Iterator[Measured]:
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "mlp.onnx").write_bytes(mlp().SerializeToString())
    project = open_project(folder / "spec.yaml")
    found: list[Measured] = []

    def started(restarted: bool) -> None:
        found[0].starts.append(restarted)
        on_start(found[0])

    with Stand(project, engine_named("embedded"), folder / "served", cores=(), on_start=started) as stand:
        space = space_for(project, "mlp", "cpu")
        bench = bench_of(project, folder)
        measuring = StandMeasuring(
            stand,
            bench,
            baseline=space.baseline,
            compared_with=lambda: None,
            on_load=lambda _candidate, _load: None,
            warn=lambda text: found[0].warnings.append(text),
        )
        found.append(Measured(stand, measuring, [space.baseline, *(c for c in space if c != space.baseline)]))
        yield found[0]


def bench_of(project: Project, folder: Path) -> Bench:
    try:
        binary, env = engine_named("embedded").perf_analyzer()
    except EngineError as err:
        pytest.skip(str(err))
    inputs, spec = read_inputs(project, "mlp"), project.spec.models["mlp"]
    return Bench(
        generator=perf_analyzer_at(binary, env),
        data=LoadData.of(inputs, folder),
        inputs=(inputs,),
        workload=spec.workload,
        slo=spec.slo,
        objective="throughput",
        accuracy=spec.accuracy,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_ends_or_hangs_between_two_candidates_is_no_fault_of_the_second(
    tmp_path: Path, number: signal.Signals
):
    with measured(tmp_path) as here:
        baseline, second, *_ = here.candidates
        assert not isinstance(here.measuring.sample(baseline, ONE_CLIENT, 1), Failure)
        server = here.stand.start()
        here.signal_server(number)
        while server.responsive(0.1):
            time.sleep(0.01)
        assert not isinstance(here.measuring.sample(second, ONE_CLIENT, 1), Failure)
        assert (here.starts, here.warnings) == ([False, True], [])


def test_the_baseline_is_asked_for_its_outputs_again_where_the_server_was_killed_meanwhile(tmp_path: Path):
    def kill_the_first(here: Measured) -> None:
        if here.starts == [False]:
            here.signal_server(signal.SIGKILL)

    with measured(tmp_path, kill_the_first) as here:
        measured_alone(here, here.candidates[0])
        assert (here.starts, here.warnings) == ([False, True], [])
        assert here.measuring._references


def test_a_baseline_that_gave_no_outputs_is_asked_again_before_the_next_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    timed_out = Failure(reason="load_timeout", detail="no answer within 120 s\nlast lines of server.log")
    outcomes = iter([timed_out])
    monkeypatch.setattr(
        measuring, "references_of", lambda *asked: next(outcomes, None) or references_of(*asked)
    )
    with measured(tmp_path) as here:
        found = [here.measuring.capacity(candidate) for candidate in here.candidates[:2]]
        assert [isinstance(one, Capacity) and one.is_verified for one in found] == [False, True]
        assert here.measuring._references
        assert here.warnings == [
            "warning: the baseline gives no outputs to compare with (load_timeout: no answer within 120 s); "
            "this candidate's outputs are not checked; where they have to be, mend that and run "
            "tritonc tune --fresh"
        ]


def measured_alone(here: Measured, candidate) -> Measurement:
    capacity = here.measuring.capacity(candidate)
    assert not isinstance(capacity, Failure), capacity
    return capacity.measurement


def memory_of(here: Measured, candidate) -> int | None:
    sample = here.measuring.sample(candidate, ONE_CLIENT, 1)
    assert not isinstance(sample, Failure), sample
    return here.measuring.pooled([sample]).memory_bytes


def test_contenders_are_loaded_side_by_side_and_have_the_memory_that_each_took_alone(tmp_path: Path):
    with measured(tmp_path) as here:
        known = {candidate: measured_alone(here, candidate) for candidate in here.candidates[:2]}
        here.measuring.gather(dict.fromkeys(known))
        names = {here.stand.name_of(candidate) for candidate in known}
        assert names == {f"mlp-{candidate.id}" for candidate in known}
        for candidate, alone in known.items():
            assert here.stand.serve(candidate)[1] == 0.0
            assert memory_of(here, candidate) == alone.memory_bytes
        third = here.candidates[2]
        assert memory_of(here, third) not in {alone.memory_bytes for alone in known.values()}
        assert [here.stand.name_of(candidate) for candidate in known] == ["mlp", "mlp"]
        assert (here.starts, here.warnings) == ([False], [])


def test_a_candidate_that_is_loaded_already_takes_no_time_to_load(tmp_path: Path):
    with measured(tmp_path) as here:
        first, second = (here.measuring.capacity(here.candidates[1]) for _ in range(2))
        assert not isinstance(first, Failure)
        assert not isinstance(second, Failure)
        assert first.seconds.load > 0 == second.seconds.load
        assert second.measurement.load_s > 0


def test_what_was_loaded_before_takes_no_memory_while_it_leaves_and_yields_to_others(tmp_path: Path):
    with measured(tmp_path) as here:
        first, second, *_ = here.candidates
        here.stand.serve(first)
        server, _ = here.stand.serve(second)
        assert here.stand.leaving
        assert {os.sched_getscheduler(pid) for pid in here.stand.leaving} == {os.SCHED_IDLE}
        without, everything = server.memory_bytes(here.stand.leaving), server.memory_bytes()
        here.stand.settle()
        alone = server.memory_bytes()
        assert without < everything
        assert abs(without - alone) < 0.5 * (everything - alone)
        assert not here.stand.leaving


def test_a_candidate_that_failed_on_a_server_that_is_well_is_served_as_before(tmp_path: Path):
    with measured(tmp_path) as here:
        candidate = here.candidates[0]
        _, first_s = here.stand.serve(candidate)
        here.stand.recover(Failure(reason="request_errors", detail="one odd answer"))
        server, again_s = here.stand.serve(candidate)
        assert again_s == first_s
        assert not here.stand.leaving
        stubs = _children(server.pid)
        assert os.SCHED_IDLE not in {os.sched_getscheduler(pid) for pid in stubs}
        stub = min(stubs)
        os.kill(stub, signal.SIGKILL)
        while stub in _children(server.pid):
            time.sleep(0.01)
        here.stand.recover(Failure(reason="request_errors", detail="its instance is gone"))
        assert here.stand._server is None


def test_what_is_withdrawn_yields_to_others_and_is_known_to_leave(tmp_path: Path):
    with measured(tmp_path) as here:
        here.stand.serve(here.candidates[0])
        here.stand.withdraw()
        leaving = here.stand.leaving
        assert leaving
        assert {os.sched_getscheduler(pid) for pid in leaving} == {os.SCHED_IDLE}
        here.stand.withdraw()
        assert here.stand.leaving == leaving


def test_contenders_go_on_one_by_one_where_the_server_that_had_them_all_is_killed(tmp_path: Path):
    with measured(tmp_path) as here:
        known = {candidate: measured_alone(here, candidate) for candidate in here.candidates[:2]}
        here.measuring.gather(dict(known))
        server = here.stand.start()
        here.signal_server(signal.SIGKILL)
        while server.responsive(0.1):
            time.sleep(0.01)
        for candidate in known:
            assert memory_of(here, candidate)
            assert here.stand.name_of(candidate) == "mlp"


@pytest.mark.parametrize("clients", [1, 16])
@pytest.mark.parametrize("rate", [2.0, 25.0, 38.0, 60.0, 5000.0])
def test_a_window_holds_its_share_of_the_requests_and_little_more(rate: float, clients: int):
    each_s = _window_s(ClosedLoad(concurrency=clients), 334, rate)
    assert each_s <= 10.0
    if (held := rate * each_s - clients) > 0:  # the first request of each client does not count
        windows = math.ceil(334 / held)
        assert 334 <= windows * held <= max(1.3 * 334, rate * 0.4)


def test_contenders_that_do_not_fit_together_are_loaded_one_by_one(tmp_path: Path):
    with measured(tmp_path) as here:
        one, other, *_ = here.candidates
        seen = measured_alone(here, one)
        assert not here.stand.has_room_for("cpu", 2**60)
        here.measuring.gather({one: seen, other: seen.model_copy(update={"memory_bytes": 2**60})})
        assert here.stand.name_of(one) == "mlp"
        here.measuring.gather({one: seen, other: None})
        assert here.stand.name_of(one) == "mlp"
        assert here.warnings == []
