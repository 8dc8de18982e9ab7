"""Knob values that come from outside, such as a lock's, as a candidate that is legal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tritonc.compiler.backends import CATALOGUE, knob_hint
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import joined, members_of
from tritonc.compiler.knobs.dimension import Condition
from tritonc.compiler.knobs.facts import Facts
from tritonc.compiler.knobs.legality import facts_for, target_problems
from tritonc.schemas.errors import InputErrors, SpecError
from tritonc.schemas.lock import KnobValue

if TYPE_CHECKING:
    from tritonc.compiler.project import Project


def candidate_from(project: Project, model: str, target: str, knobs: Mapping[str, KnobValue]) -> Candidate:
    """The candidate with these active knobs, if it is legal for the model and target.

    It need not be in the space: what was chosen once stays legal after `search:` was narrowed.

    Raises:
        InputErrors: the target's backends are illegal in the spec.
        ValueError: a knob is unknown, missing or not active, or has an illegal value; the message names each.
    """
    if model in project.ensembles:
        return _ensemble_candidate_from(project, model, target, knobs)
    if problems := target_problems(project.spec_file, target):
        raise InputErrors(problems)
    try:
        facts = facts_for(project, model, target)
    except SpecError as err:
        raise InputErrors([err]) from None
    against = list(_against(facts, knobs))
    if against:
        raise ValueError("; ".join(against))
    return Candidate.of(model, target, knobs)


def _ensemble_candidate_from(
    project: Project, ensemble: str, target: str, knobs: Mapping[str, KnobValue]
) -> Candidate:
    """`candidate_from` of an ensemble: its models' knobs have their model before them."""
    members = members_of(Candidate.of(ensemble, target, knobs))
    models = project.ensembles[ensemble].members
    against = [f"{model} is no model of the ensemble" for model in members if model not in models]
    found: list[Candidate] = []
    for model in models:
        try:
            values = members[model].values if model in members else {}
            found.append(candidate_from(project, model, target, values))
        except ValueError as err:
            against.append(f"{model}: {err}")
    candidate = Candidate.of(ensemble, target, knobs)
    if not against and joined(found, ensemble) != candidate:
        against.append("each knob has to have the name of its model before it")
    if against:
        raise ValueError("; ".join(against))
    return candidate


def _against(facts: Facts, knobs: Mapping[str, KnobValue]) -> Iterator[str]:
    alone = facts
    if allowed := facts.allowed(str(knobs.get("backend"))):
        alone = replace(facts, backends=(allowed,))
    for name, value in knobs.items():
        knob = CATALOGUE.get(name)
        if knob is None:
            yield f'unknown knob "{name}", {knob_hint(name)}'
        elif knob.derived:
            yield f"{name} follows from the accelerator and is not given"
        elif reason := (
            _value_refusal(name, value, alone) or _unmet(name, value, alone, knobs) or knob.alone(knobs)
        ):
            yield f"{name} {value}: {reason}"
    for knob in CATALOGUE.values():
        needed = knob.required or (knob.name == "dynamic_batching" and not knob.refusal(facts))
        if needed and knob.name not in knobs and not _unmet_conditions(knob.conditions(facts), knobs):
            yield f"{knob.name} is missing"


def _value_refusal(name: str, value: KnobValue, facts: Facts) -> str:
    knob = CATALOGUE[name]
    try:
        parsed = knob.domain.parse(value)
    except ValueError as err:
        return str(err)
    if type(parsed) is not type(value) or parsed != value:
        return f"it should be written as {parsed}"
    if knob.required and knob.refusal(facts):
        return "" if value == 0 else knob.refusal(facts)
    return knob.refusal(facts) or knob.refuse_value(facts, value)


def _unmet(name: str, value: KnobValue, facts: Facts, knobs: Mapping[str, KnobValue]) -> str:
    knob = CATALOGUE[name]
    conditions = (*knob.conditions(facts), *knob.choice_conditions(facts, value, True))
    unmet = _unmet_conditions(conditions, knobs)
    if unmet is None:
        return ""
    if not unmet.values:
        return f"no {unmet.knob} of target {facts.target} has it"
    shown = f"{unmet.values[0]} to {unmet.values[-1]}"
    if len(unmet.values) < 4:
        shown = " or ".join(str(one).lower() for one in unmet.values)
    return f"it acts only where {unmet.knob} is {shown}"


def _unmet_conditions(conditions: tuple[Condition, ...], knobs: Mapping[str, KnobValue]) -> Condition | None:
    return next((c for c in conditions if c.knob not in knobs or knobs[c.knob] not in c.values), None)
