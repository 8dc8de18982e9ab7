"""What a model is asked while it is measured and verified, as arrays and as perf_analyzer reads it."""

from __future__ import annotations

import json
import math
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonc.compiler.models.source import path_of_source
from tritonc.compiler.project import Project, measuring_shapes
from tritonc.compiler.signature import OPEN, Tensor
from tritonc.schemas.errors import InputErrors, ModelFileError, SpecError
from tritonc.schemas.request_batch import sizes_of
from tritonc.schemas.spec import ConstantData, InputData, RandomData
from tritonc.tuner.input_file import InputFileError, read_samples
from tritonc.tuner.tensor_types import FLOATS, INTEGERS, encoded, largest, numpy_type

Array = npt.NDArray[Any]

_SAMPLES = 8
"""Different samples of each input, so that the rows of a batch differ."""
_SAMPLE_BYTES = 32 << 20
"""Samples of one input take no more memory than this; at least two are made."""
_LOAD_BYTES = 4 << 20
"""The load generator gets as many samples as fit, at least one: it parses the file anew for every window."""
_MESSAGE_BYTES = 2 << 30
"""What gRPC carries at once is smaller: protobuf counts the bytes of a message in 31 bits."""
_WORDS = ("apple", "river", "stone", "cloud")
_DEFAULT_RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(FLOATS, (0.0, 1.0)),
    # 0 and 1 are valid as token, segment and class numbers of every model, and as masks.
    **dict.fromkeys(INTEGERS, (0.0, 1.0)),
}


@dataclass(frozen=True, slots=True)
class InputSamples:
    """Values of one input.

    Attributes:
        tensor: as config.pbtxt declares it.
        samples: one sample for each index of the first axis; the others are the dims that are measured.
            BF16 is held as FP32, strings as bytes objects.
    """

    tensor: Tensor
    samples: Array

    @property
    def dims(self) -> tuple[int, ...]:
        """Of one sample: all dims, without the batch axis where the model has one."""
        return tuple(int(size) for size in self.samples.shape[1:])


@dataclass(frozen=True, slots=True)
class Inputs:
    """Values of all inputs of a model, the same for every candidate and in every run."""

    inputs: tuple[InputSamples, ...]
    has_batch_axis: bool

    def batch(self, size: int, start: int = 0) -> dict[str, Array]:
        """Arrays of one request: rows `start`, `start + 1`, … of the samples, over and over.

        Args:
            size: rows; without a batch axis only 1 is possible, and the arrays have full dims.
            start: the first row.
        """
        if not self.has_batch_axis:
            return {each.tensor.name: each.samples[start % len(each.samples)] for each in self.inputs}
        rows = np.arange(start, start + size)
        return {each.tensor.name: each.samples[rows % len(each.samples)] for each in self.inputs}

    def dtypes(self) -> dict[str, str]:
        """Triton's type of each input, for example "TYPE_FP32"."""
        return {each.tensor.name: each.tensor.dtype for each in self.inputs}

    def shape_arguments(self) -> list[str]:
        """perf_analyzer's `--shape` for every input with an open dimension."""
        arguments: list[str] = []
        for each in self.inputs:
            if OPEN in each.tensor.dims:
                arguments += ["--shape", f"{each.tensor.name}:{','.join(map(str, each.dims))}"]
        return arguments

    def write_load_file(self, path: Path) -> None:
        """Writes what perf_analyzer's `--input-data` reads: one step for each sample, used in turn.

        An odd number of them, the first one twice if need be: of an open load each of four threads sends
        every fourth step, and of an even number they would all send the same ones.
        """
        count = max(1, min(_SAMPLES, _LOAD_BYTES // max(1, self.sample_bytes)))
        count = min(count, max((len(each.samples) for each in self.inputs), default=1))
        data = [self.step(index) for index in range(count)]
        data += data[:1] if count % 2 == 0 else []
        path.write_text(json.dumps({"data": data}), encoding="utf-8")

    @property
    def sample_bytes(self) -> int:
        """Of one sample of all inputs."""
        return sum(each.samples[0].nbytes for each in self.inputs)

    def step(self, index: int) -> dict[str, Any]:
        """One sample of all inputs as perf_analyzer reads it."""
        return {each.tensor.name: _step(each, index) for each in self.inputs}

    def shape_text(self) -> str:
        """The dims of all inputs, for people."""
        return ", ".join(f"{each.tensor.name} {list(each.dims)}" for each in self.inputs)


def _step(each: InputSamples, index: int) -> dict[str, Any]:
    sample = each.samples[index % len(each.samples)]
    shape = list(each.dims)
    if each.tensor.dtype == "TYPE_STRING":
        try:
            return {"content": [bytes(text).decode() for text in sample.ravel()], "shape": shape}
        except UnicodeDecodeError:
            pass  # bytes that JSON cannot hold go as base64
    return {"b64": b64encode(encoded(sample, each.tensor.dtype)).decode(), "shape": shape}


def read_inputs(
    project: Project,
    model: str,
    *,
    seed: int = 0,
    allow_outside: bool = False,
    own: Mapping[str, tuple[int, ...]] | None = None,
) -> Inputs:
    """Values of the inputs of a model or an ensemble: those of `data` in the spec, else random ones.

    Without `data`, floats are uniform in [0, 1), integers 0 or 1, booleans either, strings short words.

    Args:
        project: with the model's signature.
        model: its name in the spec.
        seed: of the random values; the same seed gives the same values.
        allow_outside: whether data files may lie outside the project's folder.
        own: dims of some requests by input, which win over those of the model.

    Raises:
        InputErrors: every problem of `data` and `shapes` of this model.
    """
    shapes = measuring_shapes(project, model, own)
    signature = project.served_signature(model)
    declared = project.spec.asked_of(model).data
    if errors := list(_too_large(project, model, shapes)):
        raise InputErrors(errors)
    found: list[InputSamples] = []
    for tensor in signature.inputs:
        try:
            rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
            open_file = _opener(project, allow_outside)
            dims = shapes[tensor.name] or (1,)  # Triton has no empty dims: compiler.model_config
            samples = _samples(tensor, dims, declared.get(tensor.name), rng, open_file)
            found.append(InputSamples(tensor, samples))
        except _DataError as err:
            key_path = (*project.spec.keys_of(model), "data", tensor.name, *err.keys)
            errors.append(project.spec_file.error(key_path, err.what, err.hint))
    if errors:
        raise InputErrors(errors)
    return Inputs(tuple(found), signature.has_batch_axis)


def _too_large(project: Project, model: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[SpecError]:
    """Inputs of which a request holds more than can be sent, or made here."""
    workloads = project.spec.asked_of(model).workloads
    rows = max(sizes_of(workload.request_batch)[-1] for workload in workloads)
    for tensor in project.served_signature(model).inputs:
        element = np.zeros(1, numpy_type(tensor.dtype))
        size = rows * math.prod(shapes[tensor.name]) * len(encoded(element, tensor.dtype))
        if size >= _MESSAGE_BYTES:
            yield project.spec_file.error(
                (*project.spec.keys_of(model), "shapes", tensor.name),
                f"one request of {tensor.name} would have {size / 2**30:.3g} GiB, more than the 2 GiB "
                f"that gRPC can carry: {rows} x {list(shapes[tensor.name])} of {tensor.dtype}",
                "make shapes: smaller (in the model file where that fixes them), or request_batch",
            )


class _DataError(Exception):
    def __init__(self, what: str, hint: str = "", *keys: str) -> None:
        super().__init__(what)
        self.what, self.hint, self.keys = what, hint, keys


def _opener(project: Project, allow_outside: bool) -> Callable[[str], Path]:
    def path_of(file: str) -> Path:
        try:
            return path_of_source(file, project.folder.resolve(), allow_outside=allow_outside)
        except ModelFileError as err:
            raise _DataError(f"{file}: {err.what.removeprefix(f'{err.path}: ')}", err.hint, "file") from err

    return path_of


def _samples(
    tensor: Tensor,
    dims: tuple[int, ...],
    data: InputData | None,
    rng: np.random.Generator,
    path_of: Callable[[str], Path],
) -> Array:
    """Samples of one input, `dims` with an axis of samples before them."""
    sample_bytes = int(np.prod(dims, dtype=np.int64)) * 8
    count = max(2, min(_SAMPLES, _SAMPLE_BYTES // max(1, sample_bytes)))
    shape = (count, *dims)
    if data is None:
        return _random(tensor.dtype, _DEFAULT_RANGES.get(tensor.dtype), shape, rng)
    if isinstance(data, RandomData):
        return _random(tensor.dtype, _checked_range(tensor.dtype, data.range), shape, rng)
    if isinstance(data, ConstantData):
        return np.full((1, *dims), _checked_constant(tensor.dtype, data.constant), numpy_type(tensor.dtype))
    try:
        return read_samples(path_of(data.file), tensor, dims)
    except InputFileError as err:
        raise _DataError(f"{data.file}: {err.what}", err.hint, "file") from err


def _random(
    dtype: str, ends: tuple[float, float] | None, shape: tuple[int, ...], rng: np.random.Generator
) -> Array:
    if dtype == "TYPE_STRING":
        return np.array([word.encode() for word in _WORDS], object)[rng.integers(len(_WORDS), size=shape)]
    if ends is None:
        return rng.integers(2, size=shape).astype(bool)
    if dtype in INTEGERS:
        low, high = int(ends[0]), int(ends[1])
        return rng.integers(low, high, size=shape, dtype=np.dtype(dtype[5:].lower()), endpoint=True)
    return rng.uniform(*ends, size=shape).astype(numpy_type(dtype))


def _checked_range(dtype: str, ends: tuple[float, float]) -> tuple[float, float]:
    if dtype not in _DEFAULT_RANGES:
        raise _DataError(f"a {dtype} input has no range", "write constant: or file: instead", "range")
    low, high = ends
    if dtype in INTEGERS and not (float(low).is_integer() and float(high).is_integer()):
        raise _DataError(f"the range of a {dtype} input has whole numbers as ends", "", "range")
    for end in ends:
        _require_fits(dtype, end, "range")
    if not math.isfinite(high - low):
        raise _DataError(f"from {low:g} to {high:g} is wider than {dtype} goes", "halve both ends", "range")
    return ends


def _checked_constant(dtype: str, value: bool | int | float | str) -> Any:
    if dtype == "TYPE_STRING":
        return str(value).encode()
    kinds: tuple[type, ...] = (
        (bool,) if dtype == "TYPE_BOOL" else (int,) if dtype in INTEGERS else (int, float)
    )
    if not isinstance(value, kinds) or (isinstance(value, bool) and dtype != "TYPE_BOOL"):
        raise _DataError(f"{value!r} is no value of a {dtype} input", "", "constant")
    if not isinstance(value, bool):
        _require_fits(dtype, value, "constant")
    return value


def _require_fits(dtype: str, value: Any, key: str) -> None:
    low, high = largest(dtype)
    if not low <= value <= high:
        raise _DataError(f"{value:g} is outside of {dtype}, which goes from {low:g} to {high:g}", "", key)
