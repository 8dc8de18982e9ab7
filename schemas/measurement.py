"""What one candidate did under one load: numbers with units, intervals, the load and the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from tritonc.schemas.errors import found
from tritonc.schemas.problems import problem
from tritonc.schemas.request_batch import RequestBatch, mean_size


class Record(BaseModel):
    """Base of everything tritonc records: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(Record):
    """An estimate with its two-sided 95% confidence interval.

    `low` or `high` is None where the sample is too small to bound that side (a p99 has an upper bound only
    from 368 requests on); a person is shown "unknown", never a guess.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if (self.low is not None and self.low > self.value) or (
            self.high is not None and self.high < self.value
        ):
            raise problem(
                f"{{field}} has the interval [{self.low}, {self.high}] without its value {self.value}",
                "low is at most value, high at least",
            )
        return self


class ClosedLoad(Record):
    """A fixed number of clients, each sending its next request when the answer to the last has come."""

    kind: Literal["closed"] = "closed"
    concurrency: Annotated[int, Field(ge=1)]
    request_batch: Annotated[int, Field(ge=1)] = 1

    @property
    def mean_request_batch(self) -> float:
        """Inferences in a request."""
        return self.request_batch


class Trace(Record):
    """Arrivals as a file has them, sped up or slowed down to the rate of the load."""

    trace: str
    """SHA-256 of the file."""


def _distribution_kind(value: object) -> str:
    return "trace" if isinstance(value, Mapping | Trace) else "drawn"


Distribution = Annotated[
    Annotated[Literal["poisson", "constant"], Tag("drawn")] | Annotated[Trace, Tag("trace")],
    Discriminator(_distribution_kind),
]
"""How the requests of an open load arrive."""


class OpenLoad(Record):
    """Requests sent at a rate of their own, whether or not the server keeps up.

    `rate` is the nominal rate in requests a second; what was really offered stands in the Measurement.
    """

    kind: Literal["open"] = "open"
    rate: Annotated[float, Field(gt=0)]
    distribution: Distribution = "poisson"
    request_batch: RequestBatch = 1

    @property
    def mean_request_batch(self) -> float:
        """Inferences in a request on average."""
        return mean_size(self.request_batch)

    @property
    def arrivals(self) -> str:
        """How requests arrive, in words."""
        of = self.distribution
        return f"of trace {of.trace[:12]}" if isinstance(of, Trace) else of


def _load(value: object) -> object:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    if kind not in ("closed", "open"):
        raise problem(f"{{field}} has no legal kind: it is {found(kind)}", "kind is closed or open")
    return value


def _load_kind(value: object) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return f"{kind} loop"


Load = Annotated[
    Annotated[ClosedLoad, Tag("closed loop")] | Annotated[OpenLoad, Tag("open loop")],
    Discriminator(_load_kind),
    BeforeValidator(_load),
]


class EngineInfo(Record):
    """Which engine made a Measurement, so that numbers of different engines are never mixed."""

    name: str
    """`embedded` or `local`."""
    triton: str
    """The server's own version, for example 2.51.0."""
    release: str
    """The Triton release that version belongs to, for example 24.10; "unknown" where no table has it."""
    runtimes: dict[str, str] = {}
    """What executed the model, by package, for example {"onnxruntime": "1.24.1"}."""
    load_generator: str
    """For example "perf_analyzer 2.43.0"."""
    server_cores: tuple[int, ...] = ()
    """Cores the server was pinned to; empty where it was not pinned."""
    load_generator_cores: tuple[int, ...] = ()


class Hardware(Record):
    """The machine a Measurement was made on."""

    cpu: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()


class Measurement(Record):
    """What one candidate did under one load.

    Throughput is in inferences a second (a request of batch 4 is four inferences), latencies in milliseconds
    from the client's send to its last response, the breakdown in milliseconds a request from the server's
    statistics.
    """

    load: Load
    requests: Annotated[int, Field(ge=0)]
    """Completed requests that the numbers below rest on."""
    errors: Annotated[int, Field(ge=0)] = 0
    duration_s: float
    throughput: Interval
    """Inferences a second; of a trace at its mean rate, of which stretches may have been replayed."""
    latency_ms: dict[Literal["avg", "p50", "p90", "p95", "p99"], Interval]
    offered_rate: float | None = None
    """Open loop: requests a second really sent, from the send times."""
    sustained: bool = True
    """Open loop: completed >= 0.98 x sent, and latency does not grow over the window (of a trace: nothing is
    left to do where the trace leaves time for it)."""
    queue_ms: float | None = None
    compute_input_ms: float | None = None
    compute_infer_ms: float | None = None
    compute_output_ms: float | None = None
    mean_batch: float | None = None
    """Inferences an execution: what the dynamic batcher really formed."""
    memory_bytes: int | None = None
    """Proportional set size of the server and its stubs, peak over the window."""
    gpu_memory_bytes: int | None = None
    load_s: float | None = None
    """Seconds from asking the server for the candidate until it served; the same under every load."""
    joules_per_inference: float | None = None
    """Energy of the GPUs over the inferences that they computed meanwhile; None where it was not measured."""
    warnings: tuple[str, ...] = ()


class Failure(Record):
    """Why a candidate has no Measurement: a result of the search, not an error of tritonc."""

    reason: Literal[
        "load_failed",
        "load_timeout",
        "server_crashed",
        "server_hung",
        "request_errors",
        "outputs_differ",
        "no_result",
        "out_of_memory",
    ]
    detail: str
