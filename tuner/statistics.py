"""What a sample of requests says, and how surely: quantiles, averages, rates, growing queues. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonc.schemas.measurement import Interval

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_BATCHES = 12
"""Batches that a sample is cut into: neighbouring requests share a queue, batches hardly do."""
_BATCH_REQUESTS = 3
"""Fewer requests than this in a batch say little, so there are fewer batches then."""
VISIT = 1.0
"""Variance between visits to a point (half a minute apart) over that between windows of one visit.

On two cores of a virtual machine whose memory is shared with others it was 0.3 (eight visits of five windows
within two minutes) to 1.5 (204 visits within twenty minutes, `benchmarks/measurement.py`), and 2 to 7 where
the load generator had a core of its own (`--cores 1`): windows are steadier then, visits are not.

Not loading makes visits differ, time does: fourteen visits to a model that stayed loaded lay as far apart as
fourteen that were loaded for (2.3, 5.7 and 3.6% to 3.1, 4.2 and 3.8% for three models). A load that goes on
for a minute shows why: means over 0.4 s differ by 5 to 9%, over 6.4 s still by 3 to 4%.
"""
ALIKE = 6.0
"""Degrees of freedom that what others show of the noise is worth: points differ in how noisy they are."""
_SPLIT = 0.9
"""How alike neighbours are is seen at this quantile instead of a higher one, above which few values lie."""
_LEAST_BATCHES = 3
LEAST_WINDOWS = 3
"""Of one load, before anything is said of how far its windows lie apart."""
_MOST_FREEDOM = 60
"""What is known longest is forgotten beyond this: a machine may become noisier."""
_SLOPE = 0.02
"""Latency gained a second above which a queue grows: 98% of what is sent is completed then."""
_UNBOUNDED = 2.0
_QUARTERS = 4
_LONGER = 1.5


def quantile_interval(samples: Sequence[Floats], quantile: float) -> Interval:
    """The sample quantile with its two-sided 95% interval, from order statistics.

    No distribution is assumed. An end that the sample is too small for is None: the upper end of the 99th
    percentile with fewer than 368 values (0.99 ** 368 < 0.025). Requests that share a batch or a queue are
    alike, so they count as fewer (`_design_effect`); if only therefore they are too few, the end is the
    largest value there is.

    Args:
        samples: one array for each window, in the order of sending; at least one value in all.
        quantile: in (0, 1).
    """
    from scipy.special import bdtr  # scipy.stats has this too, and takes a second to import

    ordered = np.sort(np.concatenate(samples))
    count = len(ordered)
    value = float(ordered[max(0, math.ceil(quantile * count) - 1)])
    split = ordered[max(0, math.ceil(min(quantile, _SPLIT) * count) - 1)]
    alone = max(1, math.floor(count / _design_effect(samples, split)))
    tail = (1 - CONFIDENCE) / 2
    at_most = bdtr(np.arange(alone + 1), alone, quantile)
    low = int(np.searchsorted(at_most, tail)) * count // alone
    high = -(-(int(np.searchsorted(at_most, 1 - tail)) + 1) * count // alone)
    has_low, has_high = (1 - quantile) ** count < tail, quantile**count < tail
    return Interval(
        value=value,
        low=min(value, float(ordered[max(1, low) - 1])) if has_low else None,
        high=max(value, float(ordered[min(count, high) - 1])) if has_high else None,
    )


def _design_effect(samples: Sequence[Floats], value: float) -> float:
    """Values that count as one, as neighbours are alike; 1 where that is no more than chance.

    From how much the share of values above `value` varies between batches of neighbours, over how much it
    would if they were independent (Kish, "Survey Sampling", 1965).
    """
    above = [(sample > value).astype(float) for sample in samples]
    share = float(np.concatenate(above).mean())
    batches = mean_batches(above)
    freedom = sum(len(each) - 1 for each in batches)
    if not 0 < share < 1 or not freedom:
        return 1.0
    size = sum(len(sample) for sample in samples) / sum(len(each) for each in batches)
    seen = sum(float(((each - each.mean()) ** 2).sum()) for each in batches) / freedom
    effect = seen * size / (share * (1 - share))
    chance = math.sqrt(2 / freedom)  # standard deviation of a variance over its mean
    return effect if effect > 1 + 2 * chance else 1.0


@dataclass(frozen=True, slots=True)
class Scatter:
    """A relative standard deviation, and the degrees of freedom that it rests on."""

    deviation: float
    freedom: float


def mean_interval(samples: Sequence[Floats], between: Scatter | None = None, visits: float = 1) -> Interval:
    """The mean with its 95% interval from batch means, which allows for neighbours being alike.

    Args:
        samples: one array for each window, in the order of sending; at least one value in all.
        between: of the means of windows, beyond what shows within them; None where it is not known.
        visits: times that windows were run for, one after another, without anything else in between.
    """
    everything = np.concatenate(samples)
    return _interval(float(everything.mean()), mean_batches(samples, between is not None), between, visits)


def mean_batches(samples: Sequence[Floats], full: bool = True) -> list[Floats]:
    """Batch means of each window that has values; `full`: as many as of a single window."""
    wanted = _BATCHES if full else max(1, math.ceil(_BATCHES / len(samples)))
    found: list[Floats] = []
    for sample in samples:
        if len(sample):
            pieces = max(1, min(wanted, len(sample) // _BATCH_REQUESTS))
            found.append(np.array([piece.mean() for piece in np.array_split(sample, pieces)]))
    return found


def rate_interval(
    windows: Sequence[tuple[Floats, float, float]], between: Scatter | None = None, visits: float = 1
) -> Interval:
    """Events a second with its 95% interval from batch means over equal stretches of time.

    Between two events their number is interpolated, so that an edge between them cuts neither off.

    Args:
        windows: (times of the events, begin, end) of each window, in seconds; at least one.
        between: of the rates of windows, beyond what shows within them; None where it is not known.
        visits: times that windows were run for, one after another, without anything else in between.
    """
    batches = rate_batches(windows, between is not None)
    return _interval(_rate(windows, batches), batches, between, visits)


def rate_error(
    windows: Sequence[tuple[Floats, float, float]], between: Scatter, visits: float = 1
) -> float | None:
    """Standard error of the logarithm of what `rate_interval` gives; None where that has no interval.

    Few degrees of freedom make an interval wide, not this. The arguments are those of `rate_interval`.
    """
    batches = rate_batches(windows)
    value = _rate(windows, batches)
    spread = _all_in_all(value, batches, between, visits)
    return spread.deviation / value if spread and value > 0 else None


def _rate(windows: Sequence[tuple[Floats, float, float]], batches: Sequence[Floats]) -> float:
    """Events a second over all windows, by how long each was."""
    lengths = np.array([end - begin for _, begin, end in windows])
    return float((np.array([rates.mean() for rates in batches]) * lengths).sum() / lengths.sum())


def rate_batches(windows: Sequence[tuple[Floats, float, float]], full: bool = True) -> list[Floats]:
    """Rates in equal stretches of each window; `full`: as many as of a single window."""
    wanted = _BATCHES if full else max(1, math.ceil(_BATCHES / len(windows)))
    found: list[Floats] = []
    for times, begin, end in windows:
        inside = int(np.count_nonzero((times > begin) & (times <= end)))
        pieces = max(1, min(wanted, inside // _BATCH_REQUESTS))
        found.append(rate_stretches(times, begin, end, pieces))
    return found


def rate_stretches(times: Floats, begin: float, end: float, pieces: int) -> Floats:
    """Events a second in each of `pieces` equal stretches from `begin` to `end`."""
    edges = np.linspace(begin, end, pieces + 1)
    found: Floats = np.diff(_events_until(np.sort(times), edges)) / np.diff(edges)
    return found


def scatter_between(batches: Sequence[Floats], known: Scatter | None = None) -> Scatter | None:
    """How far the means of windows lie apart beyond what their batches explain, relative to their mean.

    Args:
        batches: batch means of each window.
        known: from other windows, to pool with, each weighted by its degrees of freedom.

    Returns:
        `known` with a single window, or where batches say nothing; without it None, with two windows as well.
    """
    within = _within(batches)
    means = np.array([each.mean() for each in batches])
    if len(batches) < (LEAST_WINDOWS if known is None else 2) or within is None or means.mean() <= 0:
        return known
    freedom = len(batches) - 1.0
    variance = (float(means.var(ddof=1)) - within.deviation**2) / float(means.mean()) ** 2
    if known is not None:
        variance = (freedom * variance + known.freedom * known.deviation**2) / (freedom + known.freedom)
        freedom = min(_MOST_FREEDOM, freedom + known.freedom)
    return Scatter(math.sqrt(max(0.0, variance)), freedom)


def adapted(known: Scatter, batches: Sequence[Floats]) -> Scatter:
    """What is known to lie between windows, with how far these very ones lie apart.

    Points differ in how noisy they are, so what others show says no more about one than six degrees of
    freedom would.

    Args:
        known: from other points.
        batches: batch means of each window of this point.
    """
    few = Scatter(known.deviation, min(ALIKE, known.freedom))
    return scatter_between(batches, few) or few


def widened(interval: Interval, between: Scatter, windows: int, visits: float = 1) -> Interval:
    """An interval that knows nothing of the differences between windows, with these in it.

    Args:
        interval: from `windows` windows together.
        between: of their values, beyond what shows within them.
        windows: how many.
        visits: times that windows were run for, one after another, without anything else in between.
    """
    share = between.deviation * math.sqrt(_parts(windows, visits))

    def further(end: float | None) -> float | None:
        if end is None or not interval.value:
            return None
        error = abs(end / interval.value - 1) / _normal_quantile()
        total = math.hypot(error, share)
        freedom = between.freedom * (total / share) ** 4 if share else math.inf
        return total * _quantile(freedom)

    low, high = further(interval.low), further(interval.high)
    value = interval.value
    return Interval(
        value=value,
        low=None if low is None else value * max(0.0, 1 - low),
        high=None if high is None else value * (1 + high),
    )


def _parts(windows: int, visits: float) -> float:
    """Variance of a mean over that between two windows of one visit."""
    return 1 / windows + VISIT / visits


def _events_until(ordered: Floats, moments: Floats) -> Floats:
    """Events up to each moment; between two events a fraction."""
    if len(ordered) == 0:
        return np.zeros(len(moments))
    found: Floats = np.interp(moments, ordered, np.arange(1.0, len(ordered) + 1), left=0.0)
    return found


def _interval(value: float, batches: Sequence[Floats], between: Scatter | None, visits: float) -> Interval:
    """`value` with its 95% interval; `between` None: as if all batches were of one window."""
    if between is None:
        spread = _around(np.concatenate(batches))
    else:
        spread = _all_in_all(value, batches, between, visits)
    if spread is None:
        return Interval(value=value)
    half = spread.deviation * _quantile(spread.freedom)
    low = max(0.0, value - half) if value >= 0 else value - half
    return Interval(value=value, low=low, high=value + half)


def _around(batches: Floats) -> Scatter | None:
    """Standard error of the mean of batches, not relative; None for fewer than three."""
    if len(batches) < _LEAST_BATCHES:
        return None
    return Scatter(float(np.std(batches, ddof=1)) / math.sqrt(len(batches)), len(batches) - 1)


def _within(batches: Sequence[Floats]) -> Scatter | None:
    """Standard error of a window's mean from its batches, over all windows; None where these are too few."""
    known = [
        (len(each) - 1, float(np.var(each, ddof=1)) / len(each))
        for each in batches
        if len(each) >= _LEAST_BATCHES
    ]
    freedom = sum(count for count, _ in known)
    if not freedom:
        return None
    return Scatter(math.sqrt(sum(count * variance for count, variance in known) / freedom), freedom)


def _all_in_all(value: float, batches: Sequence[Floats], between: Scatter, visits: float) -> Scatter | None:
    """Standard error of the mean of windows, not relative: within windows, between them, between visits.

    Degrees of freedom as by Welch and Satterthwaite.
    """
    within = _within(batches)
    if within is None:
        return None
    here = adapted(between, batches)
    count = len(batches)
    inside = within.deviation**2 / count
    apart = (here.deviation * value) ** 2 * _parts(count, visits)
    doubt = inside**2 / within.freedom + apart**2 / here.freedom
    freedom = (inside + apart) ** 2 / doubt if doubt else math.inf
    return Scatter(math.sqrt(inside + apart), freedom)


def _quantile(freedom: float) -> float:
    """Standard errors in half of a 95% interval, from Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) if math.isfinite(freedom) else _normal_quantile()


def _normal_quantile() -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + CONFIDENCE) / 2))


def grows(send_s: Floats, latency_ms: Floats) -> bool:
    """Whether latency grows with the time of sending, as it does when more comes in than is done.

    It does when the robust slope (the median over pairs) is above 2%, and both the median and the shortest
    latency of the last quarter are half as long again as those of the first: a queue that keeps up runs empty
    now and then. In simulated queues of one server that does 90 requests a second, seen for 1.1 s, this finds
    95% of those with 10% too much and all with 20%; it is wrong about 5% of those that are 70% busy.

    Args:
        send_s: when each request was sent, ascending.
        latency_ms: of the same requests.
    """
    if len(send_s) < 2 * _QUARTERS:
        return False
    first, *_, last = np.array_split(latency_ms, _QUARTERS)
    if np.median(last) < _LONGER * np.median(first) or last.min() < _LONGER * first.min():
        return False
    pieces = min(40, len(send_s) // 2)
    times = np.array([block.mean() for block in np.array_split(send_s, pieces)])
    levels = np.array([np.median(block) for block in np.array_split(latency_ms, pieces)]) / 1000
    return _median_slope(times, levels) > _SLOPE


def _median_slope(x: Floats, y: Floats) -> float:
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] - x[first]
    usable = apart > 0
    if not usable.any():
        return 0.0
    slopes: npt.NDArray[Any] = (y[second] - y[first])[usable] / apart[usable]
    return float(np.median(slopes))


def half_width(interval: Interval) -> float:
    """Half of an interval, relative to its value: about that of its logarithm; 0 where it is unknown.

    An upper end that is unknown is taken to be twice as far away as the lower one.
    """
    if interval.low is None or interval.value <= 0:
        return 0.0
    below = interval.value - interval.low
    above = 2 * below if interval.high is None else interval.high - interval.value
    return (below + above) / (2 * interval.value)


def standard_error(interval: Interval) -> float:
    """That of a value's logarithm, from its two-sided 95% interval; 0 where it is unknown.

    An upper end that the sample is too small for is taken to be twice as far away as the lower one, and a
    lower end of nothing a factor of e squared.
    """
    if interval.low is None or interval.value <= 0:
        return 0.0
    below = math.log(interval.value / interval.low) if interval.low > 0 else _UNBOUNDED
    above = 2 * below if interval.high is None else math.log(interval.high / interval.value)
    return (below + above) / 2 / _normal_quantile()


def settled(earlier: float, later: float, tolerance: float) -> bool:
    """Whether a throughput no longer rises by more than `tolerance`, relative to the earlier one.

    >>> settled(100, 109, 0.1), settled(100, 111, 0.1), settled(100, 80, 0.1)
    (True, False, True)
    """
    return later <= earlier * (1 + tolerance)
