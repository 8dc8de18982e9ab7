"""A folder replaced by another one in a single step, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tritonc.schemas.errors import OutputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Both from linux/fcntl.h and linux/fs.h; Python's os module has no renameat2."""

_NEW, _OLD = ".tritonc-new", ".tritonc-old"

_LOCK_TIMEOUT_S = 60.0
"""A build of a thousand models takes a few seconds; one that holds the lock for a minute hangs."""


def new_path(out: Path) -> Path:
    """Where the next content of `out` is written before it takes its place."""
    return out.with_name(f".{out.name}{_NEW}")


def old_path(out: Path) -> Path:
    """Where the last content of `out` lies while the next one takes its place."""
    return out.with_name(f".{out.name}{_OLD}")


def swap(out: Path) -> None:
    """Puts `new_path(out)`, or nothing where that is not there, in the place of `out` and removes the old.

    Raises:
        OSError: `out` cannot be renamed (EBUSY: it is a mount point); it is as it was.
    """
    new, old = new_path(out), old_path(out)
    if not os.path.lexists(new):
        out.rename(old)
        remove(old)
    elif not os.path.lexists(out):
        new.rename(out)
    elif _exchange(new, out):
        remove(new)
    else:
        out.rename(old)
        try:
            new.rename(out)
        except OSError:
            old.rename(out)
            raise
        remove(old)


def recover(out: Path) -> None:
    """Undoes what a run that was killed in the middle has left beside `out`."""
    new, old = new_path(out), old_path(out)
    if os.path.lexists(old) and not os.path.lexists(out):
        old.rename(out)
    remove(old)
    remove(new)


def recover_all(out: Path) -> None:
    """`recover` for `out` and, where it is a folder, for every entry in it."""
    recover(out)
    if out.is_dir() and not out.is_symlink():
        for name in sorted(entry.name for entry in out.iterdir() if is_temporary(entry.name)):
            recover(out / name.removeprefix(".").removesuffix(_NEW).removesuffix(_OLD))


def has_left_overs(out: Path) -> bool:
    """Whether a run that was killed has left something beside `out`."""
    return os.path.lexists(new_path(out)) or os.path.lexists(old_path(out))


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of those that `swap` works with."""
    return name.startswith(".") and name.endswith((_NEW, _OLD))


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all it holds; fine where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two paths atomically; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:
        return False
    result = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def flush(folder: Path) -> None:
    """Brings what was written to the folder's file system to the disk.

    One call for all files: an fsync for each of the 2,000 configs of 1,000 models takes seconds.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at `path`; bind mounts, which `os.path.ismount` misses, included."""
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return path.is_mount()
    # The fifth field; the kernel writes space, tab, newline and backslash as octal escapes.
    place = os.fsencode(path.resolve())
    for char in b"\\ \t\n":
        place = place.replace(bytes([char]), b"\\%03o" % char)
    return any(line.split()[4] == place for line in mounts)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other tritonc processes from writing in `folder` meanwhile; leaves no lock file.

    Raises:
        OutputError: another process held the lock for a minute.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise OutputError(
                    f"{folder}: another tritonc has been writing here for a minute", "wait until it has ended"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as err:
        # Some network file systems have no locks: then two builds at once are the user's own care.
        if err.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EBADF):
            raise
    return True
