"""Tables by the laws that serving follows, as other people's GPUs might have made them, for the replay.

    python benchmarks/laws.py FOLDER [--noise 0.01]
    python benchmarks/search_replay.py --tables FOLDER

Nothing here was measured, and nothing of the product rests on it. A search that was made for the recorded
surfaces of one machine may know these too well; the tables made here differ from each other in what an
execution costs, how instances share a device, what a precision or an accelerator gains, and which knobs and
loads there are:

- `server-N`: precision, accelerator, instances, batches with and without a delay; one load is some clients.
- `formats-N`: formats of one model with few other knobs, in fine or coarse steps of load.
- `batches-N`: clients send batches themselves, so that a load is clients and their batch.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from surfaces import Surface, write_surface

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import ClosedLoad, Interval, Load, Measurement

Knobs = Mapping[str, KnobValue]

_OWN = 0.015  # what a candidate has of its own, as a standard deviation of a logarithm
_SHARPNESS = 8  # of the bend between too few clients and a busy device


@dataclass(frozen=True)
class Device:
    """A model on a device: times in seconds.

    Attributes:
        start: of an execution.
        part: that each inference adds.
        client: between an answer and a client's next request.
        shared: exponent by which executions at the same time slow each other down.
        fp16: what the precision gains.
        tensorrt: what the accelerator gains.
        tail: p99 over average.
    """

    start: float
    part: float
    client: float
    shared: float
    fp16: float
    tensorrt: float
    tail: float

    @classmethod
    def drawn(cls, rng: random.Random) -> Device:
        """One of many."""
        return cls(
            start=10 ** rng.uniform(-3.2, -2.0),
            part=10 ** rng.uniform(-4.3, -3.0),
            client=10 ** rng.uniform(-4.0, -3.2),
            shared=rng.uniform(0.1, 0.8),
            fp16=rng.uniform(1.1, 2.6),
            tensorrt=rng.uniform(1.05, 2.2),
            tail=rng.uniform(1.05, 1.6),
        )

    def serves(self, load: ClosedLoad, speed: float, instances: int, size: int, delay_s: float) -> float:
        """Inferences a second: what the clients can ask for, or what the device can do, whichever is less."""
        asked = load.concurrency * load.request_batch
        busy = min(instances, load.concurrency)
        batch = max(load.request_batch, min(size, asked // busy // load.request_batch * load.request_batch))
        execution = (self.start + self.part * batch) / speed
        waiting = delay_s / 2 if asked < size * busy else 0.0
        cycle = execution * busy**self.shared + waiting + self.client
        limits = (asked / cycle, batch / execution * busy ** (1 - self.shared))
        return float(sum(limit**-_SHARPNESS for limit in limits) ** (-1 / _SHARPNESS))


class Table:
    """A table while it is made.

    Args:
        name: of the table.
        rng: draws noise, and what candidates have of their own.
        noise: standard deviation of a logarithm of throughput; twice that of p99.
    """

    def __init__(self, name: str, device: Device, rng: random.Random, noise: float) -> None:
        self.name = name
        self._device = device
        self._rng = rng
        self._noise = noise
        self._outcomes: dict[tuple[Candidate, Load], Measurement] = {}

    def add(self, knobs: Knobs, loads: Sequence[ClosedLoad], speed: float, size: int, delay_s: float) -> None:
        """A candidate under all loads."""
        rng, candidate = self._rng, Candidate.of(self.name, "gpu", knobs)
        own, own_tail = rng.gauss(0, _OWN), rng.gauss(0, 2 * _OWN)
        instances = knobs["instance_count"]
        assert isinstance(instances, int)
        for load in loads:
            served = self._device.serves(load, speed, instances, size, delay_s)
            throughput = served * math.exp(own + rng.gauss(0, self._noise))
            average_ms = 1000 * load.concurrency * load.request_batch / throughput
            tail = max(1.02, self._device.tail * math.exp(own_tail + rng.gauss(0, 2 * self._noise)))
            over = {
                "avg": 1.0,
                "p50": 0.98,
                "p90": 1 + 0.6 * (tail - 1),
                "p95": 1 + 0.8 * (tail - 1),
                "p99": tail,
            }
            self._outcomes[candidate, load] = Measurement(
                load=load,
                requests=1000,
                duration_s=0.0,
                throughput=Interval(value=throughput),
                latency_ms={name: Interval(value=average_ms * share) for name, share in over.items()},
            )

    @property
    def surface(self) -> Surface:
        """What was added."""
        return Surface(self.name, self._outcomes, None)


def clients(counts: Sequence[int], request_batch: int = 1) -> list[ClosedLoad]:
    return [ClosedLoad(concurrency=count, request_batch=request_batch) for count in counts]


def servers(number: int, noise: float) -> Surface:
    rng = random.Random(f"server {number}")
    device = Device.drawn(rng)
    table = Table(f"server-{number}", device, rng, noise)
    accelerators = rng.choice([("cuda", "tensorrt"), ("none", "cuda", "tensorrt")])
    counts = rng.choice([(1, 2, 3, 4), (1, 2, 4, 8), (1, 2, 3)])
    sizes = rng.choice([(4, 8, 16, 32), (8, 32), (8, 16, 64, 128)])
    delays = rng.choice([(0, 1000), (0, 100, 500, 2000), (0,)])
    loads = clients(rng.choice([[2**step for step in range(9)], [1, 8, 16, 32, 64, 128, 256]]))
    gains = {"none": 0.7, "cuda": 1.0, "tensorrt": device.tensorrt}
    for precision, accelerator, count, size in itertools.product(
        ("fp32", "fp16"), accelerators, counts, sizes
    ):
        speed = gains[accelerator] * (device.fp16 if precision == "fp16" else 1.0)
        knobs: dict[str, KnobValue] = {
            "precision": precision,
            "accelerator": accelerator,
            "instance_count": count,
            "max_batch_size": size,
        }
        table.add({**knobs, "dynamic_batching": False}, loads, speed, 1, 0.0)
        for delay in delays:
            batching = {"dynamic_batching": True, "max_queue_delay_microseconds": delay}
            table.add({**knobs, **batching}, loads, speed, size, delay * 1e-6)
    return table.surface


def formats(number: int, noise: float) -> Surface:
    rng = random.Random(f"formats {number}")
    device = Device.drawn(rng)
    table = Table(f"formats-{number}", device, rng, noise)
    gains = {"onnxruntime": 1.0, "pytorch": math.exp(rng.gauss(-0.1, 0.3)), "tensorrt": device.tensorrt}
    loads = clients(rng.choice([[1, *range(16, 257, 16)], [2**step for step in range(9)]]))
    sizes = rng.choice([(16, 64), (8, 128)])
    for backend, precision, count, size in itertools.product(gains, ("fp32", "fp16"), (1, 2), sizes):
        speed = gains[backend] * (device.fp16 if precision == "fp16" else 1.0)
        knobs = {"backend": backend, "precision": precision, "instance_count": count, "max_batch_size": size}
        table.add(knobs, loads, speed, size, 1e-4)
    return table.surface


def batches(number: int, noise: float) -> Surface:
    rng = random.Random(f"batches {number}")
    device = Device.drawn(rng)
    table = Table(f"batches-{number}", device, rng, noise)
    gains = {"onnxruntime": 1.0, "tensorrt": device.tensorrt}
    loads = [load for size in (1, 2, 4, 8, 16, 32, 64) for load in clients([1, 2, 4, 8], size)]
    for backend, precision, count in itertools.product(gains, ("fp32", "fp16"), (1, 2, 4)):
        speed = gains[backend] * (device.fp16 if precision == "fp16" else 1.0)
        knobs = {"backend": backend, "precision": precision, "instance_count": count}
        table.add(knobs, loads, speed, 1, 0.0)
    return table.surface


def all_tables(noise: float) -> Iterator[Surface]:
    for number in range(3):
        yield servers(number, noise)
        yield formats(number, noise)
        yield batches(number, noise)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the tables; made if absent")
    parser.add_argument("--noise", type=float, default=0.01, help="in the tables themselves (default 0.01)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for surface in all_tables(arguments.noise):
        notes = ["made by: python benchmarks/laws.py, from formulas; nothing was measured"]
        write_surface(arguments.folder / f"{surface.name}.csv", surface, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
