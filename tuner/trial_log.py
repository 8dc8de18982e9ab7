"""Trials of one study as runs in MLflow, those of earlier runs that it misses included."""

from __future__ import annotations

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import Project
from tritonc.compiler.repository import compile_candidate
from tritonc.schemas.measurement import Failure
from tritonc.tuner.optuna_search import OptunaSearch
from tritonc.tuner.race import Finisher
from tritonc.tuner.stand import Stand
from tritonc.tuner.tracking import OPTUNA_TRIAL, Tracking, TrialRun
from tritonc.tuner.trial import Trial


class TrialLog:
    """Logs the trials of one study. Nothing is logged while a load runs: it is called between trials."""

    def __init__(self, project: Project, tracking: Tracking, search: OptunaSearch, stand: Stand) -> None:
        self._project = project
        self._tracking = tracking
        self._search = search
        self._stand = stand

    def open(self, tags: dict[str, str]) -> None:
        """Begins to open the parent run, and logs trials of earlier runs that it misses."""
        space = self._search.space
        self._tracking.open_study(self._search.study, f"{space.model} on {space.target}", tags)
        for trial in self._search.trials:
            if self._tracking.is_on and (trial.candidate.id, trial.optuna_trial) not in self._tracking.logged:
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
        reused = trial.capacity.reused if trial.capacity else None
        return TrialRun(
            name=f"trial {trial.number:03} {trial.candidate.id}",
            candidate=trial.candidate.id,
            knobs=trial.candidate.values,
            outcome=trial.outcome,
            config=self._config(trial.candidate),
            server_log=server_log,
            tags={
                "tritonc.trial": str(trial.number),
                OPTUNA_TRIAL: str(trial.optuna_trial),
                "tritonc.origin": trial.origin,
                "tritonc.baseline": "true" if is_baseline else "false",
                "tritonc.reused": f"{reused.loads} loads of {reused.since}" if reused else "",
            },
        )

    def _config(self, candidate: Candidate) -> str:
        """Its config.pbtxt; of a joint candidate those of all members, and the ensemble's, by name."""
        files = compile_candidate(self._project, candidate).files
        texts = (files[path] for path in files if path.name == "config.pbtxt")
        return "\n".join(text.decode() for text in texts if isinstance(text, bytes))
