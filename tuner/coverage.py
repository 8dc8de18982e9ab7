"""How much of a space was measured before: what a study would not have to measure. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tritonc.compiler.candidate import Candidate
from tritonc.tuner.load_search import LoadSearch
from tritonc.tuner.records import Before


@dataclass(frozen=True, slots=True)
class Coverage:
    """Candidates of a space that were measured before.

    Attributes:
        wholly: so far that nothing is left to measure, or that they are known to fail.
        partly: some loads of them, or not compared with the baseline's outputs.
    """

    wholly: int
    partly: int


NOTHING_COVERED = Coverage(0, 0)


def coverage(before: Mapping[Candidate, Before], new_search: Callable[[], LoadSearch]) -> Coverage:
    """How much was measured before.

    Args:
        before: what was measured of each candidate.
        new_search: begins a search for the load that decides about one.
    """
    known = [_share(each, new_search()) for each in before.values()]
    return Coverage(wholly=known.count("wholly"), partly=known.count("partly"))


def _share(before: Before, search: LoadSearch) -> str:
    if before.failure is not None:
        return "wholly"
    for load, recorded in before.loads.items():
        search.know(load, recorded.measurement, recorded.windows)
    if search.best() is None:
        return "nothing"
    return "wholly" if before.is_verified and search.ask() is None else "partly"
