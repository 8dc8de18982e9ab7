"""Where a command's words go: the result to standard output, everything for people to standard error."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SCHEMA_VERSION = 1
"""Of every JSON document that a command prints; a changed meaning or a removed key raises it."""


class Output:
    """What a command prints with; `ctx.obj` of every command (`@click.pass_obj`).

    Attributes:
        format: "text", or "json" where `--output json` was given.
    """

    def __init__(self, format: Literal["text", "json"] = "text") -> None:  # noqa: A002  (the option's word)
        self.format = format

    @property
    def is_json(self) -> bool:
        """Standard output carries one JSON document and nothing else."""
        return self.format == "json"

    @property
    def is_live(self) -> bool:
        """Standard error is a terminal on which bars and live views may be drawn."""
        return is_live(os.environ, sys.stderr.isatty())

    @functools.cached_property
    def console(self) -> Console:
        """Rich console on standard error. Importing rich takes 50 ms, so it is done at the first use."""
        return _console(stderr=True)

    def result(self, document: Mapping[str, Any], text: RenderableType) -> None:
        """Prints a command's result to standard output: `document` as JSON, or `text` for a person.

        Call it once, at the end. `text` may be a string (printed as it is) or anything rich can draw.
        """
        if self.is_json:
            print_json({"schema_version": SCHEMA_VERSION, **document})
        elif isinstance(text, str):
            sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        else:
            _console(stderr=False).print(text)

    def note(self, text: str) -> None:
        """Prints one plain line for people to standard error, in either format."""
        sys.stderr.write(f"{text}\n")


def print_json(document: Mapping[str, Any]) -> None:
    """Prints `document` to standard output as it is, with escapes where that cannot show a character."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2, allow_nan=False)
    sys.stdout.write(f"{text}\n")


def is_live(environment: Mapping[str, str], is_terminal: bool) -> bool:
    """Whether bars and live views may be drawn: on a capable terminal, and not in a CI job.

    >>> is_live({"TERM": "xterm"}, True), is_live({"TERM": "dumb"}, True), is_live({"CI": "1"}, True)
    (True, False, False)
    """
    return is_terminal and not environment.get("CI") and environment.get("TERM") != "dumb"


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    live = is_live(os.environ, stream.isatty())
    # Where there is no terminal to ask, 110 columns: wide enough for every table, readable in a CI log.
    width = None if stream.isatty() else 110
    return Console(
        stderr=stderr,
        force_terminal=live,
        no_color=not live or bool(os.environ.get("NO_COLOR")),
        width=width,
        highlight=False,
    )
