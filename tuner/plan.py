"""What a tuning job will do: which (model, target) it measures, on which cores, and how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonc.compiler.project import Project
from tritonc.compiler.space import Space, space_for
from tritonc.compiler.stale import digests_in
from tritonc.schemas.errors import InputErrors, SetupError, TritoncError, did_you_mean
from tritonc.schemas.lock import Digests
from tritonc.tuner.events import TargetSkipped
from tritonc.tuner.hardware import Machine, Pinning, pinning, this_machine, why_not_measurable
from tritonc.tuner.inputs import read_inputs


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure.

    Attributes:
        trials: finished trials for each (model, target), those of earlier runs included.
        timeout_s: for the search of all of them together; confirmation comes after it, and each
            baseline is measured in any case. None: no limit.
        fresh: begin new studies; the old ones are kept, but not used.
        tracking_uri: of an MLflow server; None for the project's own database.
        perf_analyzer: another one than the bundle's.
        allow_outside: whether data files may lie outside the project's folder.
    """

    trials: int = 50
    timeout_s: float | None = None
    seed: int = 0
    fresh: bool = False
    tracking_uri: str | None = None
    perf_analyzer: Path | None = None
    allow_outside: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """A (model, target) to tune, with what identifies its numbers."""

    space: Space
    digests: Digests
    cores: Pinning


@dataclass(frozen=True, slots=True)
class Plan:
    """What a tuning job will do.

    Attributes:
        skipped: targets that this machine cannot measure.
    """

    tasks: tuple[Task, ...]
    skipped: tuple[TargetSkipped, ...]
    machine: Machine


def plan_of(
    project: Project,
    settings: Settings,
    *,
    models: Sequence[str] = (),
    targets: Sequence[str] = (),
    machine: Machine | None = None,
) -> Plan:
    """What there is to tune, after every check that needs no server.

    Raises:
        InputErrors: everything wrong with shapes, data, search spaces, or the names given.
        SetupError: no target is left that this machine can measure.
    """
    machine = machine or this_machine()
    spec = project.spec
    _require_known("--model", models, spec.models)
    _require_known("--target", targets, spec.targets)
    skipped, tasks, errors = [], [], []
    for target in targets or spec.targets:
        if reason := why_not_measurable(spec.targets[target], machine):
            skipped.append(TargetSkipped(target, reason))
            continue
        cores = pinning(spec.targets[target].cores, machine.cores)
        for model in models or spec.models:
            try:
                read_inputs(project, model, allow_outside=settings.allow_outside)
                space = space_for(project, model, target)
                tasks.append(Task(space, digests_in(project, space), cores))
            except InputErrors as err:
                errors += list(err)
            except TritoncError as err:
                errors.append(err)
    if errors:
        raise InputErrors({str(error): error for error in errors}.values())
    if not tasks:
        raise SetupError(
            "this machine can measure none of the targets: "
            + "; ".join(f"{skip.target}: {skip.reason}" for skip in skipped),
            "run it on such a machine, or add a target like this one",
        )
    return Plan(tuple(tasks), tuple(skipped), machine)


def _require_known(option: str, names: Sequence[str], known: Mapping[str, object]) -> None:
    wrong = [name for name in names if name not in known]
    if wrong:
        kind = option.removeprefix("--")
        raise InputErrors(
            TritoncError(f'{option}: the spec has no {kind} "{name}"', did_you_mean(name, known))
            for name in wrong
        )
