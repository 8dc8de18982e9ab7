"""Which candidate to measure next: an ask/tell search over a Space, kept in an Optuna study.

A sampler (`tritonc.tuner.sampler`) is made anew for every ask, seeded with the study's seed and the number of
candidates asked so far: the same tells give the same asks, interrupted or not.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.space import Space
from tritonc.schemas.measurement import Failure, Load
from tritonc.schemas.spec import Slo
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.encoding import Pair
from tritonc.tuner.further_workloads import is_of_further
from tritonc.tuner.objective import Objective, axes_of, score, weights_of
from tritonc.tuner.optuna_storage import (
    Told,
    added,
    all_told,
    close_trial,
    end_left_open,
    interrupt_trial,
    marks_of,
    open_study,
    optuna_at,
    outcome_adapter,
    told_by,
)
from tritonc.tuner.pairs import Loads
from tritonc.tuner.points import starting_points
from tritonc.tuner.promise import PATIENCE, SMALL_GAIN, Promise, promises_little
from tritonc.tuner.search import CLOSED_LOADS, Observation, Recommendation, Search
from tritonc.tuner.trial import Origin, Outcome, Trial, best_of, ranked

if TYPE_CHECKING:
    import optuna

VISITS = 2
"""Times that a candidate is measured at most: finalists are measured again by the confirmation, in turns, and
models of a group by the search of all together."""
MODELLED = "tritonc"
"""The sampler that asks a `Search`."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a search is for.

    Attributes:
        loads: under which candidates may be measured.
        history: measurements of other studies to begin from.
        start: candidates to measure after the baseline, before the model is asked.
    """

    objective: Objective
    slo: Slo
    loads: Loads = CLOSED_LOADS
    history: tuple[Observation, ...] = ()
    start: tuple[Candidate, ...] = ()


ANY_THROUGHPUT = Goal("throughput", Slo())


class OptunaSearch:
    """An ask/tell search over the candidates of a Space.

    Everything told is stored at once; opening the same study again continues it. Not safe for threads.

    Args:
        space: what may be asked.
        seed: the same seed and the same tells give the same asks.
        storage: SQLite file, made if absent; None keeps the study in memory.
        study: name within the storage; must change whenever results would not be comparable.
        sampler: a name of `tritonc.tuner.sampler.SAMPLERS`.
        goal: what is sought; the samplers of Optuna need only what they are told.

    Raises:
        SetupError: the storage cannot be read or written.

    Example:
        >>> search = OptunaSearch(space, seed=1)  # doctest: +SKIP
        >>> while candidate := search.ask():  # doctest: +SKIP
        ...     search.tell(candidate, measure(candidate))
        >>> search.best()  # doctest: +SKIP
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int = 0,
        storage: Path | None = None,
        study: str = "search",
        sampler: str = "tritonc",
        goal: Goal = ANY_THROUGHPUT,
    ) -> None:
        from tritonc.tuner.sampler import SAMPLERS

        self.space = space
        self.seed = seed
        self.study = study
        self.goal = goal
        self._path = storage
        self._make_sampler = SAMPLERS.get(sampler)
        self._model: Search | None = None
        if sampler == MODELLED:
            self._model = Search(
                space,
                goal.objective,
                goal.slo,
                loads=goal.loads,
                seed=seed,
                history=goal.history,
                is_confirmed=True,
            )
        first = (space.baseline,) if self._model else starting_points(space)
        self._start = tuple(dict.fromkeys([*first[:1], *goal.start, *first[1:]]))
        self._expected: dict[Candidate, Load] = {}
        self._open: dict[Candidate, optuna.Trial] = {}
        self._trials: list[Trial] = []
        self._promises: list[Promise] = []
        self._told: list[Told] = []
        with optuna_at(storage):
            self._study = open_study(storage, study)
            end_left_open(self._study)
            told = all_told(self._study, space)
        for each in told:
            self._take(each)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left that is worth a run; never where the sampler is one of Optuna's."""
        return self.spent is not None or promises_little(self._promises)

    @property
    def spent(self) -> float | None:
        """What all that is left promises less than, together; None where that did not end the search."""
        with optuna_at(self._path):
            spent = self._study.user_attrs.get("spent")
        return float(spent["least"]) if spent and spent["trials"] == len(self._trials) else None

    @property
    def least_promise(self) -> float:
        """What the last candidates had to promise to be worth it: a gain relative to the best so far."""
        return max((each.least for each in self._promises[-PATIENCE:]), default=SMALL_GAIN)

    def expected(self, candidate: Candidate) -> Load | None:
        """The load at which the limits of an asked candidate should end; None where there is no guess."""
        return self._expected.get(candidate)

    def _take(self, told: Told) -> Trial:
        """Takes in what was told, now or by an earlier run; what follows depends on that and its order alone.

        A candidate that was told before has its new outcome in the place of the old one. The model goes on
        believing both, unless the new one supersedes the old.
        """
        self._told.append(told)
        if told.supersedes:
            self._promises.clear()
        if told.promise is not None:
            self._promises.append(told.promise)
        trial = added(self._trials, told)
        if self._model is not None and told.supersedes:
            self._model.forget(told.candidate)
        self._learn(trial)
        return trial

    def _learn(self, trial: Trial) -> None:
        if self._model is None:
            return
        self._model.withdraw(trial.candidate)
        if isinstance(trial.outcome, Failure):
            self._model.tell(trial.candidate, self._model.loads_for(trial.candidate)[0], trial.outcome)
            return
        kind = self._model.loads_for(trial.candidate)[0].kind
        for step in trial.outcome.steps:
            if step.load.kind == kind:  # the baseline's step of one client is no open load
                self._model.tell(trial.candidate, step.load, step)
        if any(is_of_further(name) and value > 0 for name, value in trial.outcome.violations.items()):
            self._model.refuse(trial.candidate)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every finished trial, failed ones included, in order."""
        return tuple(self._trials)

    @property
    def decided_at(self) -> str | None:
        """What `mark_decided` was told last; None before, and since a trial was told."""
        with optuna_at(self._path):
            decided = self._study.user_attrs.get("decided")
        return decided["at"] if decided and decided["trials"] == len(self._trials) else None

    def mark_decided(self, at: str) -> None:
        """Notes that a decision rests on the trials so far; `at` tells it from others.

        Raises:
            SetupError: it cannot be stored.
        """
        with optuna_at(self._path):
            self._study.set_user_attr("decided", {"at": at, "trials": len(self._trials)})

    def is_logged(self, where: str) -> bool:
        """Whether all trials so far are in the MLflow of this name."""
        with optuna_at(self._path):
            logged = self._study.user_attrs.get("logged")
        return bool(logged == {"in": where, "trials": len(self._trials)})

    def mark_logged(self, where: str) -> None:
        """Notes that all trials so far are in the MLflow of this name.

        Raises:
            SetupError: it cannot be stored.
        """
        with optuna_at(self._path):
            self._study.set_user_attr("logged", {"in": where, "trials": len(self._trials)})

    def outcome(self, candidate: Candidate) -> Outcome | None:
        """What came of `candidate`; None where it was not measured."""
        return next((trial.outcome for trial in self._trials if trial.candidate == candidate), None)

    def ranked(self) -> tuple[Trial, ...]:
        """`ranked` of its trials."""
        return ranked(self._trials)

    def standings(self) -> tuple[Recommendation, ...]:
        """Every measured candidate at a load that decided about it, the best first.

        Where there is a model it has its say, also about which of two visits is believed: one measurement may
        be off, and it knows those of others. It has none where it does not know what decides: the limits that
        joint candidates miss, and further workloads where all miss one, or an objective that some did not
        show.
        """
        model = self._model if self._knows_what_decides else None
        if model is not None and (ranking := model.ranking(self._decided)):
            return ranking
        return tuple(
            Recommendation(
                trial.candidate,
                found.measurement.load,
                found.measurement,
                found.slo_met,
                score(self.goal.objective, found.worth),
            )
            for trial in self.ranked()
            if (found := trial.capacity) is not None
        )

    @property
    def _knows_what_decides(self) -> bool:
        """Whether the model knows all that the measured candidates are judged by."""
        measured = [trial.capacity for trial in self._trials if trial.capacity is not None]
        if axes_of(self.goal.objective) or any(capacity.members for capacity in measured):
            return False
        shown = (capacity.measurement.joules_per_inference for capacity in measured)
        return "energy" not in weights_of(self.goal.objective) or None not in shown

    @property
    def _decided(self) -> Collection[Pair]:
        """The loads that decided about candidates, in every measurement that still counts."""
        found: dict[Candidate, list[Load]] = {}
        for each in self._told:
            if each.supersedes:
                found.pop(each.candidate, None)
            if isinstance(each.outcome, Capacity):
                found.setdefault(each.candidate, []).append(each.outcome.measurement.load)
        return {(candidate, load) for candidate, loads in found.items() for load in loads}

    def best(self) -> Trial | None:
        """`best_of` its trials."""
        return best_of(self._trials)

    def number_of(self, candidate: Candidate) -> int:
        """The number of the candidate's trial, from 1; of one that was not told, what it will be."""
        numbers = {trial.candidate: trial.number for trial in self._trials}
        return numbers.get(candidate, len(self._trials) + 1)

    def ask(self) -> Candidate | None:
        """A candidate to measure; None where there is none.

        It was never asked before, unless the model would rather have one measured again that was told, as
        others contradict it (`Search`). Then `outcome` is known, and what is told next takes its place.

        Raises:
            SetupError: the storage cannot be written.
        """
        told = {trial.candidate: trial.origin for trial in self._trials}
        asked = told.keys() | self._open.keys()
        planned = next((point for point in self._start if point not in asked), None)
        if planned is not None:
            return self._opened(planned, asked, "start")
        if self._model is None:
            return None if len(asked) >= len(self.space) else self._opened(None, asked, "sampler")
        pair = self._model.ask(skip=self._open.keys() | self._worn(), settled=told.keys())
        if pair is None:
            self._mark_spent(self._model.promise)
            return None
        candidate, self._expected[pair[0]] = pair
        if candidate in told:
            self._unmark()
        return self._opened(candidate, asked, told.get(candidate, "sampler"), **marks_of(self._model.promise))

    def again(self, candidate: Candidate) -> None:
        """Asks a candidate once more because what was told of it is void: what is told next is all there is.

        Raises:
            LookupError: it was not told.
            SetupError: the storage cannot be written.
        """
        before = next((trial for trial in self._trials if trial.candidate == candidate), None)
        if before is None:
            raise LookupError(f"{candidate.id} was not measured")
        self._unmark()
        self._opened(candidate, frozenset(), before.origin, supersedes=True)

    def _mark_spent(self, promise: Promise | None) -> None:
        """Notes that nothing was asked, if that is because all that is left promises too little."""
        if promise is not None and promise.is_last:
            with optuna_at(self._path):
                self._study.set_user_attr("spent", {"least": promise.enough, "trials": len(self._trials)})

    def _unmark(self) -> None:
        """A trial is going to be another one: no decision rests on it, and it is not logged."""
        with optuna_at(self._path):
            for mark in ("decided", "logged", "spent"):
                self._study.set_user_attr(mark, None)

    def _worn(self) -> set[Candidate]:
        """Candidates that were measured so often that the rest is for the confirmation."""
        times = Counter[Candidate]()
        for each in self._told:
            times[each.candidate] = 1 if each.supersedes else times[each.candidate] + 1
        return {candidate for candidate, count in times.items() if count >= VISITS}

    def _opened(
        self, planned: Candidate | None, asked: Collection[Candidate], origin: Origin, **marks: float
    ) -> Candidate:
        """A new Optuna trial for `planned`, or else for what the sampler proposes, with these attributes."""
        from tritonc.tuner.sampler import CandidateSampler, suggest, uniform

        seed = _seed(self.seed, len(asked))
        with optuna_at(self._path):
            rng = random.Random(seed)  # noqa: S311  (no secret: it must repeat)
            inner = (self._make_sampler or uniform)(seed)
            sampler = CandidateSampler(self.space, inner, planned, asked, rng, self._superseded())
            self._study.sampler = sampler
            trial = self._study.ask()
            candidate = sampler.candidate(trial)
            for dimension in self.space.dimensions:
                if dimension.knob in candidate.values:
                    suggest(trial, dimension)
            trial.set_user_attr("candidate", candidate.id)
            trial.set_user_attr("origin", origin)
            trial.set_user_attr("knobs", [[knob, value] for knob, value in candidate.knobs])
            for mark, value in marks.items():
                trial.set_user_attr(mark, value)
        self._open[candidate] = trial
        return candidate

    def _superseded(self) -> set[int]:
        """Optuna's numbers of trials in the place of which there is another one now."""
        last = {each.candidate: each.number for each in self._told}
        return {each.number for each in self._told} - set(last.values())

    def tell(self, candidate: Candidate, outcome: Outcome, seconds: float = 0.0) -> Trial:
        """Stores what came of a candidate that was asked.

        Raises:
            KeyError: it was not asked, or has been told already.
            SetupError: it cannot be stored.
        """
        order = self._told[-1].order + 1 if self._told else 0
        with optuna_at(self._path):
            trial = self._open[candidate]
            trial.set_user_attr("told", order)
            trial.set_user_attr("seconds", seconds)
            trial.set_user_attr("outcome", outcome_adapter().dump_python(outcome, mode="json"))
            close_trial(trial, outcome)
            del self._open[candidate]
        attrs = trial.user_attrs
        return self._take(told_by(trial.number, order, candidate, outcome, seconds, attrs))

    def abandon(self, candidate: Candidate) -> None:
        """Gives an asked candidate back unmeasured: its trial does not count and may be asked again."""
        if self._model is not None:
            self._model.withdraw(candidate)
        with optuna_at(self._path):
            interrupt_trial(self._open.pop(candidate))

    def doubt(self, again: Collection[Trial]) -> None:
        """Notes that the machine changed after all trials so far, and which of them to measure again.

        Raises:
            SetupError: it cannot be stored.
        """
        marks = {"until": self._told[-1].order, "again": [trial.optuna_trial for trial in again]}
        with optuna_at(self._path):
            self._study.set_user_attr("doubt", marks)

    def believe(self) -> None:
        """Notes that all is measured again that is to be, after `doubt`.

        Raises:
            SetupError: it cannot be stored.
        """
        with optuna_at(self._path):
            self._study.set_user_attr("doubt", None)

    @property
    def doubted(self) -> tuple[Trial, ...]:
        """Trials from before the machine changed, as long as some are to be measured again for that."""
        with optuna_at(self._path):
            doubt = self._study.user_attrs.get("doubt")
        orders = {each.number: each.order for each in self._told}
        return tuple(
            trial for trial in self._trials if doubt and orders[trial.optuna_trial] <= doubt["until"]
        )

    @property
    def left_to_measure_again(self) -> tuple[Trial, ...]:
        """The trials that `doubt` named and that were not measured again since, in the order given."""
        with optuna_at(self._path):
            doubt = self._study.user_attrs.get("doubt")
        by_number = {trial.optuna_trial: trial for trial in self._trials}
        return tuple(by_number[each] for each in (doubt["again"] if doubt else ()) if each in by_number)


def _seed(seed: int, asked: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {asked}".encode()).digest()[:4])
