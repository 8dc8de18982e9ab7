"""One run of `tritonc tune`: each (model, target) searched, confirmed and decided in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import Project
from tritonc.compiler.stale import digests_in
from tritonc.schemas.lock import Decision
from tritonc.schemas.lock_file import write_lock
from tritonc.schemas.measurement import EngineInfo
from tritonc.tuner.engines import Engine
from tritonc.tuner.events import Decided, Observer, ServerStarted, Undecided
from tritonc.tuner.every_workload import EveryWorkload
from tritonc.tuner.joint_study import (
    Alone,
    carried_in,
    goal_of,
    joint_decisions,
    joint_reason,
    members_before,
)
from tritonc.tuner.joint_worth import JOINT_LOAD, Member
from tritonc.tuner.optuna_search import ANY_THROUGHPUT, OptunaSearch
from tritonc.tuner.perf_analyzer import PerfAnalyzer
from tritonc.tuner.plan import Plan, Settings, Task
from tritonc.tuner.race import Entrant, Measuring, Sample
from tritonc.tuner.stand import Stand
from tritonc.tuner.study import Outcome, decision_of, entrants, why_undecided
from tritonc.tuner.study_run import StudyRun, Surroundings
from tritonc.tuner.study_setup import lock_to_extend, measured_with
from tritonc.tuner.together import TogetherMeasuring
from tritonc.tuner.tracking import Tracking
from tritonc.tuner.trial_log import TrialLog


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
        self._around = Surroundings.of(project, plan, settings, observer, state)
        self._engine = engine
        self._confirming_s = 0.0

    @property
    def tracking(self) -> Tracking:
        """Where the trials are logged."""
        return self._around.tracking

    def run(self) -> None:
        """Tunes every task; one server for each target."""
        started, around = time.monotonic(), self._around
        for skip in around.plan.skipped:
            around.observer(skip)
        left = list(around.plan.tasks)
        for target in dict.fromkeys(task.space.target for task in left):
            tasks = [task for task in left if task.space.target == target]
            info, generator = measured_with(self._engine, tasks[0], around.settings)
            with Stand(
                around.project,
                self._engine,
                around.state / "served" / target,
                cores=tasks[0].cores.server,
                on_start=partial(self._started, info),
            ) as stand:
                parts = {member.space.model for task in tasks for member in task.members}
                for task in tasks:
                    if task.members:
                        self._tune_together(task, info, stand, generator, started, left)
                    elif task.space.model not in parts:
                        study = StudyRun.of(around, task, info, stand)
                        self._tune(study, generator, self._deadline(started, len(left)))
                        left.remove(task)

    def _started(self, info: EngineInfo, restarted: bool) -> None:
        self._around.observer(ServerStarted(info, restarted))

    def _deadline(self, started: float, tasks_left: int) -> float:
        """When the search of the next task ends: each has an equal share of the time left for searching."""
        timeout_s = self._around.settings.timeout_s
        if timeout_s is None:
            return float("inf")
        now = time.monotonic()
        searching_s = now - started - self._confirming_s
        return now + max(0.0, timeout_s - searching_s) / tasks_left

    def _tune(self, study: StudyRun, generator: PerfAnalyzer, deadline: float) -> None:
        model = study.task.space.model
        if study.held is not None and study.is_current(study.held, study.task.digests):
            study.log_missing()
            self._decided(study.held, "nothing was to be added to what the lock holds")
            return
        with study.opened(self._around.project.spec.asked_of(model).objective) as log:
            first, *further = study.benches(generator)
            measuring = study.measuring_anew(first)
            if further:
                self._measure(study, EveryWorkload(measuring, first, further), log, deadline)
            else:
                self._measure(study, measuring, log, deadline)

    def _measure(self, study: StudyRun, measuring: Measuring[Sample], log: TrialLog, deadline: float) -> None:
        """Search, race, decision, lock."""
        search = study.search
        study.search_candidates(measuring, log, deadline)
        previous, load = study.previous(measuring)
        picked = previous if study.held is not None and study.held.choice == "picked" else None
        outcome = self._confirmed(study, measuring, log, entrants(search, previous, load), picked)
        if outcome.verdict is None:
            self._not_decided(search, outcome)
            return
        evidence = study.evidence(study.task.digests, study.chosen_of(outcome))
        self._lock(search, [decision_of(search, outcome, evidence)], outcome.verdict.reason)

    def _confirmed(
        self,
        study: StudyRun,
        measuring: Measuring[Sample],
        log: TrialLog,
        runners: Sequence[Entrant],
        picked: Candidate | None = None,
    ) -> Outcome:
        began = time.monotonic()
        outcome = study.confirm(measuring, log, runners, picked)
        self._confirming_s += time.monotonic() - began
        return outcome

    def _lock(self, search: OptunaSearch, decisions: Sequence[Decision], reason: str) -> None:
        """Writes decisions of one study to the lock."""
        lock = lock_to_extend(self._around.project)
        for decision in decisions:
            lock = lock.with_decision(decision)
        write_lock(self._around.project.spec_file.lock_path, lock)
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
        around, members = self._around, task.members
        lock = lock_to_extend(around.project)
        held = [lock.decision(member.space.model, task.space.target) for member in members]
        is_over = not around.settings.fresh and self._are_current(
            held, members, StudyRun.of(around, task, info, stand, ANY_THROUGHPUT)
        )
        if is_over:
            left[:] = [one for one in left if one is not task and one not in members]
            for one in (*members, task):
                StudyRun.of(around, one, info, stand, ANY_THROUGHPUT).log_missing()
            for decision in held:
                assert decision is not None
                self._decided(decision, "nothing was to be added to what the lock holds")
            return
        alone: list[StudyRun] = []
        for one in members:
            study = StudyRun.of(around, one, info, stand)
            with study.opened(around.project.spec.models[one.space.model].objective) as log:
                measuring = study.measuring_anew(study.benches(generator)[0])
                study.search_candidates(measuring, log, self._deadline(started, len(left)))
                stand.withdraw()
            left.remove(one)
            alone.append(study)
        self._measure_together(task, alone, held, generator, self._deadline(started, len(left)))
        left.remove(task)

    def _measure_together(
        self,
        task: Task,
        alone: Sequence[StudyRun],
        held: Sequence[Decision | None],
        generator: PerfAnalyzer,
        deadline: float,
    ) -> None:
        """Search, race, decisions and lock of several models together."""
        around = self._around
        weights = around.project.spec.group_of(alone[0].task.space.model)
        studies = [Alone(study.search, weights[study.task.space.model]) for study in alone]
        cores = len(task.cores.server) or around.hardware.cores
        study = StudyRun.of(around, task, alone[0].info, alone[0].stand, goal_of(studies, cores))
        search = study.search
        benches = [one.benches(generator)[0] for one in alone]
        members = [
            Member(
                model=one.task.space.model,
                weight=of.weight,
                measuring=one.measuring(bench),
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
            on_load=study.on_load,
            warn=around.warn,
        )
        with study.opened(search.goal.objective) as log:
            study.search_candidates(measuring, log, deadline)
            previous = members_before(held)
            if previous is not None and study.capacity_before(measuring, previous) is None:
                previous = None
            load = JOINT_LOAD if previous is not None else None
            outcome = self._confirmed(study, measuring, log, entrants(search, previous, load))
            if outcome.verdict is None:
                self._not_decided(search, outcome)
                return
            chosen = study.chosen_of(outcome)
            evidence = {
                one.task.space.model: one.evidence(digests_in(around.project, one.task.space), chosen)
                for one in alone
            }
            decisions = joint_decisions(search, outcome, members, evidence)
            self._lock(search, decisions, joint_reason(outcome, members))

    def _are_current(self, held: Sequence[Decision | None], members: Sequence[Task], study: StudyRun) -> bool:
        """Whether the lock's decisions rest on this very study, and there is nothing to add to it."""
        return all(
            decision is not None
            and bool(decision.together)
            and study.is_current(decision, digests_in(self._around.project, member.space))
            for decision, member in zip(held, members, strict=True)
        )

    def _decided(self, decision: Decision, reason: str) -> None:
        self.decisions.append(decision)
        self.reasons[decision.model, decision.target] = reason
        self._around.observer(Decided(decision, reason))

    def _not_decided(self, search: OptunaSearch, outcome: Outcome) -> None:
        undecided = Undecided(search.space.model, search.space.target, why_undecided(search, outcome))
        self.undecided.append(undecided)
        self._around.observer(undecided)
