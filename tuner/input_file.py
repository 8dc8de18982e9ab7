"""Samples of an input from a file: numpy's `.npz`, or the JSON of perf_analyzer's `--input-data`."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonc.compiler.signature import Tensor
from tritonc.tuner.tensor_types import INTEGERS, decoded, largest, numpy_type

Array = npt.NDArray[Any]


class InputFileError(Exception):
    """What is wrong with a file of samples, and what to do; the caller knows where the file is named."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def read_samples(path: Path, tensor: Tensor, dims: tuple[int, ...]) -> Array:
    """The samples of one input: an axis of samples, then `dims`.

    Args:
        path: `.npz`, read without pickle, with an array named like the input (or a single one) that is one
            sample or has an axis of samples before; any other name is read as perf_analyzer's JSON.
        tensor: the input.
        dims: of one sample.

    Raises:
        InputFileError: it cannot be read, or does not fit the input.
    """
    if not path.is_file():
        raise InputFileError("there is no such file", "the path is relative to the spec")
    samples = _from_npz(path, tensor) if path.suffix == ".npz" else _from_json(path, tensor, dims)
    if samples.shape == dims:
        samples = samples[np.newaxis]
    if samples.shape[1:] != dims or samples.ndim != len(dims) + 1 or len(samples) == 0:
        raise InputFileError(
            f'the array for "{tensor.name}" has shape {list(samples.shape)}',
            f"it should be {list(dims)}, or [samples, …] with one sample of that shape after another",
        )
    return samples


def _from_npz(path: Path, tensor: Tensor) -> Array:
    array = _array_in(path, tensor.name)
    wanted = numpy_type(tensor.dtype)
    if tensor.dtype == "TYPE_STRING" and array.dtype.kind in "US":
        texts = [text if isinstance(text, bytes) else _utf8(text, tensor) for text in array.ravel().tolist()]
        return np.array(texts, object).reshape(array.shape)
    if array.dtype != wanted:
        raise InputFileError(
            f'the array for "{tensor.name}" is {array.dtype}, but the input is {tensor.dtype}',
            f'convert it: array.astype("{wanted}")' if tensor.dtype != "TYPE_STRING" else "use dtype S or U",
        )
    return array


def _array_in(path: Path, wanted: str) -> Array:
    """The array of that name, or the only one."""
    hint = "write it with numpy.savez"
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise TypeError("it is a .npy file, as numpy.save writes it")
        with loaded as arrays:
            names = list(arrays.files)
            name = wanted if wanted in names else names[0] if len(names) == 1 else None
            found = None if name is None else arrays[name]
    except Exception as err:  # zipfile, its decompressors and numpy raise errors of a dozen types
        raise InputFileError(
            f"it is not a readable .npz file: {str(err) or type(err).__name__}", hint
        ) from err
    if name is None:
        raise InputFileError(f'it has no array "{wanted}"', f"it has {', '.join(sorted(names))}")
    if not isinstance(found, np.ndarray):
        raise InputFileError(f'"{name}" in it is no array', hint)
    return found


def _from_json(path: Path, tensor: Tensor, dims: tuple[int, ...]) -> Array:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as err:
        raise InputFileError(f"it is not JSON: {err}", "use .npz or perf_analyzer's JSON") from err
    steps = list(_steps(document))
    found = [_sample(step[tensor.name], tensor, dims) for step in steps if tensor.name in step]
    if not found:
        raise InputFileError(
            f'it has no data for "{tensor.name}"', 'perf_analyzer\'s JSON is {"data": [{"INPUT": [values]}]}'
        )
    return np.stack(found)


def _steps(document: object) -> Iterator[Mapping[str, Any]]:
    """Every step of every stream, in order."""
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list):
        raise InputFileError(
            'it has no list "data"', 'perf_analyzer\'s JSON is {"data": [{"INPUT": [values]}]}'
        )
    for entry in data:
        for step in entry if isinstance(entry, list) else [entry]:
            if not isinstance(step, dict):
                raise InputFileError('an entry of "data" is not an object with inputs by name')
            yield step


def _sample(value: Any, tensor: Tensor, dims: tuple[int, ...]) -> Array:
    flat = _flat(value, tensor)
    shape = value.get("shape", list(dims)) if isinstance(value, dict) else list(dims)
    expected = int(np.prod(dims, dtype=np.int64))
    if shape != list(dims) or flat.size != expected:
        raise InputFileError(
            f'a sample of "{tensor.name}" has shape {shape} and {flat.size} values',
            f"`shapes` says {list(dims)}: {expected} values",
        )
    return flat.reshape(dims)


def _flat(value: Any, tensor: Tensor) -> Array:
    if isinstance(value, dict) and isinstance(value.get("b64"), str):
        try:
            return decoded(b64decode(value["b64"], validate=True), tensor.dtype)
        except (binascii.Error, ValueError) as err:
            raise InputFileError(f'the b64 of "{tensor.name}" cannot be decoded: {err}') from err
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, list):
        raise InputFileError(f'"{tensor.name}" has neither a list of values nor "content" nor "b64"')
    if not all(_is_value(item, tensor.dtype) for item in content):
        raise InputFileError(f'a value for "{tensor.name}" is not of {tensor.dtype}')
    if tensor.dtype == "TYPE_STRING":
        return np.array([_utf8(text, tensor) for text in content], object)
    return np.array(content, numpy_type(tensor.dtype))


def _utf8(text: str, tensor: Tensor) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as err:
        what = f'a text for "{tensor.name}" has no UTF-8: {err.reason} at character {err.start + 1}'
        raise InputFileError(what, "write bytes that are no text as b64, or in an array of dtype S") from err


def _is_value(item: object, dtype: str) -> bool:
    if dtype == "TYPE_STRING":
        return isinstance(item, str)
    if dtype == "TYPE_BOOL":
        return isinstance(item, bool)
    if isinstance(item, bool) or not isinstance(item, int | float):
        return False
    low, high = largest(dtype)
    return low <= item <= high and (dtype not in INTEGERS or isinstance(item, int))
