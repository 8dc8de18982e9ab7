"""Serves `backend: "openvino"` through Triton's Python backend, key by key as the official backend does.

The names and their meaning are those of the official backend's source (src/openvino.cc, 24.03 and newer).
What it ignores without a word fails the load here, and so does what it gets wrong.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import openvino as ov
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from tritonc.tuner.engines.backends import tritonc_serving as serving
else:
    import tritonc_serving as serving

_THREADS = ("INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS")
_SWITCHES = ("SKIP_OV_DYNAMIC_BATCHSIZE", "RESHAPE_IO_LAYERS")
_PARAMETERS = (*_THREADS, *_SWITCHES, "HINT_BF16", "NUM_STREAMS", "PERFORMANCE_HINT", "CPU_EXTENSION_PATH")
_PERFORMANCE_HINTS = ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")
_DTYPES = {
    "boolean": "TYPE_BOOL",
    "u8": "TYPE_UINT8",
    "u16": "TYPE_UINT16",
    "u32": "TYPE_UINT32",
    "u64": "TYPE_UINT64",
    "i8": "TYPE_INT8",
    "i16": "TYPE_INT16",
    "i32": "TYPE_INT32",
    "i64": "TYPE_INT64",
    "f16": "TYPE_FP16",
    "f32": "TYPE_FP32",
    "f64": "TYPE_FP64",
}


class TritonPythonModel:
    """One instance: one infer request, on a model compiled for its share of the streams and threads."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """The configuration as it is: what is served is what was written."""
        return auto_complete_model_config

    def initialize(self, args: Mapping[str, str]) -> None:
        """Compiles the model; Triton calls it once for each instance."""
        try:
            settings = serving.read_settings(args, "model.xml", _PARAMETERS)
            _refuse(settings)
            core = ov.Core()
            core.set_property("CPU", cpu_properties(settings.parameters))
            if extension := settings.parameters.get("CPU_EXTENSION_PATH"):
                core.add_extension(extension)
            model = _read_model(core, settings)
            compiled, slot = _compile(core, model, settings, args)
            run = _runner(settings, compiled.create_infer_request(), slot)
            self._executor = serving.Executor(settings, run, pb_utils, joins_requests=False)
        except serving.ConfigError as err:
            raise pb_utils.TritonModelException(str(err)) from err
        except RuntimeError as err:  # what OpenVINO raises
            last = str(err).strip().splitlines()[-1]  # the lines before it are places in OpenVINO's source
            raise pb_utils.TritonModelException(f"OpenVINO {ov.__version__}: {last}") from err

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request."""
        return self._executor.execute(requests)


def _refuse(settings: serving.Settings) -> None:
    """Raises for what the official backend would not do, or not do right."""
    if settings.any_gpu:
        raise serving.ConfigError("the openvino backend runs on the CPU only: instance_group needs KIND_CPU")
    if settings.accelerators:
        names = ", ".join(name for _, name, _ in settings.accelerators)
        raise serving.ConfigError(
            f"the openvino backend reads no execution_accelerators ({names}); leave them out"
        )
    if settings.graph_level is not None:
        raise serving.ConfigError("the openvino backend does not read optimization.graph.level; leave it out")
    if settings.custom_operators:
        raise serving.ConfigError(
            "the openvino backend does not read op_library_filename; use CPU_EXTENSION_PATH"
        )
    for tensor in settings.inputs:
        if not tensor.dims:
            raise serving.ConfigError(f'the openvino backend does not serve scalars: input "{tensor.name}"')


def cpu_properties(parameters: Mapping[str, str]) -> dict[str, Any]:
    """OpenVINO's properties for the device CPU; values are read in any case, as the official backend does.

    Raises:
        ConfigError: a value is none of those the official backend takes.
    """
    properties: dict[str, Any] = {}
    for key in _THREADS:
        if key in parameters:
            if (threads := serving.integer(key, parameters[key])) < 0:
                raise serving.ConfigError(f"{key}: {threads} should not be negative")
            properties[key] = threads
    for key in _SWITCHES:
        serving.one_of(key, parameters.get(key, "no").upper(), {"YES": "", "NO": ""})
    if "HINT_BF16" in parameters:
        serving.one_of("HINT_BF16", parameters["HINT_BF16"].upper(), {"YES": ""})
        properties["INFERENCE_PRECISION_HINT"] = "bf16"
    if "NUM_STREAMS" in parameters:
        streams = parameters["NUM_STREAMS"].upper()
        if streams not in ("AUTO", "NUMA"):
            serving.integer("NUM_STREAMS", streams)
        properties["NUM_STREAMS"] = streams
    if "PERFORMANCE_HINT" in parameters:
        hints = {hint: hint for hint in _PERFORMANCE_HINTS}
        properties["PERFORMANCE_HINT"] = serving.one_of(
            "PERFORMANCE_HINT", parameters["PERFORMANCE_HINT"].upper(), hints
        )
    return properties


def _is_on(settings: serving.Settings, switch: str) -> bool:
    return settings.parameters.get(switch, "no").upper() == "YES"


def _read_model(core: Any, settings: serving.Settings) -> Any:
    """The model with its batch set to max_batch_size, as the official backend sets it."""
    model = core.read_model(settings.model_file)
    actual = {name: node for node in model.inputs for name in node.get_names()}
    serving.check_tensors("output", settings.outputs, _tensors(model.outputs, settings.outputs))
    reshape = _is_on(settings, "RESHAPE_IO_LAYERS")
    declared = settings.inputs
    if not reshape:
        serving.check_tensors("input", declared, _tensors(model.inputs, declared))
    elif missing := [t.name for t in declared if t.name not in actual]:
        raise serving.ConfigError(f"the model has no input {', '.join(missing)}")
    if settings.max_batch_size or reshape:
        shapes = {}
        for tensor in declared:
            shape = list(tensor.dims) if reshape else _dims(actual[tensor.name])
            if settings.max_batch_size:
                shape[0] = settings.max_batch_size
            shapes[tensor.name] = ov.PartialShape(shape)
        model.reshape(shapes)
    return model


def _tensors(nodes: Sequence[Any], declared: Sequence[serving.Tensor]) -> list[serving.Tensor]:
    """The model's inputs or outputs, each under the name that the configuration uses where it has several."""
    names = {tensor.name for tensor in declared}
    tensors = []
    for node in nodes:
        name = next((name for name in node.get_names() if name in names), node.get_any_name())
        dtype = node.get_element_type().get_type_name()
        tensors.append(serving.Tensor(name, _DTYPES.get(dtype, dtype), tuple(_dims(node))))
    return tensors


def _dims(node: Any) -> list[int]:
    return [dim.get_length() if dim.is_static else -1 for dim in node.get_partial_shape()]


def _compile(
    core: Any, model: Any, settings: serving.Settings, args: Mapping[str, str]
) -> tuple[Any, IO[bytes] | None]:
    """The compiled model of one instance, and the lock it has to hold while it executes.

    The official backend's instances share one compiled model with its streams and threads. Ours are
    processes: where there are at least as many streams as instances, each gets one stream with a stream's
    share of the threads; where there are fewer, instances that would wait for one stream wait for one lock
    instead.
    """
    hint = {"ALLOW_AUTO_BATCHING": settings.batching and not _is_on(settings, "SKIP_OV_DYNAMIC_BATCHSIZE")}
    compiled = core.compile_model(model, "CPU", hint)
    instances = settings.instances
    if instances == 1:
        return compiled, None
    streams = max(1, int(compiled.get_property("NUM_STREAMS")))
    if streams >= instances:
        threads = max(1, int(compiled.get_property("INFERENCE_NUM_THREADS")) // streams)
        one = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        return core.compile_model(model, "CPU", {**hint, **one}), None
    index = int(args["model_instance_name"].rpartition("_")[2])
    # Named like the server's shared memory, it is removed with that.
    name = f"{os.environ['TRITONC_SERVER_ID']}-{Path(args['model_repository']).name}-{index % streams}.lock"
    return compiled, Path("/dev/shm", name).open("wb")  # noqa: S108 - the name is this server's alone


def _runner(settings: serving.Settings, request: Any, slot: IO[bytes] | None) -> serving.Run:
    names = [tensor.name for tensor in settings.outputs]
    batch = settings.max_batch_size

    def run(inputs: serving.Arrays) -> list[Any]:
        rows = len(next(iter(inputs.values()))) if batch else 0
        if rows != batch:
            raise ValueError(
                f"the openvino backend answers requests of batch {batch} (max_batch_size) only, not {rows}"
            )
        with _held(slot):
            # The next run overwrites shared outputs. It comes when the response has been written out: of
            # several requests in one execution none has the rows that a run needs.
            results = request.infer(inputs, share_inputs=True, share_outputs=True)
        return [results[name] for name in names]

    return run


@contextlib.contextmanager
def _held(slot: IO[bytes] | None) -> Iterator[None]:
    if slot is None:
        yield
        return
    fcntl.flock(slot, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(slot, fcntl.LOCK_UN)
