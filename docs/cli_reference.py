"""Writes docs/cli.md, the reference of the command line, from the commands' own help: make docs."""

from __future__ import annotations

from pathlib import Path

import click

from tritonc.cli import COMMANDS, cli

TARGET = Path(__file__).with_name("cli.md")
HEADER = """\
# The command line

Written by `make docs` from the commands' own help; a test fails when it is stale. What the commands do for
a project stands in the [README](../README.md).
"""


def reference() -> str:
    """The whole document."""
    parts = [HEADER, f"```text\n{help_text(cli, 'tritonc')}```\n"]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli, info_name="tritonc"), name)
        assert command is not None
        parts.append(f"## tritonc {name}\n\n```text\n{help_text(command, f'tritonc {name}')}```\n")
    return "\n".join(parts)


def help_text(command: click.Command, path: str) -> str:
    """What `--help` prints on a terminal of 100 columns, whatever this terminal is."""
    context = click.Context(
        command, info_name=path, terminal_width=100, max_content_width=100, help_option_names=["-h", "--help"]
    )
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
