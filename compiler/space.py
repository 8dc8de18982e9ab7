"""Every legal configuration of a (model, target), as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import joined, joint_space
from tritonc.compiler.knobs.dimension import Choice, Condition, Dimension, legal_choices
from tritonc.compiler.knobs.dimensions import Dimensions, baseline_of, dimensions_for
from tritonc.compiler.model_config import render
from tritonc.compiler.passthrough import knob_problems
from tritonc.schemas.errors import InputErrors, TritoncError
from tritonc.schemas.lock import KnobValue

if TYPE_CHECKING:
    from tritonc.compiler.project import Project


@dataclass(frozen=True, slots=True)
class Space:
    """Every legal candidate of one (model, target), with the baseline among them.

    Iterating yields each candidate once, in the order of its dimensions and their choices, the last one
    varying fastest; `len(space)` counts without building them.
    """

    model: str
    target: str
    dimensions: tuple[Dimension, ...]
    baseline: Candidate

    def __len__(self) -> int:
        return _count(self.dimensions)

    def __iter__(self) -> Iterator[Candidate]:
        for point in _points(self.dimensions, {}):
            yield Candidate.of(self.model, self.target, point)

    def __contains__(self, candidate: object) -> bool:
        if not isinstance(candidate, Candidate) or (candidate.model, candidate.target) != (
            self.model,
            self.target,
        ):
            return False
        values = candidate.values
        point: dict[str, KnobValue] = {}
        for dimension in self.dimensions:
            legal = [choice.value for choice in legal_choices(dimension, point)]
            if not legal:
                continue
            value = values.get(dimension.knob)
            # True is no 1: their candidates have different ids.
            if not any(type(value) is type(one) and value == one for one in legal):
                return False
            assert value is not None
            point[dimension.knob] = value
        return len(point) == len(values)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of knobs, values and conditions."""
        rows = [
            [
                dimension.knob,
                [[choice.value, _plain(choice.conditions)] for choice in dimension.choices],
                _plain(dimension.conditions),
            ]
            for dimension in self.dimensions
        ]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _plain(conditions: tuple[Condition, ...]) -> list[object]:
    return [[condition.knob, list(condition.values)] for condition in conditions]


def _points(dimensions: tuple[Dimension, ...], point: dict[str, KnobValue]) -> Iterator[dict[str, KnobValue]]:
    if not dimensions:
        yield point
        return
    first, *rest = dimensions
    choices = legal_choices(first, point)
    if not choices:
        yield from _points(tuple(rest), point)
    for choice in choices:
        yield from _points(tuple(rest), {**point, first.knob: choice.value})


@lru_cache(maxsize=64)
def _count(dimensions: tuple[Dimension, ...]) -> int:
    """How many candidates there are; points that agree on every knob still asked for are counted together."""
    asked_after = _asked_after(dimensions)
    counts: dict[tuple[tuple[str, KnobValue], ...], int] = {(): 1}
    for dimension, asked in zip(dimensions, asked_after, strict=True):
        following: dict[tuple[tuple[str, KnobValue], ...], int] = {}
        for key, count in counts.items():
            point = dict(key)
            choices = legal_choices(dimension, point)
            kept = {knob: value for knob, value in point.items() if knob in asked}
            points = [{**kept, dimension.knob: choice.value} for choice in choices] or [kept]
            for one in points:
                state = tuple((knob, value) for knob, value in one.items() if knob in asked)
                following[state] = following.get(state, 0) + count
        counts = following
    return sum(counts.values())


def _asked_after(dimensions: tuple[Dimension, ...]) -> list[frozenset[str]]:
    """For each dimension, the knobs that the conditions of later ones name."""
    asked: list[frozenset[str]] = []
    names: frozenset[str] = frozenset()
    for dimension in reversed(dimensions):
        asked.append(names)
        conditions = (*dimension.conditions, *(c for choice in dimension.choices for c in choice.conditions))
        names |= {condition.knob for condition in conditions}
    return asked[::-1]


def space_for(project: Project, name: str, target: str) -> Space:
    """The space of a model or an ensemble on a target, as the spec narrows, widens or pins it.

    That of an ensemble has every combination of the candidates of its models (`compiler.joint`).

    Raises:
        InputErrors: everything that is illegal in the target's backends, accelerators and precisions, in
            `search:`, and in what the model passes through, each with its place in the spec.
    """
    if name in project.ensembles:
        return joint_space(_of_members(project, name, lambda model: space_for(project, model, target)), name)
    dimensions = dimensions_for(project, name, target)
    return Space(name, target, dimensions.all, _baseline(project, dimensions))


def baseline_for(project: Project, name: str, target: str) -> Candidate:
    """The baseline of a model or an ensemble on a target, without its space: a build's without a lock.

    Raises:
        InputErrors: as `space_for`.
    """
    if name in project.ensembles:
        return joined(_of_members(project, name, lambda model: baseline_for(project, model, target)), name)
    return _baseline(project, dimensions_for(project, name, target))


Made = TypeVar("Made")


def _of_members(project: Project, ensemble: str, make: Callable[[str], Made]) -> list[Made]:
    """What `make` makes of each model of an ensemble.

    Raises:
        InputErrors: those of all of them.
    """
    made: list[Made] = []
    errors: dict[str, TritoncError] = {}
    for model in project.ensembles[ensemble].members:
        try:
            made.append(make(model))
        except InputErrors as err:
            errors |= {str(error): error for error in err}
    if errors:
        raise InputErrors(errors.values())
    return made


def _baseline(project: Project, dimensions: Dimensions) -> Candidate:
    baseline = baseline_of(dimensions)
    spec = project.spec_file.spec.models[baseline.model]
    if spec.config or spec.parameters:
        if problems := knob_problems(project.spec_file, baseline.model, dimensions.all):
            raise InputErrors(problems)
        render(project, baseline)
    return baseline


__all__ = ["Choice", "Condition", "Dimension", "Space", "baseline_for", "legal_choices", "space_for"]
