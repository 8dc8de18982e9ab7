from __future__ import annotations

import numpy as np
import pytest

from tritonc.schemas.measurement import OpenLoad, Trace
from tritonc.tuner.arrival_trace import ArrivalTrace
from tritonc.tuner.arrivals import WHOLE_S, Arrivals, Schedule, order_of


def trace_of(*times: float) -> ArrivalTrace:
    return ArrivalTrace(np.array(times) - times[0], "c" * 64)


def schedules(trace: ArrivalTrace, rate: float, window_s: float, count: int, seed: int = 0) -> list[Schedule]:
    arrivals = Arrivals(seed, traces={trace.sha256: trace})
    load = OpenLoad(rate=rate, distribution=Trace(trace=trace.sha256))
    return [arrivals.schedule(load, window_s) for _ in range(count)]


def test_a_short_trace_is_replayed_whole_times_at_the_rate_of_the_load() -> None:
    trace = trace_of(*np.arange(10))
    [schedule] = schedules(trace, 10, 1.5, 1)
    assert schedule.window_s == pytest.approx(2)
    assert np.count_nonzero(schedule.times_s < 2 - 1e-9) == 20
    assert len(schedule.times_s) == 40


def test_a_burst_is_in_every_window_and_silence_fills_no_part_of_one() -> None:
    trace = trace_of(*[0.0] * 20, 4.0)
    for schedule in schedules(trace, trace.rate, 1.5, 3):
        assert schedule.window_s == pytest.approx(3 * trace.length_s)
        for part in range(3):
            begin = part * schedule.window_s / 3
            assert np.count_nonzero(np.abs(schedule.times_s - begin) < 1e-9) == 20


def test_a_long_trace_is_replayed_in_stretches_each_once_in_the_same_order() -> None:
    rng = np.random.default_rng(0)
    trace = trace_of(0.0, *np.cumsum(rng.exponential(0.05, 2000)))
    parts = len(trace.stretches(WHOLE_S))
    assert parts > 5
    seen = schedules(trace, trace.rate, 1.5, parts)
    assert sum(len(each.times_s) // 2 for each in seen) == len(trace.times_s)
    assert all(each.window_s <= 1.5 * WHOLE_S for each in seen)
    lengths = [each.window_s for each in seen]
    assert lengths == [each.window_s for each in schedules(trace, trace.rate, 3.0, parts, seed=5)]


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 12, 100, 3600])
def test_an_order_has_every_part_once_and_begins_far_apart(parts: int) -> None:
    order = order_of(parts)
    assert sorted(order) == list(range(parts))
    if parts > 6:
        assert min(abs(one - other) for one in order[:3] for other in order[:3] if one != other) >= parts // 6
        assert abs(order[0] / parts - order_of(2 * parts)[0] / (2 * parts)) <= 1 / parts


def test_each_load_begins_with_the_same_stretch() -> None:
    trace = trace_of(*np.cumsum(np.random.default_rng(0).exponential(0.05, 2000)))
    arrivals = Arrivals(0, traces={trace.sha256: trace})
    loads = [OpenLoad(rate=rate, distribution=Trace(trace=trace.sha256)) for rate in (20.0, 20.001)]
    first, _, second = [arrivals.schedule(load, 1.5) for load in (loads[0], loads[0], loads[1])]
    assert len(first.times_s) == len(second.times_s)


def test_one_candidate_goes_on_where_it_was() -> None:
    trace = trace_of(*np.cumsum(np.random.default_rng(0).exponential(0.05, 2000)))
    load = OpenLoad(rate=trace.rate, distribution=Trace(trace=trace.sha256))
    first = schedules(trace, trace.rate, 1.5, 3)
    later = Arrivals(0, traces={trace.sha256: trace}, windows=2).schedule(load, 1.5)
    assert later.times_s == pytest.approx(first[2].times_s)
