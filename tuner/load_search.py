"""Which load to measure next for one candidate, until the one that decides is known. Pure ask/tell.

p99 rises with load, apart from noise, so a bracket of a load that keeps the SLO and one that does not is
narrowed (design/search.md, facts 1 to 3): the first guess comes from Little's law and one short window at
saturation, the next ones from interpolating the excess over the limit on logarithmic scales, on a curve
that is made to rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tritonc.schemas.measurement import ClosedLoad, Load, Measurement, OpenLoad
from tritonc.schemas.spec import ClosedWorkload, OpenWorkload, Slo, Workload
from tritonc.tuner.objective import Objective, Percentile, latency_limits, weights_of

GAIN = 0.02
"""A step of load that gains less throughput than this is not worth its latency (design/contract.md)."""
MAX_ASKS = 8
"""Windows at most; a typical candidate needs three to five."""

_STEP = 0.05  # the bracket is narrow enough when its ends are this close, or neighbours
_NEAR = 0.1  # a load this close to the limit is measured twice before it is believed
_TIMES = 2
_APART = 1.25  # levels nearer to each other say nothing about what more load gains
_CLOSE = 1.5  # between levels farther apart than this there may be a better one
_FLAT_STEP = 1.5  # a smaller step may only have left a good multiple of the batch size
_STRAY = 1.4  # p99 over average is nearly constant within a model (fact 3): beyond that it is noise
_FARTHEST = 4.0  # one step goes no farther than this factor
_TAIL_RATIO = 1.3  # p99 over average at saturation; it is nearly constant within a model
_MAX_RATE = 16.0  # times `rate`, where the spec has no `max_rate` (schemas.spec.OpenWorkload)


@dataclass(frozen=True, slots=True)
class Point:
    """A load that was measured.

    Attributes:
        level: clients (closed) or requests a second (open).
        times: windows it was measured for.
        throughput: inferences a second; 0 where nothing was completed.
        excess: by how much the latency limits are missed, relative to them; negative where they are kept,
            infinite where nothing was completed.
        tail: the limited latency over the average.
    """

    level: float
    times: int
    throughput: float
    excess: float
    tail: float = 0.0


Rule = Callable[[Sequence[Point]], float | None]
"""The next level, given what was measured (ascending, at least one); None when it is enough."""


class LoadSearch:
    """An ask/tell search for the load of one candidate that decides about it.

    What that is depends on the objective: for throughput the largest load that keeps the latency limits, or
    without such limits the one where one more step gains less than 2%; for latency and memory `rate`, else
    the smallest load that reaches `min_throughput`, else one client.

    Args:
        workload: of the spec.
        slo: of the spec.
        objective: of the spec.
        saturated: what a short window at saturation showed, for the first guess.

    Example:
        >>> from tritonc.schemas.spec import ClosedWorkload, Slo
        >>> search = LoadSearch(ClosedWorkload(max_concurrency=1), Slo(), "throughput")
        >>> search.ask()
        ClosedLoad(kind='closed', concurrency=1, request_batch=1)
    """

    def __init__(
        self, workload: Workload, slo: Slo, objective: Objective, *, saturated: Measurement | None = None
    ) -> None:
        self._workload = workload
        self._limits = latency_limits(slo)
        self._points: dict[float, Point] = {}
        self._asks = 0
        self._first, self._rule, self._best = _rule_for(workload, slo, objective, saturated)

    def ask(self) -> Load | None:
        """The next load to measure for one window, perhaps one that was measured before; None at the end."""
        if self._asks >= MAX_ASKS:
            return None
        if not self._points:
            return self._load(self._first)
        points = self._ascending()
        level = self._rule(points)
        if level is None or level in self._points:
            level = self._doubtful(points)
        return None if level is None else self._load(level)

    def tell(self, load: Load, measured: Measurement | None) -> None:
        """Takes in what `load` showed.

        Args:
            load: one that was asked.
            measured: of all windows under this load so far, pooled; None where nothing was completed.
        """
        self._asks += 1
        level = load.concurrency if isinstance(load, ClosedLoad) else load.rate
        before = self._points.get(level)
        times = before.times + 1 if before else 1
        throughput = measured.throughput.value if measured else 0.0
        excess = latency_excess(self._limits, measured) if measured else math.inf
        self._points[level] = Point(level, times, throughput, excess, _tail(self._limits, measured))

    def best(self) -> Load | None:
        """The load that decides about the candidate: the least violating one if none keeps the limits.

        None before anything was completed.
        """
        points = [point for point in self._ascending() if point.throughput > 0]
        return self._load(self._best(points).level) if points else None

    def _ascending(self) -> list[Point]:
        return sorted(self._points.values(), key=lambda point: point.level)

    def _doubtful(self, points: Sequence[Point]) -> float | None:
        """The level that decides, or a stray one that ends the bracket: another window could change it."""
        if not self._limits:
            return None
        low, high = _bracket(points)
        if low and high and high.times < _TIMES and high.tail > _STRAY * low.tail:
            return high.level
        deciding = self._best(points)
        near = -_NEAR < deciding.excess < _NEAR
        return deciding.level if near and deciding.times < _TIMES else None

    def _load(self, level: float) -> Load:
        batch = self._workload.request_batch
        if isinstance(self._workload, ClosedWorkload):
            return ClosedLoad(concurrency=int(level), request_batch=batch)
        return OpenLoad(rate=level, distribution=self._workload.arrival, request_batch=batch)


def latency_excess(limits: Mapping[Percentile, float], measured: Measurement) -> float:
    """By how much the worst latency limit is missed, relative to it; a rate not sustained misses it too."""
    excess = max(
        (measured.latency_ms[name].value / limit - 1 for name, limit in limits.items()), default=-1.0
    )
    if measured.sustained:
        return excess
    done = measured.throughput.value / measured.load.request_batch
    rate = measured.load.rate if isinstance(measured.load, OpenLoad) else done
    return max(excess, rate / done - 1 if done else math.inf, _NEAR / 2)


def _tail(limits: Mapping[Percentile, float], measured: Measurement | None) -> float:
    if measured is None or not limits or "avg" not in measured.latency_ms:
        return 0.0
    return max(measured.latency_ms[name].value for name in limits) / measured.latency_ms["avg"].value


def _rule_for(
    workload: Workload, slo: Slo, objective: Objective, saturated: Measurement | None
) -> tuple[float, Rule, Callable[[Sequence[Point]], Point]]:
    """First level, rule and choice for what the objective needs."""
    seeks_capacity = "throughput" in weights_of(objective)
    limits = latency_limits(slo)
    if isinstance(workload, OpenWorkload):
        if not seeks_capacity:
            return workload.rate, _stay, _within
        done = saturated.throughput.value / workload.request_batch if saturated else None
        ceiling = max(workload.rate, workload.max_rate or _MAX_RATE * workload.rate)
        return workload.rate, _OpenCapacity(workload.rate, ceiling, done), _largest_within
    if not seeks_capacity:
        if slo.min_throughput is None:
            return 1, _stay, _within
        reach = _Reach(slo.min_throughput, workload.max_concurrency)
        return 1, reach, reach.choose
    first = _first_guess(limits, workload.max_concurrency, saturated)
    if limits:
        return first, _ClosedCapacity(workload.max_concurrency), _within
    return first, _Knee(workload.max_concurrency), _knee


def _stay(_points: Sequence[Point]) -> float | None:
    return None


def _within(points: Sequence[Point]) -> Point:
    """The highest throughput within the limits, else the least violating."""
    able = [point for point in points if point.excess <= 0]
    if able:
        return max(able, key=lambda point: (point.throughput, -point.level))
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
    top = max(point.throughput for point in points)
    return next(point for point in points if point.throughput * (1 + GAIN) >= top)


def _first_guess(limits: Mapping[Percentile, float], ceiling: int, saturated: Measurement | None) -> float:
    """Little's law: clients = throughput x average latency, at the average that belongs to the limit."""
    if saturated is None or not isinstance(saturated.load, ClosedLoad):
        return min(4, ceiling)
    if not limits:
        return min(saturated.load.concurrency, ceiling)
    averages = [limit / (_TAIL_RATIO if name in ("p99", "p95") else 1) for name, limit in limits.items()]
    requests = saturated.throughput.value / saturated.load.request_batch
    return min(ceiling, max(1, math.floor(requests * min(averages) / 1000)))


@dataclass(frozen=True, slots=True)
class _ClosedCapacity:
    """The most clients within the limits, up to `ceiling`; ends early where more clients bring nothing."""

    ceiling: int

    def __call__(self, points: Sequence[Point]) -> float | None:
        low, high = _bracket(points)
        if low is None:
            assert high is not None  # there is at least one point
            return None if high.level <= 1 else max(1, min(high.level - 1, math.floor(_shrunk(high))))
        if high is None:
            # One short window may be off by a tenth: a single step without gain proves little. Near the limit
            # more clients bring more only below saturation, where latency does not rise with them.
            is_near = low.excess > -_STEP
            if low.level >= self.ceiling or _flat(points, steps=2) or (is_near and not _scales(points)):
                return None
            farther = low.level * _APART if is_near else low.level / max(1 + low.excess, 1 / _FARTHEST)
            return min(self.ceiling, max(low.level + 1, math.floor(farther)))
        if high.level - low.level <= max(1, _STEP * low.level):
            return None
        gains_nothing = 0 < high.throughput < low.throughput * (1 + GAIN)
        if gains_nothing and high.level <= _CLOSE * low.level:
            return None
        between = math.floor(_interpolated(low, high))
        return min(high.level - 1, max(low.level + 1, between))


@dataclass(frozen=True, slots=True)
class _OpenCapacity:
    """The highest rate within the limits, from `rate` up to `ceiling`; over at once if `rate` is not carried.

    `done` is the requests a second that a short closed-loop window at saturation completed.
    """

    rate: float
    ceiling: float
    done: float | None

    def __call__(self, points: Sequence[Point]) -> float | None:
        low, high = _bracket(points)
        if low is None or points[0].excess > 0:
            return None
        if high is None:
            if low.level >= self.ceiling:
                return None
            guess = min(0.8 * self.done if self.done else 2 * low.level, _FARTHEST * low.level)
            return min(self.ceiling, max(1.3 * low.level, guess))
        if high.level <= low.level * (1 + _STEP):
            return None
        return math.sqrt(low.level * high.level)


@dataclass(frozen=True, slots=True)
class _Knee:
    """The load above which twice the clients gain less than 2%."""

    ceiling: int

    def __call__(self, points: Sequence[Point]) -> float | None:
        if points[-1].level < self.ceiling and not _flat(points):
            return min(self.ceiling, 2 * points[-1].level)
        top = max(point.throughput for point in points)
        lowest = points[0]
        if lowest.level > 1 and lowest.throughput * (1 + GAIN) >= top:
            return max(1, lowest.level // 2)
        return None


@dataclass(frozen=True, slots=True)
class _Reach:
    """The fewest clients that bring `throughput` inferences a second."""

    throughput: float
    ceiling: int

    def __call__(self, points: Sequence[Point]) -> float | None:
        short = [point for point in points if point.throughput < self.throughput]
        there = [point for point in points if point.throughput >= self.throughput]
        if not short:
            return None
        low = short[-1]
        if not there:
            if low.level >= self.ceiling or _flat(points):
                return None
            factor = min(_FARTHEST, self.throughput / low.throughput) if low.throughput else 2.0
            return min(self.ceiling, max(low.level + 1, math.ceil(low.level * factor)))
        high = there[0]
        if high.level - low.level <= max(1, _STEP * low.level):
            return None
        return (low.level + high.level) // 2

    def choose(self, points: Sequence[Point]) -> Point:
        """The fewest clients that are enough, else those that bring most."""
        there = [point for point in points if point.throughput >= self.throughput]
        return there[0] if there else max(points, key=lambda point: point.throughput)


def _bracket(points: Sequence[Point]) -> tuple[Point | None, Point | None]:
    """The largest level within the limits and the smallest beyond, on the nearest rising curve."""
    rising = _isotonic(points)
    within = sum(excess <= 0 for excess in rising)
    return (points[within - 1] if within else None, points[within] if within < len(points) else None)


def _isotonic(points: Sequence[Point]) -> list[float]:
    """Excesses made to rise with the level: neighbours that fall are pooled, weighted by their windows."""
    pools: list[tuple[float, int, int]] = []  # mean, weight, members
    for point in points:
        mean, weight, members = point.excess, point.times, 1
        while pools and pools[-1][0] > mean:
            other, other_weight, others = pools.pop()
            mean = (mean * weight + other * other_weight) / (weight + other_weight)
            weight, members = weight + other_weight, members + others
        pools.append((mean, weight, members))
    return [mean for mean, _, members in pools for _ in range(members)]


def _flat(points: Sequence[Point], steps: int = 1) -> bool:
    """Whether the highest `steps` levels, well above the others, gained less than 2% over these."""
    below, above = points[:-steps], points[-steps:]
    if not below or above[-1].level < _APART * below[-1].level:
        return False
    top = max(point.throughput for point in below)
    return max(point.throughput for point in above) < top * (1 + GAIN)


def _scales(points: Sequence[Point]) -> bool:
    """Whether the last step brought at least half of what its share of more load could; one point may."""
    if len(points) < 2:
        return True
    before, last = points[-2], points[-1]
    possible = last.level / before.level - 1
    return last.throughput >= before.throughput * (1 + possible / 2)


def _shrunk(high: Point) -> float:
    """A lower level that should keep the limits: latency is proportional to clients at saturation."""
    return high.level / min(_FARTHEST, 1 + high.excess)


def _interpolated(low: Point, high: Point) -> float:
    """Where the excess should be 0, on logarithmic scales, not too near to either end."""
    ratio_low, ratio_high = math.log1p(max(low.excess, -0.99)), math.log1p(min(high.excess, 1e6))
    share = -ratio_low / (ratio_high - ratio_low) if ratio_high > ratio_low else 0.5
    share = min(0.8, max(0.2, share))
    return math.exp(math.log(low.level) * (1 - share) + math.log(high.level) * share)
