"""Which load to measure next for one candidate, until the one that decides is known. Pure ask/tell.

p99 rises with load, apart from noise, so a bracket of a load that keeps the SLO and one that does not is
narrowed on a fitted curve (`boundary.Curve`; docs/search.md, facts 1 to 3). The first guess comes from the
caller, or from Little's law and a short window at saturation. Windows are added to the load that decides only
as long as they can change what is decided, and a candidate that cannot come near the best so far is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from tritonc.schemas.measurement import Interval, Load, Measurement, OpenLoad
from tritonc.schemas.request_batch import mean_size
from tritonc.schemas.spec import ClosedWorkload, Slo
from tritonc.tuner.boundary import Curve, Point, at_least, at_most
from tritonc.tuner.demand import Demand, OpenDemand
from tritonc.tuner.load_rules import capacity_rule, rule_for, stay, within
from tritonc.tuner.loads import ceiling, ladder, level_of, load_at, workload_kind
from tritonc.tuner.objective import (
    Objective,
    Percentile,
    latency_limits,
    seeks_capacity,
    soft_cost,
    soft_violations,
    weights_of,
)
from tritonc.tuner.statistics import half_width, standard_error

MAX_ASKS = 8
"""Windows at most; a typical candidate needs three to five."""
PRECISION = 0.05
"""Half of the 95% interval of the throughput that decides, relative to it: windows are added to get there."""
MOST_WINDOWS = 2
"""Of one load in one visit. Visits differ as much as windows do (`statistics.VISIT`), so more of them narrow
the interval by little; the confirmation visits what matters often."""
HOPELESS = 0.85
"""A candidate that within its limits, taken one standard error well, does less than this share of what the
best one does, taken one badly, is left (docs/search.md, "Cut early")."""
FAR = 0.25
"""A latency this far beyond its limit is believed at once (docs/search.md, "Cut early")."""
SLACK = 1.1
"""Throughput falls a little far above saturation (docs/search.md, fact 6), and one window may be off."""

_ANOTHER = math.sqrt(2.0)
"""Another window narrows an interval by no more than that: one that is wider than it can mend is left."""
_NEAR = 0.1
"""A load this close to the limit is measured twice before it is believed, unless the noise is larger."""
_AFAR = 1.6  # two levels farther apart than this say little about what is between them
_STRAY = 1.4  # p99 over average is nearly constant within a model (fact 3): beyond that it is noise


class LoadSearch:
    """An ask/tell search for the load of one candidate that decides about it.

    What that is depends on the objective: for throughput, cost and energy the largest load that keeps the
    limits of latency and of the queue, or without such limits the one where one more step gains less than 2%;
    for latency and memory `rate`, else the smallest load that reaches `min_throughput`, else one client. Soft
    limits are kept as hard ones are; where even the smallest load misses one, only the hard ones are kept,
    and of the loads that keep them the one that is worth most decides.

    Args:
        workload: of the spec, with its trace read.
        slo: of the spec.
        objective: of the spec.
        saturated: what a short window at saturation showed, for the first guess.
        first: the load at which the limits are expected to end, a better guess than that.
        incumbent: the objective of the best candidate so far, with its interval; used where the objective is
            throughput alone.

    Attributes:
        requests_in_sight: that a window need not go on beyond: a p99 has an upper bound from 368 requests on
            (docs/search.md, fact 5).
        is_cut: whether the last ask ended it early, as the incumbent is better.

    Example:
        >>> from tritonc.schemas.spec import ClosedWorkload, Slo
        >>> search = LoadSearch(ClosedWorkload(max_concurrency=1), Slo(), "throughput")
        >>> search.ask()
        ClosedLoad(kind='closed', concurrency=1, request_batch=1)
    """

    requests_in_sight: ClassVar[int] = 400

    def __init__(
        self,
        workload: Demand,
        slo: Slo,
        objective: Objective,
        *,
        saturated: Measurement | None = None,
        first: Load | None = None,
        incumbent: Interval | None = None,
    ) -> None:
        self._workload = workload
        self._slo = slo
        self._limits = latency_limits(slo.limits)
        self._queue_ms = slo.limits.get("avg_queue_ms")
        self._is_softened = False
        self._points: dict[float, Point] = {}
        self._seen: dict[float, Measurement | None] = {}
        self._asks = 0
        self.is_cut = False
        self._incumbent = incumbent if list(weights_of(objective)) == ["throughput"] else None
        self._ceiling = ceiling(workload)
        self._seeks_capacity = seeks_capacity(objective)
        self._first, self._rule, self._best = rule_for(workload, slo, objective, saturated, first)

    def ask(self) -> Load | None:
        """The next load to measure for one window, perhaps one that was measured before; None at the end."""
        level = self._next_level()
        self.is_cut = level is not None and self.is_hopeless
        return None if level is None or self.is_cut else self._load(level)

    def _next_level(self) -> float | None:
        if self._asks >= MAX_ASKS:
            return None
        if not self._asks and not self._is_begun:
            return self._first
        level = self._rule(self._curve())
        if level is None or level in self._points:
            level = self._undecided()
        return level

    def tell(self, load: Load, measured: Measurement | None) -> None:
        """Takes in what `load` showed.

        Args:
            load: one that was asked.
            measured: of all windows under this load so far, pooled; None where nothing was completed.
        """
        self._asks += 1
        self._points = {level: point for level, point in self._points.items() if point.times}
        before = self._points.get(level_of(load))
        self._seen[level_of(load)] = measured
        self._points[level_of(load)] = self._point(load, measured, (before.times if before else 0) + 1)
        if self._misses_soft_limits_everywhere():
            self._soften()

    def know(self, load: Load, measured: Measurement, windows: int) -> None:
        """Takes in what was measured of a load before: nothing is asked that it answers.

        Args:
            load: one that does not concern this search is left out.
            measured: of all windows, pooled.
            windows: how many there were.
        """
        if not self.concerns(load):
            return
        self._seen[level_of(load)] = measured
        self._points[level_of(load)] = self._point(load, measured, windows)
        if self._misses_soft_limits_everywhere():
            self._soften()

    def concerns(self, load: Load) -> bool:
        """Whether what a load showed says something about the one that is looked for."""
        level = level_of(load)
        if load.kind != workload_kind(self._workload) or load != self._load(level):
            return False
        return level == self._first if self._rule is stay else self._lowest <= level <= self._ceiling

    def hint(self, load: Load, measured: Measurement) -> None:
        """Takes in a window of a warm-up, as a guide to the first load; after that it is forgotten.

        It is of use where the largest load is looked for, and this is one of its kind.

        Args:
            load: need not be one that was asked.
            measured: of the window.
        """
        if load.kind == workload_kind(self._workload) and self._seeks_capacity:
            self._seen[level_of(load)] = measured
            self._points[level_of(load)] = self._point(load, measured, 0)

    def best(self) -> Load | None:
        """The load that decides about the candidate: the least violating one if none keeps the limits.

        None before anything was completed.
        """
        point = self._measured()
        return self._load(point.level) if point else None

    def capacity(self) -> Interval | None:
        """What the candidate can do within the limits: inferences a second at `best()`.

        The interval holds what is not known about the throughput there, and about where the limits end. None
        before anything was completed.
        """
        point = self._measured()
        return self._curve().capacity(point, self._ceiling) if point else None

    def _point(self, load: Load, measured: Measurement | None, times: int) -> Point:
        if measured is None:
            return Point(level_of(load), times, Interval(value=0), math.inf)
        return Point(
            level_of(load),
            times,
            measured.throughput,
            latency_excess(self._limits, measured, self._queue_ms),
            _tail(self._limits, measured),
            _error(self._limits, measured),
        )

    @property
    def _lowest(self) -> float:
        """The smallest level that there is."""
        return self._workload.rate if isinstance(self._workload, OpenDemand) else 1.0

    @property
    def _is_begun(self) -> bool:
        """Whether the first level need not be asked: it is known, or others are that serve as well.

        Only a bracket of clients may begin anywhere: the rate that must be carried decides by itself, and the
        fewest clients are looked for from below.
        """
        may_begin_anywhere = self._seeks_capacity and isinstance(self._workload, ClosedWorkload)
        is_known = any(point.times for point in self._points.values())
        return self._first in self._points or (may_begin_anywhere and is_known)

    def _ascending(self) -> list[Point]:
        return sorted(self._points.values(), key=lambda point: point.level)

    def _curve(self) -> Curve:
        return Curve(self._ascending())

    def _deciding(self) -> Point | None:
        points = [point for point in self._ascending() if point.throughput.value > 0]
        return self._best(points) if points else None

    def _worthiest(self, points: Sequence[Point]) -> Point:
        """The largest throughput within the hard limits, less what missing soft ones costs."""

        def worth(point: Point) -> float:
            measured = self._seen[point.level]
            cost = soft_cost(soft_violations(self._slo, measured)) if measured else 0.0
            return math.log(point.throughput.value) - cost

        able = [point for point in points if point.excess <= 0]
        return max(able, key=worth) if able else within(points)

    def _misses_soft_limits_everywhere(self) -> bool:
        """Whether the smallest load there is was measured and misses a limit, of which some are soft."""
        is_soft = any(name in self._slo.soft for name in [*_full(self._limits), "avg_queue_ms"])
        point = self._points.get(self._lowest)
        if self._is_softened or not is_soft or not self._seeks_capacity:
            return False
        return point is not None and point.times > 0 and point.excess > 0

    def _soften(self) -> None:
        """Goes on with the hard limits alone."""
        self._is_softened = True
        self._limits, self._queue_ms = latency_limits(self._slo.hard), self._slo.hard.get("avg_queue_ms")
        self._rule, _ = capacity_rule(self._workload, self._is_limited)
        self._best = self._worthiest
        for level, point in self._points.items():
            self._points[level] = self._point(self._load(level), self._seen[level], point.times)

    def _measured(self) -> Point | None:
        """The one that decides of those with windows of their own; of what the warm-up saw without any."""
        points = [point for point in self._ascending() if point.throughput.value > 0]
        seen = [point for point in points if point.times] or points
        return self._best(seen) if seen else None

    @property
    def is_hopeless(self) -> bool:
        """Whether the incumbent is better at any load within the limits.

        Above a load that breaks them there is none, and below it throughput is not larger. As long as none
        was seen, how throughput grows from load to load says how far it can get (`Curve.most`).
        """
        if self._incumbent is None or not self._is_limited:
            return False
        if self._asks and self._is_beaten():
            return True
        wanted = HOPELESS * at_least(self._incumbent)
        points = self._ascending()
        is_closed = isinstance(self._workload, ClosedWorkload)
        if points and is_closed and SLACK * Curve(points).most(self._ceiling) < wanted:
            return True
        beyond = [p for p in points if _is_far_beyond(p) or (p.times >= 2 and p.surely_beyond)]
        if not beyond:
            return False
        if isinstance(self._workload, OpenDemand):
            return beyond[0].level * mean_size(self._workload.request_batch) < wanted
        below = [point for point in points if point.level <= beyond[0].level]
        return max(SLACK * at_most(point.throughput) for point in below) < wanted

    @property
    def _is_limited(self) -> bool:
        """Whether there is a limit that a larger load breaks."""
        return bool(self._limits) or self._queue_ms is not None

    def _undecided(self) -> float | None:
        """The level that decides, or a stray one that ends the bracket, if another window could matter."""
        points = self._ascending()
        deciding = self._deciding()
        if deciding is None:
            return None
        if deciding.times == 0:
            return deciding.level
        if self._is_limited and len(points) > 1:
            below, above = Curve(points).bracket
            if below is not None and above is not None and _is_stray(points[below], points[above]):
                return points[above].level
        if deciding.times >= MOST_WINDOWS:
            return None
        if self._is_limited and abs(deciding.excess) < _NEAR and deciding.error < _NEAR:
            return deciding.level
        is_in_reach = PRECISION < half_width(deciding.throughput) <= _ANOTHER * PRECISION
        return deciding.level if is_in_reach and self._seeks_capacity else None

    def _is_beaten(self) -> bool:
        """Whether the incumbent is better: more windows would hardly change that.

        Unknown as long as the end of the limits was not seen, or only from afar: latency hardly rises below
        saturation and steeply above it, so that it may be farther than a straight line says.
        """
        capacity = self.capacity()
        if self._incumbent is None or capacity is None or capacity.high is None:
            return False
        points = self._ascending()
        below, above = Curve(points).bracket
        if above is None and points[-1].level < self._ceiling:
            return False
        if below is not None and above is not None and points[above].level > _AFAR * points[below].level:
            return False
        return at_most(capacity) < at_least(self._incumbent)

    def _load(self, level: float) -> Load:
        return load_at(self._workload, level)


class LoadLadder(LoadSearch):
    """Asks every load of a geometric ladder once, for ground truth: nothing is derived, nothing cut short.

    Closed loop: one client, two, four and so on up to `max_concurrency`. Open loop: `rate` and so on by half
    as much again up to `max_rate`. Windows see as many requests as what is shown to people rests on.
    """

    requests_in_sight: ClassVar[int] = 1000

    def ask(self) -> Load | None:
        """The next load of the ladder; None at its end."""
        level = next((level for level in ladder(self._workload) if level not in self._points), None)
        return None if level is None else self._load(level)

    def concerns(self, load: Load) -> bool:
        """Whether it is a load of the ladder."""
        return load in map(self._load, ladder(self._workload))

    @property
    def is_hopeless(self) -> bool:
        """Never: ground truth is whole."""
        return False

    def hint(self, load: Load, measured: Measurement) -> None:
        """Does without hints."""


def latency_excess(
    limits: Mapping[Percentile, float], measured: Measurement, queue_ms: float | None = None
) -> float:
    """By how much the worst limit is missed, relative to it; a rate not sustained misses it too.

    Args:
        limits: of latency.
        measured: what was seen.
        queue_ms: limit of the time in the queue.
    """
    excesses = [measured.latency_ms[name].value / limit - 1 for name, limit in limits.items()]
    if queue_ms is not None and measured.queue_ms is not None:
        excesses.append(measured.queue_ms / queue_ms - 1)
    excess = max(excesses, default=-1.0)
    if measured.sustained:
        return excess
    done = measured.throughput.value / measured.load.mean_request_batch
    rate = measured.load.rate if isinstance(measured.load, OpenLoad) else done
    return max(excess, rate / done - 1 if done else math.inf, _NEAR / 2)


def _tail(limits: Mapping[Percentile, float], measured: Measurement) -> float:
    if not limits or "avg" not in measured.latency_ms:
        return 0.0
    return max(measured.latency_ms[name].value for name in limits) / measured.latency_ms["avg"].value


def _error(limits: Mapping[Percentile, float], measured: Measurement) -> float:
    """Standard error of the logarithm of the latency that misses its limit most.

    The end that a sample is too small for is taken to be twice as far away as the other one.
    """
    worst = max(limits, key=lambda name: measured.latency_ms[name].value / limits[name], default=None)
    if worst is None:
        return 0.0
    return standard_error(measured.latency_ms[worst])


def _is_far_beyond(point: Point) -> bool:
    """Whether one window is enough to believe it; of a warm-up one whose throughput has an interval is."""
    return point.excess > FAR and (point.times > 0 or point.throughput.high is not None)


def _is_stray(low: Point, high: Point) -> bool:
    """Whether the end of a bracket rests on a tail, seen once, that is out of proportion."""
    return high.times < 2 and high.tail > _STRAY * low.tail > 0


def _full(limits: Mapping[Percentile, float]) -> list[str]:
    return [f"{name}_latency_ms" for name in limits]
