"""The race: everybody again, interleaved, each at a load that keeps the SLO."""

from __future__ import annotations

from collections import Counter

from tests.tuner.spaces import Surface, small_space
from tritonc.schemas.measurement import ClosedLoad, Failure
from tritonc.tuner.race import ROUNDS, Entrant, race

SPACE = small_space()
SLOW, FAST, THIRD, *_ = SPACE


def entrants(concurrency: int = 8) -> list[Entrant]:
    load = ClosedLoad(concurrency=concurrency)
    return [Entrant(SLOW, "baseline", load), Entrant(FAST, "finalist", load)]


def surface(fast_p99_per_client_ms: float = 2.0) -> Surface:
    return Surface({SLOW: 100.0, FAST: 130.0}, {SLOW: 2.0, FAST: fast_p99_per_client_ms})


def test_everybody_is_measured_once_a_round_forwards_and_backwards():
    stand, turns = surface(), []
    race(entrants(), stand, on_turn=lambda entrant, number: turns.append((entrant.role, number)))
    assert [role for role, _ in turns] == ["baseline", "finalist", "finalist", "baseline"] * (ROUNDS // 2)
    assert Counter(number for _, number in turns) == dict.fromkeys(range(1, ROUNDS + 1), 2)


def test_everybody_gets_a_thousand_requests_at_least():
    finishers, failures = race(entrants(), surface(), on_turn=lambda *_: None)
    assert failures == {}
    assert all(finisher.measurement.requests >= 1000 for finisher in finishers)
    assert [finisher.contender.role for finisher in finishers] == ["baseline", "finalist"]
    assert all(len(finisher.contender.scores) == ROUNDS for finisher in finishers)


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


def test_rounds_are_added_where_noise_hides_a_lead():
    stand, rounds = Surface({SLOW: 100.0, FAST: 99.0}, {SLOW: 2.0, FAST: 2.0}), []
    stand.noise = 0.05
    race(entrants(), stand, on_turn=lambda _entrant, number: rounds.append(number))
    assert max(rounds) > ROUNDS


def test_no_round_is_added_where_nobody_leads():
    stand, rounds = Surface({SLOW: 100.0, FAST: 60.0}, {SLOW: 2.0, FAST: 2.0}), []
    stand.noise = 0.15
    race(entrants(), stand, on_turn=lambda _entrant, number: rounds.append(number))
    assert max(rounds) == ROUNDS


def test_one_that_fails_is_left_out_and_the_others_go_on():
    stand = surface()
    stand.broken[FAST] = Failure(reason="server_crashed", detail="signal 9")
    finishers, failures = race(entrants(), stand, on_turn=lambda *_: None)
    assert [finisher.contender.candidate for finisher in finishers] == [SLOW]
    assert failures == {FAST: stand.broken[FAST]}
    assert [candidate for candidate, _ in stand.measured].count(FAST) == 1
