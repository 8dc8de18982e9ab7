"""Numbers as people read them: with their unit, their interval and the load they were measured under."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import Interval, Load, Measurement
from tritonc.schemas.request_batch import describe_sizes
from tritonc.schemas.spec import Axis
from tritonc.tuner.objective import Objective, axes_of, cost_per_million, held_memory_bytes, score

_DIGITS = 3
"""Significant digits; measurements here are rarely good to more."""
_NO_RATIO = 100.0
"""A logarithm of a ratio above which one of the two was not measured."""


def number(value: float) -> str:
    """`value` with three significant digits, whole numbers from 100 on.

    >>> [number(v) for v in (0.01234, 1.2345, 98.76, 1234.5, 0.0)]
    ['0.0123', '1.23', '98.8', '1234', '0']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}" if value == 0 else "unknown"
    decimals = max(0, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def interval(estimate: Interval, unit: str, *, count: int | None = None) -> str:
    """An estimate with its 95% interval; an end that is not known says so, with the sample's size.

    >>> interval(Interval(value=43.2, low=41.0), "ms", count=210)
    '43.2 ms [41.0, unknown (n = 210)]'
    """
    low, high = (number(end) if end is not None else None for end in (estimate.low, estimate.high))
    if low is None and high is None:
        return f"{number(estimate.value)} {unit}"
    unknown = "unknown" if count is None else f"unknown (n = {count})"
    return f"{number(estimate.value)} {unit} [{low or unknown}, {high or unknown}]"


def percent(ratio: float) -> str:
    """A relative difference with its sign.

    >>> percent(0.3156), percent(-0.02)
    ('+31.6%', '-2.0%')
    """
    return f"{ratio:+.1%}"


def gain(objective: Objective, ratio: float) -> str:
    """What an objective changed by; `ratio` is by how much it is better, a cost that is smaller included.

    >>> gain("throughput", 0.25), gain("latency", 0.25), gain({"throughput": 1.0}, 0.25)
    ('throughput +25.0%', 'latency -20.0%', 'weighted objective +25.0%')
    """
    several = "mean of the objectives" if axes_of(objective) else "weighted objective"
    name = objective if isinstance(objective, str) else several
    return f"{name} {percent(change(objective, ratio))}"


def change(objective: Objective, ratio: float) -> float:
    """The share by which the figure that a person sees moves where it is better by `ratio`.

    >>> change("throughput", 0.25), change("latency", 0.25)
    (0.25, -0.2)
    """
    return -ratio / (1 + ratio) if objective in ("latency", "memory", "cost", "energy") else ratio


def gain_between(objective: Objective, base: float, value: float) -> str:
    """`gain` of one value of an objective over another; empty where there is no ratio of the two.

    >>> gain_between("latency", -50.0, -40.0), gain_between("memory", 0.0, -40.0)
    ('latency -20.0%', '')
    """
    difference = score(objective, value) - score(objective, base)
    return gain(objective, math.expm1(difference)) if abs(difference) < _NO_RATIO else ""


def load(measured: Load) -> str:
    """A load in words.

    >>> from tritonc.schemas.measurement import ClosedLoad
    >>> load(ClosedLoad(concurrency=8))
    'concurrency 8'
    """
    batch = "" if measured.request_batch == 1 else f", request batch {describe_sizes(measured.request_batch)}"
    if measured.kind == "closed":
        return f"concurrency {measured.concurrency}{batch}"
    return f"{number(measured.rate)} requests/s {measured.arrivals}{batch}"


def throughput(measurement: Measurement) -> str:
    """Throughput with its interval."""
    return interval(measurement.throughput, "inferences/s", count=measurement.requests)


def latency(measurement: Measurement, statistic: str = "p99") -> str:
    """A latency with its interval; "unknown" where it was not measured.

    Under a rate that is not sustained latency has no upper end, however many requests there are.
    """
    found = {str(name): value for name, value in measurement.latency_ms.items()}.get(statistic)
    count = measurement.requests if measurement.sustained else None
    return interval(found, "ms", count=count) if found else "unknown"


def further(measured: Sequence[Measurement]) -> list[str]:
    """What was measured under the second workload, the third and so on, a line each."""
    return [
        f"workload {number} ({load(each.load)}): {throughput(each)}, p99 {latency(each)}"
        for number, each in enumerate(measured, 2)
    ]


def energy(measurement: Measurement) -> str:
    """Energy of an inference; "unknown" where it was not measured."""
    joules = measurement.joules_per_inference
    return "unknown" if joules is None else f"{number(joules)} J/inference"


def on_axis(axis: Axis, measurement: Measurement, price_per_hour: float | None) -> str:
    """One objective of a front, with its unit and its interval where it has one."""
    if axis == "throughput":
        return throughput(measurement)
    if axis == "memory":
        return size(held_memory_bytes(measurement))
    if axis == "energy":
        return energy(measurement)
    if axis == "cost":
        return cost(measurement, price_per_hour)
    return latency(measurement, axis.removesuffix("_latency_ms"))


def cost(measurement: Measurement, price_per_hour: float | None) -> str:
    """The price of a million inferences; "unknown" where an hour has none."""
    if price_per_hour is None:
        return "unknown"
    return interval(cost_per_million(measurement.throughput, price_per_hour), "per million inferences")


def missed(violations: Mapping[str, float]) -> str:
    """Limits that are missed, and by how much.

    >>> missed({"p99_latency_ms": 0.123, "max_memory": -0.5})
    'p99_latency_ms by 12%'
    """
    return ", ".join(
        f"{limit.replace('sustained', 'rate not sustained,')} by {violation:.0%}"
        for limit, violation in violations.items()
        if violation > 0
    )


def size(size_bytes: int | None) -> str:
    """A size in MiB or GiB.

    >>> size(3 * 2**29), size(5 * 2**20)
    ('1.50 GiB', '5.00 MiB')
    """
    if size_bytes is None:
        return "unknown"
    if size_bytes >= 2**30:
        return f"{number(size_bytes / 2**30)} GiB"
    return f"{number(size_bytes / 2**20)} MiB"


def duration(seconds: float) -> str:
    """A duration to the unit that matters.

    >>> duration(42), duration(185), duration(7300)
    ('42 s', '3 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def cores(listed: tuple[int, ...]) -> str:
    """Numbers of cores, runs of them shortened.

    >>> cores((0, 1, 2, 5))
    '0-2,5'
    """
    runs: list[list[int]] = []
    for core in sorted(listed):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def knob(value: KnobValue | None) -> str:
    """A knob's value as a person would write it; "not set" where the knob is not active.

    >>> knob(True), knob((4, 8)), knob(()), knob(None)
    ('true', '4, 8', 'none', 'not set')
    """
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)


def changes(before: dict[str, KnobValue], after: dict[str, KnobValue]) -> list[tuple[str, str, str]]:
    """(knob, before, after) of every knob that differs, sorted by name."""
    names = sorted(before.keys() | after.keys())
    return [
        (name, knob(before.get(name)), knob(after.get(name)))
        for name in names
        if before.get(name) != after.get(name) or (name in before) != (name in after)
    ]
