"""One (model, target): the search, the race of its finalists, and the decision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import Configuration, Decision, Digests, Result
from tritonc.schemas.measurement import EngineInfo, Failure, Hardware, Interval, Load, Measurement
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.categories import Category, categories_of
from tritonc.tuner.confirm import LAST_LOOK, MATTERS, Comparison, Role, Verdict, decide
from tritonc.tuner.events import Confirming, Observer, SearchEnded, TrialStarted, Warned
from tritonc.tuner.front import MEMBERS, Choice, choose, front_of, trials_on_front
from tritonc.tuner.further_workloads import first_of, further_in
from tritonc.tuner.joint_measurement import members_in
from tritonc.tuner.objective import axes_of, missed, weights_of
from tritonc.tuner.optuna_search import ANY_THROUGHPUT, Goal, OptunaSearch
from tritonc.tuner.promise import PATIENCE
from tritonc.tuner.race import Entrant, Finisher, Measuring, Sample, race
from tritonc.tuner.serving import behaviour
from tritonc.tuner.session import Session
from tritonc.tuner.trial import Trial

_Seen = tuple[Candidate, Measurement]

FINALISTS = 3
_VAIN = 5
"""Trials that failed with the same words after which a search is given up: fewer may be bad luck."""
_NEAR = 0.10
"""Share of the best objective within which a candidate can be a finalist: single measurements of one differ
by 3 to 8% at the 90th percentile (docs/search.md, fact 5)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a decision records beside the numbers."""

    digests: Digests
    engine: EngineInfo
    hardware: Hardware
    commit: str | None
    mlflow_run: str | None
    caveats: tuple[str, ...]
    measured_at: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a race led to.

    Attributes:
        verdict: None where no contender could be measured.
        failures: contenders that could not be measured again, or not to the end, and why.
        front: those that no other one beats in all objectives, where there are several.
        choice: how the verdict was taken from the front.
    """

    verdict: Verdict | None
    finishers: tuple[Finisher, ...]
    failures: Mapping[Candidate, Failure]
    front: tuple[Finisher, ...] = ()
    choice: Choice | None = None


def search_candidates(
    search: OptunaSearch,
    measuring: Measuring[Sample],
    *,
    trials: int,
    deadline: float,
    observer: Observer,
    log: Callable[[Trial], None],
    clock: Callable[[], float] = time.monotonic,
    expected: Callable[[Candidate], Load | None] = lambda _candidate: None,
) -> None:
    """Measures candidates until `trials` are finished, the time is up, or none is left.

    Args:
        search: says which.
        measuring: measures them.
        observer: told what happens.
        trials: finished trials to have in the end, those of earlier runs included.
        deadline: on `clock`; a trial that runs then is finished first, and the baseline, which every decision
            compares with, is measured in any case.
        log: told every finished trial, while no load runs.
        clock: seconds that only grow.
        expected: the load at which a candidate's limits should end, where there is a guess.
    """
    session = Session(search, measuring, observer, log, clock, expected)
    while True:
        if search.doubted and clock() < deadline:
            session.look_at_reference(deadline)
        if len(search.trials) >= trials:
            return observer(SearchEnded(f"{len(search.trials)} trials are finished"))
        if clock() >= deadline and search.trials:
            return observer(SearchEnded("the time is up"))
        if search.is_over:
            return observer(SearchEnded(_why_nothing_is_left(search)))
        if _is_vain(search):
            return observer(SearchEnded(f"all {len(search.trials)} trials failed in the same way"))
        session.look_at_reference(deadline)
        if search.doubted:
            continue  # there was no time to measure all again
        candidate = search.ask()
        if candidate is None:
            return observer(SearchEnded(_why_nothing_is_left(search)))
        number = search.number_of(candidate)
        observer(TrialStarted(number, candidate))
        if number <= len(search.trials):
            observer(Warned(f"note: trial {number} is measured again: others contradict it"))
        session.trial(candidate)


def _is_vain(search: OptunaSearch) -> bool:
    """Whether all trials failed in the same way, whatever knob has a name: the model or the machine did."""
    failures = [trial.outcome for trial in search.trials if isinstance(trial.outcome, Failure)]
    if len(failures) < max(_VAIN, len(search.trials)) or len(set(failures)) > 1:
        return False
    tried = set[Category]().union(*(categories_of(trial.candidate) for trial in search.trials))
    named: set[Category] = {
        (dimension.knob, choice.value)
        for dimension in search.space.dimensions
        for choice in dimension.choices
        if isinstance(choice.value, str)
    }
    return named <= tried


def _why_nothing_is_left(search: OptunaSearch) -> str:
    if not search.is_over:
        return f"all {len(search.space)} candidates were measured"
    finished = f"{len(search.trials)} trials are finished"
    if (least := search.spent) is not None:
        return f"{finished}; all that is left promises less than {least:.1%} together"
    return f"{finished}; the last {PATIENCE} candidates promised less than {search.least_promise:.1%} each"


def compared_with(search: OptunaSearch) -> Measurement | None:
    """What weighted objectives are relative to: the baseline, else the first candidate that was measured.

    None before either was: the one that is measured then has the objective 0, as have its equals.
    """
    baseline = search.outcome(search.space.baseline)
    measured = (trial.capacity for trial in search.trials if trial.capacity is not None)
    first = baseline if isinstance(baseline, Capacity) else next(measured, None)
    return first.measurement if first else None


def entrants(
    search: OptunaSearch, previous: Candidate | None, previous_load: Load | None
) -> tuple[Entrant, ...]:
    """Who is measured again: baseline, previous choice and finalists, each at a load that decided about it.

    Finalists keep the SLO and come so near the best that does that noise may have hidden the better one; of
    those that behave alike the best. For a front those on it are finalists. Where none keeps the SLO, the
    least violating one is measured again.
    """
    chosen: dict[Candidate, Entrant] = {}

    def enter(candidate: Candidate, role: Role, seen: Measurement | None, load: Load | None = None) -> None:
        load = seen.load if seen else load
        if load is not None:
            chosen.setdefault(candidate, Entrant(candidate, role, load, seen))

    enter(search.space.baseline, "baseline", _carried(search.outcome(search.space.baseline)))
    if previous is not None:
        enter(previous, "previous", _carried(search.outcome(previous)), previous_load)
    alike = [behaviour(candidate) for candidate in chosen]
    is_front = bool(axes_of(search.goal.objective))
    for candidate, seen in _on_front(search) if is_front else _near_the_best(search):
        if behaviour(candidate) not in alike:
            alike.append(behaviour(candidate))
            enter(candidate, "finalist", seen)
    standing = [entrant for entrant in chosen.values() if entrant.role != "finalist"]
    finalists = [entrant for entrant in chosen.values() if entrant.role == "finalist"]
    return (*standing, *finalists[: MEMBERS if is_front else FINALISTS])


def _on_front(search: OptunaSearch) -> Sequence[_Seen]:
    """Candidates on the front with what they carried; the least violating one where none keeps the SLO."""
    ranked = search.ranked()
    able = [trial for trial in ranked if trial.capacity is not None and trial.capacity.slo_met]
    wanted = trials_on_front(able, search.goal) if able else ranked[:1]
    return [(trial.candidate, trial.capacity.measurement) for trial in wanted if trial.capacity]


def _near_the_best(search: OptunaSearch) -> Sequence[_Seen]:
    """Candidates that may be as good as the best one; the least violating one where none keeps the SLO."""
    able = [each for each in search.standings() if each.slo_met]
    if not able:
        return [(each.candidate, each.capacity.measurement) for each in search.ranked()[:1] if each.capacity]
    best = able[0]
    is_throughput = list(weights_of(search.goal.objective)) == ["throughput"]
    return [
        (each.candidate, each.measurement)
        for each in able
        if each.objective >= best.objective
        or math.expm1(best.objective - each.objective)
        <= (_noise(best.measurement.throughput, each.measurement.throughput) if is_throughput else _NEAR)
    ]


def _noise(one: Interval, other: Interval) -> float:
    """The share by which two single measurements may differ and mean nothing."""
    widths = [1 - each.low / each.value for each in (one, other) if each.low]
    return min(_NEAR, max(MATTERS, math.hypot(*widths))) if len(widths) == 2 else _NEAR


def _carried(outcome: Capacity | Failure | None) -> Measurement | None:
    return outcome.measurement if isinstance(outcome, Capacity) else None


def confirm(
    runners: Sequence[Entrant],
    measuring: Measuring[Sample],
    observer: Observer,
    goal: Goal = ANY_THROUGHPUT,
    picked: Candidate | None = None,
) -> Outcome:
    """Races the entrants and decides.

    Args:
        runners: see `entrants`.
        measuring: measures them.
        observer: told what happens.
        goal: of the study.
        picked: what a person picked from the front that the lock held before.
    """
    is_front = bool(axes_of(goal.objective))

    def on_turn(entrant: Entrant, number: int) -> None:
        observer(Confirming(entrant.candidate, entrant.role, number, LAST_LOOK))

    finishers, failures = race(runners, measuring, on_turn=on_turn, is_front=is_front)
    judged = {finisher.contender.candidate for finisher in finishers}
    for candidate, failure in failures.items():
        why = f"{failure.reason}: {failure.detail}"
        if candidate in judged:
            observer(Warned(f"{candidate.id} failed in a later round ({why}); the rounds before count"))
        else:
            observer(Warned(f"{candidate.id} could not be measured again: {why}"))
    if is_front and (front := front_of(finishers, goal)):
        chosen, choice = choose(front, finishers, goal, picked)
        return Outcome(chosen, finishers, failures, front, choice)
    verdict = decide([finisher.contender for finisher in finishers]) if finishers else None
    if verdict is not None and verdict.chosen.role != "finalist":
        for line in _not_chosen(verdict, finishers):
            observer(Warned(line))
    return Outcome(verdict, finishers, failures)


def why_undecided(search: OptunaSearch, outcome: Outcome) -> str:
    """Why there is no verdict, and what to do: nothing was ever measured, or nothing could be confirmed."""
    again = [f"{failure.reason}: {failure.detail}" for failure in outcome.failures.values()]
    measured = sum(trial.capacity is not None for trial in search.trials)
    if measured:
        why = again[0] if again else "no contender is left"
        kept = f"{measured} measured trials are kept" if measured > 1 else "the one measured trial is kept"
        return f"nothing could be confirmed; {why}; {kept}: once that is mended, run tritonc tune again"
    failed = [trial.outcome for trial in search.trials if isinstance(trial.outcome, Failure)]
    whys = [*again, *(f"{each.reason}: {each.detail}" for each in failed), "no trial was run"]
    return f"nothing could be measured; {whys[0]}; once that is mended, begin anew: tritonc tune --fresh"


def _not_chosen(verdict: Verdict, finishers: Sequence[Finisher]) -> Iterator[str]:
    """What each finalist reached where none was chosen, a line each: the lock has no place for it."""
    seen = Comparison([finisher.contender for finisher in finishers])
    for finisher in finishers:
        contender, members = finisher.contender, members_in(finisher.measurement)
        if contender.role == "finalist":
            lead = math.expm1(seen.lead(contender, verdict.chosen))
            of_each = "; ".join(f"{model} {_reached(each)}" for model, each in members.items())
            yield (
                f"note: finalist {contender.candidate.id} confirmed: "
                f"{of_each or _reached(finisher.measurement)}; "
                f"SLO {'met' if contender.slo_met else 'missed'}; "
                f"objective {lead:+.1%} to that of {verdict.chosen.candidate.id}, which stays"
            )


def _reached(measured: Measurement) -> str:
    p99 = f", p99 {measured.latency_ms['p99'].value:.4g} ms" if "p99" in measured.latency_ms else ""
    return f"{measured.throughput.value:.4g} inferences/s{p99}"


def decision_of(search: OptunaSearch, outcome: Outcome, evidence: Evidence) -> Decision:
    """The decision as the lock holds it. There must be a verdict."""
    verdict = outcome.verdict
    assert verdict is not None
    by_role = {f.contender.role: _result(f) for f in outcome.finishers}
    by_candidate = {f.contender.candidate: _result(f) for f in outcome.finishers}
    previous = by_role.get("previous")
    return Decision(
        model=search.space.model,
        target=search.space.target,
        chosen=by_candidate[verdict.chosen.candidate],
        baseline=by_role.get("baseline"),
        baseline_failure=baseline_failure(search, outcome),
        front=tuple(_result(member) for member in outcome.front),
        choice=outcome.choice,
        previous=previous,
        slo_met=verdict.chosen.slo_met,
        improved=verdict.improved,
        gain=verdict.gain,
        noise=verdict.noise,
        trials=len(search.trials),
        failed_trials=sum(isinstance(trial.outcome, Failure) for trial in search.trials),
        candidates=len(search.space),
        seed=search.seed,
        engine=evidence.engine,
        hardware=evidence.hardware,
        digests=evidence.digests,
        measured_at=evidence.measured_at,
        commit=evidence.commit,
        mlflow_run=evidence.mlflow_run,
        caveats=evidence.caveats,
    )


def baseline_failure(search: OptunaSearch, outcome: Outcome) -> Failure | None:
    """Why the baseline has no result in the decision; None where it has one."""
    if any(finisher.contender.role == "baseline" for finisher in outcome.finishers):
        return None
    baseline = search.space.baseline
    failed = outcome.failures.get(baseline) or search.outcome(baseline)
    return failed if isinstance(failed, Failure) else None


def _result(finisher: Finisher) -> Result:
    candidate = finisher.contender.candidate
    return Result(
        configuration=Configuration(id=candidate.id, knobs=candidate.values),
        measurement=first_of(finisher.measurement),
        slo_met=finisher.contender.slo_met,
        objective=finisher.objective,
        missed=missed(finisher.violations),
        missed_soft=missed(finisher.soft),
        further=further_in(finisher.measurement),
    )
