"""How an output folder differs from the Repository that it should hold."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from tritonc.compiler.output.folder import content_of, errors_named, open_file, read_file
from tritonc.compiler.output.manifest import MANIFEST_PATH, Manifest, parse_manifest
from tritonc.compiler.repository import Repository, Weights
from tritonc.schemas.errors import OutputError

WeightsMode = Literal["copy", "link", "omit"]
"""`copy` (reflinked where the file system can), `link` (hard links; copies across file systems), `omit`."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One file in which a folder is not what a Repository says.

    Attributes:
        path: in the folder.
        kind: "missing": the folder lacks it; "extra": only the folder has it; "changed": the contents differ.
        diff: unified, from the folder to the Repository, where both are text; else empty.
    """

    path: PurePosixPath
    kind: Literal["missing", "extra", "changed"]
    diff: str = ""


def check_repository(
    repository: Repository, out: Path, weights: WeightsMode = "copy"
) -> tuple[Difference, ...]:
    """Every file in which `out` differs from the repository; weights are read and hashed.

    With `omit`, weights may be there or not; those that are there must be right.

    Raises:
        OutputError: `out` is no folder, or cannot be read.
    """
    with errors_named(out):
        return tuple(_differences(repository, out, weights))


def require_own(repository: Repository, out: Path) -> None:
    """Checks that writing the repository to `out` would lose nothing that tritonc did not write.

    Raises:
        OutputError: `out` is no folder, has a damaged manifest, or holds files that tritonc did not write.
    """
    with errors_named(out):
        present = content_of(out)
        manifest = read_manifest(out)
        own = {*manifest.files, MANIFEST_PATH} if manifest else set[PurePosixPath]()
        foreign = [
            str(path)
            for path, kind in present.items()
            if kind == "other"
            or (kind == "file" and path not in own and not _is_as_compiled(repository, out, path))
        ]
    if foreign == [MANIFEST_PATH.name] and len(present) > 1:  # the rest is as compiled
        raise OutputError(f"{out / MANIFEST_PATH} is damaged", "delete it, and run tritonc again")
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise OutputError(
            f"{out}: holds files that tritonc did not write: {shown}",
            "move them away, or name another folder with -o",
        )


def read_manifest(out: Path) -> Manifest | None:
    """The manifest of a folder that tritonc wrote; None where there is none that can be read."""
    try:
        return parse_manifest(read_file(out / MANIFEST_PATH))
    except (OSError, ValueError):
        return None


def _is_as_compiled(repository: Repository, out: Path, path: PurePosixPath) -> bool:
    """True also without a manifest, as after a clone of a repository in which the manifest is not in git."""
    content = repository.files.get(path)
    if isinstance(content, Weights):
        return _holds(out / path, content, "link")
    return content is not None and read_file(out / path) == content


def _differences(repository: Repository, out: Path, weights: WeightsMode) -> Iterator[Difference]:
    present = content_of(out)
    for path, content in repository.files.items():
        omitted = weights == "omit" and isinstance(content, Weights)
        if path not in present:
            if not omitted:
                yield Difference(path, "missing")
        elif isinstance(content, Weights):
            if present[path] != "file" or not _holds(out / path, content, weights):
                yield Difference(path, "changed")
        elif present[path] != "file":
            yield Difference(path, "changed")
        else:
            found = read_file(f"{out}/{path}")
            if found != content:
                yield Difference(path, "changed", _unified_diff(path, found, content))
    extra = [path for path in present if path not in repository.files]
    if extra:
        folders = {folder for path in repository.files for folder in path.parents}
        yield from (Difference(path, "extra") for path in extra if path not in folders)


def _holds(path: Path, weights: Weights, mode: WeightsMode) -> bool:
    """Whether the file has the content of the weights, in a file of its own where they are to be copied."""
    if path.stat().st_size != weights.size_bytes:
        return False
    if mode == "copy" and weights.path.exists() and path.samefile(weights.path):
        return False
    with os.fdopen(open_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == weights.sha256


def _unified_diff(path: PurePosixPath, found: bytes, wanted: bytes) -> str:
    try:
        before, after = found.decode().splitlines(keepends=True), wanted.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return ""
    return "".join(difflib.unified_diff(before, after, f"{path} (on disk)", f"{path} (from the spec)"))
