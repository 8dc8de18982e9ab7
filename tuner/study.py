"""One (model, target): the search, the race of its finalists, and the decision."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import Configuration, Decision, Digests, Result
from tritonc.schemas.measurement import EngineInfo, Failure, Hardware, Load, Measurement
from tritonc.tuner.confirm import Role, Verdict, decide
from tritonc.tuner.events import Confirming, Observer, SearchEnded, TrialFinished, TrialStarted, Warned
from tritonc.tuner.measure import Capacity
from tritonc.tuner.race import ROUNDS, Entrant, Finisher, Measuring, Sample, race
from tritonc.tuner.search import Search, Trial

FINALISTS = 3
_NEAR = 0.10
"""Share of the best objective within which a candidate is a finalist: single measurements of a configuration
differ by 3 to 8% at the 90th percentile (design/search.md, fact 5)."""


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
        failures: contenders that could not be measured again, and why.
    """

    verdict: Verdict | None
    finishers: tuple[Finisher, ...]
    failures: Mapping[Candidate, Failure]


def search_candidates(
    search: Search,
    measuring: Measuring[Sample],
    *,
    trials: int,
    deadline: float,
    observer: Observer,
    log: Callable[[Trial], None],
    clock: Callable[[], float] = time.monotonic,
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
    """
    while True:
        if len(search.trials) >= trials:
            return observer(SearchEnded(f"{len(search.trials)} trials are finished"))
        if clock() >= deadline and search.trials:
            return observer(SearchEnded("the time is up"))
        candidate = search.ask()
        if candidate is None:
            return observer(SearchEnded(f"all {len(search.space)} candidates were measured"))
        started = clock()
        observer(TrialStarted(len(search.trials) + 1, candidate))
        try:
            outcome = measuring.capacity(candidate)
        except BaseException:
            search.abandon(candidate)
            raise
        trial = search.tell(candidate, outcome, clock() - started)
        log(trial)
        observer(TrialFinished(trial, search.best()))


def compared_with(search: Search) -> Measurement | None:
    """What weighted objectives are relative to: the baseline, else the first candidate that was measured.

    None before either was: the one that is measured then has the objective 0, as have its equals.
    """
    baseline = search.outcome(search.space.baseline)
    measured = (trial.capacity for trial in search.trials if trial.capacity is not None)
    first = baseline if isinstance(baseline, Capacity) else next(measured, None)
    return first.measurement if first else None


def entrants(search: Search, previous: Candidate | None, previous_load: Load | None) -> tuple[Entrant, ...]:
    """Who is measured again: baseline, previous choice and finalists, each at the load it carried.

    Finalists keep the SLO and come near the best that does; where none does, the least violating one is
    measured again.
    """
    chosen: dict[Candidate, Entrant] = {}

    def enter(candidate: Candidate, role: Role, load: Load | None) -> None:
        if load is not None:
            chosen.setdefault(candidate, Entrant(candidate, role, load))

    enter(search.space.baseline, "baseline", _load(search.outcome(search.space.baseline)))
    if previous is not None:
        enter(previous, "previous", _load(search.outcome(previous)) or previous_load)
    ranked = search.ranked()
    able = [trial for trial in ranked if trial.capacity is not None and trial.capacity.slo_met]
    for trial in _near_the_best(able) if able else ranked[:1]:
        enter(trial.candidate, "finalist", _load(trial.outcome))
    return tuple(chosen.values())


def _near_the_best(able: Sequence[Trial]) -> Sequence[Trial]:
    """The first few of trials sorted best first, as long as they come near the first."""
    best = able[0].capacity
    assert best is not None
    near = [
        t for t in able if t.capacity and t.capacity.objective >= best.objective - _NEAR * abs(best.objective)
    ]
    return near[:FINALISTS]


def _load(outcome: Capacity | Failure | None) -> Load | None:
    return outcome.measurement.load if isinstance(outcome, Capacity) else None


def confirm(runners: Sequence[Entrant], measuring: Measuring[Sample], observer: Observer) -> Outcome:
    """Races the entrants and decides."""

    def on_turn(entrant: Entrant, number: int) -> None:
        observer(Confirming(entrant.candidate, entrant.role, number, ROUNDS))

    finishers, failures = race(runners, measuring, on_turn=on_turn)
    for candidate, failure in failures.items():
        observer(Warned(f"{candidate.id} could not be measured again: {failure.reason}: {failure.detail}"))
    verdict = decide([finisher.contender for finisher in finishers]) if finishers else None
    return Outcome(verdict, finishers, failures)


def decision_of(search: Search, outcome: Outcome, evidence: Evidence) -> Decision:
    """The decision as the lock holds it. There must be a verdict."""
    verdict = outcome.verdict
    assert verdict is not None
    by_role = {f.contender.role: _result(f) for f in outcome.finishers}
    by_candidate = {f.contender.candidate: _result(f) for f in outcome.finishers}
    baseline = search.space.baseline
    failed = outcome.failures.get(baseline) or search.outcome(baseline)
    previous = by_role.get("previous")
    return Decision(
        model=search.space.model,
        target=search.space.target,
        chosen=by_candidate[verdict.chosen.candidate],
        baseline=by_role.get("baseline"),
        baseline_failure=failed if isinstance(failed, Failure) else None,
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


def _result(finisher: Finisher) -> Result:
    candidate = finisher.contender.candidate
    return Result(
        configuration=Configuration(id=candidate.id, knobs=candidate.values),
        measurement=finisher.measurement,
        slo_met=finisher.contender.slo_met,
        objective=finisher.objective,
    )
