"""When the requests of open loads are sent, window after window of one candidate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonc.schemas.measurement import OpenLoad, Trace
from tritonc.schemas.request_batch import BatchMix
from tritonc.tuner.arrival_trace import ArrivalTrace, Stretch

Floats = npt.NDArray[np.float64]

WHOLE_S = 10.0
"""A trace that lasts no longer than this is replayed as a whole in every window."""
_PARTS = 3
"""The load generator cuts a window in so many, each of which has to see a request (`perf_analyzer`)."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_BEGIN = 0.637
"""Where in a trace its first stretch is, as a share of it: not at its beginning, which is often quiet."""
_IN_TIME = 0.8
"""Of such a part: what arrives later than that may be answered in the next one."""


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """When to send.

    Attributes:
        times_s: ascending, from the beginning of the window, for the window and for as long again.
        window_s: how long the window is.
    """

    times_s: Floats
    window_s: float


class Arrivals:
    """Draws schedules.

    A trace that is longer than a window (at the rate of the load) is replayed in stretches, each window of a
    load another one, in an order that is the same for all candidates and about the same for all loads: they
    can be compared.

    Args:
        seed: of Poisson arrivals.
        traces: by digest; all that loads name.
        windows: how many windows of each load were replayed before.
    """

    def __init__(
        self,
        seed: int,
        *,
        traces: Mapping[str, ArrivalTrace] | None = None,
        windows: int = 0,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._traces = traces or {}
        self._before = windows
        self._windows: Counter[OpenLoad] = Counter()

    def schedule(self, load: OpenLoad, window_s: float) -> Schedule:
        """When to send in the next window, which is about as long as asked for; see `Schedule`.

        Poisson arrivals of a known number are uniform, so that each window gets the rate that was asked for,
        to a request, and differs only in how they bunch.
        """
        if isinstance(load.distribution, Trace):
            number = self._before + self._windows[load]
            self._windows[load] += 1
            return self._replayed(self._traces[load.distribution.trace], load.rate, window_s, number)
        count = max(1, round(load.rate * window_s))
        if load.distribution == "constant":
            return Schedule(np.arange(1, 2 * count + 1, dtype=np.float64) * (window_s / count), window_s)
        drawn = [begin + np.sort(self._rng.uniform(0, window_s, count)) for begin in (0, window_s)]
        return Schedule(np.concatenate(drawn), window_s)

    def shared_out(self, schedule: Schedule, mix: BatchMix) -> tuple[Floats, ...]:
        """The times of a schedule at which requests of each size are sent.

        In each third of a window each size has as many as its weight says. Where there are enough it has one
        at least, not at the very end: the load generator needs to see one answered. Which they are is drawn.
        """
        ends = np.cumsum([0.0, *(share.weight for share in mix)]) / sum(share.weight for share in mix)
        third_s = schedule.window_s / _PARTS
        part = np.floor(schedule.times_s / third_s)
        which = np.empty(len(part), np.intp)
        for number in np.unique(part):
            places = np.flatnonzero(part == number)
            until = np.floor(ends * len(places) + self._rng.random()).astype(np.intp)
            counts = until[1:] - until[:-1]
            while not counts.all() and counts.max() > 1:
                counts[np.argmin(counts)] += 1
                counts[np.argmax(counts)] -= 1
            drawn = self._rng.permutation(np.repeat(np.arange(len(mix)), counts))
            is_early = schedule.times_s[places] % third_s <= _IN_TIME * third_s
            which[places] = _each_early(drawn, is_early)
        return tuple(schedule.times_s[which == place] for place in range(len(mix)))

    def _replayed(self, trace: ArrivalTrace, rate: float, window_s: float, number: int) -> Schedule:
        """Whole replays, as many as the window holds at least, or else one stretch."""
        speed = rate / trace.rate
        stretches = trace.stretches(WHOLE_S * speed)
        order = order_of(len(stretches))
        stretch = stretches[order[number % len(stretches)]].at(speed)
        least = math.ceil(window_s / stretch.length_s - 1e-9) if len(stretches) == 1 else 1
        window = _without_silence(stretch, max(1, least))
        return Schedule(window.repeated(2).times_s, window.length_s)


def _each_early(sizes: npt.NDArray[np.intp], is_early: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Sizes changed places so that each has an early one, where there are enough of those."""
    sizes = sizes.copy()
    for size in np.unique(sizes):
        early = sizes[is_early]
        spare = np.flatnonzero(is_early & (np.bincount(early, minlength=sizes.max() + 1)[sizes] > 1))
        if size not in early and len(spare):
            place, late = spare[0], np.flatnonzero(sizes == size)[0]
            sizes[place], sizes[late] = sizes[late], sizes[place]
    return sizes


def order_of(parts: int) -> list[int]:
    """An order of the parts of a trace in which the first few are far apart from each other.

    So many steps of the golden ratio around a trace leave no gap longer than 2.62 over their number (the
    three-gap theorem), so that four steps a part hit every part; and the first ones hit about the same
    places however many parts there are.
    """
    hits = ((_BEGIN + _GOLDEN * np.arange(4 * parts)) % 1 * parts).astype(int)
    return list(dict.fromkeys(hits.tolist()))


def _without_silence(stretch: Stretch, least: int) -> Stretch:
    """A stretch repeated until something arrives in each part of the window; three times is enough."""
    for times in range(least, least + _PARTS):
        window = stretch.repeated(times)
        if not is_silent(window.times_s, window.length_s):
            return window
    return stretch.repeated(_PARTS * math.ceil(least / _PARTS))


def is_silent(times_s: Floats, window_s: float) -> bool:
    """Whether nothing is sent in some part of the window, or nothing that may be answered within it."""
    place = times_s / window_s * _PARTS
    early = np.floor(place[(place % 1 <= _IN_TIME) & (place < _PARTS)])
    return len(np.unique(early)) < _PARTS
