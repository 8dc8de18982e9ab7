"""Weights put into a repository: copied, sharing blocks where the file system can, or hard-linked."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Literal

from tritonc.compiler.repository import Weights
from tritonc.schemas.errors import ModelFileError

_CHUNK_BYTES = 1 << 30
"""The kernel copies at most 2 GiB a call."""


def place_weights(weights: Weights, destination: Path, mode: Literal["copy", "link"]) -> None:
    """Creates `destination` with the content of the weights.

    `link` makes a hard link, which also works in a container that sees the repository alone, as a symbolic
    link would not; where a hard link cannot be (another file system, a file of another user) it copies.

    Raises:
        ModelFileError: the weights cannot be read, or are no longer what they were when they were hashed.
        OSError: `destination` cannot be written.
    """
    if mode == "link" and _linked(weights.path, destination):
        return
    try:
        source = os.open(weights.path, os.O_RDONLY)
    except OSError as err:
        raise ModelFileError(weights.path, f"cannot be read: {err.strerror}") from err
    try:
        target = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _copy(source, target)
            size_bytes = os.fstat(target).st_size
        finally:
            os.close(target)
    finally:
        os.close(source)
    if size_bytes != weights.size_bytes:
        raise ModelFileError(weights.path, "changed while it was copied", "run the command again")


def _linked(source: Path, destination: Path) -> bool:
    with contextlib.suppress(OSError):
        os.link(source.resolve(), destination)
        return True
    return False


def _copy(source: int, target: int) -> None:
    """Copies all of a file in the kernel, which shares the blocks on btrfs, XFS and the like (reflink)."""
    try:
        while os.copy_file_range(source, target, _CHUNK_BYTES):
            pass
    except OSError as err:
        if err.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
            raise
        os.lseek(source, 0, os.SEEK_SET)
        os.ftruncate(target, 0)
        os.lseek(target, 0, os.SEEK_SET)
        with open(source, "rb", closefd=False) as reader, open(target, "wb", closefd=False) as writer:
            shutil.copyfileobj(reader, writer, _CHUNK_BYTES >> 10)
