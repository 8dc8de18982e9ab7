"""What the study of a task rests on: its goal, its name, what measures it and did before, its lock."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tritonc.compiler.joint import members_named_by
from tritonc.compiler.project import Project
from tritonc.compiler.space import Space, space_for
from tritonc.schemas.lock import Lock
from tritonc.schemas.lock_file import read_lock
from tritonc.schemas.measurement import EngineInfo
from tritonc.tuner.bench import Bench
from tritonc.tuner.content import candidate_digest, content_digest
from tritonc.tuner.demand import Demand, read_demands
from tritonc.tuner.engines import Engine
from tritonc.tuner.evidence import engine_info, study_name
from tritonc.tuner.further_workloads import further_slo
from tritonc.tuner.hardware import Machine
from tritonc.tuner.inputs import Inputs
from tritonc.tuner.load_search import LoadLadder, LoadSearch
from tritonc.tuner.loads import searched_loads
from tritonc.tuner.optuna_search import Goal
from tritonc.tuner.optuna_storage import observations_in
from tritonc.tuner.perf_analyzer import LoadData, PerfAnalyzer, perf_analyzer_at
from tritonc.tuner.plan import Plan, SamplerName, Settings, Task
from tritonc.tuner.points import joint_starting_points
from tritonc.tuner.records import STORE_NAME, StoredRecords
from tritonc.tuner.request_mix import every_shape, read_mixes


def lock_to_extend(project: Project) -> Lock:
    """The lock of the project as it is on disk; an empty one where there is none, or that of another spec."""
    lock = read_lock(project.spec_file.lock_path)
    return lock if lock is not None and lock.spec == project.spec.name else Lock(spec=project.spec.name)


def measured_with(engine: Engine, task: Task, settings: Settings) -> tuple[EngineInfo, PerfAnalyzer]:
    """What measures a task, and its load generator: the bundle's, or the one that the settings name.

    Nothing of the bundle is fetched for the one that they name, which runs in this process's environment.

    Raises:
        EngineError: the engine or the bundle cannot be had.
        LoadGeneratorError: it does not run.
    """
    description = engine.describe()  # before anything is fetched for an engine that is not there
    own = settings.perf_analyzer
    binary, environment = engine.perf_analyzer() if own is None else (own, os.environ)
    generator = perf_analyzer_at(binary, environment, task.cores.load_generator)
    info = engine_info(engine.name, description, f"perf_analyzer {generator.version}", task.cores)
    return info, generator


def load_search_of(settings: Settings) -> type[LoadSearch]:
    """What decides which loads a candidate is put under."""
    return LoadLadder if settings.sampler == "grid" else LoadSearch


def records_of(
    project: Project,
    task: Task,
    demand: Demand,
    inputs: Sequence[Inputs],
    info: EngineInfo,
    machine: Machine,
    state: Path,
    settings: Settings,
    warn: Callable[[str], None],
) -> StoredRecords:
    """What was measured before of the candidates of a task.

    Args:
        project: with the model.
        task: of one model.
        demand: how the model is asked.
        inputs: what the model is asked, of each shape.
        info: what measures.
        machine: what it measures on.
        state: the project's state folder.
        settings: of this run.
        warn: takes one line for people.

    Raises:
        InputErrors: the spec and the model file do not go together.
    """
    spec = project.spec.asked_of(task.space.model)
    return StoredRecords(
        state / STORE_NAME,
        content_digest(project, task.space.model, demand, inputs, info, machine.record()),
        partial(candidate_digest, project),
        baseline=task.space.baseline,
        accuracy=spec.accuracy,
        requests_in_sight=load_search_of(settings).requests_in_sight,
        counts_energy="energy" in spec.objectives,
        warn=warn,
    )


def study_of(task: Task, plan: Plan, info: EngineInfo, names: tuple[str, ...], sampler: SamplerName) -> str:
    """Name of the study that a task continues, or would begin; a grid is one of its own."""
    space = task.space
    kind = "grid on" if sampler == "grid" else "on"
    return study_name(space.model, space.target, task.digests, info, plan.machine.record(), names, kind)


def goal_of_task(project: Project, settings: Settings, task: Task, storage: Path, study: str) -> Goal:
    """What a task is for; other studies of its model, and of its target, are where its model begins.

    Args:
        project: with the model.
        settings: of this run.
        task: of one model, or of several together.
        storage: of all studies.
        study: the task's own.

    Raises:
        InputErrors: a trace of the workload cannot be read.
        SetupError: the storage cannot be read.
    """
    spec = project.spec.asked_of(task.space.model)
    objective = spec.objective
    members = members_named_by(task.space.baseline.values)
    history = tuple(
        seen
        for seen in observations_in(storage, task.space.model, task.space.target, but=study)
        if members_named_by(seen.candidate.values) == members  # others' knobs have other names
    )
    spaces = [space_for(project, member, task.space.target) for member in members]
    start = joint_starting_points(spaces, task.space.model) if members else ()
    loads = searched_loads(demands_of(project, settings, task.space.model)[0], spec.slo, objective)
    return Goal(objective, spec.slo, loads, history, start)


def demands_of(project: Project, settings: Settings, model: str) -> tuple[Demand, ...]:
    """How a model is asked, for each of its workloads.

    Raises:
        InputErrors: a trace cannot be read.
    """
    return read_demands(project, model, allow_outside=settings.allow_outside)


def benches_of(
    project: Project, settings: Settings, space: Space, generator: PerfAnalyzer, folder: Path
) -> tuple[Bench, ...]:
    """What candidates of a space are measured with: one for each workload of the model.

    Args:
        project: with the model.
        settings: of this run.
        space: of the model.
        generator: of the load.
        folder: for what it sends; made anew.

    Raises:
        InputErrors: the spec and the model file or its input data do not go together.
    """
    spec, ensemble = project.spec.asked_of(space.model), project.ensembles.get(space.model)
    mixes = read_mixes(project, space.model, allow_outside=settings.allow_outside)
    shutil.rmtree(folder, ignore_errors=True)  # with what a run that was killed left there
    folder.mkdir(parents=True, exist_ok=True)
    first, *others = demands_of(project, settings, space.model)
    bench = Bench(
        generator=generator,
        data=LoadData.of(mixes[0], folder),
        inputs=every_shape(mixes),
        workload=first,
        slo=spec.slo,
        objective=spec.objective,
        accuracy=spec.accuracy,
        seed=settings.seed,
        load_search=load_search_of(settings),
        price_per_hour=project.spec.targets[space.target].price_per_hour or 1.0,
        max_batch_size=ensemble.max_batch_size if ensemble else None,
    )
    slo = further_slo(spec.slo)
    further = [
        replace(bench, workload=demand, slo=slo, data=LoadData.of(mix, folder, f"load-{number}.json"))
        for number, (demand, mix) in enumerate(zip(others, mixes[1:], strict=True), 2)
    ]
    return (bench, *further)
