"""A study from its first trial to its decision, on made-up numbers."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuner.spaces import LIMIT_MS, Surface, capacity, measurement, small_space, throughput_of
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import Digests, Lock
from tritonc.schemas.lock_file import read_lock, write_lock
from tritonc.schemas.measurement import ClosedLoad, EngineInfo, Failure, Hardware, Interval
from tritonc.schemas.spec import Pareto, Slo
from tritonc.tuner import optuna_storage
from tritonc.tuner.capacity import NOTHING_KNOWN, Capacity, Known
from tritonc.tuner.confirm import FIRST_LOOK
from tritonc.tuner.events import (
    MachineChanged,
    NoiseMeasured,
    SearchEnded,
    TrialFinished,
    TrialStarted,
    Warned,
)
from tritonc.tuner.joint_measurement import Together
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.optuna_search import Goal, OptunaSearch
from tritonc.tuner.promise import PATIENCE
from tritonc.tuner.search import CLOSED_LOADS
from tritonc.tuner.statistics import Scatter
from tritonc.tuner.study import (
    Evidence,
    compared_with,
    confirm,
    decision_of,
    entrants,
    search_candidates,
    why_undecided,
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


def run(search: OptunaSearch, surface: Surface, trials: int, **fields) -> list:
    seen: list = []
    options = {"deadline": float("inf"), "observer": seen.append, "log": lambda _: None} | fields
    search_candidates(search, surface, trials=trials, **options)
    return seen


def test_trials_of_earlier_runs_count(surface: Surface, tmp_path: Path):
    storage = tmp_path / "optuna.db"
    assert run(OptunaSearch(SPACE, storage=storage), surface, 5)[-1] == SearchEnded("5 trials are finished")
    seen = run(OptunaSearch(SPACE, storage=storage), surface, 8)
    numbers = [event.trial.number for event in seen if isinstance(event, TrialFinished)]
    assert numbers == [6, 7, 8]


def test_failed_trials_count_and_the_search_goes_on(surface: Surface):
    surface.broken[SPACE.baseline] = CRASH
    search = OptunaSearch(SPACE)
    run(search, surface, 3)
    assert [isinstance(trial.outcome, Failure) for trial in search.trials] == [True, False, False]


@pytest.mark.parametrize("sampler", ["tritonc", "random"])
def test_a_search_whose_trials_all_fail_in_the_same_way_is_given_up(surface: Surface, sampler: str):
    surface.broken = dict.fromkeys(surface.capacities, CRASH)
    search = OptunaSearch(SPACE, sampler=sampler)
    seen = run(search, surface, 50)
    count = len(search.trials)
    assert seen[-1] == SearchEnded(f"all {count} trials failed in the same way")
    assert {trial.candidate.values["accelerator"] for trial in search.trials} == {"none", "openvino"}
    assert 5 <= count <= 12
    assert run(search, surface, 50) == seen[-1:]


def test_a_search_whose_trials_fail_in_different_ways_goes_on(surface: Surface):
    surface.broken = {one: CRASH.model_copy(update={"detail": one.id}) for one in surface.capacities}
    assert run(OptunaSearch(SPACE), surface, 15)[-1] == SearchEnded("15 trials are finished")


def test_a_search_goes_on_where_one_accelerator_does(surface: Surface):
    surface.broken = {one: CRASH for one in surface.capacities if one.values["accelerator"] == "none"}
    assert run(OptunaSearch(SPACE), surface, 15)[-1] == SearchEnded("15 trials are finished")


def test_the_search_ends_where_the_time_is_up(surface: Surface):
    ticks = iter(range(100))
    seen = run(OptunaSearch(SPACE), surface, 50, deadline=9, clock=lambda: next(ticks))
    assert seen[-1] == SearchEnded("the time is up")
    assert sum(isinstance(event, TrialFinished) for event in seen) == 3


def test_the_baseline_is_measured_even_where_there_is_no_time(surface: Surface):
    search = OptunaSearch(SPACE)
    seen = run(search, surface, 50, deadline=0, clock=lambda: 1.0)
    assert seen[-1] == SearchEnded("the time is up")
    assert [trial.candidate for trial in search.trials] == [SPACE.baseline]


def test_the_search_ends_where_every_candidate_was_measured(surface: Surface):
    seen = run(OptunaSearch(SPACE, sampler="random"), surface, 1000)
    assert seen[-1] == SearchEnded(f"all {len(SPACE)} candidates were measured")


def test_the_search_ends_where_all_that_is_left_promises_too_little_and_a_resumed_one_at_once(
    surface: Surface, tmp_path: Path
):
    storage = tmp_path / "optuna.db"
    goal = Goal("throughput", Slo(), loads=CLOSED_LOADS[2:4])  # all that a `Surface` shows
    *_, last = run(OptunaSearch(SPACE, goal=goal, storage=storage), surface, 1000)
    found = re.fullmatch(r"(\d+) trials are finished; all that is left promises .*% together", last.reason)
    assert found
    assert int(found[1]) < len(SPACE)
    assert run(OptunaSearch(SPACE, goal=goal, storage=storage), surface, 1000) == [last]


def test_the_search_of_a_front_ends_after_candidates_that_promise_too_little(surface: Surface):
    goal = Goal(Pareto(pareto=("throughput", "p99_latency_ms")), Slo(), loads=CLOSED_LOADS[2:4])
    search = OptunaSearch(SPACE, goal=goal)
    *_, last = run(search, surface, 1000)
    assert re.fullmatch(
        rf"(\d+) trials are finished; the last {PATIENCE} candidates promised less than .*% each", last.reason
    )
    assert len(search.trials) < len(SPACE)


def test_an_interrupted_trial_does_not_count(surface: Surface):
    def interrupt(_candidate: Candidate, _known: Known):
        raise KeyboardInterrupt

    search = OptunaSearch(SPACE)
    run(search, surface, 2)
    surface.capacity = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(search, surface, 5)
    assert len(search.trials) == 2
    assert search.ask() is not None


def test_an_interruption_is_one_even_where_the_storage_is_locked(
    surface: Surface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(optuna_storage, "_SQLITE_TIMEOUT_S", 0.1)
    storage = tmp_path / "optuna.db"
    with closing(sqlite3.connect(storage, isolation_level=None)) as other:

        def interrupt(_candidate: Candidate, _known: Known):
            other.execute("BEGIN IMMEDIATE")
            raise KeyboardInterrupt

        surface.capacity = interrupt
        with pytest.raises(KeyboardInterrupt):
            run(OptunaSearch(SPACE, storage=storage), surface, 5)
    assert OptunaSearch(SPACE, storage=storage).ask() == SPACE.baseline


def test_every_trial_is_logged_before_it_is_told(surface: Surface):
    order: list = []
    run(OptunaSearch(SPACE), surface, 1, log=lambda _: order.append("log"), observer=order.append)
    assert order[1] == "log"
    assert isinstance(order[2], TrialFinished)


NOISE = NoiseFloor(Scatter(0.02, 7), Scatter(0.02, 7))


def with_noise(surface: Surface) -> None:
    """Makes the baseline's trial measure a noise floor, as that on a server does."""
    plain = surface.capacity

    def capacity_with(candidate: Candidate, known: Known = NOTHING_KNOWN):
        outcome = plain(candidate, known)
        is_baseline = candidate == SPACE.baseline and isinstance(outcome, Capacity)
        return replace(outcome, noise=known.noise or NOISE) if is_baseline else outcome

    surface.capacity = capacity_with


def test_the_noise_floor_of_the_baseline_is_said_once_and_known_to_all_others(surface: Surface):
    with_noise(surface)
    seen = run(OptunaSearch(SPACE), surface, 4)
    assert [type(event) for event in seen[:3]] == [TrialStarted, TrialFinished, NoiseMeasured]
    assert sum(isinstance(event, NoiseMeasured) for event in seen) == 1
    assert [known.noise for known in surface.known] == [None, NOISE, NOISE, NOISE]


def test_a_resumed_study_knows_the_noise_floor(surface: Surface, tmp_path: Path):
    with_noise(surface)
    run(OptunaSearch(SPACE, storage=tmp_path / "optuna.db"), surface, 2)
    seen = run(OptunaSearch(SPACE, storage=tmp_path / "optuna.db"), surface, 3)
    assert surface.known[-1].noise == NOISE
    assert not any(isinstance(event, NoiseMeasured) for event in seen)


def test_a_candidate_is_compared_with_the_best_that_keeps_the_slo_and_begins_where_it_should_end(
    surface: Surface,
):
    surface.capacities[SPACE.baseline] = 1000.0
    load = ClosedLoad(concurrency=5)
    run(OptunaSearch(SPACE), surface, 3, expected=lambda _: load)
    assert [known.first for known in surface.known] == [load] * 3
    assert surface.known[0].incumbent is None
    assert surface.known[2].incumbent.value == 1000.0
    assert surface.known[2].incumbent.low < 1000.0


def test_a_best_candidate_that_misses_a_soft_limit_cuts_nobody_short(surface: Surface):
    plain = surface.capacity
    surface.capacity = lambda one, known: replace(plain(one, known), soft={"p99_latency_ms": 0.1})
    run(OptunaSearch(SPACE), surface, 3)
    assert [known.incumbent for known in surface.known] == [None] * 3


class Clock:
    """Ten seconds pass with every look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


def test_the_baseline_is_looked_at_again_now_and_then(surface: Surface):
    run(OptunaSearch(SPACE), surface, 41, clock=Clock())
    looks = [candidate for candidate, _ in surface.measured]
    assert set(looks) == {SPACE.baseline}
    assert 1 <= len(looks) <= 3  # 400 s of trials; a look takes 10 s


def slower_after(surface: Surface, trials: int, speed: float) -> None:
    """From the given trial on everything is measured at another speed."""
    plain = surface.capacity

    def capacity_of(candidate: Candidate, known: Known = NOTHING_KNOWN):
        if len(surface.known) == trials:
            surface.capacities = {c: value * speed for c, value in surface.capacities.items()}
        return plain(candidate, known)

    surface.capacity = capacity_of


def test_after_a_change_of_the_machine_what_it_may_have_spoilt_is_measured_again(
    surface: Surface, tmp_path: Path
):
    slower_after(surface, 6, 0.8)
    search = OptunaSearch(SPACE, seed=1, storage=tmp_path / "optuna.db")
    logged: list = []
    seen = run(search, surface, 20, clock=Clock(), log=logged.append)
    changed = [event for event in seen if isinstance(event, MachineChanged)]
    assert len(changed) == 1
    assert changed[0].speed == pytest.approx(0.8, rel=0.05)
    assert changed[0].since == 0
    assert changed[0].again[0] == 1
    assert len(search.trials) == 20
    assert [trial.number for trial in search.trials] == list(range(1, 21))
    assert len(logged) == 20 + len(changed[0].again)
    assert surface.changes == 1
    assert sum(known.is_doubted for known in surface.known) == len(changed[0].again)
    for number in changed[0].again:
        trial = search.trials[number - 1]
        assert trial.outcome.objective == pytest.approx(0.8 * throughput_of(trial.candidate))
    reopened = OptunaSearch(SPACE, seed=1, storage=tmp_path / "optuna.db")
    assert reopened.trials == search.trials
    assert surface.measured[0][0] == SPACE.baseline


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_led_on_the_machine_as_it_was_is_not_raced_for_what_it_could_do_then(
    surface: Surface, seed: int
):
    slower_after(surface, 10, 0.7)
    search = OptunaSearch(SPACE, seed=seed)
    seen = run(search, surface, 45, clock=Clock())
    assert any(isinstance(event, MachineChanged) for event in seen)
    leader = search.ranked()[0]
    assert leader.outcome.objective == pytest.approx(0.7 * throughput_of(leader.candidate))
    best = max(throughput_of(trial.candidate) for trial in search.trials)
    assert max(throughput_of(each.candidate) for each in entrants(search, None, None)) == best
    of_baseline = [
        known.incumbent
        for known, one in zip(surface.known, surface.asked, strict=True)
        if one == SPACE.baseline
    ]
    assert of_baseline == [None, None]


def test_one_odd_look_at_the_baseline_is_not_believed(surface: Surface):
    plain, looks = surface.sample, []

    def odd(candidate: Candidate, load, requests: int):
        made = plain(candidate, load, requests)
        looks.append(made)
        factor = 0.5 if len(looks) == 1 else 1.0
        return made.model_copy(update={"throughput": Interval(value=factor * made.throughput.value)})

    surface.sample = odd
    seen = run(OptunaSearch(SPACE), surface, 20, clock=Clock())
    assert len(looks) >= 2
    assert not any(isinstance(event, MachineChanged) for event in seen)


def test_an_interrupted_second_measurement_leaves_the_first(surface: Surface, tmp_path: Path):
    slower_after(surface, 6, 0.8)
    plain = surface.capacity

    def interrupted(candidate: Candidate, known: Known = NOTHING_KNOWN):
        if candidate in [trial.candidate for trial in search.trials]:
            raise KeyboardInterrupt
        return plain(candidate, known)

    surface.capacity = interrupted
    search = OptunaSearch(SPACE, seed=1, storage=tmp_path / "optuna.db")
    with pytest.raises(KeyboardInterrupt):
        run(search, surface, 30, clock=Clock())
    assert len(search.trials) >= 6
    reopened = OptunaSearch(SPACE, seed=1, storage=tmp_path / "optuna.db")
    assert reopened.trials == search.trials


def test_a_baseline_that_cannot_be_looked_at_again_is_warned_about(surface: Surface):
    search = OptunaSearch(SPACE)
    clock = Clock()
    run(search, surface, 10, clock=clock)
    surface.broken[SPACE.baseline] = CRASH
    seen = run(search, surface, 30, clock=clock)
    warned = [event.text for event in seen if isinstance(event, Warned)]
    assert warned[0] == "the baseline could not be looked at again: server_crashed: signal 9"
    assert len(search.trials) == 30


def test_the_few_best_come_to_the_race_with_the_baseline(surface: Surface):
    search = OptunaSearch(SPACE, seed=1)
    run(search, surface, 40)
    runners = entrants(search, None, None)
    assert (runners[0].candidate, runners[0].role) == (SPACE.baseline, "baseline")
    assert [runner.role for runner in runners[1:]] == ["finalist"] * (len(runners) - 1)
    assert 2 <= len(runners) <= 4
    assert runners[1].candidate == search.standings()[0].candidate
    assert search.best().candidate in [runner.candidate for runner in runners]


def test_the_previous_choice_comes_too_once():
    search = OptunaSearch(SPACE)
    search.tell(search.ask(), capacity(100.0))
    previous = search.ask()
    search.tell(previous, capacity(130.0))
    runners = entrants(search, previous, None)
    assert [runner.role for runner in runners] == ["baseline", "previous"]
    unmeasured = next(c for c in SPACE if c not in (previous, SPACE.baseline))
    load = ClosedLoad(concurrency=3)
    assert entrants(search, unmeasured, load)[1].load == load


def test_weighted_objectives_are_relative_to_the_baseline_or_where_it_failed_to_the_first_measured():
    search = OptunaSearch(SPACE)
    assert compared_with(search) is None
    for outcome in (CRASH, capacity(80.0), capacity(120.0)):
        search.tell(search.ask(), outcome)
    assert compared_with(search) == capacity(80.0).measurement
    other = OptunaSearch(SPACE)
    for throughput in (100.0, 120.0):
        other.tell(other.ask(), capacity(throughput))
    assert compared_with(other) == capacity(100.0).measurement


@pytest.mark.parametrize("sampler", ["tritonc", "tpe"])
def test_where_nothing_keeps_the_slo_the_least_violating_comes_to_the_race(sampler: str):
    search = OptunaSearch(SPACE, sampler=sampler, goal=Goal("throughput", Slo(p99_latency_ms=20)))
    for violation in (0.5, 0.1, 0.3):
        missed = capacity(100.0, violation)
        search.tell(search.ask(), replace(missed, steps=(missed.measurement,)))
    runners = entrants(search, None, None)
    assert [runner.candidate for runner in runners] == [SPACE.baseline, search.best().candidate]


def test_a_decision_names_the_winner_what_it_beat_and_the_evidence(surface: Surface):
    search = OptunaSearch(SPACE, seed=1)
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


def test_where_samples_say_their_own_error_it_helps_to_say_what_counts_as_noise(surface: Surface):
    """Baseline and one finalist: with three rounds of both two degrees of freedom are left."""
    search, (baseline, better) = told(({}, 100.0), ({"instance_count": 4}, 250.0))
    surface.capacities[baseline], surface.capacities[better] = 100.0, 250.0

    def noise() -> float:
        surface.rng.seed(5)
        return confirm(entrants(search, None, None), surface, lambda _: None).verdict.noise

    assert noise() > 0.08
    surface.error_said = 0.01
    assert noise() < 0.05


def test_a_failed_baseline_is_said_in_the_decision(surface: Surface):
    surface.broken[SPACE.baseline] = CRASH
    search = OptunaSearch(SPACE, seed=1)
    run(search, surface, 20)
    outcome = confirm(entrants(search, None, None), surface, lambda _: None)
    decision = decision_of(search, outcome, EVIDENCE)
    assert decision.baseline is None
    assert decision.baseline_failure == CRASH
    assert decision.failed_trials == 1


def test_a_contender_that_fails_in_the_race_is_warned_about(surface: Surface):
    search = OptunaSearch(SPACE, seed=1)
    run(search, surface, 20)
    best = search.best().candidate
    surface.broken[best] = CRASH
    seen: list = []
    outcome = confirm(entrants(search, None, None), surface, seen.append)
    assert outcome.verdict.chosen.candidate != best
    warned = [event.text for event in seen if isinstance(event, Warned)]
    assert warned == [f"{best.id} could not be measured again: server_crashed: signal 9"]


def test_a_baseline_that_fails_late_is_warned_about_and_judged_by_what_it_did(surface: Surface):
    search, (baseline, other) = told(({}, 100.0), ({"instance_count": 4}, 110.0))
    surface.capacities[baseline], surface.capacities[other] = 100.0, 104.0
    surface.noise = 0.05
    plain, turns = surface.sample, []

    def sample(candidate: Candidate, *of):
        turns.append(candidate)
        if turns.count(baseline) > FIRST_LOOK:
            surface.broken[baseline] = CRASH
        return plain(candidate, *of)

    surface.sample = sample
    seen: list = []
    outcome = confirm(entrants(search, None, None), surface, seen.append)
    warned = next(event.text for event in seen if isinstance(event, Warned))
    assert warned == (
        f"{baseline.id} failed in a later round (server_crashed: signal 9); the rounds before count"
    )
    decision = decision_of(search, outcome, EVIDENCE)
    assert (decision.baseline_failure, decision.improved) == (None, False)


def test_there_is_no_verdict_where_nothing_could_be_measured(surface: Surface):
    search = OptunaSearch(SPACE)
    search.tell(search.ask(), CRASH)
    outcome = confirm(entrants(search, None, None), surface, lambda _: None)
    assert outcome.verdict is None
    assert why_undecided(search, outcome) == (
        "nothing could be measured; server_crashed: signal 9; once that is mended, begin anew: "
        "tritonc tune --fresh"
    )


def test_where_nothing_could_be_confirmed_its_own_fault_is_named_and_what_was_measured_is_kept(
    surface: Surface,
):
    search = OptunaSearch(SPACE, seed=1)
    surface.broken[next(each for each in SPACE if each != SPACE.baseline)] = Failure(
        reason="load_failed", detail="no such accelerator"
    )
    run(search, surface, 20)
    surface.broken = dict.fromkeys(SPACE, CRASH)
    outcome = confirm(entrants(search, None, None), surface, lambda _: None)
    assert outcome.verdict is None
    measured = sum(trial.capacity is not None for trial in search.trials)
    assert why_undecided(search, outcome) == (
        f"nothing could be confirmed; server_crashed: signal 9; {measured} measured trials are kept: once "
        "that is mended, run tritonc tune again"
    )


def told(*outcomes: tuple[dict, float]) -> tuple[OptunaSearch, list[Candidate]]:
    """A search whose first trials were told these throughputs, for candidates with these knobs."""
    search, candidates = OptunaSearch(SPACE), []
    asked = {}
    while (candidate := search.ask()) is not None:
        asked[candidate] = None
    for knobs, throughput in outcomes:
        wanted = SPACE.baseline.values | knobs
        wanted = {knob: value for knob, value in wanted.items() if value is not None}
        candidate = Candidate.of("mlp", "cpu", wanted)
        assert candidate in asked
        candidates.append(candidate)
        search.tell(candidate, capacity(throughput))
    return search, candidates


UNBATCHED = {"dynamic_batching": False, "max_queue_delay_microseconds": None, "preferred_batch_size": None}


def test_of_candidates_that_behave_alike_one_comes_to_the_race():
    search, candidates = told(
        ({}, 100.0),
        (UNBATCHED | {"max_batch_size": 4}, 110.0),
        (UNBATCHED | {"max_batch_size": 2}, 111.0),
        ({"max_batch_size": 4}, 109.0),
    )
    assert [runner.candidate for runner in entrants(search, None, None)] == [
        SPACE.baseline,
        candidates[2],
        candidates[3],
    ]


def test_nobody_comes_to_the_race_who_behaves_like_the_baseline_or_whom_noise_cannot_explain():
    search, candidates = told(({}, 100.0), ({"instance_count": 4}, 110.0), ({"instance_count": 1}, 106.0))
    assert [runner.candidate for runner in entrants(search, None, None)] == [SPACE.baseline, candidates[1]]


def test_entrants_know_what_was_measured_of_them():
    search, _ = told(({}, 100.0), ({"instance_count": 4}, 110.0))
    assert [runner.known for runner in entrants(search, None, None)] == [
        capacity(100.0).measurement,
        capacity(110.0).measurement,
    ]


def test_where_the_baseline_stays_what_the_finalists_reached_is_said(surface: Surface):
    search, (baseline, other) = told(({}, 100.0), ({"instance_count": 4}, 110.0))
    surface.capacities[baseline] = surface.capacities[other] = 100.0
    seen: list = []
    outcome = confirm(entrants(search, None, None), surface, seen.append)
    assert outcome.verdict.chosen.candidate == baseline
    (said,) = [event.text for event in seen if isinstance(event, Warned)]
    assert said.startswith(f"note: finalist {other.id} confirmed: ")
    assert " inferences/s, p99 " in said
    assert said.endswith(f"to that of {baseline.id}, which stays")


def test_what_finalists_reached_together_is_said_of_each_model(surface: Surface, monkeypatch):
    search, (baseline, other) = told(({}, 100.0), ({"instance_count": 4}, 110.0))
    surface.capacities[baseline] = surface.capacities[other] = 1.0
    alone, pooled = measurement(240.0), surface.pooled
    both = {"a": alone, "b": alone}
    monkeypatch.setattr(surface, "pooled", lambda seen: Together(**dict(pooled(seen)), members=both))
    seen: list = []
    confirm(entrants(search, None, None), surface, seen.append)
    (said,) = [event.text for event in seen if isinstance(event, Warned)]
    assert "confirmed: a 240 inferences/s, p99 20 ms; b 240 inferences/s, p99 20 ms; SLO met;" in said


FRONT = Goal(Pareto(pareto=("throughput", "p99_latency_ms")), Slo(p99_latency_ms=LIMIT_MS))


def front_study() -> tuple[OptunaSearch, Surface]:
    """A study in which the faster a candidate, the longer its p99: everybody is on the front."""
    throughputs = {candidate: throughput_of(candidate) for candidate in SPACE}
    surface = Surface(throughputs, {c: value / 10 / 8 for c, value in throughputs.items()})

    def capacity_of(candidate: Candidate, _known: Known = NOTHING_KNOWN) -> Capacity:
        throughput = throughputs[candidate]
        return replace(capacity(throughput), measurement=measurement(throughput, throughput / 10))

    surface.capacity = capacity_of
    search = OptunaSearch(SPACE, seed=1, goal=FRONT, sampler="random")
    run(search, surface, 30)
    return search, surface


def test_the_front_is_measured_again_and_its_knee_is_chosen(tmp_path: Path):
    search, surface = front_study()
    runners = entrants(search, None, None)
    assert [runner.role for runner in runners] == ["baseline"] + ["finalist"] * 6
    outcome = confirm(runners, surface, lambda _: None, search.goal)
    assert len(surface.measured) == 7 * FIRST_LOOK
    throughputs = [member.measurement.throughput.value for member in outcome.front]
    assert len(throughputs) >= 5
    assert throughputs == sorted(throughputs, reverse=True)
    assert outcome.verdict.chosen not in (outcome.front[0].contender, outcome.front[-1].contender)
    decision = decision_of(search, outcome, EVIDENCE)
    assert (decision.choice, decision.slo_met) == ("knee", True)
    assert decision.chosen in decision.front
    lock = Lock(spec="test", decisions=(decision,))
    write_lock(tmp_path / "spec.lock.yaml", lock)
    held = read_lock(tmp_path / "spec.lock.yaml").decisions[0]
    assert [each.configuration for each in held.front] == [each.configuration for each in decision.front]


def test_what_a_person_picked_stays_as_long_as_it_is_on_the_front():
    search, surface = front_study()
    runners = entrants(search, None, None)
    fastest = max((runner.candidate for runner in runners), key=throughput_of)
    outcome = confirm(runners, surface, lambda _: None, search.goal, picked=fastest)
    assert (outcome.verdict.chosen.candidate, outcome.choice) == (fastest, "picked")
    gone = next(c for c in SPACE if c not in [runner.candidate for runner in runners])
    assert confirm(runners, surface, lambda _: None, search.goal, picked=gone).choice == "knee"


def test_where_nothing_keeps_the_slo_there_is_no_front():
    search, surface = front_study()
    surface.p99_per_client_ms = dict.fromkeys(SPACE, 1000.0)
    outcome = confirm(entrants(search, None, None), surface, lambda _: None, search.goal)
    assert (outcome.front, outcome.choice) == ((), None)
    assert not outcome.verdict.chosen.slo_met


def test_limits_that_are_missed_are_in_the_decision(surface: Surface):
    surface.soft_limit_ms = 8.0
    search = OptunaSearch(SPACE, seed=1)
    run(search, surface, 10)
    decision = decision_of(search, confirm(entrants(search, None, None), surface, lambda _: None), EVIDENCE)
    assert decision.slo_met
    assert decision.chosen.missed == {}
    assert decision.chosen.missed_soft["p99_latency_ms"] > 0
