"""`tritonc doctor`: what this machine can build and measure."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tritonc.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tritonc.tuner.doctor import Report

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@click.command(epilog="Example: tritonc doctor")
@click.pass_obj
def command(output: Output) -> int:
    """Show what this machine can build and measure, and what to install for the rest.

    Starts no server and fetches nothing. Exits 3 where `tritonc tune` could not measure with the embedded
    engine; `--engine local` needs no more than its own line says. `tritonc build` works wherever this
    command runs.
    """
    from tritonc.tuner.doctor import examine

    report = examine(Path.cwd())
    document = {
        "can_build": True,
        "can_measure": report.can_measure,
        "measurable": report.measurable,
        "checks": [asdict(check) for check in report.checks],
    }
    output.result(document, render_report(report))
    return 0 if report.can_measure else 3


def render_report(report: Report) -> RenderableType:
    """The checks, a line each with its remedy below, and what follows from them."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for check in report.checks:
        found = f"{check.found}\n> {check.remedy}" if check.remedy else check.found
        table.add_row(Text(check.state, style=_STYLES[check.state]), check.name, Text(found, overflow="fold"))
    return Group(table, Text(""), Text("build    every target of every spec"), Text(_measure_line(report)))


def _measure_line(report: Report) -> str:
    if not report.can_measure:
        return "measure  nothing until the problems above are solved"
    devices = (
        f"{device}: "
        + ", ".join(f"{backend} ({', '.join(names)})" for backend, names in report.measurable[device].items())
        for device in report.measurable
    )
    return "measure  " + "; ".join(devices)
