"""What a Measurement is worth: the objective, and by how much the limits of the SLO are missed. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from tritonc.schemas.measurement import Measurement
from tritonc.schemas.spec import Objective as Quantity
from tritonc.schemas.spec import Slo

Objective = Quantity | Mapping[Quantity, float]
"""`throughput`, `latency` or `memory`, or weights of these."""
Percentile = Literal["avg", "p50", "p90", "p95", "p99"]

PERCENTILES: tuple[Percentile, ...] = ("p99", "p95", "p90", "p50", "avg")
"""In the order in which an SLO is asked which latency it is about."""

HOPELESS = 1e6
"""The violation of a candidate that completed nothing: finite, so that it can be stored as JSON."""


def weights_of(objective: Objective) -> Mapping[Quantity, float]:
    """The objective as weights; a single one weighs 1."""
    return {objective: 1.0} if isinstance(objective, str) else objective


def latency_limits(slo: Slo) -> Mapping[Percentile, float]:
    """The latency limits of an SLO in milliseconds, by percentile."""
    limits = {name: getattr(slo, f"{name}_latency_ms") for name in PERCENTILES}
    return {name: limit for name, limit in limits.items() if limit is not None}


def decisive_percentile(slo: Slo) -> Percentile:
    """The latency that `latency` is about: the highest percentile that the SLO limits, else p99."""
    return next(iter(latency_limits(slo)), "p99")


def violations(slo: Slo, measured: Measurement) -> dict[str, float]:
    """By how much each limit of the SLO is missed, relative to it; not above 0 where it is kept.

    A rate that is not sustained counts as one more limit, "sustained": the rate over what was completed.
    """
    found = {
        f"{name}_latency_ms": measured.latency_ms[name].value / limit - 1
        for name, limit in latency_limits(slo).items()
    }
    if slo.min_throughput is not None:
        throughput = measured.throughput.value
        found["min_throughput"] = slo.min_throughput / throughput - 1 if throughput else HOPELESS
    if slo.max_memory is not None and measured.memory_bytes is not None:
        found["max_memory"] = measured.memory_bytes / slo.max_memory - 1
    if measured.load.kind == "open" and not measured.sustained:
        done = measured.throughput.value / measured.load.request_batch
        found["sustained"] = max(0.01, measured.load.rate / done - 1) if done else HOPELESS
    return found


def objective_value(
    objective: Objective, slo: Slo, measured: Measurement, baseline: Measurement | None
) -> float:
    """The objective, larger is better.

    Throughput in inferences a second, latency in negative milliseconds, memory in negative bytes; weighted
    ones are the weighted sum of the logarithms of the ratios to the baseline (0 for the baseline itself,
    and without one).
    """
    if isinstance(objective, str):
        return _value(objective, slo, measured)
    if baseline is None:
        return 0.0
    return sum(
        weight * _log_ratio(_value(name, slo, measured), _value(name, slo, baseline))
        for name, weight in objective.items()
    )


def _value(name: Quantity, slo: Slo, measured: Measurement) -> float:
    if name == "throughput":
        return measured.throughput.value
    if name == "latency":
        return -measured.latency_ms[decisive_percentile(slo)].value
    return -float(measured.memory_bytes or 0)


def _log_ratio(value: float, base: float) -> float:
    """How much better, as a logarithm; costs are negative, and a smaller one is better."""
    if not value or not base:
        return 0.0
    ratio = math.log(abs(value) / abs(base))
    return ratio if value > 0 else -ratio


def score(objective: Objective, value: float) -> float:
    """A value of the objective on a scale on which equal differences are equal ratios."""
    if not isinstance(objective, str):
        return value
    if value == 0:
        return -math.inf if objective == "throughput" else math.inf
    return math.log(value) if value > 0 else -math.log(-value)
