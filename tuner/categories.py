"""Knobs whose values have no order: what is known of one says nothing of another, so each is tried. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from tritonc.compiler.candidate import Candidate
from tritonc.tuner.encoding import Pair

Category = tuple[str, str | bool]
"""A knob and a value of it that has no order."""


def categories_of(candidate: Candidate) -> Set[Category]:
    """The knobs of a candidate whose values have no order, each with its value."""
    return {(knob, value) for knob, value in candidate.knobs if isinstance(value, str | bool)}


def with_any(pairs: Iterable[Pair], wanted: Set[Category]) -> Mapping[Pair, Set[Category]]:
    """The pairs whose candidates have any of these categories, each with those that it has."""
    if not wanted:
        return {}
    found = {pair: wanted & categories_of(pair[0]) for pair in pairs}
    return {pair: categories for pair, categories in found.items() if categories}


def with_names(found: Mapping[Pair, Set[Category]]) -> Sequence[Pair]:
    """Of what `with_any` found, pairs with a value that has a name: an accelerator, a backend, a format.

    Much hangs on those; the others have what is but on or off.
    """
    return [pair for pair, of_pair in found.items() if any(isinstance(value, str) for _, value in of_pair)]


def differences(pair: Pair, other: Pair) -> tuple[bool, int]:
    """Whether two pairs are of different loads, and in how many knobs their candidates differ."""
    knobs = {knob for knob, _ in set(pair[0].knobs) ^ set(other[0].knobs)}
    return pair[1] != other[1], len(knobs)
