"""What several models do at the same time is worth, on made-up numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.tuner.spaces import measurement, small_space
from tritonc.schemas.measurement import Interval, Measurement
from tritonc.schemas.spec import ClosedWorkload, Slo
from tritonc.tuner.joint_worth import Member, Members
from tritonc.tuner.measuring import StandMeasuring


def member(model: str, weight: float) -> Member:
    bench: Any = SimpleNamespace(
        workload=ClosedWorkload(),
        objective="throughput",
        slo=Slo(),
        value=lambda measured, _baseline: measured.throughput.value,
    )
    stand: Any = None
    measuring = StandMeasuring(
        stand,
        bench,
        baseline=small_space().baseline,
        compared_with=lambda: None,
        on_load=lambda _candidate, _load: None,
        warn=pytest.fail,
    )
    return Member(model, weight, measuring, bench)


def seen(value: float, low: float | None, high: float | None) -> Measurement:
    return measurement(value).model_copy(update={"throughput": Interval(value=value, low=low, high=high)})


def test_members_may_all_be_off_to_the_same_side():
    both = Members([member("a", 1.0), member("b", 1.0)])
    done = both.together({"a": seen(100, 90, 120), "b": seen(400, 360, 480)}).throughput
    assert (done.value, done.low, done.high) == pytest.approx((200, 180, 240))


def test_who_weighs_more_decides_how_surely_it_is_known():
    uneven = Members([member("a", 3.0), member("b", 1.0)])
    done = uneven.together({"a": seen(100, 100, 100), "b": seen(100, 50, 200)}).throughput
    assert (done.value, done.low, done.high) == pytest.approx((100, 100 * 0.5**0.25, 100 * 2**0.25))


@pytest.mark.parametrize(("low", "high"), [(None, None), (None, 480), (360, None)])
def test_an_end_that_is_unknown_of_one_member_is_unknown_of_all(low: float | None, high: float | None):
    both = Members([member("a", 1.0), member("b", 1.0)])
    done = both.together({"a": seen(100, 90, 120), "b": seen(400, low, high)}).throughput
    assert done.value == pytest.approx(200)
    assert (done.low is None, done.high is None) == (low is None, high is None)
