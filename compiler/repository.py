"""A model repository as a value: what every file in it holds, with nothing on disk yet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tritonc.compiler.manifest import MANIFEST_PATH, FileRecord, Manifest, print_manifest


@dataclass(frozen=True, slots=True)
class Weights:
    """The content of a file that is too large to be held in memory: that of another file.

    Attributes:
        path: the file that holds it, read only when the repository is written.
        sha256: of the content.
        size_bytes: of the content.
    """

    path: Path
    sha256: str
    size_bytes: int


Content = bytes | Weights


@dataclass(frozen=True, slots=True)
class Repository:
    """Every file of a folder that tritonc writes, by its path in that folder, the manifest included.

    Attributes:
        files: sorted by path; no path leaves the folder.
        notices: sentences for the person who builds it, such as which model has only its baseline.
        slo_met: False where a model is served although no candidate of it met its SLO.
    """

    files: Mapping[PurePosixPath, Content]
    notices: tuple[str, ...] = ()
    slo_met: bool = True

    @classmethod
    def of(
        cls,
        files: Mapping[PurePosixPath, Content],
        *,
        spec: str,
        spec_sha256: str,
        target: str = "",
        notices: tuple[str, ...] = (),
        slo_met: bool = True,
    ) -> Repository:
        """The repository of these files and the manifest that lists them.

        Raises:
            ValueError: a path would leave the folder, or two paths cannot both exist.
        """
        check_paths(files)
        records = {path: _record(content) for path, content in files.items()}
        manifest = print_manifest(Manifest(spec, spec_sha256, target, records))
        ordered = dict(sorted({**files, MANIFEST_PATH: manifest}.items()))
        return cls(ordered, notices, slo_met)


def check_paths(paths: Mapping[PurePosixPath, object]) -> None:
    """Checks that the paths are those of files that can stand in one folder.

    Raises:
        ValueError: one is absolute, holds "..", is the manifest's, or lies below another that is a file.
    """
    for path in paths:
        parts = path.parts
        if not parts or path.is_absolute() or ".." in parts or "\0" in str(path):
            raise ValueError(f'"{path}" is no path inside the repository')
        if path == MANIFEST_PATH:
            raise ValueError(f'"{path}" is the name of tritonc\'s own manifest')
        above = next((parent for parent in path.parents if parent in paths), None)
        if above is not None:
            raise ValueError(f'"{path}" and "{above}" cannot both be files of the repository')


def _record(content: Content) -> FileRecord:
    if isinstance(content, Weights):
        return FileRecord(content.sha256, content.size_bytes)
    return FileRecord(hashlib.sha256(content).hexdigest(), len(content))
