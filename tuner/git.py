"""Which commit the evidence was measured at."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

_TIMEOUT_S = 10


def commit_of(folder: Path, paths: Iterable[Path] = ()) -> str | None:
    """The commit that `folder` is at, with "+dirty" where one of `paths` is not as it was committed.

    Returns:
        None outside a git repository, before its first commit, or where git is not installed.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--", *(str(path) for path in paths))
    return commit if changed == "" else f"{commit}+dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git printed; None where it failed. Takes no lock, asks for nothing."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],  # noqa: S607  (the person's own git)
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
