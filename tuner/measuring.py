"""Candidates measured on a `Stand`: what the search and the race ask for, done with the server."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.errors import SetupError
from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement
from tritonc.tuner import objective
from tritonc.tuner.baseline_outputs import BaselineOutputs
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import NOTHING_KNOWN, Capacity, Known
from tritonc.tuner.engines import Server, ServerFailure
from tritonc.tuner.faults import SERVER_GONE
from tritonc.tuner.loads import closed_load, is_replayed, lower_load
from tritonc.tuner.measure import measure_capacity, recalled_capacity
from tritonc.tuner.noise import WINDOWS, NoiseFloor
from tritonc.tuner.recorded import Recorded, Reused, day_of
from tritonc.tuner.records import NOTHING_BEFORE, Before, NoRecords, Records
from tritonc.tuner.reference import ReferenceWatch, requests_of_look
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.serving import in_flight
from tritonc.tuner.stand import Stand
from tritonc.tuner.under_load import SHORTEST_S, WINDOW_S, take_sample
from tritonc.tuner.verify import Reference, references_of

Outcome = TypeVar("Outcome")

_Visited = tuple[Candidate, int]
"""A candidate, and which workload's bench it was seen on."""

_LONGEST_SAMPLE_S = 300.0
"""334 requests at about one a second: a slower model gets what there is time for."""
_LONGEST_WINDOW_S = 10.0
_MARGIN = 1.1  # windows differ, and another one for the last few requests costs more
_WARM_UP_S = 0.3
_REQUESTS_ALONE = 100
"""Of the one client that says how long an execution takes."""


class StandMeasuring:
    """The `Measuring` of a real server.

    Args:
        baseline: candidates are compared with its outputs.
        compared_with: what weighted objectives are relative to, once there is something.
        on_load: told which load comes next; None for the warm-up.
        warn: takes one line for people.
        noise: the machine's noise floor, if an earlier run measured it.
        records: what was measured before, which is not measured again.
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
        records: Records | None = None,
    ) -> None:
        self._stand = stand
        self._bench = bench
        self._baseline = baseline
        self._compared_with = compared_with
        self._on_load = on_load
        self._warn = warn
        self._noise = noise
        self._samples = 0
        self._replayed: Counter[_Visited] = Counter()
        self._alone: dict[Candidate, Measurement] = {}
        self._measured: dict[Candidate, Measurement] = {}
        self._rates: dict[_Visited, float] = {}
        self._outputs = BaselineOutputs(self._baseline_outputs, warn)
        self._records = records or NoRecords()
        self._trusts_records: bool | None = None

    def capacity(self, candidate: Candidate, known: Known = NOTHING_KNOWN) -> Capacity | Failure:
        """The largest load at which the candidate keeps the SLO, or the least violating one.

        The baseline's first one measures the noise floor as well, which is in every interval from then on.
        Loads that were measured before, in whichever study, are not measured again; where that is all there
        is to know the candidate is not even loaded.

        Args:
            candidate: the candidate.
            known: what the study knows already.
        """
        if known.is_doubted:
            self._records.forget(candidate)
        self._noise = known.noise or self._noise
        before = self._before(candidate)
        if before.failure is not None:
            return before.failure
        known = replace(known, noise=self._noise, loads=before.loads)
        recalled = self._recalled(candidate, known) if before.is_verified else None
        found = recalled or self._capacity(candidate, known)
        if recalled is None:
            self._keep(candidate, found, before.loads)
        if isinstance(found, Failure):
            return found
        self._noise = found.noise or self._noise
        self._measured[candidate] = found.measurement
        reused = [before.loads[s.load] for s in found.steps if _is_recorded(s, before.loads)]
        return replace(found, reused=Reused.of(reused))

    def start_over(self) -> None:
        """Believes nothing that was measured before, in this study or in others."""
        self._records.forget_all()

    def _before(self, candidate: Candidate) -> Before:
        """What was measured of it before, if the machine is still the one that it was measured on.

        That is looked at once, before the first measurement that would be believed. Without a noise floor the
        baseline is measured anew.
        """
        before = self._records.of(candidate)
        if before.failure is not None or not before.loads:
            return before
        if self._trusts_records is None:
            noise, self._noise = self._noise, self._noise or self._records.noise()
            self._trusts_records = self._is_the_same_machine(candidate, before)
            if not self._trusts_records:
                self._noise = noise
        if not self._trusts_records or self._noise is None:
            return NOTHING_BEFORE
        return before

    def _is_the_same_machine(self, candidate: Candidate, before: Before) -> bool:
        """Whether the baseline, or else the candidate, does what it did under a load that it was seen under.

        One odd look means nothing: it counts only if the next one finds a change, too.
        """
        of_baseline = self._records.of(self._baseline).loads
        who = self._baseline if of_baseline else candidate
        recorded = max(
            (of_baseline or before.loads).values(),
            key=lambda each: (
                not is_replayed(each.measurement.load),
                each.measurement.sustained,
                each.measurement.requests,
            ),
        )
        watch = ReferenceWatch(recorded.measurement, 0.0)
        change = self._change(who, watch)
        if isinstance(change, float):
            change = self._change(who, watch)
        if change is None:
            return True
        then, again = day_of(recorded.measured_at), "what was measured then is measured again"
        if isinstance(change, Failure):
            what = f"{change.reason}: {change.detail}"
            self._warn(f"note: {who.id} could not be compared with {then} ({what}): {again}")
            return False
        became = f"{change - 1:.0%} faster" if change > 1 else f"{1 - change:.0%} slower"
        self._warn(f"note: the machine is {became} than on {then}: {again}")
        self._records.forget_all()
        return False

    def _change(self, candidate: Candidate, watch: ReferenceWatch) -> float | Failure | None:
        """How much faster the machine is now by one look at the candidate; None where that is not clear."""
        seen = self.look(candidate, watch.reference.load, requests_of_look(watch.reference))
        return seen if isinstance(seen, Failure) else watch.change(seen)

    def _recalled(self, candidate: Candidate, known: Known) -> Capacity | None:
        """The outcome, if nothing that it takes is left to measure.

        Of the baseline the step of one client is left out where all else suffices: it was measured when the
        load had been decided, and may not decide now.
        """
        if candidate != self._baseline:
            return recalled_capacity(self._bench, known, self._compared_with())
        alone = self._one_client
        others = {load: each for load, each in known.loads.items() if load != alone}
        found = recalled_capacity(self._bench, replace(known, loads=others), None)
        found = found or recalled_capacity(self._bench, known, None)
        return found and _with_step(found, alone, known)

    def _keep(self, candidate: Candidate, found: Capacity | Failure, before: Mapping[Load, Recorded]) -> None:
        """Keeps what was measured now for other studies; a file that cannot be written costs only them."""
        try:
            if isinstance(found, Failure):
                self._records.keep_failure(candidate, found)
                return
            steps = zip(found.steps, found.windows, strict=True)
            new = [(step, windows) for step, windows in steps if windows and not _is_recorded(step, before)]
            self._records.keep(candidate, new, found.noise, is_verified=found.is_verified)
        except SetupError as err:
            self._warn(f"warning: other studies will measure {candidate.id} again: {err}")

    def _capacity(self, candidate: Candidate, known: Known) -> Capacity | Failure:
        """The outcome, measured as far as it is not known.

        The baseline has the objective that it has without one, also where it was measured before: by then
        the machine may have become another one.
        """
        self._outputs.look()
        is_baseline = candidate == self._baseline
        is_first = is_baseline and known.noise is None
        was_loaded = self._stand.has(candidate)

        def measure(server: Server, loaded_s: float) -> Capacity | Failure:
            capacity = measure_capacity(
                server,
                candidate.model,
                self._bench,
                max_batch_size=_max_batch_size(candidate, self._bench),
                references=self._references,
                baseline=None if is_baseline else self._compared_with(),
                loaded_s=loaded_s,
                on_load=lambda load: self._on_load(candidate, load),
                leaving=lambda: self._stand.leaving,
                known=known,
                noise_windows=WINDOWS if is_first else 0,
            )
            if isinstance(capacity, Failure):
                return capacity
            capacity = replace(capacity, is_verified=bool(self._references))
            if was_loaded:
                capacity = replace(capacity, seconds=replace(capacity.seconds, load=0.0))
            if not is_baseline:
                return capacity
            self._noise = capacity.noise or self._noise
            return self._with_one_client(server, capacity, known)

        return self._loaded(candidate, measure)

    @property
    def _one_client(self) -> ClosedLoad:
        return closed_load(self._bench.workload, 1)

    def _with_one_client(self, server: Server, capacity: Capacity, known: Known) -> Capacity:
        """With a step of one client, by which `evidence.caveats` judges how long an execution takes."""
        alone = self._one_client
        if (whole := _with_step(capacity, alone, known)) is not None:
            return whole
        self._on_load(self._baseline, alone)
        carried = capacity.measurement
        rate = carried.throughput.value / in_flight(carried.load)  # of one client among others: at least
        window_s = min(WINDOW_S, _window_s(alone, _REQUESTS_ALONE, rate))
        sample = take_sample(server, self._baseline.model, self._bench, alone, 1, window_s=window_s)
        if isinstance(sample, Failure):
            self._stand.recover(sample)
            return capacity
        sample = replace(sample, load_s=capacity.measurement.load_s)
        steps = (pooled([sample], self._noise), *capacity.steps)
        return replace(capacity, steps=steps, windows=(len(sample.windows), *capacity.windows))

    def gather(self, known: Mapping[Candidate, Measurement | None]) -> None:
        """Loads these candidates side by side where they fit, so that measuring one waits for no load.

        Memory is not measured then: a sample has what was measured of its candidate alone. So candidates
        still take each other's place where the objective is about memory, or where one was never measured
        alone.
        """
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

    def look(self, candidate: Candidate, load: Load, requests: int) -> Measurement | Failure:
        """A look at how fast the machine is: one sample."""
        sample = self.sample(candidate, load, requests)
        return sample if isinstance(sample, Failure) else self.pooled([sample])

    def joined(self, samples: Sequence[Sample]) -> Sample:
        """Samples without anything else in between as one."""
        return Sample.joined(samples)

    def pooled(self, samples: Sequence[Sample]) -> Measurement:
        """All samples of a candidate under one load as one Measurement, each of a visit of its own."""
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

    def error(self, sample: Sample) -> float | None:
        """Standard error of the score of a sample, without what those of one round have in common.

        Known where it is about throughput, of which the noise floor was measured.
        """
        weights = objective.weights_of(self._bench.objective)
        if self._noise is None or self._bench.slo.soft or not weights.keys() <= {"throughput", "cost"}:
            return None
        error = sample.throughput_error(self._noise, visits=math.inf)
        return None if error is None else sum(weights.values()) * error

    def lower(self, load: Load, excess: float) -> Load | None:
        """As `loads.lower_load`; None where the load is given."""
        if not objective.seeks_capacity(self._bench.objective):
            return None
        return lower_load(self._bench.workload, load, excess)

    @property
    def _references(self) -> tuple[Reference, ...]:
        return self._outputs.known or ()

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
        try:
            outcome = measure(*self._stand.serve(candidate))
        except ServerFailure as err:
            outcome = err.failure
        if isinstance(outcome, Failure):
            self._stand.recover(outcome)
        return outcome


def _short(load: Load) -> Load:
    """A load as heavy that a short window can hold; a trace may be long."""
    return load.model_copy(update={"distribution": "poisson"}) if is_replayed(load) else load


def _is_recorded(step: Measurement, before: Mapping[Load, Recorded]) -> bool:
    """Whether a step is what was measured before."""
    return step.load in before and before[step.load].measurement == step


def _with_step(capacity: Capacity, load: Load, known: Known) -> Capacity | None:
    """With a step under a load, put in front of the others; None where that load was never measured."""
    if any(step.load == load for step in capacity.steps):
        return capacity
    recorded = known.loads.get(load)
    if recorded is None:
        return None
    steps = (recorded.measurement, *capacity.steps)
    return replace(capacity, steps=steps, windows=(recorded.windows, *capacity.windows))


def _window_s(load: Load, requests: int, rate: float) -> float:
    """How long windows are that see `requests` requests together; a growing queue (open loop) needs time."""
    if not isinstance(load, ClosedLoad) or rate <= 0:
        return WINDOW_S
    ramp = load.concurrency  # does not count: `Window.ramp`
    most = _LONGEST_WINDOW_S * rate - ramp
    if most <= 0:
        return _LONGEST_WINDOW_S
    windows = math.ceil(_MARGIN * requests / most)
    return max(SHORTEST_S, (_MARGIN * requests / windows + ramp) / rate)


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
