"""The noise floor of a machine: how far windows of one load under one configuration lie apart. Pure.

Neighbouring windows differ by more than what shows within them says: other work on the machine, clock
rates, how requests happen to bunch. An interval from within a window alone is therefore too narrow. What
windows have between them is measured once, at the start of a study, on the baseline at the load it carries,
and is in every interval from then on (`statistics.rate_interval`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonc.tuner.statistics import Scatter, mean_batches, rate_batches, scatter_between
from tritonc.tuner.window import Window

WINDOWS = 8
"""Windows that a noise floor rests on: seven degrees of freedom widen a 95% interval by a fifth."""


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """How far windows lie apart beyond what shows within them.

    Attributes:
        throughput: of the windows' throughput.
        latency: of their average latency.
    """

    throughput: Scatter
    latency: Scatter


def noise_floor(windows: Sequence[Window], known: NoiseFloor | None = None) -> NoiseFloor | None:
    """The noise floor that windows under one load show.

    Args:
        windows: of one load.
        known: from other loads, to pool with.

    Returns:
        `known` where the windows are too few or have no requests.
    """
    seen = [window for window in windows if window.summary is None]
    if not seen:
        return known
    rates = rate_batches([window.events for window in seen])
    throughput = scatter_between(rates, known.throughput if known else None)
    latency = mean_batches([window.steady_latency_ms for window in seen])
    of_latency = scatter_between(latency, known.latency if known else None)
    if throughput is None or of_latency is None:
        return known
    return NoiseFloor(throughput, of_latency)
