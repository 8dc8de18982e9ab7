from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from tritonc.schemas.measurement import Interval
from tritonc.tuner.statistics import (
    grows,
    half_width,
    mean_interval,
    quantile_interval,
    rate_interval,
    settled,
    standard_error,
)


@pytest.mark.parametrize(("count", "known"), [(1, False), (367, False), (368, True), (5000, True)])
def test_a_p99_has_an_upper_end_from_368_requests_on(count: int, known: bool) -> None:
    spread = (np.arange(count) * 233 % count).astype(float)
    assert (quantile_interval([spread], 0.99).high is not None) == known


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
def test_quantile_intervals_hold_the_truth_19_times_in_20(quantile: float) -> None:
    rng = np.random.default_rng(1)
    truth = np.exp(ndtri(quantile))
    found = [quantile_interval([np.exp(rng.standard_normal(600))], quantile) for _ in range(400)]
    known = [(i.low, i.high) for i in found if i.low is not None and i.high is not None]
    assert len(known) >= 0.95 * len(found)
    assert sum(low <= truth <= high for low, high in known) >= 0.93 * len(known)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=500), st.floats(0.01, 0.999))
@settings(max_examples=100, deadline=None)
def test_a_quantile_is_one_of_the_values(values: list[float], quantile: float) -> None:
    interval = quantile_interval([np.array(values)], quantile)
    assert interval.value in values


def test_requests_of_one_batch_count_as_fewer() -> None:
    rng = np.random.default_rng(1)
    truth = np.exp(ndtri(0.9))
    found = [quantile_interval([np.repeat(np.exp(rng.standard_normal(100)), 8)], 0.9) for _ in range(400)]
    inside = sum(i.low is not None and i.high is not None and i.low <= truth <= i.high for i in found)
    assert 0.93 * len(found) <= inside <= 0.99 * len(found)


def test_values_that_are_all_alike_have_a_quantile() -> None:
    interval = quantile_interval([np.full(400, 5.0)], 0.99)
    assert (interval.low, interval.value, interval.high) == (5, 5, 5)


def test_averages_of_correlated_latencies_have_intervals_wide_enough() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        noise = rng.standard_normal(600)
        latency = np.empty(600)
        latency[0] = noise[0] / np.sqrt(1 - 0.8**2)
        for i in range(1, 600):
            latency[i] = 0.8 * latency[i - 1] + noise[i]
        interval = mean_interval([latency + 50])
        assert interval.low is not None
        assert interval.high is not None
        inside += interval.low <= 50 <= interval.high
    assert inside >= 0.85 * 200


def test_rates_of_poisson_completions_have_honest_intervals() -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(300):
        times = np.cumsum(rng.exponential(1 / 90, 400))
        found.append(rate_interval([(times[times < 2], 0.0, 2.0)]))
    inside = sum(i.low is not None and i.high is not None and i.low <= 90 <= i.high for i in found)
    assert inside >= 0.9 * len(found)
    assert np.mean([i.value for i in found]) == pytest.approx(90, rel=0.02)


def test_a_steady_rate_is_exact_whatever_the_edges() -> None:
    times = np.arange(1, 200) * 0.011
    interval = rate_interval([(times, 0.1234, 1.0)])
    assert interval.value == pytest.approx(1 / 0.011, rel=1e-6)


def test_a_few_events_have_a_rate_but_no_interval() -> None:
    interval = rate_interval([(np.array([0.5, 1.0]), 0.0, 1.0)])
    assert interval.low is None
    assert rate_interval([(np.array([]), 0.0, 1.0)]).value == 0


def test_windows_are_pooled_by_their_length() -> None:
    one, two = np.arange(1, 101) / 100, np.arange(1, 101) / 50
    assert rate_interval([(one, 0.0, 1.0), (two, 0.0, 2.0)]).value == pytest.approx(200 / 3, rel=0.02)


def queue(
    load: float, window_s: float, rng: np.random.Generator, service_ms: float = 11
) -> tuple[np.ndarray, np.ndarray]:
    """Send times and latencies of a single server with Poisson arrivals, completed within the window."""
    service_ms = 11
    rate = load * 1000 / service_ms
    sends = np.sort(rng.uniform(0, window_s, int(rate * window_s)))
    free, done = 0.0, []
    for sent in sends:
        free = max(free, sent) + service_ms / 1000
        done.append(free)
    ends = np.array(done)
    inside = ends <= window_s
    return sends[inside], (ends - sends)[inside] * 1000


@pytest.mark.parametrize("window_s", [1.0, 3.0])
def test_a_queue_that_keeps_up_seldom_looks_growing(window_s: float) -> None:
    rng = np.random.default_rng(4)
    wrong = sum(grows(*queue(load, window_s, rng)) for load in (0.3, 0.5, 0.7) for _ in range(100))
    assert wrong <= 15


@pytest.mark.parametrize("load", [1.5, 2.0, 5.0])
def test_an_overloaded_queue_grows(load: float) -> None:
    rng = np.random.default_rng(5)
    assert all(grows(*queue(load, 1.0, rng)) for _ in range(50))


def test_a_handful_of_requests_shows_no_growth() -> None:
    assert not grows(np.arange(5.0), np.arange(5.0) * 1000)


def test_a_throughput_is_settled_once_it_rises_no_more() -> None:
    assert settled(100, 109, 0.1)
    assert settled(100, 50, 0.1)
    assert not settled(0, 1, 0.1)


def test_the_width_and_the_error_of_an_interval_and_of_one_that_is_open_or_ends_at_nothing() -> None:
    known, ends_at_nothing = Interval(value=100, low=90, high=120), Interval(value=100, low=0, high=200)
    is_open, bare = Interval(value=100, low=90), Interval(value=100)
    widths = [half_width(each) for each in (known, is_open, ends_at_nothing, bare, Interval(value=0, low=0))]
    assert widths == pytest.approx([0.15, 0.15, 1.0, 0.0, 0.0])
    assert standard_error(known) == pytest.approx(math.log(120 / 90) / 2 / 1.96, rel=1e-3)
    assert standard_error(is_open) == pytest.approx(1.5 * math.log(100 / 90) / 1.96, rel=1e-3)
    assert standard_error(ends_at_nothing) == pytest.approx((2 + math.log(2)) / 2 / 1.96, rel=1e-3)
    assert standard_error(bare) == 0.0
