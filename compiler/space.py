"""Every legal configuration of a (model, target), as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import KnobValue


@dataclass(frozen=True, slots=True)
class Condition:
    """A knob is active only while another active knob has one of these values."""

    knob: str
    values: tuple[KnobValue, ...]


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


@dataclass(frozen=True, slots=True)
class Space:
    """Every legal candidate of one (model, target), with the baseline among them.

    Iterating yields each candidate once, in a fixed order; `len(space)` counts without building them.
    """

    model: str
    target: str
    dimensions: tuple[Dimension, ...]
    baseline: Candidate

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Candidate]: ...
    def __contains__(self, candidate: object) -> bool: ...
    @property
    def digest(self) -> str: ...
