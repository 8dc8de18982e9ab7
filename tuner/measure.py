"""What one candidate can do: warmed up, verified, put under load; every fault of its own is a Failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement, OpenLoad
from tritonc.schemas.spec import Accuracy, ClosedWorkload, Slo, Workload
from tritonc.tuner.engines import Server, ServerFailure, Statistics
from tritonc.tuner.faults import fault
from tritonc.tuner.inputs import Inputs
from tritonc.tuner.load_search import LoadSearch
from tritonc.tuner.objective import Objective, latency_limits, objective_value, violations
from tritonc.tuner.perf_analyzer import LoadData, NoWindow, PerfAnalyzer
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.statistics import settled
from tritonc.tuner.verify import Reference, verify

WINDOW_S = 1.0
"""One step of load; longer where that would see few requests."""

_OPEN_S = 1.5  # a growing queue shows more clearly, and the 99th percentile is what an open load is about
_LONGEST_S = 3.0
_REQUESTS_IN_SIGHT = 4  # a window of so many requests' time sees completions in each of its thirds
_SLOWEST_S = 30.0  # a model of ten seconds an execution can be measured
_HOPELESS = 12.0  # times the latency limit: a third of a window passes without a completion
_REQUESTS = 40  # completed in a step, where its length allows
_WARM_UP_S = 0.3
_WARM_UPS = 4
_WARM_UP_CAP_S = 2.0  # no further window is begun then
_WARM = 0.1  # short windows differ by 3 to 8% anyway (design/search.md, fact 5)
_CLIENTS = 8  # at saturation on most configurations; the load search goes on from there
_DRAIN_S = 3.0  # an overloaded server gets no more work than it does in this time
_IDLE_S = 20.0
_POLL_S = 0.05
_FIXED_S = 10.0

OnLoad = Callable[[Load | None], None]


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the wall time of a trial went; warm-up and steps are those of the load generator."""

    load: float = 0.0
    warm_up: float = 0.0
    verify: float = 0.0
    steps: float = 0.0
    settle: float = 0.0
    """Waiting until the instances of the candidate before are gone."""
    own: float = 0.0
    """None of these: tritonc itself, and asking the server how it is."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.load + self.warm_up + self.verify + self.steps + self.settle + self.own


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest load at which a candidate keeps the SLO, or the least violating one.

    Attributes:
        measurement: at that load.
        steps: every load that was measured, ascending.
        violations: by how much each limit is missed, relative to it; not above 0 where it is kept.
        objective: larger is better.
    """

    measurement: Measurement
    steps: tuple[Measurement, ...]
    slo_met: bool
    violations: Mapping[str, float]
    objective: float
    seconds: Seconds = field(default_factory=Seconds)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the candidates of one model are measured with, the same for all of them.

    Attributes:
        data: what the load generator sends.
        inputs: what outputs are compared on.
        seed: of the times of Poisson arrivals.
    """

    generator: PerfAnalyzer
    data: LoadData
    inputs: Inputs
    workload: Workload
    slo: Slo
    objective: Objective
    accuracy: Accuracy
    seed: int = 0


def measure_capacity(
    server: Server,
    model: str,
    bench: Bench,
    *,
    max_batch_size: int,
    reference: Reference | None = None,
    baseline: Measurement | None = None,
    loaded_s: float | None = None,
    on_load: OnLoad = lambda _load: None,
) -> Capacity | Failure:
    """Loads the candidate, compares its outputs, warms it up, and finds the load that decides about it.

    Args:
        server: has the candidate in its repository.
        model: its name.
        bench: what to measure with.
        max_batch_size: the candidate's own.
        reference: what its outputs should be; None to believe them.
        baseline: what a weighted objective compares with.
        loaded_s: the seconds it took to load where it is loaded already; None to load it here.
        on_load: told each load before it is measured; None for the warm-up.
    """
    trial = _Trial(server, model, bench, max_batch_size, on_load)
    try:
        return trial.capacity(reference, baseline, loaded_s)
    except ServerFailure as err:
        return err.failure


def take_sample(
    server: Server,
    model: str,
    bench: Bench,
    load: Load,
    min_requests: int,
    *,
    cap_s: float = 30.0,
    seed: int | None = None,
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
    """
    trial = _Trial(server, model, bench, 0, lambda _load: None, seed)
    began = time.monotonic()
    window_s = WINDOW_S
    if isinstance(load, OpenLoad):
        window_s = min(_FIXED_S, max(window_s, min_requests / load.rate))
    samples: list[Sample] = []
    try:
        while True:
            sample = trial.window(load, window_s)
            if isinstance(sample, NoWindow):
                return trial.failure(sample)
            samples.append(sample)
            missing = min_requests - sum(each.requests for each in samples)
            left_s = cap_s - (time.monotonic() - began)
            if missing <= 0 or left_s <= 0:
                return Sample.joined(samples)
            needed_s = 1.1 * missing / max(1e-9, sample.request_rate)
            window_s = max(WINDOW_S, min(needed_s, _FIXED_S, left_s))
    except ServerFailure as err:
        return err.failure


class _Clock:
    """Wall time by phase."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._spent: dict[str, float] = {}

    @contextmanager
    def counting(self, phase: str) -> Iterator[None]:
        """Adds what happens inside to a phase."""
        entered = time.monotonic()
        try:
            yield
        finally:
            self._spent[phase] = self._spent.get(phase, 0.0) + time.monotonic() - entered

    def spent(self, phase: str) -> float:
        """Seconds in a phase so far."""
        return self._spent.get(phase, 0.0)

    def seconds(self, loaded_s: float) -> Seconds:
        """All phases so far; `loaded_s` is what loading took before, where it did."""
        own = time.monotonic() - self._began - sum(self._spent.values())
        return Seconds(**{"load": loaded_s, **self._spent}, own=own)


@dataclass(slots=True)
class _Trial:
    """One candidate on the server."""

    server: Server
    model: str
    bench: Bench
    max_batch_size: int
    on_load: OnLoad
    seed: int | None = None
    rng: np.random.Generator = field(init=False)
    shortest_s: float = field(init=False, default=0.0)
    clock: _Clock = field(init=False, default_factory=_Clock)
    phase: str = field(init=False, default="steps")

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.bench.seed if self.seed is None else self.seed)

    def capacity(
        self, reference: Reference | None, baseline: Measurement | None, loaded_s: float | None
    ) -> Capacity | Failure:
        if loaded_s is None:
            with self.clock.counting("load"):
                self.server.load(self.model)
        if reference is not None:
            with self.clock.counting("verify"):
                differs = self._verify(reference)
            if differs is not None:
                return differs
            request_s = self.clock.spent("verify") / (len(reference.rows) + 1)
            self.shortest_s = min(_LONGEST_S, _REQUESTS_IN_SIGHT * request_s)
        self.on_load(None)
        self.phase = "warm_up"
        saturated = self._warm_up()
        if isinstance(saturated, Failure):
            return saturated
        bench = self.bench
        search = LoadSearch(bench.workload, bench.slo, bench.objective, saturated=saturated)
        self.phase = "steps"
        samples = self._steps(search, saturated)
        if isinstance(samples, Failure):
            return samples
        best = search.best()
        if best is None:
            return Failure(reason="no_result", detail="nothing was completed under any load")
        found = _capacity(bench, best, samples, baseline)
        return replace(found, seconds=self.clock.seconds(loaded_s or 0.0))

    def _verify(self, reference: Reference) -> Failure | None:
        bench = self.bench
        return verify(
            self.server,
            self.model,
            bench.inputs,
            reference,
            bench.accuracy,
            max_batch_size=self.max_batch_size,
        )

    def _warm_up(self) -> Measurement | Failure | None:
        """What the last of a few short windows at saturation showed; None where they showed nothing."""
        workload = self.bench.workload
        most = workload.max_concurrency if isinstance(workload, ClosedWorkload) else _CLIENTS
        load = ClosedLoad(concurrency=min(_CLIENTS, most), request_batch=workload.request_batch)
        last, rates, began = None, [0.0], time.monotonic()
        for _ in range(_WARM_UPS):
            sample = self.window(load, _WARM_UP_S)
            if isinstance(sample, NoWindow):
                return None if sample.reason == "too_slow" else self.failure(sample)
            last = sample
            rates.append(sample.request_rate)
            if settled(rates[-2], rates[-1], _WARM) or time.monotonic() - began > _WARM_UP_CAP_S:
                break
        return pooled([last]) if last else None

    def _steps(self, search: LoadSearch, saturated: Measurement | None) -> dict[Load, list[Sample]] | Failure:
        """All that the search asked for, measured; a load that was too slow to see has no samples."""
        samples: dict[Load, list[Sample]] = {}
        rate = saturated.throughput.value / saturated.load.request_batch if saturated else None
        while (load := search.ask()) is not None:
            with self.clock.counting("settle"):
                self.on_load(load)
            sample = self.window(load, _step_s(load, rate))
            if isinstance(sample, NoWindow):
                if sample.reason != "too_slow":
                    return self.failure(sample)
                search.tell(load, pooled(samples[load]) if load in samples else None)
                continue
            samples.setdefault(load, []).append(sample)
            search.tell(load, pooled(samples[load]))
        return samples

    def window(self, load: Load, window_s: float) -> Sample | NoWindow:
        """One window; a longer one where that is too short to see the model complete anything."""
        length_s = max(window_s, self.shortest_s)
        while True:
            sample = self._window(load, length_s)
            if isinstance(sample, NoWindow) and sample.reason == "unknown":
                sample = self._window(load, length_s)  # its statistics calls fail now and then
            too_slow = isinstance(sample, NoWindow) and sample.reason == "too_slow"
            if not too_slow or length_s >= self._longest_s():
                return sample
            length_s = self.shortest_s = min(2 * length_s, self._longest_s())

    def _longest_s(self) -> float:
        """How long to look for a completion: not for long where the SLO would be missed by far anyway."""
        limits = latency_limits(self.bench.slo).values()
        return max(_LONGEST_S, min(_SLOWEST_S, _HOPELESS * max(limits) / 1000 if limits else _SLOWEST_S))

    def _window(self, load: Load, window_s: float) -> Sample | NoWindow:
        """One window, with what the server counted meanwhile."""
        before = self.server.statistics(self.model)
        bench = self.bench
        with self.clock.counting(self.phase):
            seen = bench.generator.run(
                self.server.grpc_address, self.model, load, window_s, bench.data, rng=self.rng
            )
        if isinstance(seen, NoWindow):
            return self._slow_or(seen, before)
        if not seen.drained:
            self._wait_until_idle()
        counted = self.server.statistics(self.model).since(before)
        memory, gpu_memory = self.server.memory_bytes(), self.server.gpu_memory_bytes()
        return Sample(load, (seen,), counted, memory, gpu_memory)

    def _slow_or(self, seen: NoWindow, before: Statistics) -> NoWindow:
        """`seen`, but a server that went on executing all the time is slow where it seems to hang."""
        if seen.reason != "deadline" or not self.server.statistics(self.model).since(before).executions:
            return seen
        self._wait_until_idle()
        return NoWindow("too_slow", seen.detail)

    def _wait_until_idle(self) -> None:
        """Returns when no request is waiting, so that the next window begins with an empty queue."""
        deadline = time.monotonic() + _IDLE_S
        prefix = f'nv_inference_pending_request_count{{model="{self.model}"'
        while any(n for name, n in self.server.metrics().items() if name.startswith(prefix)):
            if time.monotonic() > deadline:
                what = f"requests were still waiting {_IDLE_S:g} s after the load had ended"
                raise ServerFailure(Failure(reason="server_hung", detail=what))
            time.sleep(_POLL_S)

    def failure(self, seen: NoWindow) -> Failure:
        """What was wrong, looking at the server."""
        reasons = {"too_slow": "no_result", "deadline": "server_hung"}
        reason = reasons.get(seen.reason, "request_errors")
        return fault(self.server, reason, seen.detail)  # type: ignore[arg-type]


def _step_s(load: Load, rate: float | None) -> float:
    """How long to put a load on a server that completes about `rate` requests a second."""
    if not rate:
        return WINDOW_S if isinstance(load, ClosedLoad) else _OPEN_S
    if isinstance(load, ClosedLoad):
        return min(_LONGEST_S, max(WINDOW_S, (_REQUESTS + load.concurrency) / rate))
    wanted = min(_LONGEST_S, max(_OPEN_S, _REQUESTS / min(rate, load.rate)))
    overload = load.rate / rate - 1
    return min(wanted, _DRAIN_S / overload) if overload > 0 else wanted


def _capacity(
    bench: Bench,
    best: Load,
    samples: Mapping[Load, Sequence[Sample]],
    baseline: Measurement | None,
) -> Capacity:
    steps = sorted((pooled(each) for each in samples.values()), key=_level)
    measured = pooled(samples[best])
    missed = violations(bench.slo, measured)
    return Capacity(
        measurement=measured,
        steps=tuple(steps),
        slo_met=all(value <= 0 for value in missed.values()),
        violations=missed,
        objective=objective_value(bench.objective, bench.slo, measured, baseline),
    )


def _level(measured: Measurement) -> float:
    load = measured.load
    return load.concurrency if isinstance(load, ClosedLoad) else load.rate
