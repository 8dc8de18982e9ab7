"""Candidates measured on a `Stand`: what the search and the race ask for, done with the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement, OpenLoad, Trace
from tritonc.tuner import objective
from tritonc.tuner.engines import Server, ServerFailure
from tritonc.tuner.loads import lower_load
from tritonc.tuner.measure import (
    NOTHING_KNOWN,
    WINDOW_S,
    Bench,
    Capacity,
    Known,
    measure_capacity,
    take_sample,
)
from tritonc.tuner.noise import WINDOWS, NoiseFloor
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.stand import Stand
from tritonc.tuner.verify import Reference, references_of

Outcome = TypeVar("Outcome")

_Visited = tuple[Candidate, int]
"""A candidate, and which workload's bench it was seen on."""

SERVER_GONE = frozenset({"server_crashed", "server_hung"})
"""Failures that somebody else may have caused."""
_LONGEST_SAMPLE_S = 300.0
"""334 requests at about one a second: a slower model gets what there is time for."""
_SHORTEST_SAMPLE_S = 0.4
"""The load generator cuts a window in three, each of which has to see a good number of requests."""
_LONGEST_WINDOW_S = 10.0
_MARGIN = 1.1  # windows differ, and another one for the last few requests costs more
_WARM_UP_S = 0.5


class StandMeasuring:
    """The `Measuring` of a real server.

    Args:
        baseline: candidates are compared with its outputs.
        compared_with: what weighted objectives are relative to, once there is something.
        on_load: told which load comes next; None for the warm-up.
        warn: takes one line for people.
        noise: the machine's noise floor, if an earlier run measured it.
    """

    def __init__(
        self,
        stand: Stand,
        bench: Bench,
        *,
        baseline: Candidate,
        compared_with: Callable[[], Measurement | None],
        on_load: Callable[[Candidate, Load | None], None],
        warn: Callable[[str], None],
        noise: NoiseFloor | None = None,
    ) -> None:
        self._stand = stand
        self._bench = bench
        self._baseline = baseline
        self._compared_with = compared_with
        self._on_load = on_load
        self._warn = warn
        self._references: tuple[Reference, ...] = ()
        self._noise = noise
        self._samples = 0
        self._replayed: Counter[_Visited] = Counter()
        self._alone: dict[Candidate, Measurement] = {}
        self._measured: dict[Candidate, Measurement] = {}
        self._rates: dict[_Visited, float] = {}
        self._looked_for_reference = False

    def capacity(self, candidate: Candidate, known: Known = NOTHING_KNOWN) -> Capacity | Failure:
        """The largest load at which the candidate keeps the SLO, or the least violating one.

        The baseline's first one measures the noise floor as well, which is in every interval from then on.

        Args:
            candidate: the candidate.
            known: what the study knows already.
        """
        self._noise = known.noise or self._noise
        is_first = candidate == self._baseline and self._noise is None

        def measure(server: Server, loaded_s: float) -> Capacity | Failure:
            capacity = measure_capacity(
                server,
                candidate.model,
                self._bench,
                max_batch_size=_max_batch_size(candidate, self._bench),
                references=self._references,
                baseline=self._compared_with(),
                loaded_s=loaded_s,
                on_load=lambda load: self._on_load(candidate, load),
                leaving=lambda: self._stand.leaving,
                known=replace(known, noise=self._noise),
                noise_windows=WINDOWS if is_first else 0,
            )
            if isinstance(capacity, Failure) or candidate != self._baseline:
                return capacity
            self._noise = capacity.noise or self._noise
            return self._with_one_client(server, capacity)

        found = self._loaded(candidate, measure)
        if isinstance(found, Capacity):
            self._measured[candidate] = found.measurement
        return found

    def _with_one_client(self, server: Server, capacity: Capacity) -> Capacity:
        """With a step of one client, by which `evidence.caveats` judges how long an execution takes."""
        alone = ClosedLoad(concurrency=1, request_batch=self._bench.workload.request_batch)
        if any(step.load == alone for step in capacity.steps):
            return capacity
        self._on_load(self._baseline, alone)
        sample = take_sample(server, self._baseline.model, self._bench, alone, 1)
        if isinstance(sample, Failure):
            self._stand.recover(sample)
            return capacity
        sample = replace(sample, load_s=capacity.measurement.load_s)
        return replace(capacity, steps=(pooled([sample], self._noise), *capacity.steps))

    def gather(self, known: Mapping[Candidate, Measurement | None]) -> None:
        """Loads these candidates side by side where they fit, so that measuring one waits for no load.

        Memory is not measured then: a sample has what was measured of its candidate alone. So candidates
        still take each other's place where the objective is about memory, or where one was never measured
        alone.
        """
        self._look_for_reference()
        self._alone, self._rates = {}, {}
        self._replayed.clear()
        alone = {one: seen or self._measured.get(one) for one, seen in known.items()}
        measured = {one: seen for one, seen in alone.items() if seen is not None and seen.memory_bytes}
        memory = sum(seen.memory_bytes or 0 for seen in measured.values())
        if len(measured) < max(2, len(known)) or "memory" in objective.weights_of(self._bench.objective):
            return
        if not self._stand.has_room_for(next(iter(known)).target, memory):
            return
        try:
            self._stand.serve_together(tuple(known))
        except ServerFailure as err:
            self._warn(f"note: the contenders are loaded one by one, as not all can be at once: {err}")
            return
        self._stand.settle()
        self._alone = measured

    def sample(
        self, candidate: Candidate, load: Load, requests: int, bench: Bench | None = None
    ) -> Sample | Failure:
        """One window of at least `requests` requests under a given load, after one that warms up.

        Of a trace that is longer than a window each candidate gets the same stretches in the same order.

        A server that goes meanwhile is given another chance: its candidate did well before, so that somebody
        else may have ended it.

        Args:
            candidate: what is loaded for it.
            load: of the bench's workload.
            requests: at least so many.
            bench: of another workload of the model; None for the one whose capacity is sought.
        """
        self._samples += 1
        if bench is None:
            bench = self._bench
        else:
            self._on_load(candidate, load)
        seed = bench.seed + self._samples
        visited = candidate, id(bench)

        def measure(server: Server, loaded_s: float) -> Sample | Failure:
            model = self._stand.name_of(candidate)
            is_beside_others = model != candidate.model
            if not is_beside_others or visited not in self._rates:
                warm = take_sample(server, model, bench, _short(load), 1, window_s=_WARM_UP_S)
                if isinstance(warm, Failure):
                    return warm
                self._rates[visited] = warm.request_rate
            sample = take_sample(
                server,
                model,
                bench,
                load,
                requests,
                cap_s=_LONGEST_SAMPLE_S,
                seed=seed,
                window_s=_window_s(load, requests, self._rates[visited]),
                leaving=lambda: self._stand.leaving,
                replayed=self._replayed[visited],
            )
            if isinstance(sample, Failure):
                return sample
            self._replayed[visited] += len(sample.windows)
            self._rates[visited] = sample.request_rate
            if is_beside_others:
                return _as_alone(sample, self._alone[candidate])
            return replace(sample, load_s=loaded_s)

        outcome = self._loaded(candidate, measure)
        if isinstance(outcome, Failure) and outcome.reason in SERVER_GONE:
            outcome = self._loaded(candidate, measure)
        return outcome

    def pooled(self, samples: Sequence[Sample]) -> Measurement:
        """All samples of a candidate under one load as one Measurement."""
        return pooled(samples, self._noise, visits=len(samples))

    def violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each hard limit of the SLO is missed."""
        return objective.violations(self._bench.slo, measurement)

    def soft_violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each soft limit of the SLO is missed."""
        return objective.soft_violations(self._bench.slo, measurement)

    def objective(self, measurement: Measurement) -> float:
        """The objective, larger is better."""
        return self._bench.value(measurement, self._compared_with())

    def score(self, value: float) -> float:
        """The objective on a scale on which equal differences are equal ratios."""
        return objective.score(self._bench.objective, value)

    def lower(self, load: Load, excess: float) -> Load | None:
        """As `loads.lower_load`; None where the load is given."""
        if not objective.seeks_capacity(self._bench.objective):
            return None
        return lower_load(self._bench.workload, load, excess)

    def _look_for_reference(self) -> None:
        """Takes the baseline's outputs, once: what every candidate has to compute."""
        if self._looked_for_reference:
            return
        self._looked_for_reference = True
        found = self._baseline_outputs()
        if isinstance(found, Failure) and found.reason in SERVER_GONE:
            found = self._baseline_outputs()  # somebody else may have ended the server
        if isinstance(found, Failure):
            why = f"{found.reason}; the outputs of candidates are not checked"
            self._warn(f"warning: the baseline gives no outputs to compare with ({why})")
        else:
            self._references = found

    def _baseline_outputs(self) -> tuple[Reference, ...] | Failure:
        try:
            server, _ = self._stand.serve(self._baseline)
            found = references_of(server, self._stand.name_of(self._baseline), self._bench.inputs)
        except ServerFailure as err:
            found = err.failure
        if isinstance(found, Failure):
            self._stand.recover(found)
        return found

    def _loaded(
        self, candidate: Candidate, measure: Callable[[Server, float], Outcome | Failure]
    ) -> Outcome | Failure:
        """What `measure` finds with the candidate loaded; a server that fails is given up."""
        self._look_for_reference()
        try:
            outcome = measure(*self._stand.serve(candidate))
        except ServerFailure as err:
            outcome = err.failure
        if isinstance(outcome, Failure):
            self._stand.recover(outcome)
        return outcome


def _short(load: Load) -> Load:
    """A load as heavy that a short window can hold; a trace may be long."""
    is_replayed = isinstance(load, OpenLoad) and isinstance(load.distribution, Trace)
    return load.model_copy(update={"distribution": "poisson"}) if is_replayed else load


def _window_s(load: Load, requests: int, rate: float) -> float:
    """How long `requests` requests take, at least; a growing queue (open loop) needs time to show."""
    if not isinstance(load, ClosedLoad) or rate <= 0:
        return WINDOW_S
    ramp = load.concurrency  # does not count: `Window.ramp`
    return min(_LONGEST_WINDOW_S, max(_SHORTEST_SAMPLE_S, (_MARGIN * requests + ramp) / rate))


def _as_alone(sample: Sample, alone: Measurement) -> Sample:
    """The sample with the memory and the time that its candidate took when nothing else was loaded."""
    return replace(
        sample,
        memory_bytes=alone.memory_bytes or 0,
        gpu_memory_bytes=alone.gpu_memory_bytes,
        load_s=alone.load_s,
    )


def _max_batch_size(candidate: Candidate, bench: Bench) -> int:
    if bench.max_batch_size is not None:
        return bench.max_batch_size
    size = candidate.values.get("max_batch_size", 0)
    return size if isinstance(size, int) else 0
