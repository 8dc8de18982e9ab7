"""`tritonc build`: the spec and its lock compiled to one model repository a target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from tritonc.compiler.build import (
    Repositories,
    check_targets,
    compile_targets,
    left_over_targets,
    require_writable,
    write_targets,
)
from tritonc.compiler.output.difference import Difference, WeightsMode
from tritonc.compiler.project import Project, open_project
from tritonc.compiler.selection import accept_stale
from tritonc.output import Output
from tritonc.schemas.errors import OutputError, TritoncError, did_you_mean
from tritonc.schemas.lock_file import read_lock, write_lock
from tritonc.schemas.spec import Spec
from tritonc.typed import typed_command

_SHOWN_FILES = 20

Changes = Mapping[str, tuple[Difference, ...]]


@click.command(epilog="Example: tritonc build --check")
@click.argument("spec", type=click.Path(path_type=Path), default="spec.yaml")
@click.option(
    "-o",
    "out",
    type=click.Path(path_type=Path),
    help="Folder to write to; one folder a target is made in it. Default: build, beside the spec.",
)
@click.option(
    "--target", "targets", multiple=True, help="Build only this target; may be repeated. Default: all."
)
@click.option("--check", is_flag=True, help="Write nothing; print the diff and exit 1 if the folder differs.")
@click.option(
    "--weights",
    type=click.Choice(["copy", "link", "omit"]),
    default="copy",
    show_default=True,
    help="copy: share blocks where the file system can. link: hard links. omit: configs only.",
)
@click.option("--allow-outside", is_flag=True, help="Let model files lie outside the spec's folder.")
@click.option(
    "--accept-stale-evidence",
    is_flag=True,
    help="Build from measurements of other weights or another load, and mark them so in the lock.",
)
@click.pass_obj
def command(
    output: Output,
    spec: Path,
    out: Path | None,
    targets: tuple[str, ...],
    check: bool,
    weights: WeightsMode,
    allow_outside: bool,
    accept_stale_evidence: bool,
) -> int:
    """Compile the spec and its lock to a model repository for each target.

    What the lock decided is built. A model that is not in it gets the baseline: what Triton itself would
    complete, with what `search:` pins. Nothing is measured and no server is started: the same spec, lock and
    model files give the same bytes on any machine. Exits 1 if nothing met a model's SLO, or if --check found
    a difference.
    """
    project = open_project(spec, allow_outside=allow_outside)
    names = chosen_targets(project.spec, targets)
    folder = out or project.folder / "build"
    lock_path = project.spec_file.lock_path
    lock = read_lock(lock_path)
    accepted = accept_stale(project, lock) if accept_stale_evidence and lock else lock
    repositories = compile_targets(project, accepted, names)
    notices = list(dict.fromkeys(notice for r in repositories.values() for notice in r.notices))
    slo_met = all(repository.slo_met for repository in repositories.values())
    if not targets:
        repositories |= left_over_targets(project, folder)
    if check:
        changes = check_targets(repositories, folder, weights)
    else:
        if accepted is not None and accepted != lock:
            require_writable(repositories, project.spec.name, folder)
            write_lock(lock_path, accepted)
        changes = write_targets(repositories, project.spec.name, folder, weights)
    for notice in notices:
        output.note(f"note: {notice}")
    document = {"out": str(folder), "check": check, "slo_met": slo_met, "notices": notices}
    files = [_document(target, difference) for target, difference in _flat(changes)]
    if check:
        again = typed_command(click.get_current_context(), "check")
        text = render_check(folder, changes, _refusal(repositories, project, folder) or f"next: {again}")
    else:
        text = render_build(folder, changes, names)
    if not slo_met:
        text += "\nexit code 1: a model's SLO is not met by anything that was measured (see the notes)"
    output.result({**document, "differences": files}, text)
    return 1 if not slo_met or (check and changes) else 0


def chosen_targets(spec: Spec, names: Iterable[str]) -> tuple[str, ...]:
    """The targets that `--target` names, in the spec's order; all of them where it names none.

    Raises:
        TritoncError: the spec has no such target.
    """
    names = tuple(names)
    for name in names:
        if name not in spec.targets:
            raise TritoncError(f'--target: the spec has no target "{name}"', did_you_mean(name, spec.targets))
    return tuple(target for target in spec.targets if not names or target in names)


def render_build(folder: Path, changes: Changes, targets: Iterable[str]) -> str:
    """What `build` changed, file by file, and what to do with it."""
    verbs = {"missing": "wrote", "changed": "rewrote", "extra": "removed"}
    lines = [
        f"{verbs[difference.kind]} {folder / target / difference.path}"
        for target, difference in _flat(changes)
    ]
    if len(lines) > _SHOWN_FILES:
        lines = [*lines[:_SHOWN_FILES], f"… and {len(lines) - _SHOWN_FILES} more files"]
    lines += [f"{folder / target} is up to date" for target in targets if target not in changes]
    return "\n".join([*lines, f"next: review {folder} and commit it; each server.args says how to serve it"])


def render_check(folder: Path, changes: Changes, next_step: str) -> str:
    """How the folder differs from what would be written: a unified diff where there is text.

    Args:
        folder: as it is shown.
        changes: the differences by target.
        next_step: the line that says how what was compared gets written.
    """
    if not changes:
        return f"{folder} is up to date"
    lines = []
    for target, difference in _flat(changes):
        lines.append(f"{difference.kind} {folder / target / difference.path}")
        if difference.diff:
            lines.append(difference.diff.rstrip("\n"))
    return "\n".join([*lines, next_step])


def _refusal(repositories: Repositories, project: Project, folder: Path) -> str:
    """What stands in the way of writing the repositories; empty if nothing does."""
    try:
        require_writable(repositories, project.spec.name, folder)
    except OutputError as refusal:
        return str(refusal)
    return ""


def _flat(changes: Changes) -> Iterator[tuple[str, Difference]]:
    return ((target, difference) for target, differences in changes.items() for difference in differences)


def _document(target: str, difference: Difference) -> dict[str, Any]:
    return {
        "target": target,
        "path": str(difference.path),
        "kind": difference.kind,
        "diff": difference.diff or None,
    }
