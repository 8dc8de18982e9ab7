"""Which candidate to measure next: an ask/tell search over a Space, kept in an Optuna study.

A sampler (`tritonc.tuner.sampler`) is made anew for every ask, seeded with the study's seed and the number of
candidates asked so far: the same tells give the same asks, interrupted or not.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.space import Space
from tritonc.schemas.errors import SetupError
from tritonc.schemas.measurement import Failure
from tritonc.tuner.measure import Capacity
from tritonc.tuner.points import starting_points

if TYPE_CHECKING:
    import optuna
    from pydantic import TypeAdapter

Outcome = Capacity | Failure
Origin = Literal["start", "sampler"]

_SQLITE_TIMEOUT_S = 30


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


def rank(capacity: Capacity) -> tuple[bool, float, float]:
    """Sorts capacities, best last: by keeping the SLO, then by least violation, then by objective."""
    violation = 0.0 if capacity.slo_met else sum(max(0.0, v) for v in capacity.violations.values())
    return (capacity.slo_met, -violation, capacity.objective)


def ranked(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Trials that were measured, best first: largest objective within the SLO, then least violating."""
    measured = [(rank(trial.capacity), trial) for trial in trials if trial.capacity is not None]
    return tuple(trial for _, trial in sorted(measured, key=lambda pair: pair[0], reverse=True))


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The first of `ranked`; None where nothing could be measured."""
    return next(iter(ranked(trials)), None)


class Search:
    """An ask/tell search over the candidates of a Space.

    Everything told is stored at once; opening the same study again continues it. Not safe for threads.

    Args:
        space: what may be asked.
        seed: the same seed and the same tells give the same asks.
        storage: SQLite file, made if absent; None keeps the study in memory.
        study: name within the storage; must change whenever results would not be comparable.
        sampler: a name of `tritonc.tuner.sampler.SAMPLERS`.

    Raises:
        SetupError: the storage cannot be read or written.

    Example:
        >>> search = Search(space, seed=1)  # doctest: +SKIP
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
        sampler: str = "tpe",
    ) -> None:
        from tritonc.tuner.sampler import SAMPLERS

        self.space = space
        self.seed = seed
        self.study = study
        self._path = storage
        self._make_sampler = SAMPLERS[sampler]
        self._start = starting_points(space)
        self._open: dict[Candidate, optuna.Trial] = {}
        with _optuna(storage):
            self._study = _open_study(storage, study)
            _end_interrupted(self._study)
            self._trials = _finished(self._study, space)

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

    def outcome(self, candidate: Candidate) -> Outcome | None:
        """What came of `candidate`; None where it was not measured."""
        return next((trial.outcome for trial in self._trials if trial.candidate == candidate), None)

    def ranked(self) -> tuple[Trial, ...]:
        """`ranked` of its trials."""
        return ranked(self._trials)

    def best(self) -> Trial | None:
        """`best_of` its trials."""
        return best_of(self._trials)

    def ask(self) -> Candidate | None:
        """A candidate that was never asked before; None where the space is exhausted.

        Raises:
            SetupError: the storage cannot be written.
        """
        from tritonc.tuner.sampler import CandidateSampler, suggest

        asked = {trial.candidate for trial in self._trials} | self._open.keys()
        planned = next((point for point in self._start if point not in asked), None)
        if len(asked) >= len(self.space):
            return None
        seed = _seed(self.seed, len(asked))
        with _optuna(self._path):
            rng = random.Random(seed)  # noqa: S311  (no secret: it must repeat)
            sampler = CandidateSampler(self.space, self._make_sampler(seed), planned, asked, rng)
            self._study.sampler = sampler
            trial = self._study.ask()
            candidate = sampler.candidate(trial)
            for dimension in self.space.dimensions:
                if dimension.knob in candidate.values:
                    suggest(trial, dimension)
            trial.set_user_attr("candidate", candidate.id)
            trial.set_user_attr("origin", "start" if planned else "sampler")
        self._open[candidate] = trial
        return candidate

    def tell(self, candidate: Candidate, outcome: Outcome, seconds: float = 0.0) -> Trial:
        """Stores what came of a candidate that was asked.

        Raises:
            KeyError: it was not asked, or has been told already.
            SetupError: it cannot be stored.
        """
        with _optuna(self._path):
            trial = self._open[candidate]
            trial.set_user_attr("seconds", seconds)
            trial.set_user_attr("outcome", _outcome_adapter().dump_python(outcome, mode="json"))
            _close(trial, outcome)
            del self._open[candidate]
        finished = Trial(len(self._trials) + 1, candidate, outcome, trial.user_attrs["origin"], seconds)
        self._trials.append(finished)
        return finished

    def abandon(self, candidate: Candidate) -> None:
        """Gives an asked candidate back unmeasured: its trial does not count and may be asked again."""
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
        return tuple(_finished(optuna.load_study(study_name=study, storage=_storage(storage)), space))


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


def _finished(study: optuna.Study, space: Space) -> list[Trial]:
    """Trials of the study that have an outcome, in order."""
    from tritonc.tuner.sampler import decoded

    by_knob = {dimension.knob: dimension for dimension in space.dimensions}
    trials: list[Trial] = []
    for frozen in study.get_trials(deepcopy=False):
        attrs = frozen.user_attrs
        if (outcome := _outcome_of(frozen)) is not None:
            knobs = {knob: decoded(by_knob[knob], value) for knob, value in frozen.params.items()}
            candidate = Candidate.of(space.model, space.target, knobs)
            trials.append(Trial(len(trials) + 1, candidate, outcome, attrs["origin"], attrs["seconds"]))
    return trials


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
    trial.study.tell(trial, outcome.objective)


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
