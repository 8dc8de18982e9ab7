"""The manifest of a built folder: every file that tritonc wrote there, with size and digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

MANIFEST_PATH = PurePosixPath("manifest.json")
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of the repository holds."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder was built from, and the files that belong to tritonc in it.

    It lists the weights also where they were not written (`--weights omit`): it is the same either way.

    Attributes:
        spec: the spec's `name`.
        spec_sha256: of the spec file.
        target: name of the target; empty where the folder holds more than one.
        files: every file but the manifest itself, by its path in the folder.
    """

    spec: str
    spec_sha256: str
    target: str
    files: Mapping[PurePosixPath, FileRecord]


def print_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON, one file a line, sorted, so that a changed file is a changed line."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "spec": {"name": manifest.spec, "sha256": manifest.spec_sha256},
        "target": manifest.target,
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    files = [
        f'    {json.dumps(path)}: {{"sha256": "{record.sha256}", "size_bytes": {record.size_bytes}}}'
        for path, record in sorted((path.as_posix(), record) for path, record in manifest.files.items())
    ]
    body = ",\n".join(files)
    return "\n".join(["{", *lines, '  "files": {', *([body] if body else []), "  }", "}", ""]).encode()


def parse_manifest(content: bytes) -> Manifest:
    """The manifest that `print_manifest` printed.

    Raises:
        ValueError: it is not one, or is of a version that this tritonc does not know.
    """
    document = json.loads(content)
    try:
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {document['schema_version']!r} is not {SCHEMA_VERSION}")
        files = {
            PurePosixPath(path): FileRecord(str(record["sha256"]), int(record["size_bytes"]))
            for path, record in document["files"].items()
        }
        spec = document["spec"]
        return Manifest(str(spec["name"]), str(spec["sha256"]), str(document["target"]), files)
    except (AttributeError, KeyError, TypeError) as err:
        raise ValueError(f"not a manifest of tritonc: {err!r}") from err
