"""The search for a load that is told what was measured before: it asks what that does not answer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tuner.test_load_search import Curve, measured, run, station
from tritonc.schemas.measurement import ClosedLoad, Interval, Load, OpenLoad
from tritonc.schemas.spec import ClosedWorkload, Objective, OpenWorkload, Slo, SoftLimit, Workload
from tritonc.tuner.load_search import MOST_WINDOWS, LoadLadder, LoadSearch
from tritonc.tuner.loads import ladder

CLOSED, OPEN = ClosedWorkload(max_concurrency=64), OpenWorkload(arrival="poisson", rate=60)
WHAT: list[tuple[Workload, Slo, Objective]] = [
    (CLOSED, Slo(p99_latency_ms=60), "throughput"),
    (CLOSED, Slo(), "throughput"),
    (CLOSED, Slo(min_throughput=100), "latency"),
    (CLOSED, Slo(), "latency"),
    (CLOSED, Slo(p99_latency_ms=SoftLimit(limit=1, soft=True)), "throughput"),
    (OPEN, Slo(p99_latency_ms=60), "throughput"),
    (OPEN, Slo(p99_latency_ms=60), "memory"),
]


def told(search: LoadSearch, curve: Curve, windows: Mapping[Load, int]) -> LoadSearch:
    for load, count in windows.items():
        search.know(load, measured(load, *curve(load)), count)
    return search


def counted(asked: list[Load]) -> dict[Load, int]:
    return {load: asked.count(load) for load in asked}


@pytest.mark.parametrize(("workload", "slo", "objective"), WHAT)
def test_what_was_measured_for_the_same_is_not_asked_again(workload, slo, objective) -> None:
    curve = station(6, 20)
    first = LoadSearch(workload, slo, objective)
    asked = run(first, curve)
    again = told(LoadSearch(workload, slo, objective), curve, counted(asked))
    assert again.ask() is None
    assert again.best() == first.best()


@given(
    servers=st.floats(1, 16),
    service_ms=st.floats(1, 50),
    limits=st.tuples(st.floats(2, 400), st.floats(2, 400)),
    which=st.sampled_from(["closed", "open"]),
)
@settings(max_examples=200)
def test_under_another_limit_no_load_is_asked_beyond_its_windows_and_the_answer_is_as_good(
    servers: float, service_ms: float, limits: tuple[float, float], which: str
) -> None:
    curve = station(servers, service_ms)
    workload = CLOSED if which == "closed" else OPEN
    before, now = (Slo(p99_latency_ms=limit) for limit in limits)
    known = counted(run(LoadSearch(workload, before, "throughput"), curve))
    fresh, warm = LoadSearch(workload, now, "throughput"), LoadSearch(workload, now, "throughput")
    run(fresh, curve)
    asked = run(told(warm, curve, known), curve)
    for load, count in counted(asked).items():
        assert known.get(load, 0) + count <= MOST_WINDOWS or load not in known
    assert len(set(asked) & {load for load, count in known.items() if count >= MOST_WINDOWS}) == 0

    def worth(search: LoadSearch) -> tuple[bool, float]:
        best = search.best()
        assert best is not None
        throughput, p99_ms = curve(best)
        kept = p99_ms <= limits[1] and measured(best, throughput, p99_ms).sustained
        return kept, throughput if kept else -p99_ms

    one, other = worth(warm), worth(fresh)
    assert one[0] >= other[0]
    if one[0] and other[0]:
        assert one[1] >= 0.9 * other[1]


def test_a_bracket_of_clients_begins_with_what_is_known() -> None:
    curve = station(8, 20)  # 62 clients are within 200 ms, 31 within 100 ms
    known = {ClosedLoad(concurrency=level): 2 for level in (24, 62, 64)}
    search = told(LoadSearch(CLOSED, Slo(p99_latency_ms=100), "throughput"), curve, known)
    asked = run(search, curve)
    assert all(24 < load.concurrency < 62 for load in asked)
    assert search.best().concurrency >= 24


def test_a_rate_that_must_be_carried_is_asked_first_whatever_is_known() -> None:
    curve = station(6, 20)
    search = told(LoadSearch(OPEN, Slo(p99_latency_ms=60), "throughput"), curve, {OpenLoad(rate=100): 2})
    assert search.ask() == OpenLoad(rate=60)


def test_the_fewest_clients_are_looked_for_from_below_whatever_is_known() -> None:
    curve, slo = station(6, 20), Slo(min_throughput=100)
    search = told(LoadSearch(CLOSED, slo, "latency"), curve, {ClosedLoad(concurrency=40): 2})
    run(search, curve)
    assert search.best() == ClosedLoad(concurrency=2)


@pytest.mark.parametrize(
    ("workload", "objective", "load"),
    [
        (CLOSED, "throughput", OpenLoad(rate=90)),
        (CLOSED, "throughput", ClosedLoad(concurrency=65)),
        (CLOSED, "throughput", ClosedLoad(concurrency=8, request_batch=2)),
        (CLOSED, "latency", ClosedLoad(concurrency=8)),
        (OPEN, "throughput", ClosedLoad(concurrency=8)),
        (OPEN, "throughput", OpenLoad(rate=59)),
        (OPEN, "throughput", OpenLoad(rate=90, distribution="constant")),
        (OPEN, "throughput", OpenLoad(rate=961)),
        (OPEN, "memory", OpenLoad(rate=90)),
    ],
)
def test_what_is_no_load_of_this_search_is_left_out(workload, objective, load) -> None:
    search = LoadSearch(workload, Slo(p99_latency_ms=60), objective)
    assert not search.concerns(load)
    search.know(load, measured(load, 30, 20), 2)
    assert search.best() is None
    assert search.ask() == LoadSearch(workload, Slo(p99_latency_ms=60), objective).ask()


def test_a_candidate_that_cannot_come_near_the_best_is_left_by_what_is_known() -> None:
    incumbent = Interval(value=1000, low=990, high=1010)
    search = LoadSearch(CLOSED, Slo(p99_latency_ms=60), "throughput", incumbent=incumbent)
    told(search, station(2, 20), {ClosedLoad(concurrency=8): 1})
    assert search.ask() is None
    assert search.is_cut


def test_a_flat_candidate_is_left_by_what_is_known_too() -> None:
    incumbent = Interval(value=500, low=490, high=510)
    search = LoadSearch(CLOSED, Slo(p99_latency_ms=300), "throughput", incumbent=incumbent)
    told(search, station(2, 10), {ClosedLoad(concurrency=2): 1, ClosedLoad(concurrency=4): 1})
    assert search.ask() is None
    assert search.is_cut


def test_a_ladder_asks_the_rungs_that_are_not_known() -> None:
    curve = station(2, 20)
    rungs = [ClosedLoad(concurrency=int(level)) for level in ladder(CLOSED)]
    search = told(LoadLadder(CLOSED, Slo(), "throughput"), curve, {rungs[0]: 1, rungs[2]: 1})
    search.know(ClosedLoad(concurrency=3), measured(rungs[0], 1, math.pi), 1)
    asked = []
    while (load := search.ask()) is not None:
        asked.append(load)
        search.tell(load, measured(load, *curve(load)))
    assert asked == [rungs[1], *rungs[3:]]
