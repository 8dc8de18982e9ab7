"""What one candidate can do: warmed up, verified, put under load; every fault of its own is a Failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement
from tritonc.schemas.spec import ClosedWorkload
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import NOTHING_KNOWN, Capacity, Known, Seconds
from tritonc.tuner.engines import Server, ServerFailure
from tritonc.tuner.load_search import LoadSearch
from tritonc.tuner.loads import closed_load, level_of
from tritonc.tuner.noise import NoiseFloor, noise_floor
from tritonc.tuner.objective import lowered, soft_cost, soft_violations, violations
from tritonc.tuner.perf_analyzer import NoWindow
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.statistics import LEAST_WINDOWS, rate_stretches, settled
from tritonc.tuner.under_load import LONGEST_S, REQUESTS, SHORTEST_S, WINDOW_S, UnderLoad
from tritonc.tuner.verify import Reference, verify_all

CLIENTS = 8
"""Of a warm-up: at saturation on most configurations; the load search goes on from there."""
WARM_UPS = 4
"""Windows of a warm-up at most."""
WARM = 0.1
"""A warm-up is over where windows differ by less: short ones differ by 3 to 8% (docs/search.md, fact 5)."""

_OPEN_S = 1.5  # a growing queue shows more clearly, and the 99th percentile is what an open load is about
_WARM_UP_S = 0.3
_WARM_UP_CAP_S = 2.0  # no further window is begun then
_WARM_REQUESTS = 12  # with fewer, the halves of a window say nothing about each other
_AT_THE_ENDS = 2  # requests by which the count of a stretch is off: one at each end
_DRAIN_S = 3.0  # an overloaded server gets no more work than it does in this time

OnLoad = Callable[[Load | None], None]


def measure_capacity(
    server: Server,
    model: str,
    bench: Bench,
    *,
    max_batch_size: int,
    references: Sequence[Reference] = (),
    baseline: Measurement | None = None,
    loaded_s: float | None = None,
    on_load: OnLoad = lambda _load: None,
    leaving: Callable[[], Set[int]] = frozenset,
    known: Known = NOTHING_KNOWN,
    noise_windows: int = 0,
) -> Capacity | Failure:
    """Loads the candidate, compares its outputs, warms it up, and finds the load that decides about it.

    Args:
        server: has the candidate in its repository.
        model: its name.
        bench: what to measure with.
        max_batch_size: the candidate's own.
        references: what its outputs should be, for each of the bench's inputs; none to believe them.
        baseline: what a weighted objective compares with.
        loaded_s: the seconds it took to load where it is loaded already; None to load it here.
        on_load: told each load before it is measured; None for the warm-up.
        leaving: processes of the candidate before that may not be gone yet; their memory does not count.
        known: what the study knows.
        noise_windows: of the load that decides, those of its steps included, for the noise floor, or as many
            as say as much together with those of other loads; 0 to believe `known`.
    """
    candidate = UnderLoad(server, model, bench, bench.seed, leaving)
    trial = _Trial(candidate, max_batch_size, on_load, known)
    try:
        return trial.capacity(references, baseline, loaded_s, noise_windows)
    except ServerFailure as err:
        return err.failure


def recalled_capacity(bench: Bench, known: Known, baseline: Measurement | None) -> Capacity | None:
    """What `measure_capacity` would find if that is known already; None where it would ask for more.

    Args:
        bench: what would be measured with.
        known: what the study knows.
        baseline: what a weighted objective compares with.
    """
    search = _load_search(bench, known, None)
    if search.ask() is not None or search.best() is None:
        return None
    return _decided(bench, search, {}, known, baseline)


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
            self.add(phase, time.monotonic() - entered)

    def add(self, phase: str, seconds: float) -> None:
        """Adds to a phase."""
        self._spent[phase] = self.spent(phase) + seconds

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

    candidate: UnderLoad
    max_batch_size: int
    on_load: OnLoad
    known: Known
    clock: _Clock = field(init=False, default_factory=_Clock)

    @property
    def bench(self) -> Bench:
        return self.candidate.bench

    def capacity(
        self,
        references: Sequence[Reference],
        baseline: Measurement | None,
        loaded_s: float | None,
        noise_windows: int,
    ) -> Capacity | Failure:
        if loaded_s is None:
            with self.clock.counting("load"):
                self.candidate.server.load(self.candidate.model)
        if references:
            with self.clock.counting("verify"):
                differs = self._verify(references)
            if differs is not None:
                return differs
            self.candidate.takes(self.clock.spent("verify") / sum(len(each.rows) + 1 for each in references))
        warm: Sample | Failure | None = None
        if _load_search(self.bench, self.known, None).ask() is not None:
            self.on_load(None)
            with self._loading("warm_up"):
                warm = self._warm_up()
        if isinstance(warm, Failure):
            return warm
        search = _load_search(self.bench, self.known, warm)
        with self._loading("steps"):
            samples = self._steps(search, warm)
        if isinstance(samples, Failure):
            return samples
        best = search.best()
        if best is None:
            return Failure(reason="no_result", detail="nothing was completed under any load")
        with self._loading("noise"):
            noise = self._noise(best, samples, noise_windows) if noise_windows else None
        if isinstance(noise, Failure):
            return noise
        if noise is not None:
            search.tell(best, pooled(samples[best], noise))
            decides = search.best()  # they may have shown that it breaks the limits after all
            best = decides if decides in samples else best
        else:
            seen = [window for each in samples.get(best, ()) for window in each.windows]
            noise = noise_floor(seen, self.known.noise)
        load_s = loaded_s or self.clock.spent("load")
        memory, gpu_memory = self.candidate.memory_bytes()
        between = self.known.noise or noise
        fresh = {}
        for load, each in samples.items():
            whole = replace(
                Sample.joined(each), memory_bytes=memory, gpu_memory_bytes=gpu_memory, load_s=load_s
            )
            fresh[load] = pooled([whole], between), 0 if each == [warm] else len(each)
        return replace(
            _decided(self.bench, search, fresh, self.known, baseline, best),
            seconds=self.clock.seconds(loaded_s or 0.0),
            noise=noise,
        )

    @contextmanager
    def _loading(self, phase: str) -> Iterator[None]:
        """Counts for a phase what the load generator runs inside."""
        before = self.candidate.seconds
        try:
            yield
        finally:
            self.clock.add(phase, self.candidate.seconds - before)

    def _noise(
        self, load: Load, samples: dict[Load, list[Sample]], count: int
    ) -> NoiseFloor | Failure | None:
        """The noise floor, from `count` windows of one load; they count for its measurement, too.

        Of other loads that were seen several times each window beyond the first says as much.
        """
        self.on_load(load)
        rate = samples[load][-1].request_rate
        while len(samples[load]) < LEAST_WINDOWS or _freedom(samples) < count - 1:
            sample = self.candidate.window(load, _step_s(load, rate, LoadSearch.requests_in_sight))
            if isinstance(sample, NoWindow):
                return None if sample.reason == "too_slow" else self.candidate.failure(sample)
            samples[load].append(sample)
        floor: NoiseFloor | None = None
        for each in sorted(samples.values(), key=len, reverse=True):
            floor = noise_floor([window for sample in each for window in sample.windows], floor)
        return floor

    def _verify(self, references: Sequence[Reference]) -> Failure | None:
        bench = self.bench
        return verify_all(
            self.candidate.server,
            self.candidate.model,
            bench.inputs,
            references,
            bench.accuracy,
            max_batch_size=self.max_batch_size,
        )

    def _warm_up(self) -> Sample | Failure | None:
        """The last of a few short windows at saturation; None where they showed nothing.

        They are at saturation also where few clients are expected to be best: what breaks the limits there
        and does much less than the best so far is left without any other window.
        """
        workload, first = self.bench.workload, self.known.first
        most = workload.max_concurrency if isinstance(workload, ClosedWorkload) else CLIENTS
        clients = max(CLIENTS, first.concurrency if isinstance(first, ClosedLoad) else 0)
        load = closed_load(workload, min(clients, most))
        last, began = None, time.monotonic()
        for _ in range(WARM_UPS):
            sample = self.candidate.window(load, _WARM_UP_S)
            if isinstance(sample, NoWindow):
                return None if sample.reason == "too_slow" else self.candidate.failure(sample)
            before, last = last, sample
            if _is_warm(before, sample) or time.monotonic() - began > _WARM_UP_CAP_S:
                break
        return last

    def _steps(self, search: LoadSearch, warm: Sample | None) -> dict[Load, list[Sample]] | Failure:
        """All that the search asked for, measured; a load that was too slow to see has no samples.

        The last window of the warm-up stands for its load only where that had no window of its own. A load
        that was measured before, and is asked all the same, is measured anew, for one window more than then.
        """
        samples: dict[Load, list[Sample]] = {}
        noise, last = self.known.noise, warm
        while (load := search.ask()) is not None:
            self.on_load(load)
            sample = self.candidate.window(
                load, _step_s(load, last.request_rate if last else None, search.requests_in_sight)
            )
            if isinstance(sample, NoWindow):
                if sample.reason != "too_slow":
                    return self.candidate.failure(sample)
                search.tell(load, pooled(samples[load], noise) if load in samples else None)
                continue
            last = sample
            samples.setdefault(load, []).append(sample)
            if load not in self.known.loads or len(samples[load]) > self.known.loads[load].windows:
                search.tell(load, pooled(samples[load], noise))
        if warm is not None and search.best() == warm.load and warm.load not in self.known.loads:
            samples.setdefault(warm.load, [warm])
        return samples


def _freedom(samples: Mapping[Load, Sequence[Sample]]) -> int:
    """Degrees of freedom that the scatter of windows of the same loads has."""
    return sum(len(each) - 1 for each in samples.values() if each)


def _is_warm(before: Sample | None, last: Sample) -> bool:
    """Whether throughput rises no more, from one half of a window to the other or from window to window."""
    window = last.windows[0]
    requests = len(window.steady_latency_ms)
    if requests >= _WARM_REQUESTS:
        first, second = rate_stretches(window.done_s, window.steady_from_s, window.duration_s, 2)
        if settled(first, second, WARM + _AT_THE_ENDS / (requests / 2)):
            return True
    tolerance = WARM + _AT_THE_ENDS / max(1, requests)
    return before is not None and settled(before.request_rate, last.request_rate, tolerance)


def _step_s(load: Load, rate: float | None, requests: int) -> float:
    """How long to put a load on a server that completes about `rate` requests a second.

    A closed load need not last for `WINDOW_S` where it sees `requests` requests sooner.
    """
    if not rate:
        return WINDOW_S if isinstance(load, ClosedLoad) else _OPEN_S
    if isinstance(load, ClosedLoad):
        shortest = min(WINDOW_S, max(SHORTEST_S, requests / rate))
        return min(LONGEST_S, max(shortest, (REQUESTS + load.concurrency) / rate))
    wanted = min(LONGEST_S, max(_OPEN_S, REQUESTS / min(rate, load.rate)))
    overload = load.rate / rate - 1
    return min(wanted, _DRAIN_S / overload) if overload > 0 else wanted


def _load_search(bench: Bench, known: Known, warm: Sample | None) -> LoadSearch:
    """The search for the load that decides, told of all that is known."""
    saturated = pooled([warm], known.noise) if warm else None
    search = bench.load_search(
        bench.workload,
        bench.slo,
        bench.objective,
        saturated=saturated,
        first=known.first,
        incumbent=known.incumbent,
    )
    for load, recorded in known.loads.items():
        search.know(load, recorded.measurement, recorded.windows)
    if saturated is not None and not any(map(search.concerns, known.loads)):
        search.hint(saturated.load, saturated)
    return search


def _decided(
    bench: Bench,
    search: LoadSearch,
    fresh: Mapping[Load, tuple[Measurement, int]],
    known: Known,
    baseline: Measurement | None,
    best: Load | None = None,
) -> Capacity:
    """What a search that has ended says of a candidate.

    Args:
        bench: what was measured with.
        search: knows the load that decides.
        fresh: measured now, by load, each with its number of windows.
        known: what was measured before.
        baseline: what a weighted objective compares with.
        best: another load that decides.
    """
    before = {
        load: (each.measurement, each.windows) for load, each in known.loads.items() if search.concerns(load)
    }
    seen = {**before, **fresh}
    steps = sorted(seen.values(), key=lambda step: level_of(step[0].load))
    decides = best or search.best()
    assert decides is not None, "the search was told nothing"
    measured, _ = seen[decides]
    missed, soft = violations(bench.slo, measured), soft_violations(bench.slo, measured)
    objective, cost = bench.value(measured, baseline), soft_cost(soft)
    return Capacity(
        measurement=measured,
        steps=tuple(step for step, _ in steps),
        slo_met=all(value <= 0 for value in missed.values()),
        violations=missed,
        objective=objective,
        interval=search.capacity(),
        is_cut=search.is_cut,
        noise=known.noise,
        soft=soft,
        lowered=lowered(bench.objective, objective, cost) if cost else None,
        windows=tuple(windows for _, windows in steps),
    )
