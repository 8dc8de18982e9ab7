"""The pure search: it finds the best pair in few runs, repeats itself, and copes with what goes wrong."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from tests.tuner.spaces import small_space
from tests.tuner.tables import candidate, candidates, measured, measurement
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import ClosedLoad, Failure, Interval, Load, Measurement, OpenLoad
from tritonc.schemas.spec import Pareto, Slo, SoftLimit
from tritonc.tuner import pairs as pairs_module
from tritonc.tuner.pairs import Pairs
from tritonc.tuner.pareto import chebyshev, is_on_front
from tritonc.tuner.promise import PATIENCE, SMALL_GAIN, Promise, promises_little
from tritonc.tuner.search import CLOSED_LOADS, Observation, Search
from tritonc.tuner.serving import in_flight

SLO = Slo(p99_latency_ms=25)
CANDIDATES = candidates()
CRASH = Failure(reason="load_failed", detail="no such engine")


def run(search: Search, runs: int, outcome=measured) -> list[tuple[Candidate, Load]]:
    asked = []
    for _ in range(runs):
        pair = search.ask()
        if pair is None:
            break
        asked.append(pair)
        search.tell(*pair, outcome(*pair))
    return asked


def best_throughput(slo: Slo = SLO) -> float:
    found = [measured(one, load) for one in CANDIDATES for load in CLOSED_LOADS]
    return max(m.throughput.value for m in found if m.latency_ms["p99"].value <= slo.p99_latency_ms)


@pytest.mark.parametrize("seed", range(3))
def test_a_good_pair_is_found_within_fifteen_of_672_runs(seed: int):
    search = Search(CANDIDATES, "throughput", SLO, seed=seed)
    run(search, 15)
    best = search.recommend()
    assert best is not None
    assert best.slo_met
    assert best.measurement.throughput.value >= 0.95 * best_throughput()


def served(load: Load, rate: float) -> Measurement:
    return measurement(load, rate, 1000 * in_flight(load) / rate)


@pytest.mark.parametrize("is_batched", [True, False])
def test_whether_requests_share_executions_is_found_out_where_no_knob_says(is_batched: bool):
    """As in tables whose configurations differ in other things: batches of clients, or many clients."""
    loads = [ClosedLoad(concurrency=1, request_batch=2**step) for step in range(8)]
    loads += [ClosedLoad(concurrency=clients) for clients in range(16, 257, 16)]

    def outcome(one: Candidate, load: Load) -> Measurement:
        assert isinstance(load, ClosedLoad)
        speed = {"a": 1.0, "b": 1.6, "c": 0.7}[str(one.values["format"])]
        busy = min(2, load.concurrency)
        batch = min(128, round(in_flight(load)) // busy) if is_batched else load.request_batch
        return served(load, busy * speed * batch / (0.004 + 0.0006 * batch))

    def best(slo: Slo) -> float:
        seen = [outcome(candidate(format=each), load) for each in "abc" for load in loads]
        return max(m.throughput.value for m in seen if m.latency_ms["p99"].value <= slo.p99_latency_ms)

    slo = Slo(p99_latency_ms=120)
    search = Search([candidate(format=each) for each in "abc"], "throughput", slo, loads=loads)
    run(search, 12, outcome)
    found = search.recommend()
    assert found is not None
    assert found.slo_met
    assert found.measurement.throughput.value >= 0.95 * best(slo)


def test_loads_that_are_odd_every_time_are_believed():
    """A batch that fits the hardware's tiles, between two that do not, is no measurement that is off."""
    sizes = [16 * step for step in range(1, 9)]
    odd = dict(zip(sizes, (1.0, 1.22, 0.97, 1.25, 0.87, 1.04, 1.18, 1.3), strict=True))

    def outcome(one: Candidate, load: Load) -> Measurement:
        speed = {"a": 1.0, "b": 0.6, "c": 0.8, "d": 0.45}[str(one.values["format"])]
        return served(load, 5000 * speed * odd[round(load.mean_request_batch)])

    loads = [ClosedLoad(concurrency=1, request_batch=size) for size in sizes]
    search = Search(
        [candidate(format=each) for each in "abcd"], "throughput", Slo(p99_latency_ms=18), loads=loads
    )
    pairs = [(candidate(format=name), load) for name in "abcd" for load in loads]
    for pair in (*pairs, pairs[1], pairs[3]):
        search.tell(*pair, outcome(*pair))
    found = search.recommend()
    assert found is not None
    assert (found.candidate.values["format"], found.load.mean_request_batch) == ("a", 64)


def test_what_promises_nothing_is_measured_before_what_is_known_is_measured_again():
    search = Search(CANDIDATES[:3], "throughput", SLO, loads=CLOSED_LOADS)
    asked = run(search, 40)
    assert search.is_over
    assert len(set(asked)) == 3 * len(CLOSED_LOADS)


def test_what_surely_fails_is_not_tried_either_when_nothing_promises_anything():
    def outcome(one: Candidate, load: Load) -> Measurement | Failure:
        return CRASH if one.values["accelerator"] == "tensorrt" else measured(one, load)

    loads = CLOSED_LOADS[2:4]
    fp16 = [one for one in CANDIDATES if one.values["precision"] == "fp16"]
    search = Search(fp16, "throughput", SLO, loads=loads)
    asked = run(search, 58, outcome)
    assert search.is_over
    crashed = {one for one, _ in asked if one.values["accelerator"] == "tensorrt"}
    assert 0 < len(crashed) < 6
    assert len(set(asked)) == len(crashed) + len(fp16) // 2 * len(loads)


def test_it_stops_by_itself_at_the_best_pair():
    search = Search(CANDIDATES, "throughput", SLO)
    runs = 0
    while not search.is_over and runs < 60:
        runs += len(run(search, 1))
    assert runs < 40
    best = search.recommend()
    assert best is not None
    assert best.measurement.throughput.value >= 0.99 * best_throughput()


def test_of_too_many_pairs_each_ask_looks_at_some_and_all_asks_together_find_a_good_one(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pairs_module, "_SCORED", 150)
    looked_at: list[int] = []
    promising = Search._promising
    monkeypatch.setattr(
        Search, "_promising", lambda self, *of: looked_at.append(len(of[0])) or promising(self, *of)
    )
    one, other = (Search(CANDIDATES, "throughput", SLO, seed=1, baseline=CANDIDATES[0]) for _ in range(2))
    asked = run(one, 25)
    assert asked[0][0] == CANDIDATES[0]
    assert asked[0] == run(Search(CANDIDATES, "throughput", SLO, baseline=CANDIDATES[0]), 1)[0]
    assert asked == run(other, 25)
    assert max(looked_at) < 150 + 25 * len(CLOSED_LOADS) < len(CANDIDATES) * len(CLOSED_LOADS)
    best = one.recommend()
    assert best is not None
    assert best.measurement.throughput.value >= 0.95 * best_throughput()


@pytest.mark.parametrize("step", [2, 7, 10])
@pytest.mark.parametrize("count", [15, 17, 19, 20, 70])
def test_each_ask_that_looks_at_some_pairs_looks_at_all_loads_and_all_asks_at_all_candidates(
    step: int, count: int, monkeypatch: pytest.MonkeyPatch
):
    loads = [ClosedLoad(concurrency=clients) for clients in range(1, count + 1)]
    monkeypatch.setattr(pairs_module, "_SCORED", math.ceil(len(CANDIDATES) * len(loads) / step))
    known = Pairs(CANDIDATES, loads, CANDIDATES[0])
    seen = [known.looked_at((), lambda: None, random.Random(seed)).pairs for seed in range(40)]
    assert all({load for _, load in pairs} == set(loads) for pairs in seen)
    assert {one for pairs in seen for one, _ in pairs} == set(CANDIDATES)


def test_a_pair_that_keeps_the_limits_is_recommended_however_much_faster_another_breaks_them():
    load, slow, fast = ClosedLoad(concurrency=8), *CANDIDATES[:2]
    search = Search(CANDIDATES[:2], "throughput", SLO, loads=[load])
    for _ in range(3):
        search.tell(slow, load, measurement(load, 20.0, 10.0))
        search.tell(fast, load, measurement(load, 2e5, 400.0))
    best = search.recommend()
    assert (best.candidate, best.slo_met) == (slow, True)


def test_what_completed_nothing_failed():
    search = Search(CANDIDATES, "throughput", SLO)
    pair = search.ask()
    nothing = measured(*pair).model_copy(update={"throughput": Interval(value=0.0)})
    search.tell(*pair, nothing)
    assert search.observations[0].outcome == Failure(reason="no_result", detail="no request was completed")
    assert search.ask()[0] != pair[0]


def test_energy_that_was_not_measured_is_not_the_least():
    def outcome(one: Candidate, load: Load) -> Measurement:
        joules = 1000 / measured(one, load).throughput.value
        is_known = one.values["instance_count"] != 2
        return measured(one, load).model_copy(update={"joules_per_inference": joules if is_known else None})

    search = Search(CANDIDATES, "energy", SLO)
    run(search, 30, outcome)
    best = max(
        measured(one, load).throughput.value
        for one in CANDIDATES
        for load in CLOSED_LOADS
        if measured(one, load).latency_ms["p99"].value <= 25
    )
    assert search.recommend().measurement.throughput.value > 0.9 * best


def test_patience_waits_while_something_was_never_tried():
    little = [Promise(0.0)] * PATIENCE
    assert promises_little(little)
    assert not promises_little([*little[1:], Promise(0.0, all_tried=False)])
    search = Search(CANDIDATES, "throughput", SLO)
    run(search, 2)
    assert not search.promise.all_tried
    while not search.promise.all_tried:
        assert not search.is_over
        assert len(search.observations) < 20
        run(search, 1)


def test_promises_that_rest_on_what_is_forgotten_count_no_more():
    search = Search(CANDIDATES[:3], "throughput", SLO)
    run(search, 40)
    assert search.is_over
    search.forget(search.recommend().candidate)
    assert not search.is_over


def test_a_front_is_scaled_by_what_keeps_the_limits():
    load = ClosedLoad(concurrency=8)
    objective = Pareto(pareto=("throughput", "memory"))
    numbers = []
    for violators in (0, 20):
        search = Search(CANDIDATES, objective, SLO, loads=[load])
        for place, one in enumerate(CANDIDATES[: 6 + violators]):
            rate, average = (100.0 + 5 * place, 10.0) if place < 6 else (2000.0, 400.0)
            search.tell(one, load, measurement(load, rate, average))
        table = search._pairs.table([(one, load) for one in CANDIDATES[:6]])
        everything = search._pairs.table([(each.candidate, load) for each in search.observations])
        prospects = search._prospects(everything, [0.5, 0.5])
        numbers.append(prospects.standing(table).objective)
    assert numbers[0] == pytest.approx(numbers[1], abs=0.1)


def test_the_same_seed_and_tells_give_the_same_asks():
    assert run(Search(CANDIDATES, "throughput", SLO, seed=1), 8) == run(
        Search(CANDIDATES, "throughput", SLO, seed=1), 8
    )


def test_asks_depend_on_what_was_told_and_not_on_when_it_was_looked_at():
    watched, told = (Search(CANDIDATES, "throughput", SLO, seed=1) for _ in range(2))
    for pair in run(watched, 6):
        told.tell(*pair, measured(*pair))
        watched.recommend()
    assert watched.ask() == told.ask()


def test_asks_that_were_not_told_yet_are_not_asked_again():
    search = Search(CANDIDATES, "throughput", SLO)
    first = [search.ask() for _ in range(4)]
    assert len({pair[0] for pair in first if pair}) == 4
    for pair in first:
        assert pair is not None
        search.tell(*pair, measured(*pair))
    more = [search.ask() for _ in range(4)]
    assert len(set(more)) == 4
    assert not set(more) & set(first)


def test_four_at_a_time_find_it_in_little_more_runs_than_one():
    search = Search(CANDIDATES, "throughput", SLO)
    for _ in range(6):
        pairs = [search.ask() for _ in range(4)]
        for pair in pairs:
            assert pair is not None
            search.tell(*pair, measured(*pair))
    best = search.recommend()
    assert best is not None
    assert best.measurement.throughput.value >= 0.95 * best_throughput()


def test_a_subspace_that_fails_is_abandoned():
    def outcome(one: Candidate, load: Load) -> Measurement | Failure:
        return CRASH if one.values["accelerator"] == "tensorrt" else measured(one, load)

    search = Search(CANDIDATES, "throughput", SLO)
    asked = run(search, 25, outcome)
    failing = [one.values["accelerator"] == "tensorrt" for one, _ in asked]
    assert sum(failing) <= 9
    assert sum(failing[-10:]) <= 3
    best = search.recommend()
    assert best is not None
    assert best.candidate.values["precision"] == "fp16"


def test_a_candidate_that_failed_is_not_asked_again():
    search = Search(CANDIDATES[:3], "throughput", SLO)
    asked = run(search, 10, lambda _one, _load: CRASH)
    assert [one for one, _ in asked] == list(dict.fromkeys(one for one, _ in asked))
    assert len(asked) == 3
    assert search.ask() is None
    assert search.recommend() is None


def test_a_refused_candidate_is_asked_and_recommended_no_more_and_its_like_less():
    def refused(one: Candidate) -> bool:
        return one.values.get("dynamic_batching") is True

    search = Search(CANDIDATES, "throughput", SLO, seed=1)
    asked = []
    for _ in range(25):
        one, load = search.ask()
        asked.append(one)
        search.tell(one, load, measured(one, load))
        if refused(one):
            search.refuse(one)
    repeated = [one for place, one in enumerate(asked) if one in asked[:place]]
    assert not any(refused(one) for one in repeated)
    assert sum(refused(one) for one in asked[10:]) <= 3
    best = search.recommend()
    assert best is not None
    assert not refused(best.candidate)


def test_where_every_pair_was_measured_and_one_failed_one_is_measured_again():
    search = Search(CANDIDATES[:2], "throughput", SLO, loads=CLOSED_LOADS[:1])
    for number in range(2):
        pair = search.ask()
        assert pair is not None
        search.tell(*pair, CRASH if number == 0 else measured(*pair))
    pair = search.ask()
    assert pair is not None
    assert isinstance(search.observations[1].outcome, Measurement)
    assert pair[0] == search.observations[1].candidate


def test_where_what_it_recommends_is_confirmed_nothing_is_asked_twice_that_others_do_not_contradict():
    search = Search(CANDIDATES[::12], "throughput", SLO, is_confirmed=True)
    asked = run(search, 8 * len(CLOSED_LOADS))
    assert len(set(asked)) == len(asked)


def test_it_ends_where_all_that_is_left_promises_too_little_together():
    few = CANDIDATES[::12]
    confirmed = Search(few, "throughput", SLO, is_confirmed=True)
    asked = run(confirmed, 60)
    assert len(asked) < 20
    assert confirmed.promise is not None
    assert confirmed.promise.gain <= confirmed.promise.rest < confirmed.promise.enough == 0.01
    assert confirmed.is_over


def test_where_nothing_is_confirmed_only_patience_ends_it():
    """A model of few measurements is too sure of itself: one ask that promises nothing says little."""
    search = Search(CANDIDATES[::12], "throughput", SLO)
    little = 0
    while not search.is_over:
        run(search, 1)
        promise = search.promise
        little = little + 1 if promise is not None and promise.gain < promise.least else 0
    assert little == PATIENCE
    assert search.ask() is not None


def test_what_is_left_promises_no_less_together_than_the_most_promising_of_it():
    search = Search(CANDIDATES, "throughput", SLO, is_confirmed=True)
    run(search, 1)
    for _ in range(10):
        run(search, 1)
        assert search.promise is not None
        assert search.promise.rest >= search.promise.gain


def test_nothing_is_said_of_all_that_is_left_while_a_category_is_untried_nor_of_a_front():
    search = Search(CANDIDATES, "throughput", SLO, is_confirmed=True)
    run(search, 2)
    assert search.promise is not None
    assert search.promise.rest == math.inf
    front = Search(CANDIDATES, Pareto(pareto=("throughput", "memory")), SLO, is_confirmed=True)
    run(front, 4)
    assert front.promise is not None
    assert front.promise.rest == math.inf


@pytest.mark.parametrize("is_confirmed", [False, True])
def test_it_does_not_end_before_every_value_without_an_order_was_tried(is_confirmed: bool):
    """What is on or off is tried last, by the best pair so far with that one change."""
    useless = [one for one in CANDIDATES if one.values.get("max_queue_delay_microseconds") != 1000]
    search = Search(useless, "throughput", SLO, baseline=useless[-1], is_confirmed=is_confirmed)
    best = None
    while not search.is_over and (pair := search.ask()) is not None:
        seen = [each.candidate.values["dynamic_batching"] for each in search.observations]
        if best and pair[0].values["dynamic_batching"] not in seen:
            changed = {knob for knob, _ in set(pair[0].knobs) ^ set(best.candidate.knobs)}
            assert changed <= {"dynamic_batching", "max_queue_delay_microseconds"}
            assert pair[1] == best.load
        search.tell(*pair, measured(*pair))
        best = search.recommend()
    for knob in ("precision", "accelerator", "dynamic_batching"):
        tried = {each.candidate.values[knob] for each in search.observations}
        assert tried == {one.values[knob] for one in useless}


def test_nothing_is_asked_for_ever():
    search = Search(CANDIDATES[:2], "throughput", SLO, loads=CLOSED_LOADS[:2])
    assert len(run(search, 100)) < 100


def test_the_least_violating_pair_is_recommended_where_none_keeps_the_limits():
    search = Search(CANDIDATES, "throughput", Slo(p99_latency_ms=0.5))
    run(search, 12)
    best = search.recommend()
    assert best is not None
    assert not best.slo_met
    seen = [each.outcome.latency_ms["p99"].value for each in search.observations]
    assert best.measurement.latency_ms["p99"].value == min(seen)


def test_what_another_study_showed_is_where_it_begins():
    runs = [(one, load) for one in CANDIDATES for load in CLOSED_LOADS[::2]]
    elsewhere = [
        Observation(Candidate.of("mlp", "other", dict(one.knobs)), *rest(one, load)) for one, load in runs
    ]
    cold, warm = (
        Search(CANDIDATES, "throughput", SLO),
        Search(CANDIDATES, "throughput", SLO, history=elsewhere),
    )
    gap = []
    for search in (cold, warm):
        run(search, 3)
        best = search.recommend()
        assert best is not None
        gap.append(1 - best.measurement.throughput.value / best_throughput() if best.slo_met else 1.0)
    assert gap[1] <= gap[0]
    assert gap[1] < 0.15


def rest(one: Candidate, load: Load) -> tuple[Load, Measurement]:
    return load, measured(one, load)


def test_open_loads_are_carried_or_not():
    loads = tuple(OpenLoad(rate=100 * 1.3**step) for step in range(14))
    search = Search(CANDIDATES, "throughput", SLO, loads=loads)
    run(search, 25)
    best = search.recommend()
    assert best is not None
    assert best.slo_met
    reachable = [
        load.rate
        for one in CANDIDATES
        for load in loads
        if (m := measured(one, load)).sustained and m.latency_ms["p99"].value <= 25
    ]
    assert best.measurement.throughput.value >= 0.75 * max(reachable)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ("latency", lambda m: -m.latency_ms["p99"].value),
        ("memory", lambda m: -m.memory_bytes),
        ({"throughput": 0.5, "memory": 0.5}, lambda m: m.throughput.value / m.memory_bytes),
    ],
)
def test_other_objectives_are_met_too(objective, value):
    slo = Slo(p99_latency_ms=25, min_throughput=400)
    search = Search(CANDIDATES, objective, slo)
    run(search, 25)
    best = search.recommend()
    assert best is not None
    assert best.slo_met
    able = [
        value(m)
        for one in CANDIDATES
        for load in CLOSED_LOADS
        if (m := measured(one, load)).latency_ms["p99"].value <= 25 and m.throughput.value >= 400
    ]
    assert value(best.measurement) >= max(able) - 0.1 * abs(max(able))


def test_a_space_begins_with_its_baseline():
    space = small_space()
    assert Search(space, "throughput", SLO).ask()[0] == space.baseline


def test_a_candidate_told_of_is_forgotten():
    search = Search(CANDIDATES, "throughput", SLO)
    pair = run(search, 1)[0]
    search.forget(pair[0])
    assert search.observations == ()
    assert search.ask() == pair


def test_knobs_that_change_nothing_are_not_searched_at_random():
    """Without batching `max_batch_size` changes nothing: what one twin showed is known of the other."""
    slow, twin = (candidate(instance_count=1, max_batch_size=s, dynamic_batching=False) for s in (1, 32))
    fast = [candidate(instance_count=n, max_batch_size=8, dynamic_batching=True) for n in (1, 2, 4)]

    def outcome(one: Candidate, load: Load) -> Measurement:
        return measured(candidate(**one.values, precision="fp32", accelerator="none"), load)

    search = Search([slow, *fast, twin], "throughput", SLO, baseline=slow)
    asked = run(search, 8, outcome)
    assert asked[0][0] == slow
    assert twin not in {one for one, _ in asked}


def test_among_pairs_that_keep_the_hard_limits_soft_ones_cost_what_they_are_missed_by():
    load = ClosedLoad(concurrency=4)
    three = [candidate(instance_count=n) for n in (1, 2, 4)]
    shown = {1: (100.0, 20.0), 2: (110.0, 30.0), 4: (300.0, 30.0)}

    def outcome(one: Candidate, load: Load) -> Measurement:
        rate, p99 = shown[one.values["instance_count"]]
        return measurement(load, rate, p99 / 1.5)

    slo = Slo(p99_latency_ms=SoftLimit(limit=25, soft=True), p50_latency_ms=100)
    for some, best in ((three[:2], three[0]), (three, three[2])):
        search = Search(some, "throughput", slo, loads=[load])
        run(search, 6, outcome)
        found = search.recommend()
        assert (found.candidate, found.slo_met) == (best, True)


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        ({"avg_queue_ms": 5}, lambda _one, load: load.concurrency <= 8),
        ({"max_load_seconds": 3}, lambda one, _load: one.values["precision"] == "fp32"),
    ],
)
def test_limits_of_the_queue_and_of_loading_are_kept_too(limits, allowed):
    def outcome(one: Candidate, load: Load) -> Measurement:
        slow = one.values["precision"] == "fp16"
        shown = {"queue_ms": 4.0 if load.concurrency <= 8 else 9.0, "load_s": 6.0 if slow else 2.0}
        return measured(one, load).model_copy(update=shown)

    search = Search(CANDIDATES, "throughput", Slo(p99_latency_ms=25, **limits))
    run(search, 20, outcome)
    best = search.recommend()
    able = [
        m.throughput.value
        for one in CANDIDATES
        for load in CLOSED_LOADS
        if allowed(one, load) and (m := measured(one, load)).latency_ms["p99"].value <= 25
    ]
    assert best.slo_met
    assert allowed(best.candidate, best.load)
    assert best.measurement.throughput.value >= 0.93 * max(able)


def test_a_front_is_searched_in_all_its_directions():
    def values(m: Measurement) -> list[float]:
        return [math.log(m.throughput.value), -math.log(m.latency_ms["p99"].value)]

    objective = Pareto(pareto=("throughput", "p99_latency_ms"))
    search = Search(CANDIDATES, objective, Slo(p99_latency_ms=60))
    run(search, 30)
    everything = [measured(one, load) for one in CANDIDATES for load in CLOSED_LOADS]
    able = np.array([values(m) for m in everything if m.latency_ms["p99"].value <= 60])
    front = search.front()
    found = np.array([values(member.measurement) for member in front])
    assert is_on_front(found).all()
    assert found[:, 0].tolist() == sorted(found[:, 0], reverse=True)
    for share in (0.9, 0.7, 0.5, 0.3, 0.1):
        number = chebyshev(able, (share, 1 - share))
        assert number(found.T).max() > number(able.T).max() - 0.15
    again = Search(CANDIDATES, objective, Slo(p99_latency_ms=60))
    assert run(again, 8) == [(each.candidate, each.load) for each in search.observations[:8]]
    assert search.recommend().slo_met


def test_the_front_of_one_objective_is_the_best_pair():
    search = Search(CANDIDATES, "throughput", SLO)
    assert search.front() == ()
    run(search, 10)
    assert [member.candidate for member in search.front()] == [search.recommend().candidate]


def test_a_candidate_whose_last_measurement_was_off_stays_near_the_best():
    search = Search(CANDIDATES, "throughput", SLO, seed=1)
    run(search, 15)
    best = search.recommend()
    assert best is not None
    seen = best.measurement
    off = seen.model_copy(update={"throughput": Interval(value=seen.throughput.value / 1.8)})
    search.tell(best.candidate, best.load, off)
    pairs = {(each.candidate, each.load) for each in search.observations}
    ranking = search.ranking(pairs)
    assert best.candidate in [each.candidate for each in ranking[:3]]
    assert len({each.candidate for each in ranking}) == len(ranking)
    search.tell(best.candidate, best.load, CRASH)
    assert best.candidate not in [each.candidate for each in search.ranking(pairs)]
    assert search.recommend().candidate != best.candidate


@pytest.mark.parametrize("seed", range(3))
def test_a_leader_of_two_measurements_that_contradict_each_other_is_measured_a_third_time(seed: int):
    """One of them is off, and nothing says which: a search that believed the good one ended on it."""
    times: Counter[tuple[Candidate, Load]] = Counter()

    def outcome(one: Candidate, load: Load) -> Measurement:
        times[one, load] += 1
        return slowed(measured(one, load), 1.8 if times[one, load] == 2 else 1.0)

    search = Search(CANDIDATES, "throughput", SLO, seed=seed)
    while not search.is_over:
        assert run(search, 1, outcome)
    best = search.recommend()
    assert best is not None
    assert times[best.candidate, best.load] >= 3


@pytest.mark.parametrize("seed", range(3))
def test_the_best_pair_is_found_before_the_end_though_its_first_measurement_was_off(seed: int):
    kept = [
        (one, load)
        for one in CANDIDATES
        for load in CLOSED_LOADS
        if measured(one, load).latency_ms["p99"].value <= SLO.p99_latency_ms
    ]
    best = max(kept, key=lambda pair: measured(*pair).throughput.value)
    search = Search(CANDIDATES, "throughput", SLO, seed=seed)
    times = 0
    while not search.is_over:
        pair = search.ask()
        assert pair is not None
        times += pair == best
        search.tell(*pair, slowed(measured(*pair), 1.25 if pair == best and times == 1 else 1.0))
    found = search.recommend()
    assert found is not None
    assert (found.candidate, found.load) == best


def slowed(seen: Measurement, times: float) -> Measurement:
    """As where something else ran meanwhile."""
    latency = {name: Interval(value=each.value * times) for name, each in seen.latency_ms.items()}
    throughput = Interval(value=seen.throughput.value / times)
    return seen.model_copy(update={"throughput": throughput, "latency_ms": latency})


def test_a_ranking_begins_with_what_keeps_the_limits_and_is_among_what_was_asked_for():
    load = ClosedLoad(concurrency=8)
    search = Search(CANDIDATES, "throughput", SLO)
    told = {one: measurement(load, 600.0 + place, 8000 / 600) for place, one in enumerate(CANDIDATES[:6])}
    fast = measurement(load, 3000.0, 8000 / 3000)
    missed = {**fast.latency_ms, "p99": Interval(value=27.0)}
    told[CANDIDATES[6]] = fast.model_copy(update={"latency_ms": missed})
    for one, shown in [*told.items(), *3 * [(CANDIDATES[6], told[CANDIDATES[6]])]]:
        search.tell(one, load, shown)
    ranking = search.ranking({(one, load) for one in told})
    assert [each.slo_met for each in ranking] == sorted((each.slo_met for each in ranking), reverse=True)
    assert ranking[0].candidate != CANDIDATES[6]
    assert [each.candidate for each in search.ranking({(CANDIDATES[6], load)})] == [CANDIDATES[6]]


def test_what_is_worth_a_run_grows_with_what_measurements_say_of_their_own_noise():
    def least(half: float) -> float:
        def noisy(one: Candidate, load: Load) -> Measurement:
            seen = measured(one, load)
            value = seen.throughput.value
            interval = Interval(value=value, low=value * (1 - half), high=value * (1 + half))
            return seen.model_copy(update={"throughput": interval})

        search = Search(CANDIDATES, "throughput", SLO, seed=1)
        run(search, 6, noisy)
        search.ask()
        assert search.promise is not None
        return search.promise.least

    assert least(0.0) == SMALL_GAIN
    assert least(0.2) == pytest.approx(0.1 * 0.2 / 1.96, rel=0.1)
