"""Knobs of a Space as data: which values they may take, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonc.schemas.lock import KnobValue

Point = Mapping[str, KnobValue]
"""Values of some knobs by name."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A knob is active only while another active knob has one of these values."""

    knob: str
    values: Sequence[KnobValue]
    """In a Dimension a tuple; before that also a range, which may be of any length."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a knob, legal only while every condition holds."""

    value: KnobValue
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Dimension:
    """One knob of a Space with the values it may take here, in order.

    The knob is active where its conditions hold and at least one of its choices is legal.

    Attributes:
        knob: Triton's name for it.
        choices: at least one.
        conditions: they name earlier dimensions only, as those of the choices do.
        ordinal: the values are counts or sizes whose order means something, else unordered categories.
    """

    knob: str
    choices: tuple[Choice, ...]
    conditions: tuple[Condition, ...] = ()
    ordinal: bool = False

    @property
    def values(self) -> tuple[KnobValue, ...]:
        """The value of every choice."""
        return tuple(choice.value for choice in self.choices)


def holds(conditions: tuple[Condition, ...], point: Point) -> bool:
    """Whether every condition is met, given the values of all earlier knobs that are active."""
    return all(
        condition.knob in point and point[condition.knob] in condition.values for condition in conditions
    )


def legal_choices(dimension: Dimension, point: Point) -> tuple[Choice, ...]:
    """The choices of a knob that are legal at a point; none where the knob is not active there."""
    if not holds(dimension.conditions, point):
        return ()
    return tuple(choice for choice in dimension.choices if holds(choice.conditions, point))
