"""ModelConfig to canonical text and back.

Protobuf's own printer promises no stable output and drops `max_batch_size: 0`, to which Triton gives a
meaning. This one has one field a line (a list of numbers is one line), the order below, maps sorted by key,
and prints what is set.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from tritonc.compiler.protobuf import ModelConfig

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

_FIRST = (
    "name",
    "platform",
    "backend",
    "runtime",
    "max_batch_size",
    "input",
    "output",
    "instance_group",
    "dynamic_batching",
    "optimization",
    "parameters",
)
"""The first fields of a ModelConfig; the others, and those of other messages, come as the .proto has them."""
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def print_pbtxt(config: ModelConfig, header: Sequence[str] = ()) -> str:
    """The text of config.pbtxt, which reads back to an equal message.

    Args:
        config: what to print.
        header: lines that come before it, each as a comment.
    """
    lines = [f"# {line}".rstrip() for part in header for line in part.split("\n")]
    if lines:
        lines.append("")
    lines.extend(_message(config, ""))
    return "\n".join(lines) + "\n"


def parse_pbtxt(text: str) -> ModelConfig:
    """The message that a config.pbtxt holds.

    Raises:
        ValueError: it is no ModelConfig in protobuf's text format; the message says where.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as err:
        raise ValueError(str(err)) from err


def _message(message: Any, indent: str) -> Iterator[str]:
    is_set = {field.name: value for field, value in message.ListFields()}
    for field in _fields(message.DESCRIPTOR):
        if field.name in is_set:
            yield from _field(field, is_set[field.name], indent)
        elif field.name == "max_batch_size":
            yield f"{indent}{field.name}: 0"


@cache
def _fields(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    fields = list(descriptor.fields)
    if descriptor.full_name != ModelConfig.DESCRIPTOR.full_name:
        return tuple(fields)
    by_name = {field.name: field for field in fields}
    return (*(by_name[name] for name in _FIRST), *(f for f in fields if f.name not in _FIRST))


def _field(field: FieldDescriptor, value: Any, indent: str) -> Iterator[str]:
    if field.message_type and field.message_type.GetOptions().map_entry:
        yield from _map(field, field.message_type, value, indent)
    elif field.message_type:
        for one in value if field.is_repeated else (value,):
            yield from _block(field.name, _message(one, indent + "  "), indent)
    elif not field.is_repeated:
        yield f"{indent}{field.name}: {_scalar(field, value)}"
    elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        for one in value:
            yield f"{indent}{field.name}: {_scalar(field, one)}"
    else:
        yield f"{indent}{field.name}: [ {', '.join(_scalar(field, one) for one in value)} ]"


def _map(field: FieldDescriptor, entry_type: Descriptor, value: Any, indent: str) -> Iterator[str]:
    key_field, value_field = entry_type.fields_by_name["key"], entry_type.fields_by_name["value"]
    inner = indent + "  "
    for key in sorted(value):
        entry = [f"{inner}key: {_scalar(key_field, key)}"]
        if value_field.message_type:
            entry.extend(_block("value", _message(value[key], inner + "  "), inner))
        else:
            entry.append(f"{inner}value: {_scalar(value_field, value[key])}")
        yield from _block(field.name, iter(entry), indent)


def _block(name: str, content: Iterator[str], indent: str) -> Iterator[str]:
    lines = list(content)
    if not lines:
        yield f"{indent}{name} {{ }}"
        return
    yield f"{indent}{name} {{"
    yield from lines
    yield f"{indent}}}"


def _scalar(field: FieldDescriptor, value: Any) -> str:
    if field.type == field.TYPE_STRING:
        return _quoted(value)
    if field.type == field.TYPE_BYTES:
        return (
            '"'
            + "".join(_ESCAPES.get(chr(b), chr(b) if 32 <= b < 127 else f"\\{b:03o}") for b in value)
            + '"'
        )
    if field.type == field.TYPE_BOOL:
        return "true" if value else "false"
    if field.enum_type:
        named = field.enum_type.values_by_number.get(value)
        return named.name if named else str(value)
    if field.type == field.TYPE_FLOAT:
        return _shortest(value)
    return repr(value)


def _quoted(text: str) -> str:
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    characters = (
        _ESCAPES.get(c) or (c if c.isprintable() else "".join(f"\\{b:03o}" for b in c.encode())) for c in text
    )
    return f'"{"".join(characters)}"'


def _shortest(value: float) -> str:
    """The fewest digits that make the same 32-bit float: nine always do."""
    if not math.isfinite(value):
        return repr(value)
    return next(
        text
        for text in (f"{value:.{digits}g}" for digits in range(6, 10))
        if struct.unpack("f", struct.pack("f", float(text)))[0] == value
    )
