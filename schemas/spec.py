"""The spec: what a team declares. Frozen pydantic models of `spec.yaml`, version `tritonc/v1`.

These models hold what can be said about a spec without looking at any other file; what needs the model files
or the catalogue of knobs is checked by the compiler, which reports at the same places (`SpecFile.error`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

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
from tritonc.schemas.problems import problem
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
from tritonc.schemas.workload import ClosedWorkload, OpenWorkload, Workload

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
            raise problem(f'unknown key "{key}" in {{field}}', did_you_mean(str(key), _DATA_KEYS), at=(key,))
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


class Slo(Model):
    """Limits that a configuration must keep. Latencies run from the client's send to its last response."""

    p50_latency_ms: Positive | None = None
    p90_latency_ms: Positive | None = None
    p95_latency_ms: Positive | None = None
    p99_latency_ms: Positive | None = None
    avg_latency_ms: Positive | None = None
    min_throughput: Positive | None = None
    """Inferences a second."""
    max_memory: Bytes | None = None
    """Of the server, host memory."""


Objective = Literal["throughput", "latency", "memory"]
Weight = Annotated[float, Field(gt=0, le=1)]
_OBJECTIVES = ("throughput", "latency", "memory")


def _objective(value: object) -> object:
    if isinstance(value, Mapping):
        if not value:
            raise problem(
                "{field} is an empty mapping", f"weigh at least one of: {', '.join(sorted(_OBJECTIVES))}"
            )
        return value
    if isinstance(value, str) and value not in _OBJECTIVES:
        raise problem(f'unknown objective "{shortened(value)}"', did_you_mean(value, _OBJECTIVES))
    if not isinstance(value, str):
        hint = "it must be throughput, latency, memory, or weights such as {throughput: 0.7, memory: 0.3}"
        raise problem(f"{{field}} is {found(value)}", hint)
    return value


def _objective_kind(value: object) -> str:
    return "weights" if isinstance(value, Mapping) else "single"


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
    workload: Workload = ClosedWorkload()
    """How requests arrive."""
    slo: Slo = Slo()
    objective: Annotated[
        Annotated[Objective, Tag("single")] | Annotated[dict[Objective, Weight], Tag("weights")],
        Discriminator(_objective_kind),
        BeforeValidator(_objective),
    ] = "throughput"
    """What to make best within the SLO, or weights of several."""
    accuracy: Accuracy = Accuracy()
    search: dict[str, SearchDomain] = Field(default_factory=dict)
    """Narrows, widens or pins knobs for this model; wins over the spec's own `search`."""
    parameters: dict[str, Scalar] = Field(default_factory=dict)
    """`parameters` of config.pbtxt, passed through."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Any other field of config.pbtxt, passed through and validated against the ModelConfig protobuf."""

    @field_validator("workload")
    @classmethod
    def _fits_batch(
        cls, value: ClosedWorkload | OpenWorkload, info: ValidationInfo
    ) -> ClosedWorkload | OpenWorkload:
        largest = info.data.get("max_batch_size", INT32_MAX)
        if value.request_batch > max(largest, 1):
            why = " (no batch axis)" if largest == 0 else ""
            raise problem(
                f"{{field}}.request_batch is {value.request_batch} but max_batch_size is {largest}{why}",
                "lower request_batch, or raise max_batch_size",
                at=("request_batch",),
            )
        return value


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
    targets: Annotated[dict[Name, TargetSpec], Field(min_length=1)]
    """Kinds of machine, by name; each gets a repository of its own."""
    search: dict[str, SearchDomain] = Field(default_factory=dict)
    """Narrows, widens or pins knobs for every model."""


__all__ = [
    "API_VERSION",
    "NAME_PATTERN",
    "Accuracy",
    "BackendSpec",
    "Bytes",
    "ClosedWorkload",
    "ConstantData",
    "Dims",
    "FileData",
    "Gpu",
    "InputData",
    "Model",
    "ModelSpec",
    "Name",
    "Objective",
    "OpenWorkload",
    "RandomData",
    "Range",
    "Release",
    "Scalar",
    "SearchDomain",
    "Slo",
    "Spec",
    "TargetSpec",
    "Weight",
    "Workload",
]
