"""A model with several workloads: the first one's capacity is sought, the others have to hold as they are.

`EveryWorkload` is a `race.Measuring` around that of the first workload. What it finds keeps the limits only
where they are kept under every further workload too, one after another on the same server.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement
from tritonc.tuner import objective
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import NOTHING_KNOWN, Capacity, Known
from tritonc.tuner.further_workloads import UnderEach, further_in, named
from tritonc.tuner.loads import load_to_hold
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.sample import Sample

_LOOK_S = 3.0  # as long as a step of load at most; the race looks longer
_FEWEST = 8
_MOST = 400  # a p99 has an upper bound from 368 requests on (docs/search.md, fact 5)
_NEAR = 0.1
"""Only a limit kept by more is believed at once: one that seems to be missed rules a candidate out."""


@dataclass(frozen=True, slots=True)
class SampleOfEach:
    """A sample under the first workload, and one under each further one.

    Attributes:
        further: none where the first one shows that the limits are missed.
    """

    first: Sample
    further: tuple[Sample, ...]


class EveryWorkload:
    """The `Measuring` of a model with several workloads.

    Args:
        measuring: under the first one, and under given loads of the others.
        first: the bench of the first one.
        further: those of the others, with the limits that must be kept there.
    """

    def __init__(self, measuring: StandMeasuring, first: Bench, further: Sequence[Bench]) -> None:
        self._measuring = measuring
        self._first = first
        self._further = tuple(further)

    def capacity(self, candidate: Candidate, known: Known = NOTHING_KNOWN) -> Capacity | Failure:
        """That under the first workload; the others are looked at where it keeps the limits."""
        found = self._measuring.capacity(candidate, known)
        if isinstance(found, Failure) or found.is_cut or not found.slo_met:
            return found
        began = time.monotonic()
        further: list[Measurement] = []
        for bench in self._further:
            seen = self._looked(candidate, bench, found.measurement)
            if isinstance(seen, Failure):
                return _under(len(further), seen)
            further.append(seen)
        seen_under_each = _under_each(found.measurement, further)
        missed, soft = self.violations(seen_under_each), self.soft_violations(seen_under_each)
        cost = objective.soft_cost(soft)
        return replace(
            found,
            slo_met=all(value <= 0 for value in missed.values()),
            violations=missed,
            soft=soft,
            lowered=objective.lowered(self._first.objective, found.objective, cost) if cost else None,
            further=tuple(further),
            seconds=replace(found.seconds, steps=found.seconds.steps + time.monotonic() - began),
        )

    def _looked(self, candidate: Candidate, bench: Bench, under_first: Measurement) -> Measurement | Failure:
        """What a candidate does under a further workload, in as few windows as that takes."""
        load = load_to_hold(bench.workload)
        done = under_first.throughput.value / under_first.load.mean_request_batch
        rate = done if isinstance(load, ClosedLoad) else load.rate
        requests = max(_FEWEST, min(_MOST, round(_LOOK_S * rate)))
        samples: list[Sample] = []
        while True:
            sample = self._measuring.sample(candidate, load, requests, bench)
            if isinstance(sample, Failure):
                return sample
            samples.append(sample)
            seen = self._measuring.pooled([Sample.joined(samples)])  # one visit: nothing was in between
            worst = max(objective.violations(bench.slo, seen).values(), default=-1.0)
            if len(samples) > 1 or worst < -_NEAR:
                return seen

    def start_over(self) -> None:
        """As under the first workload; what was seen under the others is not kept."""
        self._measuring.start_over()

    def gather(self, known: Mapping[Candidate, Measurement | None]) -> None:
        """As under the first workload."""
        self._measuring.gather(known)

    def sample(self, candidate: Candidate, load: Load, requests: int) -> SampleOfEach | Failure:
        """Windows of at least `requests` requests under a load of the first workload, then the others."""
        first = self._measuring.sample(candidate, load, requests)
        if isinstance(first, Failure):
            return first
        missed = self._measuring.violations(self._measuring.pooled([first]))
        if any(value > _NEAR for value in missed.values()):
            return SampleOfEach(first, ())
        further: list[Sample] = []
        for bench in self._further:
            seen = self._measuring.sample(candidate, load_to_hold(bench.workload), requests, bench)
            if isinstance(seen, Failure):
                return _under(len(further), seen)
            further.append(seen)
        return SampleOfEach(first, tuple(further))

    def look(self, candidate: Candidate, load: Load, requests: int) -> Measurement | Failure:
        """Under the first workload alone."""
        return self._measuring.look(candidate, load, requests)

    def joined(self, samples: Sequence[SampleOfEach]) -> SampleOfEach:
        """Samples without another candidate in between as one."""
        whole = [each.further for each in samples if each.further]
        further = tuple(Sample.joined(of_one) for of_one in zip(*whole, strict=True))
        return SampleOfEach(Sample.joined([each.first for each in samples]), further)

    def pooled(self, samples: Sequence[SampleOfEach]) -> UnderEach:
        """All samples of a candidate as one Measurement, with those under further workloads in it."""
        whole = [each for each in samples if each.further]
        further = [
            self._measuring.pooled([each.further[place] for each in whole])
            for place in range(len(self._further) if whole else 0)
        ]
        return _under_each(self._measuring.pooled([each.first for each in samples]), further)

    def violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each hard limit is missed under any workload."""
        found = dict(self._measuring.violations(measurement))
        for place, seen in enumerate(further_in(measurement)):
            found |= named(place, objective.violations(self._further[place].slo, seen))
        return found

    def soft_violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each soft limit is missed under any workload."""
        found = dict(self._measuring.soft_violations(measurement))
        for place, seen in enumerate(further_in(measurement)):
            found |= named(place, objective.soft_violations(self._further[place].slo, seen))
        return found

    def objective(self, measurement: Measurement) -> float:
        """The objective under the first workload, larger is better."""
        return self._measuring.objective(measurement)

    def score(self, value: float) -> float:
        """The objective on a scale on which equal differences are equal ratios."""
        return self._measuring.score(value)

    def error(self, sample: SampleOfEach) -> float | None:
        """Standard error of the score of a sample, which is about the first workload."""
        return self._measuring.error(sample.first)

    def lower(self, load: Load, excess: float) -> Load | None:
        """The next smaller load of the first workload."""
        return self._measuring.lower(load, excess)


def _under_each(first: Measurement, further: Sequence[Measurement]) -> UnderEach:
    fields = {name: getattr(first, name) for name in Measurement.model_fields}
    return UnderEach(**fields, further=tuple(further))


def _under(place: int, failure: Failure) -> Failure:
    """A failure, with the further workload that it came under."""
    return failure.model_copy(update={"detail": f"under workload {place + 2}: {failure.detail}"})
