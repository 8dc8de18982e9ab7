from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tritonc.schemas.measurement import ClosedLoad, Interval, Load, Measurement, OpenLoad
from tritonc.schemas.spec import ClosedWorkload, Objective, OpenWorkload, Slo, Workload
from tritonc.tuner.load_search import MAX_ASKS, LoadSearch

Curve = Callable[[Load], tuple[float, float]]
"""Throughput in requests a second and p99 in milliseconds under a load; throughput 0: nothing completed."""


def measured(load: Load, throughput: float, p99_ms: float) -> Measurement:
    latency = {"avg": Interval(value=p99_ms / 1.25), "p99": Interval(value=p99_ms)}
    sustained = not isinstance(load, OpenLoad) or throughput >= 0.98 * load.rate
    return Measurement(
        load=load,
        requests=100,
        duration_s=1,
        throughput=Interval(value=throughput * load.request_batch),
        latency_ms=latency,
        sustained=sustained,
    )


def station(servers: float, service_ms: float, noise: float = 0.0, seed: int = 0) -> Curve:
    """A server that works on `servers` requests at once."""
    rng = random.Random(seed)

    def curve(load: Load) -> tuple[float, float]:
        top = servers * 1000 / service_ms
        wobble = math.exp(rng.gauss(0, noise)), math.exp(rng.gauss(0, 2 * noise))
        if isinstance(load, ClosedLoad):
            throughput = top * min(1.0, load.concurrency / servers)
            latency_ms = 1000 * load.concurrency / throughput
        else:
            throughput = min(top, load.rate)
            busy = min(0.999, load.rate / top)
            latency_ms = (
                service_ms * (1 + busy**2 / (1 - busy)) if load.rate < top else 1000.0 * load.rate / top
            )
        return throughput * wobble[0], 1.25 * latency_ms * wobble[1]

    return curve


def run(search: LoadSearch, curve: Curve) -> list[Load]:
    asked: list[Load] = []
    while (load := search.ask()) is not None:
        asked.append(load)
        throughput, p99_ms = curve(load)
        search.tell(load, measured(load, throughput, p99_ms) if throughput else None)
        assert len(asked) <= MAX_ASKS
    return asked


def saturated(curve: Curve, clients: int = 8) -> Measurement:
    load = ClosedLoad(concurrency=clients)
    return measured(load, *curve(load))


@given(
    servers=st.floats(1, 16),
    service_ms=st.floats(0.5, 200),
    limit_ms=st.floats(1, 500),
    ceiling=st.integers(1, 256),
)
@settings(max_examples=300, deadline=None)
def test_closed_capacity_is_within_one_step_of_the_truth(
    servers: float, service_ms: float, limit_ms: float, ceiling: int
) -> None:
    assume(abs(1.25 * service_ms / limit_ms - 1) > 1e-6)  # on the limit to a rounding error
    curve = station(servers, service_ms)
    workload, slo = ClosedWorkload(max_concurrency=ceiling), Slo(p99_latency_ms=limit_ms)
    search = LoadSearch(workload, slo, "throughput", saturated=saturated(curve))
    asked = run(search, curve)
    best = search.best()
    assert isinstance(best, ClosedLoad)
    within = [n for n in range(1, ceiling + 1) if curve(ClosedLoad(concurrency=n))[1] <= limit_ms]
    if not within:
        assert curve(best)[1] <= 1.001 * curve(ClosedLoad(concurrency=1))[1] or len(asked) == MAX_ASKS
        return
    assert curve(best)[1] <= limit_ms
    top = max(curve(ClosedLoad(concurrency=n))[0] for n in within)
    assert curve(best)[0] >= 0.93 * top or best.concurrency >= max(within) - 1
    assert max(Counter(asked).values()) <= 2


@given(
    top=st.floats(20, 2000),
    service_ms=st.floats(0.5, 20),
    limit_ms=st.floats(2, 200),
    share=st.floats(0.05, 1.5),
)
@settings(max_examples=300, deadline=None)
def test_open_capacity_is_within_a_step_of_the_truth(
    top: float, service_ms: float, limit_ms: float, share: float
) -> None:
    curve = station(top * service_ms / 1000, service_ms)
    rate = top * share
    search = LoadSearch(
        OpenWorkload(arrival="poisson", rate=rate),
        Slo(p99_latency_ms=limit_ms),
        "throughput",
        saturated=saturated(curve, 64),
    )
    asked = run(search, curve)
    best = search.best()
    assert isinstance(best, OpenLoad)

    def kept(at: float) -> bool:
        return (
            measured(OpenLoad(rate=at), *curve(OpenLoad(rate=at))).sustained
            and curve(OpenLoad(rate=at))[1] <= limit_ms
        )

    if not kept(rate):
        assert best.rate == rate
        assert len(asked) <= 2
    else:
        assert kept(best.rate)
        assert best.rate >= 16 * rate * 0.999 or not kept(best.rate * 1.12) or len(asked) == MAX_ASKS


@given(
    servers=st.floats(1, 16),
    service_ms=st.floats(0.5, 200),
    limit_ms=st.one_of(st.none(), st.floats(1, 500)),
    noise=st.floats(0, 0.3),
    seed=st.integers(0, 1000),
    arrival=st.sampled_from(["closed", "poisson"]),
    objective=st.sampled_from(["throughput", "latency", "memory"]),
)
@settings(max_examples=300, deadline=None)
def test_under_any_noise_it_ends_and_repeats_no_load_more_than_twice(
    servers: float,
    service_ms: float,
    limit_ms: float | None,
    noise: float,
    seed: int,
    arrival: str,
    objective: str,
) -> None:
    curve = station(servers, service_ms, noise, seed)
    workload: Workload = ClosedWorkload() if arrival == "closed" else OpenWorkload(arrival="poisson", rate=20)
    slo = Slo(p99_latency_ms=limit_ms, min_throughput=30)
    search = LoadSearch(workload, slo, objective, saturated=saturated(curve))
    asked = run(search, curve)
    assert max(Counter(asked).values()) <= 2
    assert search.best() in asked


def test_a_typical_candidate_needs_at_most_six_windows() -> None:
    counts = []
    for seed in range(200):
        rng = random.Random(seed)
        curve = station(rng.choice([1, 2, 4, 8]), rng.uniform(2, 40), 0.03, seed)
        search = LoadSearch(
            ClosedWorkload(max_concurrency=64),
            Slo(p99_latency_ms=80),
            "throughput",
            saturated=saturated(curve),
        )
        counts.append(len(run(search, curve)))
    assert sorted(counts)[int(0.9 * len(counts))] <= 6
    assert sum(counts) / len(counts) <= 4.5


def test_without_a_latency_limit_more_clients_end_where_they_gain_nothing() -> None:
    search = LoadSearch(
        ClosedWorkload(max_concurrency=64), Slo(), "throughput", saturated=saturated(station(4, 10))
    )
    run(search, station(4, 10))
    assert search.best() == ClosedLoad(concurrency=4)


def test_nothing_within_the_limit_gives_the_least_violating_load() -> None:
    curve = station(2, 100)
    search = LoadSearch(ClosedWorkload(), Slo(p99_latency_ms=10), "throughput", saturated=saturated(curve))
    asked = run(search, curve)
    assert search.best() == ClosedLoad(concurrency=1)
    assert len(asked) <= 2


def test_a_rate_that_is_not_carried_ends_the_search_at_once() -> None:
    curve = station(1, 10)
    search = LoadSearch(OpenWorkload(arrival="poisson", rate=200), Slo(p99_latency_ms=80), "throughput")
    assert run(search, curve) == [OpenLoad(rate=200)]
    assert search.best() == OpenLoad(rate=200)


@pytest.mark.parametrize("objective", ["latency", "memory"])
def test_latency_and_memory_are_measured_at_the_rate(objective: Objective) -> None:
    search = LoadSearch(OpenWorkload(arrival="constant", rate=50), Slo(p99_latency_ms=80), objective)
    assert run(search, station(1, 10)) == [OpenLoad(rate=50, distribution="constant")]


def test_latency_is_measured_with_the_fewest_clients_that_reach_min_throughput() -> None:
    curve = station(8, 10)
    search = LoadSearch(ClosedWorkload(), Slo(min_throughput=450), "latency")
    run(search, curve)
    assert search.best() == ClosedLoad(concurrency=5)


def test_latency_without_anything_else_is_measured_with_one_client() -> None:
    search = LoadSearch(ClosedWorkload(), Slo(), "latency")
    assert run(search, station(8, 10)) == [ClosedLoad(concurrency=1)]


def test_a_load_under_which_nothing_completes_counts_as_beyond_every_limit() -> None:
    def curve(load: Load) -> tuple[float, float]:
        return (0.0, 0.0) if isinstance(load, ClosedLoad) and load.concurrency > 2 else (10.0, 50.0)

    search = LoadSearch(ClosedWorkload(), Slo(p99_latency_ms=80), "throughput")
    run(search, curve)
    assert search.best() in (ClosedLoad(concurrency=1), ClosedLoad(concurrency=2))


def test_if_nothing_ever_completes_there_is_no_best_load() -> None:
    search = LoadSearch(ClosedWorkload(), Slo(), "latency")
    assert run(search, lambda _load: (0.0, 0.0)) == [ClosedLoad(concurrency=1)]
    assert search.best() is None


def test_the_request_batch_is_in_every_load() -> None:
    search = LoadSearch(ClosedWorkload(request_batch=4), Slo(p99_latency_ms=80), "throughput")
    assert all(load.request_batch == 4 for load in run(search, station(2, 10)))
