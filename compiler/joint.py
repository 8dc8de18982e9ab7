"""Several models of one target as one: the knobs of all of them in one Space.

A joint candidate is a Candidate of the "model" `a+b`, or of an ensemble, whose knobs have their model before
them, as `a/instance_count`. No name of a model or of a knob has either sign, so nothing can be mistaken. The
models are its members; each of them can have any of its own candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.knobs.dimension import Choice, Condition, Dimension

if TYPE_CHECKING:
    from tritonc.compiler.space import Space

BETWEEN_MODELS = "+"
AFTER_MODEL = "/"


def joined(candidates: Sequence[Candidate], ensemble: str = "") -> Candidate:
    """The joint candidate of one candidate for each member; all are of one target.

    Args:
        candidates: of the members.
        ensemble: that they make up; "" where they only share the machine.

    >>> joined([Candidate.of("a", "cpu", {"n": 1}), Candidate.of("b", "cpu", {"n": 2})]).values
    {'a/n': 1, 'b/n': 2}
    """
    knobs = {of_member(one.model, knob): value for one in candidates for knob, value in one.knobs}
    name = ensemble or BETWEEN_MODELS.join(one.model for one in candidates)
    return Candidate.of(name, candidates[0].target, knobs)


def members_of(candidate: Candidate) -> dict[str, Candidate]:
    """The candidate of each member by its model; of a candidate of one model that itself.

    >>> members_of(Candidate.of("a+b", "cpu", {"a/n": 1, "b/n": 2}))["b"].values
    {'n': 2}
    """
    models = members_named_by(candidate.values)
    if not models:
        return {candidate.model: candidate}
    return {
        model: Candidate.of(
            model,
            candidate.target,
            {
                knob.removeprefix(of_member(model, "")): value
                for knob, value in candidate.knobs
                if knob.startswith(of_member(model, ""))
            },
        )
        for model in models
    }


def members_named_by(knobs: Iterable[str]) -> tuple[str, ...]:
    """The models that the names of a joint candidate's knobs have before them; none in those of one model.

    >>> members_named_by(["a/n", "a/m", "b/n"]), members_named_by(["n"])
    (('a', 'b'), ())
    """
    models = dict.fromkeys(knob.rpartition(AFTER_MODEL)[0] for knob in knobs)
    return tuple(model for model in models if model)


def joint_space(spaces: Sequence[Space], ensemble: str = "") -> Space:
    """Every combination of candidates of these spaces, which are of one target; `ensemble` as in `joined`."""
    baseline = joined([space.baseline for space in spaces], ensemble)
    return replace(
        spaces[0],
        model=baseline.model,
        dimensions=tuple(
            _renamed(space.model, dimension) for space in spaces for dimension in space.dimensions
        ),
        baseline=baseline,
    )


def named(model: str, values: Mapping[str, float]) -> dict[str, float]:
    """The values with the model before each name."""
    return {of_member(model, name): value for name, value in values.items()}


def of_member(model: str, name: str) -> str:
    """The name that a knob, or something else, of a member has in a joint candidate."""
    return f"{model}{AFTER_MODEL}{name}"


def _renamed(model: str, dimension: Dimension) -> Dimension:
    def renamed(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
        return tuple(replace(each, knob=of_member(model, each.knob)) for each in conditions)

    choices = tuple(Choice(choice.value, renamed(choice.conditions)) for choice in dimension.choices)
    return replace(
        dimension,
        knob=of_member(model, dimension.knob),
        choices=choices,
        conditions=renamed(dimension.conditions),
    )
