"""Windows of an open load whose requests have several sizes: one load generator for each, all at once.

perf_analyzer's `-b` is the same for all requests that it sends. The times at which they are sent are shared
out (`arrivals.Arrivals.shared_out`), each generator gets its own, and what they saw is one window again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tritonc.schemas.measurement import OpenLoad
from tritonc.schemas.request_batch import BatchMix
from tritonc.tuner.window import Window

_TOGETHER = 0.5
"""Of the longest window: what the generators have in common has to last so long to be judged."""
_MORE = 1.2
"""A size whose requests are planned more often than this, relative to its weight, is worth a warning."""


def load_of_each(load: OpenLoad, mix: BatchMix) -> tuple[OpenLoad, ...]:
    """The load that each generator sends."""
    total = sum(share.weight for share in mix)
    return tuple(
        load.model_copy(update={"rate": load.rate * share.weight / total, "request_batch": share.size})
        for share in mix
    )


def merged(load: OpenLoad, mix: BatchMix, windows: Sequence[Window]) -> Window | None:
    """What all generators saw while all of them sent; None where that was for less than half of a window.

    Args:
        load: of all requests.
        mix: of `load`.
        windows: one of each size, with the times of single requests.
    """
    begin_s = max(each.began_s for each in windows)
    duration_s = min(each.began_s + each.duration_s for each in windows) - begin_s
    if duration_s < _TOGETHER * max(each.duration_s for each in windows):
        return None
    sent, latency, planned, sizes = [], [], [], []
    for share, window in zip(mix, windows, strict=True):
        later_s = begin_s - window.began_s
        send_s = window.send_s - later_s
        kept = (send_s >= 0) & (window.done_s - later_s <= duration_s)
        plan_s = window.planned_s + (window.send_s[0] - window.planned_s[0]) - later_s
        sent.append(send_s[kept])
        latency.append(window.latency_ms[kept])
        planned.append(plan_s[plan_s >= 0])
        sizes.append(np.full(np.count_nonzero(kept), float(share.size)))
    order = np.argsort(np.concatenate(sent), kind="stable")
    return Window(
        load=load,
        duration_s=duration_s,
        send_s=np.concatenate(sent)[order],
        latency_ms=np.concatenate(latency)[order],
        planned_s=np.sort(np.concatenate(planned)),
        delayed=any(each.delayed for each in windows),
        drained=all(each.drained for each in windows),
        warnings=(*dict.fromkeys(text for each in windows for text in each.warnings), *_said(mix, windows)),
        began_s=begin_s,
        sizes=np.concatenate(sizes)[order],
    )


def _said(mix: BatchMix, windows: Sequence[Window]) -> tuple[str, ...]:
    """That rare sizes are sent more often than their weights say, so that each is seen."""
    planned, weights = sum(len(each.planned_s) for each in windows), sum(share.weight for share in mix)
    more = [
        str(share.size)
        for share, each in zip(mix, windows, strict=True)
        if len(each.planned_s) / planned > _MORE * share.weight / weights
    ]
    return (f"requests of {', '.join(more)} were sent more often than their weight says",) if more else ()
