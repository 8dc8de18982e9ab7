"""What a spec says is to be made best: one objective, weights of several, or a front to pick from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from tritonc.schemas.errors import did_you_mean, found, shortened
from tritonc.schemas.problems import problem
from tritonc.schemas.spec_fields import Model

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


def objectives_of(aim: Objective | Mapping[Objective, float] | Pareto) -> tuple[str, ...]:
    """What it names, one or several."""
    if isinstance(aim, Pareto):
        return aim.pareto
    return (aim,) if isinstance(aim, str) else tuple(aim)
