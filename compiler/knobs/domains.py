"""Kinds of knob values: what a person may write in `search:` or a lock, and what it means."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tritonc.schemas.errors import did_you_mean, shortened
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.spec_fields import INT32_MAX
from tritonc.schemas.units import parse_size_bytes


class Domain(Protocol):
    """The values that a knob can have at all, whatever the model and the target."""

    @property
    def ordinal(self) -> bool:
        """Whether larger and smaller mean something."""

    def parse(self, value: object) -> KnobValue:
        """The knob value that `value` means, in the one type this knob has.

        Raises:
            ValueError: it is none; the message says what would be one.
        """

    def grid(self, low: float, high: float, /) -> tuple[KnobValue, ...]:
        """The values of `{min: low, max: high}`, where low is at most high.

        Raises:
            ValueError: this knob has no ranges, or the range is out of bounds.
        """


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers from `low` on.

    Attributes:
        low: the smallest legal value.
        high: the largest legal value; by default the largest int32, which is all that fields of config.pbtxt
            and the backends' own parsers take.
        first: the smallest positive value of a grid that begins at 0.
        words: names that are legal beside the numbers.
        size: a number of bytes, which may be written with a unit.
    """

    low: int = 1
    high: int = INT32_MAX
    first: int = 1
    words: tuple[str, ...] = ()
    size: bool = False

    @property
    def ordinal(self) -> bool:
        """Numbers are ordered; where words may stand among them, nothing is."""
        return not self.words

    def parse(self, value: object) -> KnobValue:
        """See `Domain.parse`."""
        if isinstance(value, str) and value.upper() in self.words:
            return value.upper()
        if self.size and isinstance(value, str):
            value = parse_size_bytes(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{_shown(value)} should be {self._described()}")
        if value > self.high:
            raise ValueError(f"{shortened(str(value))} is out of bounds: it should be at most {self.high}")
        if value < self.low:
            raise ValueError(f"{value} is out of bounds: it should be {self._described()}")
        return value

    def grid(self, low: float, high: float) -> tuple[KnobValue, ...]:
        """A geometric grid of doubling steps with both ends in it, after 0 where it begins there."""
        first, last = self.parse(low), self.parse(high)
        assert isinstance(first, int)
        assert isinstance(last, int)
        values = {first, last}
        step = self.first if first == 0 else first
        while step < last:
            values.add(step)
            step *= 2
        return tuple(sorted(values))

    def _described(self) -> str:
        is_small = self.high < INT32_MAX
        bounds = f"from {self.low} to {self.high}" if is_small else f"of at least {self.low}"
        words = "".join(f" or {word}" for word in self.words)
        return f"a whole number {bounds}{words}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few values that have no order, spelled in capitals where they are words."""

    values: tuple[KnobValue, ...]

    @property
    def ordinal(self) -> bool:
        """Categories."""
        return False

    def parse(self, value: object) -> KnobValue:
        """See `Domain.parse`."""
        for legal in self.values:
            if type(legal) is type(value) and legal == value:
                return legal
            if isinstance(legal, str) and isinstance(value, str) and legal.lower() == value.lower():
                return legal
        words = [str(legal) for legal in self.values]
        raise ValueError(f"{_shown(value)} is not a value of it; {did_you_mean(str(value), words)}")

    def grid(self, low: float, high: float) -> tuple[KnobValue, ...]:
        """The values between two numbers."""
        found = tuple(v for v in self.values if isinstance(v, int) and low <= v <= high)
        if not found:
            raise ValueError(f"the range from {low:g} to {high:g} has no value of it: {_listed(self.values)}")
        return found


@dataclass(frozen=True, slots=True)
class Switch:
    """On or off: `true`/`false`, `on`/`off`, and the `1`/`0` that Triton's own files use."""

    @property
    def ordinal(self) -> bool:
        """Categories."""
        return False

    def parse(self, value: object) -> KnobValue:
        """See `Domain.parse`."""
        word = str(value).lower()
        if word in {"true", "on", "1", "yes"}:
            return True
        if word in {"false", "off", "0", "no"}:
            return False
        raise ValueError(f"{_shown(value)} should be true or false")

    def grid(self, _low: float, _high: float) -> tuple[KnobValue, ...]:
        """There are no ranges of it."""
        raise ValueError("it is on or off and has no ranges: write true, false or [false, true]")


@dataclass(frozen=True, slots=True)
class Text:
    """Text of a given form.

    Attributes:
        pattern: the whole text has to match.
        described: what it should be, with an example.
    """

    pattern: str
    described: str

    @property
    def ordinal(self) -> bool:
        """Categories."""
        return False

    def parse(self, value: object) -> KnobValue:
        """See `Domain.parse`."""
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise ValueError(f"{_shown(value)} should be {self.described}")
        return value

    def grid(self, _low: float, _high: float) -> tuple[KnobValue, ...]:
        """There are no ranges of it."""
        raise ValueError(f"it has no ranges: it should be {self.described}")


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """A list of batch sizes, rising, or the empty list: none."""

    @property
    def ordinal(self) -> bool:
        """Categories."""
        return False

    def parse(self, value: object) -> KnobValue:
        """See `Domain.parse`; a single number is a list of one."""
        sizes = value if isinstance(value, tuple | list) else (value,)
        parse: Callable[[object], KnobValue] = Whole().parse
        parsed = tuple(parse(size) for size in sizes)
        if list(parsed) != sorted(set(parsed), key=_number):
            raise ValueError(f"{_shown(value)} should be batch sizes in rising order, for example [4, 8]")
        return tuple(_number(size) for size in parsed)

    def grid(self, _low: float, _high: float) -> tuple[KnobValue, ...]:
        """There are no ranges of it."""
        raise ValueError("it has no ranges: write a list of lists, for example [[], [8], [4, 8]]")


def _number(value: KnobValue) -> int:
    assert isinstance(value, int)
    return value


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)


def _listed(values: tuple[KnobValue, ...]) -> str:
    return ", ".join(str(value) for value in values)
