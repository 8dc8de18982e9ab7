"""A spec as it stands on disk: its models, and the place of every key for messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tritonc.schemas.errors import InputErrors, Location, SpecError, TritoncError
from tritonc.schemas.problems import KeyPath, Problem, problems_of
from tritonc.schemas.spec import API_VERSION, Spec
from tritonc.schemas.yaml_source import YamlSource, read_yaml

_NOUNS = {"models": "model", "ensembles": "ensemble", "targets": "target"}


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A spec that is valid in itself.

    Attributes:
        path: as the caller gave it.
        spec: what the file says.
        sha256: of the file's bytes.
        source: the YAML it was read from.
    """

    path: Path
    spec: Spec
    sha256: str
    source: YamlSource

    @property
    def folder(self) -> Path:
        """The project's folder: sources in the spec are relative to it."""
        return self.path.parent

    @property
    def lock_path(self) -> Path:
        """Where the lock of this spec is: `spec.lock.yaml` for `spec.yaml`."""
        return self.path.with_name(f"{self.path.stem}.lock.yaml")

    def location(self, key_path: KeyPath) -> Location:
        """The place of a key path, such as ("models", "ocr", "slo"), or of its nearest ancestor."""
        return self.source.location(key_path)

    def error(self, key_path: KeyPath, what: str, hint: str = "", *, at_key: bool = False) -> SpecError:
        """A problem with the value at a key path (or its absence, or the key), for the caller to raise."""
        place = self.source.key_location if at_key else self.source.location
        return SpecError(place(key_path), key_path, what, hint)


def read_spec(path: Path) -> SpecFile:
    """Reads and checks a spec, without looking at any other file.

    Raises:
        TritoncError: there is no such file, or it cannot be read.
        InputErrors: everything that is wrong with it, by place.
    """
    try:
        source = read_yaml(path, nouns=_NOUNS)
    except TritoncError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise TritoncError(
            f"{path}: there is no such file", "write a spec with: tritonc init MODEL.onnx"
        ) from error
    errors = list(source.problems)
    if not isinstance(source.data, dict):
        what = "the file is empty" if source.data is None else "the file is not a mapping of keys and values"
        problem = Problem((), what, f"a spec begins with apiVersion: {API_VERSION}")
        raise InputErrors([*errors, *source.errors([problem])])
    try:
        spec = Spec.model_validate(source.data, strict=True)
    except ValidationError as error:
        known = {problem.location for problem in errors}
        others = source.errors(problems_of(error, Spec))
        raise InputErrors([*errors, *(other for other in others if other.location not in known)]) from None
    if errors:
        raise InputErrors(errors)
    return SpecFile(path, spec, source.sha256, source)
