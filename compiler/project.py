"""A spec together with the model files it names: everything that a build reads, apart from the lock."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tritonc.compiler.ensemble import Ensemble, ensembles_in
from tritonc.compiler.models.dims import dims_problems, pinned
from tritonc.compiler.models.model_file import ModelFile, read_model_file
from tritonc.compiler.models.source import path_of_source, require_inside
from tritonc.compiler.signature import OPEN, Signature
from tritonc.schemas.errors import InputErrors, ModelFileError, SpecError, TritoncError, did_you_mean
from tritonc.schemas.request_batch import sizes_of
from tritonc.schemas.spec import ModelSpec, Spec
from tritonc.schemas.spec_file import SpecFile, read_spec

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
"""What YAML 1.2 reads as text without quotes (apart from null, true and false)."""


@dataclass(frozen=True, slots=True)
class Project:
    """A valid spec and the files of its models, which agree with each other.

    Attributes:
        spec_file: the spec, with the places of its keys.
        models: by name, in the spec's order.
        ensembles: by name, in the spec's order.
    """

    spec_file: SpecFile
    models: Mapping[str, ModelFile]
    ensembles: Mapping[str, Ensemble] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        """What the spec file says."""
        return self.spec_file.spec

    @property
    def folder(self) -> Path:
        """The folder of the spec."""
        return self.spec_file.folder

    def max_batch_size(self, model: str) -> int:
        """The largest batch to consider: the spec's, or 0 for a model without a batch axis."""
        return self.spec.models[model].max_batch_size if self.models[model].signature.has_batch_axis else 0

    def served_signature(self, name: str) -> Signature:
        """The signature for config.pbtxt: an ensemble's, or the file's with what `dims` of the spec pins."""
        if name in self.ensembles:
            return self.ensembles[name].signature
        return pinned(self.models[name].signature, self.spec.models[name].dims)


def open_project(spec_path: Path, *, allow_outside: bool = False) -> Project:
    """Reads a spec and every model file it names; a file that several models share is read once.

    Args:
        spec_path: the spec file.
        allow_outside: whether model files may lie outside the spec's folder.

    Raises:
        TritoncError: there is no such spec.
        InputErrors: every problem of the spec; or, where it has none, every problem of its model files and
            every contradiction between them and the spec.
    """
    spec_file = read_spec(spec_path)
    reader = _Reader(spec_file.folder.resolve(), allow_outside)
    models: dict[str, ModelFile] = {}
    errors: list[SpecError] = []
    for name, model in spec_file.spec.models.items():
        try:
            file = reader.read(model.source)
        except ModelFileError as err:
            errors.append(spec_file.error(("models", name, "source"), err.what, err.hint))
            continue
        if model.max_batch_size == 0:
            file = replace(file, signature=file.signature.with_batch_in_dims())
        models[name] = file
        errors.extend(_contradictions(spec_file, name, model, file))
    alone = Project(spec_file, models)
    ensembles, problems = ensembles_in(spec_file, {name: alone.served_signature(name) for name in models})
    errors.extend(problems)
    errors.extend(_unmeasurable_objectives(spec_file))
    if errors:
        raise InputErrors(errors)
    return replace(alone, ensembles=ensembles)


def require_tuned(spec: Spec, names: Iterable[str]) -> None:
    """Refuses names given to --model that are not measured on their own.

    Raises:
        InputErrors: one for each, with what to write instead.
    """
    errors, tuned = [], spec.tuned
    for name in names:
        ensemble = spec.ensemble_with(name)
        if name in spec.models and ensemble:
            what = f"--model: {name} is a step of ensemble {ensemble}, and is tuned with it"
            errors.append(TritoncError(what, f"write --model {ensemble}"))
        elif name not in tuned:
            what = f'--model: the spec has no model "{name}"'
            errors.append(TritoncError(what, did_you_mean(name, tuned)))
    if errors:
        raise InputErrors(errors)


def measuring_shapes(
    project: Project, name: str, own: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """The dims that requests have while a model or an ensemble is measured, by input, without the batch axis.

    Args:
        project: where the model is.
        name: of the model or the ensemble.
        own: dims of some requests, which win over those of the model.

    Raises:
        InputErrors: a dimension is open, and `shapes` of the spec does not say which size to measure.
    """
    signature = project.served_signature(name)
    shapes = {**_shapes_of_members(project, name), **project.spec.asked_of(name).shapes, **(own or {})}
    whose = "the models leave" if name in project.ensembles else "the file leaves"
    result: dict[str, tuple[int, ...]] = {}
    errors: list[SpecError] = []
    for tensor in signature.inputs:
        result[tensor.name] = shapes.get(tensor.name, tensor.dims)
        if OPEN in result[tensor.name]:
            without = ", without the batch axis" if signature.has_batch_axis else ""
            sizes = ", ".join("?" if size == OPEN else str(size) for size in tensor.dims)
            key = tensor.name if _PLAIN_KEY.fullmatch(tensor.name) else json.dumps(tensor.name)
            what = f'{whose} dimensions of input "{tensor.name}" open: {list(tensor.dims)}{without}'
            hint = f"say which size to measure: shapes: {{{key}: [{sizes}]}} with a number for each ?"
            errors.append(project.spec_file.error((*project.spec.keys_of(name), "shapes"), what, hint))
    if errors:
        raise InputErrors(errors)
    return result


def _shapes_of_members(project: Project, name: str) -> dict[str, tuple[int, ...]]:
    """What `shapes` of its models say about the inputs of an ensemble; nothing of a model."""
    ensemble = project.ensembles.get(name)
    if ensemble is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for step in ensemble.steps:
        own, has_batch_axis = project.spec.models[step.model].shapes, project.max_batch_size(step.model) > 0
        if has_batch_axis == ensemble.signature.has_batch_axis:
            shapes |= {step.input_map[name]: dims for name, dims in own.items()}
    return shapes


class _Reader:
    """Reads each file once, however many models name it."""

    def __init__(self, folder: Path, allow_outside: bool) -> None:
        self._folder = folder
        self._allow_outside = allow_outside
        self._read: dict[Path, ModelFile] = {}

    def read(self, source: str) -> ModelFile:
        """The file of a source; messages call it what the spec calls it."""
        path = path_of_source(source, self._folder, allow_outside=self._allow_outside)
        if path not in self._read:
            try:
                file = read_model_file(path)
            except ModelFileError as err:
                raise ModelFileError(source, err.what.removeprefix(f"{path}: "), err.hint) from err
            if not self._allow_outside:
                for data in file.external_data:
                    require_inside(data, self._folder, f"{source}: {data.name}")
            self._read[path] = file
        return self._read[path]


def _contradictions(spec_file: SpecFile, name: str, model: ModelSpec, file: ModelFile) -> Iterator[SpecError]:
    here = ("models", name)
    if model.sha256 and model.sha256 != file.sha256:
        yield spec_file.error(
            (*here, "sha256"),
            f"{model.source} has sha256 {file.sha256}, not {model.sha256}",
            "restore the file; if the new one is meant, write its digest here",
        )
    if not file.signature.has_batch_axis and model.max_batch_size > 0:
        if "max_batch_size" in model.model_fields_set:
            yield spec_file.error(
                (*here, "max_batch_size"),
                f"max_batch_size is {model.max_batch_size}, but {model.source} has no batch axis: "
                + _why_no_batch_axis(file.signature),
                "write max_batch_size: 0, or export the model with an open first dimension",
            )
        for number, workload in enumerate(model.workloads):
            size = max(sizes_of(workload.request_batch))
            if size > 1:
                yield spec_file.error(
                    (*here, *model.workload_keys(number), "request_batch"),
                    f"request_batch is {size}, but {model.source} has no batch axis",
                    "write request_batch: 1",
                )
    inputs = [tensor.name for tensor in file.signature.inputs]
    for unknown in model.data.keys() - inputs:
        what = f'data: the model has no input "{unknown}"'
        yield spec_file.error((*here, "data", unknown), what, did_you_mean(unknown, inputs), at_key=True)
    for problem in dims_problems(file.signature, model.dims, model.shapes):
        yield spec_file.error((*here, *problem.key_path), problem.what, problem.hint)
    for number, workload in enumerate(model.workloads):
        for place, share in enumerate(workload.shapes):
            there = (*here, *model.workload_keys(number), "shapes", place)
            for problem in dims_problems(file.signature, {}, share.shapes, pinned_by=model.dims):
                yield spec_file.error((*there, *problem.key_path[1:]), problem.what, problem.hint)


def _unmeasurable_objectives(spec_file: SpecFile) -> Iterator[SpecError]:
    """What an objective needs of every target: a price, or a GPU."""
    spec, targets = spec_file.spec, spec_file.spec.targets
    asked = {name: spec.asked_of(name) for name in spec.tuned}
    counts_cost = [name for name, each in asked.items() if "cost" in each.objectives]
    for name, target in targets.items():
        if counts_cost and target.price_per_hour is None:
            what = f"target {name} has no price_per_hour, but the objective of {counts_cost[0]} is about cost"
            hint = "add what an hour of this machine costs, in any currency: price_per_hour: 0.50"
            yield spec_file.error(("targets", name), what, hint, at_key=True)
    without_gpu = [name for name, target in targets.items() if target.device == "cpu"]
    for name, each in asked.items():
        if "energy" in each.objectives and without_gpu:
            what = (
                f"the objective is about energy, which only a GPU tells, and target {without_gpu[0]} has none"
            )
            hint = "choose another objective, or put this model and GPU targets in a spec of their own"
            yield spec_file.error((*spec.keys_of(name), "objective"), what, hint)


def _why_no_batch_axis(signature: Signature) -> str:
    if not signature.inputs:
        return "it has no inputs"
    for side, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        for tensor in tensors:
            if tensor.dims[:1] != (OPEN,):
                return f'{side} "{tensor.name}" is {list(tensor.dims)}'
    return "the first dimension of its outputs does not follow that of its inputs"
