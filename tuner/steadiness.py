"""Whether windows under one load show one thing, or something that drifts or alternates. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tritonc.tuner.statistics import Floats, rate_stretches
from tritonc.tuner.window import Window

_DRIFT = 0.08
"""A change of throughput over the windows that is worth a word."""
_SURE = 0.01
"""Probability of such a trend where there is none."""
_APART = 1.15
"""Levels that throughput alternates between differ at least by this factor."""
_SHARE = 0.2
"""Of the time on the rarer level, at least."""
_SPLIT = 0.85
"""Share of the variance between two levels: 0.64 for normal values, 0.75 for uniform ones, 1 for two."""
_STRETCHES = 12
_REQUESTS = 20
"""In a stretch: with fewer, counting alone makes neighbours differ."""


def unsteadiness(windows: Sequence[Window]) -> tuple[str, ...]:
    """What a person should know about a load's windows: drift, or two levels; a line each.

    Args:
        windows: under one load, in the order in which they were run.
    """
    seen = [window for window in windows if window.summary is None]
    rates = np.concatenate([_rates(window) for window in seen]) if seen else np.empty(0)
    if len(rates) < _STRETCHES or rates.min() <= 0:
        return ()
    said = _drift(rates) or _levels(rates)
    return (said,) if said else ()


def _rates(window: Window) -> Floats:
    """Requests a second in equal stretches of a window with enough requests each."""
    requests = len(window.steady_latency_ms)
    pieces = max(1, min(_STRETCHES, requests // _REQUESTS))
    return rate_stretches(*window.events, pieces)


def _drift(rates: Floats) -> str | None:
    """A trend from the first stretch to the last: Theil and Sen's slope, Kendall's test."""
    from scipy.stats import kendalltau, theilslopes

    order = np.arange(len(rates))
    change = float(theilslopes(rates, order)[0]) * (len(rates) - 1) / float(np.median(rates))
    if abs(change) < _DRIFT or kendalltau(order, rates).pvalue > _SURE:
        return None
    return f"throughput {'rose' if change > 0 else 'fell'} by {abs(change):.0%} while it was measured"


def _levels(rates: Floats) -> str | None:
    """Two levels: the split of the sorted rates that explains most of their variance (Otsu's method)."""
    ordered = np.sort(rates)
    count = len(ordered)
    sums = np.cumsum(ordered)[:-1]
    lower = np.arange(1, count)
    below, above = sums / lower, (ordered.sum() - sums) / (count - lower)
    explained = lower * (count - lower) / count**2 * (above - below) ** 2
    split = int(np.argmax(explained))
    share = lower[split] / count
    variance = float(ordered.var())
    if variance <= 0 or explained[split] < _SPLIT * variance or above[split] < _APART * below[split]:
        return None
    if not _SHARE <= share <= 1 - _SHARE:
        return None
    return (
        f"throughput alternates between {below[split]:.4g} requests a second ({share:.0%} of the time) "
        f"and {above[split]:.4g}"
    )
