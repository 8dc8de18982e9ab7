"""What a spec says of a knob under `search`: a range, a list of values, or one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from tritonc.schemas.problems import problem
from tritonc.schemas.spec_fields import Model, Scalar, scalar


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
