"""Times of arrival from a file, cut into stretches that a window of load can replay. Pure, but for reading.

A trace is taken to go round: after its last arrival and one mean gap it begins anew. A stretch begins where
least has come in compared with the mean rate, just before a burst. A server that carries the mean rate has
then done all of a whole replay by its end (the cycle lemma; Dvoretzky and Motzkin, "A problem of
arrangements", 1947), so that whatever is left to do there is too much for it.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SHOWN = 40
"""Characters of a wrong line that are shown."""


_RATES = (1e-2, 1e6)
"""Arrivals a second that a trace can have: one in 100 s, and more than any server is sent."""


class TraceFileError(Exception):
    """What is wrong with a trace file, and what to do; the caller knows where the file is named."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Part of a trace.

    Attributes:
        times_s: of arrival, ascending, from its beginning on; at least one.
        length_s: until the next one begins.
    """

    times_s: Floats
    length_s: float

    def at(self, speed: float) -> Stretch:
        """The same, so many times as fast."""
        return Stretch(self.times_s / speed, self.length_s / speed)

    def repeated(self, times: int) -> Stretch:
        """So many of it, one after another."""
        begins = np.arange(times) * self.length_s
        return Stretch((begins[:, None] + self.times_s).ravel(), times * self.length_s)


@dataclass(frozen=True, slots=True, eq=False)
class ArrivalTrace:
    """Times of arrival.

    Attributes:
        times_s: ascending, from 0 on; the last one is above 0.
        sha256: of the file.
    """

    times_s: Floats
    sha256: str

    @property
    def rate(self) -> float:
        """Arrivals a second, on average."""
        return float((len(self.times_s) - 1) / self.times_s[-1])

    @property
    def length_s(self) -> float:
        """Until it begins anew."""
        return len(self.times_s) / self.rate

    def stretches(self, longest_s: float) -> tuple[Stretch, ...]:
        """All of it, as one stretch or as several of about the same length.

        Args:
            longest_s: what is no longer than this is one; of more, each is at most half as long again.
        """
        ahead = np.arange(len(self.times_s)) - self.rate * self.times_s
        first = int(np.argmin(ahead))
        later = self.times_s[first:] - self.times_s[first]
        times = np.concatenate([later, self.times_s[:first] + (self.length_s - self.times_s[first])])
        ahead = np.arange(len(times)) - self.rate * times
        count = max(1, math.ceil(self.length_s / longest_s - 1e-9))
        width = self.length_s / count
        cuts = [0.0, *(_emptiest(times, ahead, part * width, width / 4) for part in range(1, count))]
        ends = [*cuts[1:], self.length_s]
        found = []
        for begin, end in zip(cuts, ends, strict=True):
            inside = times[np.searchsorted(times, begin) : np.searchsorted(times, end)]
            if len(inside):
                found.append(Stretch(inside - begin, end - begin))
        return tuple(found)


def _emptiest(times: Floats, ahead: Floats, near: float, apart: float) -> float:
    """The moment near another one at which least has come in, compared with the mean rate."""
    low, high = (int(np.searchsorted(times, near + side * apart)) for side in (-1, 1))
    return float(times[low + int(np.argmin(ahead[low:high]))]) if high > low else near


def read_trace(path: Path) -> ArrivalTrace:
    """The times in a file: seconds, one a line, ascending; what follows a # is no part of it.

    Raises:
        TraceFileError: it cannot be read, a line is no number or goes back in time, or there are too few.
    """
    try:
        content = path.read_bytes()
        text = content.decode()
    except FileNotFoundError as err:
        raise TraceFileError("there is no such file", "the path is relative to the spec") from err
    except OSError as err:
        raise TraceFileError(f"it cannot be read: {err.strerror}", "name a file that you may read") from err
    except UnicodeDecodeError as err:
        raise TraceFileError("it is no text", "it has to be text, one number a line") from err
    times: list[float] = []
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        if not said:
            continue
        if not _NUMBER.fullmatch(said) or not math.isfinite(time := float(said)):
            shown = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
            raise TraceFileError(f'line {number} is "{shown}"', "a line is a time in seconds, such as 12.5")
        if times and time < times[-1]:
            what = f"line {number} is {said}, before the arrival above it at {times[-1]:.12g}"
            raise TraceFileError(what, "times of arrival ascend: sort them")
        times.append(time)
    if not times or times[-1] <= times[0]:
        what = (
            "all of its arrivals are at the same time" if len(times) > 1 else "it has fewer than two arrivals"
        )
        raise TraceFileError(what, "a trace has at least two, at different times")
    trace = ArrivalTrace(np.array(times, np.float64) - times[0], hashlib.sha256(content).hexdigest())
    if not _RATES[0] <= trace.rate <= _RATES[1]:
        what = f"it has {trace.rate:.3g} arrivals a second"
        raise TraceFileError(
            what, "its times have to be in seconds: are they in milliseconds or nanoseconds?"
        )
    return trace
