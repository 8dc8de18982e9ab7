"""The one way tritonc writes YAML, and a fast reader of exactly that.

A lock of 1,000 models on 2 targets has more than 100,000 lines: a YAML parser in Python needs many times
longer than a reader that knows the layout. That reader gives up on anything else, also on what a person's
hand left behind, and the caller then reads the text as YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tritonc.schemas.yaml_nodes import CONSTANTS, FLOAT, INTEGER, MAX_DEPTH, MAX_DIGITS

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./+-]*(?: [A-Za-z0-9_./+-]+)*")
_YAML_1_1_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Words that some reader of YAML takes for a boolean or nothing; compared in small letters."""
_FOREIGN = re.compile("[^\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""Characters that YAML forbids or takes for a line break."""
_LINE = re.compile(r'( *)(- )?(?:([A-Za-z_][A-Za-z0-9_./+-]*|"[^"\\]*"):(?: (.+))?|(".*"))')
_PAIR = re.compile(r"([a-z]+): ([^ ,{}\[\]]+)")
_INTERVAL = frozenset({"value", "low", "high"})
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


class _NotCanonicalError(Exception):
    """The text is laid out in another way than `canonical_yaml` writes."""


def canonical_yaml(data: Mapping[str, Any]) -> str:
    """YAML of plain data: one scalar a line; lists of numbers and intervals stand in brackets on one line.

    Args:
        data: None, bool, finite int and float, str, and mappings and sequences of these.
    """
    return "".join(f"{line}\n" for line in _mapping_lines(data, ""))


def parse_canonical_yaml(text: str) -> dict[str, Any] | None:
    """The data of a text that `canonical_yaml` wrote (below comment lines); None for any other text.

    Sequences become tuples. What is returned is what a YAML parser makes of the text.
    """
    if _FOREIGN.search(text) or not text.endswith("\n"):
        return None
    lines = text.split("\n")[:-1]
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    try:
        data, end = _read_block(list(map(_split_line, lines[start:])), 0, 0)
    except _NotCanonicalError:
        return None
    return data if isinstance(data, dict) and end == len(lines) - start else None


def _mapping_lines(data: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in data.items():
        name = key if _is_word(key) and " " not in key else _quoted(key)
        if isinstance(value, Mapping) and value and not value.keys() <= _INTERVAL:
            yield f"{indent}{name}:"
            yield from _mapping_lines(value, f"{indent}  ")
        elif _is_sequence(value) and value and not _is_numbers(value):
            yield f"{indent}{name}:"
            yield from _item_lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_in_line(value)}"


def _item_lines(items: Sequence[Any], indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, Mapping):
            first, *others = _mapping_lines(item, f"{indent}  ")
            yield f"{indent}- {first[len(indent) + 2 :]}"
            yield from others
        else:
            yield f"{indent}- {_quoted(item)}"


def _in_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_scalar(item)}' for key, item in value.items())}}}"
    if _is_sequence(value):
        return f"[{', '.join(map(_scalar, value))}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if _is_word(value) else _quoted(value)
    text = repr(value)
    # 1e-05 is text to readers of YAML 1.1, which want the point
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _quoted(text: str) -> str:
    inner = json.dumps(text.encode(errors="replace").decode(), ensure_ascii=False)
    return inner if inner.isprintable() else "".join(map(_escaped, inner))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_word(text: str) -> bool:
    return bool(_WORD.fullmatch(text)) and text.lower() not in _YAML_1_1_WORDS


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_numbers(values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


_Line = tuple[int, bool, str | None, Any]
"""Indent of the key, is it the first of a list's item, key (None: a text in a list), text of the value."""


def _split_line(line: str) -> _Line:
    match = _LINE.fullmatch(line)
    if not match:
        raise _NotCanonicalError
    spaces, dash, key, value, item = match.groups()
    if len(spaces) > 2 * MAX_DEPTH:
        raise _NotCanonicalError
    if item is not None:
        return len(spaces) + 2, dash is not None, None, item
    return len(spaces) + (2 if dash else 0), dash is not None, key.strip('"'), value


def _read_block(lines: list[_Line], i: int, indent: int) -> tuple[Any, int]:
    """The mapping or list whose keys or items have this indent, from line `i` on, and the line after it."""
    if i == len(lines) or lines[i][0] != indent:
        raise _NotCanonicalError
    if lines[i][1]:
        return _read_items(lines, i, indent)
    data: dict[str, Any] = {}
    while i < len(lines) and lines[i][0] == indent and not lines[i][1]:
        i = _read_entry(lines, i, data)
    return data, i


def _read_items(lines: list[_Line], i: int, indent: int) -> tuple[Any, int]:
    items: list[Any] = []
    while i < len(lines) and lines[i][0] == indent and lines[i][1]:
        if lines[i][2] is None:
            items.append(_read_quoted(lines[i][3]))
            i += 1
            continue
        item: dict[str, Any] = {}
        i = _read_entry(lines, i, item)
        while i < len(lines) and lines[i][0] == indent and not lines[i][1]:
            i = _read_entry(lines, i, item)
        items.append(item)
    return tuple(items), i


def _read_entry(lines: list[_Line], i: int, data: dict[str, Any]) -> int:
    indent, _, key, value = lines[i]
    if key is None or key in data or key.lower() in _YAML_1_1_WORDS:
        raise _NotCanonicalError
    if value is not None:
        data[key] = _read_value(value)
        return i + 1
    deeper = indent + 4 if i + 1 < len(lines) and lines[i + 1][1] else indent + 2
    data[key], end = _read_block(lines, i + 1, deeper)
    return end


def _read_value(text: str) -> Any:
    if text[0] == '"':
        return _read_quoted(text)
    if text[0] == "[" and text[-1] == "]":
        return tuple(map(_read_number, text[1:-1].split(", "))) if text != "[]" else ()
    if text[0] == "{" and text[-1] == "}":
        return _read_numbers(text)
    if text in CONSTANTS:
        return CONSTANTS[text]
    return text if _WORD.fullmatch(text) else _read_number(text)


def _read_numbers(text: str) -> dict[str, Any]:
    pairs = [_PAIR.fullmatch(pair) for pair in text[1:-1].split(", ")] if text != "{}" else []
    data = {pair[1]: _read_number(pair[2]) for pair in pairs if pair}
    if len(data) != len(pairs) or not data.keys() <= _INTERVAL:
        raise _NotCanonicalError
    return data


def _read_number(text: str) -> int | float:
    if INTEGER.fullmatch(text) and len(text) < MAX_DIGITS and text[:2] not in ("0x", "0o"):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    raise _NotCanonicalError


def _read_quoted(text: str) -> str:
    if _HALF_CHARACTER.search(text):
        raise _NotCanonicalError
    try:
        value = json.loads(text)
    except ValueError:
        raise _NotCanonicalError from None
    assert isinstance(value, str)
    return value
