"""Points of a Space: completing a partial one, its neighbours, and those worth measuring first."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import zip_longest

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import joined
from tritonc.compiler.knobs.dimension import Dimension, Point, legal_choices
from tritonc.compiler.space import Space
from tritonc.schemas.lock import KnobValue

ENUMERABLE = 20_000
"""Spaces up to this size are listed to draw from; above it, points are drawn by random walks."""

_JOINT_START = 3

_WALKS = 1000
"""Random walks tried in a large space before it is searched in order for one that was not measured."""


def complete(space: Space, choose: Callable[[Dimension, tuple[KnobValue, ...]], KnobValue]) -> Candidate:
    """The candidate that `choose` leads to, one active dimension at a time; it is given the legal values."""
    active: dict[str, KnobValue] = {}
    for dimension in space.dimensions:
        if choices := legal_choices(dimension, active):
            active[dimension.knob] = choose(dimension, tuple(choice.value for choice in choices))
    return Candidate.of(space.model, space.target, active)


def nearest(dimension: Dimension, legal: tuple[KnobValue, ...], wanted: KnobValue) -> KnobValue:
    """`wanted` where it is legal, else the legal value closest on a logarithmic scale, else the first."""
    if wanted in legal:
        return wanted
    if dimension.ordinal and isinstance(wanted, int | float):
        return min(legal, key=lambda value: abs(_scale(value) - _scale(wanted)))
    return legal[0]


def _scale(value: KnobValue) -> float:
    return math.log1p(max(0.0, float(value))) if isinstance(value, int | float) else math.inf


def adapted(space: Space, base: Candidate, wanted: Point) -> Candidate:
    """`base` with the `wanted` values, each where it is legal or else as near as it can be."""
    values = base.values | dict(wanted)

    def choose(dimension: Dimension, legal: tuple[KnobValue, ...]) -> KnobValue:
        return nearest(dimension, legal, values.get(dimension.knob, legal[0]))

    return complete(space, choose)


def neighbours(space: Space, candidate: Candidate) -> Iterator[Candidate]:
    """Candidates that differ from `candidate` in one knob (and in those that depend on it), nearest first."""
    moves: list[tuple[int, str, KnobValue]] = []
    for dimension in space.dimensions:
        if dimension.knob not in candidate.values:
            continue
        legal = [choice.value for choice in legal_choices(dimension, candidate.values)]
        here = legal.index(candidate.values[dimension.knob])
        for position, value in enumerate(legal):
            if position != here:
                moves.append((abs(position - here) if dimension.ordinal else 1, dimension.knob, value))
    known = {candidate}
    for _, knob, value in sorted(moves, key=lambda move: move[0]):
        other = adapted(space, candidate, {knob: value})
        if other not in known:
            known.add(other)
            yield other


def random_point(space: Space, rng: random.Random) -> Candidate:
    """A candidate drawn knob by knob, each legal value equally likely."""
    return complete(space, lambda _dimension, legal: rng.choice(legal))


def unseen_near(
    space: Space, proposed: Candidate, seen: Collection[Candidate], rng: random.Random
) -> Candidate | None:
    """`proposed` if it is new, else a new neighbour, else any new candidate; None where all were seen."""
    if proposed not in seen:
        return proposed
    for neighbour in neighbours(space, proposed):
        if neighbour not in seen:
            return neighbour
    if len(space) > ENUMERABLE:
        for _ in range(_WALKS):
            if (walked := random_point(space, rng)) not in seen:
                return walked
        return next((candidate for candidate in space if candidate not in seen), None)
    left = [candidate for candidate in space if candidate not in seen]
    return rng.choice(left) if left else None


def starting_points(space: Space) -> tuple[Candidate, ...]:
    """What to measure before there is anything to learn from: the baseline and a handful of informed points.

    One instance with all threads, as many instances as cores with one thread each, a middle batch without and
    with a delay, and each backend and accelerator once (docs/search.md, "Start").
    """
    by_knob = {dimension.knob: dimension for dimension in space.dimensions}

    def values(knob: str) -> tuple[KnobValue, ...]:
        return by_knob[knob].values if knob in by_knob else ()

    threads = max((v for v in values("intra_op_thread_count") if isinstance(v, int)), default=1)
    wide: dict[str, KnobValue] = {"instance_count": 1, "intra_op_thread_count": threads}
    narrow: dict[str, KnobValue] = {"instance_count": threads, "intra_op_thread_count": 1}
    batching: dict[str, KnobValue] = {
        "dynamic_batching": True,
        "max_batch_size": _middle(values("max_batch_size")),
    }
    delays = values("max_queue_delay_microseconds")
    wanted: list[dict[str, KnobValue]] = [
        wide,
        narrow,
        wide | batching | {"max_queue_delay_microseconds": 0},
        wide | batching | {"max_queue_delay_microseconds": _middle(delays)},
    ]
    wanted += [{"backend": value, **wide} for value in values("backend")]
    wanted += [{"accelerator": value, **wide} for value in values("accelerator")]
    points = [space.baseline, *(adapted(space, space.baseline, _known(w, by_knob)) for w in wanted)]
    return tuple(dict.fromkeys(points))


def joint_starting_points(spaces: Sequence[Space], ensemble: str) -> tuple[Candidate, ...]:
    """Informed points of an ensemble: every model at its own first one, at its second one, and so on.

    A few of them only, without the baseline: a search soon knows more.
    """
    rows = zip_longest(*(starting_points(space)[1:] for space in spaces))
    points = [
        joined([point or space.baseline for point, space in zip(row, spaces, strict=True)], ensemble)
        for row in rows
    ]
    return tuple(dict.fromkeys(points))[:_JOINT_START]


def _middle(values: tuple[KnobValue, ...]) -> KnobValue:
    return values[len(values) // 2] if values else 0


def _known(wanted: Point, by_knob: Mapping[str, Dimension]) -> dict[str, KnobValue]:
    return {knob: value for knob, value in wanted.items() if knob in by_knob}
