"""Whether the evidence in a lock still belongs to the spec and its model files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Literal

from tritonc.compiler.models.source import path_of_source
from tritonc.compiler.project import Project
from tritonc.compiler.space import Space, space_for
from tritonc.schemas.errors import ModelFileError
from tritonc.schemas.lock import Digests
from tritonc.schemas.problems import KeyPath
from tritonc.schemas.spec import FileData, TraceWorkload

Part = Literal["source", "signature", "space", "load"]


def digests(project: Project, model: str, target: str) -> Digests:
    """Digests of everything that a decision for (model, target) depends on.

    Raises:
        InputErrors: the spec allows no candidate there, or a file of data or times cannot be read.
    """
    return digests_in(project, space_for(project, model, target))


def digests_in(project: Project, space: Space, *, alone: bool = False) -> Digests:
    """`digests` where the Space is at hand.

    Args:
        project: where the model is.
        space: of (model, target).
        alone: the model is measured alone, even if the spec has it tuned together with others.

    Raises:
        SpecError: a file of input data, or of times of arrival, cannot be read.
    """
    load = _load_digest(project, space.model, space.target, alone=alone)
    if space.model in project.ensembles:
        return _ensemble_digests(project, space, load)
    file = project.models[space.model]
    return Digests(
        source=file.sha256,
        signature=_digest(dataclasses.asdict(file.signature)),
        space=space.digest,
        load=load,
    )


def _ensemble_digests(project: Project, space: Space, load: str) -> Digests:
    """Of an ensemble: its steps, as far as they say what it computes, count as its signature."""
    ensemble = project.ensembles[space.model]
    files = {model: project.models[model] for model in ensemble.members}
    return Digests(
        source=_digest({model: file.sha256 for model, file in files.items()}),
        signature=_digest(
            {
                "models": {model: dataclasses.asdict(file.signature) for model, file in files.items()},
                "steps": [step.model_dump(mode="json") for step in ensemble.steps],
                "signature": dataclasses.asdict(ensemble.signature),
                "max_batch_size": ensemble.max_batch_size,
            }
        ),
        space=space.digest,
        load=load,
    )


def changed_parts(then: Digests, now: Digests) -> tuple[Part, ...]:
    """What has changed between two sets of digests."""
    parts: tuple[Part, ...] = ("signature", "source", "load", "space")
    return tuple(part for part in parts if getattr(then, part) != getattr(now, part))


def _load_digest(project: Project, model: str, target: str, *, alone: bool) -> str:
    """Of what a Measurement was made under: load, limits, inputs, and the machine that was declared.

    Keys that have their default are left out: a spec key added by a later tritonc makes no lock stale.
    """
    spec, machine = project.spec.asked_of(model), project.spec.targets[target]
    load_keys = {"workload", "slo", "objective", "accuracy", "shapes", "dims", "data"}
    machine_keys = {"device", "cores", "memory", "gpu"}
    if "cost" in spec.objectives:
        machine_keys.add("price_per_hour")
    group = {} if alone else project.spec.group_of(model)
    members = project.ensembles[model].members if model in project.ensembles else ()
    shaped = {
        member: project.spec.models[member].model_dump(
            mode="json", include={"shapes", "dims"}, exclude_defaults=True
        )
        for member in members
    }
    load = spec.model_dump(mode="json", include=load_keys, exclude_defaults=True)
    for number, workload in enumerate(spec.workloads):
        if isinstance(workload, TraceWorkload):  # what is in the file counts, not how it is called
            keys = (*project.spec.keys_of(model), *spec.workload_keys(number), "file")
            dumped = load["workload"][number] if isinstance(spec.workload, tuple) else load["workload"]
            dumped["file"] = _file_digest(project, keys, workload.file)
    return _digest(
        {
            **({"together": dict(group)} if group else {}),
            **({"members": shaped} if shaped else {}),
            "load": load,
            "machine": machine.model_dump(mode="json", include=machine_keys, exclude_defaults=True),
            "files": {
                name: _file_digest(project, (*project.spec.keys_of(model), "data", name, "file"), data.file)
                for name, data in spec.data.items()
                if isinstance(data, FileData)
            },
        }
    )


def _file_digest(project: Project, key_path: KeyPath, file: str) -> str:
    try:
        # Whether it may lie outside the project is for those to say who read its values.
        path = path_of_source(file, project.folder.resolve(), allow_outside=True)
        if path.exists() and not path.is_file():
            raise project.spec_file.error(key_path, f"{file}: is no file")
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except ModelFileError as err:
        raise project.spec_file.error(key_path, err.what, err.hint) from err
    except OSError as err:
        what = f"{file}: cannot be read: {err.strerror}"
        raise project.spec_file.error(key_path, what, "the path is relative to the spec") from err


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
