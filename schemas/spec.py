"""The spec: what a team declares. Frozen pydantic models of `spec.yaml`, version `tritonc/v1`.

These models hold what can be said about a spec without looking at any other file; what needs the model files or the
catalogue of knobs is checked by the compiler, which reports at the same places (`SpecFile.error`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tritonc.schemas.units import parse_size_bytes

API_VERSION = "tritonc/v1"

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
"""Names that become folders: no separator, no leading dot, at most 128 characters (file systems allow 255 bytes)."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Bytes = Annotated[int, BeforeValidator(parse_size_bytes), Field(gt=0)]
"""A size in bytes, written as a number or with a unit (`8GiB`, `512MB`)."""
Release = Annotated[str, Field(pattern=r"^\d{2}\.(0[1-9]|1[0-2])$")]
"""A Triton container release, year.month, quoted (an unquoted 24.10 is the number 24.1)."""
Dims = tuple[Annotated[int, Field(ge=1)], ...]
Scalar = bool | int | float | str


class Model(BaseModel):
    """Base of everything people write: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(Model):
    """A geometric grid between two ends, both included (plus 0 where `min` is 0)."""

    min: float
    max: float


SearchDomain = Range | tuple[Scalar | tuple[int, ...], ...] | Scalar
"""`{min, max}` is a geometric grid, a list is a grid, a scalar pins."""


class RandomData(Model):
    """Uniform random values in [low, high]; integers include both ends."""

    range: tuple[float, float]


class ConstantData(Model):
    """Every element has this value."""

    constant: Scalar


class FileData(Model):
    """Values from a file: `.npz` (one array named like the input) or perf_analyzer's JSON, relative to the spec."""

    file: str


InputData = RandomData | ConstantData | FileData


class ClosedWorkload(Model):
    """Clients that wait for each answer; the tuner finds how many of them a configuration carries."""

    arrival: Literal["closed"] = "closed"
    max_concurrency: Annotated[int, Field(ge=1)] = 64
    request_batch: Annotated[int, Field(ge=1)] = 1


class OpenWorkload(Model):
    """Requests that arrive at a rate of their own, in requests a second.

    `rate` must be carried: a configuration that does not sustain it within the SLO is not feasible. `max_rate` is
    the ceiling of the search for capacity (default: 16 times `rate`).
    """

    arrival: Literal["poisson", "constant"]
    rate: Annotated[float, Field(gt=0)]
    max_rate: Annotated[float, Field(gt=0)] | None = None
    request_batch: Annotated[int, Field(ge=1)] = 1


Workload = Annotated[ClosedWorkload | OpenWorkload, Field(discriminator="arrival")]


class Slo(Model):
    """Limits that the chosen configuration must keep. Latencies are the client's, in milliseconds."""

    p50_latency_ms: Annotated[float, Field(gt=0)] | None = None
    p90_latency_ms: Annotated[float, Field(gt=0)] | None = None
    p95_latency_ms: Annotated[float, Field(gt=0)] | None = None
    p99_latency_ms: Annotated[float, Field(gt=0)] | None = None
    avg_latency_ms: Annotated[float, Field(gt=0)] | None = None
    min_throughput: Annotated[float, Field(gt=0)] | None = None
    """Inferences a second."""
    max_memory: Bytes | None = None
    """Of the server, host memory."""


Objective = Literal["throughput", "latency", "memory"]
Weight = Annotated[float, Field(gt=0, le=1)]


class Accuracy(Model):
    """How far outputs may differ from the source model's: |a - b| <= atol + rtol x |b|, as numpy.allclose."""

    rtol: Annotated[float, Field(ge=0)] = 1e-2
    atol: Annotated[float, Field(ge=0)] = 1e-3


class ModelSpec(Model):
    """One model: its file, the load it must carry and the limits it must keep."""

    source: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    shapes: dict[str, Dims] = {}
    """Full dims without the batch axis, by input, for measuring and verifying."""
    dims: dict[str, tuple[int, ...]] = {}
    """Pins dims in config.pbtxt, by input or output, without the batch axis; -1 leaves one open."""
    max_batch_size: Annotated[int, Field(ge=0)] = 8
    """The largest to consider; 0: the model has no batch axis."""
    data: dict[str, InputData] = {}
    workload: Workload = ClosedWorkload()
    slo: Slo = Slo()
    objective: Objective | dict[Objective, Weight] = "throughput"
    accuracy: Accuracy = Accuracy()
    search: dict[str, SearchDomain] = {}
    """Narrows, widens or pins knobs for this model; wins over the spec's own `search`."""
    parameters: dict[str, Scalar] = {}
    """`parameters` of config.pbtxt, passed through."""
    config: dict[str, Any] = {}
    """Any other field of config.pbtxt, passed through and validated against the ModelConfig protobuf."""


class Gpu(Model):
    """The GPUs of a target."""

    name: str
    memory: Bytes
    count: Annotated[int, Field(ge=1)] = 1


class BackendSpec(Model):
    """What a backend may use on a target; None means the backend's default."""

    accelerators: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    precisions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class TargetSpec(Model):
    """One kind of machine that will serve: one repository is built for each."""

    device: Literal["cpu", "gpu"]
    cores: Annotated[int, Field(ge=1)] | None = None
    """Cores the server may use; None: on a machine that measures, all it has."""
    memory: Bytes | None = None
    gpu: Gpu | None = None
    triton: Release = "24.10"
    """The release that will serve it: decides which keys exist. The default is the embedded engine's."""
    backends: Annotated[dict[str, BackendSpec], Field(min_length=1)]


class Spec(Model):
    """A whole spec file."""

    apiVersion: Literal["tritonc/v1"]  # noqa: N815  (the spelling of every declarative API)
    name: Name
    models: Annotated[dict[Name, ModelSpec], Field(min_length=1)]
    targets: Annotated[dict[Name, TargetSpec], Field(min_length=1)]
    search: dict[str, SearchDomain] = {}
