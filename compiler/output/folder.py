"""What lies in an output folder, and what the system says when it cannot be read or written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from tritonc.schemas.errors import OutputError, SetupError

Kind = Literal["file", "empty folder", "other"]
"""`other`: symbolic links, which are never followed, sockets and the like."""

_OF_THE_VOLUME = frozenset({"lost+found"})
"""What the root of a mounted volume may hold beside our files."""

_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_folder(out: Path) -> bool:
    """Whether there is a folder at `out`.

    Raises:
        OutputError: there is something else.
    """
    if not os.path.lexists(out):
        return False
    if out.is_symlink() or not out.is_dir():
        kind = "a symbolic link" if out.is_symlink() else "a file"
        raise OutputError(f"{out}: is {kind}, not a folder", "move it away, or name another folder with -o")
    return True


def content_of(out: Path) -> dict[PurePosixPath, Kind]:
    """Every file and every empty folder in the folder, sorted by name; empty where there is no folder.

    Raises:
        OutputError: `out` is something else than a folder.
    """
    if not require_folder(out):
        return {}
    return {PurePosixPath(path): kind for path, kind in sorted(_walk(str(out), ""))}


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, Kind]]:
    with os.scandir(folder) as scan:
        entries = list(scan)
    if prefix and not entries:
        yield prefix, "empty folder"
    for entry in entries:
        if not prefix and entry.name in _OF_THE_VOLUME:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, "file" if entry.is_file(follow_symlinks=False) else "other"


def open_file(path: Path | str) -> int:
    """A descriptor to read a file with; a symbolic link in its place is an error (ELOOP)."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def read_file(path: Path | str) -> bytes:
    """The content of a file; a symbolic link in its place is an error (ELOOP)."""
    with open(open_file(path), "rb", buffering=0) as file:
        return file.read()


@contextlib.contextmanager
def errors_named(out: Path, need: Literal["readable", "writable"] = "readable") -> Iterator[None]:
    """Turns what the system says about the output folder into what a person can act on.

    Raises:
        OutputError: it is not what is needed, or no folder can be there.
        SetupError: the disk is full.
    """
    try:
        yield
    except OSError as err:
        place = err.filename or out
        if err.errno in _DISK_FULL:
            raise SetupError(f"{out}: {err.strerror}; nothing was changed", "free some disk space") from err
        if err.errno in _NO_PERMISSION:
            hint = f"make it {need}, or name another folder with -o"
            raise OutputError(f"{out}: is not {need} ({place}: {err.strerror})", hint) from err
        if err.errno in _NO_PLACE:
            what = f"{out}: cannot be used ({place}: {err.strerror})"
            raise OutputError(what, "name another folder with -o") from err
        raise
