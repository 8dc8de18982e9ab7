"""Triton's element types in numpy's words, and how the wire carries them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

INTEGERS = tuple(f"TYPE_{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
FLOATS = ("TYPE_FP16", "TYPE_BF16", "TYPE_FP32", "TYPE_FP64")

_NUMPY: dict[str, npt.DTypeLike] = {
    **{name: name[5:].lower() for name in INTEGERS},
    "TYPE_FP16": "float16",
    "TYPE_BF16": "float32",  # numpy has no bfloat16; tritonclient too holds it as FP32
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
    "TYPE_BOOL": "bool",
    "TYPE_STRING": "object",
}
_BF16_LARGEST = 3.3895313892515355e38  # 0x7f7f


def numpy_type(dtype: str) -> np.dtype[Any]:
    """The type that arrays of Triton's `dtype` have here."""
    return np.dtype(_NUMPY[dtype])


def wire_name(dtype: str) -> str:
    """The inference protocol's name of a type of config.pbtxt.

    >>> wire_name("TYPE_STRING"), wire_name("TYPE_FP32")
    ('BYTES', 'FP32')
    """
    return "BYTES" if dtype == "TYPE_STRING" else dtype.removeprefix("TYPE_")


def largest(dtype: str) -> tuple[float, float]:
    """The smallest and the largest value of a number type."""
    if dtype in INTEGERS:
        info = np.iinfo(numpy_type(dtype))
        return info.min, info.max
    if dtype == "TYPE_BF16":
        return -_BF16_LARGEST, _BF16_LARGEST
    limits = np.finfo(numpy_type(dtype))
    return float(limits.min), float(limits.max)


def encoded(array: npt.NDArray[Any], dtype: str) -> bytes:
    """The bytes of an array as the inference protocol sends them: little endian, row by row."""
    if dtype == "TYPE_STRING":
        texts = (bytes(text) for text in array.ravel())
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    if dtype == "TYPE_BF16":  # the upper half of the FP32
        return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def decoded(content: bytes, dtype: str) -> npt.NDArray[Any]:
    """The flat array that `encoded` made `content` of.

    Raises:
        ValueError: the content ends in the middle of an element.
    """
    if dtype == "TYPE_STRING":
        return _decoded_strings(content)
    if dtype == "TYPE_BF16":
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(content, numpy_type(dtype).newbyteorder("<")).astype(numpy_type(dtype))


def _decoded_strings(content: bytes) -> npt.NDArray[Any]:
    texts, offset = [], 0
    while offset < len(content):
        start = offset + 4
        offset = start + int.from_bytes(content[offset:start], "little")
        texts.append(content[start:offset])
        if offset > len(content):
            raise ValueError("a string is cut off")
    return np.array(texts, object)
