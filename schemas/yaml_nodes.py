"""YAML events -> plain data with places: no recursion, nothing built from tags, limits on size and depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from tritonc.schemas.errors import InputErrors, Location, SpecError, found, shortened
from tritonc.schemas.problems import KeyPath

MAX_ALIASED_NODES = 500_000
"""Most values that aliases may add to those written out: 10,000 models that each merge 50 values."""
MAX_DEPTH = 64
"""Deepest nesting; a spec needs 7, a `config:` passed through to Triton about 10."""
MAX_DIGITS = 300
"""Longest whole number; Python itself refuses to convert more than 4,300 digits."""


_CORE_TAG = "tag:yaml.org,2002:"
CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Mark(Protocol):
    """A place as ruamel.yaml gives it: line and column count from 0."""

    @property
    def line(self) -> int:
        """Lines before it."""
        ...

    @property
    def column(self) -> int:
        """Characters before it in its line."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A Mark of our own."""

    line: int
    column: int


@dataclass(slots=True)
class Branch:
    """Where a mapping or sequence stands, with the places of what is in it."""

    mark: Mark
    keys: dict[str | int, Mark] = field(default_factory=dict)
    """Of a mapping: where each key stands."""
    values: dict[str | int, Mark | Branch] = field(default_factory=dict)


def location(path: Path, mark: Mark) -> Location:
    """A mark as messages show it."""
    return Location(str(path), mark.line + 1, mark.column + 1)


@dataclass(frozen=True, slots=True)
class _Anchored:
    data: Any
    place: Mark | Branch
    nodes: int
    height: int


@dataclass(slots=True)
class _Frame:
    """A mapping or sequence that is being read."""

    items: dict[str, Any] | list[Any]
    branch: Branch
    anchor: str | None
    nodes_before: int
    height: int = 1
    key: str | None = None
    key_mark: Mark | None = None
    expects_key: bool = True
    is_merge: bool = False
    merges: list[tuple[Mapping[str, Any], Branch]] = field(default_factory=list)


class Builder:
    """Turns a stream of parser events into data and places, with an explicit stack."""

    def __init__(self, path: Path, nouns: dict[str, str]) -> None:
        self.data: Any = None
        self.root: Mark | Branch | None = None
        self.problems: list[SpecError] = []
        self.last = (1, 1)
        self._path = path
        self._nouns = nouns
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Anchored | None] = {}
        self._nodes = 0
        self._aliased = 0
        self._documents = 0

    def take(self, event: Any) -> None:
        """Takes the parser's next event."""
        kind = type(event)
        if kind is ScalarEvent:
            self._nodes += 1
            self._scalar(event)
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            self._nodes += 1
            self._open(event, {} if kind is MappingStartEvent else [])
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            self._close()
        elif kind is AliasEvent:
            self._alias(event)
        elif kind is DocumentStartEvent:
            self._documents += 1
            if self._documents > 1:
                self._fail(
                    event.start_mark, "a second YAML document begins here", "keep one document in a file"
                )

    def _scalar(self, event: Any) -> None:
        mark = event.start_mark
        self.last = (mark.line + 1, mark.column + 1)
        frame = self._frames[-1] if self._frames else None
        is_key = frame is not None and frame.expects_key and type(frame.items) is dict
        if is_key and event.value == "<<" and event.implicit[0]:
            assert frame is not None
            frame.is_merge, frame.expects_key, frame.key_mark = True, False, mark
            return
        value = self._value(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, mark, 1, 0)
        if is_key:
            assert frame is not None
            self._key(frame, value, event.value, mark)
        else:
            self._put(value, mark)

    def _value(self, event: Any) -> Any:
        text: str = event.value
        tag: str | None = event.tag
        if event.style == '"' and _SURROGATE.search(text):
            self._fail(
                event.start_mark, "an escape stands for half a character", "write the character itself"
            )
        if tag is None or tag == "!":
            return self._resolve(text, event.start_mark) if event.implicit[0] and tag is None else text
        if tag == f"{_CORE_TAG}str":
            return text
        value = self._resolve(text, event.start_mark)
        types: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "null": type(None)}
        expected = types.get(tag.removeprefix(_CORE_TAG))
        if expected is None or not isinstance(value, expected):
            self._unknown_tag(event, tag)
        return float(value) if tag == f"{_CORE_TAG}float" else value

    def _resolve(self, text: str, mark: Mark) -> Any:
        """The value of a plain scalar by YAML 1.2's core schema."""
        if text in CONSTANTS:
            return CONSTANTS[text]
        if text[0] not in "+-.0123456789":
            return text
        if INTEGER.fullmatch(text):
            if len(text) > MAX_DIGITS:
                self._fail(mark, f"a number of {len(text)} digits", "quote it if it is text")
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        return float(text) if FLOAT.fullmatch(text) else text

    def _key(self, frame: _Frame, value: Any, text: str, mark: Mark) -> None:
        frame.expects_key = False
        frame.key_mark = mark
        frame.key = None
        path = self._key_path()
        shown = shortened(text)
        if not isinstance(value, str):
            what = f"the key {shown} is {found(value)}" if text else "a key is missing here"
            self._report(
                mark, (*path, text), what, f'quote it: "{shown}"' if text else "write one, then a colon"
            )
        if text in frame.items:
            noun = self._nouns.get(str(path[0]), "key") if len(path) == 1 else "key"
            line = frame.branch.keys[text].line + 1
            hint = f"the first is in line {line}: remove one"
            self._report(mark, (*path, text), f'duplicate {noun} "{shown}"', hint)
        elif isinstance(value, str) or text:
            frame.key = text
            frame.branch.keys[text] = mark

    def _open(self, event: Any, items: dict[str, Any] | list[Any]) -> None:
        if len(self._frames) >= MAX_DEPTH:
            self._fail(event.start_mark, f"nested more than {MAX_DEPTH} levels deep", "write it flatter")
        if event.tag not in (None, "!", f"{_CORE_TAG}{'map' if isinstance(items, dict) else 'seq'}"):
            self._unknown_tag(event, event.tag)
        self._refuse_complex_key(event.start_mark)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._frames.append(
            _Frame(items, Branch(event.start_mark), event.anchor, self._nodes + self._aliased - 1)
        )

    def _close(self) -> None:
        frame = self._frames.pop()
        data: Any = frame.items
        if isinstance(data, dict):
            for merged, branch in frame.merges:
                for key in merged.keys() - data.keys():
                    frame.branch.keys[key] = branch.keys[key]
                    frame.branch.values[key] = branch.values[key]
                data = {**merged, **data}
        else:
            data = tuple(data)
        if frame.anchor is not None:
            nodes = self._nodes + self._aliased - frame.nodes_before
            self._anchors[frame.anchor] = _Anchored(data, frame.branch, nodes, frame.height)
        if self._frames:
            self._frames[-1].height = max(self._frames[-1].height, frame.height + 1)
        self._put(data, frame.branch)

    def _alias(self, event: Any) -> None:
        mark = event.start_mark
        name = shortened(event.anchor)
        if event.anchor not in self._anchors:
            self._fail(mark, f"*{name} has no anchor", f"write &{name} before the first use")
        anchored = self._anchors[event.anchor]
        if anchored is None:
            self._fail(mark, f"*{name} is used inside of itself", "write the value out")
        self._refuse_complex_key(mark)
        self._aliased += anchored.nodes
        if self._aliased > MAX_ALIASED_NODES:
            self._fail(
                mark,
                f"aliases add up to more than {MAX_ALIASED_NODES:,} values",
                "write fewer or smaller ones",
            )
        if len(self._frames) + anchored.height > MAX_DEPTH:
            self._fail(mark, f"nested more than {MAX_DEPTH} levels deep", "write it flatter")
        if self._frames:
            self._frames[-1].height = max(self._frames[-1].height, anchored.height + 1)
        self._put(anchored.data, anchored.place)

    def _put(self, data: Any, place: Mark | Branch) -> None:
        if not self._frames:
            self.data, self.root = data, place
            return
        frame = self._frames[-1]
        if isinstance(frame.items, list):
            frame.branch.values[len(frame.items)] = place
            frame.items.append(data)
            return
        frame.expects_key = True
        if frame.is_merge:
            frame.is_merge = False
            self._merge(frame, data, place)
        elif frame.key is not None:
            frame.items[frame.key] = data
            frame.branch.values[frame.key] = place

    def _merge(self, frame: _Frame, data: Any, place: Mark | Branch) -> None:
        parts = [(data, place)]
        if isinstance(data, tuple) and isinstance(place, Branch):
            parts = [(part, place.values[i]) for i, part in enumerate(data)]
        for part, branch in parts:
            if not isinstance(part, dict) or not isinstance(branch, Branch):
                assert frame.key_mark is not None
                self._fail(frame.key_mark, f"<< merges {found(part)}", "it must be an alias of a mapping")
            frame.merges.append((part, branch))

    def _refuse_complex_key(self, mark: Mark) -> None:
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.expects_key and isinstance(frame.items, dict):
            self._fail(mark, "a key is a list, a mapping or an alias", "a key must be text")

    def _key_path(self) -> KeyPath:
        return tuple(
            len(frame.items) if isinstance(frame.items, list) else (frame.key or "")
            for frame in self._frames[:-1]
        )

    def _unknown_tag(self, event: Any, tag: str) -> NoReturn:
        shown = shortened(tag).replace(_CORE_TAG, "!!", 1)
        self._fail(
            event.start_mark,
            f"the tag {shown} is not allowed here",
            "remove it, and quote the value if it is text",
        )

    def _report(self, mark: Mark, key_path: KeyPath, what: str, hint: str) -> None:
        self.problems.append(SpecError(location(self._path, mark), key_path, what, hint))

    def _fail(self, mark: Mark, what: str, hint: str = "") -> NoReturn:
        error = SpecError(location(self._path, mark), (), what, hint)
        raise InputErrors((*self.problems, error))
