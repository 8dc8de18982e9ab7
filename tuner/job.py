"""One run of `tritonc tune`: each (model, target) searched, confirmed, decided and logged in turn."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import Project
from tritonc.compiler.selection import served_result
from tritonc.compiler.stale import digests_in
from tritonc.schemas.errors import SetupError
from tritonc.schemas.lock import Decision, Digests
from tritonc.schemas.lock_file import write_lock
from tritonc.schemas.measurement import EngineInfo, Failure, Load
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.demand import TraceDemand, replay_note
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
from tritonc.tuner.every_workload import EveryWorkload
from tritonc.tuner.evidence import caveats, next_study_name
from tritonc.tuner.git import commit_of
from tritonc.tuner.joint_study import (
    Alone,
    carried_in,
    goal_of,
    joint_decisions,
    joint_reason,
    members_before,
)
from tritonc.tuner.joint_worth import JOINT_LOAD, Member
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.objective import Objective
from tritonc.tuner.optuna_search import ANY_THROUGHPUT, Goal, OptunaSearch
from tritonc.tuner.optuna_storage import study_names
from tritonc.tuner.perf_analyzer import PerfAnalyzer
from tritonc.tuner.plan import Plan, Settings, Task
from tritonc.tuner.race import Entrant, Measuring, Sample
from tritonc.tuner.session import noise_of
from tritonc.tuner.stand import Stand
from tritonc.tuner.study import (
    Evidence,
    Outcome,
    compared_with,
    confirm,
    decision_of,
    entrants,
    search_candidates,
    why_undecided,
)
from tritonc.tuner.study_setup import (
    benches_of,
    demands_of,
    goal_of_task,
    lock_to_extend,
    measured_with,
    records_of,
    study_of,
)
from tritonc.tuner.together import TogetherMeasuring
from tritonc.tuner.tracking import LEAVING_S, Tracking
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
    search: OptunaSearch
    stand: Stand
    trials: int
    held: Decision | None


class Job:
    """One run over all tasks of a plan.

    Attributes:
        decisions: of this run, and of earlier ones that nothing was to be added to.
        reasons: a sentence for each decision, by (model, target).
        undecided: tasks of which nothing could be measured, or nothing confirmed.
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
                parts = {member.space.model for task in tasks for member in task.members}
                for task in tasks:
                    if task.members:
                        self._tune_together(task, info, stand, generator, started, left)
                    elif task.space.model not in parts:
                        study = self._study(task, info, stand)
                        self._tune(study, generator, self._deadline(started, len(left)))
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

    def _study(self, task: Task, info: EngineInfo, stand: Stand, goal: Goal | None = None) -> _Study:
        """The study of a task, whose goal is that of its model where none is given."""
        storage = self._state / "optuna.db"
        names = study_names(storage)
        name = study_of(task, self._plan, info, names, self._settings.sampler)
        if self._settings.fresh and name in names:
            name = next_study_name(name)
        search = OptunaSearch(
            task.space,
            seed=self._settings.seed,
            storage=storage,
            study=name,
            sampler=self._settings.sampler,
            goal=goal or goal_of_task(self._project, self._settings, task, storage, name),
        )
        held = lock_to_extend(self._project).decision(task.space.model, task.space.target)
        return _Study(task, info, search, stand, min(self._settings.trials, len(task.space)), held)

    def _tune(self, study: _Study, generator: PerfAnalyzer, deadline: float) -> None:
        space = study.task.space
        if study.held is not None and self._is_current(study.held, study, study.task.digests):
            self._log_missing(study)
            self._decided(study.held, "nothing was to be added to what the lock holds")
            return
        with self._opened(study, self._project.spec.asked_of(space.model).objective) as log:
            first, *further = self._benches(study, generator)
            measuring = self._measuring_anew(study, first)
            if further:
                self._measure(study, EveryWorkload(measuring, first, further), log, deadline)
            else:
                self._measure(study, measuring, log, deadline)

    @contextmanager
    def _opened(self, study: _Study, objective: Objective) -> Iterator[TrialLog]:
        """A server and a log for a study; both are closed as it ends."""
        space, search = study.task.space, study.search
        self.tracking.connect()
        self._observer(
            StudyStarted(
                model=space.model,
                target=space.target,
                candidates=len(space),
                trials=study.trials,
                finished=search.trials,
                baseline=space.baseline,
                objective=objective,
                engine=study.info,
                hardware=self._hardware,
            )
        )
        demands = () if study.task.members else demands_of(self._project, self._settings, space.model)
        for demand in demands:
            if isinstance(demand, TraceDemand) and (note := replay_note(demand)):
                self._warn(note)
        study.stand.start()
        log = TrialLog(self._project, self.tracking, search, study.stand)
        log.open(self._tags(study))
        try:
            yield log
        except BaseException:
            study.stand.give_up()  # first: MLflow may take its time to answer
            self.tracking.close_study("KILLED", patience_s=LEAVING_S)
            raise
        self._end_log(study)

    def _log_missing(self, study: _Study) -> None:
        """Logs the trials that MLflow could not take when they finished."""
        if not study.search.is_logged(self.tracking.place):
            TrialLog(self._project, self.tracking, study.search, study.stand).open(self._tags(study))
            self._end_log(study)

    def _end_log(self, study: _Study) -> None:
        """Ends the parent run, and notes in the study that MLflow has all its trials if that is so."""
        self.tracking.close_study("FINISHED")
        if self.tracking.is_on:
            with suppress(SetupError):  # then the next run looks again
                study.search.mark_logged(self.tracking.place)

    def _benches(self, study: _Study, generator: PerfAnalyzer) -> tuple[Bench, ...]:
        """One for each workload of the model; the first one's capacity is sought."""
        folder = study.stand.folder / "load" / study.task.space.model
        return benches_of(self._project, self._settings, study.task.space, generator, folder)

    def _on_load(self, candidate: Candidate, load: Load | None) -> None:
        self.tracking.settle()
        self._observer(LoadStarted(candidate, load))

    def _measuring(self, study: _Study, bench: Bench) -> StandMeasuring:
        return StandMeasuring(
            study.stand,
            bench,
            baseline=study.task.space.baseline,
            compared_with=partial(compared_with, study.search),
            on_load=self._on_load,
            warn=self._warn,
            noise=noise_of(study.search),
            records=records_of(
                self._project,
                study.task,
                bench.workload,
                bench.inputs,
                study.info,
                self._plan.machine,
                self._state,
                self._settings,
                self._warn,
            ),
        )

    def _measuring_anew(self, study: _Study, bench: Bench) -> StandMeasuring:
        """That of a study that begins, or goes on: with `fresh` nothing counts that was measured before."""
        measuring = self._measuring(study, bench)
        if self._settings.fresh:
            measuring.start_over()
        return measuring

    def _measure(self, study: _Study, measuring: Measuring[Sample], log: TrialLog, deadline: float) -> None:
        """Search, race, decision, lock."""
        search = study.search
        self._search(study, measuring, log, deadline)
        previous, load = self._previous(study, measuring)
        picked = previous if study.held is not None and study.held.choice == "picked" else None
        outcome = self._confirmed(study, measuring, log, entrants(search, previous, load), picked)
        if outcome.verdict is None:
            self._not_decided(search, outcome)
            return
        decision = decision_of(
            search, outcome, self._evidence(study, study.task.digests, _chosen(search, outcome))
        )
        self._lock(search, [decision], outcome.verdict.reason)

    def _search(self, study: _Study, measuring: Measuring[Sample], log: TrialLog, deadline: float) -> None:
        search_candidates(
            study.search,
            measuring,
            trials=study.trials,
            deadline=deadline,
            observer=self._observer,
            log=log.trial,
            expected=study.search.expected,
        )

    def _confirmed(
        self,
        study: _Study,
        measuring: Measuring[Sample],
        log: TrialLog,
        runners: Sequence[Entrant],
        picked: Candidate | None = None,
    ) -> Outcome:
        began = time.monotonic()
        outcome = confirm(runners, measuring, self._observer, study.search.goal, picked)
        self._confirming_s += time.monotonic() - began
        study.stand.withdraw()
        log.finishers(outcome.finishers)
        return outcome

    def _lock(self, search: OptunaSearch, decisions: Sequence[Decision], reason: str) -> None:
        """Writes decisions of one study to the lock."""
        lock = lock_to_extend(self._project)
        for decision in decisions:
            lock = lock.with_decision(decision)
        write_lock(self._project.spec_file.lock_path, lock)
        search.mark_decided(decisions[0].measured_at)
        for decision in decisions:
            self._decided(decision, reason)

    def _tune_together(
        self,
        task: Task,
        info: EngineInfo,
        stand: Stand,
        generator: PerfAnalyzer,
        started: float,
        left: list[Task],
    ) -> None:
        """Each member alone, without a decision, and then all together.

        Args:
            task: of all together.
            info: of the engine.
            stand: where they are served.
            generator: of the load.
            started: when the job did.
            left: tasks that are not done; those that are done now are taken out.
        """
        members = task.members
        names = [member.space.model for member in members]
        held = [lock_to_extend(self._project).decision(name, task.space.target) for name in names]
        is_over = not self._settings.fresh and self._are_current(
            held, members, self._study(task, info, stand, ANY_THROUGHPUT)
        )
        if is_over:
            left[:] = [one for one in left if one is not task and one not in members]
            for one in (*members, task):
                self._log_missing(self._study(one, info, stand, ANY_THROUGHPUT))
            for decision in held:
                assert decision is not None
                self._decided(decision, "nothing was to be added to what the lock holds")
            return
        alone: list[_Study] = []
        for one in members:
            study = self._study(one, info, stand)
            with self._opened(study, self._project.spec.models[one.space.model].objective) as log:
                measuring = self._measuring_anew(study, self._benches(study, generator)[0])
                self._search(study, measuring, log, self._deadline(started, len(left)))
                stand.withdraw()
            left.remove(one)
            alone.append(study)
        self._measure_together(task, alone, held, generator, self._deadline(started, len(left)))
        left.remove(task)

    def _measure_together(
        self,
        task: Task,
        alone: Sequence[_Study],
        held: Sequence[Decision | None],
        generator: PerfAnalyzer,
        deadline: float,
    ) -> None:
        """Search, race, decisions and lock of several models together."""
        weights = self._project.spec.group_of(alone[0].task.space.model)
        studies = [Alone(study.search, weights[study.task.space.model]) for study in alone]
        cores = len(task.cores.server) or self._hardware.cores
        study = self._study(task, alone[0].info, alone[0].stand, goal_of(studies, cores))
        search = study.search
        benches = [self._benches(one, generator)[0] for one in alone]
        members = [
            Member(
                model=one.task.space.model,
                weight=of.weight,
                measuring=self._measuring(one, bench),
                bench=bench,
                level=of.level,
            )
            for one, of, bench in zip(alone, studies, benches, strict=True)
        ]
        measuring = TogetherMeasuring(
            study.stand,
            members,
            baseline=task.space.baseline,
            carried=partial(carried_in, search),
            on_load=self._on_load,
            warn=self._warn,
        )
        with self._opened(study, search.goal.objective) as log:
            self._search(study, measuring, log, deadline)
            previous = members_before(held)
            if previous is not None and self._capacity_before(study, measuring, previous) is None:
                previous = None
            load = JOINT_LOAD if previous is not None else None
            outcome = self._confirmed(study, measuring, log, entrants(search, previous, load))
            if outcome.verdict is None:
                self._not_decided(search, outcome)
                return
            chosen = _chosen(search, outcome)
            evidence = {
                one.task.space.model: self._evidence(one, digests_in(self._project, one.task.space), chosen)
                for one in alone
            }
            decisions = joint_decisions(search, outcome, members, evidence)
            self._lock(search, decisions, joint_reason(outcome, members))

    def _are_current(self, held: Sequence[Decision | None], members: Sequence[Task], study: _Study) -> bool:
        """Whether the lock's decisions rest on this very study, and there is nothing to add to it."""
        return all(
            decision is not None
            and bool(decision.together)
            and self._is_current(decision, study, digests_in(self._project, member.space))
            for decision, member in zip(held, members, strict=True)
        )

    def _evidence(self, study: _Study, digests: Digests, chosen: Mapping[Candidate, Capacity]) -> Evidence:
        space = study.task.space
        baseline = study.search.outcome(space.baseline)
        return Evidence(
            digests=digests,
            engine=study.info,
            hardware=self._hardware,
            commit=self._commit,
            mlflow_run=self.tracking.parent_run,
            caveats=caveats(
                study.info,
                self._project.spec.asked_of(space.model),
                baseline if isinstance(baseline, Capacity) else None,
                chosen,
            ),
            measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _is_current(self, held: Decision, study: _Study, digests: Digests) -> bool:
        """Whether the lock's decision rests on this very study, and there is nothing to add to it."""
        return (
            held.digests == digests
            and held.engine == study.info
            and held.hardware == self._hardware
            and held.measured_at == study.search.decided_at
            and (len(study.search.trials) >= study.trials or study.search.is_over)
            and not study.search.doubted
        )

    def _previous(self, study: _Study, measuring: Measuring[Sample]) -> tuple[Candidate | None, Load | None]:
        """The configuration served now, if it is a candidate still, and the load it carries now."""
        result = served_result(study.held) if study.held else None
        if result is None:
            return None, None
        space = study.task.space
        candidate = Candidate.of(space.model, space.target, result.configuration.knobs)
        outcome = self._capacity_before(study, measuring, candidate)
        return (candidate, outcome.measurement.load) if outcome else (None, None)

    def _capacity_before(
        self, study: _Study, measuring: Measuring[Sample], candidate: Candidate
    ) -> Capacity | None:
        """What the configuration served now can do; None where it is no candidate any more, or fails."""
        if candidate not in study.task.space:
            self._warn(f"note: the lock's configuration {candidate.id} is no longer in the space")
            return None
        outcome = study.search.outcome(candidate) or measuring.capacity(candidate)
        if isinstance(outcome, Failure):
            self._warn(f"warning: the lock's configuration {candidate.id} failed: {outcome.reason}")
            return None
        return outcome

    def _decided(self, decision: Decision, reason: str) -> None:
        self.decisions.append(decision)
        self.reasons[decision.model, decision.target] = reason
        self._observer(Decided(decision, reason))

    def _not_decided(self, search: OptunaSearch, outcome: Outcome) -> None:
        undecided = Undecided(search.space.model, search.space.target, why_undecided(search, outcome))
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


def _chosen(search: OptunaSearch, outcome: Outcome) -> Mapping[Candidate, Capacity]:
    """What the search measured of the choice, and of what else may be picked, other than the baseline."""
    assert outcome.verdict is not None
    shown = [outcome.verdict.chosen, *(member.contender for member in outcome.front)]
    found = {each.candidate: search.outcome(each.candidate) for each in shown if each.role != "baseline"}
    return {one: seen for one, seen in found.items() if isinstance(seen, Capacity)}
