"""The front of several objectives: who comes to its race, who is on it, and which is chosen. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import Measurement
from tritonc.tuner.confirm import Verdict, verdict_on
from tritonc.tuner.objective import axis_scores
from tritonc.tuner.optuna_search import Goal
from tritonc.tuner.pareto import Floats, is_on_front, knee, spread
from tritonc.tuner.race import Finisher
from tritonc.tuner.trial import Trial

MEMBERS = 6
"""Candidates of a front that are measured again at most; of more those farthest from each other."""

Choice = Literal["knee", "picked"]


def trials_on_front(able: Sequence[Trial], goal: Goal) -> list[Trial]:
    """Trials that no other beats in all objectives, of those that keep the SLO; no more than are raced."""
    if not able:
        return []
    values = _values([trial.capacity.measurement for trial in able if trial.capacity], goal)
    places = np.flatnonzero(is_on_front(values))
    return [able[places[each]] for each in spread(values[places], MEMBERS)]


def front_of(finishers: Sequence[Finisher], goal: Goal) -> tuple[Finisher, ...]:
    """Those that keep the SLO and that no other one beats in all objectives, best in the first one first."""
    able = [finisher for finisher in finishers if finisher.contender.slo_met]
    if not able:
        return ()
    values = _values([finisher.measurement for finisher in able], goal)
    places = sorted(np.flatnonzero(is_on_front(values)), key=lambda place: -values[place, 0])
    return tuple(able[place] for place in places)


def choose(
    front: Sequence[Finisher], finishers: Sequence[Finisher], goal: Goal, picked: Candidate | None
) -> tuple[Verdict, Choice]:
    """The verdict on a front: what a person picked before, as long as it is on it, else the knee.

    Args:
        front: at least one.
        finishers: all that were measured.
        goal: of the study.
        picked: what a person picked before.
    """
    contenders = [finisher.contender for finisher in finishers]
    for member in front:
        if member.contender.candidate == picked:
            reason = "it was picked from the front before, and is on it still"
            return verdict_on(member.contender, contenders, reason), "picked"
    chosen = front[knee(_values([member.measurement for member in front], goal))].contender
    reason = (
        f"it is the knee of a front of {len(front)}, nearest to the best of every objective"
        if len(front) > 1
        else "no other configuration beats it in any objective without losing in another"
    )
    return verdict_on(chosen, contenders, reason), "knee"


def _values(measured: Sequence[Measurement], goal: Goal) -> Floats:
    return np.array([axis_scores(goal.objective, goal.slo, each) for each in measured])
