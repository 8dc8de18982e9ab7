"""The lock: what `tune` decided for each (model, target), and the measurements that justify it."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from tritonc.schemas.errors import found
from tritonc.schemas.measurement import EngineInfo, Failure, Hardware, Load, Measurement, Record
from tritonc.schemas.problems import problem

SCHEMA_VERSION: Literal[1] = 1

KnobValue = bool | int | float | str | tuple[int, ...]


def _knob_value(value: object) -> object:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return value
    raise problem(
        f"{{field}} is {found(value)}", "it must be a number, text, true, false, or whole numbers in a list"
    )


class Configuration(Record):
    """A candidate as the lock writes it: its id and the value of every knob that is active in it."""

    id: str
    knobs: dict[str, Annotated[KnobValue, BeforeValidator(_knob_value)]]


class Result(Record):
    """A configuration's capacity: the largest load at which it kept the SLO, or the least violating one."""

    configuration: Configuration
    measurement: Measurement
    slo_met: bool
    objective: float
    """Value of the objective, larger is better: inferences a second, minus the latency in ms, minus bytes,
    minus the price of a million inferences, minus joules an inference, or for a weighted objective the
    weighted log ratio to the baseline (on a front all weigh the same)."""
    missed: dict[str, float] = Field(default_factory=dict)
    """Hard limits that it misses, by how much relative to them; none where `slo_met`. Those that it misses
    under the second workload have "workload 2: " before their name, and so on."""
    missed_soft: dict[str, float] = Field(default_factory=dict)
    """Soft limits that it misses, by how much relative to them."""
    further: tuple[Measurement, ...] = ()
    """Where several workloads must hold: what it did under the second one, the third, and so on. None where
    it missed the limits under the first one already."""


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
    front: tuple[Result, ...] = ()
    """Where the objective is a front: the configurations that no other one beats in all objectives, measured
    again, the best in the first objective first."""
    choice: Literal["knee", "picked"] | None = None
    """How `chosen` was taken from the front: its knee, nearest to the best of every objective in shares of
    the ranges (of logarithms) on the front, or picked by a person."""
    previous: Result | None = None
    """The configuration that the lock held before, measured again."""
    slo_met: bool
    improved: bool
    """The chosen configuration beat the baseline by more than the noise; false: the baseline was kept."""
    gain: float | None
    """Objective of the chosen over the baseline's, minus 1; None where there is no baseline."""
    noise: float | None
    """Relative difference below which two configurations count as equal in this run."""
    trials: Annotated[int, Field(ge=0)]
    failed_trials: Annotated[int, Field(ge=0)]
    candidates: Annotated[int, Field(ge=0)]
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
    together: tuple[str, ...] = ()
    """The models that were tuned together with this one, itself included: all were under load at once, and
    `trials`, `candidates`, `improved`, `slo_met` and `noise` are about all of them."""
    caveats: tuple[str, ...] = ()
    """Why the ranking may not carry over to the official backend, in sentences."""
    stale_evidence_accepted: bool = False


class Lock(Record):
    """A whole lock file, decisions sorted by target and model."""

    schema_version: Literal[1] = SCHEMA_VERSION
    spec: str
    """The spec's `name`."""
    decisions: tuple[Decision, ...] = ()

    @field_validator("decisions")
    @classmethod
    def _once(cls, value: tuple[Decision, ...]) -> tuple[Decision, ...]:
        seen: set[tuple[str, str]] = set()
        for i, decision in enumerate(value):
            if (decision.model, decision.target) in seen:
                what = f"a second decision for model {decision.model} on target {decision.target}"
                raise problem(what, "remove one", at=(i,))
            seen.add((decision.model, decision.target))
        return value

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
