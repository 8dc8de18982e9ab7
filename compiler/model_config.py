"""A candidate as Triton's ModelConfig, so complete that auto-complete has nothing to add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritonc.compiler.backends import BACKENDS
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.ensemble import Ensemble
from tritonc.compiler.knobs.dimension import Point
from tritonc.compiler.knobs.shared import powers_of_two
from tritonc.compiler.passthrough import merge_passthrough
from tritonc.compiler.protobuf import ModelConfig, model_config_pb2
from tritonc.compiler.signature import OPEN, Signature, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tritonc.compiler.project import Project

_RANDOM = ("TYPE_FP16", "TYPE_BF16", "TYPE_FP32", "TYPE_FP64")
"""Types whose warm-up data is random; integers (which are often indices), booleans and strings are zeros."""


def render(project: Project, candidate: Candidate) -> ModelConfig:
    """The configuration that serves `candidate`, with what the spec passes through.

    Raises:
        InputErrors: `config` or `parameters` of the model is no ModelConfig, or contradicts what tritonc
        writes.
    """
    values = candidate.values
    backend = BACKENDS[str(values["backend"])]
    accelerator = backend.accelerators[str(values["accelerator"])]
    signature = project.served_signature(candidate.model)
    gpu = project.spec.targets[candidate.target].gpu
    config = ModelConfig(name=candidate.model, backend=backend.name, max_batch_size=values["max_batch_size"])
    for tensors, written in ((signature.inputs, config.input), (signature.outputs, config.output)):
        for tensor in tensors:
            _write_tensor(written.add(), tensor, signature.has_batch_axis)
    group = config.instance_group.add(
        count=values["instance_count"], kind=_enum("ModelInstanceGroup", accelerator.kind)
    )
    if accelerator.kind == "KIND_GPU":
        group.gpus.extend(range(gpu.count if gpu else 1))
    _write_batching(config, values)
    backend.render(config, values)
    for knob in ("input_pinned_memory", "output_pinned_memory"):
        if knob in values:
            getattr(config.optimization, knob).enable = values[knob]
    if values.get("model_warmup"):
        shapes = project.spec.models[candidate.model].shapes
        for batch_size in warmup_batch_sizes(values):
            _write_warmup(config, signature, shapes, batch_size)
    merge_passthrough(project.spec_file, candidate.model, config)
    return config


def render_ensemble(ensemble: Ensemble, called: Mapping[str, str]) -> ModelConfig:
    """The configuration that serves an ensemble; it has no knobs of its own.

    Args:
        ensemble: what to serve.
        called: the name that each of its models is served under.
    """
    config = ModelConfig(name=ensemble.name, platform="ensemble", max_batch_size=ensemble.max_batch_size)
    signature = ensemble.signature
    for tensors, written in ((signature.inputs, config.input), (signature.outputs, config.output)):
        for tensor in tensors:
            # Never reshaped: a scalar is [1] for Triton's ensembles (`ensemble._full_dims`).
            _write_tensor(written.add(), tensor, has_batch_axis=False)
    for step in ensemble.steps:
        written_step = config.ensemble_scheduling.step.add(model_name=called[step.model], model_version=-1)
        written_step.input_map.update(step.input_map)
        written_step.output_map.update(step.output_map)
    return config


def _enum(message: str, name: str) -> int:
    number: int = getattr(model_config_pb2, message).Kind.Value(name)
    return number


def _write_tensor(written: model_config_pb2.ModelInput, tensor: Tensor, has_batch_axis: bool) -> None:
    written.name = tensor.name
    written.data_type = model_config_pb2.DataType.Value(tensor.dtype)
    written.dims.extend(tensor.dims or (1,))
    if not tensor.dims and has_batch_axis:
        # Triton has no empty dims: one value for each element of the batch is [1] outside and [] inside
        # (docs/user_guide/model_configuration.md, "Reshape"). Without a batch axis the core refuses an empty
        # reshape, and the onnxruntime backend takes [1] for a scalar (its pull request 213).
        written.reshape.SetInParent()


def _write_batching(config: ModelConfig, values: Point) -> None:
    if not values.get("dynamic_batching"):
        return
    batching = config.dynamic_batching
    batching.SetInParent()
    batching.preferred_batch_size.extend(values.get("preferred_batch_size", ()))
    batching.max_queue_delay_microseconds = values.get("max_queue_delay_microseconds", 0)


def warmup_batch_sizes(values: Point) -> tuple[int, ...]:
    """The batch sizes that warm a candidate up: 1, powers of two, preferred ones and the largest.

    >>> warmup_batch_sizes({"max_batch_size": 12, "preferred_batch_size": (6,)})
    (1, 2, 4, 6, 8, 12)
    """
    largest, preferred = values["max_batch_size"], values.get("preferred_batch_size", ())
    assert isinstance(largest, int)
    assert isinstance(preferred, tuple)
    return tuple(sorted({*powers_of_two(1, max(largest, 1)), *preferred}))


def _write_warmup(
    config: ModelConfig, signature: Signature, shapes: Mapping[str, tuple[int, ...]], batch_size: int
) -> None:
    sample = config.model_warmup.add(name=f"batch_{batch_size}", batch_size=batch_size)
    for tensor in signature.inputs:
        dims = shapes.get(tensor.name, tensor.dims) or (1,)
        assert OPEN not in dims
        data = sample.inputs[tensor.name]
        data.data_type = model_config_pb2.DataType.Value(tensor.dtype)
        data.dims.extend(dims)
        if tensor.dtype in _RANDOM:
            data.random_data = True
        else:
            data.zero_data = True
