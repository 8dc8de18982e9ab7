"""Serialized ONNX without its weights, so that a model of gigabytes is parsed from kilobytes.

Protobuf copies every byte it parses; here the large fields of tensors are stepped over instead. The wire
format is https://protobuf.dev/programming-guides/encoding; the field numbers are those of onnx.proto.
"""

from __future__ import annotations

from typing import Literal

KEPT_BYTES = 1024
"""Larger tensors are weights. Shape inference reads values only of shapes, axes and scales, far smaller."""

Message = Literal["model", "graph", "node", "attribute", "sparse", "tensor", "function"]

_NESTED: dict[Message, dict[int, Message]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {},
}
_TENSOR_DATA = frozenset({4, 5, 6, 7, 9, 10, 11})
"""float_data, int32_data, string_data, int64_data, raw_data, double_data, uint64_data."""

_DEEPEST = 100
"""Messages inside messages; protobuf's own parsers stop there too."""

_VARINT_BYTES = 10
"""The longest number: 64 bits, 7 in each byte."""

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


def without_weights(content: memoryview, message: Message = "model", depth: int = 0) -> bytes:
    """The same message, where tensors with more than `KEPT_BYTES` of data have name, type and dims only.

    Raises:
        ValueError: these bytes are no protobuf message, or it is cut off.
    """
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} messages inside each other")
    kept = bytearray()
    position = 0
    while position < len(content):
        start = position
        key, position = _varint(content, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == _LENGTH_DELIMITED:
            size, body = _varint(content, position)
            position = body + size
            if size > KEPT_BYTES and position <= len(content):
                if message == "tensor" and field in _TENSOR_DATA:
                    continue
                if field in _NESTED[message]:
                    # Released at once: a view in a traceback would keep the file from being closed.
                    with content[body:position] as nested:
                        slim = without_weights(nested, _NESTED[message][field], depth + 1)
                    kept += _as_varint(key) + _as_varint(len(slim)) + slim
                    continue
        elif wire_type == _VARINT:
            _, position = _varint(content, position)
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if position > len(content):
            raise ValueError("cut off")
        kept += content[start:position]
    return bytes(kept)


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """The number at `position`, and where it ends."""
    value = shift = 0
    for byte in content[position : position + _VARINT_BYTES].tobytes():
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("cut off, or a number of more than 64 bits")


def _as_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
