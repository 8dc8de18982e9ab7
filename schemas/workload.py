"""How requests arrive: the `workload` of a model in the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

from tritonc.schemas.errors import did_you_mean, found
from tritonc.schemas.problems import KeyPath, problem
from tritonc.schemas.request_batch import RequestBatch, describe_sizes
from tritonc.schemas.spec_fields import Count, Dims, FilePath, Model, Positive


class ShapeShare(Model):
    """Shapes that a share of the requests have: dims without the batch axis by input, beside the `weight`."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Dims] = Field(init=False)

    weight: Positive = 1.0
    """Requests with these shapes, relative to those with others."""

    @property
    def shapes(self) -> Mapping[str, Dims]:
        """Dims without the batch axis, by input."""
        return self.__pydantic_extra__


def _mix(value: tuple[ShapeShare, ...]) -> tuple[ShapeShare, ...]:
    if len(value) == 1:
        hint = "name at least two, or write the only one as shapes: of the model"
        raise problem("{field} has one entry", hint)
    inputs = [set(each.shapes) for each in value]
    for place, names in enumerate(inputs):
        if not names:
            what, hint = (
                f"{{field}}[{place}] names no input",
                "write its dims, as in {weight: 3, x: [3, 48, 320]}",
            )
            raise problem(what, hint, at=(place,))
        if names != inputs[0]:
            odd = ", ".join(sorted(names ^ inputs[0]))
            what = f"{{field}}[{place}] names other inputs than the first entry: {odd}"
            raise problem(what, "name the same inputs in every entry", at=(place,))
        if any(value[place].shapes == other.shapes for other in value[:place]):
            raise problem(
                f"{{field}}[{place}] has the shapes of another entry", "add their weights", at=(place,)
            )
    return value


class _Requests(Model):
    """What requests of a workload hold, however they arrive."""

    request_batch: RequestBatch = 1
    """Inferences in one request; with `arrival: poisson` it may be several sizes with their weights."""
    shapes: Annotated[tuple[ShapeShare, ...], AfterValidator(_mix)] = ()
    """Shapes that clients send, in proportion to their weights; without them those of the model."""

    @field_validator("shapes")
    @classmethod
    def _one_by_one(cls, value: tuple[ShapeShare, ...], info: ValidationInfo) -> tuple[ShapeShare, ...]:
        batch = info.data.get("request_batch", 1)
        if value and batch != 1:
            raise problem(
                f"{{field}} has several shapes, and a request has {describe_sizes(batch)} inferences",
                "write request_batch: 1: one request has inferences of one shape, and the load generator "
                "would fill it with several",
            )
        return value


class ClosedWorkload(_Requests):
    """Clients that wait for each answer; the tuner finds how many of them a configuration carries."""

    arrival: Literal["closed"] = "closed"
    max_concurrency: Count = 64
    """Ceiling of the search for capacity, in requests under way at once."""


class OpenWorkload(_Requests):
    """Requests that arrive at a rate of their own, in requests a second."""

    arrival: Literal["poisson", "constant"]
    """`poisson`: gaps are random, as independent users make them; `constant`: all gaps are equal."""
    rate: Positive
    """Requests a second that must be carried: a configuration that does not sustain them is not feasible."""
    max_rate: Positive | None = None
    """Ceiling of the search for capacity, in requests a second (default: 16 times `rate`)."""

    @field_validator("max_rate")
    @classmethod
    def _above_rate(cls, value: float | None, info: ValidationInfo) -> float | None:
        return _ceiling(value, info.data.get("rate"))


class TraceWorkload(_Requests):
    """Requests that arrive as they once did: the times in a file, replayed over and over."""

    arrival: Literal["trace"]
    file: FilePath
    """Times of arrival in seconds, one a line, ascending; relative to the spec's folder."""
    rate: Positive | None = None
    """Requests a second that must be carried, to which the trace is sped up or slowed down (default: its own
    mean rate)."""
    max_rate: Positive | None = None
    """Ceiling of the search for capacity, in requests a second (default: 16 times `rate`)."""

    @field_validator("max_rate")
    @classmethod
    def _above_rate(cls, value: float | None, info: ValidationInfo) -> float | None:
        return _ceiling(value, info.data.get("rate"))


def _ceiling(value: float | None, rate: float | None) -> float | None:
    """A `max_rate` that is not below `rate`."""
    if value is not None and rate is not None and value < rate:
        raise problem(f"{{field}} is {value:g}, below rate, which is {rate:g}", "it is a ceiling: raise it")
    return value


_OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "closed": ("max_concurrency",),
    "poisson": ("rate", "max_rate"),
    "constant": ("rate", "max_rate"),
    "trace": ("file", "rate", "max_rate"),
}
"""The keys of a workload that have a meaning with some arrivals only, by arrival."""


def _workload(value: object) -> object:
    if not isinstance(value, Mapping):
        if isinstance(value, Model):
            return value
        hint = "it must be a mapping, such as {arrival: closed, max_concurrency: 32}"
        raise problem(f"{{field}} is {found(value)}", hint)
    arrival = value.get("arrival", "closed")
    if not isinstance(arrival, str) or arrival not in _OWN_KEYS:
        raise problem(
            f"{{field}}.arrival is {found(arrival)}",
            did_you_mean(str(arrival), sorted(_OWN_KEYS)),
            at=("arrival",),
        )
    own = _OWN_KEYS[arrival]
    for key in dict.fromkeys(key for keys in _OWN_KEYS.values() for key in keys if key not in own):
        if key not in value:
            continue
        others = " or ".join(f"arrival: {name}" for name, keys in _OWN_KEYS.items() if key in keys)
        if "arrival" not in value:
            what, hint = f"{{field}} has {key} but no arrival", f"add {others}, or leave {key} out"
            raise problem(what, hint, at=(key,))
        what = f"{{field}}.{key} has no meaning with arrival: {arrival}"
        raise problem(what, f"leave it out, or write {others}", at=(key,))
    if arrival != "poisson" and isinstance(value.get("request_batch"), list | tuple):
        raise problem(
            f"{{field}}.request_batch has several sizes with arrival: {arrival}",
            "write arrival: poisson, where each size has a rate of its own; what clients that wait send "
            "depends on how fast each size is answered",
            at=("request_batch",),
        )
    return value


_KINDS: Mapping[str, str] = {"closed": "closed loop", "trace": "trace"}


def _workload_kind(value: object) -> str:
    arrival = (
        value.get("arrival", "closed") if isinstance(value, Mapping) else getattr(value, "arrival", "closed")
    )
    return _KINDS.get(arrival, "open loop")


Workload = Annotated[
    Annotated[ClosedWorkload, Tag("closed loop")]
    | Annotated[OpenWorkload, Tag("open loop")]
    | Annotated[TraceWorkload, Tag("trace")],
    Discriminator(_workload_kind),
    BeforeValidator(_workload),
]


def _several(value: tuple[Workload, ...]) -> tuple[Workload, ...]:
    if len(value) < 2:
        hint = "name at least two, or write a single one without the list"
        raise problem(f"{{field}} is a list of {'one workload' if value else 'no workload'}", hint)
    for place, further in enumerate(value[1:], 1):
        if not isinstance(further, ClosedWorkload) and further.max_rate is not None:
            raise problem(
                f"{{field}}[{place}].max_rate has no meaning: it must hold at its rate, and only the first "
                "workload's capacity is sought",
                "leave it out",
                at=(place, "max_rate"),
            )
        if isinstance(further, ClosedWorkload) and "max_concurrency" not in further.model_fields_set:
            raise problem(
                f"{{field}}[{place}] has no max_concurrency",
                "say how many clients it must hold with",
                at=(place,),
            )
    if any(value.count(each) > 1 for each in value):
        raise problem("{field} has the same workload twice", "name each once")
    return value


def _workload_count(value: object) -> str:
    return "several workloads" if isinstance(value, list | tuple) else "one workload"


Workloads = Annotated[
    Annotated[Workload, Tag("one workload")]
    | Annotated[
        tuple[Workload, ...],
        AfterValidator(_several),
        Field(json_schema_extra={"minItems": 2}),
        Tag("several workloads"),
    ],
    Discriminator(_workload_count),
]
"""One workload, or several that must all hold: the first one's capacity is sought, and each further one must
keep the limits as it stands, at its `rate` or with `max_concurrency` clients."""


def each_workload(workload: Workloads) -> tuple[Workload, ...]:
    """All that must hold; the first one's capacity is sought."""
    return workload if isinstance(workload, tuple) else (workload,)


def keys_of_workload(workload: Workloads, number: int) -> KeyPath:
    """Where one of `each_workload` stands, from the model or ensemble on."""
    return ("workload", number) if isinstance(workload, tuple) else ("workload",)
