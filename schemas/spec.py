"""The spec: what a team declares. Frozen pydantic models of `spec.yaml`, version `tritonc/v1`.

These models hold what can be said about a spec without looking at any other file; what needs the model files
or the catalogue of knobs is checked by the compiler, which reports at the same places (`SpecFile.error`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from tritonc.schemas.errors import found
from tritonc.schemas.input_data import ConstantData, FileData, InputData, RandomData
from tritonc.schemas.objective import Aim, Axis, Objective, Pareto, Weight, objectives_of
from tritonc.schemas.problems import KeyPath, problem
from tritonc.schemas.request_batch import sizes_of
from tritonc.schemas.search_domain import Range, SearchDomain
from tritonc.schemas.slo import Limit, SizeLimit, Slo, SoftLimit, SoftSizeLimit
from tritonc.schemas.spec_fields import (
    INT32_MAX,
    NAME_PATTERN,
    Bytes,
    Count,
    Dims,
    FilePath,
    Model,
    Name,
    OpenDims,
    Positive,
    Release,
    Scalar,
    Sha256,
)
from tritonc.schemas.step import Step, TensorName
from tritonc.schemas.together import Groups, groups_of
from tritonc.schemas.workload import (
    ClosedWorkload,
    OpenWorkload,
    TraceWorkload,
    Workload,
    Workloads,
    each_workload,
    keys_of_workload,
)

API_VERSION = "tritonc/v1"


class Accuracy(Model):
    """How far outputs may differ from the source model's: |a - b| <= atol + rtol x |b|, as numpy.allclose."""

    rtol: Annotated[float, Field(ge=0)] = 1e-2
    atol: Annotated[float, Field(ge=0)] = 1e-3


class ModelSpec(Model):
    """One model: its file, the load it must carry and the limits it must keep."""

    source: FilePath
    """The model file, relative to the spec's folder."""
    sha256: Sha256 | None = None
    """Digest of the model file; another file is an error."""
    shapes: dict[str, Dims] = Field(default_factory=dict)
    """Full dims without the batch axis, by input, for measuring and verifying."""
    dims: dict[str, OpenDims] = Field(default_factory=dict)
    """Pins dims in config.pbtxt, by input or output, without the batch axis; -1 leaves one open."""
    max_batch_size: Annotated[int, Field(ge=0, le=INT32_MAX)] = 8
    """The largest to consider; 0: the model has no batch axis."""
    data: dict[str, InputData] = Field(default_factory=dict)
    """Values of the inputs, for measuring and verifying."""
    workload: Workloads = ClosedWorkload()
    """How requests arrive; of several all must hold, and the first one's capacity is sought."""
    slo: Slo = Slo()
    objective: Aim = "throughput"
    """What to make best within the SLO, weights of several, or {pareto: […]} for a front to pick from."""
    accuracy: Accuracy = Accuracy()
    search: dict[str, SearchDomain] = Field(default_factory=dict)
    """Narrows, widens or pins knobs for this model; wins over the spec's own `search`."""
    parameters: dict[str, Scalar] = Field(default_factory=dict)
    """`parameters` of config.pbtxt, passed through."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Any other field of config.pbtxt, passed through and validated against the ModelConfig protobuf."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """What `objective` names, one or several."""
        return objectives_of(self.objective)

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """All that must hold; the first one's capacity is sought."""
        return each_workload(self.workload)

    def workload_keys(self, number: int) -> KeyPath:
        """Where one of `workloads` stands, from the model on."""
        return keys_of_workload(self.workload, number)

    @field_validator("workload")
    @classmethod
    def _fits_batch(cls, value: Workloads, info: ValidationInfo) -> Workloads:
        largest = info.data.get("max_batch_size", INT32_MAX)
        for number, each in enumerate(each_workload(value)):
            size = max(sizes_of(each.request_batch))
            if size > max(largest, 1):
                why = " (no batch axis)" if largest == 0 else ""
                at: KeyPath = (number,) if isinstance(value, tuple) else ()
                name = f"{{field}}[{number}]" if at else "{field}"
                raise problem(
                    f"{name}.request_batch is {size} but max_batch_size is {largest}{why}",
                    "lower request_batch, or raise max_batch_size",
                    at=(*at, "request_batch"),
                )
        return value


class EnsembleSpec(Model):
    """Models one behind the other that Triton serves as one, and the load that they carry together.

    Tensors have names of their own in it; one that no step writes is an input. Types and dims are those of
    the models.
    """

    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    """Each runs as soon as what it reads is there, whatever the order they stand in."""
    outputs: Annotated[tuple[TensorName, ...], Field(min_length=1)] | None = None
    """Tensors that clients get (default: those that no step reads)."""
    max_batch_size: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """The largest request that clients may send, whatever the configuration; 0: it has no batch axis. The
    models' own may be larger and are searched: they join requests. (Default: the largest `request_batch` of
    its workloads, or 0 where a model has no batch axis.)"""
    shapes: dict[str, Dims] = Field(default_factory=dict)
    """Full dims without the batch axis, by input, for measuring and verifying (default: the models')."""
    data: dict[str, InputData] = Field(default_factory=dict)
    """Values of the inputs, for measuring and verifying."""
    workload: Workloads = ClosedWorkload()
    """How requests arrive; of several all must hold, and the first one's capacity is sought."""
    slo: Slo = Slo()
    objective: Aim = "throughput"
    """What to make best within the SLO, weights of several, or {pareto: […]} for a front to pick from."""
    accuracy: Accuracy = Accuracy()

    @property
    def objectives(self) -> tuple[str, ...]:
        """What `objective` names, one or several."""
        return objectives_of(self.objective)

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """All that must hold; the first one's capacity is sought."""
        return each_workload(self.workload)

    def workload_keys(self, number: int) -> KeyPath:
        """Where one of `workloads` stands, from the ensemble on."""
        return keys_of_workload(self.workload, number)

    @property
    def members(self) -> tuple[str, ...]:
        """The models of its steps, each once."""
        return tuple(dict.fromkeys(step.model for step in self.steps))


class Gpu(Model):
    """The GPUs of a target."""

    name: Annotated[str, Field(min_length=1)]
    """As nvidia-smi prints it, or a part of that."""
    memory: Bytes
    """Of one GPU."""
    count: Count = 1


class BackendSpec(Model):
    """What a backend may use on a target; None means the backend's default."""

    accelerators: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    precisions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class TargetSpec(Model):
    """One kind of machine that will serve: one repository is built for each."""

    device: Literal["cpu", "gpu"]
    cores: Count | None = None
    """Cores the server may use; None: on a machine that measures, all it has."""
    memory: Bytes | None = None
    """Host memory."""
    gpu: Annotated[Gpu | None, Field(validate_default=True)] = None
    triton: Release = "24.10"
    """The release that will serve it: decides which keys exist. The default is the embedded engine's."""
    price_per_hour: Positive | None = None
    """Of one such machine, in any currency: what `objective: cost` counts with."""
    backends: Annotated[dict[str, BackendSpec], Field(min_length=1)]
    """Triton backends that may run the models, each with what it may use."""

    @field_validator("gpu")
    @classmethod
    def _fits_device(cls, value: Gpu | None, info: ValidationInfo) -> Gpu | None:
        device = info.data.get("device")
        if device == "cpu" and value is not None:
            raise problem("a target with device: cpu has a gpu", "leave gpu out, or write device: gpu")
        if device == "gpu" and value is None:
            raise problem("a target with device: gpu has no gpu", "add gpu: {name: A10, memory: 24GiB}")
        return value


def _api_version(value: object) -> object:
    if value != API_VERSION:
        raise problem(f"{{field}} is {found(value)}", f"this tritonc reads apiVersion: {API_VERSION}")
    return value


class Spec(Model):
    """A whole spec file."""

    apiVersion: Annotated[Literal["tritonc/v1"], BeforeValidator(_api_version)]  # noqa: N815  (as every declarative API spells it)
    """Version of this format."""
    name: Name
    """Names the project in the lock and in MLflow."""
    models: Annotated[dict[Name, ModelSpec], Field(min_length=1)]
    """The models, by the name Triton serves them under."""
    ensembles: dict[Name, EnsembleSpec] = Field(default_factory=dict)
    """Pipelines of models, by the name Triton serves them under; measured and tuned as a whole."""
    targets: Annotated[dict[Name, TargetSpec], Field(min_length=1)]
    """Kinds of machine, by name; each gets a repository of its own."""
    search: dict[str, SearchDomain] = Field(default_factory=dict)
    """Narrows, widens or pins knobs for every model."""
    together: Groups = ()
    """Models that share their machine: tuned as one, each under its own load while others are under theirs.
    A list of models, or the weights of their objectives by model, or a list of several such groups."""

    @field_validator("together", mode="before")
    @classmethod
    def _groups(cls, value: object, info: ValidationInfo) -> tuple[dict[str, float], ...]:
        models: Mapping[str, ModelSpec] | None = info.data.get("models")
        groups = groups_of(value, models)
        for group in groups:
            for name in group:
                if models is not None and isinstance(models[name].objective, Pareto):
                    raise problem(
                        f"{{field}} names {name}, whose objective is a front",
                        "give it one objective, or weights: together there is one number to make best",
                    )
                if models is not None and len(models[name].workloads) > 1:
                    raise problem(
                        f"{{field}} names {name}, which has several workloads",
                        "give it one: together each model is under its own while the others are under theirs",
                    )
        return groups

    @property
    def tuned(self) -> tuple[str, ...]:
        """What is measured and decided on its own: ensembles, and the models that are in none."""
        members = {model for ensemble in self.ensembles.values() for model in ensemble.members}
        return (*(model for model in self.models if model not in members), *self.ensembles)

    def keys_of(self, name: str) -> KeyPath:
        """Where a model or an ensemble stands."""
        return ("ensembles" if name in self.ensembles else "models", name)

    def asked_of(self, name: str) -> ModelSpec | EnsembleSpec:
        """What load a model or an ensemble carries, within which limits, for what."""
        return self.ensembles[name] if name in self.ensembles else self.models[name]

    def ensemble_with(self, model: str) -> str | None:
        """The ensemble that a model is a step of."""
        return next(
            (name for name, each in self.ensembles.items() if any(s.model == model for s in each.steps)),
            None,
        )

    def group_of(self, model: str) -> Mapping[str, float]:
        """The weights of the models that `model` is tuned together with, its own included; else nothing."""
        return next((group for group in self.together if model in group), {})


__all__ = [
    "API_VERSION",
    "NAME_PATTERN",
    "Accuracy",
    "Aim",
    "Axis",
    "BackendSpec",
    "Bytes",
    "ClosedWorkload",
    "ConstantData",
    "Dims",
    "EnsembleSpec",
    "FileData",
    "Gpu",
    "InputData",
    "Limit",
    "Model",
    "ModelSpec",
    "Name",
    "Objective",
    "OpenWorkload",
    "Pareto",
    "RandomData",
    "Range",
    "Release",
    "Scalar",
    "SearchDomain",
    "SizeLimit",
    "Slo",
    "SoftLimit",
    "SoftSizeLimit",
    "Spec",
    "Step",
    "TargetSpec",
    "TraceWorkload",
    "Weight",
    "Workload",
    "Workloads",
]
