"""What a Measurement is worth: the objective, and by how much the limits of the SLO are missed. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, cast

from tritonc.schemas.measurement import Interval, Measurement
from tritonc.schemas.spec import Axis, Pareto, Slo
from tritonc.schemas.spec import Objective as Single

Quantity = Single | Axis
Objective = Single | Mapping[Single, float] | Pareto
"""`throughput`, `latency`, `memory`, `cost` or `energy`, or weights of these, or several for a front."""
Percentile = Literal["avg", "p50", "p90", "p95", "p99"]

PERCENTILES: tuple[Percentile, ...] = ("p99", "p95", "p90", "p50", "avg")
"""In the order in which an SLO is asked which latency it is about."""

HOPELESS = 1e6
"""The violation of a candidate that completed nothing: finite, so that it can be stored as JSON."""

_ENDLESS = 50.0
"""A logarithm that stands for one of nothing."""
_PERCENTILES: Mapping[str, Percentile] = {f"{name}_latency_ms": name for name in PERCENTILES}

SOFT_WEIGHT = 2.0
"""What missing a soft limit costs: twice the logarithm of measured over limit is taken off the logarithm of
the objective. Who misses it by 10% has to be 21% better to win; by a factor of two, four times better."""

_SEEN: Mapping[str, Callable[[Measurement], float | None]] = {
    "avg_queue_ms": lambda measured: measured.queue_ms,
    "max_memory": lambda measured: measured.memory_bytes,
    "max_load_seconds": lambda measured: measured.load_s,
}
"""What a limit is about, other than latency and throughput; None where it was not measured."""


def weights_of(objective: Objective) -> Mapping[Quantity, float]:
    """The objective as weights; a single one weighs 1, and all of a front weigh the same."""
    if isinstance(objective, Pareto):
        return dict.fromkeys(objective.pareto, 1 / len(objective.pareto))
    return {objective: 1.0} if isinstance(objective, str) else cast("Mapping[Quantity, float]", objective)


def axes_of(objective: Objective) -> tuple[Axis, ...]:
    """What a front is about; nothing where one number says what is best."""
    return objective.pareto if isinstance(objective, Pareto) else ()


def axis_scores(objective: Objective, slo: Slo, measured: Measurement) -> tuple[float, ...]:
    """The logarithm of each objective of a front, larger is better, but for a constant.

    What missing soft limits costs is taken off each of them.
    """
    cost = soft_cost(soft_violations(slo, measured))
    scores = (score(axis, _value(axis, slo, measured, 1.0)) for axis in axes_of(objective))
    return tuple(max(-_ENDLESS, min(_ENDLESS, each - cost)) for each in scores)


def seeks_capacity(objective: Objective) -> bool:
    """Whether the objective gets better with load, so that the largest load within the limits is sought.

    A machine is paid for, and draws power, whether it is busy or not.
    """
    return any(name in ("throughput", "cost", "energy") for name in weights_of(objective))


def latency_limits(limits: Mapping[str, float]) -> Mapping[Percentile, float]:
    """The latency limits in milliseconds, by percentile, of `Slo.hard`, `Slo.soft` or `Slo.limits`."""
    named = {name: limits.get(f"{name}_latency_ms") for name in PERCENTILES}
    return {name: limit for name, limit in named.items() if limit is not None}


def decisive_percentile(slo: Slo) -> Percentile:
    """The latency that `latency` is about: the highest percentile that the SLO limits, else p99."""
    return next(iter(latency_limits(slo.limits)), "p99")


def violations(slo: Slo, measured: Measurement) -> dict[str, float]:
    """By how much each hard limit of the SLO is missed, relative to it; not above 0 where it is kept.

    A rate that is not sustained counts as one more limit, "sustained": the rate over what was completed.
    """
    found = _excesses(slo.hard, measured)
    if measured.load.kind == "open" and not measured.sustained:
        done = measured.throughput.value / measured.load.mean_request_batch
        found["sustained"] = max(0.01, measured.load.rate / done - 1) if done else HOPELESS
    return found


def soft_violations(slo: Slo, measured: Measurement) -> dict[str, float]:
    """By how much each soft limit of the SLO is missed, relative to it; not above 0 where it is kept."""
    return _excesses(slo.soft, measured)


def soft_cost(violations: Mapping[str, float]) -> float:
    """What `soft_violations` cost: to be taken off the logarithm of the objective; 0 where all are kept."""
    return SOFT_WEIGHT * sum(math.log1p(max(0.0, violation)) for violation in violations.values())


def missed(violations: Mapping[str, float]) -> dict[str, float]:
    """The limits that are missed, without those that are kept."""
    return {name: violation for name, violation in violations.items() if violation > 0}


def _excesses(limits: Mapping[str, float], measured: Measurement) -> dict[str, float]:
    found = {}
    for name, limit in limits.items():
        if name == "min_throughput":
            throughput = measured.throughput.value
            found[name] = limit / throughput - 1 if throughput else HOPELESS
        elif name in _SEEN:
            seen = _SEEN[name](measured)
            found |= {} if seen is None else {name: seen / limit - 1}
    for percentile, limit in latency_limits(limits).items():
        found[f"{percentile}_latency_ms"] = measured.latency_ms[percentile].value / limit - 1
    return found


def objective_value(
    objective: Objective,
    slo: Slo,
    measured: Measurement,
    baseline: Measurement | None,
    price_per_hour: float = 1.0,
) -> float:
    """The objective, larger is better.

    Throughput in inferences a second, latency in negative milliseconds, memory in negative bytes, cost in the
    negative price of a million inferences, energy in negative joules an inference; weighted ones are the
    weighted sum of the logarithms of the ratios to the baseline (0 for the baseline itself, and without one).
    On a front all objectives weigh the same.

    Args:
        objective: of the spec.
        slo: of the spec.
        measured: what it is the objective of.
        baseline: what weighted objectives are relative to.
        price_per_hour: of the target.
    """
    if isinstance(objective, str):
        return _value(objective, slo, measured, price_per_hour)
    if baseline is None:
        return 0.0
    return sum(
        weight * _log_ratio(*(_value(name, slo, each, price_per_hour) for each in (measured, baseline)))
        for name, weight in weights_of(objective).items()
    )


def cost_per_million(throughput: Interval, price_per_hour: float) -> Interval:
    """The price of a million inferences; its interval is that of the throughput."""
    price = price_per_hour / 3600 * 1e6
    return Interval(
        value=price / throughput.value if throughput.value else HOPELESS,
        low=price / throughput.high if throughput.high else None,
        high=price / throughput.low if throughput.low else None,
    )


def held_memory_bytes(measured: Measurement) -> int:
    """What `memory` is about: GPU memory where the server holds any, else host memory."""
    return measured.gpu_memory_bytes or measured.memory_bytes or 0


def _value(name: Quantity, slo: Slo, measured: Measurement, price_per_hour: float) -> float:
    if name == "throughput":
        return measured.throughput.value
    if name == "latency" or name in _PERCENTILES:
        return -measured.latency_ms[_PERCENTILES.get(name, decisive_percentile(slo))].value
    if name == "cost":
        return -cost_per_million(measured.throughput, price_per_hour).value
    if name == "energy":
        return -HOPELESS if measured.joules_per_inference is None else -measured.joules_per_inference
    return -float(held_memory_bytes(measured))


def _log_ratio(value: float, base: float) -> float:
    """How much better, as a logarithm; costs are negative, and a smaller one is better."""
    if not value or not base:
        return 0.0
    ratio = math.log(abs(value) / abs(base))
    return ratio if value > 0 else -ratio


def lowered(objective: Objective, value: float, cost: float) -> float:
    """A value of the objective, worse by `cost` on the scale of `score`."""
    if not isinstance(objective, str):
        return value - cost
    return value * math.exp(-cost if value > 0 else cost)


def score(objective: Objective | Axis, value: float) -> float:
    """A value of the objective on a scale on which equal differences are equal ratios."""
    if not isinstance(objective, str):
        return value
    if value == 0:
        return -math.inf if objective == "throughput" else math.inf
    return math.log(value) if value > 0 else -math.log(-value)
