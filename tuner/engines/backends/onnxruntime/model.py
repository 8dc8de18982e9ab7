"""Serves `backend: "onnxruntime"` through Triton's Python backend, key by key as the official backend does.

The one difference is on purpose: what the official backend ignores without a word fails the load here.
Every mapping is in docs/onnxruntime_backend.md, section by section.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from tritonc.tuner.engines.backends import tritonc_serving as serving
else:
    import tritonc_serving as serving

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_OPENVINO = "OpenVINOExecutionProvider"
_PACKAGE_OF = {_CUDA: "onnxruntime-gpu", _TENSORRT: "onnxruntime-gpu", _OPENVINO: "onnxruntime-openvino"}

_CUDNN_SEARCH = {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"}
_ARENA_STRATEGY = {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"}
_CUDA_PARAMETERS = (
    "cudnn_conv_algo_search",
    "gpu_mem_limit",
    "arena_extend_strategy",
    "do_copy_in_default_stream",
)
_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_DEVICE_INITIALIZERS = "session.use_device_allocator_for_initializers"
_PARAMETERS = (
    *(
        "intra_op_thread_count",
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
    ),
    *(_SHRINKAGE, _DEVICE_INITIALIZERS, *_CUDA_PARAMETERS),
)
_GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}  # absent, 0 and every other number: everything on

# The `tensorrt` accelerator's keys that ONNX Runtime knows by the same name.
_TENSORRT_SAME = frozenset(
    {
        *("trt_engine_cache_enable", "trt_engine_cache_path", "trt_engine_cache_prefix"),
        *("trt_timing_cache_enable", "trt_timing_cache_path", "trt_force_timing_cache"),
        *("trt_max_partition_iterations", "trt_min_subgraph_size", "trt_builder_optimization_level"),
        *("trt_build_heuristics_enable", "trt_sparsity_enable", "trt_auxiliary_streams"),
        *("trt_context_memory_sharing_enable", "trt_layer_norm_fp32_fallback", "trt_cuda_graph_enable"),
        *("trt_force_sequential_engine_build", "trt_dla_enable", "trt_dla_core"),
        *("trt_tactic_sources", "trt_extra_plugin_lib_paths", "trt_profile_min_shapes"),
        *("trt_profile_opt_shapes", "trt_profile_max_shapes", "trt_dump_subgraphs"),
        *("trt_detailed_build_log", "trt_dump_ep_context_model", "trt_ep_context_file_path"),
        "trt_ep_context_embed_mode",
    }
)
_TENSORRT_RENAMED = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_TENSORRT_PRECISIONS = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
_DTYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
    "tensor(bfloat16)": "TYPE_BF16",
}


class TritonPythonModel:
    """One instance: one session."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """The configuration as it is: what is served is what was written."""
        return auto_complete_model_config

    def initialize(self, args: Mapping[str, str]) -> None:
        """Builds the session; Triton calls it once for each instance."""
        try:
            settings = serving.read_settings(args, "model.onnx", _PARAMETERS)
            session = _session(settings)
            _check_signature(settings, session)
            self._executor = serving.Executor(settings, _runner(settings, session), pb_utils)
        except serving.ConfigError as err:
            raise pb_utils.TritonModelException(str(err)) from err

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request."""
        return self._executor.execute(requests)


def _runner(settings: serving.Settings, session: Any) -> serving.Run:
    names = [tensor.name for tensor in settings.outputs]
    options = None
    if shrinkage := settings.parameters.get(_SHRINKAGE):
        options = ort.RunOptions()
        options.add_run_config_entry(_SHRINKAGE, shrinkage)
    scalars = [node.name for node in session.get_inputs() if node.shape == []]
    if not scalars and all(node.shape != [] for node in session.get_outputs()):
        return lambda inputs: session.run(names, inputs, options)

    def run(inputs: serving.Arrays) -> list[Any]:
        shaped = {name: array.reshape(()) if name in scalars else array for name, array in inputs.items()}
        return [array.reshape(array.shape or (1,)) for array in session.run(names, shaped, options)]

    return run


def _session(settings: serving.Settings) -> Any:
    """The session that the configuration asks for, with every provider it asks for really in it."""
    providers = _providers(settings)
    path = settings.model_file
    if path.is_dir():  # a large model with external data (section 6, trap 8)
        path = path / "model.onnx"
    available = ort.get_available_providers()
    for name, _ in providers:
        if name not in available:
            raise serving.ConfigError(_lacks(name))
    try:
        session = ort.InferenceSession(
            str(path), _session_options(settings), providers=providers, enable_fallback=0
        )
    except Exception as err:
        raise serving.ConfigError(f"ONNX Runtime {ort.__version__}: {err}") from err
    for name, _ in providers:
        if name not in session.get_providers():
            raise serving.ConfigError(f"{_lacks(name)} (it is there, but its libraries did not load)")
    return session


def _lacks(provider: str) -> str:
    return (
        f"the model asks for ONNX Runtime's {provider}, which ONNX Runtime {ort.__version__} as installed "
        f"cannot give; install {_PACKAGE_OF[provider]} in the place of that package"
    )


def _session_options(settings: serving.Settings) -> Any:
    parameters = settings.parameters
    options = ort.SessionOptions()
    options.graph_optimization_level = _GRAPH_LEVELS.get(
        settings.graph_level or 0, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    intra = serving.integer("intra_op_thread_count", parameters.get("intra_op_thread_count", "0"))
    if intra > 0:
        options.intra_op_num_threads = intra
    else:
        _use_allowed_cores(options)
    inter = serving.integer("inter_op_thread_count", parameters.get("inter_op_thread_count", "0"))
    if inter > 0:
        options.inter_op_num_threads = inter
    options.execution_mode = (
        ort.ExecutionMode.ORT_SEQUENTIAL,
        ort.ExecutionMode.ORT_PARALLEL,
    )[int(serving.one_of("execution_mode", parameters.get("execution_mode", "0"), {"0": "0", "1": "1"}))]
    if "enable_mem_arena" in parameters:
        options.enable_cpu_mem_arena = serving.boolean("enable_mem_arena", parameters["enable_mem_arena"])
    if "enable_mem_pattern" in parameters:
        options.enable_mem_pattern = serving.boolean("enable_mem_pattern", parameters["enable_mem_pattern"])
    if _DEVICE_INITIALIZERS in parameters:
        value = serving.one_of(_DEVICE_INITIALIZERS, parameters[_DEVICE_INITIALIZERS], {"0": "0", "1": "1"})
        options.add_session_config_entry(_DEVICE_INITIALIZERS, value)
    shrinkage = parameters.get(_SHRINKAGE, "")
    if shrinkage and not re.fullmatch(r"(cpu|gpu):\d+(;(cpu|gpu):\d+)*", shrinkage):
        raise serving.ConfigError(f'{_SHRINKAGE}: "{shrinkage}" should look like cpu:0 or cpu:0;gpu:0')
    for library in settings.custom_operators:
        options.register_custom_ops_library(str(settings.model_file.parent / library))
    return options


def _use_allowed_cores(options: Any) -> None:
    """ONNX Runtime's own default, one pinned thread a physical core, for the cores this process may use.

    Left to itself it counts the cores of the whole machine and pins its threads to those outside our
    affinity, too.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) == os.cpu_count():
        return
    cores: dict[str, list[int]] = {}
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.exists() else str(cpu), []).append(cpu)
    options.intra_op_num_threads = len(cores)
    if len(cores) > 1:  # the first core is the calling thread's, which is not pinned; numbers count from 1
        pinned = [",".join(str(cpu + 1) for cpu in cpus) for cpus in list(cores.values())[1:]]
        options.add_session_config_entry("session.intra_op_thread_affinities", ";".join(pinned))


def _providers(settings: serving.Settings) -> list[tuple[str, dict[str, str]]]:
    """Execution providers with their options, in the order the official backend appends them."""
    providers = []
    cuda: dict[str, str] = {}
    for kind, name, parameters in settings.accelerators:
        if kind == "gpu" and not settings.any_gpu:
            raise serving.ConfigError(
                f'gpu_execution_accelerator "{name}" has no effect without an instance_group of KIND_GPU'
            )
        if kind == "gpu" and settings.gpu is None:
            continue  # the model's GPU instances have it
        if (kind, name) == ("gpu", "tensorrt"):
            providers.append((_TENSORRT, {**tensorrt_options(parameters), "device_id": str(settings.gpu)}))
        elif (kind, name) == ("gpu", "cuda"):
            cuda = cuda_accelerator_options(parameters)
        elif (kind, name) == ("cpu", "openvino"):
            providers.append((_OPENVINO, openvino_options(parameters)))
        else:
            known = {"gpu": "cuda, tensorrt", "cpu": "openvino"}[kind]
            raise serving.ConfigError(f'{kind}_execution_accelerator: unknown "{name}" (known: {known})')
    if settings.gpu is not None:
        of_parameters = cuda_options(settings.parameters)
        # CUDA comes before the CPU's accelerators
        at = sum(1 for name, _ in providers if name == _TENSORRT)
        providers.insert(at, (_CUDA, {**cuda, **of_parameters, "device_id": str(settings.gpu)}))
    elif not settings.any_gpu and (found := [key for key in _CUDA_PARAMETERS if key in settings.parameters]):
        raise serving.ConfigError(
            f"parameters: {', '.join(found)} have no effect without an instance_group of KIND_GPU"
        )
    return [*providers, (_CPU, {})]


def cuda_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """CUDA provider options of the four top-level parameters, with the official defaults (trap 1)."""
    search = parameters.get("cudnn_conv_algo_search", "0")
    strategy = parameters.get("arena_extend_strategy", "0")
    copy = parameters.get("do_copy_in_default_stream", "1")
    options = {
        "cudnn_conv_algo_search": serving.one_of("cudnn_conv_algo_search", search, _CUDNN_SEARCH),
        "arena_extend_strategy": serving.one_of("arena_extend_strategy", strategy, _ARENA_STRATEGY),
        "do_copy_in_default_stream": str(int(serving.boolean("do_copy_in_default_stream", copy))),
    }
    if "gpu_mem_limit" in parameters:
        options["gpu_mem_limit"] = str(serving.integer("gpu_mem_limit", parameters["gpu_mem_limit"]))
    return options


def cuda_accelerator_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """CUDA provider options of the `cuda` accelerator, which go through as they are."""
    for key in parameters:
        if key in _CUDA_PARAMETERS:
            raise serving.ConfigError(
                f"cuda accelerator: {key} is overwritten by the top-level parameters; write it there"
            )
        if key in ("device_id", "has_user_compute_stream"):
            raise serving.ConfigError(f"cuda accelerator: {key} is overwritten by the backend; leave it out")
    return dict(parameters)


def tensorrt_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """TensorRT provider options of the `tensorrt` accelerator (section 3a)."""
    options: dict[str, str] = {}
    for key, value in parameters.items():
        if key == "precision_mode":
            if value not in _TENSORRT_PRECISIONS:
                choices = ", ".join(_TENSORRT_PRECISIONS)
                raise serving.ConfigError(f'tensorrt: precision_mode "{value}" should be one of: {choices}')
            options.update(_TENSORRT_PRECISIONS[value])
        elif key in _TENSORRT_RENAMED:
            options[_TENSORRT_RENAMED[key]] = value
        elif key in _TENSORRT_SAME:
            options[key] = value
        else:
            raise serving.ConfigError(f'tensorrt: unknown parameter "{key}"')
    return options


def openvino_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """OpenVINO provider options of the `openvino` accelerator, of which the official backend reads none."""
    if parameters:
        names = ", ".join(parameters)
        raise serving.ConfigError(f"openvino accelerator: {names} would be ignored: it reads none")
    return {"device_type": "CPU"}


def _check_signature(settings: serving.Settings, session: Any) -> None:
    """Returns if the configuration's tensors are the model's."""
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
    optional = {node.name for node in session.get_overridable_initializers()}
    serving.check_tensors("input", settings.inputs, [_tensor(node) for node in inputs], optional)
    serving.check_tensors("output", settings.outputs, [_tensor(node) for node in session.get_outputs()])


def _tensor(node: Any) -> serving.Tensor:
    dims = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    return serving.Tensor(node.name, _DTYPES.get(node.type, node.type), dims)
