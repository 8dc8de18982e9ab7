"""One run of `tritonc tune`: each (model, target) searched, confirmed, decided and logged in turn."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import Project
from tritonc.compiler.selection import served_result
from tritonc.schemas.lock import Decision, Lock
from tritonc.schemas.lock_file import read_lock, write_lock
from tritonc.schemas.measurement import EngineInfo, Failure, Load
from tritonc.tuner.engines import Engine
from tritonc.tuner.events import (
    Decided,
    LoadStarted,
    Observer,
    ServerStarted,
    StudyStarted,
    Undecided,
    Warned,
)
from tritonc.tuner.evidence import caveats, engine_info, next_study_name, study_name
from tritonc.tuner.git import commit_of
from tritonc.tuner.inputs import read_inputs
from tritonc.tuner.measure import Bench, Capacity
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.perf_analyzer import LoadData, PerfAnalyzer, perf_analyzer_at
from tritonc.tuner.plan import Plan, Settings, Task
from tritonc.tuner.search import Search, study_names
from tritonc.tuner.stand import Stand
from tritonc.tuner.study import (
    Evidence,
    compared_with,
    confirm,
    decision_of,
    entrants,
    search_candidates,
)
from tritonc.tuner.tracking import Tracking
from tritonc.tuner.trial_log import TrialLog


@dataclass(frozen=True, slots=True)
class _Study:
    """A task while it runs.

    Attributes:
        trials: how many are to be finished in the end.
        held: what the lock holds for it.
    """

    task: Task
    info: EngineInfo
    search: Search
    stand: Stand
    trials: int
    held: Decision | None


class Job:
    """One run over all tasks of a plan.

    Attributes:
        decisions: of this run, and of earlier ones that nothing was to be added to.
        reasons: a sentence for each decision, by (model, target).
        undecided: tasks of which nothing could be measured.
    """

    def __init__(
        self,
        project: Project,
        plan: Plan,
        settings: Settings,
        engine: Engine,
        observer: Observer,
        state: Path,
    ) -> None:
        self.decisions: list[Decision] = []
        self.reasons: dict[tuple[str, str], str] = {}
        self.undecided: list[Undecided] = []
        self._project = project
        self._plan = plan
        self._settings = settings
        self._engine = engine
        self._observer = observer
        self._state = state
        self._hardware = plan.machine.record()
        sources = [model.path for model in project.models.values()]
        self._commit = commit_of(project.folder, [project.spec_file.path, *sources])
        self.tracking = Tracking(
            state,
            uri=settings.tracking_uri,
            experiment=project.spec.name,
            warn=self._warn,
        )

        self._confirming_s = 0.0

    def run(self) -> None:
        """Tunes every task; one server for each target."""
        started = time.monotonic()
        for skip in self._plan.skipped:
            self._observer(skip)
        left = list(self._plan.tasks)
        for target in dict.fromkeys(task.space.target for task in left):
            tasks = [task for task in left if task.space.target == target]
            info, generator = measured_with(self._engine, tasks[0], self._settings)
            with Stand(
                self._project,
                self._engine,
                self._state / "served" / target,
                cores=tasks[0].cores.server,
                on_start=partial(self._started, info),
            ) as stand:
                for task in tasks:
                    self._tune(self._study(task, info, stand), generator, self._deadline(started, len(left)))
                    left.remove(task)

    def _started(self, info: EngineInfo, restarted: bool) -> None:
        self._observer(ServerStarted(info, restarted))

    def _deadline(self, started: float, tasks_left: int) -> float:
        """When the search of the next task ends: each has an equal share of the time left for searching."""
        if self._settings.timeout_s is None:
            return float("inf")
        now = time.monotonic()
        searching_s = now - started - self._confirming_s
        return now + max(0.0, self._settings.timeout_s - searching_s) / tasks_left

    def _study(self, task: Task, info: EngineInfo, stand: Stand) -> _Study:
        storage = self._state / "optuna.db"
        names = study_names(storage)
        name = study_of(task, self._plan, info, names)
        if self._settings.fresh and name in names:
            name = next_study_name(name)
        search = Search(task.space, seed=self._settings.seed, storage=storage, study=name)
        held = lock_to_extend(self._project).decision(task.space.model, task.space.target)
        return _Study(task, info, search, stand, min(self._settings.trials, len(task.space)), held)

    def _tune(self, study: _Study, generator: PerfAnalyzer, deadline: float) -> None:
        space, search = study.task.space, study.search
        if study.held is not None and self._is_current(study.held, study):
            self._decided(study.held, "nothing was to be added to what the lock holds")
            return
        self.tracking.connect()
        self._observer(
            StudyStarted(
                model=space.model,
                target=space.target,
                candidates=len(space),
                trials=study.trials,
                finished=search.trials,
                baseline=space.baseline,
                objective=self._project.spec.models[space.model].objective,
                engine=study.info,
                hardware=self._hardware,
            )
        )
        study.stand.start()
        log = TrialLog(self._project, self.tracking, search, study.stand)
        log.open(self._tags(study))
        try:
            self._measure(study, self._measuring(study, generator), log, deadline)
        except BaseException:
            study.stand.give_up()  # first: MLflow may take its time to answer
            self.tracking.close_study("KILLED")
            raise
        self.tracking.close_study("FINISHED")

    def _measuring(self, study: _Study, generator: PerfAnalyzer) -> StandMeasuring:
        space, spec = study.task.space, self._project.spec.models[study.task.space.model]
        inputs = read_inputs(
            self._project,
            space.model,
            seed=self._settings.seed,
            allow_outside=self._settings.allow_outside,
        )
        folder = study.stand.folder / "load" / space.model
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(
            generator=generator,
            data=LoadData.of(inputs, folder),
            inputs=inputs,
            workload=spec.workload,
            slo=spec.slo,
            objective=dict(spec.objective) if isinstance(spec.objective, dict) else spec.objective,
            accuracy=spec.accuracy,
            seed=self._settings.seed,
        )

        return StandMeasuring(
            study.stand,
            bench,
            baseline=space.baseline,
            compared_with=partial(compared_with, study.search),
            on_load=lambda candidate, load: self._observer(LoadStarted(candidate, load)),
            warn=self._warn,
        )

    def _measure(self, study: _Study, measuring: StandMeasuring, log: TrialLog, deadline: float) -> None:
        """Search, race, decision, lock."""
        search = study.search
        search_candidates(
            search,
            measuring,
            trials=study.trials,
            deadline=deadline,
            observer=self._observer,
            log=log.trial,
        )
        previous, load = self._previous(study, measuring)
        began = time.monotonic()
        outcome = confirm(entrants(search, previous, load), measuring, self._observer)
        self._confirming_s += time.monotonic() - began
        study.stand.withdraw()
        log.finishers(outcome.finishers)
        if outcome.verdict is None:
            self._not_decided(search)
            return
        decision = decision_of(search, outcome, self._evidence(study))
        write_lock(self._project.spec_file.lock_path, lock_to_extend(self._project).with_decision(decision))
        search.mark_decided(decision.measured_at)
        self._decided(decision, outcome.verdict.reason)

    def _evidence(self, study: _Study) -> Evidence:
        space = study.task.space
        baseline = study.search.outcome(space.baseline)
        return Evidence(
            digests=study.task.digests,
            engine=study.info,
            hardware=self._hardware,
            commit=self._commit,
            mlflow_run=self.tracking.parent_run,
            caveats=caveats(
                study.info,
                self._project.spec.models[space.model],
                baseline if isinstance(baseline, Capacity) else None,
            ),
            measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _is_current(self, held: Decision, study: _Study) -> bool:
        """Whether the lock's decision rests on this very study, and there is nothing to add to it."""
        return (
            held.digests == study.task.digests
            and held.engine == study.info
            and held.hardware == self._hardware
            and held.measured_at == study.search.decided_at
            and len(study.search.trials) >= study.trials
        )

    def _previous(self, study: _Study, measuring: StandMeasuring) -> tuple[Candidate | None, Load | None]:
        """The configuration served now, if it is a candidate still, and the load it carries now."""
        result = served_result(study.held) if study.held else None
        if result is None:
            return None, None
        space = study.task.space
        candidate = Candidate.of(space.model, space.target, result.configuration.knobs)
        if candidate not in space:
            self._warn(f"note: the lock's configuration {candidate.id} is no longer in the space")
            return None, None
        outcome = study.search.outcome(candidate) or measuring.capacity(candidate)
        if isinstance(outcome, Failure):
            self._warn(f"warning: the lock's configuration {candidate.id} failed: {outcome.reason}")
            return None, None
        return candidate, outcome.measurement.load

    def _decided(self, decision: Decision, reason: str) -> None:
        self.decisions.append(decision)
        self.reasons[decision.model, decision.target] = reason
        self._observer(Decided(decision, reason))

    def _not_decided(self, search: Search) -> None:
        failures = [trial.outcome for trial in search.trials if isinstance(trial.outcome, Failure)]
        why = f"{failures[0].reason}: {failures[0].detail}" if failures else "no contender came through"
        undecided = Undecided(search.space.model, search.space.target, f"nothing could be measured; {why}")
        self.undecided.append(undecided)
        self._observer(undecided)

    def _warn(self, text: str) -> None:
        self._observer(Warned(text))

    def _tags(self, study: _Study) -> dict[str, str]:
        info = study.info
        return {
            "tritonc.model": study.task.space.model,
            "tritonc.target": study.task.space.target,
            "tritonc.spec_sha256": self._project.spec_file.sha256,
            "tritonc.commit": self._commit or "",
            "tritonc.engine": f"{info.name} Triton {info.triton} ({info.release})",
            "tritonc.runtimes": ", ".join(f"{name} {version}" for name, version in info.runtimes.items()),
            "tritonc.load_generator": info.load_generator,
            "tritonc.hardware": self._hardware.model_dump_json(),
            "tritonc.candidates": str(len(study.task.space)),
            "tritonc.seed": str(self._settings.seed),
        }


def lock_to_extend(project: Project) -> Lock:
    """The lock of the project as it is on disk; an empty one where there is none, or that of another spec."""
    lock = read_lock(project.spec_file.lock_path)
    return lock if lock is not None and lock.spec == project.spec.name else Lock(spec=project.spec.name)


def measured_with(engine: Engine, task: Task, settings: Settings) -> tuple[EngineInfo, PerfAnalyzer]:
    """What measures a task, and its load generator: the bundle's, or the one that the settings name.

    Raises:
        EngineError: the engine or the bundle cannot be had.
        LoadGeneratorError: it does not run.
    """
    description = engine.describe()  # before anything is fetched for an engine that is not there
    binary, environment = engine.perf_analyzer()
    generator = perf_analyzer_at(settings.perf_analyzer or binary, environment, task.cores.load_generator)
    info = engine_info(engine.name, description, f"perf_analyzer {generator.version}", task.cores)
    return info, generator


def study_of(task: Task, plan: Plan, info: EngineInfo, names: tuple[str, ...]) -> str:
    """Name of the study that a task continues, or would begin."""
    space = task.space
    return study_name(space.model, space.target, task.digests, info, plan.machine.record(), names)
