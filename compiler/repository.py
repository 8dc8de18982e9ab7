"""A model repository as a value: what every file in it holds, with nothing on disk yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tritonc.compiler.candidate import VERSION, Candidate
from tritonc.compiler.header import candidate_header, member_header, selection_header
from tritonc.compiler.joint import members_of
from tritonc.compiler.model_config import render, render_ensemble
from tritonc.compiler.models.model_file import ModelFile
from tritonc.compiler.output.manifest import MANIFEST_PATH, FileRecord, Manifest, print_manifest
from tritonc.compiler.pbtxt import print_pbtxt
from tritonc.compiler.project import Project
from tritonc.compiler.protobuf import ModelConfig
from tritonc.compiler.selection import Selection, check_lock, select
from tritonc.compiler.server_args import server_args
from tritonc.schemas.errors import InputErrors, ModelFileError, TritoncError
from tritonc.schemas.lock import Lock


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
        ordered = dict(sorted({**files, MANIFEST_PATH: manifest}.items(), key=lambda file: str(file[0])))
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
    folders = {folder for parent in {path.parent for path in paths} for folder in (parent, *parent.parents)}
    if both := sorted(str(path) for path in paths if path in folders):
        raise ValueError(f'"{both[0]}" is a file of the repository and a folder of others')


def _record(content: Content) -> FileRecord:
    if isinstance(content, Weights):
        return FileRecord(content.sha256, content.size_bytes)
    return FileRecord(hashlib.sha256(content).hexdigest(), len(content))


def compile_repository(project: Project, lock: Lock | None, target: str) -> Repository:
    """The repository that serves every model of the spec on `target`, from spec, lock and weights alone.

    Raises:
        InputErrors: everything that is wrong with the lock, or with a model on this target.
    """
    notices = list(check_lock(project, lock))
    decisions = {(d.model, d.target): d for d in lock.decisions} if lock else {}
    selections: list[Selection] = []
    errors: list[TritoncError] = []
    for model in project.spec.tuned:
        try:
            selections.append(select(project, model, target, decisions.get((model, target))))
        except InputErrors as err:
            errors.extend(err)
        except TritoncError as err:
            errors.append(err)
    if errors:
        raise InputErrors(errors)
    notices += [selection.notice for selection in selections if selection.notice]
    untuned = [selection.candidate.model for selection in selections if selection.decision is None]
    if lock and untuned:
        notices.append(_not_in_lock(project, target, untuned))
    configs = [config for selection in selections for config in _selected(project, selection)]
    return _repository(
        project, target, configs, tuple(notices), all(selection.slo_met for selection in selections)
    )


_Config = tuple[str, ModelConfig, Sequence[str]]
"""The name in the spec of a model or an ensemble, its config and the config's header."""


def _selected(project: Project, selection: Selection) -> Iterator[_Config]:
    """The config of what is served; of an ensemble its models' too."""
    candidate, spec_file = selection.candidate, project.spec_file
    header = selection_header(spec_file, selection)
    if candidate.model not in project.ensembles:
        yield candidate.model, render(project, candidate), header
        return
    ensemble = project.ensembles[candidate.model]
    yield candidate.model, render_ensemble(ensemble, {model: model for model in ensemble.members}), header
    for model, member in members_of(candidate).items():
        yield model, render(project, member), member_header(spec_file, member, selection)


def _not_in_lock(project: Project, target: str, models: Sequence[str]) -> str:
    named = ", ".join(models[:5]) + (f" and {len(models) - 5} more" if len(models) > 5 else "")
    return (
        f"{target}: {project.spec_file.lock_path.name} has no decision for {named}: the baseline is used; "
        "to measure, run: tritonc tune"
    )


def compile_candidate(project: Project, candidate: Candidate) -> Repository:
    """The repository that serves one candidate alone.

    Raises:
        InputErrors: the spec and the model file do not go together.
    """
    return compile_candidates(project, {one.model: one for one in parts_of(project, candidate)})


def parts_of(project: Project, candidate: Candidate) -> tuple[Candidate, ...]:
    """What has to be loaded to serve a candidate, in that order: of an ensemble its models, then itself."""
    members = members_of(candidate)
    return (*members.values(), candidate) if candidate.model in project.ensembles else tuple(members.values())


def compile_candidates(project: Project, candidates: Mapping[str, Candidate]) -> Repository:
    """The repository that serves candidates side by side.

    Args:
        project: where their models are.
        candidates: by the name to serve each under; at least one, all of one target. With an ensemble there
            have to be those of its models (`parts_of`).

    Raises:
        InputErrors: the spec and a model file do not go together.
    """
    names = {candidate: name for name, candidate in candidates.items()}
    configs = []
    for name, candidate in candidates.items():
        if candidate.model in project.ensembles:
            called = {model: names[one] for model, one in members_of(candidate).items()}
            config = render_ensemble(project.ensembles[candidate.model], called)
        else:
            config = render(project, candidate)
        config.name = name
        header = candidate_header(project.spec_file, candidate.model, candidate.target, candidate.id)
        configs.append((candidate.model, config, header))
    target = next(iter(candidates.values())).target
    return _repository(project, target, configs)


def _repository(
    project: Project,
    target: str,
    configs: Sequence[_Config],
    notices: tuple[str, ...] = (),
    slo_met: bool = True,
) -> Repository:
    """The repository of these configs."""
    files: dict[PurePosixPath, Content] = {
        PurePosixPath("server.args"): server_args(
            project.spec.targets[target], (config for _, config, _ in configs)
        )
    }
    for model, config, header in configs:
        folder = PurePosixPath(config.name)
        files[folder / "config.pbtxt"] = print_pbtxt(config, header).encode()
        files |= {folder / str(VERSION) / path: content for path, content in _version(project, model)}
    spec_file = project.spec_file
    return Repository.of(
        files,
        spec=spec_file.spec.name,
        spec_sha256=spec_file.sha256,
        target=target,
        notices=notices,
        slo_met=slo_met,
    )


def _version(project: Project, name: str) -> Iterator[tuple[PurePosixPath, Content]]:
    """What the version folder of a model or an ensemble holds.

    Triton wants one of an ensemble too ("empty version directory", docs/user_guide/architecture.md), but git
    and object stores keep no empty folder; what file lies in it is nothing to Triton.
    """
    if name in project.ensembles:
        yield PurePosixPath(".gitkeep"), b""
    else:
        yield from _weights(project.models[name])


def _weights(file: ModelFile) -> Iterator[tuple[PurePosixPath, Weights]]:
    """The model file as `model.onnx` and, beside it, its data files under the names that it knows them by.

    Raises:
        ModelFileError: a data file would lie outside the version folder, or in the place of the model file.
    """
    yield PurePosixPath("model.onnx"), Weights(file.path, file.file_sha256[0], file.size_bytes)
    for data, sha256 in zip(file.external_data, file.file_sha256[1:], strict=True):
        path = PurePosixPath(data.relative_to(file.path.parent))
        if ".." in path.parts or path.parts[0] == "model.onnx":
            raise ModelFileError(
                file.path, f'its external data "{path}" cannot lie beside it in a repository', "rename it"
            )
        yield path, Weights(data, sha256, data.stat().st_size)
