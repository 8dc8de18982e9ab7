"""What a configuration did under the further workloads of its model, beside the one it is chosen by."""

from __future__ import annotations

from collections.abc import Mapping

from tritonc.schemas.measurement import Measurement
from tritonc.schemas.spec import Slo

_BEFORE = "workload "


class UnderEach(Measurement):
    """What a configuration did under its first workload, and what it did under each further one."""

    further: tuple[Measurement, ...]


def first_of(measurement: Measurement) -> Measurement:
    """What was measured under the first workload alone."""
    if not isinstance(measurement, UnderEach):
        return measurement
    return Measurement(**{name: getattr(measurement, name) for name in Measurement.model_fields})


def further_in(measurement: Measurement) -> tuple[Measurement, ...]:
    """What was measured under further workloads; nothing where there are none."""
    return measurement.further if isinstance(measurement, UnderEach) else ()


def further_slo(slo: Slo) -> Slo:
    """The limits that have to be kept under a further workload.

    The first one is what `min_throughput` is about: how much a further one brings is given. The time of
    loading is the same under all of them.
    """
    return slo.model_copy(update={"min_throughput": None, "max_load_seconds": None})


def named(place: int, violations: Mapping[str, float]) -> dict[str, float]:
    """Violations under a further workload, named by it; the first further one is the second of all.

    >>> named(0, {"p99_latency_ms": 0.1})
    {'workload 2: p99_latency_ms': 0.1}
    """
    return {f"{_BEFORE}{place + 2}: {limit}": value for limit, value in violations.items()}


def is_of_further(limit: str) -> bool:
    """Whether a violation is one under a further workload: a smaller load of the first does not mend it."""
    return limit.startswith(_BEFORE)
