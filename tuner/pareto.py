"""Fronts of several objectives: who is on it, its knee, and one number for the search. Pure.

Values are logarithms, larger is better, one row a configuration and one column an objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_LEAST_RANGE = 0.05
"""A logarithm: objectives that differ by less than 5% on the front matter no more for being scaled up."""
_HOPE = 0.5
"""Of the ranges, by which better values than the best seen are hoped for: without hope the front never grows
beyond its ends."""
_AUGMENTED = 0.05
"""Share of all objectives beside the one that lags most; that of ParEGO (Knowles 2006)."""


def is_on_front(values: Floats) -> npt.NDArray[np.bool_]:
    """Which rows no other row beats: as good in every column and better in one."""
    as_good = np.all(values[None, :, :] >= values[:, None, :], axis=2)
    better = np.any(values[None, :, :] > values[:, None, :], axis=2)
    return np.asarray(~np.any(as_good & better, axis=1))


def spread(values: Floats, count: int) -> tuple[int, ...]:
    """At most `count` rows: the best of every column, then always the one farthest from those taken."""
    scaled = values / _ranges(values)
    taken = list(dict.fromkeys(int(row) for row in values.argmax(axis=0)))[:count]
    while len(taken) < min(count, len(values)):
        distances = np.linalg.norm(scaled[:, None, :] - scaled[None, taken, :], axis=2).min(axis=1)
        distances[taken] = -1.0
        taken.append(int(distances.argmax()))
    return tuple(sorted(taken))


def knee(values: Floats) -> int:
    """The row nearest to the best of every column, in shares of the ranges."""
    lags = (values.max(axis=0) - values) / _ranges(values)
    return int(np.linalg.norm(lags, axis=1).argmin())


def chebyshev(seen: Floats, shares: Sequence[float]) -> Callable[[Sequence[Floats]], Floats]:
    """One number out of the objectives, larger is better: how little the worst lags behind what is hoped for.

    The augmented Chebyshev function of ParEGO: whatever the shape of the front, each of its points is best
    for some shares. Lags are in shares of the ranges on the front, and the number is a logarithm again.

    Args:
        seen: values so far.
        shares: what each objective counts; together 1.
    """
    front = seen[is_on_front(seen)]
    ranges = _ranges(front)
    hoped = front.max(axis=0) + _HOPE * ranges
    scale = float(ranges.mean()) * len(shares)

    def number(values: Sequence[Floats]) -> Floats:
        lags = [
            share * (top - value) / span
            for share, top, span, value in zip(shares, hoped, ranges, values, strict=True)
        ]
        return np.asarray(-scale * (np.max(lags, axis=0) + _AUGMENTED * np.sum(lags, axis=0)))

    return number


def _ranges(values: Floats) -> Floats:
    return np.asarray(np.maximum(_LEAST_RANGE, values.max(axis=0) - values.min(axis=0)))
