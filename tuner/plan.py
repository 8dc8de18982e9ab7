"""What a tuning job will do: which (model, target) it measures, on which cores, and how much."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritonc.compiler.joint import joint_space
from tritonc.compiler.project import Project, require_tuned
from tritonc.compiler.space import Space, space_for
from tritonc.compiler.stale import digests_in
from tritonc.schemas.errors import InputErrors, SetupError, TritoncError, did_you_mean
from tritonc.schemas.lock import Digests
from tritonc.tuner.demand import read_demands
from tritonc.tuner.energy import gpu_energy_j
from tritonc.tuner.events import TargetSkipped
from tritonc.tuner.hardware import Machine, Pinning, pinning, this_machine, why_not_measurable
from tritonc.tuner.request_mix import read_mixes

SamplerName = Literal["tritonc", "gp", "tpe", "random", "grid"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure.

    Attributes:
        trials: finished trials for each (model, target), those of earlier runs included.
        timeout_s: for the search of all of them together; confirmation comes after it, and each
            baseline is measured in any case. None: no limit.
        sampler: `tritonc`: the model of the space, which stops by itself; `gp`, `tpe`, `random`: Optuna's;
            `grid`: every candidate under every load.
        fresh: begin new studies; the old ones are kept, but not used.
        tracking_uri: of an MLflow server; None for the project's own database.
        perf_analyzer: another one than the bundle's.
        allow_outside: whether data files may lie outside the project's folder.
    """

    trials: int = 50
    timeout_s: float | None = None
    seed: int = 0
    sampler: SamplerName = "tritonc"
    fresh: bool = False
    tracking_uri: str | None = None
    perf_analyzer: Path | None = None
    allow_outside: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """A (model, target) to tune, with what identifies its numbers.

    Attributes:
        members: where several models are tuned together, the task of each of them alone, which comes first.
    """

    space: Space
    digests: Digests
    cores: Pinning
    members: tuple[Task, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a tuning job will do.

    Attributes:
        tasks: those of several models together after all others of their target.
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
        InputErrors: everything wrong with shapes, data, traces, search spaces, or the names given.
        SetupError: no target is left that this machine can measure.
    """
    machine = machine or this_machine()
    spec = project.spec
    models, targets = tuple(dict.fromkeys(models)), tuple(dict.fromkeys(targets))
    require_tuned(spec, models)
    require_known("--target", targets, spec.targets)
    groups = [group for group in spec.together if set(group) & set(models or group)]
    _require_whole(groups, models)
    _require_search(groups, settings.sampler)
    wanted = models or spec.tuned
    counts_energy = next((name for name in wanted if "energy" in spec.asked_of(name).objectives), None)
    skipped, tasks, errors = [], [], []
    for target in targets or spec.targets:
        if reason := why_not_measurable(spec.targets[target], machine):
            skipped.append(TargetSkipped(target, reason))
            continue
        cores = pinning(spec.targets[target].cores, machine.cores)
        for model in wanted:
            try:
                read_mixes(project, model, allow_outside=settings.allow_outside)
                read_demands(project, model, allow_outside=settings.allow_outside)
                space = space_for(project, model, target)
                digests = digests_in(project, space, alone=True)
                tasks.append(Task(space, digests, cores))
            except InputErrors as err:
                errors += list(err)
            except TritoncError as err:
                errors.append(err)
        if not errors:
            tasks += [_joint_task(project, group, target, tasks) for group in groups]
    if errors:
        raise InputErrors({str(error): error for error in errors}.values())
    if not tasks:
        raise SetupError(
            "this machine can measure none of the targets: "
            + "; ".join(f"{skip.target}: {skip.reason}" for skip in skipped),
            "run it on such a machine, or add a target like this one",
        )
    if counts_energy is not None and gpu_energy_j() is None:
        raise SetupError(
            f"the objective of {counts_energy} is about energy; no GPU of this machine tells what it uses",
            "NVML tells it from Volta on, if the machine lets it be seen: choose another objective, or "
            "measure on another machine",
        )
    return Plan(tuple(tasks), tuple(skipped), machine)


def _joint_task(project: Project, group: Mapping[str, float], target: str, tasks: Sequence[Task]) -> Task:
    """The task of a group of models, whose own tasks are among `tasks`."""
    alone = {task.space.model: task for task in tasks if task.space.target == target}
    members = tuple(alone[model] for model in group)
    space = joint_space([member.space for member in members])
    own = [digests_in(project, member.space) for member in members]
    digests = Digests(
        source=_all(each.source for each in own),
        signature=_all(each.signature for each in own),
        space=space.digest,
        load=_all(each.load for each in own),
    )
    return Task(space, digests, members[0].cores, members)


def _all(digests: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _require_whole(groups: Sequence[Mapping[str, float]], models: Sequence[str]) -> None:
    """A model is not tuned without those it is to be tuned together with."""
    missing = {name: group for group in groups for name in group if models and name not in models}
    if missing:
        raise InputErrors(
            TritoncError(
                f"--model: {name} is missing, which the spec has tuned together with "
                + ", ".join(other for other in group if other != name),
                f"add --model {name}, or take it out of `together` in the spec",
            )
            for name, group in missing.items()
        )


def _require_search(groups: Sequence[Mapping[str, float]], sampler: SamplerName) -> None:
    """Not every combination of candidates can be measured under every load."""
    if groups and sampler == "grid":
        what = f"--sampler grid: {', '.join(groups[0])} are tuned together, and have too many combinations"
        hint = "choose another sampler, or take `together` out of the spec"
        raise InputErrors([TritoncError(what, hint)])


def require_known(option: str, names: Sequence[str], known: Mapping[str, object]) -> None:
    """Refuses names that an option was given and the spec does not have.

    Raises:
        InputErrors: one for each, with a guess at what was meant.
    """
    wrong = [name for name in names if name not in known]
    if wrong:
        kind = option.removeprefix("--")
        raise InputErrors(
            TritoncError(f'{option}: the spec has no {kind} "{name}"', did_you_mean(name, known))
            for name in wrong
        )
