"""Several workloads of one model that must all hold, without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tuner.spaces import capacity, measurement, small_space
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement, OpenLoad
from tritonc.schemas.spec import ClosedWorkload, OpenWorkload, Slo
from tritonc.tuner import objective
from tritonc.tuner.capacity import NOTHING_KNOWN, Capacity, Known
from tritonc.tuner.engines import Statistics
from tritonc.tuner.every_workload import EveryWorkload
from tritonc.tuner.further_workloads import further_in
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.statistics import Scatter
from tritonc.tuner.window import Window

CANDIDATE, *_ = small_space()
SLO = Slo(p99_latency_ms=50)
NOISE = NoiseFloor(Scatter(0.1, 1000), Scatter(0.1, 1000))
FIRST, STEADY, CROWD = ClosedLoad(concurrency=8), OpenLoad(rate=20), ClosedLoad(concurrency=64)


def bench(workload: Any) -> Any:
    return SimpleNamespace(workload=workload, slo=SLO, objective="throughput")


def window(load: Load, latency_ms: float, requests: int) -> Window:
    """Requests at regular intervals, each of which takes as long; closed loop: after one for each client."""
    first = load.concurrency if isinstance(load, ClosedLoad) else 0
    send_s = np.concatenate([np.zeros(first), np.linspace(0, 3, requests)])
    planned_s = send_s if isinstance(load, OpenLoad) else np.empty(0)
    return Window(load, 3.1, send_s, np.full(len(send_s), latency_ms), planned_s)


class Machine:
    """What `StandMeasuring` is to `EveryWorkload`: p99 by load, each in turn where there are several."""

    def __init__(
        self, p99_ms: Mapping[Load, float | list[float] | Failure], found: Capacity | Failure
    ) -> None:
        self.p99_ms = p99_ms
        self.found = found
        self.asked: list[tuple[Load, int]] = []
        self.delegated: list[tuple[Any, ...]] = []

    def capacity(self, candidate: Candidate, known: Known = NOTHING_KNOWN) -> Capacity | Failure:
        self.delegated.append(("capacity", candidate, known))
        return self.found

    def sample(self, _candidate: Candidate, load: Load, requests: int, _bench: Any = None):
        seen = self.p99_ms[load]
        if isinstance(seen, Failure):
            return seen
        before = [each for each, _ in self.asked].count(load)
        self.asked.append((load, requests))
        p99_ms = seen[min(before, len(seen) - 1)] if isinstance(seen, list) else seen
        return Sample(load, (window(load, p99_ms, requests),), Statistics(*[0] * 9), 0, None)

    def joined(self, samples: Sequence[Sample]) -> Sample:
        return Sample.joined(samples)

    def pooled(self, samples: Sequence[Sample]) -> Measurement:
        return pooled(samples, NOISE, visits=len(samples))

    def violations(self, measured: Measurement) -> Mapping[str, float]:
        return objective.violations(SLO, measured)

    def soft_violations(self, measured: Measurement) -> Mapping[str, float]:
        return objective.soft_violations(SLO, measured)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.delegated.append((name, *args)) or name


def every(
    p99_ms: Mapping[Load, Any], found: Capacity | Failure | None = None
) -> tuple[EveryWorkload, Machine]:
    machine = Machine(p99_ms, found or capacity(100.0))
    further = [bench(OpenWorkload(arrival="poisson", rate=20)), bench(ClosedWorkload(max_concurrency=64))]
    first: Any = bench(ClosedWorkload(max_concurrency=8))
    stand: Any = machine
    return EveryWorkload(stand, first, further), machine


def measured(of: EveryWorkload) -> Capacity:
    found = of.capacity(CANDIDATE)
    assert isinstance(found, Capacity)
    return found


def test_each_further_workload_is_looked_at_once_where_it_is_kept_by_far():
    of, machine = every({STEADY: 20.0, CROWD: 30.0})
    found = measured(of)
    assert found.slo_met
    assert machine.asked == [(STEADY, 60), (CROWD, 300)]  # three seconds at 20 and, as under the first, 100/s
    assert [each.load for each in found.further] == [STEADY, CROWD]
    assert max(found.violations.values()) < 0


@pytest.mark.parametrize(("second_ms", "worst_ms"), [(46.0, 48.0), (60.0, 60.0)])
def test_what_is_kept_by_little_or_missed_is_looked_at_again(second_ms: float, worst_ms: float):
    of, machine = every({STEADY: [48.0, second_ms], CROWD: 30.0})
    found = measured(of)
    assert [load for load, _ in machine.asked] == [STEADY, STEADY, CROWD]
    assert found.slo_met is (worst_ms < 50)
    assert found.violations["workload 2: p99_latency_ms"] == pytest.approx(worst_ms / 50 - 1)
    assert found.further[0].requests == 120


def test_looks_one_after_another_are_one_visit():
    of, _ = every({STEADY: [48.0, 46.0], CROWD: 30.0})
    seen = measured(of).further[0]
    sample = Sample.joined(
        [Sample(STEADY, (window(STEADY, ms, 60),), Statistics(*[0] * 9), 0, None) for ms in (48.0, 46.0)]
    )
    assert seen.latency_ms["avg"] == pooled([sample], NOISE, visits=1).latency_ms["avg"]
    assert seen.latency_ms["avg"] != pooled([sample], NOISE, visits=2).latency_ms["avg"]


def test_visits_one_after_another_are_one_under_every_workload():
    of, _ = every({FIRST: [20.0, 200.0, 20.0], STEADY: 20.0, CROWD: 20.0})
    whole, cut, again = (of.sample(CANDIDATE, FIRST, 60) for _ in range(3))
    assert [len(each.further) for each in (whole, cut, again)] == [2, 0, 2]
    joined = of.joined([whole, cut, again])
    assert len(joined.first.windows) == 3
    assert [len(each.windows) for each in joined.further] == [2, 2]
    assert of.joined([cut]).further == ()


@pytest.mark.parametrize(
    "found", [capacity(100.0, violation=0.2), Failure(reason="load_failed", detail="no")]
)
def test_nothing_further_is_looked_at_where_the_first_decides(found: Capacity | Failure):
    of, machine = every({}, found)
    assert of.capacity(CANDIDATE) is found
    assert machine.asked == []


def test_a_failure_is_said_to_be_under_its_workload():
    crashed = Failure(reason="server_crashed", detail="it ended with -9")
    of, _ = every({FIRST: 20.0, STEADY: 20.0, CROWD: crashed})
    under = Failure(reason="server_crashed", detail="under workload 3: it ended with -9")
    assert of.capacity(CANDIDATE) == under
    assert of.sample(CANDIDATE, FIRST, 100) == under


def test_a_round_is_under_all_workloads_and_under_the_first_alone_where_that_misses_by_far():
    of, machine = every({FIRST: [40.0, 90.0], STEADY: 70.0, CROWD: 30.0})
    whole, missed = of.sample(CANDIDATE, FIRST, 100), of.sample(CANDIDATE, FIRST, 100)
    assert not isinstance(whole, Failure)
    assert not isinstance(missed, Failure)
    assert machine.asked == [(load, 100) for load in (FIRST, STEADY, CROWD, FIRST)]
    pooled = of.pooled([whole, missed])
    assert [each.load for each in further_in(pooled)] == [STEADY, CROWD]
    assert of.violations(pooled) == pytest.approx(
        {
            "p99_latency_ms": 0.8,
            "workload 2: p99_latency_ms": 0.4,
            "workload 3: p99_latency_ms": -0.4,
        }
    )
    assert further_in(of.pooled([missed])) == ()


def test_the_rest_is_as_under_the_first_workload():
    of, machine = every({})
    seen = measurement(100.0)
    assert of.look(CANDIDATE, FIRST, 100) == "look"
    assert of.lower(FIRST, 0.2) == "lower"
    assert (of.objective(seen), of.score(1.0)) == ("objective", "score")
    of.gather({CANDIDATE: None})
    of.start_over()
    assert machine.delegated == [
        ("look", CANDIDATE, FIRST, 100),
        ("lower", FIRST, 0.2),
        ("objective", seen),
        ("score", 1.0),
        ("gather", {CANDIDATE: None}),
        ("start_over",),
    ]
