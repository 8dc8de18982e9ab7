from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tritonc.schemas.measurement import ClosedLoad, Load, OpenLoad, Trace
from tritonc.tuner.arrival_trace import ArrivalTrace
from tritonc.tuner.arrivals import Arrivals
from tritonc.tuner.statistics import rate_interval
from tritonc.tuner.steadiness import unsteadiness
from tritonc.tuner.window import Window


def served(
    load: OpenLoad, service_ms: float, window_s: float, seed: int = 0, trace: ArrivalTrace | None = None
) -> Window:
    """What a single server that takes `service_ms` a request shows under an open load."""
    schedule = Arrivals(seed, traces={trace.sha256: trace} if trace else {}).schedule(load, window_s)
    planned, window_s = schedule.times_s, schedule.window_s
    sends = planned + 0.002
    free, done = 0.0, []
    for sent in sends:
        free = max(free, sent) + service_ms / 1000
        done.append(free)
    ends = np.array(done)
    inside = (ends <= window_s) & (sends <= window_s)
    return Window(load, window_s, sends[inside], (ends - sends)[inside] * 1000, planned_s=planned)


def clients(concurrency: int, service_ms: float, window_s: float = 1.0) -> Window:
    """What a single server shows to clients that all begin at once."""
    done = np.arange(1, int(window_s * 1000 / service_ms) + 1) * service_ms / 1000
    sends = np.concatenate([np.zeros(concurrency), done])[: len(done)]
    return Window(ClosedLoad(concurrency=concurrency), window_s, sends, (done - sends) * 1000)


@pytest.mark.parametrize("share", [1.2, 1.5, 2.0, 4.0])
def test_more_than_the_server_can_do_is_not_sustained(share: float) -> None:
    for seed in range(30):
        window = served(OpenLoad(rate=share * 90), 1000 / 90, 1.1, seed)
        assert not window.sustained


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("distribution", ["poisson", "constant"])
def test_less_than_the_server_can_do_is_sustained(share: float, distribution: str) -> None:
    load = OpenLoad.model_validate({"rate": share * 90, "distribution": distribution})
    sustained = sum(served(load, 1000 / 90, 1.1, seed).sustained for seed in range(50))
    assert sustained >= 45


def test_a_rate_that_the_load_generator_could_not_send_is_not_sustained() -> None:
    planned = np.arange(1, 11) / 10
    late = Window(OpenLoad(rate=10), 1.0, planned[:9], np.full(9, 5.0), planned_s=planned, delayed=True)
    assert not late.sustained


def test_the_offered_rate_comes_from_the_send_times() -> None:
    assert served(OpenLoad(rate=50, distribution="constant"), 1, 1.0).offered_rate == pytest.approx(50)
    assert clients(2, 10).offered_rate is None


def test_the_first_request_of_each_client_is_left_out() -> None:
    window = clients(32, 11)
    assert window.ramp == 32
    assert window.steady_latency_ms == pytest.approx(np.full(len(window.send_s) - 32, 32 * 11.0))
    assert window.steady_from_s == pytest.approx(32 * 0.011)


@pytest.mark.parametrize("slow_s", [0.5, 0.98, 0.9999])
def test_a_straggler_among_the_first_requests_does_not_throw_the_others_away(slow_s: float) -> None:
    window = clients(8, 2)
    latency_ms = window.latency_ms.copy()
    latency_ms[0] = 1000 * slow_s
    straggling = replace(window, latency_ms=latency_ms)
    assert straggling.steady_from_s < 0.05
    assert rate_interval([straggling.events]).value == pytest.approx(500, rel=0.02)


@pytest.mark.parametrize("load", [ClosedLoad(concurrency=90), OpenLoad(rate=10)])
def test_where_too_few_would_be_left_nothing_is_left_out(load: Load) -> None:
    window = Window(load, 1.0, np.linspace(0, 1, 92), np.full(92, 5.0), planned_s=np.linspace(0, 2, 184))
    assert window.ramp == 0
    assert len(window.steady_latency_ms) == 92


@pytest.mark.parametrize("distribution", ["poisson", "constant"])
def test_a_plan_has_the_rate_that_was_asked_for(distribution: str) -> None:
    load = OpenLoad.model_validate({"rate": 45, "distribution": distribution})
    planned = Arrivals(0).schedule(load, 1.0).times_s
    assert np.count_nonzero(planned <= 1.0) == 45
    assert (np.diff(planned) >= 0).all()
    assert planned[-1] >= 1.9


def bursts(requests: int, of: int, rest: int) -> ArrivalTrace:
    """Bursts of so many requests at once, each followed by a silence as long as `rest` of them take."""
    gaps = np.where(np.arange(requests) % of == of - 1, float(rest), 0.0)
    return ArrivalTrace(np.concatenate([[0.0], np.cumsum(gaps)])[:requests], "b" * 64)


def replayed(trace: ArrivalTrace, rate: float, share: float, window_s: float = 4.0) -> Window:
    """What a server that does `share` of the mean rate shows under a trace."""
    load = OpenLoad(rate=rate, distribution=Trace(trace=trace.sha256))
    return served(load, 1000 / (share * rate), window_s, trace=trace)


@pytest.mark.parametrize("of", [2, 10, 40])
@pytest.mark.parametrize("share", [1.05, 1.3, 3.0])
def test_a_server_that_carries_the_mean_rate_of_a_trace_sustains_its_bursts(of: int, share: float) -> None:
    window = replayed(bursts(400, of, of), 100, share)
    assert window.sustained
    assert unsteadiness([window]) == ()


@pytest.mark.parametrize("of", [2, 10, 40])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_one_that_does_not_is_found_at_the_end_of_the_replay(of: int, share: float) -> None:
    assert not replayed(bursts(400, of, of), 100, share).sustained


def test_bursts_are_no_differences_of_throughput() -> None:
    window = replayed(bursts(400, 40, 40), 100, 1.3)
    rate = rate_interval([window.events])
    assert rate.value == pytest.approx(100, rel=0.01)
    assert rate.low is not None
    assert rate.low > 95
    assert window.offered_rate == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("rounded_s", [-3e-7, 0.0, 3e-7])
def test_the_burst_that_the_next_replay_begins_with_is_not_of_this_one(rounded_s: float) -> None:
    trace = ArrivalTrace(np.array([0.0] * 20 + [1.5]), "d" * 64)
    window = replayed(trace, trace.rate, 20.0, 1.0)
    assert len(window.send_s) == 3 * 21
    end_s = float(window.send_s[0]) + 3 * trace.length_s + rounded_s
    times, begin_s, end_s = replace(window, duration_s=end_s).events
    assert len(times) / (end_s - begin_s) == pytest.approx(trace.rate, rel=1e-5)


def test_a_request_of_a_trace_that_is_sent_late_is_told_from_one_that_the_generator_calls_late() -> None:
    window = replayed(bursts(400, 40, 40), 100, 1.3)
    assert not window.is_late
    order = np.arange(len(window.send_s))
    assert replace(window, send_s=window.send_s + np.where(order % 10 == 9, 0.2, 0.0)).is_late
