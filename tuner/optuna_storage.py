"""Trials as Optuna studies in a SQLite file hold them: written as they are told, read in that order."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import BETWEEN_MODELS
from tritonc.compiler.space import Space
from tritonc.schemas.errors import SetupError
from tritonc.schemas.measurement import Failure
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.promise import SMALL_GAIN, Promise
from tritonc.tuner.record_store import remedy
from tritonc.tuner.search import Observation
from tritonc.tuner.trial import Origin, Outcome, Trial

if TYPE_CHECKING:
    import optuna
    from pydantic import TypeAdapter

_SQLITE_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Told:
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
    promise: Promise | None
    supersedes: bool


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


def open_study(path: Path | None, name: str) -> optuna.Study:
    """The study of a name, made if absent; in memory without a path."""
    import optuna

    storage = optuna.storages.InMemoryStorage() if path is None else _storage(path)
    return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)


def end_left_open(study: optuna.Study) -> None:
    """Ends the trials that a killed process left open: as told where it was told, else as interrupted."""
    import optuna

    for frozen in study.get_trials(deepcopy=False):
        if not frozen.state.is_finished():
            trial = optuna.Trial(study, frozen._trial_id)  # noqa: SLF001
            outcome = _outcome_of(frozen)
            interrupt_trial(trial) if outcome is None else close_trial(trial, outcome)


def _outcome_of(trial: optuna.trial.FrozenTrial) -> Outcome | None:
    stored = trial.user_attrs.get("outcome")
    outcome: Outcome | None = None if stored is None else outcome_adapter().validate_python(stored)
    return outcome


def _in_order(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Its trials in the order in which they were told; those of an older tritonc as they were asked."""
    trials = study.get_trials(deepcopy=False)
    return sorted(trials, key=lambda frozen: (frozen.user_attrs.get("told", frozen.number), frozen.number))


def all_told(study: optuna.Study, space: Space) -> list[Told]:
    """All that the study was told, in order."""
    from tritonc.tuner.sampler import decoded

    by_knob = {dimension.knob: dimension for dimension in space.dimensions}
    found: list[Told] = []
    for frozen in _in_order(study):
        attrs = frozen.user_attrs
        if (outcome := _outcome_of(frozen)) is not None:
            knobs = {knob: decoded(by_knob[knob], value) for knob, value in frozen.params.items()}
            candidate = Candidate.of(space.model, space.target, knobs)
            order = attrs.get("told", frozen.number)
            found.append(told_by(frozen.number, order, candidate, outcome, attrs["seconds"], attrs))
    return found


def told_by(
    number: int,
    order: int,
    candidate: Candidate,
    outcome: Outcome,
    seconds: float,
    attrs: Mapping[str, Any],
) -> Told:
    """What was told of a candidate by the Optuna trial with these attributes."""
    return Told(
        number=number,
        order=order,
        candidate=candidate,
        outcome=outcome,
        origin=attrs["origin"],
        seconds=seconds,
        promise=_promise(attrs),
        supersedes=bool(attrs.get("supersedes")),
    )


def marks_of(promise: Promise | None) -> dict[str, float]:
    """The attributes that keep what a trial's ask promised."""
    if promise is None:
        return {}
    return {"promise": promise.gain, "least_promise": promise.least, "all_tried": promise.all_tried}


def _promise(attrs: Mapping[str, Any]) -> Promise | None:
    if "promise" not in attrs:
        return None
    least, all_tried = attrs.get("least_promise", SMALL_GAIN), attrs.get("all_tried", True)
    return Promise(attrs["promise"], least, all_tried=all_tried)


def added(trials: list[Trial], told: Told) -> Trial:
    """The new last of `trials`; in the place of the earlier one where the candidate was measured again."""
    known = {trial.candidate: index for index, trial in enumerate(trials)}
    index = known.get(told.candidate, len(trials))
    trial = Trial(index + 1, told.candidate, told.outcome, told.origin, told.seconds, told.number)
    trials[index : index + 1] = [trial]
    return trial


def close_trial(trial: optuna.Trial, outcome: Outcome) -> None:
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


def interrupt_trial(trial: optuna.Trial) -> None:
    """Ends a trial of which nothing came."""
    from optuna.trial import TrialState

    trial.set_user_attr("reason", "interrupted")
    trial.study.tell(trial, state=TrialState.FAIL)


@cache
def outcome_adapter() -> TypeAdapter[Any]:
    """What turns outcomes into JSON and back."""
    from pydantic import TypeAdapter

    return TypeAdapter(Capacity | Failure)


@contextmanager
def optuna_at(path: Path | None) -> Iterator[None]:
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
            remedy(said, "move it away to start a new one"),
        ) from err


def study_names(storage: Path) -> tuple[str, ...]:
    """Names of the studies in a storage, in no particular order; none where the file is absent.

    Raises:
        SetupError: it cannot be read.
    """
    if not storage.exists():
        return ()
    import optuna

    with optuna_at(storage):
        return tuple(optuna.get_all_study_names(_storage(storage)))


def finished_trials(space: Space, storage: Path, study: str) -> tuple[Trial, ...]:
    """Finished trials of a study that exists. Ends no trial: another process may be measuring it.

    Raises:
        SetupError: it cannot be read.
    """
    import optuna

    with optuna_at(storage):
        trials: list[Trial] = []
        for each in all_told(optuna.load_study(study_name=study, storage=_storage(storage)), space):
            added(trials, each)
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
    with optuna_at(storage):
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
