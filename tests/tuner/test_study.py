"""A study from its first trial to its decision, on made-up numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuner.spaces import Surface, capacity, small_space, throughput_of
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import Digests
from tritonc.schemas.measurement import ClosedLoad, EngineInfo, Failure, Hardware
from tritonc.tuner.events import SearchEnded, TrialFinished, Warned
from tritonc.tuner.search import Search
from tritonc.tuner.study import (
    Evidence,
    compared_with,
    confirm,
    decision_of,
    entrants,
    search_candidates,
)

SPACE = small_space()
CRASH = Failure(reason="server_crashed", detail="signal 9")
EVIDENCE = Evidence(
    digests=Digests(source="s", signature="i", space="p", load="l"),
    engine=EngineInfo(
        name="embedded", triton="2.51.0", release="24.10", load_generator="perf_analyzer 2.43.0"
    ),
    hardware=Hardware(cpu="CPU", cores=2, memory_bytes=2**30),
    commit=None,
    mlflow_run=None,
    caveats=(),
    measured_at="2026-01-01T00:00:00+00:00",
)


@pytest.fixture
def surface() -> Surface:
    everything = list(SPACE)
    return Surface({c: throughput_of(c) for c in everything}, dict.fromkeys(everything, 2.0))


def run(search: Search, surface: Surface, trials: int, **fields) -> list:
    seen: list = []
    options = {"deadline": float("inf"), "observer": seen.append, "log": lambda _: None} | fields
    search_candidates(search, surface, trials=trials, **options)
    return seen


def test_trials_of_earlier_runs_count(surface: Surface, tmp_path: Path):
    storage = tmp_path / "optuna.db"
    assert run(Search(SPACE, storage=storage), surface, 5)[-1] == SearchEnded("5 trials are finished")
    seen = run(Search(SPACE, storage=storage), surface, 8)
    numbers = [event.trial.number for event in seen if isinstance(event, TrialFinished)]
    assert numbers == [6, 7, 8]


def test_failed_trials_count_and_the_search_goes_on(surface: Surface):
    surface.broken[SPACE.baseline] = CRASH
    search = Search(SPACE)
    run(search, surface, 3)
    assert [isinstance(trial.outcome, Failure) for trial in search.trials] == [True, False, False]


def test_the_search_ends_where_the_time_is_up(surface: Surface):
    ticks = iter(range(100))
    seen = run(Search(SPACE), surface, 50, deadline=9, clock=lambda: next(ticks))
    assert seen[-1] == SearchEnded("the time is up")
    assert sum(isinstance(event, TrialFinished) for event in seen) == 3


def test_the_baseline_is_measured_even_where_there_is_no_time(surface: Surface):
    search = Search(SPACE)
    seen = run(search, surface, 50, deadline=0, clock=lambda: 1.0)
    assert seen[-1] == SearchEnded("the time is up")
    assert [trial.candidate for trial in search.trials] == [SPACE.baseline]


def test_the_search_ends_where_every_candidate_was_measured(surface: Surface):
    seen = run(Search(SPACE), surface, 1000)
    assert seen[-1] == SearchEnded(f"all {len(SPACE)} candidates were measured")


def test_an_interrupted_trial_does_not_count(surface: Surface):
    def interrupt(_candidate: Candidate):
        raise KeyboardInterrupt

    search = Search(SPACE)
    run(search, surface, 2)
    surface.capacity = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(search, surface, 5)
    assert len(search.trials) == 2
    assert search.ask() is not None


def test_every_trial_is_logged_before_it_is_told(surface: Surface):
    order: list = []
    run(Search(SPACE), surface, 1, log=lambda _: order.append("log"), observer=order.append)
    assert order[1] == "log"
    assert isinstance(order[2], TrialFinished)


def test_the_few_best_come_to_the_race_with_the_baseline(surface: Surface):
    search = Search(SPACE, seed=1)
    run(search, surface, 40)
    runners = entrants(search, None, None)
    assert (runners[0].candidate, runners[0].role) == (SPACE.baseline, "baseline")
    assert [runner.role for runner in runners[1:]] == ["finalist"] * (len(runners) - 1)
    assert 2 <= len(runners) <= 4
    assert runners[1].candidate == search.best().candidate


def test_the_previous_choice_comes_too_once():
    search = Search(SPACE)
    search.tell(search.ask(), capacity(100.0))
    previous = search.ask()
    search.tell(previous, capacity(130.0))
    runners = entrants(search, previous, None)
    assert [runner.role for runner in runners] == ["baseline", "previous"]
    unmeasured = next(c for c in SPACE if c not in (previous, SPACE.baseline))
    load = ClosedLoad(concurrency=3)
    assert entrants(search, unmeasured, load)[1].load == load


def test_weighted_objectives_are_relative_to_the_baseline_or_where_it_failed_to_the_first_measured():
    search = Search(SPACE)
    assert compared_with(search) is None
    for outcome in (CRASH, capacity(80.0), capacity(120.0)):
        search.tell(search.ask(), outcome)
    assert compared_with(search) == capacity(80.0).measurement
    other = Search(SPACE)
    for throughput in (100.0, 120.0):
        other.tell(other.ask(), capacity(throughput))
    assert compared_with(other) == capacity(100.0).measurement


def test_where_nothing_keeps_the_slo_the_least_violating_comes_to_the_race():
    search = Search(SPACE)
    for violation in (0.5, 0.1, 0.3):
        search.tell(search.ask(), capacity(100.0, violation))
    runners = entrants(search, None, None)
    assert [runner.candidate for runner in runners] == [SPACE.baseline, search.best().candidate]


def test_a_decision_names_the_winner_what_it_beat_and_the_evidence(surface: Surface):
    search = Search(SPACE, seed=1)
    run(search, surface, 40)
    outcome = confirm(entrants(search, None, None), surface, lambda _: None)
    decision = decision_of(search, outcome, replace(EVIDENCE, caveats=("Careful.",)))
    assert decision.improved
    assert decision.slo_met
    assert decision.baseline.configuration.id == SPACE.baseline.id
    assert decision.chosen.measurement.requests >= 1000
    assert decision.gain > 0.2
    assert decision.noise < 0.1
    assert (decision.trials, decision.candidates, decision.caveats) == (40, len(SPACE), ("Careful.",))


def test_a_failed_baseline_is_said_in_the_decision(surface: Surface):
    surface.broken[SPACE.baseline] = CRASH
    search = Search(SPACE, seed=1)
    run(search, surface, 20)
    outcome = confirm(entrants(search, None, None), surface, lambda _: None)
    decision = decision_of(search, outcome, EVIDENCE)
    assert decision.baseline is None
    assert decision.baseline_failure == CRASH
    assert decision.failed_trials == 1


def test_a_contender_that_fails_in_the_race_is_warned_about(surface: Surface):
    search = Search(SPACE, seed=1)
    run(search, surface, 20)
    best = search.best().candidate
    surface.broken[best] = CRASH
    seen: list = []
    outcome = confirm(entrants(search, None, None), surface, seen.append)
    assert outcome.verdict.chosen.candidate != best
    warned = [event.text for event in seen if isinstance(event, Warned)]
    assert warned == [f"{best.id} could not be measured again: server_crashed: signal 9"]


def test_there_is_no_verdict_where_nothing_could_be_measured(surface: Surface):
    search = Search(SPACE)
    search.tell(search.ask(), CRASH)
    outcome = confirm(entrants(search, None, None), surface, lambda _: None)
    assert outcome.verdict is None
