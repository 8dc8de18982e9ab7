"""What a trial found out about a candidate, and what a study knows before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tritonc.schemas.measurement import Interval, Load, Measurement
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.recorded import Recorded, Reused


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the wall time of a trial went; warm-up and steps are those of the load generator."""

    load: float = 0.0
    warm_up: float = 0.0
    verify: float = 0.0
    steps: float = 0.0
    noise: float = 0.0
    """Windows for the noise floor; the baseline's first trial has them."""
    own: float = 0.0
    """None of these: tritonc itself, and asking the server how it is."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.load + self.warm_up + self.verify + self.steps + self.noise + self.own


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest load at which a candidate keeps the SLO, or the least violating one.

    Attributes:
        measurement: at that load.
        steps: every load that was measured, ascending.
        violations: by how much each hard limit is missed, relative to it; not above 0 where it is kept.
        objective: larger is better.
        soft: by how much each soft limit is missed, as `violations`.
        lowered: the objective, worse by what missing soft limits costs; None where that is nothing.
        interval: throughput within the limits, with what is not known about where these end.
        is_cut: it was left early, as the best candidate is better at any load within the limits.
        noise: the noise floor, with what the windows of this trial add to it; None where it is not known.
        members: of a joint candidate: what was measured of each model, by its name.
        further: under the second workload, the third and so on, which must hold, too; none where there are
            none, or where the limits are missed under the first one.
        windows: how many windows of load each step rests on; 0 for what only the warm-up saw. None of a joint
            candidate.
        reused: how much of this was measured before, in another study.
        is_verified: its outputs agree with the baseline's; False where that gave none to compare with.
    """

    measurement: Measurement
    steps: tuple[Measurement, ...]
    slo_met: bool
    violations: Mapping[str, float]
    objective: float
    seconds: Seconds = field(default_factory=Seconds)
    interval: Interval | None = None
    is_cut: bool = False
    noise: NoiseFloor | None = None
    soft: Mapping[str, float] = field(default_factory=dict)
    lowered: float | None = None
    members: Mapping[str, Measurement] = field(default_factory=dict)
    further: tuple[Measurement, ...] = ()
    windows: tuple[int, ...] = ()
    reused: Reused | None = None
    is_verified: bool = True

    @property
    def worth(self) -> float:
        """By what capacities that keep the SLO are ranked."""
        return self.objective if self.lowered is None else self.lowered


@dataclass(frozen=True, slots=True)
class Known:
    """What a study knows before it measures a candidate.

    Attributes:
        first: the load at which the candidate's limits are expected to end.
        incumbent: the objective of the best candidate that keeps the SLO, with its interval.
        noise: the machine's noise floor.
        is_doubted: what was measured of the candidate before does not count, in whichever study it was.
        loads: what was measured of it before, by load.
    """

    first: Load | None = None
    incumbent: Interval | None = None
    noise: NoiseFloor | None = None
    is_doubted: bool = False
    loads: Mapping[Load, Recorded] = field(default_factory=dict)


NOTHING_KNOWN = Known()
