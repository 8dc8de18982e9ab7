"""Which models share their machine and are tuned as one: `together` of the spec."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import WithJsonSchema

from tritonc.schemas.errors import did_you_mean, found, shortened
from tritonc.schemas.problems import KeyPath, problem
from tritonc.schemas.spec_fields import NAME_PATTERN

_NAMES = {"type": "array", "items": {"type": "string", "pattern": NAME_PATTERN}, "minItems": 2}
_WEIGHTS = {
    "type": "object",
    "patternProperties": {NAME_PATTERN: {"type": "number", "exclusiveMinimum": 0}},
    "minProperties": 2,
}
_GROUPS = {"type": "array", "items": {"anyOf": [_NAMES, _WEIGHTS]}}
_HOW = "write the models as [a, b], with the weights of their objectives as {a: 0.7, b: 0.3}, or several such"

Groups = Annotated[tuple[dict[str, float], ...], WithJsonSchema({"anyOf": [_NAMES, _WEIGHTS, _GROUPS]})]
"""Weights of the objectives by model, for each group."""


def groups_of(value: object, models: Mapping[str, Any] | None) -> tuple[dict[str, float], ...]:
    """The groups that `together` of a spec says, which is one group or a list of several.

    Args:
        value: as it stands in the file.
        models: of the spec; None where they are wrong themselves.

    Raises:
        PydanticCustomError: a group is none, or has fewer than two models, or one that is not in the spec, or
            in another group too.
    """
    if not isinstance(value, list | tuple | Mapping):
        raise problem(f"{{field}} is {found(value)}", _HOW)
    is_one = isinstance(value, Mapping) or any(isinstance(each, str) for each in value)
    parts = [((), value)] if is_one else [((place,), each) for place, each in enumerate(value)]
    groups: list[dict[str, float]] = []
    known: set[str] = set()
    for at, part in parts:
        group: dict[str, float] = {}
        for here, model, weight in _entries(part, at):
            if models is not None and model not in models:
                raise problem(
                    f'{{field}} names "{shortened(model)}", which is no model of the spec',
                    did_you_mean(model, sorted(models)),
                    at=here,
                )
            if model in known:
                raise problem(f"{{field}} names {model} twice", "name each model once", at=here)
            known.add(model)
            group[model] = weight
        if len(group) < 2:
            what = f"{{field}} names {'one model' if group else 'no model'}"
            raise problem(what, "name at least two, or leave it out: each is tuned alone then", at=at)
        groups.append(group)
    return tuple(groups)


def _entries(group: object, at: KeyPath) -> Iterator[tuple[KeyPath, str, float]]:
    """Place, model and weight of each model of a group."""
    if isinstance(group, Mapping):
        for model, weight in group.items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not is_number or not 0 < weight < math.inf:
                what = f"{{field}} has the weight {found(weight)} for {shortened(str(model))}"
                raise problem(what, "a weight is a number above 0", at=(*at, model))
            yield (*at, model), model, float(weight)
        return
    if not isinstance(group, list | tuple):
        raise problem(f"{{field}} has {found(group)} in the place of a group", _HOW, at=at)
    for place, model in enumerate(group):
        if not isinstance(model, str):
            raise problem(f"{{field}} has {found(model)} in the place of a model", _HOW, at=(*at, place))
        yield (*at, place), model, 1.0
