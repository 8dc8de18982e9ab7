"""The rules by which the next load of one candidate is chosen, and the one that decides. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tritonc.schemas.measurement import ClosedLoad, Load, Measurement
from tritonc.schemas.request_batch import mean_size
from tritonc.schemas.spec import Slo
from tritonc.tuner.boundary import APART, Curve, Point
from tritonc.tuner.demand import Demand, OpenDemand
from tritonc.tuner.loads import ceiling, level_of, workload_kind
from tritonc.tuner.objective import Objective, Percentile, latency_limits, seeks_capacity

GAIN = 0.02
"""A step of load that gains less throughput than this is not worth its latency, as README has it."""

_STEP = 0.05  # the bracket is narrow enough when its ends are this close, or neighbours
_CLOSE = 1.5  # between levels farther apart than this there may be a better one
_FARTHEST = 4.0  # one step goes no farther than this factor
_TAIL_RATIO = 1.3  # p99 over average at saturation, until it is seen; it is nearly constant within a model
_FEWEST_FOR_TAIL = 100  # requests

Rule = Callable[[Curve], float | None]
"""The next level, given what was measured; None when it is enough."""

Choice = Callable[[Sequence[Point]], Point]
"""The point that decides, of those that were measured."""


def rule_for(
    workload: Demand, slo: Slo, objective: Objective, saturated: Measurement | None, first: Load | None
) -> tuple[float, Rule, Choice]:
    """First level, rule and choice for what the objective needs."""
    for_capacity = seeks_capacity(objective)
    limits, least = latency_limits(slo.limits), slo.limits.get("min_throughput")
    expected = level_of(first) if first is not None and first.kind == workload_kind(workload) else None
    if isinstance(workload, OpenDemand):
        if not for_capacity:
            return workload.rate, stay, within
        done = saturated.throughput.value / mean_size(workload.request_batch) if saturated else None
        guess = expected or (0.8 * done if done else None)
        return workload.rate, _OpenCapacity(ceiling(workload), guess), _largest_within
    if not for_capacity:
        if least is None:
            return 1, stay, within
        reach = _Reach(least, workload.max_concurrency)
        return 1, reach, reach.choose
    if expected is None:
        expected = _first_guess(limits, workload.max_concurrency, saturated)
    guess = max(1, min(expected, workload.max_concurrency))
    return guess, *capacity_rule(workload, bool(limits) or "avg_queue_ms" in slo.limits)


def capacity_rule(workload: Demand, is_limited: bool) -> tuple[Rule, Choice]:
    """Rule and choice where capacity is sought.

    Args:
        workload: of the spec.
        is_limited: whether there is a limit that a larger load breaks.
    """
    if isinstance(workload, OpenDemand):
        return _OpenCapacity(ceiling(workload), None), _largest_within
    if is_limited:
        return _ClosedCapacity(workload.max_concurrency), within
    return _Knee(workload.max_concurrency), _knee


def stay(_curve: Curve) -> float | None:
    """Never another level: there is only one to know about."""
    return None


def within(points: Sequence[Point]) -> Point:
    """The highest throughput within the limits, else the least violating."""
    able = [point for point in points if point.excess <= 0]
    if able:
        return max(able, key=lambda point: (point.throughput.value, -point.level))
    return min(points, key=lambda point: (point.excess, point.level))


def _largest_within(points: Sequence[Point]) -> Point:
    """The highest rate that all below it are kept within the limits too, else the lowest."""
    kept = points[0]
    for point in points:
        if point.excess > 0:
            break
        kept = point
    return kept


def _knee(points: Sequence[Point]) -> Point:
    """The lowest load that no other beats by 2%."""
    top = max(point.throughput.value for point in points)
    return next(point for point in points if point.throughput.value * (1 + GAIN) >= top)


def _first_guess(limits: Mapping[Percentile, float], ceiling: int, saturated: Measurement | None) -> float:
    """Little's law: clients = throughput x average latency, at the average that belongs to the limit."""
    if saturated is None or not isinstance(saturated.load, ClosedLoad):
        return min(4, ceiling)
    if not limits:
        return min(saturated.load.concurrency, ceiling)
    averages = [limit / _tail_ratio(name, saturated) for name, limit in limits.items()]
    requests = saturated.throughput.value / saturated.load.mean_request_batch
    return min(ceiling, max(1, math.floor(requests * min(averages) / 1000)))


def _tail_ratio(name: Percentile, saturated: Measurement) -> float:
    """A percentile over the average: what was seen, where its largest value alone does not make it."""
    if saturated.requests < _FEWEST_FOR_TAIL:
        return _TAIL_RATIO if name in ("p99", "p95") else 1.0
    return max(1.0, saturated.latency_ms[name].value / saturated.latency_ms["avg"].value)


@dataclass(frozen=True, slots=True)
class _ClosedCapacity:
    """The most clients within the limits, up to `ceiling`; ends early where more clients bring nothing."""

    ceiling: int

    def __call__(self, curve: Curve) -> float | None:
        below, above = curve.bracket
        if below is None:
            lowest = curve.points[0].level
            least = max(lowest / _FARTHEST, curve.boundary())
            return None if lowest <= 1 else max(1, min(lowest - 1, math.floor(least)))
        low = curve.points[below]
        if above is None:
            return self._more(curve)
        high = curve.points[above]
        if high.level - low.level <= max(1, _STEP * low.level):
            return None
        fitted = curve.throughput(curve.boundary()), curve.throughput(low.level)
        gains_nothing = high.throughput.value > 0 and fitted[0] < fitted[1] * (1 + GAIN)
        if gains_nothing and high.level <= _CLOSE * low.level:
            return None
        # Not too near to either end: both are known already.
        share = math.log(curve.boundary() / low.level) / math.log(high.level / low.level)
        apart: float = (high.level / low.level) ** min(0.8, max(0.2, share))
        between = math.floor(low.level * apart)
        return min(high.level - 1, max(low.level + 1, between))

    def _more(self, curve: Curve) -> float | None:
        """Where all loads are kept within the limits, a larger one, if that can bring anything.

        One short window may be off by a tenth: a single step without gain proves little. Near the limit more
        clients bring more only below saturation, where latency does not rise with them.
        """
        low = curve.points[-1]
        is_near = curve.ratios[-1] > -_STEP
        if (
            low.level >= self.ceiling
            or _flat(curve.points, steps=2)
            or (is_near and not _scales(curve.points))
        ):
            return None
        farther = low.level * APART if is_near else min(curve.boundary(), _FARTHEST * low.level)
        return min(self.ceiling, max(low.level + 1, math.floor(farther)))


@dataclass(frozen=True, slots=True)
class _OpenCapacity:
    """The highest rate within the limits, up to `ceiling`; over at once if the lowest one is not carried.

    `guess` is the rate at which they are expected to end.
    """

    ceiling: float
    guess: float | None

    def __call__(self, curve: Curve) -> float | None:
        points = curve.points
        below, above = curve.bracket
        if below is None or points[0].excess > 0:
            return None
        low = points[below]
        if above is None:
            if low.level >= self.ceiling:
                return None
            guess = min(self.guess or 2 * low.level, _FARTHEST * low.level)
            return min(self.ceiling, max(1.3 * low.level, guess))
        high = points[above]
        if high.level <= low.level * (1 + _STEP):
            return None
        return math.sqrt(low.level * high.level)


@dataclass(frozen=True, slots=True)
class _Knee:
    """The load above which twice the clients gain less than 2%."""

    ceiling: int

    def __call__(self, curve: Curve) -> float | None:
        points = curve.points
        if points[-1].level < self.ceiling and not _flat(points):
            return min(self.ceiling, 2 * points[-1].level)
        top = max(point.throughput.value for point in points)
        lowest = points[0]
        if lowest.level > 1 and lowest.throughput.value * (1 + GAIN) >= top:
            return max(1, lowest.level // 2)
        return None


@dataclass(frozen=True, slots=True)
class _Reach:
    """The fewest clients that bring `throughput` inferences a second."""

    throughput: float
    ceiling: int

    def __call__(self, curve: Curve) -> float | None:
        points = curve.points
        short = [point for point in points if point.throughput.value < self.throughput]
        there = [point for point in points if point.throughput.value >= self.throughput]
        if not short:
            return None
        low = short[-1]
        if not there:
            if low.level >= self.ceiling or _flat(points):
                return None
            factor = min(_FARTHEST, self.throughput / low.throughput.value) if low.throughput.value else 2.0
            return min(self.ceiling, max(low.level + 1, math.ceil(low.level * factor)))
        high = there[0]
        if high.level - low.level <= max(1, _STEP * low.level):
            return None
        return (low.level + high.level) // 2

    def choose(self, points: Sequence[Point]) -> Point:
        """The fewest clients that are enough, else those that bring most."""
        there = [point for point in points if point.throughput.value >= self.throughput]
        return there[0] if there else max(points, key=lambda point: point.throughput.value)


def _flat(points: Sequence[Point], steps: int = 1) -> bool:
    """Whether the highest `steps` levels, well above the others, gained less than 2% over these."""
    below, above = points[:-steps], points[-steps:]
    if not below or above[-1].level < APART * below[-1].level:
        return False
    top = max(point.throughput.value for point in below)
    return max(point.throughput.value for point in above) < top * (1 + GAIN)


def _scales(points: Sequence[Point]) -> bool:
    """Whether the last step brought at least half of what its share of more load could; one point may."""
    if len(points) < 2:
        return True
    before, last = points[-2], points[-1]
    possible = last.level / before.level - 1
    return last.throughput.value >= before.throughput.value * (1 + possible / 2)
