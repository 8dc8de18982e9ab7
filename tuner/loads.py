"""The loads that a workload has, each at a level: clients (closed), or requests a second (open). Pure."""

from __future__ import annotations

import math

from tritonc.schemas.measurement import ClosedLoad, Load, OpenLoad, Trace
from tritonc.schemas.request_batch import mean_size
from tritonc.schemas.spec import ClosedWorkload, Slo
from tritonc.tuner.demand import Demand
from tritonc.tuner.objective import Objective, seeks_capacity

_MODEL_STEP = 1.2
_LADDER_CLOSED = 2.0
_LADDER_OPEN = 1.5
_CLOSED_STEP = 0.85
_OPEN_STEP = 0.9
_FEWEST = 0.5
_MAX_RATE = 16.0  # times `rate`, where the spec has no `max_rate` (schemas.workload)


def level_of(load: Load) -> float:
    """Clients (closed), or requests a second (open)."""
    return load.concurrency if isinstance(load, ClosedLoad) else load.rate


def is_replayed(load: Load) -> bool:
    """Whether its requests arrive as in a trace, of which windows may hold different parts."""
    return isinstance(load, OpenLoad) and isinstance(load.distribution, Trace)


def load_at(workload: Demand, level: float) -> Load:
    """The load of a workload at a level."""
    if isinstance(workload, ClosedWorkload):
        return closed_load(workload, int(level))
    return OpenLoad(rate=level, distribution=workload.arrival, request_batch=workload.request_batch)


def closed_load(workload: Demand, clients: int) -> ClosedLoad:
    """That many clients that wait for each answer, whatever the workload; of several sizes a middle one."""
    return ClosedLoad(concurrency=clients, request_batch=round(mean_size(workload.request_batch)))


def load_to_hold(workload: Demand) -> Load:
    """The load that a further workload is: its rate, or all of its clients."""
    if isinstance(workload, ClosedWorkload):
        return load_at(workload, workload.max_concurrency)
    return load_at(workload, workload.rate)


def workload_kind(workload: Demand) -> str:
    """The kind of the loads that a workload has: "closed" or "open"."""
    return "closed" if isinstance(workload, ClosedWorkload) else "open"


def ceiling(workload: Demand) -> float:
    """The largest level that may be asked."""
    if isinstance(workload, ClosedWorkload):
        return float(workload.max_concurrency)
    return max(workload.rate, workload.max_rate or _MAX_RATE * workload.rate)


def searched_loads(workload: Demand, slo: Slo, objective: Objective) -> tuple[Load, ...]:
    """The loads that a model of a candidate needs to know about, ascending, about a fifth apart.

    Where the objective asks for no capacity, only the one that must be carried, or those that could reach
    `min_throughput`.
    """
    for_capacity = seeks_capacity(objective)
    if isinstance(workload, ClosedWorkload):
        most = workload.max_concurrency if for_capacity or "min_throughput" in slo.limits else 1
        steps = math.floor(math.log(most, _MODEL_STEP))
        levels = sorted({round(_MODEL_STEP**step) for step in range(steps + 1)} | {most})
        return tuple(closed_load(workload, level) for level in levels)
    highest = workload.max_rate or _MAX_RATE * workload.rate if for_capacity else workload.rate
    steps = math.floor(math.log(highest / workload.rate, _MODEL_STEP) + 1e-9)
    rates = dict.fromkeys([*(workload.rate * _MODEL_STEP**step for step in range(steps + 1)), highest])
    return tuple(load_at(workload, rate) for rate in rates)


def lower_load(workload: Demand, load: Load, excess: float) -> Load | None:
    """A smaller load that could keep a latency limit; None below what must be carried.

    A closed load has fewer clients by as much as the limit is missed, since latency is proportional to them
    at saturation (Little's law), but half of them at least: it may be missed by far by chance.

    Args:
        workload: that the load belongs to.
        load: that broke the limit.
        excess: by how much, relative to the limit.
    """
    if isinstance(load, ClosedLoad):
        share = max(_FEWEST, min(_CLOSED_STEP, 1 / (1 + excess)))
        fewer = min(load.concurrency - 1, math.floor(load.concurrency * share))
        return load.model_copy(update={"concurrency": fewer}) if fewer >= 1 else None
    required = 0.0 if isinstance(workload, ClosedWorkload) else workload.rate
    if load.rate <= required:
        return None
    return load.model_copy(update={"rate": max(required, load.rate * _OPEN_STEP)})


def ladder(workload: Demand) -> tuple[float, ...]:
    """The levels of `LoadLadder`, ascending: clients, or requests a second."""
    if isinstance(workload, ClosedWorkload):
        first, last, factor = 1.0, ceiling(workload), _LADDER_CLOSED
    else:
        first, last, factor = workload.rate, ceiling(workload), _LADDER_OPEN
    steps = math.floor(math.log(last / first, factor) + 1e-9)
    levels = [first * factor**step for step in range(steps + 1)]
    return (*levels, last) if levels[-1] < last else tuple(levels)
