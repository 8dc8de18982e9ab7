"""Several models of one target as one: the knobs of all of them in one Space.

A joint candidate is a Candidate of the "model" `a+b` whose knobs have their model before them, as
`a/instance_count`. No name of a model or of a knob has either sign, so nothing can be mistaken. The models
are its members; each of them can have any of its own candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.knobs.dimension import Choice, Condition, Dimension
from tritonc.compiler.space import Space

BETWEEN_MODELS = "+"
AFTER_MODEL = "/"


def joined(candidates: Sequence[Candidate]) -> Candidate:
    """The joint candidate of one candidate for each member; all are of one target.

    >>> joined([Candidate.of("a", "cpu", {"n": 1}), Candidate.of("b", "cpu", {"n": 2})]).values
    {'a/n': 1, 'b/n': 2}
    """
    knobs = {_of(one.model, knob): value for one in candidates for knob, value in one.knobs}
    return Candidate.of(BETWEEN_MODELS.join(one.model for one in candidates), candidates[0].target, knobs)


def members_of(candidate: Candidate) -> dict[str, Candidate]:
    """The candidate of each member by its model; of a candidate of one model that itself.

    >>> members_of(Candidate.of("a+b", "cpu", {"a/n": 1, "b/n": 2}))["b"].values
    {'n': 2}
    """
    models = candidate.model.split(BETWEEN_MODELS)
    if len(models) == 1:
        return {candidate.model: candidate}
    return {
        model: Candidate.of(
            model,
            candidate.target,
            {
                knob.removeprefix(_of(model, "")): value
                for knob, value in candidate.knobs
                if knob.startswith(_of(model, ""))
            },
        )
        for model in models
    }


def joint_space(spaces: Sequence[Space]) -> Space:
    """Every combination of candidates of these spaces, which are of one target."""
    return Space(
        model=BETWEEN_MODELS.join(space.model for space in spaces),
        target=spaces[0].target,
        dimensions=tuple(
            _renamed(space.model, dimension) for space in spaces for dimension in space.dimensions
        ),
        baseline=joined([space.baseline for space in spaces]),
    )


def named(model: str, values: Mapping[str, float]) -> dict[str, float]:
    """The values with the model before each name."""
    return {_of(model, name): value for name, value in values.items()}


def _of(model: str, name: str) -> str:
    return f"{model}{AFTER_MODEL}{name}"


def _renamed(model: str, dimension: Dimension) -> Dimension:
    def renamed(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
        return tuple(replace(each, knob=_of(model, each.knob)) for each in conditions)

    choices = tuple(Choice(choice.value, renamed(choice.conditions)) for choice in dimension.choices)
    return replace(
        dimension, knob=_of(model, dimension.knob), choices=choices, conditions=renamed(dimension.conditions)
    )
