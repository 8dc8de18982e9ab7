"""The knobs of a model on a target, as dimensions of its space, and the baseline among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tritonc.compiler.backends import CATALOGUE
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.knobs.dimension import Choice, Condition, Dimension, Point, legal_choices
from tritonc.compiler.knobs.facts import Allowed, Facts
from tritonc.compiler.knobs.knob import Knob
from tritonc.compiler.knobs.legality import facts_for, target_problems
from tritonc.compiler.knobs.searched import Named, searched
from tritonc.schemas.errors import InputErrors, SpecError
from tritonc.schemas.lock import KnobValue

if TYPE_CHECKING:
    from tritonc.compiler.project import Project


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The dimensions of a space, with the facts they were made from."""

    facts: Facts
    all: tuple[Dimension, ...]


def dimensions_for(project: Project, model: str, target: str) -> Dimensions:
    """The knobs of a model on a target with the values they may take, as the spec wants them.

    Raises:
        InputErrors: everything that is illegal in the target's backends and in `search:`.
    """
    if problems := target_problems(project.spec_file, target):
        raise InputErrors(problems)
    try:
        facts = facts_for(project, model, target)
    except SpecError as err:
        raise InputErrors([err]) from None
    named, problems = searched(project, facts)
    if problems:
        raise InputErrors(problems)
    facts = _narrowed(project, facts, named)
    chosen: dict[str, tuple[KnobValue, ...]] = {}
    dimensions: dict[str, Dimension] = {}
    for knob in CATALOGUE.values():
        if (knob.grid is None and knob.name not in named) or knob.derived:
            continue
        dimension = _dimension(knob, facts, named.get(knob.name), chosen, dimensions)
        if dimension:
            dimensions[knob.name] = dimension
            chosen[knob.name] = dimension.values
    return Dimensions(facts, tuple(dimensions.values()))


def _narrowed(project: Project, facts: Facts, named: Mapping[str, Named]) -> Facts:
    """The facts with only those backends and accelerators that have a legal value of every required knob."""
    reasons: dict[str, None] = {}
    backends: list[Allowed] = []
    for allowed in facts.backends:
        accelerators = []
        for accelerator in allowed.accelerators:
            alone = replace(
                facts,
                backends=(replace(allowed, accelerators=(accelerator,)),),
                kinds={accelerator: facts.kinds[accelerator]},
            )
            reason = _dead_end(alone, named)
            if reason:
                reasons[reason] = None
            else:
                accelerators.append(accelerator)
        if accelerators:
            backends.append(replace(allowed, accelerators=tuple(accelerators)))
    if not backends:
        scope = next((one.key_path[:-1] for one in named.values()), ("targets", facts.target))
        what = (
            f"model {facts.model} has no legal configuration on target {facts.target}: {'; '.join(reasons)}"
        )
        raise InputErrors([project.spec_file.error(scope, what)])
    used = {accelerator for allowed in backends for accelerator in allowed.accelerators}
    kinds = {accelerator: kind for accelerator, kind in facts.kinds.items() if accelerator in used}
    return replace(facts, backends=tuple(backends), kinds=kinds)


def _dead_end(alone: Facts, named: Mapping[str, Named]) -> str:
    """Why one backend with one accelerator has no candidate; "" where it has."""
    for knob in _NARROWING:
        one = named.get(knob.name)
        values = [value for value, _ in one.values] if one else _least_legal(knob.name, alone)
        refusals = [knob.refuse_value(alone, value) for value in values]
        if refusals and all(refusals):
            return refusals[0]
    return ""


_NARROWING = tuple(
    CATALOGUE[name]
    for name in ("backend", "accelerator", "instance_kind", "instance_count", "max_batch_size")
)


def _least_legal(knob: str, facts: Facts) -> list[KnobValue]:
    """The least that has to be legal of a knob that `search:` does not name."""
    if knob == "instance_count":
        return [1]
    return [facts.least_batch] if knob == "max_batch_size" and facts.max_batch_size else []


def _dimension(
    knob: Knob,
    facts: Facts,
    named: Named | None,
    chosen: Mapping[str, tuple[KnobValue, ...]],
    dimensions: Mapping[str, Dimension],
) -> Dimension | None:
    """The dimension of a knob; None where it is never active."""
    if knob.refusal(facts):
        if not knob.required:
            return None
        named = None
    conditions: Sequence[Condition]
    if named:
        values = [value for value, _ in named.values if not knob.refuse_value(facts, value)]
        conditions = knob.conditions(facts)
    else:
        assert knob.grid is not None
        values = list(knob.grid(facts, chosen))
        conditions = (knob.grid_conditions or knob.conditions)(facts)
    simple = _simplified(conditions, dimensions)
    if simple is None:
        return None
    choices = []
    for value in values:
        needs = _simplified(knob.choice_conditions(facts, value, named is not None), dimensions)
        if needs is not None:
            choices.append(Choice(value, needs))
    return Dimension(knob.name, tuple(choices), simple, knob.domain.ordinal) if choices else None


def _simplified(
    conditions: Sequence[Condition], dimensions: Mapping[str, Dimension]
) -> tuple[Condition, ...] | None:
    """Conditions without values that cannot occur, less those that always hold; None: they never do."""
    simple = []
    for condition in conditions:
        other = dimensions.get(condition.knob)
        values = tuple(v for v in other.values if v in condition.values) if other else ()
        if other is None or not values:
            return None
        if other.conditions or len(values) < len(other.choices):
            simple.append(Condition(condition.knob, values))
    return tuple(simple)


def baseline_of(dimensions: Dimensions) -> Candidate:
    """The configuration that Triton itself would complete, written out; pinned knobs are pinned in it too."""
    facts = dimensions.facts
    point: dict[str, KnobValue] = {}
    for dimension in dimensions.all:
        legal = [choice.value for choice in legal_choices(dimension, point)]
        if legal:
            point[dimension.knob] = _wished(CATALOGUE[dimension.knob], facts, point, legal)
    return Candidate.of(facts.model, facts.target, point)


def _wished(knob: Knob, facts: Facts, point: Point, legal: Sequence[KnobValue]) -> KnobValue:
    wishes = knob.wish(facts, point)
    for wish in wishes:
        for value in legal:
            if type(value) is type(wish) and value == wish:
                return value
    last = wishes[-1] if wishes else None
    if not knob.domain.ordinal or not isinstance(last, int):
        return legal[0]
    wanted = last
    return min((v for v in legal if isinstance(v, int)), key=lambda v: abs(v - wanted))
