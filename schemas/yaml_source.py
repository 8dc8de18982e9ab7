"""A YAML file: its plain data, and where in the file each part of it stands.

The events of ruamel.yaml's parser are consumed as they come, so that reading a file runs no code of the file
and stops at the first token past a limit. Scalars follow YAML 1.2's core schema; a date is text.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from tritonc.schemas.errors import InputErrors, Location, SpecError, TritoncError, shortened
from tritonc.schemas.problems import KeyPath, Problem
from tritonc.schemas.yaml_nodes import Branch, Builder, Mark, Place, location

MAX_BYTES = 8 * 2**20
"""Largest file that is read: a spec of 1,000 models is a third of a mebibyte."""


@dataclass(frozen=True, slots=True)
class YamlSource:
    """A YAML file that was read: its data, places, digest, and the problems that did not stop the reading.

    Attributes:
        path: as the caller gave it; locations show it unchanged.
        sha256: of the file's bytes.
        data: mappings are dicts with text keys, sequences tuples, scalars None, bool, int, float or str.
        problems: duplicate keys (`data` has the first), and keys that are no text (`data` has their text).
    """

    path: Path
    sha256: str
    data: Any
    root: Mark | Branch
    problems: tuple[SpecError, ...]

    def location(self, key_path: KeyPath) -> Location:
        """The place of a value: its own if it begins on its key's line, else its key's.

        A path that does not exist has the place of its nearest ancestor.
        """
        here: Mark | Branch = self.root
        mark = here.mark if isinstance(here, Branch) else here
        for step in key_path:
            if not isinstance(here, Branch) or step not in here.values:
                break
            key, here = here.keys.get(step), here.values[step]
            value = here.mark if isinstance(here, Branch) else here
            mark = key if key is not None and key.line != value.line else value
        return location(self.path, mark)

    def key_location(self, key_path: KeyPath) -> Location:
        """The place of a key; that of the value where the last step is no key of a mapping."""
        here: Mark | Branch = self.root
        for step in key_path[:-1]:
            here = here.values.get(step, here) if isinstance(here, Branch) else here
        mark = here.keys.get(key_path[-1]) if key_path and isinstance(here, Branch) else None
        return location(self.path, mark) if mark is not None else self.location(key_path)

    def errors(self, problems: Iterable[Problem]) -> Iterator[SpecError]:
        """The problems with their places in this file."""
        for problem in problems:
            place = self.key_location if problem.at_key else self.location
            yield SpecError(place(problem.key_path), problem.key_path, problem.what, problem.hint)


def read_yaml(path: Path, *, nouns: Mapping[str, str] | None = None) -> YamlSource:
    """Reads a UTF-8 YAML file of one document.

    Args:
        path: shown in messages as it is.
        nouns: what a key of each top-level mapping names, for messages: {"models": "model"}.

    Raises:
        TritoncError: there is no such file, or it cannot be read.
        InputErrors: it is too large, not UTF-8, not YAML, or past a limit.
    """
    return parse_yaml(read_bytes(path, MAX_BYTES), path, nouns=nouns)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file that has at most `max_bytes`; a larger one is not read further than that.

    Raises:
        TritoncError: there is no such file, it cannot be read, or (InputErrors) it is too large.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise TritoncError(f"{path} is not a file", "name a YAML file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise TritoncError(f"{path}: {reason}", "check the path and its permissions") from error
    except ValueError as error:  # a NUL in the path
        raise TritoncError(f"{str(path)!r} is not a path", "name a YAML file") from error
    if len(content) > max_bytes:
        _fail(path, (1, 1), f"the file is larger than {max_bytes // 2**20} MiB", "split it, or shorten it")
    return content


def parse_yaml(content: bytes, path: Path, *, nouns: Mapping[str, str] | None = None) -> YamlSource:
    """The data of a YAML text, with places; see `read_yaml`.

    Raises:
        InputErrors: it is not UTF-8, not YAML, or past a limit.
    """
    text = _decode(content, path)
    builder = Builder(path, dict(nouns or {}))
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.take(event)
    except ReaderError as error:
        before = text[: error.position]
        place = (before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
        _fail(path, place, f"character U+{ord(text[error.position]):04X} is not allowed in YAML", "remove it")
    except MarkedYAMLError as error:
        _fail_malformed(path, text, error)
    except (YAMLError, ValueError, OverflowError) as error:
        # ruamel.yaml lets ValueError out on escapes past Unicode ("\UFFFFFFFF") and on odd %YAML directives
        _fail(path, builder.last, f"this is not valid YAML: {error}", _LOOK)
    digest = hashlib.sha256(content).hexdigest()
    return YamlSource(path, digest, builder.data, builder.root or Place(0, 0), tuple(builder.problems))


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        start = before.rfind(b"\n") + 1
        column = len(before[start:].decode("utf-8-sig", "replace")) + 1
        _fail(
            path,
            (before.count(b"\n") + 1, column),
            f"byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8",
            "save the file as UTF-8",
        )


def _fail(path: Path, place: tuple[int, int], what: str, hint: str = "") -> NoReturn:
    raise InputErrors([SpecError(Location(str(path), *place), (), what, hint)])


@dataclass(frozen=True, slots=True)
class _Slip:
    pattern: str
    what: str
    hint: str
    at_its_beginning: bool = False


_LOOK = "look at this line and those above it"
_SLIPS = (
    _Slip("'\\t'", "a tab stands where YAML allows none", "indent with spaces"),
    _Slip(
        "mapping values are not allowed",
        'a second ": " stands in this line',
        "quote a value that contains one",
    ),
    _Slip("could not find expected ':'", 'this line has no ":"', 'write "key: value"', at_its_beginning=True),
    _Slip("end of stream", "this quoted text never ends", "close the quote", at_its_beginning=True),
    _Slip(
        "expected <block end>", "the indentation does not fit the lines above", "align it with its neighbours"
    ),
    _Slip("expected ',' or", "a bracket is not closed, or a comma is missing", _LOOK),
    _Slip("expected the node content", "a value or a closing bracket is missing", _LOOK),
    _Slip("cannot start any token", "a value begins with a character that YAML reserves", "quote the value"),
)
"""What ruamel.yaml's scanner and parser say about common slips, and what a person needs to hear."""


_CONFLICT = re.compile(r"^([<|=>])\1{6}(?: |$)", re.MULTILINE)
"""A line with which git marks a side of a merge conflict."""


def _fail_malformed(path: Path, text: str, error: MarkedYAMLError) -> NoReturn:
    if conflict := _CONFLICT.search(text):
        place = (text.count("\n", 0, conflict.start()) + 1, 1)
        _fail(path, place, "a merge conflict is not resolved", "keep what is right, and remove git's marks")
    problem = str(error.problem or error.context)
    marks = (error.problem_mark, error.context_mark)
    slip = next(
        (slip for slip in _SLIPS if slip.pattern in problem), _Slip("", shortened(problem, 200), _LOOK)
    )
    mark = next(filter(None, reversed(marks) if slip.at_its_beginning else marks), Place(0, 0))
    _fail(path, (mark.line + 1, mark.column + 1), f"this is not valid YAML: {slip.what}", slip.hint)
