from __future__ import annotations

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonc.schemas.measurement import Interval
from tritonc.tuner.boundary import Curve, Point


def point(
    level: float,
    excess: float,
    throughput: float = 100.0,
    error: float = 0.0,
    times: int = 1,
    width: float = 0.02,
) -> Point:
    wide = Interval(value=throughput, low=(1 - width) * throughput, high=(1 + width) * throughput)
    return Point(level, times, wide, excess, error=error)


def test_the_boundary_lies_where_latency_meets_its_limit_on_logarithmic_scales() -> None:
    curve = Curve([point(4, -0.5), point(16, 1.0)])
    assert curve.boundary() == pytest.approx(8)


def test_beyond_the_points_latency_is_proportional_to_load() -> None:
    assert Curve([point(4, -0.5)]).boundary() == pytest.approx(8)
    assert Curve([point(8, 1.0)]).boundary() == pytest.approx(4)


def test_an_inverted_pair_of_neighbours_does_not_end_the_bracket() -> None:
    points = [point(4, -0.5), point(5, 0.05), point(6, -0.2), point(12, 0.5)]
    curve = Curve(points)
    assert curve.bracket == (2, 3)
    assert 6 < curve.boundary() < 12


@given(st.lists(st.tuples(st.floats(-0.9, 5), st.integers(0, 3)), min_size=1, max_size=8))
def test_the_fit_rises_and_the_bracket_is_next_to_the_boundary(seen: list[tuple[float, int]]) -> None:
    points = [point(2.0**i, excess, times=times) for i, (excess, times) in enumerate(seen)]
    curve = Curve(points)
    assert all(a <= b + 1e-12 for a, b in zip(curve.ratios, curve.ratios[1:], strict=False))
    low, high = curve.bracket
    boundary = curve.boundary()
    assert low is None or points[low].level <= boundary * (1 + 1e-9)
    assert high is None or points[high].level >= boundary * (1 - 1e-9)


def test_throughput_between_loads_is_interpolated_and_goes_on_as_far_as_it_rose() -> None:
    curve = Curve([point(2, -0.5, 100), point(8, -0.2, 200)])
    assert curve.throughput(4) == pytest.approx(150)
    assert curve.throughput(1) == pytest.approx(50)
    assert curve.throughput(32) == pytest.approx(400)
    assert Curve([point(2, -0.5, 200), point(8, -0.2, 200)]).throughput(32) == pytest.approx(200)


def test_throughput_gets_no_farther_than_its_last_rise_and_the_limit_allow() -> None:
    def most(*points: Point, ceiling: float = 1000) -> float:
        return Curve(points).most(ceiling)

    exactly = partial(point, width=0)
    # Throughput grows with the root of load, and so does latency: half of its limit allows twice the clients.
    root = exactly(2, -0.6, 100), exactly(8, -0.5, 200)
    assert most(*root) == pytest.approx(400)
    assert most(*root, ceiling=18) == pytest.approx(300)
    assert most(exactly(2, -0.6, 200), exactly(8, -0.1, 200)) == pytest.approx(200)
    assert most(exactly(2, -0.6, 200), exactly(8, 0.1, 200)) == math.inf  # one window beyond is not believed
    assert most(exactly(1, -0.6, 100), exactly(2, -0.5, 100)) == math.inf  # the second may wait for the first
    assert most(exactly(7, -0.6, 100), exactly(8, -0.5, 100)) == math.inf
    assert most(exactly(2, -0.6, 200), exactly(7, -0.2, 200), exactly(8, -0.1, 200)) == pytest.approx(200)
    assert most(exactly(2, -0.6, 100), exactly(8, -0.5, 400)) == math.inf
    assert most(exactly(8, -0.5, 400)) == math.inf
    assert most(point(2, -0.6, 100), point(8, -0.5, 200)) > 400  # one standard error well


def test_where_nothing_was_completed_the_boundary_is_below() -> None:
    nothing = Point(8, 1, Interval(value=0), math.inf)
    curve = Curve([point(2, -0.5), nothing])
    assert 2 <= curve.boundary() < 8


def test_a_capacity_is_as_uncertain_as_its_throughput_and_the_boundary() -> None:
    sure, unsure = point(4, -0.5, 100), point(4, -0.02, 100, error=0.2)
    beyond = point(8, 1.0, 200)
    assert Curve([sure, beyond]).capacity(sure, 64).low == pytest.approx(98)
    capacity = Curve([unsure, beyond]).capacity(unsure, 64)
    assert capacity.low is not None
    assert capacity.high is not None
    assert capacity.low < 95
    assert capacity.high > 105
    assert Curve([unsure]).capacity(unsure, 4).high == pytest.approx(102)
