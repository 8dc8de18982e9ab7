"""What the embedded engine's backends share: reading a configuration, and executing requests in batches.

Runs inside Triton's Python backend stub, copied beside `model.py`: only numpy and the standard library.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]
Run = Callable[[Arrays], Sequence[Any]]


class ConfigError(Exception):
    """A model configuration that this backend does not honour to the letter."""


@dataclass(frozen=True)
class Tensor:
    """An input or output as the configuration declares it, its `dims` with the batch axis (-1) if any."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """One model instance's configuration.

    Attributes:
        model_file: the file (or folder) to load.
        inputs: as the backend sees them: batch axis included, `reshape` applied.
        outputs: the same.
        parameters: the top-level `parameters`, as text.
        accelerators: `execution_accelerators`: (list, name, parameters) with list "cpu" or "gpu".
        graph_level: `optimization.graph.level`; None where absent.
        max_batch_size: 0 where the first axis of tensors is not the batch.
        instances: how many instances the model has in all.
        gpu: number of the GPU this instance runs on; None for a CPU instance.
        any_gpu: whether some instance of the model runs on a GPU.
        custom_operators: `op_library_filename`.
    """

    model_file: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]
    accelerators: tuple[tuple[str, str, Mapping[str, str]], ...]
    graph_level: int | None
    max_batch_size: int
    instances: int
    gpu: int | None
    any_gpu: bool
    custom_operators: tuple[str, ...]

    @property
    def batching(self) -> bool:
        """Whether the first axis of every tensor is the batch."""
        return self.max_batch_size > 0


def read_settings(
    args: Mapping[str, str], default_filename: str, known_parameters: Collection[str]
) -> Settings:
    """The settings in the arguments that Triton gives an instance.

    Raises:
        ConfigError: something in the configuration would have no effect here.
    """
    config = json.loads(args["model_config"])
    _refuse_unhonoured(config)
    parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
    for key in parameters:
        if key not in known_parameters:
            raise ConfigError(
                f'parameters: unknown key "{key}", which {config["backend"]} would ignore; '
                f"{_did_you_mean(key, known_parameters)}"
            )
    optimization = config.get("optimization", {})
    accelerators = optimization.get("execution_accelerators", {})
    level = optimization.get("graph", {}).get("level") if "graph" in optimization else None
    max_batch_size = int(config.get("max_batch_size", 0))
    groups = config.get("instance_group", [])
    is_gpu = args["model_instance_kind"] == "GPU"
    filename = config.get("default_model_filename") or default_filename
    return Settings(
        model_file=_file_in(Path(args["model_repository"], args["model_version"]), filename),
        inputs=_tensors(config.get("input", []), max_batch_size > 0),
        outputs=_tensors(config.get("output", []), max_batch_size > 0),
        parameters=parameters,
        accelerators=tuple(
            (kind, each["name"], each.get("parameters", {}))
            for kind in ("gpu", "cpu")
            for each in accelerators.get(f"{kind}_execution_accelerator", [])
        ),
        graph_level=None if level is None else int(level),
        max_batch_size=max_batch_size,
        instances=sum(max(1, int(group.get("count", 1))) for group in groups),
        gpu=int(args["model_instance_device_id"]) if is_gpu else None,
        any_gpu=is_gpu or any(group.get("kind") == "KIND_GPU" for group in groups),
        custom_operators=tuple(config.get("model_operations", {}).get("op_library_filename", [])),
    )


def _file_in(folder: Path, filename: str) -> Path:
    path = folder / filename
    if not path.exists():
        raise ConfigError(f"there is no {filename} in the model's version folder {folder.name}")
    return path


def _tensors(declared: Iterable[Mapping[str, Any]], batching: bool) -> tuple[Tensor, ...]:
    tensors = []
    for each in declared:
        if each["data_type"] == "TYPE_BF16":
            raise ConfigError(
                f"{each['name']}: TYPE_BF16 tensors are served by no official backend before release 26.03"
            )
        dims = each["reshape"]["shape"] if "reshape" in each else each["dims"]
        full = ([-1] if batching else []) + [int(dim) for dim in dims]
        tensors.append(Tensor(each["name"], each["data_type"], tuple(full)))
    return tuple(tensors)


def _refuse_unhonoured(config: Mapping[str, Any]) -> None:
    """Raises for every field that has an effect elsewhere and would have none here."""
    optimization = config.get("optimization", {})
    cuda = optimization.get("cuda", {})
    fields = {
        "optimization.priority": optimization.get("priority", "PRIORITY_DEFAULT")
        not in ("PRIORITY_DEFAULT", 0),
        "optimization.cuda": any(bool(value) for value in cuda.values()),
        "optimization.gather_kernel_buffer_threshold": optimization.get("gather_kernel_buffer_threshold", 0),
        "optimization.eager_batching": optimization.get("eager_batching", False),
        "batch_input": config.get("batch_input"),
        "batch_output": config.get("batch_output"),
        "model_transaction_policy.decoupled": config.get("model_transaction_policy", {}).get("decoupled"),
        "sequence_batching.state": config.get("sequence_batching", {}).get("state"),
    }
    groups = config.get("instance_group", [])
    if any(group.get("kind") == "KIND_GPU" for group in groups):
        # Tensors go to the instance through shared memory: on a CPU these two mean nothing, on a GPU they
        # would.
        for field in ("input_pinned_memory", "output_pinned_memory"):
            fields[f"optimization.{field}.enable: false"] = not optimization.get(field, {}).get(
                "enable", True
            )
        fields["cc_model_filenames"] = config.get("cc_model_filenames")
    for field in ("profile", "host_policy", "secondary_devices"):
        fields[f"instance_group.{field}"] = any(group.get(field) for group in groups)
    for each in config.get("input", []):
        fields[f"input {each['name']}: allow_ragged_batch"] = each.get("allow_ragged_batch")
        fields[f"input {each['name']}: is_shape_tensor"] = each.get("is_shape_tensor")
        fields[f"input {each['name']}: format"] = each.get("format", "FORMAT_NONE") != "FORMAT_NONE"
    for each in config.get("output", []):
        fields[f"output {each['name']}: is_shape_tensor"] = each.get("is_shape_tensor")
    if found := [name for name, is_set in fields.items() if is_set]:
        raise ConfigError(
            f"not honoured by the embedded engine's {config.get('backend')} backend: {', '.join(found)}; "
            "leave it out, or measure with the engine `local`"
        )


def _did_you_mean(word: str, known: Collection[str]) -> str:
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    listed = ", ".join(names)
    return f'did you mean "{near[0]}"? ({listed})' if near else f"one of: {listed}"


def boolean(key: str, text: str) -> bool:
    """A switch as the official backend reads it: true/on/1 or false/off/0, in any case.

    Raises:
        ConfigError: it is none of these.
    """
    values = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
    if text.lower() not in values:
        raise ConfigError(f'{key}: "{text}" should be 1 or 0')
    return values[text.lower()]


def integer(key: str, text: str) -> int:
    """A decimal number.

    Raises:
        ConfigError: it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f'{key}: "{text}" should be a whole number') from None


def one_of(key: str, text: str, choices: Mapping[str, str]) -> str:
    """What a choice stands for.

    Raises:
        ConfigError: there is no such choice.
    """
    if text not in choices:
        raise ConfigError(f'{key}: "{text}" should be one of: {", ".join(choices)}')
    return choices[text]


def check_tensors(
    what: str, declared: Sequence[Tensor], actual: Sequence[Tensor], optional: Collection[str] = ()
) -> None:
    """Returns if the configuration's tensors are those of the model file; -1 is an open dimension.

    Args:
        what: "input" or "output", for messages.
        declared: by the configuration.
        actual: those of the model file, -1 for an open dimension.
        optional: inputs of the file that a configuration may leave out.

    Raises:
        ConfigError: they differ.
    """
    by_name = {tensor.name: tensor for tensor in actual}
    names = {tensor.name for tensor in declared}
    for tensor in declared:
        if (found := by_name.get(tensor.name)) is None:
            raise ConfigError(
                f'the model has no {what} "{tensor.name}"; {_did_you_mean(tensor.name, by_name)}'
            )
        if tensor.dtype != found.dtype:
            raise ConfigError(f'{what} "{tensor.name}" is {found.dtype} in the model, not {tensor.dtype}')
        if found.dims == () and tensor.dims == (1,):
            continue  # how a configuration writes a scalar, for which Triton has no shape
        fits = len(tensor.dims) == len(found.dims) and all(
            real in (-1, dim) for real, dim in zip(found.dims, tensor.dims, strict=True)
        )
        if not fits:
            raise ConfigError(
                f'{what} "{tensor.name}" has the dims {list(found.dims)} in the model, which '
                f"{list(tensor.dims)} (batch axis included) does not fit"
            )
    if what == "input" and (missing := [n for n in by_name if n not in names and n not in optional]):
        raise ConfigError(f"inputs of the model are not in the configuration: {', '.join(missing)}")


class _Capsule:
    """What `numpy.from_dlpack` wants, made of the capsule that Triton gives."""

    __slots__ = ("_capsule",)

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: object) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU; Triton hands inputs over in the CPU's memory


# The stub of this release was built against numpy 1. With numpy 2 its `as_numpy()` gives wrong values and its
# `Tensor(name, array)` an empty tensor, both without a word; DLPack is right with both.
_NUMPY_1 = np.lib.NumpyVersion(np.__version__) < "2.0.0"
_USED = ctypes.create_string_buffer(b"used_dltensor")
_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_void_p]


def _array(tensor: Any) -> Any:
    """A numeric tensor as an array on its own memory, or on a copy where that is not aligned for its type."""
    array: Any = np.from_dlpack(_Capsule(tensor.to_dlpack()))
    return array if array.flags.aligned else array.copy()


def _text_array(tensor: Any) -> Any:
    """A TYPE_STRING tensor as an array of str, as the runtimes take strings."""
    array = tensor.as_numpy()
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in array.ravel()]
    return np.array(texts, dtype=np.object_).reshape(array.shape)


class Executor:
    """Executes the requests that Triton hands to one instance, those of equal shapes together."""

    def __init__(self, settings: Settings, run: Run, pb_utils: Any, *, joins_requests: bool = True) -> None:
        """An executor that calls `run` with inputs by name and takes outputs in the order of `settings`.

        Args:
            settings: of the instance.
            run: executes the model.
            pb_utils: Triton's module of that name.
            joins_requests: whether requests that come together are executed together.
        """
        self._run = run
        self._pb = pb_utils
        self._outputs = tuple(tensor.name for tensor in settings.outputs)
        self._text_inputs = frozenset(t.name for t in settings.inputs if t.dtype == "TYPE_STRING")
        self._text_outputs = frozenset(t.name for t in settings.outputs if t.dtype == "TYPE_STRING")
        if not _NUMPY_1 and (texts := self._text_inputs | self._text_outputs):
            raise ConfigError(
                f"{', '.join(sorted(texts))}: the embedded engine serves TYPE_STRING only where numpy is "
                f"older than 2 (it is {np.__version__}); install numpy<2, or measure with the engine `local`"
            )
        self._joins = settings.batching and joins_requests

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, in their order."""
        inputs = [self._inputs(request) for request in requests]
        if len(requests) == 1:
            return [self._alone(requests[0], inputs[0])]
        responses: list[Any] = [None] * len(requests)
        for group in self._groups(inputs):
            if len(group) == 1:
                responses[group[0]] = self._alone(requests[group[0]], inputs[group[0]])
                continue
            made = self._together([requests[i] for i in group], [inputs[i] for i in group])
            for index, response in zip(group, made, strict=True):
                responses[index] = response
        return responses

    def _inputs(self, request: Any) -> Arrays:
        if not self._text_inputs:
            return {tensor.name(): _array(tensor) for tensor in request.inputs()}
        return {
            (name := tensor.name()): _text_array(tensor) if name in self._text_inputs else _array(tensor)
            for tensor in request.inputs()
        }

    def _groups(self, inputs: Sequence[Arrays]) -> list[list[int]]:
        """Numbers of the requests that go together: same inputs, same shapes but for the batch."""
        if not self._joins:
            return [[index] for index in range(len(inputs))]
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, each in enumerate(inputs):
            key = tuple((name, array.shape[1:]) for name, array in each.items())
            groups.setdefault(key, []).append(index)
        return list(groups.values())

    def _alone(self, request: Any, inputs: Arrays) -> Any:
        try:
            outputs = self._run(inputs)
            return self._response(request, outputs)
        except Exception as err:  # noqa: BLE001 - whatever the runtime raises is this request's answer
            return self._error(err)

    def _together(self, requests: Sequence[Any], inputs: Sequence[Arrays]) -> list[Any]:
        try:
            batch = {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}
            outputs = self._run(batch)
            ends = np.cumsum([len(next(iter(each.values()))) for each in inputs])
            for name, output in zip(self._outputs, outputs, strict=True):
                if output.ndim == 0 or len(output) != ends[-1]:
                    raise ValueError(
                        f'output "{name}" has the shape {output.shape} for a batch of {ends[-1]}'
                    )
            starts = [0, *ends[:-1]]
            return [
                self._response(request, [output[start:end] for output in outputs])
                for request, start, end in zip(requests, starts, ends, strict=True)
            ]
        except Exception as err:  # noqa: BLE001 - whatever the runtime raises is these requests' answer
            return [self._error(err) for _ in requests]

    def _response(self, request: Any, outputs: Sequence[Any]) -> Any:
        wanted = request.requested_output_names() if len(self._outputs) > 1 else self._outputs
        tensors = [
            self._tensor(name, output)
            for name, output in zip(self._outputs, outputs, strict=True)
            if name in wanted
        ]
        return self._pb.InferenceResponse(tensors)

    def _tensor(self, name: str, array: Any) -> Any:
        if name in self._text_outputs:
            return self._pb.Tensor(name, array)
        capsule = array.__dlpack__()
        tensor = self._pb.Tensor.from_dlpack(name, capsule)
        # The stub marks the capsule as used by a name that numpy does not know, which numpy then complains
        # about.
        _set_capsule_name(capsule, ctypes.addressof(_USED))
        return tensor

    def _error(self, err: Exception) -> Any:
        return self._pb.InferenceResponse(error=self._pb.TritonError(f"{type(err).__name__}: {err}"))
