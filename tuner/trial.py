"""A finished trial of a search, and which one is best."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import Failure
from tritonc.tuner.capacity import Capacity

Outcome = Capacity | Failure
Origin = Literal["start", "sampler"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished trial: what was measured, and what came of it.

    Attributes:
        number: from 1; interrupted trials have none.
        origin: whether it was a starting point or the sampler's choice.
        seconds: wall time of the whole trial, loading included.
        optuna_trial: Optuna's number of what was told: another one where the candidate was measured again.
    """

    number: int
    candidate: Candidate
    outcome: Outcome
    origin: Origin
    seconds: float
    optuna_trial: int = 0

    @property
    def capacity(self) -> Capacity | None:
        """The outcome where the candidate could be measured."""
        return self.outcome if isinstance(self.outcome, Capacity) else None

    @property
    def was_known(self) -> bool:
        """Whether all of it was measured in earlier studies: what it took says nothing about the next one."""
        found = self.capacity
        if found is None or found.reused is None or found.further:
            return False
        return found.reused.loads == len(found.steps)


def rank(capacity: Capacity) -> tuple[bool, float, float]:
    """Sorts capacities, best last: by keeping the SLO, then by least violation, then by their worth."""
    violation = 0.0 if capacity.slo_met else sum(max(0.0, v) for v in capacity.violations.values())
    return (capacity.slo_met, -violation, capacity.worth)


def ranked(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Trials that were measured, best first: largest objective within the SLO, then least violating."""
    measured = [(rank(trial.capacity), trial) for trial in trials if trial.capacity is not None]
    return tuple(trial for _, trial in sorted(measured, key=lambda pair: pair[0], reverse=True))


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The first of `ranked`; None where nothing could be measured."""
    return next(iter(ranked(trials)), None)
