"""`tritonc candidates`: what `tune` could measure, as repositories to look at or to serve by hand."""

from __future__ import annotations

from pathlib import Path

import click

from tritonc.commands.build import chosen_targets
from tritonc.compiler.candidates import compile_candidates, excerpts
from tritonc.compiler.output.difference import WeightsMode
from tritonc.compiler.output.writer import write_repository
from tritonc.compiler.project import open_project, require_tuned
from tritonc.output import Output


@click.command(epilog="Example: tritonc candidates -o candidates --limit 5")
@click.argument("spec", type=click.Path(path_type=Path), default="spec.yaml")
@click.option(
    "-o",
    "out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write to: TARGET/MODEL/CANDIDATE/ is a repository, index.json lists the knobs.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Candidates for each model and target, the baseline first. 1 writes the baseline alone.",
)
@click.option("--target", "targets", multiple=True, help="Only this target; may be repeated. Default: all.")
@click.option("--model", "models", multiple=True, help="Only this model; may be repeated. Default: all.")
@click.option(
    "--weights",
    type=click.Choice(["copy", "link", "omit"]),
    default="link",
    show_default=True,
    help="link: hard links, so that many candidates take no space. copy: real copies. omit: configs only.",
)
@click.option("--allow-outside", is_flag=True, help="Let model files lie outside the spec's folder.")
@click.pass_obj
def command(
    output: Output,
    spec: Path,
    out: Path,
    limit: int,
    targets: tuple[str, ...],
    models: tuple[str, ...],
    weights: WeightsMode,
    allow_outside: bool,
) -> None:
    """Compile candidate repositories, one folder each, without measuring anything.

    The size of each space is printed whatever the limit.
    """
    project = open_project(spec, allow_outside=allow_outside)
    require_tuned(project.spec, models)
    chosen = tuple(name for name in project.spec.tuned if not models or name in models)
    selected = excerpts(project, chosen, chosen_targets(project.spec, targets), limit)
    changes = write_repository(compile_candidates(project, selected), out.resolve(), weights)
    spaces = [
        {
            "model": excerpt.space.model,
            "target": excerpt.space.target,
            "size": len(excerpt.space),
            "written": len(excerpt.candidates),
            "folder": str(out / excerpt.folder),
        }
        for excerpt in selected
    ]
    lines = [f"{space['folder']}: {space['written']} of {space['size']} candidates" for space in spaces]
    lines.append(f"{out / 'index.json'} lists their knobs" if changes else f"{out} is up to date")
    lines.append("next: tritonc tune measures them and chooses")
    output.result({"out": str(out), "spaces": spaces}, "\n".join(lines))
