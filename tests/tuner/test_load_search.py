from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tritonc.schemas.measurement import ClosedLoad, Interval, Load, Measurement, OpenLoad
from tritonc.schemas.spec import ClosedWorkload, Objective, OpenWorkload, Slo, SoftLimit, Workload
from tritonc.tuner.load_search import MAX_ASKS, MOST_WINDOWS, LoadLadder, LoadSearch
from tritonc.tuner.loads import ladder, searched_loads

Curve = Callable[[Load], tuple[float, float]]
"""Throughput in requests a second and p99 in milliseconds under a load; throughput 0: nothing completed."""


def measured(load: Load, throughput: float, p99_ms: float, noise: float = 0.0) -> Measurement:
    """With intervals that two standard deviations (of p99: twice these) of `noise` make."""
    latency = {"avg": about(p99_ms / 1.25, noise), "p99": about(p99_ms, 2 * noise)}
    sustained = not isinstance(load, OpenLoad) or throughput >= 0.98 * load.rate
    return Measurement(
        load=load,
        requests=100,
        duration_s=1,
        throughput=about(throughput * load.request_batch, noise),
        latency_ms=latency,
        sustained=sustained,
    )


def about(value: float, noise: float) -> Interval:
    return Interval(value=value, low=value * (1 - 2 * noise), high=value * (1 + 2 * noise))


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


def batching(top: float, half: float, noise: float = 0.0, seed: int = 0) -> Curve:
    """A server that forms batches: more clients always bring more; half of what is possible with `half`."""
    rng = random.Random(seed)

    def curve(load: Load) -> tuple[float, float]:
        assert isinstance(load, ClosedLoad)
        throughput = top * load.concurrency / (load.concurrency + half)
        latency_ms = 1000 * load.concurrency / throughput
        shift = rng.gauss(0, noise)
        return throughput * math.exp(shift), 1.25 * latency_ms * math.exp(rng.gauss(0, noise) - shift)

    return curve


def run(search: LoadSearch, curve: Curve, noise: float = 0.0) -> list[Load]:
    """All that was asked; windows of a load are pooled."""
    asked: list[Load] = []
    seen: dict[Load, list[tuple[float, float]]] = {}
    while (load := search.ask()) is not None:
        asked.append(load)
        windows = seen.setdefault(load, [])
        windows.append(curve(load))
        throughput, p99_ms = (math.fsum(values) / len(windows) for values in zip(*windows, strict=True))
        error = noise / math.sqrt(len(windows))
        search.tell(load, measured(load, throughput, p99_ms, error) if throughput else None)
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
def test_under_any_noise_it_ends_and_repeats_no_load_more_than_four_times(
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
    asked = run(search, curve, noise)
    assert max(Counter(asked).values()) <= 4
    assert search.best() in asked


NOISE = 0.03


def typical(seed: int) -> tuple[Callable[[float, int], Curve], float]:
    """A made-up candidate, as a function of noise and seed, and its p99 limit."""
    rng = random.Random(seed)
    if seed % 2:
        servers, service_ms = rng.choice([1, 2, 4, 8]), rng.uniform(2, 30)
        return lambda noise, again: station(servers, service_ms, noise, again), rng.uniform(50, 150)
    top, half = rng.uniform(100, 2000), rng.uniform(1, 20)
    return lambda noise, again: batching(top, half, noise, again), 1250 * half / top * rng.uniform(1.5, 6)


def true_capacity(curve: Curve, limit_ms: float) -> float:
    loads = (ClosedLoad(concurrency=n) for n in range(1, 65))
    return max((x for x, p99_ms in map(curve, loads) if p99_ms <= limit_ms), default=0.0)


@pytest.mark.parametrize("is_predicted", [False, True])
def test_a_typical_candidate_needs_at_most_five_windows_for_its_capacity(is_predicted: bool) -> None:
    windows, errors, covered = [], [], []
    for seed in range(300):
        make, limit_ms = typical(seed)
        truth = true_capacity(make(0.0, 0), limit_ms)
        if not truth:
            continue
        curve = make(NOISE, seed)
        level = max(n for n in range(1, 65) if make(0.0, 0)(ClosedLoad(concurrency=n))[1] <= limit_ms)
        guess = ClosedLoad(concurrency=max(1, round(level * random.Random(seed).uniform(0.8, 1.25))))
        warm = guess if is_predicted else ClosedLoad(concurrency=8)
        seen = measured(warm, *curve(warm), NOISE)
        search = LoadSearch(
            ClosedWorkload(max_concurrency=64),
            Slo(p99_latency_ms=limit_ms),
            "throughput",
            saturated=seen,
            first=guess if is_predicted else None,
        )
        search.hint(warm, seen)
        windows.append(len(run(search, curve, NOISE)))
        capacity = search.capacity()
        assert capacity is not None
        assert capacity.low is not None
        assert capacity.high is not None
        errors.append(abs(capacity.value / truth - 1))
        covered.append(capacity.low <= truth <= capacity.high)
    assert sorted(windows)[len(windows) // 2] <= 4
    assert sorted(windows)[int(0.9 * len(windows))] <= 6
    assert sorted(errors)[len(errors) // 2] <= 0.03
    assert sorted(errors)[int(0.9 * len(errors))] <= 0.08
    assert sum(covered) >= 0.92 * len(covered)


def test_a_predicted_load_comes_first_and_ends_the_search_sooner() -> None:
    curve = batching(1000, 10)
    limit, workload = Slo(p99_latency_ms=50), ClosedWorkload(max_concurrency=64)
    search = LoadSearch(
        workload, limit, "throughput", saturated=saturated(curve), first=ClosedLoad(concurrency=30)
    )
    assert run(search, curve)[0] == ClosedLoad(concurrency=30)
    assert search.best() == ClosedLoad(concurrency=30)
    far = LoadSearch(workload, limit, "throughput", first=ClosedLoad(concurrency=1000))
    assert far.ask() == ClosedLoad(concurrency=64)
    other_kind = LoadSearch(workload, limit, "throughput", first=OpenLoad(rate=7))
    assert other_kind.ask() == ClosedLoad(concurrency=4)


def test_a_predicted_rate_comes_after_the_one_that_has_to_be_carried() -> None:
    search = LoadSearch(
        OpenWorkload(arrival="poisson", rate=20),
        Slo(p99_latency_ms=80),
        "throughput",
        first=OpenLoad(rate=70),
    )
    assert run(search, station(1, 10))[:2] == [OpenLoad(rate=20), OpenLoad(rate=70)]


BEST = Interval(value=1000, low=960, high=1040)


def test_a_candidate_that_cannot_come_near_the_best_is_left_after_its_warm_up() -> None:
    curve, load = station(2, 20), ClosedLoad(concurrency=16)  # 100 a second, 200 ms with 16 clients
    search = LoadSearch(ClosedWorkload(), Slo(p99_latency_ms=100), "throughput", incumbent=BEST)
    search.hint(load, measured(load, *curve(load), NOISE))
    assert search.ask() is None
    assert search.best() == load


@pytest.mark.parametrize("objective", ["throughput", {"throughput": 1.0, "memory": 1.0}])
def test_only_what_is_measured_by_throughput_alone_is_left_for_it(objective: Objective) -> None:
    curve, load = station(2, 20), ClosedLoad(concurrency=16)
    search = LoadSearch(ClosedWorkload(), Slo(p99_latency_ms=100), objective, incumbent=BEST)
    search.hint(load, measured(load, *curve(load), NOISE))
    assert (search.ask() is None) == (objective == "throughput")


def test_a_candidate_that_may_be_better_is_not_left() -> None:
    curve, load = station(8, 8), ClosedLoad(concurrency=64)  # 1000 a second, 80 ms with 64 clients
    search = LoadSearch(ClosedWorkload(), Slo(p99_latency_ms=50), "throughput", incumbent=BEST)
    search.hint(load, measured(load, *curve(load), NOISE))
    run(search, curve, NOISE)
    best = search.best()
    assert best is not None
    assert curve(best)[0] == pytest.approx(1000)


def test_a_low_first_load_is_not_held_against_a_candidate() -> None:
    """Below saturation latency hardly rises with load: how far the limit is cannot be told from there."""
    incumbent = Interval(value=60, low=58, high=62)
    workload, limit = OpenWorkload(arrival="poisson", rate=10, max_rate=160), Slo(p99_latency_ms=50)
    search = LoadSearch(workload, limit, "throughput", incumbent=incumbent, first=OpenLoad(rate=90))
    run(search, station(1.4, 14), NOISE)  # 100 a second
    best = search.best()
    assert isinstance(best, OpenLoad)
    assert best.rate > 60
    clients = LoadSearch(
        ClosedWorkload(),
        Slo(p99_latency_ms=26),
        "throughput",
        incumbent=Interval(value=200, low=190, high=210),
        first=ClosedLoad(concurrency=2),
    )
    run(clients, station(8, 20), NOISE)  # 100 a second with two clients, 400 with eight
    assert clients.best() == ClosedLoad(concurrency=8)


@pytest.mark.parametrize(("requests", "clients"), [(200, 4), (50, 6)])
def test_the_first_load_goes_by_the_tail_of_the_warm_up_where_that_saw_enough(requests: int, clients: int):
    """100 a second, and a p99 of twice the average; of few requests it is taken to be 1.3 times that."""
    latency = {"avg": Interval(value=80), "p99": Interval(value=160)}
    seen = measured(ClosedLoad(concurrency=8), 100, 160).model_copy(
        update={"requests": requests, "latency_ms": latency}
    )
    search = LoadSearch(ClosedWorkload(), Slo(p99_latency_ms=80), "throughput", saturated=seen)
    assert search.ask() == ClosedLoad(concurrency=clients)


@pytest.mark.parametrize("is_wide", [False, True])
def test_a_warm_up_ends_the_search_only_where_its_throughput_is_known_to_be_low(is_wide: bool) -> None:
    incumbent, load = Interval(value=500, low=480, high=520), ClosedLoad(concurrency=8)
    search = LoadSearch(ClosedWorkload(), Slo(p99_latency_ms=20), "throughput", incumbent=incumbent)
    seen = measured(load, 200, 50, 0.01)
    if is_wide:
        seen = seen.model_copy(update={"throughput": Interval(value=200)})
    search.hint(load, seen)
    assert (search.ask() is None) == search.is_cut == (not is_wide)


def test_a_flat_candidate_that_keeps_its_limit_is_left_where_more_load_cannot_make_it_the_best() -> None:
    """Its limit is far away still, but eight clients bring no more than two: 16 will not bring twice."""
    flat, growing = station(2, 10), batching(top=1000, half=8)  # 200 a second; 667 with 16 clients

    def asked(curve: Curve) -> list[Load]:
        search = LoadSearch(
            ClosedWorkload(max_concurrency=16),
            Slo(p99_latency_ms=300),
            "throughput",
            incumbent=Interval(value=500, low=480, high=520),
            first=ClosedLoad(concurrency=2),
        )
        loads = run(search, curve, 0.01)
        assert search.is_cut == (curve is flat)
        return loads

    assert asked(flat) == [ClosedLoad(concurrency=2), ClosedLoad(concurrency=8)]
    assert asked(growing)[-1] == ClosedLoad(concurrency=16)


def test_an_open_load_below_the_best_ends_the_search_where_its_limit_was_seen() -> None:
    workload, limit = OpenWorkload(arrival="poisson", rate=75), Slo(p99_latency_ms=80)
    guess = OpenLoad(rate=300)
    search = LoadSearch(workload, limit, "throughput", incumbent=BEST, first=guess)
    assert run(search, station(1, 10)) == [OpenLoad(rate=75), guess]
    assert search.best() == OpenLoad(rate=75)


def test_windows_are_added_to_the_deciding_load_only_where_they_matter() -> None:
    def windows(incumbent: Interval | None, noise: float) -> int:
        search = LoadSearch(
            ClosedWorkload(max_concurrency=4), Slo(p99_latency_ms=500), "throughput", incumbent=incumbent
        )
        return Counter(run(search, station(4, 10), noise))[ClosedLoad(concurrency=4)]

    assert windows(None, 0.01) == 1
    assert windows(None, 0.03) == MOST_WINDOWS
    assert windows(None, 0.06) == 1  # a second one would not be enough
    assert windows(BEST, 0.03) == 1  # 400 a second are surely less, though not hopeless yet


@pytest.mark.parametrize(("error", "windows"), [(0.02, 2), (0.2, 1)])
def test_a_load_near_its_limit_is_seen_twice_unless_the_noise_is_larger(error: float, windows: int) -> None:
    workload, limit = ClosedWorkload(max_concurrency=1), Slo(p99_latency_ms=21)
    search = LoadSearch(workload, limit, "throughput")
    asked = 0
    while (load := search.ask()) is not None:
        asked += 1
        seen = measured(load, 50.0, 20.0, 0.0)
        p99 = Interval(value=20.0, low=20 * math.exp(-1.96 * error), high=20 * math.exp(1.96 * error))
        search.tell(load, seen.model_copy(update={"latency_ms": {**seen.latency_ms, "p99": p99}}))
    assert asked == windows


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


def clients(search: LoadSearch) -> int:
    """Of the load that decides, on a server that waits a millisecond for each client that it has."""
    curve = batching(1000, 16)
    while (load := search.ask()) is not None:
        assert isinstance(load, ClosedLoad)
        search.tell(load, measured(load, *curve(load)).model_copy(update={"queue_ms": load.concurrency}))
    best = search.best()
    assert isinstance(best, ClosedLoad)
    return best.concurrency


def test_a_limit_of_the_queue_ends_the_load_as_one_of_latency_does() -> None:
    assert 17 <= clients(LoadSearch(ClosedWorkload(), Slo(avg_queue_ms=20), "throughput")) <= 20


def test_a_soft_limit_is_kept_where_it_can_be() -> None:
    slo = Slo(p99_latency_ms=SoftLimit(limit=40, soft=True))
    assert 13 <= clients(LoadSearch(ClosedWorkload(), slo, "throughput")) <= 16  # p99 is 40 ms with 16


def test_where_no_load_keeps_a_soft_limit_the_one_that_is_worth_most_decides() -> None:
    slo = Slo(p99_latency_ms=SoftLimit(limit=10, soft=True))
    assert 4 <= clients(LoadSearch(ClosedWorkload(), slo, "throughput")) <= 16  # 8 clients are worth most
    hard = Slo(p99_latency_ms=SoftLimit(limit=10, soft=True), avg_latency_ms=20)
    assert 2 <= clients(LoadSearch(ClosedWorkload(), hard, "throughput")) <= 4  # four have 20 ms on average


def test_a_ladder_asks_every_load_however_hopeless_the_candidate():
    incumbent = Interval(value=1e6, low=0.9e6, high=1.1e6)
    search = LoadLadder(
        ClosedWorkload(max_concurrency=12), Slo(p99_latency_ms=1), "throughput", incumbent=incumbent
    )
    asked = []
    while (load := search.ask()) is not None:
        asked.append(load.concurrency)
        search.tell(load, measured(load, throughput=10.0, p99_ms=1000.0, noise=0.01))
    assert asked == [1, 2, 4, 8, 12]
    assert not search.is_hopeless


def test_the_ladder_of_an_open_load_goes_from_its_rate_to_its_ceiling():
    workload = OpenWorkload(arrival="poisson", rate=10, max_rate=40)
    assert ladder(workload) == pytest.approx((10, 15, 22.5, 33.75, 40))


@given(st.integers(1, 600), st.integers(1, 4))
def test_the_loads_of_a_model_are_each_clients_from_one_to_the_ceiling(most: int, batch: int):
    workload = ClosedWorkload(max_concurrency=most, request_batch=batch)
    levels = [load.concurrency for load in searched_loads(workload, Slo(), "throughput")]
    assert (levels[0], levels[-1]) == (1, most)
    assert levels == sorted(set(levels))
    assert all(after <= max(before + 1, 1.3 * before) for before, after in itertools.pairwise(levels))


def test_where_no_capacity_is_sought_a_single_load_is_enough():
    workload = OpenWorkload(arrival="poisson", rate=10, max_rate=40)
    assert searched_loads(workload, Slo(), "latency") == (OpenLoad(rate=10),)
    assert searched_loads(ClosedWorkload(), Slo(), "latency") == (ClosedLoad(concurrency=1),)
    rates = [load.rate for load in searched_loads(workload, Slo(), "throughput")]
    assert (rates[0], rates[-1]) == (10, 40)
