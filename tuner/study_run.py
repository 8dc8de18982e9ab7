"""The study of one task while it runs: opened, searched, confirmed and logged; its evidence for the lock."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import Project
from tritonc.compiler.selection import served_result
from tritonc.schemas.errors import SetupError
from tritonc.schemas.lock import Decision, Digests
from tritonc.schemas.measurement import EngineInfo, Failure, Hardware, Load
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.demand import TraceDemand, replay_note
from tritonc.tuner.events import LoadStarted, Observer, StudyStarted, Warned
from tritonc.tuner.evidence import caveats, next_study_name
from tritonc.tuner.git import commit_of
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.objective import Objective
from tritonc.tuner.optuna_search import Goal, OptunaSearch
from tritonc.tuner.optuna_storage import study_names
from tritonc.tuner.perf_analyzer import PerfAnalyzer
from tritonc.tuner.plan import Plan, Settings, Task
from tritonc.tuner.race import Entrant, Measuring, Sample
from tritonc.tuner.session import noise_of
from tritonc.tuner.stand import Stand
from tritonc.tuner.study import Evidence, Outcome, compared_with, confirm, search_candidates
from tritonc.tuner.study_setup import (
    benches_of,
    demands_of,
    goal_of_task,
    lock_to_extend,
    records_of,
    study_of,
)
from tritonc.tuner.tracking import LEAVING_S, Tracking
from tritonc.tuner.trial_log import TrialLog


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all studies of one `tritonc tune` have in common.

    Attributes:
        state: the project's state folder.
        hardware: as the lock writes it.
        commit: of the spec and the models; None where git does not say.
    """

    project: Project
    plan: Plan
    settings: Settings
    observer: Observer
    state: Path
    hardware: Hardware
    commit: str | None
    tracking: Tracking

    @classmethod
    def of(
        cls, project: Project, plan: Plan, settings: Settings, observer: Observer, state: Path
    ) -> Surroundings:
        """Those of a run that begins."""
        tracking = Tracking(
            state,
            uri=settings.tracking_uri,
            experiment=project.spec.name,
            warn=lambda text: observer(Warned(text)),
        )
        sources = [model.path for model in project.models.values()]
        commit = commit_of(project.folder, [project.spec_file.path, *sources])
        return cls(project, plan, settings, observer, state, plan.machine.record(), commit, tracking)

    def warn(self, text: str) -> None:
        """One line for people."""
        self.observer(Warned(text))


@dataclass(frozen=True, slots=True)
class StudyRun:
    """The study of a task while it runs.

    Attributes:
        info: of the engine.
        stand: where its candidates are served.
        trials: how many are to be finished in the end.
        held: what the lock holds for it.
    """

    around: Surroundings
    task: Task
    info: EngineInfo
    search: OptunaSearch
    stand: Stand
    trials: int
    held: Decision | None

    @classmethod
    def of(
        cls, around: Surroundings, task: Task, info: EngineInfo, stand: Stand, goal: Goal | None = None
    ) -> StudyRun:
        """The study that a task continues, or begins.

        Args:
            around: of the run.
            task: of the study.
            info: of the engine.
            stand: where its candidates are served.
            goal: that of the task's model unless given.

        Raises:
            InputErrors: a trace of the workload cannot be read.
            SetupError: the storage cannot be read.
        """
        settings, storage = around.settings, around.state / "optuna.db"
        names = study_names(storage)
        name = study_of(task, around.plan, info, names, settings.sampler)
        if settings.fresh and name in names:
            name = next_study_name(name)
        search = OptunaSearch(
            task.space,
            seed=settings.seed,
            storage=storage,
            study=name,
            sampler=settings.sampler,
            goal=goal or goal_of_task(around.project, settings, task, storage, name),
        )
        held = lock_to_extend(around.project).decision(task.space.model, task.space.target)
        return cls(around, task, info, search, stand, min(settings.trials, len(task.space)), held)

    @contextmanager
    def opened(self, objective: Objective) -> Iterator[TrialLog]:
        """A server and a log; both are closed as the study ends.

        Args:
            objective: as people are told.
        """
        around, space = self.around, self.task.space
        around.tracking.connect()
        around.observer(
            StudyStarted(
                model=space.model,
                target=space.target,
                candidates=len(space),
                trials=self.trials,
                finished=self.search.trials,
                baseline=space.baseline,
                objective=objective,
                engine=self.info,
                hardware=around.hardware,
            )
        )
        if not self.task.members:
            for demand in demands_of(around.project, around.settings, space.model):
                if isinstance(demand, TraceDemand) and (note := replay_note(demand)):
                    around.warn(note)
        self.stand.start()
        log = self._log()
        log.open(self._tags())
        try:
            yield log
        except BaseException:
            self.stand.give_up()  # first: MLflow may take its time to answer
            around.tracking.close_study("KILLED", patience_s=LEAVING_S)
            raise
        self._end_log()

    def log_missing(self) -> None:
        """Logs the trials that MLflow could not take when they finished."""
        if not self.search.is_logged(self.around.tracking.place):
            self._log().open(self._tags())
            self._end_log()

    def benches(self, generator: PerfAnalyzer) -> tuple[Bench, ...]:
        """One for each workload of the model; the first one's capacity is sought."""
        folder = self.stand.folder / "load" / self.task.space.model
        return benches_of(self.around.project, self.around.settings, self.task.space, generator, folder)

    def measuring(self, bench: Bench) -> StandMeasuring:
        """What measures its candidates, and knows what was measured of them before."""
        around = self.around
        return StandMeasuring(
            self.stand,
            bench,
            baseline=self.task.space.baseline,
            compared_with=partial(compared_with, self.search),
            on_load=self.on_load,
            warn=around.warn,
            noise=noise_of(self.search),
            records=records_of(
                around.project,
                self.task,
                bench.workload,
                bench.inputs,
                self.info,
                around.plan.machine,
                around.state,
                around.settings,
                around.warn,
            ),
        )

    def measuring_anew(self, bench: Bench) -> StandMeasuring:
        """That of a study that begins, or goes on: with `fresh` nothing counts that was measured before."""
        measuring = self.measuring(bench)
        if self.around.settings.fresh:
            measuring.start_over()
        return measuring

    def on_load(self, candidate: Candidate, load: Load | None) -> None:
        """To be called when a load is about to run; None for a warm-up."""
        self.around.tracking.settle()
        self.around.observer(LoadStarted(candidate, load))

    def search_candidates(self, measuring: Measuring[Sample], log: TrialLog, deadline: float) -> None:
        """Measures candidates, as `study.search_candidates` does."""
        search_candidates(
            self.search,
            measuring,
            trials=self.trials,
            deadline=deadline,
            observer=self.around.observer,
            log=log.trial,
            expected=self.search.expected,
        )

    def confirm(
        self,
        measuring: Measuring[Sample],
        log: TrialLog,
        runners: Sequence[Entrant],
        picked: Candidate | None = None,
    ) -> Outcome:
        """Measures the best again, as `study.confirm` does, and logs it."""
        outcome = confirm(runners, measuring, self.around.observer, self.search.goal, picked)
        self.stand.withdraw()
        log.finishers(outcome.finishers)
        return outcome

    def previous(self, measuring: Measuring[Sample]) -> tuple[Candidate | None, Load | None]:
        """The configuration served now, if it is a candidate still, and the load it carries now."""
        result = served_result(self.held) if self.held else None
        if result is None:
            return None, None
        space = self.task.space
        candidate = Candidate.of(space.model, space.target, result.configuration.knobs)
        outcome = self.capacity_before(measuring, candidate)
        return (candidate, outcome.measurement.load) if outcome else (None, None)

    def capacity_before(self, measuring: Measuring[Sample], candidate: Candidate) -> Capacity | None:
        """What the configuration served now can do; None where it is no candidate any more, or fails."""
        if candidate not in self.task.space:
            self.around.warn(f"note: the lock's configuration {candidate.id} is no longer in the space")
            return None
        outcome = self.search.outcome(candidate) or measuring.capacity(candidate)
        if isinstance(outcome, Failure):
            self.around.warn(f"warning: the lock's configuration {candidate.id} failed: {outcome.reason}")
            return None
        return outcome

    def is_current(self, held: Decision, digests: Digests) -> bool:
        """Whether a decision of the lock rests on this very study, and there is nothing to add to it."""
        return (
            held.digests == digests
            and held.engine == self.info
            and held.hardware == self.around.hardware
            and held.measured_at == self.search.decided_at
            and (len(self.search.trials) >= self.trials or self.search.is_over)
            and not self.search.doubted
        )

    def evidence(self, digests: Digests, chosen: Mapping[Candidate, Capacity]) -> Evidence:
        """What a decision rests on.

        Args:
            digests: of what was measured.
            chosen: what was measured of the choice, and of what else may be picked; see `chosen_of`.
        """
        around, space = self.around, self.task.space
        baseline = self.search.outcome(space.baseline)
        return Evidence(
            digests=digests,
            engine=self.info,
            hardware=around.hardware,
            commit=around.commit,
            mlflow_run=around.tracking.parent_run,
            caveats=caveats(
                self.info,
                around.project.spec.asked_of(space.model),
                baseline if isinstance(baseline, Capacity) else None,
                chosen,
            ),
            measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def chosen_of(self, outcome: Outcome) -> Mapping[Candidate, Capacity]:
        """What the search measured of the choice, and of what else may be picked, other than the baseline."""
        assert outcome.verdict is not None
        shown = [outcome.verdict.chosen, *(member.contender for member in outcome.front)]
        seen = {
            each.candidate: self.search.outcome(each.candidate) for each in shown if each.role != "baseline"
        }
        return {one: found for one, found in seen.items() if isinstance(found, Capacity)}

    def _log(self) -> TrialLog:
        return TrialLog(self.around.project, self.around.tracking, self.search, self.stand)

    def _end_log(self) -> None:
        """Ends the parent run, and notes in the study that MLflow has all its trials if that is so."""
        tracking = self.around.tracking
        tracking.close_study("FINISHED")
        if tracking.is_on:
            with suppress(SetupError):  # then the next run looks again
                self.search.mark_logged(tracking.place)

    def _tags(self) -> dict[str, str]:
        around, info = self.around, self.info
        return {
            "tritonc.model": self.task.space.model,
            "tritonc.target": self.task.space.target,
            "tritonc.spec_sha256": around.project.spec_file.sha256,
            "tritonc.commit": around.commit or "",
            "tritonc.engine": f"{info.name} Triton {info.triton} ({info.release})",
            "tritonc.runtimes": ", ".join(f"{name} {version}" for name, version in info.runtimes.items()),
            "tritonc.load_generator": info.load_generator,
            "tritonc.hardware": around.hardware.model_dump_json(),
            "tritonc.candidates": str(len(self.task.space)),
            "tritonc.seed": str(around.settings.seed),
        }
