"""What the study of a task rests on: what measures it, its name, what was measured before, and its lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tritonc.compiler.project import Project
from tritonc.schemas.lock import Lock
from tritonc.schemas.lock_file import read_lock
from tritonc.schemas.measurement import EngineInfo
from tritonc.tuner.content import candidate_digest, content_digest
from tritonc.tuner.demand import Demand
from tritonc.tuner.engines import Engine
from tritonc.tuner.evidence import engine_info, study_name
from tritonc.tuner.hardware import Machine
from tritonc.tuner.inputs import Inputs
from tritonc.tuner.load_search import LoadLadder, LoadSearch
from tritonc.tuner.perf_analyzer import PerfAnalyzer, perf_analyzer_at
from tritonc.tuner.plan import Plan, SamplerName, Settings, Task
from tritonc.tuner.records import STORE_NAME, StoredRecords


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
