"""Made-up tables of (candidate, load) pairs by the laws that serving follows, for testing the search."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import ClosedLoad, Failure, Interval, Load, Measurement, OpenLoad

Table = Mapping[tuple[Candidate, Load], Measurement | Failure]


def candidate(**knobs: KnobValue) -> Candidate:
    return Candidate.of("mlp", "gpu", knobs)


def candidates() -> list[Candidate]:
    """Precisions, accelerators, instances and batching: 96 candidates."""
    found = []
    for precision in ("fp32", "fp16"):
        for accelerator in ("none", "tensorrt"):
            for count in (1, 2, 3, 4):
                knobs = {"precision": precision, "accelerator": accelerator, "instance_count": count}
                found += [candidate(**knobs, max_batch_size=s, dynamic_batching=False) for s in (8, 32)]
                for size in (8, 32):
                    found += [
                        candidate(
                            **knobs,
                            max_batch_size=size,
                            dynamic_batching=True,
                            max_queue_delay_microseconds=delay,
                        )
                        for delay in (0, 1000)
                    ]
    return found


def measured(candidate: Candidate, load: Load) -> Measurement:
    """Instances share a device, a batch costs a start and a part for each request, loads saturate."""
    knobs = candidate.values
    speed = (1.7 if knobs["precision"] == "fp16" else 1.0) * (
        1.5 if knobs["accelerator"] == "tensorrt" else 1
    )
    batching, delay_s = knobs["dynamic_batching"], knobs.get("max_queue_delay_microseconds", 0) * 1e-6
    clients = load.concurrency if isinstance(load, ClosedLoad) else 64
    busy = min(knobs["instance_count"], clients)
    batch = min(knobs["max_batch_size"], clients / busy) if batching else 1.0
    rate = busy**0.4 * batch * speed / (0.004 + 0.0006 * batch)
    if batching and batch < knobs["max_batch_size"]:
        rate = 1 / (1 / rate + delay_s / clients)
    if isinstance(load, OpenLoad):
        idle_ms = 1000 * (0.0046 / speed + delay_s)
        use = load.rate / rate
        average_ms = idle_ms / (1 - use) if use < 1 else 1e4
        return measurement(load, min(load.rate, rate), average_ms, sustained=use < 1)
    return measurement(load, rate, 1000 * clients / rate)


def measurement(load: Load, rate: float, average_ms: float, *, sustained: bool = True) -> Measurement:
    latencies = {"avg": average_ms, "p50": average_ms, "p95": 1.3 * average_ms, "p99": 1.5 * average_ms}
    return Measurement(
        load=load,
        requests=1000,
        duration_s=1.0,
        throughput=Interval(value=rate),
        latency_ms={name: Interval(value=value) for name, value in latencies.items()},
        sustained=sustained,
        memory_bytes=math.ceil(1e9 + 1e6 * rate),
    )
