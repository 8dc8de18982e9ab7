"""What is special about a study of several models together: where it begins, and the decision for each.

Every model is searched alone first, in a study that is the same as without `together`, so nothing is measured
twice. What these studies say is where the joint one begins: with what each does best alone, with what each
does best on its share of the cores, and with an expectation of every combination.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import joined, members_of
from tritonc.compiler.selection import served_result
from tritonc.schemas.lock import Configuration, Decision, Result
from tritonc.schemas.measurement import Failure, Interval, Load, Measurement
from tritonc.schemas.spec import Slo
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.joint_measurement import members_in
from tritonc.tuner.joint_worth import JOINT_LOAD, Member
from tritonc.tuner.objective import missed, score, soft_cost
from tritonc.tuner.optuna_search import Goal, OptunaSearch
from tritonc.tuner.race import Finisher
from tritonc.tuner.search import Observation
from tritonc.tuner.study import Evidence, Outcome, baseline_failure
from tritonc.tuner.trial import Trial


@dataclass(frozen=True, slots=True)
class Alone:
    """The study of one member alone.

    Attributes:
        weight: of its objective in the joint one.
    """

    search: OptunaSearch
    weight: float

    @property
    def level(self) -> float:
        """The logarithm of the baseline's objective; 0 where it could not be measured."""
        outcome = self.search.outcome(self.search.space.baseline)
        return self._score(outcome) if isinstance(outcome, Capacity) else 0.0

    def worth(self, trial: Trial) -> float:
        """The logarithm of what a measured trial is worth, less what limits cost that it misses."""
        assert trial.capacity is not None
        return self._score(trial.capacity) - soft_cost(trial.capacity.violations)

    def best(self) -> Candidate:
        """The best candidate; the baseline where none could be measured."""
        ranked = self.search.ranked()
        return ranked[0].candidate if ranked else self.search.space.baseline

    def best_on(self, cores: int) -> Candidate:
        """The best of those that keep at most so many cores busy; the best of all where none does."""
        able = (trial.candidate for trial in self.search.ranked() if _busy(trial.candidate) <= cores)
        return next(able, self.best())

    def _score(self, capacity: Capacity) -> float:
        return score(self.search.goal.objective, capacity.worth)


def goal_of(alone: Sequence[Alone], cores: int) -> Goal:
    """What a joint study is for, and where it begins.

    A joint candidate decides about its loads itself and counts the limits it misses in what it is worth
    (`together.TogetherMeasuring`), so the search has one load and no limits.

    Args:
        alone: the study of each member, in the order of the joint space.
        cores: of the target.
    """
    share = max(1, cores // len(alone))
    start = (joined([each.best() for each in alone]), joined([each.best_on(share) for each in alone]))
    return Goal("throughput", Slo(), (JOINT_LOAD,), _expected(alone), tuple(dict.fromkeys(start)))


def _expected(alone: Sequence[Alone]) -> tuple[Observation, ...]:
    """What combinations would do if the members did not matter to each other.

    Every measured candidate of each member beside the best of the others, and the best, the second and so on
    of all.
    """
    ranked = [each.search.ranked() for each in alone]
    if not all(ranked):
        return ()
    best = tuple(trials[0] for trials in ranked)
    rows = [
        (*best[:place], trial, *best[place + 1 :]) for place, trials in enumerate(ranked) for trial in trials
    ]
    rows += list(zip(*ranked, strict=False))
    total = sum(each.weight for each in alone)
    found = {}
    for row in rows:
        value = sum(
            each.weight / total * (each.worth(trial) - each.level)
            for each, trial in zip(alone, row, strict=True)
        )
        measured = Measurement(
            load=JOINT_LOAD,
            requests=1,
            duration_s=1.0,
            throughput=Interval(value=math.exp(value)),
            latency_ms={},
        )
        candidate = joined([trial.candidate for trial in row])
        found[candidate] = Observation(candidate, JOINT_LOAD, measured)
    return tuple(found.values())


def _busy(candidate: Candidate) -> float:
    """Cores that a candidate keeps busy, as far as its knobs say; as many as there are where they do not."""
    instances, threads = (candidate.values.get(k) for k in ("instance_count", "intra_op_thread_count"))
    if not isinstance(instances, int) or not isinstance(threads, int) or not threads:
        return math.inf
    return instances * threads


def carried_in(search: OptunaSearch, candidate: Candidate) -> Mapping[str, Load] | None:
    """The loads that the members of a candidate carried in its trial; None where it has none."""
    outcome = search.outcome(candidate)
    if not isinstance(outcome, Capacity) or not outcome.members:
        return None
    return {model: seen.load for model, seen in outcome.members.items()}


def joint_decisions(
    search: OptunaSearch,
    outcome: Outcome,
    members: Sequence[Member],
    evidence: Mapping[str, Evidence],
) -> tuple[Decision, ...]:
    """The decision for each member: what was chosen for all together. There must be a verdict."""
    verdict = outcome.verdict
    assert verdict is not None
    finishers = {finisher.contender.candidate: finisher for finisher in outcome.finishers}
    roles = {finisher.contender.role: finisher for finisher in outcome.finishers}
    measured_at = evidence[members[0].model].measured_at
    decisions = []
    for member in members:
        said = evidence[member.model]
        chosen = _result(finishers[verdict.chosen.candidate], member)
        baseline = _result(roles["baseline"], member) if "baseline" in roles else None
        decisions.append(
            Decision(
                model=member.model,
                target=search.space.target,
                chosen=chosen,
                baseline=baseline,
                baseline_failure=baseline_failure(search, outcome),
                previous=_result(roles["previous"], member) if "previous" in roles else None,
                slo_met=verdict.chosen.slo_met,
                improved=verdict.improved,
                gain=_gain(member, chosen, baseline) if baseline else None,
                noise=verdict.noise,
                trials=len(search.trials),
                failed_trials=sum(isinstance(trial.outcome, Failure) for trial in search.trials),
                candidates=len(search.space),
                seed=search.seed,
                engine=said.engine,
                hardware=said.hardware,
                digests=said.digests,
                measured_at=measured_at,
                commit=said.commit,
                mlflow_run=said.mlflow_run,
                together=tuple(each.model for each in members),
                caveats=said.caveats,
            )
        )
    return tuple(decisions)


def joint_reason(outcome: Outcome, members: Sequence[Member]) -> str:
    """Why that was chosen, in a sentence about all members."""
    verdict = outcome.verdict
    assert verdict is not None
    gain = f"; the objective of all together {verdict.gain:+.1%}" if verdict.gain else ""
    return f"{verdict.reason}{gain} (measured together: {', '.join(each.model for each in members)})"


def members_before(decisions: Sequence[Decision | None]) -> Candidate | None:
    """The joint candidate that the decisions for all members make up; None where one has none.

    They may have been made for each alone: it is what is served now, and what has to be beaten.
    """
    before = []
    for decision in decisions:
        result = served_result(decision) if decision is not None else None
        if decision is None or result is None:
            return None
        before.append(Candidate.of(decision.model, decision.target, result.configuration.knobs))
    return joined(before)


def _result(finisher: Finisher, member: Member) -> Result:
    measured = members_in(finisher.measurement)[member.model]
    candidate = members_of(finisher.contender.candidate)[member.model]
    violations = member.measuring.violations(measured)
    return Result(
        configuration=Configuration(id=candidate.id, knobs=candidate.values),
        measurement=measured,
        slo_met=all(value <= 0 for value in violations.values()),
        objective=member.measuring.objective(measured),
        missed=missed(violations),
        missed_soft=missed(member.measuring.soft_violations(measured)),
    )


def _gain(member: Member, result: Result, baseline: Result) -> float:
    scores = (member.measuring.score(each.objective) for each in (result, baseline))
    return math.expm1(next(scores) - next(scores))
