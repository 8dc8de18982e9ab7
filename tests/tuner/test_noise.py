from __future__ import annotations

import math

import numpy as np
import pytest

from tritonc.schemas.measurement import ClosedLoad, Interval
from tritonc.tuner.engines import Statistics
from tritonc.tuner.noise import WINDOWS, NoiseFloor, noise_floor
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.statistics import VISIT, Scatter, widened
from tritonc.tuner.window import Summary, Window

RATE = 400.0
BETWEEN = 0.03


def noisy(rng: np.random.Generator, between: float = BETWEEN, clients: int = 4, rate: float = RATE) -> Window:
    """Half a second of a server whose speed varies from window to window, and a little within."""
    speed = rate * math.exp(rng.normal(0, between))
    done = np.cumsum(rng.gamma(25, 1 / 25 / speed, int(speed)))
    done = done[done < 0.5]
    sends = np.concatenate([np.zeros(clients), done])[: len(done)]
    return Window(ClosedLoad(concurrency=clients), 0.5, sends, (done - sends) * 1000)


def windows(rng: np.random.Generator, count: int, between: float = BETWEEN) -> list[Window]:
    """Of one visit."""
    rate = RATE * math.exp(rng.normal(0, between * math.sqrt(VISIT)))
    return [noisy(rng, between, rate=rate) for _ in range(count)]


def samples(rng: np.random.Generator, count: int) -> list[Sample]:
    nothing = Statistics(*[0] * 9)
    return [Sample(window.load, (window,), nothing, 1, None) for window in windows(rng, count)]


def test_the_floor_is_what_lies_between_windows() -> None:
    rng = np.random.default_rng(0)
    floor = noise_floor(windows(rng, 200))
    assert floor is not None
    assert floor.throughput.deviation == pytest.approx(BETWEEN, rel=0.2)
    assert floor.latency.deviation == pytest.approx(BETWEEN, rel=0.2)
    assert floor.throughput.freedom == 199


def test_windows_that_differ_no_more_than_within_have_no_floor() -> None:
    floor = noise_floor(windows(np.random.default_rng(0), 50, between=0.0))
    assert floor is not None
    assert floor.throughput.deviation < 0.015


def test_pairs_of_windows_add_to_what_is_known() -> None:
    rng = np.random.default_rng(0)
    floor = noise_floor(windows(rng, 8))
    for rate in rng.uniform(200, 2000, 100):
        floor = noise_floor([noisy(rng, rate=rate), noisy(rng, rate=rate)], floor)
    assert floor is not None
    assert floor.throughput.deviation == pytest.approx(BETWEEN, rel=0.3)
    assert floor.throughput.freedom == 60
    assert noise_floor(windows(rng, 1), floor) == floor


def test_too_few_windows_or_windows_without_requests_have_no_floor() -> None:
    assert noise_floor(windows(np.random.default_rng(0), 2)) is None
    nothing = np.empty(0)
    bare = Window(ClosedLoad(concurrency=1), 1.0, nothing, nothing, summary=Summary(9, 9.0, {"avg": 1.0}))
    assert noise_floor([bare] * 8) is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_with_the_floor_intervals_hold_the_truth_19_times_in_20(count: int) -> None:
    rng = np.random.default_rng(count)
    inside = {"throughput": 0, "avg": 0, "without": 0}
    latency_ms = 1000 * 4 / RATE
    for _ in range(400):
        floor = noise_floor(windows(rng, WINDOWS))
        seen = samples(rng, count)
        measured, without = pooled(seen, floor), pooled(seen)
        inside["throughput"] += holds(measured.throughput, RATE)
        inside["avg"] += holds(measured.latency_ms["avg"], latency_ms)
        inside["without"] += holds(without.throughput, RATE)
    assert 0.915 * 400 <= inside["throughput"] <= 0.985 * 400
    assert 0.915 * 400 <= inside["avg"] <= 0.985 * 400
    assert inside["without"] < 0.85 * 400


def holds(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


def test_more_windows_make_intervals_narrower() -> None:
    rng = np.random.default_rng(0)
    floor = NoiseFloor(Scatter(BETWEEN, 7), Scatter(BETWEEN, 7))
    halves = []
    for count in (1, 4, 16):
        seen = pooled(samples(rng, count), floor).throughput
        assert seen.low is not None
        assert seen.high is not None
        halves.append((seen.high - seen.low) / 2 / seen.value)
    assert halves[0] > 1.1 * halves[1] > 1.1 * halves[2]  # one visit leaves the difference between visits


def test_a_quantile_is_widened_by_the_floor_and_an_unknown_end_stays_unknown() -> None:
    wide = widened(Interval(value=10, low=9.9), Scatter(0.05, 1000), 1)
    assert wide.value == 10
    error = math.hypot(0.05 * math.sqrt(1 + VISIT), 0.01 / 1.96)
    assert wide.low == pytest.approx(10 * (1 - 1.96 * error), rel=0.001)
    assert wide.high is None
    assert widened(Interval(value=10, low=9, high=12), Scatter(0.0, 7), 1) == Interval(
        value=10, low=9, high=12
    )


def test_visits_to_a_point_make_its_intervals_narrower_than_windows_of_one() -> None:
    floor = NoiseFloor(Scatter(BETWEEN, 7), Scatter(BETWEEN, 7))
    seen = samples(np.random.default_rng(0), 4)
    one, four = pooled(seen, floor).throughput, pooled(seen, floor, visits=4).throughput
    assert one.low is not None
    assert four.low is not None
    assert one.low < four.low


def test_a_point_that_is_noisier_than_others_has_wider_intervals() -> None:
    rng = np.random.default_rng(0)
    floor = NoiseFloor(Scatter(0.01, 60), Scatter(0.01, 60))
    nothing = Statistics(*[0] * 9)

    def half(between: float) -> float:
        load = ClosedLoad(concurrency=4)
        seen = [Sample(load, (noisy(rng, between),), nothing, 1, None) for _ in range(4)]
        interval = pooled(seen, floor).throughput
        assert interval.high is not None
        return (interval.high - interval.value) / interval.value

    assert np.mean([half(0.1) for _ in range(20)]) > 3 * np.mean([half(0.0) for _ in range(20)])
