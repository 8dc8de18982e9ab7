"""Where the limits end, between and beyond the loads that were measured: a fitted curve of latency over load.

Latency that a limit is about and throughput rise with load, apart from noise, and both are nearly straight
between neighbouring loads on logarithmic scales (docs/search.md, facts 1 to 3). So the fit is isotonic,
over all loads, and straight between them. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tritonc.schemas.measurement import Interval

Floats = npt.NDArray[np.float64]

APART = 1.25
"""Levels nearer to each other say nothing about what more load gains."""

_NORMAL = 1.96
"""Standard errors in half of a 95% interval."""
_SEVERAL = 4  # clients
_WORST = 1e6
"""A latency this many times its limit stands for one that never came."""


@dataclass(frozen=True, slots=True)
class Point:
    """A load that was measured.

    Attributes:
        level: clients (closed) or requests a second (open).
        times: windows it was measured for; 0 for a hint.
        throughput: inferences a second; 0 where nothing was completed.
        excess: by how much the latency limits are missed, relative to them; negative where they are kept,
            infinite where nothing was completed.
        tail: the limited latency over the average.
        error: standard error of the logarithm of the limited latency; 0 where it is unknown.
    """

    level: float
    times: int
    throughput: Interval
    excess: float
    tail: float = 0.0
    error: float = 0.0

    @property
    def ratio(self) -> float:
        """Logarithm of the limited latency over its limit."""
        return math.log1p(min(max(self.excess, -0.999), _WORST))

    @property
    def weight(self) -> float:
        """In the fit."""
        return max(0.5, self.times)

    @property
    def surely_within(self) -> bool:
        """Whether all of the interval keeps the limits."""
        return self.ratio + _NORMAL * self.error <= 0

    @property
    def surely_beyond(self) -> bool:
        """Whether all of the interval breaks a limit."""
        return self.ratio - _NORMAL * self.error > 0


@dataclass(frozen=True)
class Curve:
    """Latency and throughput over load.

    Args:
        points: ascending by level, at least one.
    """

    points: Sequence[Point]

    @cached_property
    def ratios(self) -> Floats:
        """`Point.ratio` of the points, made to rise with the level."""
        return _rising([point.ratio for point in self.points], [point.weight for point in self.points])

    @cached_property
    def throughputs(self) -> Floats:
        """Throughput of the points as it would be without noise, made to rise with the level."""
        values = [point.throughput.value for point in self.points]
        return _rising(values, [point.weight for point in self.points])

    @property
    def bracket(self) -> tuple[int | None, int | None]:
        """Indices of the largest level within the limits, and of the smallest beyond."""
        within = int(np.count_nonzero(self.ratios <= 0))
        return (within - 1 if within else None), (within if within < len(self.points) else None)

    def boundary(self, errors: float = 0.0) -> float:
        """The level at which the limits end; beyond the points, latency is proportional to load.

        Args:
            errors: how many standard errors of its points the curve lies higher than it was seen.
        """
        logs = np.log([point.level for point in self.points])
        ratios = self.ratios + errors * np.array([point.error for point in self.points])
        ratios = np.maximum.accumulate(ratios)
        if ratios[0] > 0:
            return math.exp(logs[0] - ratios[0])
        if ratios[-1] <= 0:
            return math.exp(logs[-1] - ratios[-1])
        high = int(np.argmax(ratios > 0))
        low = high - 1
        share = -ratios[low] / (ratios[high] - ratios[low])
        return math.exp(logs[low] + share * (logs[high] - logs[low]))

    def throughput(self, level: float) -> float:
        """Inferences a second at a level.

        Beyond the points at most: proportional to load below the lowest, and above the highest as far as the
        last two still rose.
        """
        levels = np.array([point.level for point in self.points])
        seen = self.throughputs
        if level <= levels[0]:
            return float(seen[0] * level / levels[0])
        if level >= levels[-1]:
            return float(seen[-1] * (level / levels[-1]) ** self._elasticity)
        return float(np.interp(math.log(level), np.log(levels), seen))

    @property
    def _elasticity(self) -> float:
        """How throughput grows with load at the upper end, from 0 (not at all) to 1 (in proportion)."""
        if len(self.points) < 2 or self.throughputs[-2] <= 0:
            return 1.0
        rise = math.log(self.throughputs[-1] / self.throughputs[-2])
        step = math.log(self.points[-1].level / self.points[-2].level)
        return min(1.0, max(0.0, rise / step))

    def most(self, ceiling: float) -> float:
        """Throughput within the limits at most, taken one standard error well.

        Throughput grows ever less with load: above the last levels with no larger a power of it than between
        them. Latency grows with what is left of it (Little's law), up to its limit. With very few clients it
        may be flat before batches form: two do what one does where the second waits for the first. On the
        recorded surfaces (`benchmarks/surfaces`), with 2% of error and a tenth of slack, 1,073 of 3,151 pairs
        of levels say that their candidate stays below 0.85 of the best, none of one that does 0.9 of it.

        Args:
            ceiling: the largest level there can be.

        Returns:
            Infinity where throughput may go on in proportion to load, or nothing is known of that: with few
            clients, with a single level or none well below the last, and where that breaks a limit.
        """
        high = self.points[-1]
        low = next((point for point in reversed(self.points) if point.level * APART <= high.level), None)
        if low is None or high.level < _SEVERAL or high.excess > 0:
            return math.inf
        if min(at_least(low.throughput), at_most(high.throughput)) <= 0:
            return math.inf
        rise = math.log(at_most(high.throughput) / at_least(low.throughput))
        power = max(0.0, rise / math.log(high.level / low.level))
        if power >= 1:
            return math.inf
        room = min((high.error - high.ratio) / (1 - power), math.log(ceiling / high.level))
        most = max(at_most(point.throughput) for point in self.points)
        return most * math.exp(power * max(0.0, room))

    def capacity(self, best: Point, ceiling: float) -> Interval:
        """Throughput within the limits, with what is not known about where they end in its interval.

        Args:
            best: the point that decides.
            ceiling: the largest level there can be.
        """
        seen = best.throughput
        value = max(seen.value, 1e-12)
        ends = [self.throughput(min(ceiling, self.boundary(errors))) for errors in (_NORMAL, -_NORMAL)]
        here = max(self.throughput(best.level), 1e-12)
        below = 0.0 if best.surely_within else max(0.0, 1 - ends[0] / here)
        above = max(0.0, ends[1] / here - 1)
        low = None if seen.low is None else max(0.0, value - math.hypot(value - seen.low, below * value))
        high = None if seen.high is None else value + math.hypot(seen.high - value, above * value)
        return Interval(value=seen.value, low=low, high=high)


def at_least(seen: Interval) -> float:
    """One standard error below what was seen; the value itself where that is unknown."""
    return seen.value if seen.low is None else seen.value - (seen.value - seen.low) / _NORMAL


def at_most(seen: Interval) -> float:
    """One standard error above what was seen; the value itself where that is unknown."""
    return seen.value if seen.high is None else seen.value + (seen.high - seen.value) / _NORMAL


def _rising(values: Sequence[float], weights: Sequence[float]) -> Floats:
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(np.asarray(values), weights=np.asarray(weights)).x, np.float64)
