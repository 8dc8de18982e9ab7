"""Whether files were touched."""

from __future__ import annotations

from pathlib import Path


def written(path: Path) -> tuple[int, ...]:
    """What changes where something is written; the time of access does where it is but read."""
    stat = path.stat()
    return stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
