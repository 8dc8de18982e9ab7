"""What can go wrong, as types: the command line prints `what` and `hint` and exits with `exit_code`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


class TritoncError(Exception):
    """A problem that a person can act on.

    Attributes:
        what: what was found, in one or more lines, without the location.
        hint: what to do about it; empty where `what` says it all.
        exit_code: the process's exit code (2: the input is wrong, 3: the environment is wrong).
    """

    exit_code = 2

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A place in a text file; lines and columns count from 1, as editors do."""

    path: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


class SpecError(TritoncError):
    """One problem in a spec: where it stands (file, line, column, key path) and what to do."""

    def __init__(
        self, location: Location, key_path: tuple[str | int, ...], what: str, hint: str = ""
    ) -> None:
        super().__init__(what, hint)
        self.location = location
        self.key_path = key_path

    def __str__(self) -> str:
        return f"{self.location}: {super().__str__()}"


class InputErrors(TritoncError):  # noqa: N818  (it is several)
    """Every problem of an input, reported at once, sorted by place. Never empty."""

    def __init__(self, errors: Iterable[TritoncError]) -> None:
        self.errors = tuple(sorted(errors, key=_place))
        if not self.errors:
            raise ValueError("InputErrors needs at least one error")
        super().__init__("\n".join(str(error) for error in self.errors))

    def __iter__(self) -> Iterator[TritoncError]:
        return iter(self.errors)


def _place(error: TritoncError) -> tuple[str, int, int]:
    location = getattr(error, "location", None)
    return (location.path, location.line, location.column) if location else ("", 0, 0)


class ModelFileError(TritoncError):
    """A model file that is missing, is not what it should be, or cannot be served as declared."""

    def __init__(self, path: Path | str, what: str, hint: str = "") -> None:
        super().__init__(f"{path}: {what}", hint)
        self.path = str(path)


class LockError(TritoncError):
    """A lock file that cannot be read, is of another version, or no longer belongs to the spec."""


class OutputError(TritoncError):
    """An output folder that tritonc may not or cannot write to."""


class SetupError(TritoncError):
    """The environment is wrong: nothing is the matter with the input."""

    exit_code = 3


class MissingExtraError(SetupError):
    """One or more packages, listed with commas, that this command needs and that are not installed."""

    def __init__(self, package: str, extra: str) -> None:
        verb = "are" if ", " in package else "is"
        super().__init__(f"{package} {verb} not installed", f"run: pip install 'tritonc[{extra}]'")
        self.package = package
        self.extra = extra


class EngineError(SetupError):
    """A tritonserver cannot be had or does not start."""


class LoadGeneratorError(SetupError):
    """A load generator cannot be had or does not do its work."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that lists `known` and guesses the word that was meant.

    >>> did_you_mean("tensort", ["cuda", "none", "tensorrt"])
    'did you mean "tensorrt"? (cuda, none, tensorrt)'
    """
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    listed = ", ".join(names)
    return f'did you mean "{near[0]}"? ({listed})' if near else f"one of: {listed}"


def found(value: object) -> str:
    """What a value is, in words: 'the number 24.1', 'the text "8"', 'a list', 'empty'."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {shortened(str(value))}"
    if isinstance(value, str):
        return f'the text "{shortened(value)}"'
    return (
        "a mapping"
        if isinstance(value, Mapping)
        else "a list"
        if isinstance(value, Sequence)
        else "no plain value"
    )


def shortened(text: str, length: int = 60) -> str:
    """A text fit for a message: one line, at most `length` characters."""
    line = "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text[: length + 1]
    )
    return line if len(text) <= length else f"{line[:length]}…"
