"""Candidates measured on a `Stand`: what the search and the race ask for, done with the server."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement, OpenLoad
from tritonc.schemas.spec import OpenWorkload
from tritonc.tuner import objective
from tritonc.tuner.engines import Server, ServerFailure
from tritonc.tuner.measure import Bench, Capacity, measure_capacity, take_sample
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.stand import Stand
from tritonc.tuner.verify import Reference, reference_outputs

Outcome = TypeVar("Outcome")

_CLOSED_STEP = 0.85
_OPEN_STEP = 0.9
_SERVER_GONE = frozenset({"server_crashed", "server_hung"})
_LONGEST_SAMPLE_S = 300.0
"""250 requests at less than one a second: such a model gets what there is time for."""


class StandMeasuring:
    """The `Measuring` of a real server.

    Args:
        baseline: candidates are compared with its outputs.
        compared_with: what weighted objectives are relative to, once there is something.
        on_load: told which load comes next; None for the warm-up.
        warn: takes one line for people.
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
    ) -> None:
        self._stand = stand
        self._bench = bench
        self._baseline = baseline
        self._compared_with = compared_with
        self._on_load = on_load
        self._warn = warn
        self._reference: Reference | None = None
        self._samples = 0
        self._looked_for_reference = False

    def capacity(self, candidate: Candidate) -> Capacity | Failure:
        """The largest load at which the candidate keeps the SLO, or the least violating one."""

        def on_load(load: Load | None) -> None:
            if load is not None:
                self._stand.settle()
            self._on_load(candidate, load)

        def measure(server: Server, loaded_s: float) -> Capacity | Failure:
            capacity = measure_capacity(
                server,
                candidate.model,
                self._bench,
                max_batch_size=_max_batch_size(candidate),
                reference=self._reference,
                baseline=self._compared_with(),
                loaded_s=loaded_s,
                on_load=on_load,
            )
            if isinstance(capacity, Failure) or candidate != self._baseline:
                return capacity
            return self._with_one_client(server, capacity)

        return self._loaded(candidate, measure)

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
        return replace(capacity, steps=(pooled([sample]), *capacity.steps))

    def sample(self, candidate: Candidate, load: Load, requests: int) -> Sample | Failure:
        """One window of at least `requests` requests under a given load, after one that warms up."""
        self._samples += 1
        seed = self._bench.seed + self._samples

        def measure(server: Server, _loaded_s: float) -> Sample | Failure:
            warm = take_sample(server, candidate.model, self._bench, load, 1)
            if isinstance(warm, Failure):
                return warm
            self._stand.settle()
            return take_sample(
                server, candidate.model, self._bench, load, requests, cap_s=_LONGEST_SAMPLE_S, seed=seed
            )

        return self._loaded(candidate, measure)

    def pooled(self, samples: Sequence[Sample]) -> Measurement:
        """All samples of a candidate under one load as one Measurement."""
        return pooled(samples)

    def violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each limit of the SLO is missed."""
        return objective.violations(self._bench.slo, measurement)

    def objective(self, measurement: Measurement) -> float:
        """The objective, larger is better."""
        bench = self._bench
        return objective.objective_value(bench.objective, bench.slo, measurement, self._compared_with())

    def score(self, value: float) -> float:
        """The objective on a scale on which equal differences are equal ratios."""
        return objective.score(self._bench.objective, value)

    def lower(self, load: Load) -> Load | None:
        """The next smaller load; None below what must be carried, or where the load is given."""
        if "throughput" not in objective.weights_of(self._bench.objective):
            return None
        if isinstance(load, ClosedLoad):
            fewer = min(load.concurrency - 1, math.floor(load.concurrency * _CLOSED_STEP))
            return load.model_copy(update={"concurrency": fewer}) if fewer >= 1 else None
        return self._lower_rate(load)

    def _lower_rate(self, load: OpenLoad) -> Load | None:
        workload = self._bench.workload
        required = workload.rate if isinstance(workload, OpenWorkload) else 0.0
        if load.rate <= required:
            return None
        return load.model_copy(update={"rate": max(required, load.rate * _OPEN_STEP)})

    def _look_for_reference(self) -> None:
        """Takes the baseline's outputs, once: what every candidate has to compute."""
        if self._reference is not None or self._looked_for_reference:
            return
        self._looked_for_reference = True
        found = self._baseline_outputs()
        if isinstance(found, Failure) and found.reason in _SERVER_GONE:
            found = self._baseline_outputs()  # somebody else may have ended the server
        if isinstance(found, Failure):
            why = f"{found.reason}; the outputs of candidates are not checked"
            self._warn(f"warning: the baseline gives no outputs to compare with ({why})")
        else:
            self._reference = found

    def _baseline_outputs(self) -> Reference | Failure:
        try:
            server, _ = self._stand.serve(self._baseline)
            found = reference_outputs(server, self._baseline.model, self._bench.inputs)
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


def _max_batch_size(candidate: Candidate) -> int:
    size = candidate.values.get("max_batch_size", 0)
    return size if isinstance(size, int) else 0
