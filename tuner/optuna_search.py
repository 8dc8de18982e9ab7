"""Which candidate to measure next: an ask/tell search over a Space, kept in an Optuna study.

A sampler (`tritonc.tuner.sampler`) is made anew for every ask, seeded with the study's seed and the number of
candidates asked so far: the same tells give the same asks, interrupted or not.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import BETWEEN_MODELS
from tritonc.compiler.space import Space
from tritonc.schemas.errors import SetupError
from tritonc.schemas.measurement import Failure, Load
from tritonc.schemas.spec import Slo
from tritonc.tuner.further_workloads import is_of_further
from tritonc.tuner.measure import Capacity
from tritonc.tuner.objective import Objective
from tritonc.tuner.points import starting_points
from tritonc.tuner.search import (
    CLOSED_LOADS,
    PATIENCE,
    REPEATS,
    Loads,
    Observation,
    Search,
    promises_little,
)

if TYPE_CHECKING:
    import optuna
    from pydantic import TypeAdapter

Outcome = Capacity | Failure
Origin = Literal["start", "sampler"]

_SQLITE_TIMEOUT_S = 10


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


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished trial: what was measured, and what came of it.

    Attributes:
        number: from 1; interrupted trials have none.
        origin: whether it was a starting point or the sampler's choice.
        seconds: wall time of the whole trial, loading included.
    """

    number: int
    candidate: Candidate
    outcome: Outcome
    origin: Origin
    seconds: float

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


@dataclass(frozen=True, slots=True)
class _Told:
    """What was told once, as it is stored.

    Attributes:
        number: of Optuna's trial.
        order: told ones are in this order, whatever the order in which they were asked.
        promise: what its ask promised; None where no model was asked.
        supersedes: it makes all that was told of the candidate before void.
    """

    number: int
    order: int
    candidate: Candidate
    outcome: Outcome
    origin: Origin
    seconds: float
    promise: float | None
    supersedes: bool


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
                space, goal.objective, goal.slo, loads=goal.loads, seed=seed, history=goal.history
            )
        first = (space.baseline,) if self._model else starting_points(space)
        self._start = tuple(dict.fromkeys([*first[:1], *goal.start, *first[1:]]))
        self._expected: dict[Candidate, Load] = {}
        self._open: dict[Candidate, optuna.Trial] = {}
        self._trials: list[Trial] = []
        self._promises: list[float] = []
        self._told: list[_Told] = []
        with _optuna(storage):
            self._study = _open_study(storage, study)
            _end_interrupted(self._study)
            told = _told(self._study, space)
        for each in told:
            self._take(each)

    @property
    def is_over(self) -> bool:
        """Whether the last runs in a row promised too little; never where the sampler is one of Optuna's."""
        return promises_little(self._promises)

    def expected(self, candidate: Candidate) -> Load | None:
        """The load at which the limits of an asked candidate should end; None where there is no guess."""
        return self._expected.get(candidate)

    def _take(self, told: _Told) -> Trial:
        """Takes in what was told, now or by an earlier run; what follows depends on that and its order alone.

        A candidate that was told before has its new outcome in the place of the old one. The model goes on
        believing both, unless the new one supersedes the old.
        """
        self._told.append(told)
        self._promises += _promised(told.promise, told.outcome)
        trial = _added(self._trials, told)
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
        with _optuna(self._path):
            decided = self._study.user_attrs.get("decided")
        return decided["at"] if decided and decided["trials"] == len(self._trials) else None

    def mark_decided(self, at: str) -> None:
        """Notes that a decision rests on the trials so far; `at` tells it from others.

        Raises:
            SetupError: it cannot be stored.
        """
        with _optuna(self._path):
            self._study.set_user_attr("decided", {"at": at, "trials": len(self._trials)})

    def is_logged(self, where: str) -> bool:
        """Whether all trials so far are in the MLflow of this name."""
        with _optuna(self._path):
            logged = self._study.user_attrs.get("logged")
        return bool(logged == {"in": where, "trials": len(self._trials)})

    def mark_logged(self, where: str) -> None:
        """Notes that all trials so far are in the MLflow of this name.

        Raises:
            SetupError: it cannot be stored.
        """
        with _optuna(self._path):
            self._study.set_user_attr("logged", {"in": where, "trials": len(self._trials)})

    def outcome(self, candidate: Candidate) -> Outcome | None:
        """What came of `candidate`; None where it was not measured."""
        return next((trial.outcome for trial in self._trials if trial.candidate == candidate), None)

    def ranked(self) -> tuple[Trial, ...]:
        """`ranked` of its trials."""
        return ranked(self._trials)

    def best(self) -> Trial | None:
        """`best_of` its trials."""
        return best_of(self._trials)

    def number_of(self, candidate: Candidate) -> int:
        """The number of the candidate's trial, from 1; of one that was not told, what it will be."""
        numbers = {trial.candidate: trial.number for trial in self._trials}
        return numbers.get(candidate, len(self._trials) + 1)

    def ask(self) -> Candidate | None:
        """A candidate to measure; None where there is none.

        It was never asked before, unless the model would rather have one measured again that was told: what
        was seen of it is doubtful, or decides (`Search`). Then `outcome` is known, and what is told next
        takes its place.

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
            return None
        candidate, self._expected[pair[0]] = pair
        promise = {} if self._model.promise is None else {"promise": self._model.promise}
        if candidate in told:
            self._unmark()
        return self._opened(candidate, asked, told.get(candidate, "sampler"), **promise)

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

    def _unmark(self) -> None:
        """A trial is going to be another one: no decision rests on it, and it is not logged."""
        with _optuna(self._path):
            for mark in ("decided", "logged"):
                self._study.set_user_attr(mark, None)

    def _worn(self) -> set[Candidate]:
        """Candidates that were measured so often that another time would tell nothing."""
        times = Counter(each.candidate for each in self._told)
        return {candidate for candidate, count in times.items() if count >= REPEATS}

    def _opened(
        self, planned: Candidate | None, asked: Collection[Candidate], origin: Origin, **marks: float
    ) -> Candidate:
        """A new Optuna trial for `planned`, or else for what the sampler proposes, with these attributes."""
        from tritonc.tuner.sampler import CandidateSampler, suggest, uniform

        seed = _seed(self.seed, len(asked))
        with _optuna(self._path):
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
        with _optuna(self._path):
            trial = self._open[candidate]
            trial.set_user_attr("told", order)
            trial.set_user_attr("seconds", seconds)
            trial.set_user_attr("outcome", _outcome_adapter().dump_python(outcome, mode="json"))
            _close(trial, outcome)
            del self._open[candidate]
        attrs = trial.user_attrs
        return self._take(_told_by(trial.number, order, candidate, outcome, seconds, attrs))

    def abandon(self, candidate: Candidate) -> None:
        """Gives an asked candidate back unmeasured: its trial does not count and may be asked again."""
        if self._model is not None:
            self._model.withdraw(candidate)
        with _optuna(self._path):
            _interrupt(self._open.pop(candidate))


def study_names(storage: Path) -> tuple[str, ...]:
    """Names of the studies in a storage, in no particular order; none where the file is absent.

    Raises:
        SetupError: it cannot be read.
    """
    if not storage.exists():
        return ()
    import optuna

    with _optuna(storage):
        return tuple(optuna.get_all_study_names(_storage(storage)))


def finished_trials(space: Space, storage: Path, study: str) -> tuple[Trial, ...]:
    """Finished trials of a study that exists. Ends no trial: another process may be measuring it.

    Raises:
        SetupError: it cannot be read.
    """
    import optuna

    with _optuna(storage):
        trials: list[Trial] = []
        for each in _told(optuna.load_study(study_name=study, storage=_storage(storage)), space):
            _added(trials, each)
        return tuple(trials)


def observations_in(storage: Path, model: str, target: str, *, but: str) -> tuple[Observation, ...]:
    """Measurements of other studies of the same model, or on the same target, to begin a search from.

    Args:
        storage: of the studies; there may be none.
        model: a study of it counts.
        target: a study on it counts.
        but: the study that is not another one; nor are those that `--fresh` put it in the place of.

    Raises:
        SetupError: it cannot be read.
    """
    import optuna

    found: list[Observation] = []
    if not storage.exists():
        return ()
    with _optuna(storage):
        for name in optuna.get_all_study_names(_storage(storage)):
            base = name.split(" #")[0]
            about = base.rpartition(" ")[0]
            is_joint = BETWEEN_MODELS in about  # its knobs have other names
            is_near = about.startswith(f"{model} ") or about.endswith(f" {target}")
            if base != but.split(" #")[0] and is_near and not is_joint:
                study = optuna.load_study(study_name=name, storage=_storage(storage))
                found += _observed(study, f"{about} {name}")
    return tuple(found)


def _observed(study: optuna.Study, name: str) -> Iterator[Observation]:
    """Every step of every trial that stands; the name of the study tells its candidates from others'."""
    found: dict[Candidate, list[Observation]] = {}
    for frozen in _in_order(study):
        outcome, knobs = _outcome_of(frozen), frozen.user_attrs.get("knobs")
        if knobs is not None and outcome is not None:
            values = {knob: tuple(value) if isinstance(value, list) else value for knob, value in knobs}
            candidate = Candidate.of(name, "", values)
            before = [] if frozen.user_attrs.get("supersedes") else found.get(candidate, [])
            steps = outcome.steps if isinstance(outcome, Capacity) else ()
            found[candidate] = before + [Observation(candidate, step.load, step) for step in steps]
    for observations in found.values():
        yield from observations


def _seed(seed: int, asked: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {asked}".encode()).digest()[:4])


def _storage(path: Path) -> optuna.storages.RDBStorage:
    import optuna
    from sqlalchemy import URL

    path.parent.mkdir(parents=True, exist_ok=True)
    url = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    options = {"timeout": _SQLITE_TIMEOUT_S, "factory": _Connection}
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": options})


class _Connection(sqlite3.Connection):
    """Writes ahead to a log, which spares the fifteen transactions of a trial their waits for the disk.

    What was committed outlives this process, however it ends; a power cut may take the last trial.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA journal_mode = WAL")
        self.execute("PRAGMA synchronous = NORMAL")


def _open_study(path: Path | None, name: str) -> optuna.Study:
    import optuna

    storage = optuna.storages.InMemoryStorage() if path is None else _storage(path)
    return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)


def _end_interrupted(study: optuna.Study) -> None:
    """Ends the trials that a killed process left open: as told where it was told, else as interrupted."""
    import optuna

    for frozen in study.get_trials(deepcopy=False):
        if not frozen.state.is_finished():
            trial = optuna.Trial(study, frozen._trial_id)  # noqa: SLF001
            outcome = _outcome_of(frozen)
            _interrupt(trial) if outcome is None else _close(trial, outcome)


def _outcome_of(trial: optuna.trial.FrozenTrial) -> Outcome | None:
    stored = trial.user_attrs.get("outcome")
    outcome: Outcome | None = None if stored is None else _outcome_adapter().validate_python(stored)
    return outcome


def _in_order(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Its trials in the order in which they were told; those of an older tritonc as they were asked."""
    trials = study.get_trials(deepcopy=False)
    return sorted(trials, key=lambda frozen: (frozen.user_attrs.get("told", frozen.number), frozen.number))


def _told(study: optuna.Study, space: Space) -> list[_Told]:
    """All that the study was told, in order."""
    from tritonc.tuner.sampler import decoded

    by_knob = {dimension.knob: dimension for dimension in space.dimensions}
    found: list[_Told] = []
    for frozen in _in_order(study):
        attrs = frozen.user_attrs
        if (outcome := _outcome_of(frozen)) is not None:
            knobs = {knob: decoded(by_knob[knob], value) for knob, value in frozen.params.items()}
            candidate = Candidate.of(space.model, space.target, knobs)
            order = attrs.get("told", frozen.number)
            found.append(_told_by(frozen.number, order, candidate, outcome, attrs["seconds"], attrs))
    return found


def _told_by(
    number: int,
    order: int,
    candidate: Candidate,
    outcome: Outcome,
    seconds: float,
    attrs: Mapping[str, Any],
) -> _Told:
    """What was told of a candidate by the Optuna trial with these attributes."""
    return _Told(
        number=number,
        order=order,
        candidate=candidate,
        outcome=outcome,
        origin=attrs["origin"],
        seconds=seconds,
        promise=attrs.get("promise"),
        supersedes=bool(attrs.get("supersedes")),
    )


def _added(trials: list[Trial], told: _Told) -> Trial:
    """The new last of `trials`; in the place of the earlier one where the candidate was measured again."""
    known = {trial.candidate: index for index, trial in enumerate(trials)}
    index = known.get(told.candidate, len(trials))
    trial = Trial(index + 1, told.candidate, told.outcome, told.origin, told.seconds)
    trials[index : index + 1] = [trial]
    return trial


def _promised(promise: float | None, outcome: Outcome) -> list[float]:
    """What a trial's ask promised, twice where it measured several loads: patience counts measured runs.

    No more often than that, so that a single ask does not end a search.
    """
    runs = len(outcome.steps) if isinstance(outcome, Capacity) else 1
    return [] if promise is None else [promise] * min(runs, PATIENCE // 2)


def _close(trial: optuna.Trial, outcome: Outcome) -> None:
    """Ends a trial: complete with its objective and constraints, or failed with its reason."""
    from optuna.trial import TrialState

    if isinstance(outcome, Failure):
        trial.set_user_attr("reason", f"{outcome.reason}: {outcome.detail}")
        trial.study.tell(trial, state=TrialState.FAIL)
        return
    known = trial.constraints
    for slo, violation in outcome.violations.items():
        if slo not in known:
            trial.set_constraint(slo, violation)
    trial.study.tell(trial, outcome.worth)


def _interrupt(trial: optuna.Trial) -> None:
    from optuna.trial import TrialState

    trial.set_user_attr("reason", "interrupted")
    trial.study.tell(trial, state=TrialState.FAIL)


@cache
def _outcome_adapter() -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(Capacity | Failure)


@contextmanager
def _optuna(path: Path | None) -> Iterator[None]:
    """Optuna without its chatter, and with what goes wrong in its storage as a SetupError."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # TPESampler(group=True) is experimental since Optuna 2.8.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, sqlite3.Error) as err:
        said = str(err.__cause__ or err).splitlines()[0]  # the lines after it are SQLAlchemy's advertisement
        raise SetupError(
            f"the study in {path} cannot be read or written: {said}",
            "free some space, let no other program use it, or move it away to start a new one",
        ) from err
