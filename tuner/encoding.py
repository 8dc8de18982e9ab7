"""Candidates and loads as rows of numbers between which distances mean something. Pure.

Counts and sizes are logarithms, categories and numbers below 0 are one-hot, a knob that is inactive has a
fixed place, and what physics says matters is a column of its own: how many inferences the load brings for
each that can be under way at once, the batch that an execution then holds, and how long the rest waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import AFTER_MODEL, BETWEEN_MODELS
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import ClosedLoad, Load

Floats = npt.NDArray[np.float64]
Pair = tuple[Candidate, Load]
"""What can be measured: a candidate under a load."""

Fill = Literal["whole", "half", "alone"]
"""What an execution holds; see `Law`."""

LOAD_COLUMNS = 5
"""Columns of a row that depend on the load."""

FILLS: tuple[Fill, ...] = get_args(Fill)
_TERMS = 3  # of a law for each of them: the batch, that padded, and the instances that are busy

_ONE_HOT = 1 / math.sqrt(2)  # two categories are as far apart as the two ends of a range
_DELAY_RANGE = 12.0  # doublings of a delay that are as far apart as the two ends of a range
_IDLE_WEIGHT = 0.2  # of a size that an execution never reaches
_LOAD_RANGE = 6.0  # doublings of load that are as far apart as the two ends of a range

EXPECTED_GAIN: Mapping[str, Mapping[KnobValue, float]] = {
    "precision": {"fp16": 0.4, "int8": 0.5},
    "accelerator": {"tensorrt": 0.5, "cuda": 0.2, "openvino": 0.2},
    "backend": {"tensorrt": 0.5, "openvino": 0.2},
    "dynamic_batching": {True: 0.2},
}
"""What a category is expected to change in log throughput before it is measured: it only decides what is
measured first."""


def behaviour(candidate: Candidate, request_batch: float = 1) -> Mapping[str, KnobValue]:
    """The knobs that make a difference, with `effective_batch` in the place of `max_batch_size`.

    Without dynamic batching an execution holds one request, however large it might be, so candidates that
    differ only in `max_batch_size` behave alike.
    """
    values = candidate.values
    for of in _prefixes(values):
        size = values.pop(f"{of}max_batch_size", None)
        if isinstance(size, int):
            batches = values.get(f"{of}dynamic_batching") is not False
            values[f"{of}effective_batch"] = max(size, request_batch) if batches else request_batch
    return values


def _prefixes(values: Mapping[str, KnobValue]) -> list[str]:
    """What stands before the knobs of each member of a joint candidate (`compiler.joint`), else nothing."""
    return list(dict.fromkeys(knob[: knob.rfind(AFTER_MODEL) + 1] for knob in values))


def in_flight(load: Load) -> float:
    """What a load amounts to: inferences under way (closed), or inferences a second (open)."""
    amount = load.concurrency if isinstance(load, ClosedLoad) else load.rate
    return float(amount * load.mean_request_batch)


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
            np.array(services, np.float64).reshape(len(pairs), 1 + _TERMS * len(FILLS)),
            np.array(waits, np.float64),
        )


@dataclass(frozen=True, slots=True)
class Law:
    """How throughput follows from batch and instances.

    Attributes:
        part: what each inference adds to the cost of an execution, relative to its start.
        scaling: exponent with which throughput grows with busy instances.
        fill: what an execution holds as far as it can of what is in flight at an instance: all; or half, as
            what arrives during an execution waits for the next one; or but one request where no knob says
            that requests share executions.
        padded: whether a batch costs what one of the next power of two does, where every execution holds it.
    """

    part: float
    scaling: float
    fill: Fill = "whole"
    padded: bool = False


LAWS = tuple(
    Law(part, scaling, fill, padded)
    for padded in (False, True)
    for fill in FILLS
    for part in (0.25, 0.03, 1.0, 8.0)
    for scaling in (0.5, 0.0, 1.0)
)
"""Those that are considered, what is expected first at the front. Of equals the first is taken: what hopes
for more, as one run at a heavy load corrects that, and the other would never be found out."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """(candidate, load) pairs as numbers.

    Attributes:
        rows: one for each pair.
        amounts: logarithms of `in_flight`.
        services: for each pair its expected gain, then for each of `FILLS` the batch that an execution would
            hold, that padded and the instances that would be busy, all logarithms; see `expected_throughput`.
        waits: for each pair the seconds that a request spends waiting for a batch that cannot be filled, over
            what is in flight.
    """

    pairs: tuple[Pair, ...]
    rows: Floats
    amounts: Floats
    services: Floats
    waits: Floats

    def expected_throughput(self, law: Law, level: float = -math.inf) -> Floats:
        """Logarithms, but for a constant: an execution costs a start and a part for each inference.

        Args:
            law: how it follows from batch and instances.
            level: that constant, of inferences a second, by which it is known how much waiting adds to the
                time that a request takes; nothing unless given.
        """
        free = self._without_waiting(law)
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
        return float(np.median(-np.log(serving[says]) - self._without_waiting(law)[says]))

    def _without_waiting(self, law: Law) -> Floats:
        gain = self.services[:, 0]
        first = 1 + _TERMS * FILLS.index(law.fill)
        batch, padded, busy = self.services[:, first : first + _TERMS].T
        cost = np.log1p(law.part * np.exp(padded if law.padded else batch))
        return np.asarray(gain + batch - cost + law.scaling * busy)

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
    for of in _prefixes(candidate.values):
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
        weight = _IDLE_WEIGHT if _bare(knob) == "max_batch_size" else 1.0
        axis = [_Column(knob, low, high, weight=weight)] if high > low else []
        return [*axis, *(_Column(knob, category=value) for value in apart)]
    if set(map(type, values)) == {bool} and not is_partial:
        return [_Column(knob)]
    return [_Column(knob, category=value) for value in values]


def _logarithm(value: KnobValue) -> float:
    return math.log2(1 + max(0.0, float(value))) if isinstance(value, int | float) else 0.0


def _number(value: KnobValue | None, default: float) -> float:
    return max(1.0, float(value)) if isinstance(value, int | float) else default


def _expected_gain(values: Mapping[str, KnobValue]) -> float:
    gain = sum(EXPECTED_GAIN.get(_bare(knob), {}).get(value, 0.0) for knob, value in values.items())
    return gain / max(1, len(_prefixes(values)))


def _bare(knob: str) -> str:
    return knob.rpartition(AFTER_MODEL)[2]


@dataclass(frozen=True, slots=True)
class Service:
    """How a candidate serves, as far as its knobs say.

    Attributes:
        instances: executions that can run at once.
        batch: inferences that an execution can hold; infinite where no knob says.
        padded: that many where an engine runs the next power of two.
        enough: inferences with which a batch waits for no more: the smallest preferred size, or all it holds.
        delay_us: how long a batch that is not full waits for more.
        gain: of its categories, expected before anything is measured.
    """

    instances: float
    batch: float
    padded: float
    enough: float
    delay_us: float
    gain: float

    @classmethod
    def of(cls, candidate: Candidate, request_batch: float) -> Service:
        """From the knobs of a candidate.

        Requests under way in an ensemble are spread over all of its models. Models that only share the
        machine have loads of their own, of which nothing is known here.
        """
        values = behaviour(candidate, request_batch)
        gain = _expected_gain(values)
        if BETWEEN_MODELS in candidate.model:
            return cls(1.0, float(request_batch), _padded(request_batch), float(request_batch), 0.0, gain)
        of_each = _prefixes(values) or [""]
        counts = [_number(values.get(f"{of}instance_count"), 1.0) for of in of_each]
        batches = [_batch(values, of, request_batch) for of in of_each]
        enough = [_enough(values, of, batch) for of, batch in zip(of_each, batches, strict=True)]
        delays = [values.get(f"{of}max_queue_delay_microseconds") for of in of_each]
        return cls(
            instances=sum(counts),
            batch=float(np.average(batches, weights=counts)),
            padded=float(np.average([_padded(batch) for batch in batches], weights=counts)),
            enough=float(np.average(enough, weights=counts)),
            delay_us=sum(float(delay) for delay in delays if isinstance(delay, int | float)),
            gain=gain,
        )

    def formed(self, load: Load) -> float:
        """Inferences that an execution holds when those in flight spread over the instances."""
        if load.kind != "closed":
            return self._batch(load)
        return min(self.batch, max(load.mean_request_batch, in_flight(load) / self.instances))

    def wait_s(self, load: Load) -> float:
        """Seconds that a batch waits which the requests in flight cannot fill: as long as it may."""
        waits = load.kind == "closed" and in_flight(load) < self.enough < math.inf
        return self.delay_us / 1e6 if waits else 0.0

    def columns(self, load: Load) -> list[float]:
        """The columns of a load; see `Encoding.table`."""
        amount, batch = in_flight(load), self._batch(load)
        logs = (amount, amount / (self.instances * batch), load.mean_request_batch, self.formed(load))
        left = amount % batch / amount if load.kind == "closed" else 1.0
        waiting = left * math.log2(1 + self.delay_us) / _DELAY_RANGE
        return [*(math.log2(value) / _LOAD_RANGE for value in logs), waiting]

    def basis(self, load: Load) -> list[float]:
        """What `Table.expected_throughput` is made of, for one load."""
        if load.kind != "closed":
            return [math.log(in_flight(load)), *[0.0] * _TERMS * len(FILLS)]
        of_all = [
            (batch, self._padded(batch, load), min(self.instances, in_flight(load) / batch))
            for batch in (self._filled(fill, load) for fill in FILLS)
        ]
        return [self.gain, *(math.log(value) for each in of_all for value in each)]

    def _filled(self, fill: Fill, load: Load) -> float:
        """Inferences that an execution holds; where it may wait for more it is not for half of them only."""
        request, whole = load.mean_request_batch, self.formed(load)
        if fill == "alone":
            return whole if math.isfinite(self.batch) else request
        if fill == "whole" or self.delay_us:
            return whole
        return max(request, min(whole, in_flight(load) / self.instances / 2))

    def _padded(self, batch: float, load: Load) -> float:
        """A batch as an engine pads it: one that is such only on average is of all sizes, and is not."""
        if batch == self.batch:
            return self.padded
        return _padded(batch) if batch == load.mean_request_batch else batch

    def _batch(self, load: Load) -> float:
        """Inferences that an execution can hold; of one request where no knob says."""
        return self.batch if math.isfinite(self.batch) else load.mean_request_batch


def _padded(batch: float) -> float:
    """The next power of two."""
    return 2.0 ** math.ceil(math.log2(batch)) if math.isfinite(batch) else batch


def _batch(values: Mapping[str, KnobValue], of: str, request_batch: float) -> float:
    """Inferences that an execution of the model whose knobs begin with `of` can hold."""
    is_unknown = f"{of}effective_batch" not in values and values.get(f"{of}dynamic_batching") is not False
    return math.inf if is_unknown else _number(values.get(f"{of}effective_batch"), float(request_batch))


def _enough(values: Mapping[str, KnobValue], of: str, batch: float) -> float:
    """Inferences with which a batch of that model waits for no more."""
    preferred = values.get(f"{of}preferred_batch_size")
    return float(min(preferred)) if isinstance(preferred, tuple) and preferred else batch
