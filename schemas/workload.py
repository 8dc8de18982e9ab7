"""How requests arrive: the `workload` of a model in the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Tag, ValidationInfo, field_validator

from tritonc.schemas.errors import did_you_mean, found
from tritonc.schemas.problems import problem
from tritonc.schemas.spec_fields import Count, Model, Positive


class ClosedWorkload(Model):
    """Clients that wait for each answer; the tuner finds how many of them a configuration carries."""

    arrival: Literal["closed"] = "closed"
    max_concurrency: Count = 64
    """Ceiling of the search for capacity, in requests under way at once."""
    request_batch: Count = 1
    """Inferences in one request."""


class OpenWorkload(Model):
    """Requests that arrive at a rate of their own, in requests a second."""

    arrival: Literal["poisson", "constant"]
    """`poisson`: gaps are random, as independent users make them; `constant`: all gaps are equal."""
    rate: Positive
    """Requests a second that must be carried: a configuration that does not sustain them is not feasible."""
    max_rate: Positive | None = None
    """Ceiling of the search for capacity, in requests a second (default: 16 times `rate`)."""
    request_batch: Count = 1
    """Inferences in one request."""

    @field_validator("max_rate")
    @classmethod
    def _above_rate(cls, value: float | None, info: ValidationInfo) -> float | None:
        rate = info.data.get("rate")
        if value is not None and rate is not None and value < rate:
            raise problem(
                f"{{field}} is {value:g}, below rate, which is {rate:g}", "it is a ceiling: raise it"
            )
        return value


_ARRIVALS = ("closed", "poisson", "constant")
_RATE_KEYS = ("rate", "max_rate")


def _workload(value: object) -> object:
    if not isinstance(value, Mapping):
        if isinstance(value, Model):
            return value
        hint = "it must be a mapping, such as {arrival: closed, max_concurrency: 32}"
        raise problem(f"{{field}} is {found(value)}", hint)
    arrival = value.get("arrival", "closed")
    if arrival not in _ARRIVALS:
        raise problem(
            f"{{field}}.arrival is {found(arrival)}", did_you_mean(str(arrival), _ARRIVALS), at=("arrival",)
        )
    for key in _RATE_KEYS if arrival == "closed" else ("max_concurrency",):
        if key in value and "arrival" not in value:
            raise problem(
                f"{{field}} has {key} but no arrival",
                "add arrival: poisson or arrival: constant, or leave the rate out",
                at=(key,),
            )
        if key in value:
            other = "poisson or arrival: constant" if arrival == "closed" else "closed"
            raise problem(
                f"{{field}}.{key} has no meaning with arrival: {arrival}",
                f"leave it out, or write arrival: {other}",
                at=(key,),
            )
    return value


def _workload_kind(value: object) -> str:
    arrival = (
        value.get("arrival", "closed") if isinstance(value, Mapping) else getattr(value, "arrival", "closed")
    )
    return "closed loop" if arrival == "closed" else "open loop"


Workload = Annotated[
    Annotated[ClosedWorkload, Tag("closed loop")] | Annotated[OpenWorkload, Tag("open loop")],
    Discriminator(_workload_kind),
    BeforeValidator(_workload),
]
