"""Candidate repositories: one folder for each configuration that `tune` could measure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.output.manifest import MANIFEST_PATH
from tritonc.compiler.project import Project
from tritonc.compiler.repository import Content, Repository, compile_candidate
from tritonc.compiler.space import Space, space_for
from tritonc.schemas.errors import InputErrors, TritoncError

INDEX_PATH = PurePosixPath("index.json")
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A Space and the first of its candidates, the baseline before all others."""

    space: Space
    candidates: tuple[Candidate, ...]

    @property
    def folder(self) -> PurePosixPath:
        """Where its candidates lie in the output folder."""
        return PurePosixPath(self.space.target, self.space.model)


def excerpts(
    project: Project, models: Iterable[str], targets: Sequence[str], limit: int
) -> tuple[Excerpt, ...]:
    """The first `limit` candidates of each (model, target).

    Raises:
        InputErrors: everything that is wrong with any of their spaces.
    """
    found: list[Excerpt] = []
    errors: list[TritoncError] = []
    for model, target in itertools.product(models, targets):
        try:
            space = space_for(project, model, target)
        except InputErrors as err:
            errors.extend(err)
        except TritoncError as err:
            errors.append(err)
        else:
            found.append(Excerpt(space, tuple(itertools.islice(_baseline_first(space), limit))))
    if errors:
        raise InputErrors(errors)
    return tuple(found)


def compile_candidates(project: Project, selected: Sequence[Excerpt]) -> Repository:
    """A repository for each candidate in `<target>/<model>/<candidate>/`, and an index of them.

    Raises:
        InputErrors: the spec and a model file do not go together.
    """
    files: dict[PurePosixPath, Content] = {INDEX_PATH: _index(selected)}
    for excerpt in selected:
        for candidate in excerpt.candidates:
            compiled = compile_candidate(project, candidate)
            files |= {
                excerpt.folder / candidate.id / path: content
                for path, content in compiled.files.items()
                if path != MANIFEST_PATH
            }
    return Repository.of(files, spec=project.spec.name, spec_sha256=project.spec_file.sha256)


def _baseline_first(space: Space) -> Iterator[Candidate]:
    yield space.baseline
    yield from (candidate for candidate in space if candidate != space.baseline)


def _index(selected: Sequence[Excerpt]) -> bytes:
    spaces = [
        {
            "model": excerpt.space.model,
            "target": excerpt.space.target,
            "size": len(excerpt.space),
            "baseline": excerpt.space.baseline.id,
            "candidates": [
                {
                    "id": candidate.id,
                    "repository": (excerpt.folder / candidate.id).as_posix(),
                    "knobs": candidate.values,
                }
                for candidate in excerpt.candidates
            ],
        }
        for excerpt in selected
    ]
    return (json.dumps({"schema_version": SCHEMA_VERSION, "spaces": spaces}, indent=2) + "\n").encode()
