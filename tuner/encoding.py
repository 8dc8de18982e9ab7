"""Candidates and loads as rows of numbers between which distances mean something. Pure.

Counts and sizes are logarithms, categories and numbers below 0 are one-hot, a knob that is inactive has a
fixed place, and what physics says matters is a column of its own: how many inferences the load brings for
each that can be under way at once, the batch that an execution then holds, and how long the rest waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import Load
from tritonc.tuner.serving import (
    BASIS_COLUMNS,
    LOAD_COLUMNS,
    Law,
    Service,
    bare,
    behaviour,
    in_flight,
    prefixes,
)

Floats = npt.NDArray[np.float64]
Pair = tuple[Candidate, Load]
"""What can be measured: a candidate under a load."""

_ONE_HOT = 1 / math.sqrt(2)  # two categories are as far apart as the two ends of a range
_IDLE_WEIGHT = 0.2  # of a size that an execution never reaches


@dataclass(frozen=True, slots=True)
class _Column:
    """One column: a number, or membership of a category where `category` is not None."""

    knob: str
    low: float = 0.0
    high: float = 1.0
    category: KnobValue | None = None
    weight: float = 1.0

    def value(self, values: Mapping[str, KnobValue]) -> float:
        if self.knob not in values:
            return 0.0
        value = values[self.knob]
        if self.category is not None:
            return _ONE_HOT if type(value) is type(self.category) and value == self.category else 0.0
        return self.weight * (_logarithm(value) - self.low) / (self.high - self.low)


class Encoding:
    """Rows for the (candidate, load) pairs of one search.

    Args:
        candidates: those whose knobs there are; others can be encoded too, as far as they share knobs.

    Attributes:
        knobs: columns that depend on the candidate alone; those of the load follow them.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        values: dict[str, dict[KnobValue, None]] = {}
        rows = [_described(candidate) for candidate in candidates]
        for row in rows:
            for knob, value in row.items():
                values.setdefault(knob, {})[value] = None
        partial = {knob for knob in values if any(knob not in row for row in rows)}
        self._columns = [
            column
            for knob in sorted(values)
            for column in _columns(knob, tuple(values[knob]), knob in partial)
        ]

    @property
    def knobs(self) -> int:
        """How many columns depend on the candidate alone."""
        return len(self._columns)

    def table(self, pairs: Sequence[Pair]) -> Table:
        """The pairs, a row each: the columns of the candidate, then those of the load, logarithmic.

        Of a load there are what is in flight, that for each place, the batch of a request, the batch that an
        execution would hold, and how long what does not fill a batch waits.
        """
        columns: dict[Candidate, list[float]] = {}
        serving: dict[tuple[Candidate, float], Service] = {}
        rows, amounts, services, waits = [], [], [], []
        for candidate, load in pairs:
            key = (candidate, load.mean_request_batch)
            if candidate not in columns:
                described = _described(candidate)
                columns[candidate] = [column.value(described) for column in self._columns]
            if key not in serving:
                serving[key] = Service.of(*key)
            service, amount = serving[key], in_flight(load)
            rows.append([*columns[candidate], *service.columns(load)])
            amounts.append(math.log(amount))
            services.append(service.basis(load))
            waits.append(service.wait_s(load) / amount)
        return Table(
            tuple(pairs),
            np.array(rows, np.float64).reshape(len(pairs), self.knobs + LOAD_COLUMNS),
            np.array(amounts, np.float64),
            np.array(services, np.float64).reshape(len(pairs), BASIS_COLUMNS),
            np.array(waits, np.float64),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """(candidate, load) pairs as numbers.

    Attributes:
        rows: one for each pair.
        amounts: logarithms of `in_flight`.
        services: for each pair what a law says its throughput of; see `Service.basis`.
        waits: for each pair the seconds that a request spends waiting for a batch that cannot be filled, over
            what is in flight.
    """

    pairs: tuple[Pair, ...]
    rows: Floats
    amounts: Floats
    services: Floats
    waits: Floats

    def expected_throughput(self, law: Law, level: float = -math.inf) -> Floats:
        """Logarithms, but for a constant, as a law has them.

        Args:
            law: how it follows from batch and instances.
            level: that constant, of inferences a second, by which it is known how much waiting adds to the
                time that a request takes; nothing unless given.
        """
        free = law.expected(self.services)
        return np.asarray(free - np.log1p(np.exp(free + level) * self.waits))

    def level(self, law: Law, values: Floats) -> float:
        """The constant of `expected_throughput` by the logarithms of throughput that were measured.

        The median of what each says, without the time that it waited (Little's law: the time of a request is
        what is in flight over the throughput); minus infinity where all of it was waiting.
        """
        serving = np.exp(-values) - self.waits
        says = serving > 0
        if not says.any():
            return -math.inf
        return float(np.median(-np.log(serving[says]) - law.expected(self.services)[says]))

    def at(self, places: Sequence[int]) -> Table:
        """Some of the pairs, by their positions."""
        wanted = np.asarray(places, np.intp)
        pairs = tuple(self.pairs[place] for place in places)
        return Table(
            pairs, self.rows[wanted], self.amounts[wanted], self.services[wanted], self.waits[wanted]
        )

    def __len__(self) -> int:
        return len(self.pairs)


def _described(candidate: Candidate) -> dict[str, KnobValue]:
    """What there are columns for: the behaviour, the number of threads that work at once, and the size."""
    described = dict(behaviour(candidate))
    for of in prefixes(candidate.values):
        instances = described.get(f"{of}instance_count")
        threads = described.get(f"{of}intra_op_thread_count")
        if isinstance(instances, int) and isinstance(threads, int):
            described[f"{of}threads"] = instances * threads
        if (size := f"{of}max_batch_size") in candidate.values:
            described[size] = candidate.values[size]
    return described


def _columns(knob: str, values: Sequence[KnobValue], is_partial: bool) -> list[_Column]:
    """The columns of a knob; none where it is the same everywhere.

    A number below 0 counts nothing: Triton and its backends mean "let it be decided" or the like by it. So it
    is a category beside the others.
    """
    if len(values) == 1 and not is_partial:
        return []
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values):
        apart = [value for value in numbers if value < 0]
        places = [_logarithm(value) for value in numbers if value >= 0]
        low, high = min([*([0.0] if is_partial or apart else []), *places]), max(places, default=0.0)
        weight = _IDLE_WEIGHT if bare(knob) == "max_batch_size" else 1.0
        axis = [_Column(knob, low, high, weight=weight)] if high > low else []
        return [*axis, *(_Column(knob, category=value) for value in apart)]
    if set(map(type, values)) == {bool} and not is_partial:
        return [_Column(knob)]
    return [_Column(knob, category=value) for value in values]


def _logarithm(value: KnobValue) -> float:
    return math.log2(1 + max(0.0, float(value))) if isinstance(value, int | float) else 0.0
