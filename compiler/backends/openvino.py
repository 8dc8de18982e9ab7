"""The `openvino` backend: the parameters that its README documents (24.03) and its source reads.

What its source (src/openvino.cc) does that a reader of the README would not expect:

- Where max_batch_size is set, the model is compiled for that one batch size, and an execution with fewer
  requests is an error unless ENABLE_BATCH_PADDING is on. The padding of one execution is never taken back, so
  that a full batch after a padded one is answered with too few rows. Only full batches are safe: here
  max_batch_size has to be the workload's request_batch, and requests are not joined.
- HINT_BF16 takes YES alone: NO fails the load.
- All instances share one compiled model.
- A parameter that it does not know is ignored without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tritonc.compiler.backends.backend import Accelerator, facts_have
from tritonc.compiler.backends.onnxruntime import at_most_the_cores
from tritonc.compiler.knobs.dimension import Condition
from tritonc.compiler.knobs.domains import Domain, OneOf, Switch, Whole
from tritonc.compiler.knobs.facts import Facts
from tritonc.compiler.knobs.knob import Knob, Place, legal_value, where, wish, yes_or_absent
from tritonc.compiler.protobuf import ModelConfig
from tritonc.compiler.release import Release
from tritonc.compiler.signature import Signature
from tritonc.schemas.lock import KnobValue

NAME = "openvino"
MODEL_FILENAME = "model.onnx"
"""The backend looks for model.xml unless it is told; it reads ONNX files as well (its README)."""
PARAMETERS_SINCE = Release(24, 3)
"""The first release whose README documents these names (before: CPU_THREADS_NUM and others)."""
_UNSERVED = ("TYPE_STRING", "TYPE_BF16")


def _belongs(facts: Facts) -> str:
    return facts_have(facts, NAME)


def _parameter(name: str, doc: str, domain: Domain, absent: str, *wishes: KnobValue) -> Knob:
    return Knob(
        name,
        doc,
        absent,
        domain,
        place=Place.PARAMETER,
        since=PARAMETERS_SINCE,
        refuse=_belongs,
        refuse_value=at_most_the_cores if isinstance(domain, Whole) else legal_value,
        conditions=where(Condition("backend", (NAME,))),
        wish=wish(*wishes),
        text=yes_or_absent,
    )


_KNOBS = (
    _parameter(
        "PERFORMANCE_HINT",
        "Presets: LATENCY for few clients, THROUGHPUT for many.",
        OneOf(("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")),
        "LATENCY",
        "LATENCY",
    ),
    _parameter(
        "NUM_STREAMS", "Executions at a time: a number, AUTO or NUMA.", Whole(1, words=("AUTO", "NUMA")), "1"
    ),
    _parameter("INFERENCE_NUM_THREADS", "Threads of all inferences together.", Whole(1), "one per core"),
    _parameter("COMPILATION_NUM_THREADS", "Threads that compile the model.", Whole(1), "one per core"),
    _parameter("HINT_BF16", "Computes in bfloat16 where the CPU can.", Switch(), "no hint", False),
    _parameter("SKIP_OV_DYNAMIC_BATCHSIZE", "Forbids OpenVINO to batch by itself.", Switch(), "off", False),
    _parameter("RESHAPE_IO_LAYERS", "Compiles for the dims of config.pbtxt.", Switch(), "off", False),
)


class OpenVino:
    """See `Backend`."""

    name = NAME
    accelerators: Mapping[str, Accelerator] = MappingProxyType({"none": Accelerator("none", "KIND_CPU")})
    knobs = _KNOBS
    batches_requests = False
    shares_weights = True

    def refusal(self, signature: Signature, release: Release) -> str:  # noqa: ARG002  (the same in every release)
        """See `Backend.refusal`."""
        for tensor in (*signature.inputs, *signature.outputs):
            if tensor.dtype in _UNSERVED:
                return f'"{tensor.name}" is {tensor.dtype}, which it does not serve'
        for tensor in signature.inputs:
            if not tensor.dims and not signature.has_batch_axis:
                return f'input "{tensor.name}" is a scalar, which it does not serve'
        return ""

    def accelerator_refusal(self, accelerator: str, gpus: int, release: Release) -> str:  # noqa: ARG002
        """See `Backend.accelerator_refusal`."""
        return ""

    def render(self, config: ModelConfig, values: Mapping[str, KnobValue]) -> None:
        """See `Backend.render`."""
        config.default_model_filename = MODEL_FILENAME
        for knob in _KNOBS:
            text = knob.text(values[knob.name]) if knob.name in values else None
            if text is not None:
                config.parameters[knob.name].string_value = text


BACKEND = OpenVino()
