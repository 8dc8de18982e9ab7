from __future__ import annotations

import pytest

from tritonc.schemas.measurement import ClosedLoad, Interval, Load, Measurement, OpenLoad
from tritonc.tuner.reference import REQUESTS, SHARE, ReferenceWatch, requests_of_look


def measured(value: float, half: float = 0.03, load: Load | None = None) -> Measurement:
    """Throughput, or under an open load the inverse of the latency, with a relative interval."""
    interval = Interval(value=value, low=value * (1 - half), high=value * (1 + half))
    latency = Interval(value=1 / value, low=(1 - half) / value, high=(1 + half) / value)
    is_open = isinstance(load, OpenLoad)
    return Measurement(
        load=load or ClosedLoad(concurrency=4),
        requests=200,
        duration_s=1,
        throughput=Interval(value=20) if is_open else interval,
        latency_ms={"avg": latency},
    )


def test_a_look_is_due_when_it_costs_a_small_share_of_the_search() -> None:
    watch = ReferenceWatch(measured(100), cost_s=2)
    assert not watch.is_due
    watch.searched(2 / SHARE - 1)
    assert not watch.is_due
    watch.searched(1)
    assert watch.is_due
    watch.looked(4)
    watch.searched(2 / SHARE)
    assert not watch.is_due
    watch.searched(2 / SHARE)
    assert watch.is_due


@pytest.mark.parametrize("load", [ClosedLoad(concurrency=4), OpenLoad(rate=20)])
@pytest.mark.parametrize(("now", "change"), [(100, None), (104, None), (112, 1.12), (80, 0.8)])
def test_a_change_is_what_is_clear_and_large(load: Load, now: float, change: float | None) -> None:
    found = ReferenceWatch(measured(100, load=load), 2).change(measured(now, load=load))
    assert found == (None if change is None else pytest.approx(change))


def test_a_change_within_the_noise_is_none() -> None:
    assert ReferenceWatch(measured(100, 0.1), 2).change(measured(112, 0.1)) is None


@pytest.mark.parametrize("load", [ClosedLoad(concurrency=4), OpenLoad(rate=20)])
def test_an_interval_down_to_nothing_is_a_wide_one(load: Load) -> None:
    watch = ReferenceWatch(measured(100, 0.999, load), 2)
    assert watch.change(measured(200, 0.999, load)) is None
    assert watch.change(measured(900, 0.999, load)) == pytest.approx(9)


def test_intervals_that_are_unknown_leave_the_least_change() -> None:
    bare = measured(100).model_copy(update={"throughput": Interval(value=100)})
    slow = measured(100).model_copy(update={"throughput": Interval(value=90)})
    nothing = measured(100).model_copy(update={"throughput": Interval(value=0)})
    assert ReferenceWatch(bare, 2).change(slow) == pytest.approx(0.9)
    assert ReferenceWatch(bare, 2).change(nothing) is None


@pytest.mark.parametrize(
    ("per_s", "request_batch", "requests"), [(500, 1, REQUESTS), (1, 1, 6), (12, 4, 26), (0.01, 1, 1)]
)
def test_a_look_at_a_slow_model_takes_fewer_requests(per_s: float, request_batch: int, requests: int) -> None:
    load = ClosedLoad(concurrency=4, request_batch=request_batch)
    assert requests_of_look(measured(per_s, load=load)) == requests
