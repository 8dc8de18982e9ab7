"""One candidate under load, a window at a time: run, waited for, and what was wrong where that failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace

from tritonc.schemas.errors import LoadGeneratorError
from tritonc.schemas.measurement import ClosedLoad, Failure, Load, OpenLoad
from tritonc.tuner.arrivals import Arrivals
from tritonc.tuner.bench import Bench
from tritonc.tuner.demand import traces_of
from tritonc.tuner.engines import Server, ServerFailure, Statistics
from tritonc.tuner.faults import fault
from tritonc.tuner.objective import latency_limits
from tritonc.tuner.perf_analyzer import NoWindow
from tritonc.tuner.sample import Sample

WINDOW_S = 1.0
"""One step of load; longer where that would see few requests, shorter where it would see very many."""
LONGEST_S = 3.0
"""Of a window whose length was not asked for."""
SHORTEST_S = 0.4
"""The load generator cuts a window in three, each of which has to see a good number of requests. Windows four
times as long scattered as much as these on one small model, half as much on two others, and visits differ as
much as windows do (`statistics.VISIT`): longer ones tell little for their time."""
REQUESTS = 40
"""Completed in a window, where its length allows."""

_REQUESTS_IN_SIGHT = 4  # a window of so many requests' time sees completions in each of its thirds
_SLOWEST_S = 30.0  # a model of ten seconds an execution can be measured
_HOPELESS = 12.0  # times the latency limit: a third of a window passes without a completion
_ANOTHER_TRY = ("generator", "unknown")  # the load generator's statistics calls fail now and then
_IDLE_S = 20.0
_POLL_S = 0.05
_FIXED_S = 10.0


@dataclass(slots=True)
class UnderLoad:
    """A candidate that is loaded, and what it is put under load with.

    Attributes:
        server: has `model` loaded.
        model: the candidate.
        bench: what to measure with.
        seed: of Poisson arrivals.
        leaving: processes of the candidate before that may not be gone yet; their memory does not count.
        replayed: how many windows of a trace the candidate has seen.
        shortest_s: of a window, because a shorter one would see too few requests.
        seconds: that the load generator ran so far.
    """

    server: Server
    model: str
    bench: Bench
    seed: int
    leaving: Callable[[], Set[int]] = frozenset
    replayed: int = 0
    shortest_s: float = field(init=False, default=0.0)
    seconds: float = field(init=False, default=0.0)
    _arrivals: Arrivals = field(init=False)

    def __post_init__(self) -> None:
        self._arrivals = Arrivals(self.seed, traces=traces_of(self.bench.workload), windows=self.replayed)

    def takes(self, request_s: float) -> None:
        """Takes in how long one request takes: windows are long enough to see a few of them."""
        self.shortest_s = min(LONGEST_S, _REQUESTS_IN_SIGHT * request_s)

    def window(self, load: Load, window_s: float) -> Sample | NoWindow:
        """One window; a longer one where that is too short to see the model complete anything.

        Raises:
            ServerFailure: the server went, or does not come to rest.
        """
        length_s = max(window_s, self.shortest_s)
        while True:
            sample = self._window(load, length_s)
            if isinstance(sample, NoWindow) and sample.reason in _ANOTHER_TRY:
                sample = self._window(load, length_s)
            too_slow = isinstance(sample, NoWindow) and sample.reason == "too_slow"
            if not too_slow or length_s >= self._longest_s():
                return sample
            length_s = self.shortest_s = min(2 * length_s, self._longest_s())

    def _longest_s(self) -> float:
        """How long to look for a completion: not for long where the SLO would be missed by far anyway."""
        limits = latency_limits(self.bench.slo.limits).values()
        return max(LONGEST_S, min(_SLOWEST_S, _HOPELESS * max(limits) / 1000 if limits else _SLOWEST_S))

    def _window(self, load: Load, window_s: float) -> Sample | NoWindow:
        """One window, with what the server counted meanwhile."""
        before = self.server.statistics(self.model)
        bench = self.bench
        energy_j = self.server.energy_j() if bench.counts_energy else None
        began = time.monotonic()
        seen = bench.generator.run(
            self.server.grpc_address, self.model, load, window_s, bench.data, arrivals=self._arrivals
        )
        self.seconds += time.monotonic() - began
        if isinstance(seen, NoWindow):
            return self._slow_or(seen, before)
        if not seen.drained:
            self._wait_until_idle(_IDLE_S + seen.undone_s)
        counted = self.server.statistics(self.model).since(before)
        if energy_j is not None:
            after_j = self.server.energy_j()
            energy_j = None if after_j is None else after_j - energy_j
        return Sample(load, (seen,), counted, 0, None, energy_j=energy_j)

    def memory_bytes(self) -> tuple[int, int | None]:
        """What the server has now, with what its loads have made it take: host memory, and that of GPUs.

        Adding up a server's pages takes the kernel 25 ms.
        """
        gone = self.leaving()
        return self.server.memory_bytes(gone), self.server.gpu_memory_bytes(gone)

    def _slow_or(self, seen: NoWindow, before: Statistics) -> NoWindow:
        """`seen`, but a server that went on executing all the time is slow where it seems to hang."""
        if seen.reason != "deadline" or not self.server.statistics(self.model).since(before).executions:
            return seen
        self._wait_until_idle()
        return NoWindow("too_slow", seen.detail)

    def _wait_until_idle(self, patience_s: float = _IDLE_S) -> None:
        """Returns when no request is waiting, so that the next window begins with an empty queue."""
        deadline = time.monotonic() + patience_s
        models = (self.model, *self.server.steps(self.model))
        waiting = tuple(f'nv_inference_pending_request_count{{model="{model}"' for model in models)
        while any(n for name, n in self.server.metrics().items() if name.startswith(waiting)):
            if time.monotonic() > deadline:
                what = f"requests were still waiting {patience_s:.3g} s after the load had ended"
                raise ServerFailure(Failure(reason="server_hung", detail=what))
            time.sleep(_POLL_S)

    def failure(self, seen: NoWindow) -> Failure:
        """What was wrong, looking at the server.

        Raises:
            LoadGeneratorError: nothing that the candidate did.
        """
        reasons = {"too_slow": "no_result", "deadline": "server_hung", "generator": "no_result"}
        reason = reasons.get(seen.reason, "request_errors")
        found = fault(self.server, reason, seen.detail)  # type: ignore[arg-type]
        if seen.reason == "generator" and found.reason == "no_result":
            raise LoadGeneratorError(
                f"there were two windows without a result; {seen.detail}",
                "finished trials are kept: mend that, and run the command again",
            )
        return found


def take_sample(
    server: Server,
    model: str,
    bench: Bench,
    load: Load,
    min_requests: int,
    *,
    cap_s: float = 30.0,
    seed: int | None = None,
    window_s: float = WINDOW_S,
    leaving: Callable[[], Set[int]] = frozenset,
    replayed: int = 0,
) -> Sample | Failure:
    """Windows of one load until at least `min_requests` requests were completed; see `sample.pooled`.

    Args:
        server: has `model` loaded.
        model: the candidate.
        bench: what to measure with.
        load: which load.
        min_requests: how many requests; at least one window is run.
        cap_s: no further window is begun after this many seconds.
        seed: of Poisson arrivals, other than the bench's.
        window_s: of the first window; others last as long as what is missing takes.
        leaving: as in `UnderLoad`.
        replayed: how many windows of a trace the candidate has seen.
    """
    seed = bench.seed if seed is None else seed
    candidate = UnderLoad(server, model, bench, seed, leaving, replayed)
    began = time.monotonic()
    shortest_s = min(window_s, WINDOW_S)
    if isinstance(load, OpenLoad):
        window_s = min(_FIXED_S, max(window_s, min_requests / load.rate))
    samples: list[Sample] = []
    try:
        while True:
            sample = candidate.window(load, window_s)
            if isinstance(sample, NoWindow):
                return candidate.failure(sample)
            samples.append(sample)
            missing = min_requests - sum(each.requests for each in samples)
            left_s = cap_s - (time.monotonic() - began)
            if missing <= 0 or left_s <= 0:
                memory, gpu_memory = candidate.memory_bytes()
                return replace(Sample.joined(samples), memory_bytes=memory, gpu_memory_bytes=gpu_memory)
            ramp = load.concurrency if isinstance(load, ClosedLoad) else 0  # does not count: `Window.ramp`
            rate = max(1e-9, sample.request_rate)
            least_s = min(shortest_s, max(SHORTEST_S, REQUESTS / rate))
            window_s = max(least_s, min((1.1 * missing + ramp) / rate, _FIXED_S, left_s))
    except ServerFailure as err:
        return err.failure
