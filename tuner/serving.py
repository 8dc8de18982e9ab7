"""How candidates serve, as far as is known before measuring: by their knobs, their load and laws. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import AFTER_MODEL, BETWEEN_MODELS
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import ClosedLoad, Load

Floats = npt.NDArray[np.float64]

Fill = Literal["whole", "half", "alone"]
"""What an execution holds; see `Law`."""

FILLS: tuple[Fill, ...] = get_args(Fill)
_TERMS = 3  # of a law for each of them: the batch, that padded, and the instances that are busy
BASIS_COLUMNS = 1 + _TERMS * len(FILLS)
"""Numbers of `Service.basis`."""

LOAD_COLUMNS = 5
"""Numbers of `Service.columns`."""

_DELAY_RANGE = 12.0  # doublings of a delay that are as far apart as the two ends of a range
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
    for of in prefixes(values):
        size = values.pop(f"{of}max_batch_size", None)
        if isinstance(size, int):
            batches = values.get(f"{of}dynamic_batching") is not False
            values[f"{of}effective_batch"] = max(size, request_batch) if batches else request_batch
    return values


def prefixes(values: Mapping[str, KnobValue]) -> list[str]:
    """What stands before the knobs of each member of a joint candidate (`compiler.joint`), else nothing."""
    return list(dict.fromkeys(knob[: knob.rfind(AFTER_MODEL) + 1] for knob in values))


def bare(knob: str) -> str:
    """A knob without the name of the member that it is of."""
    return knob.rpartition(AFTER_MODEL)[2]


def in_flight(load: Load) -> float:
    """What a load amounts to: inferences under way (closed), or inferences a second (open)."""
    amount = load.concurrency if isinstance(load, ClosedLoad) else load.rate
    return float(amount * load.mean_request_batch)


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

    def expected(self, bases: Floats) -> Floats:
        """Logarithms of throughput, but for a constant: an execution costs a start, and a part an inference.

        Args:
            bases: of `Service.basis`, a row each.
        """
        first = 1 + _TERMS * FILLS.index(self.fill)
        batch, padded, busy = bases[:, first : first + _TERMS].T
        cost = np.log1p(self.part * np.exp(padded if self.padded else batch))
        return np.asarray(bases[:, 0] + batch - cost + self.scaling * busy)


LAWS = tuple(
    Law(part, scaling, fill, padded)
    for padded in (False, True)
    for fill in FILLS
    for part in (0.25, 0.03, 1.0, 8.0)
    for scaling in (0.5, 0.0, 1.0)
)
"""Those that are considered, what is expected first at the front. Of equals the first is taken: what hopes
for more, as one run at a heavy load corrects that, and the other would never be found out."""


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
        of_each = prefixes(values) or [""]
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
        """What makes loads alike; see `Encoding.table`."""
        amount, batch = in_flight(load), self._batch(load)
        logs = (amount, amount / (self.instances * batch), load.mean_request_batch, self.formed(load))
        left = amount % batch / amount if load.kind == "closed" else 1.0
        waiting = left * math.log2(1 + self.delay_us) / _DELAY_RANGE
        return [*(math.log2(value) / _LOAD_RANGE for value in logs), waiting]

    def basis(self, load: Load) -> list[float]:
        """What laws say the throughput of under one load, logarithms.

        The expected gain, then for each of `FILLS` the batch that an execution would hold, that padded and
        the instances that would be busy.
        """
        if load.kind != "closed":
            return [math.log(in_flight(load)), *[0.0] * _TERMS * len(FILLS)]
        of_all = [
            (batch, self._padded(batch, load), min(self.instances, in_flight(load) / batch))
            for batch in (self._filled(fill, load) for fill in FILLS)
        ]
        return [self.gain, *(math.log(value) for each in of_all for value in each)]

    def _filled(self, fill: Fill, load: Load) -> float:
        """Inferences that an execution holds: all of them where it may wait until they are there."""
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


def _expected_gain(values: Mapping[str, KnobValue]) -> float:
    gain = sum(EXPECTED_GAIN.get(bare(knob), {}).get(value, 0.0) for knob, value in values.items())
    return gain / max(1, len(prefixes(values)))


def _number(value: KnobValue | None, default: float) -> float:
    return max(1.0, float(value)) if isinstance(value, int | float) else default
