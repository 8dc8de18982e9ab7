"""The lock: what `tune` decided for each (model, target), and the measurements that justify it."""

from __future__ import annotations

from typing import Literal

from tritonc.schemas.measurement import EngineInfo, Failure, Hardware, Load, Measurement, Record

SCHEMA_VERSION: Literal[1] = 1

KnobValue = bool | int | float | str | tuple[int, ...]


class Configuration(Record):
    """A candidate as the lock writes it: its id and the value of every knob that is active in it."""

    id: str
    knobs: dict[str, KnobValue]


class Result(Record):
    """A configuration's capacity: the largest load at which it kept the SLO, or the least violating one."""

    configuration: Configuration
    measurement: Measurement
    slo_met: bool
    objective: float
    """Value of the objective, larger is better (see `Decision.objective_unit`)."""


class Digests(Record):
    """SHA-256 of everything the evidence depends on, so that a stale lock is recognised."""

    source: str
    """The model file (with its external data)."""
    signature: str
    """Inputs, outputs, dtypes and dims: weights may change without changing it."""
    space: str
    """Knobs, values and conditions that were searched."""
    load: str
    """Workload, SLO, objective, accuracy, shapes and data."""


class Decision(Record):
    """What was chosen for one (model, target), what it was measured against, and how."""

    model: str
    target: str
    chosen: Result
    baseline: Result | None
    """None where the baseline itself failed; `baseline_failure` says why."""
    baseline_failure: Failure | None = None
    previous: Result | None = None
    """The configuration that the lock held before, measured again."""
    slo_met: bool
    improved: bool
    """The chosen configuration beat the baseline by more than the noise; false: the baseline was kept."""
    gain: float | None
    """Objective of the chosen over the baseline's, minus 1; None where there is no baseline."""
    noise: float | None
    """Relative difference below which two configurations count as equal in this run."""
    trials: int
    failed_trials: int
    candidates: int
    """Size of the space."""
    seed: int
    engine: EngineInfo
    hardware: Hardware
    digests: Digests
    measured_at: str
    """UTC, ISO 8601."""
    commit: str | None = None
    """Git commit of the spec's folder, with "+dirty" where it had changes."""
    mlflow_run: str | None = None
    caveats: tuple[str, ...] = ()
    """Why the ranking may not carry over to the official backend, in sentences."""
    stale_evidence_accepted: bool = False


class Lock(Record):
    """A whole lock file, decisions sorted by target and model."""

    schema_version: Literal[1] = SCHEMA_VERSION
    spec: str
    """The spec's `name`."""
    decisions: tuple[Decision, ...] = ()

    def decision(self, model: str, target: str) -> Decision | None:
        """The decision for (model, target), or None."""
        return next((d for d in self.decisions if (d.model, d.target) == (model, target)), None)

    def with_decision(self, decision: Decision) -> Lock:
        """This lock with `decision` in the place of any earlier one for the same model and target."""
        key = (decision.target, decision.model)
        others = (d for d in self.decisions if (d.target, d.model) != key)
        return self.model_copy(
            update={"decisions": tuple(sorted((*others, decision), key=lambda d: (d.target, d.model)))}
        )


__all__ = [
    "SCHEMA_VERSION",
    "Configuration",
    "Decision",
    "Digests",
    "KnobValue",
    "Load",
    "Lock",
    "Result",
]
