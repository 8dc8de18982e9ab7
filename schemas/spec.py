"""The spec: what a team declares. Frozen pydantic models of `spec.yaml`, version `tritonc/v1`.

These models hold what can be said about a spec without looking at any other file; what needs the model files
or the catalogue of knobs is checked by the compiler, which reports at the same places (`SpecFile.error`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

from tritonc.schemas.errors import did_you_mean, found, shortened
from tritonc.schemas.problems import KeyPath, problem
from tritonc.schemas.request_batch import sizes_of
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
    scalar,
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


class Range(Model):
    """A geometric grid between two ends, both included (plus 0 where `min` is 0)."""

    min: Annotated[float, Field(ge=0)]
    max: Annotated[float, Field(ge=0)]

    @field_validator("max")
    @classmethod
    def _not_empty(cls, value: float, info: ValidationInfo) -> float:
        low = info.data.get("min", value)
        if low > value:
            raise problem(
                f"{{field}} is {value:g} but min is {low:g}: the search range is empty", "swap them"
            )
        return value


def _search_value(value: object) -> object:
    if isinstance(value, list | tuple):
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            raise problem("{field} is a list", "a list inside of a list holds whole numbers")
        return value
    return scalar(value)


def _search_domain(value: object) -> object:
    if isinstance(value, list | tuple) and not value:
        raise problem(
            "{field} has a search range that is empty", "give at least one value, or leave the key out"
        )
    if value is None:
        raise problem("{field} is empty", "give a value, a list of values, or {min: …, max: …}")
    return value


def _domain_kind(value: object) -> str:
    if isinstance(value, Mapping | Range):
        return "{min, max}"
    return "[…]" if isinstance(value, list | tuple) else "scalar"


SearchValue = Annotated[bool | int | float | str | tuple[int, ...], BeforeValidator(_search_value)]
SearchDomain = Annotated[
    Annotated[Range, Tag("{min, max}")]
    | Annotated[tuple[SearchValue, ...], Field(json_schema_extra={"minItems": 1}), Tag("[…]")]
    | Annotated[Scalar, Tag("scalar")],
    Discriminator(_domain_kind),
    BeforeValidator(_search_domain),
]
"""`{min, max}` is a geometric grid, a list is a grid, a scalar pins."""


def _ends(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise problem(f"{{field}} has {len(value)} numbers", "it must be [low, high]")
    return value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise problem(f"{{field}} goes from {value[0]:g} to {value[1]:g}", "write the lower end first")
    return value


class RandomData(Model):
    """Uniform random values in [low, high]; integers include both ends."""

    range: Annotated[tuple[float, float], BeforeValidator(_ends), AfterValidator(_ordered)]


class ConstantData(Model):
    """Every element has this value."""

    constant: Scalar


class FileData(Model):
    """Values from a file beside the spec: `.npz` (an array named like the input) or perf_analyzer's JSON."""

    file: FilePath


_DATA_KEYS = ("constant", "file", "range")


def _input_data(value: object) -> object:
    if not isinstance(value, Mapping):
        if isinstance(value, Model):
            return value
        raise problem(
            f"{{field}} is {found(value)}", "it must be {range: [low, high]}, {constant: …} or {file: …}"
        )
    for key in value:
        if key not in _DATA_KEYS:
            raise problem(
                f'unknown key "{shortened(str(key))}" in {{field}}',
                did_you_mean(str(key), _DATA_KEYS),
                at=(key,),
            )
    if len(value) != 1:
        raise problem(
            f"{{field}} has {len(value)} sources of data", f"it must have one of: {', '.join(_DATA_KEYS)}"
        )
    return value


def _data_kind(value: object) -> str:
    return f"{next(iter(value if isinstance(value, Mapping) else type(value).__annotations__))} data"


InputData = Annotated[
    Annotated[RandomData, Tag("range data")]
    | Annotated[ConstantData, Tag("constant data")]
    | Annotated[FileData, Tag("file data")],
    Discriminator(_data_kind),
    BeforeValidator(_input_data),
]


class SoftLimit(Model):
    """A limit that may be soft: missing a soft one costs, but rules nothing out.

    Who misses a soft limit by 10% has to be 21% better in the objective to win all the same, who misses it by
    a factor of two four times better.
    """

    limit: Positive
    """As a hard limit is written."""
    soft: bool = False
    """Whether it may be missed; false: as if the limit stood there alone."""


class SoftSizeLimit(Model):
    """A limit of memory that may be soft: missing a soft one costs, but rules nothing out."""

    limit: Bytes
    """As a hard limit is written."""
    soft: bool = False
    """Whether it may be missed; false: as if the limit stood there alone."""


def _limit_kind(value: object) -> str:
    return "{limit, soft}" if isinstance(value, Mapping | Model) else "hard limit"


Limit = Annotated[
    Annotated[Positive, Tag("hard limit")] | Annotated[SoftLimit, Tag("{limit, soft}")],
    Discriminator(_limit_kind),
]
"""A number is a hard limit; `{limit: 80, soft: true}` a soft one."""
SizeLimit = Annotated[
    Annotated[Bytes, Tag("hard limit")] | Annotated[SoftSizeLimit, Tag("{limit, soft}")],
    Discriminator(_limit_kind),
]
"""A size is a hard limit; `{limit: 2GiB, soft: true}` a soft one."""


class Slo(Model):
    """Limits that a configuration must keep (a number), or should keep ({limit: 80, soft: true}).

    Latencies run from the client's send to its last response.
    """

    p50_latency_ms: Limit | None = None
    p90_latency_ms: Limit | None = None
    p95_latency_ms: Limit | None = None
    p99_latency_ms: Limit | None = None
    avg_latency_ms: Limit | None = None
    min_throughput: Limit | None = None
    """Inferences a second."""
    max_memory: SizeLimit | None = None
    """Of the server, host memory."""
    avg_queue_ms: Limit | None = None
    """Time a request waits in the server for an instance or for a batch to fill, on average."""
    max_load_seconds: Limit | None = None
    """Time from asking the server for the model until it serves (cold start)."""

    @property
    def hard(self) -> dict[str, float]:
        """The limits that must be kept, by name."""
        return {name: limit for name, (limit, soft) in self._all().items() if not soft}

    @property
    def soft(self) -> dict[str, float]:
        """The limits that may be missed at a cost, by name."""
        return {name: limit for name, (limit, soft) in self._all().items() if soft}

    @property
    def limits(self) -> dict[str, float]:
        """All of them by name, hard and soft."""
        return {name: limit for name, (limit, _) in self._all().items()}

    def _all(self) -> dict[str, tuple[float, bool]]:
        """Limit, and whether it is soft, by name."""
        found: dict[str, tuple[float, bool]] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SoftLimit | SoftSizeLimit):
                found[name] = (value.limit, value.soft)
            elif value is not None:
                found[name] = (value, False)
        return found


Objective = Literal["throughput", "latency", "memory", "cost", "energy"]
"""`cost`: the target's price of a million inferences; `energy`: joules an inference, as the GPU tells."""
Weight = Annotated[float, Field(gt=0, le=1)]
_OBJECTIVES = ("cost", "energy", "latency", "memory", "throughput")
Axis = Literal[
    "throughput",
    "memory",
    "cost",
    "energy",
    "p50_latency_ms",
    "p90_latency_ms",
    "p95_latency_ms",
    "p99_latency_ms",
    "avg_latency_ms",
]
"""What a front can be about; limits have these names too."""


def _axis(value: object) -> object:
    if isinstance(value, str) and value not in get_args(Axis):
        raise problem(f'unknown objective "{shortened(value)}"', did_you_mean(value, sorted(get_args(Axis))))
    return value


def _several(value: tuple[Axis, ...]) -> tuple[Axis, ...]:
    twice = next((name for name in value if value.count(name) > 1), None)
    if twice is not None:
        raise problem(f"{{field}} names {twice} twice", "name each objective once")
    if len(value) < 2:
        raise problem(
            "{field} names fewer than two objectives",
            "name at least two, or one alone, as in objective: throughput",
        )
    return value


class Pareto(Model):
    """Several objectives of which none counts more than the others.

    The search spreads over the configurations that no other one beats in all of them. The lock holds this
    front and chooses its knee; `tritonc tune --pick ID` takes another one.
    """

    pareto: Annotated[
        tuple[Annotated[Axis, BeforeValidator(_axis)], ...],
        AfterValidator(_several),
        Field(json_schema_extra={"minItems": 2, "uniqueItems": True}),
    ]
    """At least two objectives."""


def _objective(value: object) -> object:
    if isinstance(value, Pareto):
        return value
    if isinstance(value, Mapping):
        if not value:
            raise problem("{field} is an empty mapping", f"weigh at least one of: {', '.join(_OBJECTIVES)}")
        return value
    if isinstance(value, str) and value not in _OBJECTIVES:
        raise problem(f'unknown objective "{shortened(value)}"', did_you_mean(value, _OBJECTIVES))
    if not isinstance(value, str):
        names, weights = ", ".join(_OBJECTIVES), "{throughput: 0.7, memory: 0.3}"
        hint = f"it must be one of {names}, or weights such as {weights}, or {{pareto: [throughput, memory]}}"
        raise problem(f"{{field}} is {found(value)}", hint)
    return value


def _objective_kind(value: object) -> str:
    if isinstance(value, Pareto) or (isinstance(value, Mapping) and "pareto" in value):
        return "front"
    return "weights" if isinstance(value, Mapping) else "single"


Aim = Annotated[
    Annotated[Objective, Tag("single")]
    | Annotated[dict[Objective, Weight], Tag("weights")]
    | Annotated[Pareto, Tag("front")],
    Discriminator(_objective_kind),
    BeforeValidator(_objective),
]
"""One objective, weights of several, or a front."""


def _objectives(aim: Objective | Mapping[Objective, float] | Pareto) -> tuple[str, ...]:
    if isinstance(aim, Pareto):
        return aim.pareto
    return (aim,) if isinstance(aim, str) else tuple(aim)


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
        return _objectives(self.objective)

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
        return _objectives(self.objective)

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
