"""What several models do at the same time is worth: one number for all, and the limits of each. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tritonc.compiler.joint import named
from tritonc.schemas.measurement import ClosedLoad, Interval, Load, Measurement
from tritonc.tuner.bench import Bench
from tritonc.tuner.joint_measurement import Together, members_in
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.objective import weights_of
from tritonc.tuner.race import is_mendable
from tritonc.tuner.sample import Sample

JOINT_LOAD = ClosedLoad(concurrency=1)
"""What stands for the loads that the members of a candidate carried in its trial; 2, 3 and so on in its place
are one, two and more steps down, each for the members that broke a limit before."""

Loads = Mapping[str, Load]
Samples = Mapping[str, Sample]


@dataclass(frozen=True, slots=True)
class Member:
    """One of the models that are measured together.

    Attributes:
        weight: of its objective.
        measuring: what its measurements are worth; measures nothing here.
        bench: its load, its inputs and its limits.
        level: the logarithm of its objective that counts as 1: that of its baseline alone.
    """

    model: str
    weight: float
    measuring: StandMeasuring
    bench: Bench
    level: float = 0.0

    def score(self, measured: Measurement) -> float:
        """The logarithm of its objective, over that of its baseline alone."""
        return self.measuring.score(self.measuring.objective(measured)) - self.level


@dataclass(slots=True)
class Visits:
    """What was seen of one candidate under one set of loads: samples of all members at once."""

    loads: Loads
    samples: list[Samples] = field(default_factory=list)

    def of(self, model: str) -> list[Sample]:
        """The samples of one member."""
        return [each[model] for each in self.samples]

    def joined(self) -> Visits:
        """The same as one sample: the windows of one trial are one visit (`sample.pooled`)."""
        return Visits(self.loads, [{model: Sample.joined(self.of(model)) for model in self.loads}])


class Members:
    """The models that are measured together, by name.

    Args:
        members: in the order of the joint candidates.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self.by_model = {member.model: member for member in members}
        total = sum(member.weight for member in self.by_model.values())
        self._shares = {model: member.weight / total for model, member in self.by_model.items()}

    def __getitem__(self, model: str) -> Member:
        return self.by_model[model]

    @property
    def weigh_memory(self) -> bool:
        """Whether memory is an objective of one of them."""
        return any("memory" in weights_of(member.bench.objective) for member in self.by_model.values())

    def pooled(self, samples: Sequence[Samples], load: Load = JOINT_LOAD) -> Together:
        """Samples of all members at once, under the same loads, as one Measurement."""
        members = {
            model: member.measuring.pooled([each[model] for each in samples])
            for model, member in self.by_model.items()
        }
        return self.together(members, load)

    def together(self, members: dict[str, Measurement], load: Load = JOINT_LOAD) -> Together:
        """What all members do, from what each does; `tuner.together` says what its throughput means."""
        score = sum(self._shares[m] * self.by_model[m].score(seen) for m, seen in members.items())
        parts = [(self._shares[m], seen.throughput) for m, seen in members.items()]
        return Together(
            load=load,
            requests=min(seen.requests for seen in members.values()),
            errors=sum(seen.errors for seen in members.values()),
            duration_s=max(seen.duration_s for seen in members.values()),
            throughput=_interval(math.exp(score), parts),
            latency_ms={},
            sustained=all(seen.sustained for seen in members.values()),
            memory_bytes=max(seen.memory_bytes or 0 for seen in members.values()),
            gpu_memory_bytes=max(seen.gpu_memory_bytes or 0 for seen in members.values()) or None,
            load_s=max(seen.load_s or 0.0 for seen in members.values()) or None,
            members=members,
        )

    def violations(self, measurement: Measurement) -> dict[str, float]:
        """By how much each hard limit of each member is missed, as `model/limit`."""
        return self._of_members(measurement, lambda member, seen: member.measuring.violations(seen))

    def soft_violations(self, measurement: Measurement) -> dict[str, float]:
        """By how much each soft limit of each member is missed, as `model/limit`."""
        return self._of_members(measurement, lambda member, seen: member.measuring.soft_violations(seen))

    def lowered(self, visits: Visits) -> Loads:
        """The loads, smaller for the members that break a limit which that can mend."""
        if not visits.samples:
            return visits.loads
        measured = self.pooled(visits.samples).members
        lower: dict[str, Load] = {}
        for model, load in visits.loads.items():
            measuring = self.by_model[model].measuring
            violations = measuring.violations(measured[model])
            excess = max((value for limit, value in violations.items() if is_mendable(limit)), default=0.0)
            lower[model] = (measuring.lower(load, excess) if excess > 0 else None) or load
        return lower

    def _of_members(
        self, measurement: Measurement, what: Callable[[Member, Measurement], Mapping[str, float]]
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        for model, seen in members_in(measurement).items():
            found |= named(model, what(self.by_model[model], seen))
        return found


def _interval(value: float, parts: Sequence[tuple[float, Interval]]) -> Interval:
    """A weighted geometric mean, as uncertain as what it is made of.

    All may be off to the same side: what slows one member down slows those beside it. An end that is not
    known of one of them is not known of the mean.

    Args:
        value: of the mean.
        parts: the share of each member, and its throughput.
    """
    return Interval(
        value=value,
        low=_end(value, [(share, each.value, each.low) for share, each in parts]),
        high=_end(value, [(share, each.value, each.high) for share, each in parts]),
    )


def _end(value: float, parts: Sequence[tuple[float, float, float | None]]) -> float | None:
    """The mean where each part is at its end, from their shares, values and ends."""
    for share, part, end in parts:
        if end is None or part <= 0:
            return None
        value *= (end / part) ** share
    return value
