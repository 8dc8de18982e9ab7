"""What a sample says of its own error, without a server."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tuner.spaces import small_space
from tests.tuner.test_sample import sample
from tests.tuner.test_window import clients
from tritonc.schemas.spec import ClosedWorkload, Slo, SoftLimit
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.objective import Objective
from tritonc.tuner.statistics import Scatter

FLOOR = NoiseFloor(Scatter(0.1, 1000), Scatter(0.1, 1000))
STEADY = sample(clients(4, 2))


def error(
    noise: NoiseFloor | None, objective: Objective = "throughput", slo: Slo | None = None
) -> float | None:
    stand: Any = None
    what: Any = SimpleNamespace(workload=ClosedWorkload(), objective=objective, slo=slo or Slo())
    measuring = StandMeasuring(
        stand,
        what,
        baseline=small_space().baseline,
        compared_with=lambda: None,
        on_load=lambda _candidate, _load: None,
        warn=pytest.fail,
        noise=noise,
    )
    return measuring.error(STEADY)


def test_a_sample_is_as_wrong_as_its_windows_are_apart():
    """Its requests are regular, and the noise floor says 10%; how surely it says so adds nothing."""
    assert error(FLOOR) == pytest.approx(0.1, rel=0.02)
    assert error(FLOOR, {"throughput": 1.0, "cost": 1.0}) == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("objective", ["latency", "memory", {"throughput": 0.5, "latency": 0.5}])
def test_it_is_not_known_of_what_is_not_throughput(objective: Objective):
    assert error(FLOOR, objective) is None


def test_it_is_not_known_before_the_noise_floor_is_nor_where_soft_limits_count():
    assert error(None) is None
    assert error(FLOOR, slo=Slo(p99_latency_ms=SoftLimit(limit=20, soft=True))) is None


def test_what_lies_between_visits_widens_an_interval_and_is_common_to_a_round():
    one_visit, many = (STEADY.throughput(FLOOR, visits) for visits in (1, math.inf))
    assert one_visit.high - one_visit.value > 1.3 * (many.high - many.value)
