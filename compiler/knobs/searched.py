"""What `search:` says for a model on a target: the values of the knobs it names, checked.

A `search:` of the spec speaks to every model and target, one of a model to that model on every target, and
wins. What it says is applied wherever it is legal: a knob that only a GPU target has may stand beside a CPU
target, and a value that only the larger of two targets allows is left out on the smaller. It is an error
where it is legal nowhere, and where a target is left without any value of a knob that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from tritonc.compiler.backends import CATALOGUE, knob_hint
from tritonc.compiler.knobs.facts import Facts
from tritonc.compiler.knobs.knob import Knob
from tritonc.compiler.knobs.legality import facts_for, target_problems
from tritonc.schemas.errors import SpecError
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.spec import Range, SearchDomain

if TYPE_CHECKING:
    from tritonc.compiler.project import Project

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """One knob as `search:` names it.

    Attributes:
        knob: the knob.
        key_path: its place in the spec.
        values: what it may be, with the place of each; rising where the knob is ordinal.
    """

    knob: Knob
    key_path: KeyPath
    values: tuple[tuple[KnobValue, KeyPath], ...]


def searched(project: Project, facts: Facts) -> tuple[dict[str, Named], list[SpecError]]:
    """What `search:` says for a model on a target, and everything that is wrong with it.

    Returns:
        The knobs it names that are legal here, each with at least one value that is legal here; and the
        problems.
    """
    problems: list[SpecError] = []
    parsed = dict(_parsed(project, facts.model, problems))
    named: dict[str, Named] = {}
    known = _Identity(project)
    for name, one in parsed.items():
        refusal = _refusal(one.knob, facts, parsed)
        if refusal:
            if not _legal_somewhere(known, one.key_path[:-1], name):
                what = f"{name} is illegal here: {refusal}"
                problems.append(project.spec_file.error(one.key_path, what, at_key=True))
            continue
        refusals = [(value, place, one.knob.refuse_value(facts, value)) for value, place in one.values]
        legal = tuple((value, place) for value, place, against in refusals if not against)
        places: dict[str, list[KeyPath]] = {}
        for value, place, against in refusals:
            if against and not (legal and _legal_somewhere(known, one.key_path[:-1], name, value)):
                places.setdefault(against, []).append(place)
        for against, refused in places.items():
            others = f", as for {len(refused) - 1:,} more values" if len(refused) > 1 else ""
            problems.append(_error(project, refused[0], f"{name}: {against}{others}"))
        if legal:
            named[name] = Named(one.knob, one.key_path, legal)
    return named, problems


def _error(project: Project, key_path: KeyPath, what: str, hint: str = "") -> SpecError:
    return project.spec_file.error(key_path, what, hint)


def _parsed(project: Project, model: str, problems: list[SpecError]) -> Iterator[tuple[str, Named]]:
    """Every knob that is named for a model, with well-formed values; the spec's own `search` first."""
    spec = project.spec_file.spec
    own = spec.models[model].search
    scopes: tuple[tuple[KeyPath, Mapping[str, SearchDomain]], ...] = (
        (("search",), {name: domain for name, domain in spec.search.items() if name not in own}),
        (("models", model, "search"), own),
    )
    for scope, domains in scopes:
        for name, domain in domains.items():
            here = (*scope, name)
            knob = CATALOGUE.get(name)
            if knob is None:
                what = f'unknown knob "{name}"'
                problems.append(project.spec_file.error(here, what, knob_hint(name), at_key=True))
                continue
            values, errors = _values(project, knob, here, domain)
            problems.extend(errors)
            if values:
                yield name, Named(knob, here, values)


def _values(
    project: Project, knob: Knob, here: KeyPath, domain: SearchDomain
) -> tuple[tuple[tuple[KnobValue, KeyPath], ...], list[SpecError]]:
    errors: list[SpecError] = []
    values: dict[KnobValue, KeyPath] = {}
    fail = partial(_error, project)
    if isinstance(domain, Range):
        try:
            values = dict.fromkeys(knob.domain.grid(domain.min, domain.max), here)
        except ValueError as err:
            errors.append(fail(here, f"{knob.name}: {err}"))
    else:
        given = domain if isinstance(domain, tuple) else (domain,)
        for i, value in enumerate(given):
            place = (*here, i) if isinstance(domain, tuple) else here
            try:
                values.setdefault(knob.domain.parse(value), place)
            except ValueError as err:
                errors.append(fail(place, f"{knob.name}: {err}"))
    items = tuple(values.items())
    if knob.domain.ordinal:
        items = tuple(sorted(items))
    return items, errors


def _refusal(knob: Knob, facts: Facts, named: Mapping[str, Named]) -> str:
    """Why a knob means nothing for a model on a target, given what else is named; "" where it is legal."""
    if refusal := knob.refusal(facts) or knob.alone(named):
        return refusal
    for condition in knob.conditions(facts):
        other = named.get(condition.knob)
        words = " or ".join(str(value).lower() for value in condition.values)
        if other is None and CATALOGUE[condition.knob].grid is None:
            return f"it acts only where {condition.knob} is {words}, and {condition.knob} is not searched"
        if other and not any(value in condition.values for value, _ in other.values):
            return f"it acts only where {condition.knob} is {words}"
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class _Identity:
    """A project by identity: it does not change, but what it holds cannot be hashed."""

    project: Project

    def __hash__(self) -> int:
        return id(self.project)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.project is other.project


@lru_cache(maxsize=256, typed=True)
def _legal_somewhere(known: _Identity, scope: KeyPath, name: str, value: KnobValue | None = None) -> bool:
    """Whether any model and target that a `search:` speaks to can have the knob (with the value).

    It is remembered: each of a thousand models asks the same about the spec's own `search:`.
    """
    everywhere = _facts_with(known, scope, name)
    return any(value is None or not CATALOGUE[name].refuse_value(facts, value) for facts in everywhere)


@lru_cache(maxsize=64)
def _facts_with(known: _Identity, scope: KeyPath, name: str) -> tuple[Facts, ...]:
    """The facts of every model and target that a `search:` speaks to where the knob is legal."""
    project, knob = known.project, CATALOGUE[name]
    spec = project.spec_file.spec
    models = [m for m, model in spec.models.items() if name not in model.search]
    found: list[Facts] = []
    for model in models if scope == ("search",) else (str(scope[1]),):
        parsed = dict(_parsed(project, model, []))
        for target in spec.targets:
            if target_problems(project.spec_file, target):
                continue
            try:
                facts = facts_for(project, model, target)
            except SpecError:
                continue
            if not _refusal(knob, facts, parsed):
                found.append(facts)
    return tuple(found)
