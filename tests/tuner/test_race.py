"""The race: everybody again, interleaved, each at a load that keeps the SLO."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest

from tests.tuner.spaces import Surface, small_space
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import ClosedLoad, Failure
from tritonc.tuner.confirm import FIRST_LOOK, LAST_LOOK, decide
from tritonc.tuner.race import Entrant, is_mendable, race

SPACE = small_space()
SLOW, FAST, THIRD, FOURTH, *_ = SPACE


def entrants(concurrency: int = 8) -> list[Entrant]:
    load = ClosedLoad(concurrency=concurrency)
    return [Entrant(SLOW, "baseline", load), Entrant(FAST, "finalist", load)]


def surface(fast_p99_per_client_ms: float = 2.0) -> Surface:
    return Surface({SLOW: 100.0, FAST: 130.0}, {SLOW: 2.0, FAST: fast_p99_per_client_ms})


def turns_of(stand: Surface, runners: list[Entrant]) -> list[tuple[object, int]]:
    seen: list[tuple[object, int]] = []
    race(runners, stand, on_turn=lambda entrant, number: seen.append((entrant.candidate, number)))
    return seen


def test_everybody_is_measured_once_a_round_forwards_and_backwards():
    stand = surface()
    turns = turns_of(stand, entrants())
    assert [candidate for candidate, _ in turns] == [SLOW, FAST, FAST, SLOW, SLOW, FAST]
    assert [number for _, number in turns] == [1, 1, 2, 2, 3, 3]
    assert stand.gathered == (SLOW, FAST)


def test_turns_that_follow_each_other_are_one_visit(monkeypatch: pytest.MonkeyPatch):
    stand, visits = surface(), []
    pooled = stand.pooled
    monkeypatch.setattr(stand, "pooled", lambda samples: visits.append(len(samples)) or pooled(samples))
    finishers, _ = race(entrants(), stand, on_turn=lambda *_: None)
    assert [finisher.measurement.load for finisher in finishers] == [ClosedLoad(concurrency=8)] * 2
    assert visits[-2:] == [2, 2]  # slow, fast, fast, slow, slow, fast
    race(entrants()[:1], stand, on_turn=lambda *_: None)
    assert visits[-1] == 1


def test_everybody_gets_a_thousand_requests_at_least():
    finishers, failures = race(entrants(), surface(), on_turn=lambda *_: None)
    assert failures == {}
    assert all(finisher.measurement.requests >= 1000 for finisher in finishers)
    assert [finisher.contender.role for finisher in finishers] == ["baseline", "finalist"]
    assert all(len(finisher.contender.scores) == FIRST_LOOK for finisher in finishers)


def test_who_is_surely_behind_is_dropped():
    stand = Surface(
        {SLOW: 100.0, FAST: 130.0, THIRD: 131.0, FOURTH: 60.0},
        dict.fromkeys((SLOW, FAST, THIRD, FOURTH), 2.0),
    )
    stand.noise = 0.08
    load = ClosedLoad(concurrency=8)
    runners = [*entrants(), *(Entrant(each, "finalist", load) for each in (THIRD, FOURTH))]
    last = dict(turns_of(stand, runners))
    assert last[FOURTH] == FIRST_LOOK - 1
    assert last[SLOW] == FIRST_LOOK < last[FAST] == last[THIRD]


def test_one_that_breaks_the_slo_at_its_load_comes_down_until_it_keeps_it():
    finishers, _ = race(entrants(), surface(fast_p99_per_client_ms=8.0), on_turn=lambda *_: None)
    fast = finishers[1]
    assert fast.measurement.load == ClosedLoad(concurrency=6)
    assert fast.contender.slo_met
    assert finishers[0].measurement.load == ClosedLoad(concurrency=8)


def test_one_that_breaks_the_slo_at_every_load_says_by_how_much():
    finishers, _ = race(entrants(3), surface(fast_p99_per_client_ms=75.0), on_turn=lambda *_: None)
    assert not finishers[1].contender.slo_met
    assert finishers[1].contender.violation == 0.5


def test_what_no_smaller_load_mends_is_measured_at_its_load_twice_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
):
    stand = Surface({SLOW: 100.0, FAST: 130.0}, {SLOW: 8.0, FAST: 2.0})
    plain = stand.violations
    least = {"min_throughput": 0.2}
    monkeypatch.setattr(
        stand,
        "violations",
        lambda seen: plain(seen) | (least if seen.throughput.value < 120 else {}),
    )
    finishers, _ = race(entrants(), stand, on_turn=lambda *_: None)
    assert [load for candidate, load in stand.measured if candidate == SLOW] == [
        ClosedLoad(concurrency=8)
    ] * 2
    assert finishers[0].contender.violation == pytest.approx(0.28 + 0.2)
    assert decide([finisher.contender for finisher in finishers]).chosen.candidate == FAST


def test_who_comes_down_late_is_compared_by_way_of_the_best_and_the_others_rest():
    stand = Surface({SLOW: 100.0, FAST: 130.0, THIRD: 127.0}, {SLOW: 2.0, FAST: 2.0, THIRD: 6.3})
    runners = [*entrants(), Entrant(THIRD, "finalist", ClosedLoad(concurrency=8))]
    turns = turns_of(stand, runners)  # 50.4 ms: missed by too little to be believed at once
    assert [candidate for candidate, number in turns if number == 3] == [SLOW, FAST, THIRD]
    assert stand.measured[8:10] == [(THIRD, ClosedLoad(concurrency=8)), (THIRD, ClosedLoad(concurrency=7))]
    assert {candidate for candidate, number in turns if number > 3} <= {FAST, THIRD}


def test_rounds_are_added_where_noise_hides_a_lead():
    stand = Surface({SLOW: 100.0, FAST: 104.0}, {SLOW: 2.0, FAST: 2.0})
    stand.noise = 0.05
    assert FIRST_LOOK < max(number for _, number in turns_of(stand, entrants())) <= LAST_LOOK


def test_added_rounds_take_a_third_of_the_requests():
    stand = Surface({SLOW: 100.0, FAST: 104.0}, {SLOW: 2.0, FAST: 2.0})
    stand.noise = 0.05
    finishers, _ = race(entrants(), stand, on_turn=lambda *_: None)
    for finisher in finishers:
        rounds = len(finisher.contender.scores)
        assert finisher.measurement.requests == 334 * FIRST_LOOK + 112 * (rounds - FIRST_LOOK)
    assert max(len(finisher.contender.scores) for finisher in finishers) > FIRST_LOOK


def test_one_that_comes_down_in_an_added_round_gets_a_thousand_requests_there_too(
    monkeypatch: pytest.MonkeyPatch,
):
    stand = Surface({SLOW: 100.0, FAST: 104.0}, {SLOW: 2.0, FAST: 2.0})
    stand.noise = 0.05

    def once_more_is_known(seen):
        return {"p99_latency_ms": 0.01 if seen.load.concurrency == 8 and seen.requests > 1002 else -0.5}

    monkeypatch.setattr(stand, "violations", once_more_is_known)
    seven, eight = (ClosedLoad(concurrency=clients) for clients in (7, 8))
    finishers, _ = race(
        [Entrant(SLOW, "baseline", seven), Entrant(FAST, "finalist", eight)], stand, on_turn=lambda *_: None
    )
    assert finishers[1].measurement.load == seven
    assert min(finisher.measurement.requests for finisher in finishers) >= 1000


def test_no_round_is_added_where_nobody_leads():
    stand = Surface({SLOW: 100.0, FAST: 60.0}, {SLOW: 2.0, FAST: 2.0})
    stand.noise = 0.15
    assert max(number for _, number in turns_of(stand, entrants())) == FIRST_LOOK


@pytest.mark.parametrize(("throughput", "is_better"), [(150.0, False), (300.0, True)])
def test_a_soft_limit_that_is_missed_costs_and_rules_nothing_out(throughput: float, is_better: bool):
    stand = Surface({SLOW: 100.0, FAST: throughput}, {SLOW: 2.0, FAST: 4.0})
    stand.soft_limit_ms = 20.0  # FAST has 32 ms, which costs a factor of 2.56
    finishers, _ = race(entrants(), stand, on_turn=lambda *_: None)
    verdict = decide([finisher.contender for finisher in finishers])
    assert verdict.chosen.candidate == (FAST if is_better else SLOW)
    assert verdict.chosen.slo_met
    assert finishers[1].soft["p99_latency_ms"] == pytest.approx(0.6)
    assert finishers[1].capacity.soft == finishers[1].soft


class Scores(Surface):
    """A machine of which only the noise matters: a sample is its score."""

    def sample(self, candidate, _load, _requests):
        return math.log(self.capacities[candidate]) + self.rng.gauss(0, self.noise)

    def joined(self, samples):
        return math.fsum(samples) / len(samples)

    def pooled(self, samples):
        return SimpleNamespace(score=math.fsum(samples) / len(samples), memory_bytes=0, gpu_memory_bytes=0)

    def violations(self, _measured):
        return {}

    def objective(self, measured):
        return measured.score

    def score(self, objective):
        return objective


def improvements(finalists: int, noise: float, gain: float, races: int) -> float:
    """The share of races that find an improvement, rounds added wherever the race wants them."""
    stand = Scores({SLOW: 1.0} | dict.fromkeys((FAST, THIRD, FOURTH), 1 + gain), {})
    stand.noise, stand.rng = noise, random.Random(7)
    load = ClosedLoad(concurrency=8)
    runners = [
        Entrant(SLOW, "baseline", load),
        *(Entrant(each, "finalist", load) for each in (FAST, THIRD, FOURTH)[:finalists]),
    ]
    found = 0
    for _ in range(races):
        finishers, _failures = race(runners, stand, on_turn=lambda *_: None)
        found += decide([finisher.contender for finisher in finishers]).improved
    return found / races


@pytest.mark.parametrize(("finalists", "noise"), [(1, 0.01), (1, 0.05), (3, 0.02), (3, 0.05)])
def test_equal_configurations_are_told_apart_in_about_one_of_forty_races_however_often_one_looks(
    finalists: int, noise: float
):
    assert improvements(finalists, noise, gain=0.0, races=400) < 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)


def test_a_gain_of_five_noises_is_found():
    assert improvements(finalists=3, noise=0.02, gain=0.1, races=100) > 0.97


def test_one_that_fails_is_left_out_and_the_others_go_on():
    stand = surface()
    stand.broken[FAST] = Failure(reason="server_crashed", detail="signal 9")
    finishers, failures = race(entrants(), stand, on_turn=lambda *_: None)
    assert [finisher.contender.candidate for finisher in finishers] == [SLOW]
    assert failures == {FAST: stand.broken[FAST]}
    assert [candidate for candidate, _ in stand.measured].count(FAST) == 1


class BreaksInRound(Surface):
    """A machine on which one candidate fails from one of its turns on."""

    def __init__(self, who: Candidate, turn: int):
        super().__init__({SLOW: 100.0, FAST: 104.0}, {SLOW: 2.0, FAST: 2.0})
        self.noise, self.who, self.turn = 0.05, who, turn

    def sample(self, candidate, load, requests):
        turn = 1 + [each for each, _ in self.measured].count(candidate)
        if candidate == self.who and turn == self.turn:
            self.broken[candidate] = Failure(reason="load_timeout", detail="120 s")
        return super().sample(candidate, load, requests)


@pytest.mark.parametrize(("turn", "is_judged"), [(FIRST_LOOK, False), (FIRST_LOOK + 1, True)])
def test_what_is_there_already_keeps_its_rounds_where_it_fails_once_it_can_be_judged(
    turn: int, is_judged: bool
):
    stand = BreaksInRound(SLOW, turn)
    finishers, failures = race(entrants(), stand, on_turn=lambda *_: None)
    assert failures == {SLOW: stand.broken[SLOW]}
    assert [each for each, _ in stand.measured].count(SLOW) == turn + 1  # once more, and never again
    assert finishers[0].contender.role == ("baseline" if is_judged else "finalist")
    verdict = decide([finisher.contender for finisher in finishers])
    assert (verdict.gain is not None) == is_judged
    assert verdict.improved != is_judged  # 4% is within the noise of rounds


def test_a_finalist_that_fails_late_is_out():
    stand = BreaksInRound(FAST, FIRST_LOOK + 1)
    finishers, failures = race(entrants(), stand, on_turn=lambda *_: None)
    assert list(failures) == [FAST]
    assert [finisher.contender.candidate for finisher in finishers] == [SLOW]


def test_a_smaller_load_does_not_mend_what_another_workload_misses():
    assert is_mendable("p99_latency_ms")
    assert is_mendable("ocr/sustained")
    assert not is_mendable("workload 2: p99_latency_ms")
