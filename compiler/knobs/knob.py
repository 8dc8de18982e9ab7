"""What a knob is: its name in Triton's words, its values, where it is legal and where it is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from tritonc.compiler.knobs.dimension import Condition
from tritonc.compiler.knobs.domains import Domain
from tritonc.compiler.knobs.facts import Facts
from tritonc.compiler.release import Release
from tritonc.schemas.lock import KnobValue

Chosen = Mapping[str, tuple[KnobValue, ...]]
"""The values of every earlier knob of a space."""


class Place(Enum):
    """Where config.pbtxt has a knob."""

    FIELD = "a field of its own"
    PARAMETER = "parameters"
    GPU_ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator.parameters"


def legal(_facts: Facts) -> str:
    """No reason against it."""
    return ""


def legal_value(_facts: Facts, _value: KnobValue) -> str:
    """No reason against it."""
    return ""


def everywhere(_facts: Facts) -> tuple[Condition, ...]:
    """No condition."""
    return ()


def everywhere_else_too(_facts: Facts, _value: KnobValue, _named: bool) -> tuple[Condition, ...]:
    """No condition."""
    return ()


def first_of_grid(_facts: Facts, _point: Mapping[str, KnobValue]) -> tuple[KnobValue, ...]:
    """No wish."""
    return ()


def where(*conditions: Condition) -> Callable[[Facts], tuple[Condition, ...]]:
    """These conditions, whatever the model and the target."""

    def same(_facts: Facts) -> tuple[Condition, ...]:
        return conditions

    return same


def wish(*values: KnobValue) -> Callable[[Facts, Mapping[str, KnobValue]], tuple[KnobValue, ...]]:
    """These values, whatever the model and the target."""

    def same(_facts: Facts, _point: Mapping[str, KnobValue]) -> tuple[KnobValue, ...]:
        return values

    return same


def one_and_zero(value: KnobValue) -> str | None:
    """The text of a value where a switch is `1` or `0`."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def yes_or_absent(value: KnobValue) -> str | None:
    """The text of a value where a switch is `YES` or not written."""
    if isinstance(value, bool):
        return "YES" if value else None
    return str(value)


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting of config.pbtxt that can be searched.

    Attributes:
        name: as Triton's documentation and config.pbtxt have it.
        doc: what it does, in one line.
        absent: what Triton does where the file does not have it.
        domain: the values it can have at all.
        place: where it is written.
        since: the first release that knows it; None: older than any in use.
        refuse: why it means nothing for a model and target; "" where it is legal.
        refuse_value: why a value of the domain is illegal for a model and target; "" where it is legal.
        conditions: where it is legal inside a space.
        grid: the values that are searched by default, given those of earlier knobs; None: only what `search:`
            names is searched.
        grid_conditions: where it is searched by default, if not everywhere it is legal.
        choice_conditions: where one value is legal; the last argument is True where `search:` names the knob.
        wish: the baseline's values, the best first, given the baseline's earlier knobs; the last one stands
            for the others where a near value has to do.
        companions: knobs that must be given beside it.
        text: how a value is written as a parameter; None: it is not written.
        required: every candidate has it; where `refuse` has something against it, it keeps its default.
        derived: it follows from other knobs and only narrows their values.
    """

    name: str
    doc: str
    absent: str
    domain: Domain
    place: Place = Place.FIELD
    since: Release | None = None
    refuse: Callable[[Facts], str] = legal
    refuse_value: Callable[[Facts, KnobValue], str] = legal_value
    conditions: Callable[[Facts], tuple[Condition, ...]] = everywhere
    grid: Callable[[Facts, Chosen], Sequence[KnobValue]] | None = None
    grid_conditions: Callable[[Facts], tuple[Condition, ...]] | None = None
    choice_conditions: Callable[[Facts, KnobValue, bool], tuple[Condition, ...]] = everywhere_else_too
    wish: Callable[[Facts, Mapping[str, KnobValue]], tuple[KnobValue, ...]] = first_of_grid
    companions: tuple[str, ...] = ()
    text: Callable[[KnobValue], str | None] = one_and_zero
    required: bool = False
    derived: bool = False

    def refusal(self, facts: Facts) -> str:
        """Why the knob is illegal for the model and target; "" where it is legal."""
        if self.since and facts.release < self.since:
            return f"needs Triton {self.since}; target {facts.target} is served by {facts.release}"
        return self.refuse(facts)

    def alone(self, given: Collection[str]) -> str:
        """Why the knob must not be given as it is, beside the knobs of these names; "" where it may."""
        missing = [name for name in self.companions if name not in given]
        return f"it needs {' and '.join(missing)} beside it" if missing else ""
