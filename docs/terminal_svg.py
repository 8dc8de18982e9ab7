"""Draws what a command printed as a picture for the README.

    make demo 2>&1 | tee demo.log; python docs/terminal_svg.py "make demo" docs/demo.svg < demo.log

Without a terminal there is no live view to redraw itself: what comes in is what the picture shows.
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


def main() -> None:
    """Reads standard input and writes the picture."""
    title, target = sys.argv[1], Path(sys.argv[2])
    console = Console(record=True, width=COLUMNS, file=sys.stderr, force_terminal=True)
    for line in sys.stdin:
        console.print(Text.from_ansi(line.rstrip("\n")))
    target.write_text(_FONT_FACE.sub("", console.export_svg(title=title)), encoding="utf-8")


if __name__ == "__main__":
    main()
