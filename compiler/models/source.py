"""Where `source` of a spec leads: a path or `file:` URI, by default inside the project's folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from tritonc.schemas.errors import ModelFileError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LOCAL_HOSTS = ("", "localhost")  # RFC 8089: these two mean the machine that reads the URI


def path_of_source(source: str, folder: Path, *, allow_outside: bool = False) -> Path:
    """The path that `source` names; whether there is a file is not looked at.

    Args:
        source: as the spec has it.
        folder: the project's folder, resolved; a relative path starts there.
        allow_outside: whether the file may lie outside `folder`.

    Raises:
        ModelFileError: it is a remote source, or lies outside the folder, by `..` or a symbolic link.
    """
    scheme = _SCHEME.match(source)
    if scheme and scheme[1].lower() != "file":
        raise ModelFileError(
            source,
            f"is a remote source ({scheme[1]}:); remote sources come later",
            "download the model and write its path"
            + (f", or ./{source} if that is the name of a file" if "/" not in source else ""),
        )
    plain = _path_of_file_uri(source) if scheme else source
    if "\0" in plain:
        raise ModelFileError(source, "holds a NUL character", "write the path of a file")
    path = folder / plain
    if not allow_outside:
        require_inside(path, folder, source)
    return path


def require_inside(path: Path, folder: Path, source: str) -> None:
    """Refuses a path that leads out of a folder.

    Args:
        path: need not exist.
        folder: resolved.
        source: what to call the path in a message.

    Raises:
        ModelFileError: it does, by `..` or a symbolic link, or cannot be followed.
    """
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as err:  # up to Python 3.12, RuntimeError is a loop of symbolic links
        raise ModelFileError(source, "cannot be followed", "check the symbolic links on its path") from err
    if not real.is_relative_to(folder):
        raise ModelFileError(
            source,
            "is outside the project's folder",
            "move it into the folder of the spec, or allow it with --allow-outside",
        )


def _path_of_file_uri(source: str) -> str:
    path = source[len("file:") :]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host.lower() not in _LOCAL_HOSTS:
            raise ModelFileError(
                source, f'is on another machine, "{host}"', "write file:/absolute/path or a relative path"
            )
        path = slash + path
    return unquote(path)
