"""One stretch of load as the load generator saw it, request by request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from tritonc.schemas.measurement import ClosedLoad, Load, OpenLoad, Trace
from tritonc.tuner.objective import Percentile
from tritonc.tuner.statistics import grows

Floats = npt.NDArray[np.float64]

_ENOUGH = 8
"""Requests that have to remain for the first ones to be left out."""
_STRAGGLES = 2.0
"""Times the median of the first answers after which the ramp is over, whoever waits still."""
_COMPLETED = 0.98
"""Share of the requests sent that a sustained rate completes (docs/engines.md)."""
_SENT_WITHIN_S = 0.1
"""A request of a trace is sent no later than this after it was planned, or else it is late."""
_TICK_S = 1e-6
"""What is planned for the very end of a window is not in it, however seconds since 1970 are rounded."""
_LATE_S = 0.005
_LATE = 0.1
"""A request of a trace was sent late where it was by more than 5 ms and a tenth of its latency."""
_FEW_LATE = 0.05


@dataclass(frozen=True, slots=True)
class Summary:
    """What a load generator says about a window where it has no times of single requests.

    Attributes:
        throughput: inferences a second.
        latency_ms: by percentile, "avg" included.
    """

    requests: int
    throughput: float
    latency_ms: Mapping[Percentile, float]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Requests completed within one window, in the order in which they were sent.

    Times are in seconds from the beginning of the window, which is when the load began.

    Attributes:
        duration_s: of the window.
        send_s: when each request was sent.
        latency_ms: from sending to the last response.
        planned_s: open loop: when requests were to be sent, those after the window included.
        delayed: the load generator said that it could not keep up with the plan.
        drained: every request had been answered when the load generator ended; else the server may be busy
            still.
        warnings: what a person should know.
        summary: instead of requests; `send_s` and `latency_ms` are empty then.
        began_s: when it began, on the clock that all load generators of a machine share.
        sizes: inferences in each request, where they have several sizes.
    """

    load: Load
    duration_s: float
    send_s: Floats
    latency_ms: Floats
    planned_s: Floats = field(default_factory=lambda: np.empty(0))
    delayed: bool = False
    drained: bool = True
    warnings: tuple[str, ...] = ()
    summary: Summary | None = None
    began_s: float = 0.0
    sizes: Floats = field(default_factory=lambda: np.empty(0))

    @property
    def done_s(self) -> Floats:
        """When each request was answered."""
        return self.send_s + self.latency_ms / 1000

    def within(self, begin_s: float, end_s: float) -> Window:
        """What was completed between two moments, on the clock of `began_s`; see `together.overlapping`.

        Of an open load only the end is cut, since its plan counts from the first request.
        """
        if self.summary is not None:
            return self
        cut_s = max(0.0, begin_s - self.began_s) if isinstance(self.load, ClosedLoad) else 0.0
        duration_s = min(self.duration_s, end_s - self.began_s) - cut_s
        kept = (self.done_s >= cut_s) & (self.done_s <= cut_s + duration_s)
        return replace(
            self,
            began_s=self.began_s + cut_s,
            duration_s=duration_s,
            send_s=self.send_s[kept] - cut_s,
            latency_ms=self.latency_ms[kept],
            sizes=self.sizes[kept] if len(self.sizes) else self.sizes,
        )

    @property
    def ramp(self) -> int:
        """How many of the first requests met an emptier queue than the later ones.

        Closed loop: one for each client, as all clients begin at once. None where too few would be left.
        """
        if not isinstance(self.load, ClosedLoad):
            return 0
        return self.load.concurrency if len(self.send_s) >= self.load.concurrency + _ENOUGH else 0

    @property
    def steady_from_s(self) -> float:
        """From when on completions are counted: the ramp is over then.

        A server that takes one after another has answered the last of the first requests after twice the
        median; what then is still under way is a straggler, and the others are in the steady state.
        """
        if not self.ramp:
            return 0.0
        first_s = self.done_s[: self.ramp]
        return min(float(first_s.max()), _STRAGGLES * float(np.median(first_s)))

    @property
    def steady_latency_ms(self) -> Floats:
        """Latencies without those of the ramp."""
        return self.latency_ms[self.ramp :]

    @property
    def events(self) -> tuple[Floats, float, float]:
        """Completions whose rate is the throughput: their times, begin and end.

        Those of a trace are counted when they were sent, on the clock of the trace: a second in which twice
        as many arrive as on average is two. Else its bursts would be differences of throughput, and so would
        be which stretch of it was replayed.
        """
        if not self._is_replayed:
            return self.done_s, self.steady_from_s, self.duration_s
        arrived = np.interp(self.duration_s - _TICK_S, self._aligned_s, np.arange(len(self.planned_s)))
        # Each in the middle of its place, so that the first one counts.
        return self._trace_s(self._places + 0.5), 0.0, float(self._trace_s(arrived))

    @property
    def _is_replayed(self) -> bool:
        return isinstance(self.load, OpenLoad) and isinstance(self.load.distribution, Trace)

    @property
    def _aligned_s(self) -> Floats:
        """The plan, from when the first request was really sent."""
        return self.planned_s + float(self.send_s[0] - self.planned_s[0])

    @property
    def _places(self) -> Floats:
        """The place of each request in the plan, those that were not answered being left out.

        Requests are sent in the order of the plan, none before its time, and several at the same time.
        """
        order = np.arange(len(self.send_s))
        earliest = np.searchsorted(self._aligned_s, self.send_s - _SENT_WITHIN_S)
        latest = np.searchsorted(self._aligned_s, self.send_s, side="right") - 1
        following = order + np.maximum.accumulate(earliest - order)
        within = np.minimum(np.minimum(following, np.maximum(latest, order)), len(self.planned_s) - 1)
        return np.maximum.accumulate(within).astype(np.float64)

    def _trace_s(self, places: Floats | float) -> Floats:
        """Places in the plan on the clock of the trace."""
        assert isinstance(self.load, OpenLoad)
        return np.asarray(places / self.load.rate, np.float64)

    @property
    def offered_rate(self) -> float | None:
        """Open loop: requests a second really sent, from the send times."""
        if not isinstance(self.load, OpenLoad) or len(self.send_s) < 2:
            return None
        sent_s = self._trace_s(self._places) if self._is_replayed else self.send_s
        span_s = float(sent_s[-1] - sent_s[0])
        return (len(self.send_s) - 1) / span_s if span_s > 0 else None

    @property
    def undone_s(self) -> float:
        """Open loop: how long the server needs for what was planned and not completed, at its rate here."""
        if self.summary is not None or not len(self.send_s):
            return 0.0
        planned = int(np.count_nonzero(self.planned_s <= self.duration_s))
        return max(0.0, planned / len(self.send_s) - 1) * self.duration_s

    @property
    def is_late(self) -> bool:
        """Trace: requests were not sent when they were to be, so that its bursts were weaker.

        The load generator calls the second of two that arrive together late, however little that is.
        """
        late_s = self.send_s - self._aligned_s[self._places.astype(np.intp)]
        late = (late_s > _LATE_S) & (late_s > _LATE * self.latency_ms / 1000)
        return bool(late.mean() > _FEW_LATE)

    @property
    def sustained(self) -> bool:
        """Open loop: the server kept up. Closed loop: always true.

        The load generator reports only what was completed within the window, so what was sent comes from
        its plan. Requests that were sent at the very end may be under way: up to three times the latency
        that the first ones had, at most a quarter of the window. Of a trace three times the shortest latency,
        as nothing waits at the end of a replay that the server keeps up with (`arrival_trace`); that latency
        grows within one means nothing.
        """
        if not isinstance(self.load, OpenLoad):
            return True
        if self.summary is not None:
            wanted = _COMPLETED * self.load.rate * self.load.mean_request_batch
            return not self.delayed and self.summary.throughput >= wanted
        if self.delayed or len(self.send_s) < 2:
            return False
        until_s = self.duration_s - min(self.duration_s / 4, 3 * self._first_latency_ms / 1000)
        sent = int(np.count_nonzero(self._aligned_s <= until_s))
        completed = int(np.count_nonzero(self.send_s <= until_s))
        allowed = max(1.0, (1 - _COMPLETED) * sent)  # of fewer than fifty, a single one is no sign
        if sent - completed > allowed:
            return False
        return self._is_replayed or not grows(self.send_s, self.latency_ms)

    @property
    def _first_latency_ms(self) -> float:
        """Of requests that met no queue, or hardly any; of several sizes that of the slowest."""
        if self._is_replayed:
            return float(self.latency_ms.min())
        first = slice(0, max(1, len(self.send_s) // 4))
        latency_ms, sizes = self.latency_ms[first], self.sizes[first]
        each = [latency_ms[sizes == size] for size in np.unique(sizes)] or [latency_ms]
        return max(float(np.median(one)) for one in each)
