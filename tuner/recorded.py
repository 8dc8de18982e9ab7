"""What was measured of one candidate before, as it is stored; see `tritonc.tuner.records`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tritonc.schemas.measurement import Failure, Measurement, Record


class Recorded(Record):
    """What one candidate did under one load."""

    measurement: Measurement
    """Of all windows, pooled."""
    windows: int
    requests_in_sight: int
    """`LoadSearch.requests_in_sight` of the search that asked: how many requests a window went on for."""
    measured_at: str
    """When, as ISO 8601 in UTC."""


class Checked(Record):
    """Whether a candidate's outputs agreed with those of a baseline."""

    baseline: str
    """Digest of the baseline's content."""
    rtol: float
    atol: float
    failure: Failure | None
    """In what they differ; None where they agree."""
    measured_at: str

    def answers(self, baseline: str, rtol: float, atol: float) -> bool:
        """Whether this says how a check with another tolerance would end.

        What agrees within a tolerance agrees within every wider one. What does not is checked again as soon
        as the tolerance is another one.
        """
        if self.baseline != baseline:
            return False
        if self.failure is None:
            return self.rtol <= rtol and self.atol <= atol
        return (self.rtol, self.atol) == (rtol, atol)


class Unloadable(Record):
    """Why a candidate does not load."""

    failure: Failure
    measured_at: str


@dataclass(frozen=True, slots=True)
class Reused:
    """How much of a trial was measured before.

    Attributes:
        loads: of its steps.
        since: the day on which the oldest of them was measured, as 2026-11-27.
    """

    loads: int
    since: str

    @classmethod
    def of(cls, recorded: Iterable[Recorded]) -> Reused | None:
        """All of these; None where there are none."""
        days = [day_of(each.measured_at) for each in recorded]
        return cls(len(days), min(days)) if days else None


def day_of(moment: str) -> str:
    """The day of a moment in ISO 8601.

    >>> day_of("2026-11-27T08:15:00+00:00")
    '2026-11-27'
    """
    return moment[:10]
