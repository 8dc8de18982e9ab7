"""The one place that changes an output folder: makes it what a Repository says, in one step or not at all."""

from __future__ import annotations

import contextlib
import errno
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tritonc.compiler.output import swap
from tritonc.compiler.output.difference import (
    Difference,
    WeightsMode,
    check_repository,
    read_manifest,
    require_own,
)
from tritonc.compiler.output.folder import errors_named
from tritonc.compiler.output.manifest import MANIFEST_PATH, Manifest, parse_manifest, print_manifest
from tritonc.compiler.output.weights import place_weights
from tritonc.compiler.repository import Content, Repository

_CANNOT_BE_RENAMED = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
"""A mount point, a folder of a lower layer of overlayfs, a folder in one that is not ours to write to."""


def write_repository(
    repository: Repository, out: Path, weights: WeightsMode = "copy", *, durable: bool = True
) -> tuple[Difference, ...]:
    """Makes `out` what the repository says and returns what was different; touches nothing if nothing was.

    The new content is written beside `out` and takes its place in one step, so that at any time `out` is
    either the old repository or the new one. Where `out` cannot be renamed (a mount point, a folder that is
    not writable around it), each of its models is swapped like this.

    Args:
        repository: what to write.
        out: the folder.
        weights: how weights are placed.
        durable: wait until the disk has it, so that a power cut leaves a whole repository too.

    Raises:
        OutputError: `out` is no folder, is not writable, or holds files that tritonc did not write.
        SetupError: the disk is full.
        ModelFileError: weights have changed since they were read.
    """
    made = [folder for folder in (out.parent, *out.parent.parents) if not folder.exists()]
    try:
        with errors_named(out, "writable"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with swap.locked(out.parent):
                return _write_locked(repository, out, weights, durable)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _write_locked(
    repository: Repository, out: Path, weights: WeightsMode, durable: bool
) -> tuple[Difference, ...]:
    swap.recover_all(out)
    differences = check_repository(repository, out, weights)
    if not differences:
        return ()
    require_own(repository, out)
    changed = {difference.path for difference in differences}
    if not swap.is_mount_point(out):
        try:
            _swap_whole(repository, out, weights, changed, durable)
            return differences
        except OSError as err:
            if err.errno not in _CANNOT_BE_RENAMED:
                raise
    _swap_entries(repository, out, weights, changed, durable)
    return differences


def _swap_whole(
    repository: Repository, out: Path, weights: WeightsMode, changed: set[PurePosixPath], durable: bool
) -> None:
    try:
        _stage(repository.files, swap.new_path(out), out, weights, changed)
        if durable:
            swap.flush(out.parent)
        swap.swap(out)
    except BaseException:
        swap.recover(out)
        raise


def _swap_entries(
    repository: Repository, out: Path, weights: WeightsMode, changed: set[PurePosixPath], durable: bool
) -> None:
    """Replaces each top folder and file of `out` that differs, when all of them have been written beside it.

    Meanwhile the manifest lists the old files and the new ones: a next run knows both as tritonc's own.
    """
    out.mkdir(exist_ok=True)
    manifest = repository.files.get(MANIFEST_PATH, b"")
    assert isinstance(manifest, bytes)
    files: dict[str, dict[PurePosixPath, Content]] = defaultdict(dict)
    for path, content in repository.files.items():
        files[path.parts[0]][path.relative_to(path.parts[0])] = content
    names = sorted({path.parts[0] for path in changed} - {MANIFEST_PATH.name})
    try:
        for name in names:
            inner = {path.relative_to(name) for path in changed if path.parts[0] == name}
            _stage(files[name], swap.new_path(out / name), out / name, weights, inner)
        if durable:
            swap.flush(out)
        _replace_file(out / MANIFEST_PATH, _merged(manifest, read_manifest(out)))
        for name in names:
            swap.swap(out / name)
        _replace_file(out / MANIFEST_PATH, manifest)
    except BaseException:
        swap.recover_all(out)
        raise


def _replace_file(path: Path, content: bytes) -> None:
    """Gives the file this content; removes it where there is none."""
    if content:
        swap.new_path(path).write_bytes(content)
    swap.swap(path)


def _merged(manifest: bytes, present: Manifest | None) -> bytes:
    """The manifest with the files of the present one beside its own."""
    if present is None:
        return manifest
    if not manifest:
        return print_manifest(present)
    coming = parse_manifest(manifest)
    return print_manifest(replace(coming, files={**present.files, **coming.files}))


def _stage(
    files: Mapping[PurePosixPath, Content],
    new: Path,
    present: Path,
    weights: WeightsMode,
    changed: set[PurePosixPath],
) -> None:
    """Writes `files` to `new`; weights that stand unchanged in `present` are taken from there."""
    folders: set[Path] = set()
    for path, content in files.items():
        target = new / path
        if target.parent not in folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            folders.add(target.parent)
        if isinstance(content, bytes):
            with target.open("xb") as file:
                file.write(content)
        elif path not in changed and (present / path).exists():
            place_weights(replace(content, path=present / path), target, "link")
        elif weights != "omit":
            place_weights(content, target, weights)
