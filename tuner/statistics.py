"""What a sample of requests says, and how surely: quantiles, averages, rates, growing queues. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
_SLOPE = 0.02
"""Latency gained a second above which a queue grows: 98% of what is sent is completed then."""
_QUARTERS = 4
_LONGER = 1.5


def quantile_interval(values: Floats, quantile: float) -> Interval:
    """The sample quantile with its two-sided 95% interval, from order statistics.

    No distribution is assumed, but independence is. An end that the sample is too small for is None: the
    upper end of the 99th percentile with fewer than 368 values (0.99 ** 368 < 0.025).

    Args:
        values: at least one, in any order.
        quantile: in (0, 1).
    """
    from scipy.special import bdtr  # scipy.stats has this too, and takes a second to import

    ordered = np.sort(values)
    count = len(ordered)
    tail = (1 - CONFIDENCE) / 2
    at_most = bdtr(np.arange(count + 1), count, quantile)
    low = int(np.searchsorted(at_most, tail))
    high = int(np.searchsorted(at_most, 1 - tail)) + 1
    return Interval(
        value=float(ordered[max(0, math.ceil(quantile * count) - 1)]),
        low=float(ordered[low - 1]) if low >= 1 else None,
        high=float(ordered[high - 1]) if high <= count else None,
    )


def mean_interval(samples: Sequence[Floats]) -> Interval:
    """The mean with its 95% interval from batch means, which allows for neighbours being alike.

    Args:
        samples: one array for each window, in the order of sending; at least one value in all.
    """
    everything = np.concatenate(samples)
    wanted = max(1, math.ceil(_BATCHES / len(samples)))
    batches: list[float] = []
    for sample in samples:
        if len(sample):
            pieces = max(1, min(wanted, len(sample) // _BATCH_REQUESTS))
            batches += [float(piece.mean()) for piece in np.array_split(sample, pieces)]
    return _around(float(everything.mean()), batches)


def rate_interval(windows: Sequence[tuple[Floats, float, float]]) -> Interval:
    """Events a second with its 95% interval from batch means over equal stretches of time.

    Between two events their number is interpolated, so that an edge between them cuts neither off.

    Args:
        windows: (times of the events, begin, end) of each window, in seconds; at least one.
    """
    wanted = max(1, math.ceil(_BATCHES / len(windows)))
    events = duration = 0.0
    batches: list[float] = []
    for times, begin, end in windows:
        ordered = np.sort(times)
        inside = int(np.count_nonzero((ordered > begin) & (ordered <= end)))
        edges = np.linspace(begin, end, max(1, min(wanted, inside // _BATCH_REQUESTS)) + 1)
        counted = _events_until(ordered, edges)
        batches += list(np.diff(counted) / np.diff(edges))
        events += float(counted[-1] - counted[0])
        duration += end - begin
    return _around(events / duration, batches)


def _events_until(ordered: Floats, moments: Floats) -> Floats:
    """Events up to each moment; between two events a fraction."""
    if len(ordered) == 0:
        return np.zeros(len(moments))
    found: Floats = np.interp(moments, ordered, np.arange(1.0, len(ordered) + 1), left=0.0)
    return found


def _around(value: float, batches: Sequence[float]) -> Interval:
    from scipy.special import stdtrit

    if len(batches) < 3:
        return Interval(value=value)
    spread = float(np.std(batches, ddof=1)) / math.sqrt(len(batches))
    half = float(stdtrit(len(batches) - 1, (1 + CONFIDENCE) / 2)) * spread
    return Interval(
        value=value, low=max(0.0, value - half) if value >= 0 else value - half, high=value + half
    )


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


def settled(earlier: float, later: float, tolerance: float) -> bool:
    """Whether a throughput no longer rises by more than `tolerance`, relative to the earlier one.

    >>> settled(100, 109, 0.1), settled(100, 111, 0.1), settled(100, 80, 0.1)
    (True, False, True)
    """
    return later <= earlier * (1 + tolerance)
