"""The knobs that every backend shares: batching, instances, warm-up, pinned memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tritonc.compiler.knobs.dimension import Condition
from tritonc.compiler.knobs.domains import BatchSizes, OneOf, Switch, Text, Whole
from tritonc.compiler.knobs.facts import Facts
from tritonc.compiler.knobs.knob import Chosen, Knob, where, wish
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.spec_fields import INT64_MAX

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Instance counts worth trying: doubling, with one step between."""
GPU_COUNT_LIMIT = 8
DELAYS_US = (0, 100, 500, 2000, 5000)
WARMED = ("cuda", "tensorrt", "openvino")
"""Accelerators on which a batch size costs far more the first time it is seen (cuDNN's algorithm search,
TensorRT's engine build, OpenVINO's compilation for a shape): model_warmup, which alone reaches every
instance, is written unasked."""


def powers_of_two(first: int, last: int) -> tuple[int, ...]:
    """`first` doubled as long as it stays below `last`, then `last` itself.

    >>> powers_of_two(1, 12)
    (1, 2, 4, 8, 12)
    """
    values = []
    while first < last:
        values.append(first)
        first *= 2
    return (*values, last)


def _backends(facts: Facts, _chosen: Chosen) -> Sequence[KnobValue]:
    return [allowed.backend for allowed in facts.backends]


def _accelerators(facts: Facts, chosen: Chosen) -> Sequence[KnobValue]:
    return list(
        dict.fromkeys(
            accelerator
            for allowed in facts.backends
            if allowed.backend in chosen["backend"]
            for accelerator in allowed.accelerators
        )
    )


def _refuse_backend(facts: Facts, value: KnobValue) -> str:
    names = [allowed.backend for allowed in facts.backends]
    return (
        ""
        if value in names
        else f"target {facts.target} can serve model {facts.model} with {_listed(names)} only"
    )


def _refuse_accelerator(facts: Facts, value: KnobValue) -> str:
    names = list(facts.kinds)
    return "" if value in names else f"target {facts.target} allows {_listed(names)} only"


def _accelerator_conditions(facts: Facts, value: KnobValue, _named: bool) -> tuple[Condition, ...]:
    return (Condition("backend", facts.backends_with(str(value))),)


def _wished_accelerator(facts: Facts, _point: Mapping[str, KnobValue]) -> tuple[KnobValue, ...]:
    return ("cuda",) if facts.device == "gpu" else ("none",)


def _refuse_kind(facts: Facts, value: KnobValue) -> str:
    if value in facts.kinds.values():
        return ""
    return f"no accelerator of target {facts.target} runs as {value} ({_listed(list(facts.kinds))})"


def _count_limit(facts: Facts, accelerator: str) -> int:
    return GPU_COUNT_LIMIT if facts.kinds[accelerator] == "KIND_GPU" else max(facts.cores, 4)


def _counts(facts: Facts, chosen: Chosen) -> Sequence[KnobValue]:
    accelerators = [str(accelerator) for accelerator in chosen["accelerator"]]
    return [count for count in COUNTS if any(_count_is_legal(facts, a, count) for a in accelerators)]


def _count_is_legal(facts: Facts, accelerator: str, count: int) -> bool:
    return count <= _count_limit(facts, accelerator) and _fits(facts, accelerator, count)


def _fits(facts: Facts, accelerator: str, count: int) -> bool:
    most = facts.instances_that_fit(facts.kinds[accelerator])
    return most is None or count <= most


def _refuse_count(facts: Facts, value: KnobValue) -> str:
    assert isinstance(value, int)
    if any(_fits(facts, accelerator, value) for accelerator in facts.kinds):
        return ""
    most = max(facts.instances_that_fit(kind) or 0 for kind in facts.kinds.values())
    return (
        f"the weights of model {facts.model} ({facts.weights_bytes / 2**20:.0f} MiB) fit {most} times "
        f"into the memory of target {facts.target}, not more often"
    )


def _count_conditions(facts: Facts, value: KnobValue, named: bool) -> tuple[Condition, ...]:
    assert isinstance(value, int)
    legal = tuple(
        accelerator
        for accelerator in facts.kinds
        if (_fits(facts, accelerator, value) if named else _count_is_legal(facts, accelerator, value))
    )
    return (Condition("accelerator", legal),)


def _wished_count(facts: Facts, point: Mapping[str, KnobValue]) -> tuple[KnobValue, ...]:
    # What the core completes for a model without instance_group: docs/onnxruntime_backend.md, trap 10.
    return (1,) if facts.kinds[str(point["accelerator"])] == "KIND_GPU" else (2,)


def _batch_sizes(facts: Facts, _chosen: Chosen) -> Sequence[KnobValue]:
    return powers_of_two(facts.least_batch, facts.max_batch_size) if facts.max_batch_size else (0,)


def _refuse_batch_size(facts: Facts, value: KnobValue) -> str:
    assert isinstance(value, int)
    if value == 0 and facts.max_batch_size:
        return "serving without a batch axis is set, not searched: write max_batch_size: 0 at the model"
    if value > facts.max_batch_size:
        return f"{value} is above the model's max_batch_size of {facts.max_batch_size}"
    if value < facts.least_batch:
        whose = (
            "workload's request_batch"
            if facts.least_batch == facts.request_batch
            else "ensemble's max_batch_size"
        )
        return f"{value} is below the {whose} of {facts.least_batch}"
    if not any(allowed.batches_requests for allowed in facts.backends) and value != facts.request_batch:
        return (
            f"the {facts.backends[0].backend} backend answers full batches only, so it has to be "
            f"the workload's request_batch of {facts.request_batch}"
        )
    return ""


def _refuse_batching_at_all(facts: Facts) -> str:
    return "" if facts.max_batch_size else f"model {facts.model} is served without a batch axis"


def _batch_size_conditions(facts: Facts, value: KnobValue, _named: bool) -> tuple[Condition, ...]:
    if value in {0, facts.request_batch}:
        return ()
    return (Condition("backend", _batching_backends(facts)),)


def _batching_backends(facts: Facts) -> tuple[str, ...]:
    return tuple(allowed.backend for allowed in facts.backends if allowed.batches_requests)


def _wished_batch_size(facts: Facts, _point: Mapping[str, KnobValue]) -> tuple[KnobValue, ...]:
    return (facts.max_batch_size,)


def _refuse_batching(facts: Facts) -> str:
    if facts.own_scheduler:
        return f"model {facts.model} has a scheduler of its own ({facts.own_scheduler} in its config)"
    if facts.max_batch_size < 2:
        return f"model {facts.model} has max_batch_size {facts.max_batch_size}: there is nothing to batch"
    return ""


def _batching_conditions(facts: Facts) -> tuple[Condition, ...]:
    return (
        Condition("backend", _batching_backends(facts)),
        Condition("max_batch_size", range(2, facts.max_batch_size + 1)),
    )


def _delays(facts: Facts, _chosen: Chosen) -> Sequence[KnobValue]:
    slo = facts.latency_slo_ms
    return [delay for delay in DELAYS_US if slo is None or delay <= slo * 1000 / 2]


def _preferred(_facts: Facts, _chosen: Chosen) -> Sequence[KnobValue]:
    """Only "absent": Triton's core completes that to [max_batch_size], as server 2.51.0 shows."""
    return [()]


def _refuse_preferred(facts: Facts, value: KnobValue) -> str:
    assert isinstance(value, tuple)
    if value and value[-1] > facts.max_batch_size:
        return f"{value[-1]} is above the model's max_batch_size of {facts.max_batch_size}"
    return ""


def _preferred_conditions(facts: Facts, value: KnobValue, named: bool) -> tuple[Condition, ...]:
    assert isinstance(value, tuple)
    if not value:
        return ()
    largest = facts.max_batch_size if named else value[-1]
    return (Condition("max_batch_size", range(value[-1], largest + 1)),)


def _refuse_warmup(facts: Facts) -> str:
    if not facts.open_inputs:
        return ""
    return f"it needs the dims of {_listed(list(facts.open_inputs))}: give them in the model's shapes"


def _warmups(facts: Facts, _chosen: Chosen) -> Sequence[KnobValue]:
    return () if facts.open_inputs else (True,)


def _refuse_pinned(facts: Facts) -> str:
    return "" if "KIND_GPU" in facts.kinds.values() else f"target {facts.target} runs nothing on a GPU"


def _on_gpu(facts: Facts) -> tuple[Condition, ...]:
    return (Condition("accelerator", tuple(a for a, kind in facts.kinds.items() if kind == "KIND_GPU")),)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


_NAME = Text(r"[A-Za-z0-9_]+", "a name")
_BATCHING = where(Condition("dynamic_batching", (True,)))

BACKEND = Knob(
    "backend",
    "The Triton backend that runs the model.",
    "guessed from the file's name",
    _NAME,
    refuse_value=_refuse_backend,
    grid=_backends,
    required=True,
)
ACCELERATOR = Knob(
    "accelerator",
    "The execution accelerator, or none.",
    "none",
    _NAME,
    refuse_value=_refuse_accelerator,
    grid=_accelerators,
    choice_conditions=_accelerator_conditions,
    wish=_wished_accelerator,
    required=True,
)

SHARED: tuple[Knob, ...] = (
    BACKEND,
    ACCELERATOR,
    Knob(
        "instance_kind",
        "instance_group.kind: where instances run; it follows from the accelerator, and narrows it.",
        "KIND_GPU where the server has a GPU",
        OneOf(("KIND_CPU", "KIND_GPU")),
        refuse_value=_refuse_kind,
        derived=True,
    ),
    Knob(
        "instance_count",
        "instance_group.count: instances of the model (per GPU, on GPUs).",
        "2 on a CPU, 1 a GPU",
        Whole(1),
        refuse_value=_refuse_count,
        grid=_counts,
        choice_conditions=_count_conditions,
        wish=_wished_count,
        required=True,
    ),
    Knob(
        "max_batch_size",
        "The largest batch that an execution may have.",
        "0: no batch axis",
        Whole(0),
        refuse=_refuse_batching_at_all,
        refuse_value=_refuse_batch_size,
        grid=_batch_sizes,
        choice_conditions=_batch_size_conditions,
        wish=_wished_batch_size,
        required=True,
    ),
    Knob(
        "dynamic_batching",
        "Requests that wait are joined into one execution.",
        "off",
        Switch(),
        refuse=_refuse_batching,
        conditions=_batching_conditions,
        grid=lambda _facts, _chosen: (False, True),
        wish=wish(True),
    ),
    Knob(
        "max_queue_delay_microseconds",
        "dynamic_batching: how long a request may wait for others to join it.",
        "0",
        Whole(0, INT64_MAX, first=100),
        refuse=_refuse_batching,
        conditions=_BATCHING,
        grid=_delays,
        wish=wish(0),
    ),
    Knob(
        "preferred_batch_size",
        "dynamic_batching: batch sizes that are sent off at once when reached.",
        "the largest batch that can be formed",
        BatchSizes(),
        refuse=_refuse_batching,
        refuse_value=_refuse_preferred,
        conditions=_BATCHING,
        grid=_preferred,
        choice_conditions=_preferred_conditions,
        wish=wish(()),
    ),
    Knob(
        "model_warmup",
        "Runs each usual batch size once in every instance before the model is ready.",
        "no warm-up",
        Switch(),
        refuse=_refuse_warmup,
        grid=_warmups,
        grid_conditions=where(Condition("accelerator", WARMED)),
        wish=wish(True),
    ),
    Knob(
        "input_pinned_memory",
        "optimization.input_pinned_memory.enable: pinned host memory between inputs and the GPU.",
        "on",
        Switch(),
        refuse=_refuse_pinned,
        conditions=_on_gpu,
        wish=wish(True),
    ),
    Knob(
        "output_pinned_memory",
        "optimization.output_pinned_memory.enable: pinned host memory between the GPU and outputs.",
        "on",
        Switch(),
        refuse=_refuse_pinned,
        conditions=_on_gpu,
        wish=wish(True),
    ),
)
