"""What models are asked: workloads of the spec with their files read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.compiler.project import Project, open_project
from tritonc.compiler.space import space_for
from tritonc.compiler.stale import digests
from tritonc.schemas.errors import InputErrors, TritoncError
from tritonc.schemas.measurement import ClosedLoad, OpenLoad, Trace
from tritonc.schemas.spec import Slo
from tritonc.tuner.arrival_trace import ArrivalTrace
from tritonc.tuner.demand import TraceDemand, read_demands, replay_note
from tritonc.tuner.loads import ceiling, ladder, load_at, load_to_hold, searched_loads

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  mlp:
    source: models/mlp.onnx
    workload: WORKLOAD
targets: {cpu: {device: cpu, cores: 2, backends: {BACKEND: {}}}}
"""
Open = Callable[..., Project]


@pytest.fixture
def opened(project: Any) -> Open:
    def open_with(workload: str, backend: str = "onnxruntime", **files: str) -> Project:
        folder: ProjectFolder = project({"models/mlp.onnx": mlp()})
        folder.write("spec.yaml", SPEC.replace("WORKLOAD", workload).replace("BACKEND", backend))
        for name, content in files.items():
            folder.write(f"{name}.txt", content)
        return open_project(folder.path("spec.yaml"))

    return open_with


def test_a_trace_is_carried_at_its_own_rate_unless_another_is_given(opened: Open) -> None:
    project = opened("{arrival: trace, file: day.txt}", day="0\n1\n4\n")
    [own] = read_demands(project, "mlp")
    assert isinstance(own, TraceDemand)
    assert own.rate == pytest.approx(0.5)
    [given] = read_demands(opened("{arrival: trace, file: day.txt, rate: 40}", day="0\n1\n4\n"), "mlp")
    digest = given.arrival.trace
    assert load_at(given, 80) == OpenLoad(rate=80, distribution=Trace(trace=digest))
    assert ceiling(given) == 16 * 40
    loads = searched_loads(given, Slo(), "throughput")
    assert (loads[0], loads[-1]) == (load_at(given, 40), load_at(given, 640))
    assert ladder(given)[0] == 40


def test_further_workloads_hold_at_their_rate_or_with_all_of_their_clients(opened: Open) -> None:
    project = opened(
        "[{max_concurrency: 8}, {max_concurrency: 3}, {arrival: constant, rate: 7}, "
        "{arrival: trace, file: day.txt}]",
        day="0\n1\n4\n",
    )
    first, *further = read_demands(project, "mlp")
    assert ceiling(first) == 8
    assert [load_to_hold(each) for each in further] == [
        ClosedLoad(concurrency=3),
        OpenLoad(rate=7, distribution="constant"),
        OpenLoad(rate=0.5, distribution=Trace(trace=further[2].arrival.trace)),
    ]


def test_every_wrong_file_is_an_error_at_its_place(opened: Open) -> None:
    project = opened("[{arrival: trace, file: a.txt}, {arrival: trace, file: b.txt}]", a="1\nx\n", b="1\n")
    with pytest.raises(InputErrors) as wrong:
        read_demands(project, "mlp")
    first, second = (str(each).partition("spec.yaml:")[2] for each in wrong.value)
    assert first.startswith('6:39: a.txt: line 2 is "x"')
    assert second.startswith("6:70: b.txt: it has fewer than two arrivals")


def test_what_is_in_every_file_identifies_the_load(opened: Open) -> None:
    def load(**files: str) -> str:
        workload = "[{max_concurrency: 8}, {arrival: trace, file: day.txt}]"
        return digests(opened(workload, **files), "mlp", "cpu").load

    assert load(day="0\n1\n") == load(day="0\n1\n") != load(day="0\n2\n")


def test_a_long_trace_is_said_to_be_replayed_in_stretches() -> None:
    times = np.arange(0, 100, 0.1)
    assert replay_note(TraceDemand(ArrivalTrace(times, "e" * 64), 100)) == ""
    note = replay_note(TraceDemand(ArrivalTrace(times, "e" * 64), 10))
    assert "at 10 requests/s the trace lasts 100 s" in note
    assert "another one of 10 stretches" in note


def test_a_backend_of_full_batches_cannot_serve_requests_of_several_sizes(opened: Open) -> None:
    two = "[{max_concurrency: 8, request_batch: 2}, {max_concurrency: 8, request_batch: 4}]"
    with pytest.raises(TritoncError, match="answers full batches only, and there are requests of 2, 4"):
        space_for(opened(two, "openvino"), "mlp", "cpu")
    sizes = {one.values["max_batch_size"] for one in space_for(opened(two), "mlp", "cpu")}
    assert min(sizes) == 4
