from __future__ import annotations

import numpy as np
import pytest

from tritonc.schemas.measurement import ClosedLoad, Load, OpenLoad
from tritonc.tuner.perf_analyzer import plan
from tritonc.tuner.window import Window


def served(load: OpenLoad, service_ms: float, window_s: float, seed: int = 0) -> Window:
    """What a single server that takes `service_ms` a request shows under an open load."""
    planned = plan(load, window_s, np.random.default_rng(seed))
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


@pytest.mark.parametrize("load", [ClosedLoad(concurrency=90), OpenLoad(rate=10)])
def test_where_too_few_would_be_left_nothing_is_left_out(load: Load) -> None:
    window = Window(load, 1.0, np.linspace(0, 1, 92), np.full(92, 5.0), planned_s=np.linspace(0, 2, 184))
    assert window.ramp == 0
    assert len(window.steady_latency_ms) == 92


@pytest.mark.parametrize("distribution", ["poisson", "constant"])
def test_a_plan_has_the_rate_that_was_asked_for(distribution: str) -> None:
    load = OpenLoad.model_validate({"rate": 45, "distribution": distribution})
    planned = plan(load, 1.0, np.random.default_rng(0))
    assert np.count_nonzero(planned <= 1.0) == 45
    assert (np.diff(planned) >= 0).all()
    assert planned[-1] >= 1.9
