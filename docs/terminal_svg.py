"""Draws what a command printed on a terminal as a picture for the README.

    script -qec "stty cols 110; make demo" /dev/null | python docs/terminal_svg.py "make demo" docs/demo.svg

Standard input is the command's real output with its colours. Of a live view, which redraws itself, only what
stayed is kept.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 110
# Fonts that rich's own template loads from a server; a reader's monospace font will do.
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_CURSOR_UP = re.compile(r"\x1b\[1A")


def main() -> None:
    """Reads standard input and writes the picture."""
    title, target = sys.argv[1], Path(sys.argv[2])
    console = Console(record=True, width=COLUMNS, file=sys.stderr, force_terminal=True)
    for line in settled_lines(sys.stdin.read()):
        console.print(Text.from_ansi(line), soft_wrap=False)
    target.write_text(_FONT_FACE.sub("", console.export_svg(title=title)), encoding="utf-8")


def settled_lines(output: str) -> list[str]:
    """The lines that are on the screen at the end: a redrawn line replaces what it was drawn over."""
    lines: list[str] = []
    for line in output.splitlines():
        ups = len(_CURSOR_UP.findall(line))
        del lines[len(lines) - min(ups, len(lines)) :]
        visible = line.rpartition("\r")[2]
        lines.append(re.sub(r"\x1b\[(\?25[lh]|2K|1A|K|J|0J)", "", visible))
    return lines


if __name__ == "__main__":
    main()
