from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper
from pydantic import TypeAdapter

from tests import models
from tests.tuner.conftest import Served, config_pbtxt, parameter
from tests.tuner.test_sample import sample as a_sample
from tests.tuner.test_window import clients
from tritonc.compiler.signature import Tensor
from tritonc.schemas.errors import EngineError
from tritonc.schemas.measurement import ClosedLoad, Failure, Interval, Load, Measurement, OpenLoad
from tritonc.schemas.spec import Accuracy, ClosedWorkload, OpenWorkload, Slo, Workload
from tritonc.tuner import perf_analyzer, under_load
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import Capacity, Known
from tritonc.tuner.engines import Server, engine_named
from tritonc.tuner.inputs import Inputs, InputSamples
from tritonc.tuner.load_search import MOST_WINDOWS
from tritonc.tuner.measure import measure_capacity
from tritonc.tuner.objective import Objective
from tritonc.tuner.perf_analyzer import LoadData, perf_analyzer_at
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.under_load import take_sample
from tritonc.tuner.verify import reference_outputs

pytestmark = pytest.mark.triton

WIDTH = 512
INPUTS = Inputs(
    (InputSamples(Tensor("x", "TYPE_FP32", (1, WIDTH)), np.full((2, 1, WIDTH), 0.1, np.float32)),), True
)


def busy(multiplications: int = 20, rows: int = 64) -> onnx.ModelProto:
    """FP32 `x` [batch, 1, 512] -> `y` [batch, 512]: a millisecond of one core or so for two of 64 rows."""
    nodes = [helper.make_node("Expand", ["x", "shape"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"]) for i in range(multiplications)]
    nodes.append(helper.make_node("ReduceMean", [f"h{multiplications}"], ["y"], axes=[1], keepdims=0))
    weights = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w")
    shape = numpy_helper.from_array(np.array([1, rows, WIDTH], np.int64), "shape")
    x, y = (
        models.tensor("x", models.FLOAT, ["batch", 1, WIDTH]),
        models.tensor("y", models.FLOAT, ["batch", WIDTH]),
    )
    return models.model(nodes, [x], [y], [weights, shape])


def config(proto: onnx.ModelProto) -> str:
    return config_pbtxt(proto, max_batch_size=8, more=parameter("intra_op_thread_count", "1"))


def bench(
    folder: Path,
    workload: Workload | None = None,
    slo: Slo | None = None,
    objective: Objective = "throughput",
) -> Bench:
    binary, env = engine_named("embedded").perf_analyzer()
    return Bench(
        generator=perf_analyzer_at(binary, env),
        data=LoadData.of(INPUTS, folder),
        inputs=(INPUTS,),
        workload=workload or ClosedWorkload(max_concurrency=16),
        slo=slo or Slo(),
        objective=objective,
        accuracy=Accuracy(),
    )


def measure_fixed(
    server: Server, model: str, bench: Bench, load: Load, min_requests: int
) -> Measurement | Failure:
    """What the loaded candidate does under one load, from `min_requests` requests."""
    sample = take_sample(server, model, bench, load, min_requests)
    return sample if isinstance(sample, Failure) else pooled([sample])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server that a test may break."""
    (tmp_path / "repository").mkdir()
    try:
        context = engine_named("embedded").serve(tmp_path / "repository", log=tmp_path / "server.log")
    except EngineError as err:
        pytest.skip(str(err))
    with context as server:
        yield Served(server)


def test_a_candidate_is_loaded_verified_warmed_up_and_brought_to_its_capacity(
    served: Served, tmp_path: Path
) -> None:
    proto = busy()
    model = served.load(proto, config(proto))
    reference = reference_outputs(served.server, model, INPUTS)
    assert not isinstance(reference, Failure)
    served.server.unload(model)
    told: list[Load | None] = []
    found = measure_capacity(
        served.server,
        model,
        bench(tmp_path, slo=Slo(p99_latency_ms=500, min_throughput=1)),
        max_batch_size=8,
        references=(reference,),
        on_load=told.append,
    )
    assert isinstance(found, Capacity)
    assert found.slo_met
    assert set(found.violations) == {"p99_latency_ms", "min_throughput"}
    assert found.objective == found.measurement.throughput.value > 0
    assert found.measurement in found.steps
    assert told[0] is None
    assert {step.load for step in found.steps} == set(told[1:])
    assert found.interval is not None
    assert found.interval.value == found.measurement.throughput.value
    assert min(found.seconds.load, found.seconds.warm_up, found.seconds.verify, found.seconds.steps) > 0
    measured = found.measurement
    assert measured.requests >= 8
    assert measured.errors == 0
    assert {step.load_s for step in found.steps} == {found.seconds.load}
    assert measured.memory_bytes is not None
    assert measured.memory_bytes > 10_000_000
    assert measured.mean_batch == pytest.approx(1)
    assert measured.compute_infer_ms is not None
    assert measured.queue_ms is not None
    assert measured.compute_infer_ms + measured.queue_ms <= measured.latency_ms["avg"].value * 1.5
    adapter: TypeAdapter[Capacity | Failure] = TypeAdapter(Capacity | Failure)
    assert adapter.validate_json(adapter.dump_json(found)) == found


def test_the_noise_floor_is_measured_at_the_load_that_decides(served: Served, tmp_path: Path) -> None:
    proto = busy()
    model = served.load(proto, config(proto))
    found = measure_capacity(
        served.server,
        model,
        bench(tmp_path, ClosedWorkload(max_concurrency=2), Slo(p99_latency_ms=500)),
        max_batch_size=8,
        loaded_s=0.0,
        noise_windows=4,
    )
    assert isinstance(found, Capacity)
    assert found.noise is not None
    assert found.noise.throughput.freedom >= 3
    decides = next(place for place, step in enumerate(found.steps) if step == found.measurement)
    seen_again = sum(count - 1 for place, count in enumerate(found.windows) if place != decides and count)
    assert found.windows[decides] == max(3, 4 - seen_again), "those of the steps count, too"
    assert found.seconds.noise > (found.windows[decides] - MOST_WINDOWS) * 0.4
    assert found.measurement.duration_s > found.seconds.noise / 2
    adapter: TypeAdapter[Capacity | Failure] = TypeAdapter(Capacity | Failure)
    assert adapter.validate_json(adapter.dump_json(found)) == found


def test_a_candidate_that_cannot_come_near_the_best_is_left_after_its_warm_up(
    served: Served, tmp_path: Path
) -> None:
    proto = busy()
    model = served.load(proto, config(proto))
    told: list[Load | None] = []
    first, best = ClosedLoad(concurrency=12), Interval(value=1e6, low=9e5, high=1.1e6)
    found = measure_capacity(
        served.server,
        model,
        bench(tmp_path, slo=Slo(p99_latency_ms=1)),
        max_batch_size=8,
        loaded_s=0.0,
        on_load=told.append,
        known=Known(first, best),
    )
    assert isinstance(found, Capacity)
    assert found.is_cut
    assert not found.slo_met
    assert told == [None]
    assert [step.load for step in found.steps] == [first]
    assert found.measurement.memory_bytes is not None
    assert found.measurement.memory_bytes > 10_000_000


def test_at_twice_the_capacity_poisson_arrivals_are_not_sustained(served: Served, tmp_path: Path) -> None:
    proto = busy(40)
    model = served.load(proto, config(proto))
    closed = measure_fixed(served.server, model, bench(tmp_path), ClosedLoad(concurrency=4), 50)
    assert isinstance(closed, Measurement)
    slo = Slo(p99_latency_ms=4 * closed.latency_ms["p99"].value)
    workload = OpenWorkload(arrival="poisson", rate=2 * closed.throughput.value)
    found = measure_capacity(
        served.server, model, bench(tmp_path, workload, slo), max_batch_size=8, loaded_s=0.0
    )
    again = measure_fixed(served.server, model, bench(tmp_path), ClosedLoad(concurrency=4), 50)
    assert isinstance(again, Measurement)
    if again.throughput.value > 1.4 * closed.throughput.value:
        pytest.skip("the machine became faster while this test ran")
    assert isinstance(found, Capacity)
    assert not found.measurement.sustained
    assert found.measurement.latency_ms["p99"].high is None
    assert not found.slo_met
    assert found.violations["sustained"] > 0
    assert all(step.load.kind == "open" for step in found.steps)


def test_a_fixed_load_is_kept_up_until_there_are_enough_requests(served: Served, tmp_path: Path) -> None:
    proto = models.identity(dims=("batch", 1, WIDTH))
    model = served.load(proto, config(proto))
    load = ClosedLoad(concurrency=2, request_batch=4)
    found = measure_fixed(served.server, model, bench(tmp_path), load, 1000)
    assert isinstance(found, Measurement)
    assert found.requests >= 1000
    assert found.latency_ms["p99"].high is not None
    assert found.throughput.value == pytest.approx(4 * found.requests / found.duration_s, rel=0.2)


@pytest.mark.parametrize(
    ("wanted", "further_s"),
    [
        pytest.param(780, (1.1 * (780 - 598) + 2) / 200, id="as-long-as-what-is-missing-takes"),
        pytest.param(600, 0.4, id="as-short-as-a-window-can-be"),
    ],
)
def test_windows_after_the_first_last_as_long_as_what_is_missing(
    wanted: int, further_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients of a server that answers 200 a second; the first request of each does not count."""
    load = ClosedLoad(concurrency=2)
    asked: list[float] = []

    def window(_trial: object, _load: Load, window_s: float) -> Sample:
        asked.append(window_s)
        return a_sample(clients(2, 5.0, window_s=window_s))

    monkeypatch.setattr(under_load.UnderLoad, "window", window)
    monkeypatch.setattr(under_load.UnderLoad, "memory_bytes", lambda _trial: (0, None))
    server: Any = None
    found = take_sample(server, "m", bench(tmp_path), load, wanted, window_s=3.0)
    assert isinstance(found, Sample)
    assert found.requests >= wanted
    assert asked == [3.0, pytest.approx(further_s, rel=0.02)]


def test_an_open_load_offers_what_was_asked(served: Served, tmp_path: Path) -> None:
    proto = models.identity(dims=("batch", 1, WIDTH))
    model = served.load(proto, config(proto))
    found = measure_fixed(served.server, model, bench(tmp_path), OpenLoad(rate=40), 50)
    assert isinstance(found, Measurement)
    assert found.offered_rate == pytest.approx(40, rel=0.15)
    assert found.throughput.value == pytest.approx(40, rel=0.15)


def test_a_candidate_that_does_not_load_is_a_failure(served: Served, tmp_path: Path) -> None:
    model = served.put(models.mlp(), "backend: 'onnxruntime' max_batch_size: nonsense")
    found = measure_capacity(served.server, model, bench(tmp_path), max_batch_size=8)
    assert isinstance(found, Failure)
    assert found.reason == "load_failed"


def test_a_server_killed_in_the_middle_of_a_window_has_crashed(own: Served, tmp_path: Path) -> None:
    proto = busy()
    model = own.load(proto, config(proto))
    killer = threading.Timer(1.0, os.kill, (own.server.pid, signal.SIGKILL))
    killer.start()
    found = measure_fixed(own.server, model, bench(tmp_path), ClosedLoad(concurrency=2), 10**9)
    assert isinstance(found, Failure)
    assert found.reason == "server_crashed"
    assert "last lines of server.log" in found.detail


@pytest.mark.slow
def test_a_server_that_is_slow_to_answer_all_clients_does_not_hang(
    own: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perf_analyzer, "_START_S", 0.3)
    proto = busy(60, rows=400)
    model = own.load(proto, config(proto))
    alone = measure_fixed(own.server, model, bench(tmp_path), ClosedLoad(concurrency=1), 1)
    assert isinstance(alone, Measurement), alone
    clients = math.ceil(8000 / alone.latency_ms["avg"].value)  # 8 s of work: the generator waits for 4.3
    found = measure_fixed(own.server, model, bench(tmp_path), ClosedLoad(concurrency=clients), 1)
    assert isinstance(found, Measurement), found
    assert found.requests >= 1


def test_a_server_that_stops_answering_hangs(own: Served, tmp_path: Path) -> None:
    proto = busy()
    model = own.load(proto, config(proto))
    stopper = threading.Timer(0.7, os.kill, (own.server.pid, signal.SIGSTOP))
    stopper.start()
    began = time.monotonic()
    try:
        found = measure_fixed(own.server, model, bench(tmp_path), ClosedLoad(concurrency=2), 10**9)
    finally:
        os.kill(own.server.pid, signal.SIGCONT)
    assert isinstance(found, Failure)
    assert found.reason == "server_hung"
    assert time.monotonic() - began < 30


def test_a_killed_instance_fails_its_candidate_and_not_the_server(own: Served, tmp_path: Path) -> None:
    proto = busy()
    model = own.load(proto, config(proto))

    def kill_stubs() -> None:
        for child in psutil.Process(own.server.pid).children(recursive=True):
            if "stub" in child.name():
                child.kill()

    killer = threading.Timer(0.7, kill_stubs)
    killer.start()
    found = measure_fixed(own.server, model, bench(tmp_path), ClosedLoad(concurrency=2), 10**9)
    assert isinstance(found, Failure)
    assert found.reason in ("request_errors", "server_hung", "server_crashed")
