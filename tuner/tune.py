"""The whole job of `tritonc tune`: measure what the plan says, decide, lock, build."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tritonc.compiler.build import compile_targets, require_writable, write_targets
from tritonc.compiler.output.difference import Difference
from tritonc.compiler.project import Project, require_tuned
from tritonc.compiler.selection import check_lock
from tritonc.schemas.errors import InputErrors, SetupError
from tritonc.schemas.lock import Decision, Lock
from tritonc.schemas.lock_file import read_lock, require_lock_writable, write_lock
from tritonc.schemas.measurement import EngineInfo
from tritonc.tuner.coverage import NOTHING_COVERED, Coverage, coverage
from tritonc.tuner.demand import read_demands
from tritonc.tuner.engines import Engine
from tritonc.tuner.events import (
    Observer,
    TargetSkipped,
    Undecided,
)
from tritonc.tuner.extras import require_sampler_extra, require_tune_extra
from tritonc.tuner.job import Job
from tritonc.tuner.objective import Objective
from tritonc.tuner.optuna_storage import finished_trials, study_names
from tritonc.tuner.pick import picked
from tritonc.tuner.plan import Plan, Settings, Task, require_known
from tritonc.tuner.records import STORE_NAME
from tritonc.tuner.request_mix import every_shape, read_mixes
from tritonc.tuner.study_setup import load_search_of, lock_to_extend, measured_with, records_of, study_of
from tritonc.tuner.tracking import Tracking
from tritonc.tuner.trial import Trial

STATE_FOLDER = ".tritonc"
_TYPICAL_TRIAL_S = 10.0
"""What a trial takes at most on average, loading included, until this project has some of its own."""
_TYPICAL_CONFIRMATION_S = 30.0
"""Four contenders loaded side by side, three to eight rounds of some 330 requests."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a task will cost.

    Attributes:
        finished: trials that earlier runs finished.
        seconds: for the trials to come and the confirmation. As many of them as of all candidates that are
            left are expected to be measured already, which takes no time.
        is_measured: whether `seconds` rests on trials of this project.
        before: how much of the space was measured before, in whichever study.
    """

    model: str
    target: str
    candidates: int
    trials: int
    finished: int
    seconds: float
    is_measured: bool
    before: Coverage = NOTHING_COVERED


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What a tuning job led to.

    Attributes:
        decisions: those of this run, and those of earlier ones that nothing was to be added to.
        reasons: by (model, target), a sentence for each decision.
        objectives: what each model or ensemble was tuned for, by its name.
        built: how the output folder changed, by target.
        not_built: why nothing was built, though the lock is written: it holds a decision for a model that was
            not tuned now and that no longer belongs to the spec.
        tracking_uri: of the MLflow that has the trials, without credentials.
        prices: of an hour of each target that has one.
    """

    decisions: tuple[Decision, ...]
    reasons: Mapping[tuple[str, str], str]
    objectives: Mapping[str, Objective]
    undecided: tuple[Undecided, ...]
    skipped: tuple[TargetSkipped, ...]
    spec_path: Path
    lock_path: Path
    out: Path
    built: Mapping[str, tuple[Difference, ...]]
    not_built: InputErrors | None
    tracking_uri: str
    prices: Mapping[str, float] = field(default_factory=dict)

    @property
    def slo_met(self) -> bool:
        """Whether every (model, target) has a configuration that keeps its SLO."""
        return not self.undecided and all(decision.slo_met for decision in self.decisions)


def tune(
    project: Project, plan: Plan, settings: Settings, *, engine: Engine, observer: Observer
) -> TuneResult:
    """Measures, decides, writes the lock after each decision, and builds.

    Interrupted at any point (KeyboardInterrupt), it stops the server and keeps every finished trial; called
    again, it goes on from there.

    Raises:
        SetupError: no engine, no load generator, a package is missing, a full disk, or another tune in this
            project.
        LockError: the lock beside the spec cannot be read, or is that of another spec (without `fresh`).
        OutputError: the lock cannot be written, or the output folder holds files that tritonc did not write.
    """
    require_tune_extra()
    require_sampler_extra(settings.sampler)
    state = project.folder.resolve() / STATE_FOLDER
    out = project.folder / "build"
    targets = tuple(project.spec.targets)
    lock = read_lock(project.spec_file.lock_path)
    if not settings.fresh:
        check_lock(project, lock)
    require_lock_writable(project.spec_file.lock_path)
    require_writable(compile_targets(project, None, targets), project.spec.name, out)
    with _alone_in(state):
        job = Job(project, plan, settings, engine, observer, state)
        job.run()
        lock = read_lock(project.spec_file.lock_path)
        built, not_built = build(project, lock, out)
    return TuneResult(
        decisions=tuple(job.decisions),
        reasons=job.reasons,
        objectives=objectives_in(project),
        undecided=tuple(job.undecided),
        skipped=plan.skipped,
        spec_path=project.spec_file.path,
        lock_path=project.spec_file.lock_path,
        out=out,
        built=built,
        not_built=not_built,
        tracking_uri=job.tracking.shown_uri,
        prices=prices_in(project),
    )


def objectives_in(project: Project) -> dict[str, Objective]:
    """What each model and ensemble is tuned for."""
    return {name: project.spec.asked_of(name).objective for name in project.spec.tuned}


def prices_in(project: Project) -> dict[str, float]:
    """The price of an hour of each target that has one."""
    prices = {name: target.price_per_hour for name, target in project.spec.targets.items()}
    return {name: price for name, price in prices.items() if price is not None}


def pick(
    project: Project,
    configuration: str,
    *,
    models: Sequence[str] = (),
    targets: Sequence[str] = (),
    tracking_uri: str | None = None,
) -> TuneResult:
    """Takes another configuration of a front that the lock holds, without measuring; locks it, and builds.

    Args:
        project: its lock has the front.
        configuration: id of a configuration on the front.
        models: only fronts of these; all of the spec if empty.
        targets: only fronts of these; all of the spec if empty.
        tracking_uri: of an MLflow server; None for the project's own database.

    Raises:
        InputErrors: there is no such configuration, model or target, or the evidence is stale: nothing is
            changed then.
        LockError: the lock cannot be read, is that of another spec, or holds no front.
        SetupError: a tune runs in this project, or the disk is full.
        OutputError: the output folder holds files that tritonc did not write.
    """
    require_tune_extra()
    spec = project.spec
    require_tuned(spec, models)
    require_known("--target", targets, spec.targets)
    state, out, path = (
        project.folder.resolve() / STATE_FOLDER,
        project.folder / "build",
        project.spec_file.lock_path,
    )
    with _alone_in(state):
        lock = read_lock(path)
        check_lock(project, lock)
        decision = picked(
            lock,
            configuration,
            path,
            models=models or spec.tuned,
            targets=targets or tuple(spec.targets),
        )
        lock = lock_to_extend(project).with_decision(decision)
        repositories = compile_targets(project, lock, project.spec.targets)
        require_writable(repositories, project.spec.name, out)
        write_lock(path, lock)
        built = write_targets(repositories, project.spec.name, out)
    tracking = Tracking(state, uri=tracking_uri, experiment=project.spec.name, warn=lambda _line: None)
    return TuneResult(
        decisions=(decision,),
        reasons={(decision.model, decision.target): "it was picked from the front"},
        objectives=objectives_in(project),
        undecided=(),
        skipped=(),
        spec_path=project.spec_file.path,
        lock_path=path,
        out=out,
        built=built,
        not_built=None,
        tracking_uri=tracking.shown_uri,
        prices=prices_in(project),
    )


def build(
    project: Project, lock: Lock | None, out: Path
) -> tuple[Mapping[str, tuple[Difference, ...]], InputErrors | None]:
    """Builds every target of the project from the lock; how `out` changed, or why nothing was built.

    Raises:
        OutputError: `out` is not writable, or holds files that tritonc did not write.
        SetupError: the disk is full.
    """
    try:
        repositories = compile_targets(project, lock, project.spec.targets)
    except InputErrors as err:
        return {}, err
    return write_targets(repositories, project.spec.name, out), None


def estimate(project: Project, plan: Plan, settings: Settings, engine: Engine) -> tuple[Estimate, ...]:
    """What each task will cost. Changes nothing, and in a new project starts and fetches nothing.

    Where there are trials to read, the local engine starts its server for a moment to ask for its version.

    Raises:
        MissingExtraError: there are trials to read, and a package that measuring needs is not installed.
    """
    storage = project.folder.resolve() / STATE_FOLDER / "optuna.db"
    if storage.exists():
        require_tune_extra()
    names = () if settings.fresh else study_names(storage)
    estimates = []
    for task in plan.tasks:
        trials: tuple[Trial, ...] = ()
        before = NOTHING_COVERED
        if names or (storage.with_name(STORE_NAME).exists() and not settings.fresh):
            info, _ = measured_with(engine, task, settings)
            name = study_of(task, plan, info, names, settings.sampler)
            trials = finished_trials(task.space, storage, name) if name in names else ()
            before = NOTHING_COVERED if task.members else _before(project, plan, settings, task, info)
        estimates.append(_estimate(task, settings, trials, before))
    return tuple(estimates)


def _before(project: Project, plan: Plan, settings: Settings, task: Task, info: EngineInfo) -> Coverage:
    """How much of the space of a task was measured before."""
    model = task.space.model
    first, *further = read_demands(project, model, allow_outside=settings.allow_outside)
    records = records_of(
        project,
        task,
        first,
        every_shape(read_mixes(project, model, allow_outside=settings.allow_outside)),
        info,
        plan.machine,
        project.folder.resolve() / STATE_FOLDER,
        settings,
        lambda _line: None,
    )
    spec, load_search = project.spec.asked_of(model), load_search_of(settings)
    objective = dict(spec.objective) if isinstance(spec.objective, dict) else spec.objective
    found = coverage(records.all_in(task.space), lambda: load_search(first, spec.slo, objective))
    # What candidates do under further workloads is measured every time.
    return Coverage(wholly=0, partly=found.wholly + found.partly) if further else found


def _estimate(task: Task, settings: Settings, trials: tuple[Trial, ...], before: Coverage) -> Estimate:
    seconds = [trial.seconds for trial in trials if not trial.was_known]
    each = sum(seconds) / len(seconds) if seconds else _TYPICAL_TRIAL_S
    wanted = min(settings.trials, len(task.space))
    missing = max(0, wanted - len(trials))
    left = len(task.space) - len(trials)
    new = left - max(0, before.wholly - len(trials))
    to_measure = missing * new / left if left else 0
    return Estimate(
        model=task.space.model,
        target=task.space.target,
        candidates=len(task.space),
        trials=wanted,
        finished=len(trials),
        seconds=to_measure * each + _TYPICAL_CONFIRMATION_S if missing else 0.0,
        is_measured=bool(seconds),
        before=before,
    )


@contextmanager
def _alone_in(state: Path) -> Iterator[None]:
    """Makes the state folder, which git does not see, and keeps a second tune out of it."""
    from filelock import FileLock, Timeout

    lock = FileLock(state / "tune.lock")
    try:
        state.mkdir(parents=True, exist_ok=True)
        ignore = state / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        lock.acquire(timeout=0)
    except Timeout as err:
        raise SetupError(
            f"another tritonc tune runs in {state.parent}", "wait until it has ended, or stop it"
        ) from err
    except OSError as err:
        raise SetupError(
            f"{state} cannot be written: {err.strerror or err}",
            "make it a folder that can be: tune keeps its trials there",
        ) from err
    try:
        yield
    finally:
        lock.release()
