"""A small space and made-up outcomes for testing the search without a server."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.knobs.dimension import Choice, Condition, Dimension
from tritonc.compiler.space import Space
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import ClosedLoad, Failure, Interval, Load, Measurement
from tritonc.tuner.capacity import NOTHING_KNOWN, Capacity, Known, Seconds


def _dimension(
    knob: str, *values: KnobValue, when: dict[str, KnobValue] | None = None, ordinal: bool = False
):
    conditions = tuple(Condition(name, (value,)) for name, value in (when or {}).items())
    return Dimension(knob, tuple(Choice(value) for value in values), conditions, ordinal)


def small_space() -> Space:
    """Two accelerators, batching with its own knobs, counts and a tuple: 240 candidates."""
    batching = {"dynamic_batching": True}
    return Space(
        model="mlp",
        target="cpu",
        dimensions=(
            _dimension("accelerator", "none", "openvino"),
            _dimension("instance_count", 1, 2, 4, ordinal=True),
            _dimension("intra_op_thread_count", 1, 4, when={"accelerator": "none"}, ordinal=True),
            _dimension("max_batch_size", 1, 2, 4, 8, ordinal=True),
            _dimension("dynamic_batching", False, True),
            _dimension("max_queue_delay_microseconds", 0, 500, when=batching, ordinal=True),
            _dimension("preferred_batch_size", (), (4, 8), when=batching),
        ),
        baseline=Candidate.of(
            "mlp",
            "cpu",
            {
                "accelerator": "none",
                "instance_count": 2,
                "intra_op_thread_count": 1,
                "max_batch_size": 8,
                "dynamic_batching": True,
                "max_queue_delay_microseconds": 0,
                "preferred_batch_size": (),
            },
        ),
    )


def throughput_of(candidate: Candidate) -> float:
    """A smooth surface with one best corner: openvino, four instances, batches of eight with a delay."""
    knobs = candidate.values
    value = 100.0 * (1.5 if knobs["accelerator"] == "openvino" else 1.0)
    value *= 1 + 0.3 * math.log2(int(knobs["instance_count"]))
    value *= 1 + 0.1 * math.log2(int(knobs["max_batch_size"])) * (2 if knobs["dynamic_batching"] else 0)
    return value * (1.2 if knobs.get("max_queue_delay_microseconds") else 1.0)


def measurement(throughput: float, p99_ms: float = 20.0, requests: int = 1000) -> Measurement:
    """A measurement with these numbers, 2% wide."""
    return Measurement(
        load=ClosedLoad(concurrency=8),
        requests=requests,
        duration_s=1.0,
        throughput=Interval(value=throughput, low=throughput * 0.98, high=throughput * 1.02),
        latency_ms={"avg": Interval(value=p99_ms / 2), "p99": Interval(value=p99_ms, low=p99_ms * 0.9)},
    )


def capacity(throughput: float, violation: float = 0.0) -> Capacity:
    """A capacity of `throughput` whose p99 is over its SLO by the relative `violation`."""
    made = measurement(throughput, 20.0 * (1 + violation))
    half = measurement(throughput / 2, 10.0).model_copy(update={"load": ClosedLoad(concurrency=4)})
    return Capacity(
        measurement=made,
        steps=(half, made),
        slo_met=violation <= 0,
        violations={"p99_latency_ms": violation},
        objective=throughput,
        seconds=Seconds(),
    )


def outcome_of(candidate: Candidate) -> Capacity:
    """What the made-up surface says about a candidate; every SLO is met."""
    return capacity(throughput_of(candidate))


LIMIT_MS = 50.0
"""The p99 limit of `Surface`."""


class Surface:
    """A machine of formulas: p99 grows with concurrency; noise of 1%, seeded."""

    def __init__(self, capacities: Mapping[Candidate, float], p99_per_client_ms: Mapping[Candidate, float]):
        self.capacities = capacities
        self.p99_per_client_ms = p99_per_client_ms
        self.rng = random.Random(1)
        self.noise = 0.01
        self.measured: list[tuple[Candidate, Load]] = []
        self.asked: list[Candidate] = []
        self.known: list[Known] = []
        self.broken: dict[Candidate, Failure] = {}
        self.gathered: tuple[Candidate, ...] = ()
        self.soft_limit_ms: float | None = None
        self.changes = 0
        self.error_said: float | None = None

    def capacity(self, candidate: Candidate, known: Known = NOTHING_KNOWN):
        self.asked.append(candidate)
        self.known.append(known)
        return self.broken.get(candidate) or capacity(self.capacities[candidate])

    def gather(self, known) -> None:
        self.gathered = tuple(known)

    def sample(self, candidate: Candidate, load: Load, requests: int):
        self.measured.append((candidate, load))
        if candidate in self.broken:
            return self.broken[candidate]
        noise = self.rng.gauss(1, self.noise)
        p99 = load.concurrency * self.p99_per_client_ms[candidate]
        made = measurement(self.capacities[candidate] * noise, p99, requests)
        return made.model_copy(update={"load": load})

    def joined(self, samples) -> Measurement:
        return self.pooled(samples)

    def pooled(self, samples) -> Measurement:
        mean = sum(sample.throughput.value for sample in samples) / len(samples)
        requests = sum(sample.requests for sample in samples)
        made = measurement(mean, samples[-1].latency_ms["p99"].value, requests)
        return made.model_copy(update={"load": samples[-1].load})

    def violations(self, measured: Measurement) -> dict[str, float]:
        return {"p99_latency_ms": measured.latency_ms["p99"].value / LIMIT_MS - 1}

    def soft_violations(self, measured: Measurement) -> dict[str, float]:
        if self.soft_limit_ms is None:
            return {}
        return {"p99_latency_ms": measured.latency_ms["p99"].value / self.soft_limit_ms - 1}

    def objective(self, measured: Measurement) -> float:
        return measured.throughput.value

    def score(self, objective: float) -> float:
        return math.log(objective)

    def error(self, _sample: Measurement) -> float | None:
        return self.error_said

    def lower(self, load: Load, _excess: float) -> Load | None:
        return ClosedLoad(concurrency=load.concurrency - 1) if load.concurrency > 1 else None

    def look(self, candidate: Candidate, load: Load, requests: int):
        sample = self.sample(candidate, load, requests)
        return sample if isinstance(sample, Failure) else self.pooled([sample])

    def start_over(self) -> None:
        self.changes += 1
