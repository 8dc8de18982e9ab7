"""Whether the machine itself changed while a search ran: the baseline looked at again now and then. Pure.

Trials of one study are compared with each other although they are minutes apart. So the baseline, at the load
it carries, is a reference point: where it does something else than it did, twice in a row, the machine did
change, and what was measured since the last look that found nothing may be of either machine.
"""

from __future__ import annotations

import math

from tritonc.schemas.measurement import ClosedLoad, Measurement
from tritonc.tuner.statistics import half_width

SHARE = 0.04
"""Of the search's time that goes into looking at the reference, at most."""
REQUESTS = 200
"""Of a look: the reference's throughput is compared, which needs fewer than a p99."""
LEAST_CHANGE = 0.05
"""A smaller change of the machine is no reason to measure anything again: trials are not known better."""
_LONGEST_LOOK_S = 10.0
"""A look takes fewer requests where the model is so slow that it would last longer."""


def requests_of_look(reference: Measurement) -> int:
    """Requests of a look under the load of a reference: `REQUESTS`, or what ten seconds can count.

    As many as there are clients do not count in a window (`Window.ramp`).
    """
    load = reference.load
    rate = reference.throughput.value / load.mean_request_batch
    ramp = load.concurrency if isinstance(load, ClosedLoad) else 0
    return max(1, min(REQUESTS, math.ceil(rate * _LONGEST_LOOK_S) - ramp))


class ReferenceWatch:
    """Knows when to look at the reference next, and what a look means.

    Args:
        reference: the baseline's measurement at the load it carries.
        cost_s: what a look is expected to take, in seconds, until one was taken.
    """

    def __init__(self, reference: Measurement, cost_s: float) -> None:
        self.reference = reference
        self._cost_s = cost_s
        self._searched_s = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the search has gone on for so long that another look is a small share of its time."""
        return self._cost_s <= SHARE * self._searched_s

    def searched(self, seconds: float) -> None:
        """Takes in what a trial took."""
        self._searched_s += seconds

    def looked(self, seconds: float) -> None:
        """Takes in what a look took."""
        self._cost_s = seconds
        self._searched_s = 0.0

    def change(self, seen: Measurement) -> float | None:
        """How much faster (above 1) or slower the machine is than when the reference was measured.

        None where what differs is not clear, or less than 5%.
        """
        (before, doubt_before), (now, doubt_now) = _speed(self.reference), _speed(seen)
        if before <= 0 or now <= 0:
            return None
        change = math.log(now / before)
        noise = math.hypot(doubt_before, doubt_now)
        return math.exp(change) if abs(change) > max(noise, math.log1p(LEAST_CHANGE)) else None


def _speed(measured: Measurement) -> tuple[float, float]:
    """What follows the machine, and half of its 95% interval, relative to it.

    That is throughput, or where a rate is given the inverse of the average latency.
    """
    if measured.load.kind == "closed":
        return measured.throughput.value, half_width(measured.throughput)
    latency = measured.latency_ms["avg"]
    return 1 / latency.value, half_width(latency)
