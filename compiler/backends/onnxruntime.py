"""The `onnxruntime` backend: every key of docs/onnxruntime_backend.md, in the place where it is read.

The backend ignores a misspelt top-level parameter without a word, and fails the load on an unknown TensorRT
one, so the names below are copied from its source and are the only ones that are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from tritonc.compiler.backends.backend import Accelerator, facts_have
from tritonc.compiler.knobs.dimension import Condition
from tritonc.compiler.knobs.domains import Domain, OneOf, Switch, Text, Whole
from tritonc.compiler.knobs.facts import Facts
from tritonc.compiler.knobs.knob import Chosen, Knob, Place, one_and_zero, where, wish
from tritonc.compiler.knobs.shared import powers_of_two
from tritonc.compiler.protobuf import ModelConfig
from tritonc.compiler.release import Release
from tritonc.compiler.signature import Signature
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.spec_fields import INT64_MAX

NAME = "onnxruntime"

_R21_06, _R21_09, _R21_10, _R21_12 = Release(21, 6), Release(21, 9), Release(21, 10), Release(21, 12)
_R22_04, _R24_01, _R24_04, _R24_06 = Release(22, 4), Release(24, 1), Release(24, 4), Release(24, 6)
_R25_02, _R26_02 = Release(25, 2), Release(26, 2)

SCALARS_SINCE = Release(23, 10)
"""Inputs without dimensions (onnxruntime_backend pull request 213, merged in September 2023)."""
BF16_TENSORS_SINCE = Release(26, 3)
TENSORRT_DEVICE_BUG, TENSORRT_DEVICE_REPAIR = Release(24, 2), Release(25, 4)
"""In between, an instance on another GPU than 0 is built on GPU 0 (trap 2)."""

_GPU = ("cuda", "tensorrt")
_PROFILE = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
"""Given all three or none."""
_OWN_THREADS = ("none", *_GPU)
_SWITCH, _BYTES = Switch(), Whole(1, INT64_MAX, size=True)
_FILE = Text(r"[^\x00-\x1f]+", "a name or a path")
_SHAPES = Text(r"[^,:]+:\d+(x\d+)*(,[^,:]+:\d+(x\d+)*)*", 'shapes such as "x:1x3x48x320", batch included')
_PRECISIONS = MappingProxyType({"fp32": None, "fp16": _R21_06, "int8": _R21_09, "bf16": _R26_02})


def _belongs(facts: Facts) -> str:
    return facts_have(facts, NAME)


def _needs(*accelerators: str) -> Callable[[Facts], str]:
    def refuse(facts: Facts) -> str:
        allowed = facts.allowed(NAME)
        if allowed is None:
            return facts_have(facts, NAME)
        if not set(accelerators) & set(allowed.accelerators):
            return (
                f"it acts only with accelerator {' or '.join(accelerators)}; target {facts.target} has "
                + ", ".join(allowed.accelerators)
            )
        return ""

    return refuse


def _with(*accelerators: str) -> Callable[[Facts], tuple[Condition, ...]]:
    return where(Condition("backend", (NAME,)), Condition("accelerator", accelerators))


def at_most_the_cores(facts: Facts, value: KnobValue) -> str:
    """Why a thread count is too large for a target; "" where it is not."""
    cores = facts.declared_cores
    if isinstance(value, int) and cores and value > cores:
        return f"{value} threads are more than the {cores} cores of target {facts.target}"
    return ""


def _threads(facts: Facts, _chosen: Chosen) -> Sequence[KnobValue]:
    return (0, *powers_of_two(1, facts.cores))


def _all_cores(facts: Facts, _point: Mapping[str, KnobValue]) -> tuple[KnobValue, ...]:
    return (0, facts.cores)


def _refuse_precision(facts: Facts, value: KnobValue) -> str:
    since = _PRECISIONS[str(value).lower()]
    if since and facts.release < since:
        return f"{value} needs Triton {since}; target {facts.target} is served by {facts.release}"
    return ""


def _precisions(facts: Facts, _chosen: Chosen) -> Sequence[KnobValue]:
    allowed = facts.allowed(NAME)
    return [precision.upper() for precision in allowed.precisions] if allowed else []


def _refuse_level(facts: Facts, value: KnobValue) -> str:
    # Before 24.01 the level 2 meant "everything on".
    if value == 2 and facts.release < _R24_01:
        return f"level 2 (off) needs Triton {_R24_01}; target {facts.target} is served by {facts.release}"
    return ""


def _no_zero(value: KnobValue) -> str | None:
    return str(value) if value else None


def _shown(value: KnobValue) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _unless(default: KnobValue) -> Callable[[KnobValue], str | None]:
    def text(value: KnobValue) -> str | None:
        return None if value == default else one_and_zero(value)

    return text


def _session(
    name: str, doc: str, domain: Domain, since: Release, default: KnobValue, absent: str = ""
) -> Knob:
    """A top-level parameter that acts on every session."""
    return Knob(
        name,
        doc,
        absent or _shown(default),
        domain,
        place=Place.PARAMETER,
        since=since,
        refuse=_belongs,
        conditions=where(Condition("backend", (NAME,))),
        wish=wish(default),
    )


def _cuda_provider(name: str, doc: str, domain: Domain, default: KnobValue, absent: str = "") -> Knob:
    """One of the four that act only as top-level parameters, whatever the accelerator says (trap 1)."""
    return Knob(
        name,
        doc,
        absent or _shown(default),
        domain,
        place=Place.PARAMETER,
        since=_R21_10,
        refuse=_needs(*_GPU),
        conditions=_with(*_GPU),
        wish=wish(default),
    )


def _cuda(name: str, doc: str, default: KnobValue, domain: Domain = _SWITCH) -> Knob:
    """A parameter of the `cuda` accelerator; written only where it is not ONNX Runtime 1.19's default."""
    return Knob(
        name,
        doc,
        _shown(default),
        domain,
        place=Place.GPU_ACCELERATOR,
        since=_R24_06,
        refuse=_needs("cuda"),
        conditions=_with("cuda"),
        wish=wish(default),
        text=_unless(default),
    )


def _tensorrt(
    name: str,
    doc: str,
    domain: Domain = _SWITCH,
    default: KnobValue = False,
    absent: str = "",
    since: Release = _R24_04,
) -> Knob:
    """A parameter of the `tensorrt` accelerator; `default` is the provider's own (ONNX Runtime 1.19)."""
    return Knob(
        name,
        doc,
        absent or _shown(default),
        domain,
        place=Place.GPU_ACCELERATOR,
        since=since,
        refuse=_needs("tensorrt"),
        conditions=_with("tensorrt"),
        wish=wish(default),
    )


_PRECISION = Knob(
    "precision_mode",
    "Precision of the TensorRT accelerator.",
    "FP32",
    OneOf(("FP32", "FP16", "INT8", "BF16")),
    place=Place.GPU_ACCELERATOR,
    since=_R21_06,
    refuse=_needs("tensorrt"),
    refuse_value=_refuse_precision,
    conditions=_with("tensorrt"),
    grid=_precisions,
    wish=wish("FP32"),
)
_THREADS = (
    Knob(
        "intra_op_thread_count",
        "Threads inside an operator, for each instance; 0: ONNX Runtime's own choice.",
        "one thread per physical core",
        Whole(0),
        place=Place.PARAMETER,
        since=_R21_10,
        # With the OpenVINO accelerator the operators run in OpenVINO's own threads.
        refuse=_needs(*_OWN_THREADS),
        refuse_value=at_most_the_cores,
        conditions=_with(*_OWN_THREADS),
        grid=_threads,
        grid_conditions=_with("none"),
        wish=_all_cores,
        text=_no_zero,
    ),
    Knob(
        "execution_mode",
        "0: operators one after the other, 1: in parallel.",
        "0",
        OneOf((0, 1)),
        place=Place.PARAMETER,
        since=_R21_12,
        refuse=_needs(*_OWN_THREADS),
        conditions=_with(*_OWN_THREADS),
        wish=wish(0),
    ),
    Knob(
        "inter_op_thread_count",
        "Operators at a time, with execution_mode 1; 0: ONNX Runtime's own choice.",
        "one thread per physical core",
        Whole(0),
        place=Place.PARAMETER,
        since=_R21_12,
        refuse=_needs(*_OWN_THREADS),
        refuse_value=at_most_the_cores,
        conditions=where(Condition("execution_mode", (1,))),
        wish=_all_cores,
        text=_no_zero,
    ),
)
_SESSIONS = (
    Knob(
        "graph_level",
        "optimization.graph.level: 0 everything, 1 extended (less than 0), -1 basic, 2 off.",
        "0",
        OneOf((0, 1, -1, 2)),
        refuse=_belongs,
        refuse_value=_refuse_level,
        conditions=where(Condition("backend", (NAME,))),
        wish=wish(0),
    ),
    _session("enable_mem_arena", "The CPU memory arena.", _SWITCH, _R22_04, True),
    _session("enable_mem_pattern", "Planning of memory by pattern.", _SWITCH, _R22_04, True),
    _session(
        "memory.enable_memory_arena_shrinkage",
        "Devices whose arena gives back unused memory after each run.",
        Text(r"(cpu|gpu):\d+(;(cpu|gpu):\d+)*", 'devices such as "cpu:0" or "cpu:0;gpu:0"'),
        _R22_04,
        "",
        "none",
    ),
    _session(
        "session.use_device_allocator_for_initializers", "Weights bypass the arena.", _SWITCH, _R25_02, False
    ),
)
_CUDA_PROVIDER = (
    _cuda_provider(
        "cudnn_conv_algo_search",
        "How cuDNN picks algorithms: 0 exhaustive, 1 heuristic, 2 default.",
        OneOf((0, 1, 2)),
        0,
    ),
    _cuda_provider("gpu_mem_limit", "Bytes that the CUDA arena may take.", _BYTES, 0, "no limit"),
    _cuda_provider(
        "arena_extend_strategy",
        "How the CUDA arena grows: 0 to the next power of two, 1 as requested.",
        OneOf((0, 1)),
        0,
    ),
    _cuda_provider("do_copy_in_default_stream", "Copies run in the default CUDA stream.", _SWITCH, True),
)
_CUDA = (
    _cuda("cudnn_conv_use_max_workspace", "cuDNN may take all the memory it wants.", True),
    _cuda("cudnn_conv1d_pad_to_nc1d", "Pads 1-D convolutions to [N, C, 1, D].", False),
    _cuda("enable_cuda_graph", "Runs through a CUDA graph.", False),
    _cuda("prefer_nhwc", "Convolutions in NHWC.", False),
    _cuda("use_tf32", "TF32 in matrix products and convolutions.", True),
    _cuda("use_ep_level_unified_stream", "One CUDA stream for the whole provider.", False),
    _cuda("tunable_op_enable", "Uses tunable operators.", False),
    _cuda("tunable_op_tuning_enable", "Tunes them at run time.", False),
    _cuda("tunable_op_max_tuning_duration_ms", "Longest tuning of one operator.", 0, Whole(0)),
    _cuda("enable_skip_layer_norm_strict_mode", "SkipLayerNorm in full precision.", False),
)
_TENSORRT = (
    _tensorrt("max_workspace_size_bytes", "Scratch memory of the builder.", _BYTES, 2**30, "1 GiB", _R21_06),
    _tensorrt("int8_calibration_table_name", "File of the calibration table.", _FILE, "", "none", _R21_09),
    _tensorrt("int8_use_native_calibration_table", "The table is TensorRT's own.", since=_R21_09),
    _tensorrt("trt_engine_cache_enable", "Keeps built engines.", since=_R21_09),
    _tensorrt(
        "trt_engine_cache_path", "Folder of built engines.", _FILE, "", "the working directory", _R21_09
    ),
    _tensorrt("trt_engine_cache_prefix", "How names of engine files begin.", _FILE, "", "none"),
    _tensorrt("trt_timing_cache_enable", "Keeps kernel timings."),
    _tensorrt("trt_timing_cache_path", "Folder of kernel timings.", _FILE, "", "the engine cache's"),
    _tensorrt("trt_force_timing_cache", "Takes timings of other devices too."),
    _tensorrt("trt_max_partition_iterations", "Attempts at partitioning.", Whole(1), 1000),
    _tensorrt("trt_min_subgraph_size", "Nodes that make a subgraph worth an engine.", Whole(1), 1),
    _tensorrt("trt_builder_optimization_level", "Effort of the builder, 0 to 5.", Whole(0, 5), 3),
    _tensorrt("trt_build_heuristics_enable", "Builds faster by heuristics."),
    _tensorrt("trt_sparsity_enable", "Uses sparse weights."),
    _tensorrt("trt_auxiliary_streams", "Streams beside the main one; -1: heuristic.", Whole(-1), -1),
    _tensorrt("trt_context_memory_sharing_enable", "Subgraphs share their memory."),
    _tensorrt("trt_layer_norm_fp32_fallback", "Layer norm stays in FP32."),
    _tensorrt("trt_cuda_graph_enable", "Runs through CUDA graphs."),
    _tensorrt("trt_force_sequential_engine_build", "Builds one engine after another."),
    _tensorrt("trt_dla_enable", "Uses the deep learning accelerator."),
    _tensorrt("trt_dla_core", "Which DLA core.", Whole(0), 0),
    _tensorrt(
        "trt_tactic_sources",
        "Libraries whose tactics are tried.",
        Text(r"[+-][A-Z_]+(,[+-][A-Z_]+)*", 'tactic sources such as "-CUDNN,+CUBLAS"'),
        "",
        "all",
    ),
    _tensorrt("trt_extra_plugin_lib_paths", "Plugin libraries.", _FILE, "", "none"),
    *(
        replace(_tensorrt(name, "Shapes to build for.", _SHAPES, "", "as first seen"), companions=_PROFILE)
        for name in _PROFILE
    ),
    _tensorrt("trt_dump_subgraphs", "Writes subgraphs to files."),
    _tensorrt("trt_detailed_build_log", "Logs the build in detail."),
    _tensorrt("trt_dump_ep_context_model", "Writes the EP context model."),
    _tensorrt("trt_ep_context_file_path", "Where the EP context model is written.", _FILE, "", "none"),
    _tensorrt("trt_ep_context_embed_mode", "0: a path, 1: the engine itself.", OneOf((0, 1)), 0),
)
_KNOBS = (_PRECISION, *_THREADS, *_SESSIONS, *_CUDA_PROVIDER, *_CUDA, *_TENSORRT)

_ACCELERATORS: Mapping[str, Accelerator] = MappingProxyType(
    {
        "none": Accelerator("none", "KIND_CPU"),
        "openvino": Accelerator("openvino", "KIND_CPU"),
        "cuda": Accelerator("cuda", "KIND_GPU"),
        "tensorrt": Accelerator("tensorrt", "KIND_GPU", _PRECISIONS),
    }
)


class OnnxRuntime:
    """See `Backend`."""

    name = NAME
    accelerators = _ACCELERATORS
    knobs = _KNOBS
    batches_requests = True
    shares_weights = False

    def refusal(self, signature: Signature, release: Release) -> str:
        """See `Backend.refusal`."""
        for tensor in (*signature.inputs, *signature.outputs):
            if tensor.dtype == "TYPE_BF16" and release < BF16_TENSORS_SINCE:
                return f'"{tensor.name}" is TYPE_BF16, which needs Triton {BF16_TENSORS_SINCE}'
        for tensor in signature.inputs:
            if not tensor.dims and not signature.has_batch_axis and release < SCALARS_SINCE:
                return f'input "{tensor.name}" is a scalar, which needs Triton {SCALARS_SINCE}'
        return ""

    def accelerator_refusal(self, accelerator: str, gpus: int, release: Release) -> str:
        """See `Backend.accelerator_refusal`."""
        broken = TENSORRT_DEVICE_BUG <= release < TENSORRT_DEVICE_REPAIR
        if accelerator == "tensorrt" and gpus > 1 and broken:
            return f"tensorrt builds for GPU 0 only before Triton {TENSORRT_DEVICE_REPAIR}"
        return ""

    def render(self, config: ModelConfig, values: Mapping[str, KnobValue]) -> None:
        """See `Backend.render`."""
        accelerator = str(values["accelerator"])
        written: dict[str, str] = {}
        for knob in _KNOBS:
            text = knob.text(values[knob.name]) if knob.name in values else None
            if text is None:
                continue
            if knob.place is Place.PARAMETER:
                config.parameters[knob.name].string_value = text
            elif knob.place is Place.GPU_ACCELERATOR:
                written[knob.name] = text
        if values.get("graph_level"):
            config.optimization.graph.level = values["graph_level"]
        if accelerator == "openvino":
            config.optimization.execution_accelerators.cpu_execution_accelerator.add(name=accelerator)
        elif accelerator == "tensorrt" or (accelerator == "cuda" and written):
            config.optimization.execution_accelerators.gpu_execution_accelerator.add(
                name=accelerator, parameters=written
            )


BACKEND = OnnxRuntime()
