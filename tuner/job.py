"""One run of `tritonc tune`: each (model, target) searched, confirmed, decided and logged in turn."""

from __future__ import annotations

import datetime
import time
from pathlib import Path, PurePosixPath

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import Project
from tritonc.compiler.repository import compile_candidate
from tritonc.compiler.selection import served_result
from tritonc.schemas.lock import Decision, Lock
from tritonc.schemas.lock_file import read_lock, write_lock
from tritonc.schemas.measurement import EngineInfo, Failure, Load
from tritonc.tuner.engines import Engine
from tritonc.tuner.events import Decided, Observer, ServerStarted, StudyStarted, Undecided, Warned
from tritonc.tuner.evidence import caveats, next_study_name, study_name
from tritonc.tuner.git import commit_of
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.plan import Plan, Settings, Task
from tritonc.tuner.race import Finisher
from tritonc.tuner.search import Search, Trial, study_names
from tritonc.tuner.stand import Stand
from tritonc.tuner.study import Evidence, confirm, decision_of, entrants, search_candidates
from tritonc.tuner.tracking import Tracking, TrialRun


class Job:
    """One run over all tasks of a plan."""

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
        self._lock_path = project.spec_file.lock_path
        self._commit = commit_of(
            project.folder, [project.spec_file.path, *(m.path for m in project.models.values())]
        )
        self.tracking = Tracking(
            state,
            uri=settings.tracking_uri,
            experiment=project.spec.name,
            warn=lambda text: observer(Warned(text)),
        )

    def run(self) -> None:
        """Tunes every task; one server for each target."""
        started = time.monotonic()
        for skip in self._plan.skipped:
            self._observer(skip)
        left = list(self._plan.tasks)
        for target in dict.fromkeys(task.space.target for task in left):
            tasks = [task for task in left if task.space.target == target]
            info = engine_of(self._engine, tasks[0], self._settings)
            with Stand(
                self._project,
                self._engine,
                self._state / "served" / target,
                cores=tasks[0].cores.server,
                on_start=lambda restarted, info=info: self._observer(ServerStarted(info, restarted)),
            ) as stand:
                for task in tasks:
                    self._tune(task, info, stand, self._deadline(started, len(left)))
                    left.remove(task)

    def _deadline(self, started: float, tasks_left: int) -> float:
        """When the search of the next task ends: each has an equal share of the time that is left."""
        if self._settings.timeout_s is None:
            return float("inf")
        now = time.monotonic()
        return now + max(0.0, started + self._settings.timeout_s - now) / tasks_left

    def _tune(self, task: Task, info: EngineInfo, stand: Stand, deadline: float) -> None:
        space = task.space
        search = self._search(task, info)
        lock = read_lock(self._lock_path) or Lock(spec=self._project.spec.name)
        held = lock.decision(space.model, space.target)
        trials = min(self._settings.trials, len(space))
        if held is not None and self._is_current(held, task, info, search, trials):
            self._decided(held, "nothing was to be added to what the lock holds")
            return
        self._observer(
            StudyStarted(
                model=space.model,
                target=space.target,
                candidates=len(space),
                trials=trials,
                finished=search.trials,
                baseline=space.baseline,
                engine=info,
                hardware=self._plan.machine.record(),
            )
        )
        logger = _Logger(self._project, self.tracking, search, stand)
        logger.open(search.study, self._tags(task, info))
        try:
            self._measure(task, info, search, stand, logger, deadline, held)
        except BaseException:
            self.tracking.close_study("KILLED")
            raise
        self.tracking.close_study("FINISHED")

    def _measure(
        self,
        task: Task,
        info: EngineInfo,
        search: Search,
        stand: Stand,
        logger: _Logger,
        deadline: float,
        held: Decision | None,
    ) -> None:
        """Search, race, decision, lock."""
        space = task.space
        measuring = self._measuring(task, stand)
        trials = min(self._settings.trials, len(space))
        search_candidates(
            search, measuring, trials=trials, deadline=deadline, observer=self._observer, log=logger.trial
        )
        previous, load = self._previous(task, held)
        outcome = confirm(entrants(search, previous, load), measuring, self._observer)
        stand.withdraw()
        logger.finishers(outcome.finishers)
        if outcome.verdict is None:
            self._not_decided(search)
            return
        baseline = search.outcome(space.baseline)
        evidence = Evidence(
            digests=task.digests,
            engine=info,
            hardware=self._plan.machine.record(),
            commit=self._commit,
            mlflow_run=self.tracking.parent_run,
            caveats=caveats(
                info,
                self._project.spec.models[space.model],
                None if isinstance(baseline, Failure) else baseline,
            ),
            measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        decision = decision_of(search, outcome, evidence)
        lock = read_lock(self._lock_path) or Lock(spec=self._project.spec.name)
        write_lock(self._lock_path, lock.with_decision(decision))
        self._decided(decision, outcome.verdict.reason)

    def _search(self, task: Task, info: EngineInfo) -> Search:
        storage = self._state / "optuna.db"
        names = study_names(storage)
        name = study_of(task, self._plan, info, names)
        if self._settings.fresh and name in names:
            name = next_study_name(name)
        return Search(task.space, seed=self._settings.seed, storage=storage, study=name)

    def _is_current(self, held: Decision, task: Task, info: EngineInfo, search: Search, trials: int) -> bool:
        """Whether the lock's decision rests on this very study, and there is nothing to add to it."""
        return (
            held.digests == task.digests
            and held.engine == info
            and held.hardware == self._plan.machine.record()
            and held.trials == len(search.trials) >= trials
        )

    def _previous(self, task: Task, held: Decision | None) -> tuple[Candidate | None, Load | None]:
        """The configuration served now, if it is a candidate still, and the load it was measured at."""
        result = served_result(held) if held else None
        if result is None:
            return None, None
        candidate = Candidate.of(task.space.model, task.space.target, result.configuration.knobs)
        if candidate not in task.space:
            self._observer(Warned(f"the lock's configuration {candidate.id} is no longer in the space"))
            return None, None
        return candidate, result.measurement.load

    def _decided(self, decision: Decision, reason: str) -> None:
        self.decisions.append(decision)
        self.reasons[decision.model, decision.target] = reason
        self._observer(Decided(decision, reason))

    def _not_decided(self, search: Search) -> None:
        failures = [trial.outcome for trial in search.trials if isinstance(trial.outcome, Failure)]
        why = f"{failures[0].reason}: {failures[0].detail}" if failures else "there was no time"
        undecided = Undecided(search.space.model, search.space.target, f"nothing could be measured; {why}")
        self.undecided.append(undecided)
        self._observer(undecided)

    def _tags(self, task: Task, info: EngineInfo) -> dict[str, str]:
        return {
            "tritonc.model": task.space.model,
            "tritonc.target": task.space.target,
            "tritonc.spec_sha256": self._project.spec_file.sha256,
            "tritonc.commit": self._commit or "",
            "tritonc.engine": f"{info.name} Triton {info.triton} ({info.release})",
            "tritonc.runtimes": ", ".join(f"{name} {version}" for name, version in info.runtimes.items()),
            "tritonc.load_generator": info.load_generator,
            "tritonc.hardware": self._plan.machine.record().model_dump_json(),
            "tritonc.candidates": str(len(task.space)),
            "tritonc.seed": str(self._settings.seed),
        }


def study_of(task: Task, plan: Plan, info: EngineInfo, names: tuple[str, ...]) -> str:
    """Name of the study that a task continues, or would begin."""
    space = task.space
    return study_name(space.model, space.target, task.digests, info, plan.machine.record(), names)


class _Logger:
    """Trials of one study as MLflow runs."""

    def __init__(self, project: Project, tracking: Tracking, search: Search, stand: Stand) -> None:
        self._project = project
        self._tracking = tracking
        self._search = search
        self._stand = stand

    def open(self, study: str, tags: dict[str, str]) -> None:
        """Opens the parent run, and logs trials of earlier runs that it misses."""
        space = self._search.space
        logged = self._tracking.open_study(study, f"{space.model} on {space.target}", tags)
        for trial in self._search.trials:
            if self._tracking.is_on and trial.candidate.id not in logged:
                self._tracking.log_trial(self._run(trial, ""))

    def trial(self, trial: Trial) -> None:
        """Logs a trial that has just finished."""
        failed = isinstance(trial.outcome, Failure)
        self._tracking.log_trial(self._run(trial, self._stand.log_tail() if failed else ""))

    def finishers(self, finishers: tuple[Finisher, ...]) -> None:
        """Logs what the confirmation measured."""
        for finisher in finishers:
            candidate = finisher.contender.candidate
            self._tracking.log_trial(
                TrialRun(
                    name=f"confirmation {candidate.id}",
                    candidate=candidate.id,
                    knobs=candidate.values,
                    outcome=finisher.capacity,
                    config=self._config(candidate),
                    kind="confirmation",
                    tags={"tritonc.role": finisher.contender.role},
                )
            )

    def _run(self, trial: Trial, server_log: str) -> TrialRun:
        is_baseline = trial.candidate == self._search.space.baseline
        return TrialRun(
            name=f"trial {trial.number:03} {trial.candidate.id}",
            candidate=trial.candidate.id,
            knobs=trial.candidate.values,
            outcome=trial.outcome,
            config=self._config(trial.candidate),
            server_log=server_log,
            tags={
                "tritonc.trial": str(trial.number),
                "tritonc.origin": trial.origin,
                "tritonc.baseline": "true" if is_baseline else "false",
            },
        )

    def _config(self, candidate: Candidate) -> str:
        files = compile_candidate(self._project, candidate).files
        content = files[PurePosixPath(candidate.model, "config.pbtxt")]
        return content.decode() if isinstance(content, bytes) else ""
