"""Every target of a spec compiled, and all of them compared with, or written to, one output folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tritonc.compiler.output.difference import (
    Difference,
    WeightsMode,
    check_repository,
    read_manifest,
    require_own,
)
from tritonc.compiler.output.folder import errors_named, require_folder
from tritonc.compiler.output.swap import has_left_overs, is_temporary
from tritonc.compiler.output.writer import write_repository
from tritonc.compiler.project import Project
from tritonc.compiler.repository import Repository, compile_repository
from tritonc.schemas.errors import InputErrors, OutputError, TritoncError
from tritonc.schemas.lock import Lock

_NOT_OURS = frozenset({".gitattributes", ".gitignore", ".gitkeep", "lost+found"})
"""What may lie in an output folder beside the targets' folders; it is never touched."""

Repositories = Mapping[str, Repository]
"""By target. An empty Repository stands for a target that the spec no longer has, whose folder goes."""


def compile_targets(project: Project, lock: Lock | None, targets: Iterable[str]) -> dict[str, Repository]:
    """The repository of each target.

    Raises:
        InputErrors: everything that is wrong with any of them.
    """
    repositories: dict[str, Repository] = {}
    errors: dict[str, TritoncError] = {}
    for target in targets:
        try:
            repositories[target] = compile_repository(project, lock, target)
        except InputErrors as err:
            errors |= {str(error): error for error in err}
        except TritoncError as err:
            errors[str(err)] = err
    if errors:
        raise InputErrors(errors.values())
    return repositories


def left_over_targets(project: Project, out: Path) -> dict[str, Repository]:
    """An empty Repository for each folder in `out` of a target that the spec had once and has no longer.

    Raises:
        OutputError: `out` is no folder, or cannot be read.
    """
    with errors_named(out):
        if not require_folder_or_link(out):
            return {}
        return {
            entry.name: Repository({})
            for entry in sorted(out.iterdir())
            if entry.name not in project.spec.targets
            and (manifest := read_manifest(entry)) is not None
            and (manifest.spec, manifest.target) == (project.spec.name, entry.name)
        }


def check_targets(
    repositories: Repositories, out: Path, weights: WeightsMode = "copy"
) -> dict[str, tuple[Difference, ...]]:
    """How `out` differs from the repositories, by target; only targets that differ.

    Raises:
        OutputError: `out` is no folder, or cannot be read.
    """
    with errors_named(out):
        require_folder_or_link(out)
    found = {
        target: check_repository(repository, out / target, weights)
        for target, repository in repositories.items()
    }
    return {target: differences for target, differences in found.items() if differences}


def write_targets(
    repositories: Repositories, spec: str, out: Path, weights: WeightsMode = "copy"
) -> dict[str, tuple[Difference, ...]]:
    """Writes each repository to `out/<target>`; what was different before, by target.

    Nothing is written if anything stands in the way of any of them.

    Raises:
        OutputError: `out` is no folder, is not writable, or holds files not written for this spec.
        SetupError: the disk is full.
    """
    changed = {
        *check_targets(repositories, out, weights),
        *(target for target in repositories if has_left_overs(out / target)),
    }
    if changed:
        require_writable(repositories, spec, out)
    written = {
        target: write_repository(repository, out / target, weights)
        for target, repository in repositories.items()
        if target in changed
    }
    return {target: differences for target, differences in written.items() if differences}


def require_writable(repositories: Repositories, spec: str, out: Path) -> None:
    """Checks, without touching anything, that writing the repositories to `out` loses nothing.

    Raises:
        OutputError: `out` is no folder or holds files that tritonc did not write for this spec.
    """
    with errors_named(out):
        if not require_folder_or_link(out):
            return
        foreign = sorted(
            entry.name
            for entry in out.iterdir()
            if entry.name not in repositories
            and entry.name not in _NOT_OURS
            and not is_temporary(entry.name)
            and read_manifest(entry) is None
        )
    hint = "move them away, or name another folder with -o"
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise OutputError(f"{out}: holds files that tritonc did not write: {shown}", hint)
    for target, repository in repositories.items():
        manifest = read_manifest(out / target)
        if manifest and manifest.spec != spec:
            what = f'{out / target}: holds what was built from another spec, "{manifest.spec}"'
            raise OutputError(what, "remove it, or name another folder with -o")
        require_own(repository, out / target)


def require_folder_or_link(out: Path) -> bool:
    """Whether there is a folder at `out`, which may be a link to one: the person who names it chose it.

    Raises:
        OutputError: there is something else, or the link leads nowhere.
    """
    if out.is_symlink() and not out.exists():
        hint = "make the folder that it names, or name another one with -o"
        raise OutputError(f"{out}: is a symbolic link that leads nowhere", hint)
    return require_folder(out.resolve() if out.is_symlink() else out)
