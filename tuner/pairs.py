"""The (candidate, load) pairs of a search: all of them, and those that one ask looks at."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.space import Space
from tritonc.schemas.measurement import Load
from tritonc.tuner.encoding import Encoding, Pair, Table
from tritonc.tuner.points import ENUMERABLE, neighbours, random_point

Loads = Sequence[Load] | Callable[[Candidate], Sequence[Load]]

_WIDE = 2000  # candidates of a large space that are scored at a time
_SCORED = 20_000
"""Pairs that an ask looks at, about: a second on one core with two hundred measurements."""


class Pairs:
    """The pairs of a search, and the rows of numbers that stand for them.

    Args:
        space: candidates, or any sequence of them.
        loads: under which a candidate may be measured, for all or by candidate; ascending.
        baseline: of the search, which every ask looks at.

    Attributes:
        candidates: all of them; of a large space enough to know what its knobs can be.
        encoding: of these.
        all: their pairs.
    """

    def __init__(self, space: Space | Sequence[Candidate], loads: Loads, baseline: Candidate | None) -> None:
        self._large = space if isinstance(space, Space) and len(space) > ENUMERABLE else None
        self._loads = loads
        self._baseline = baseline
        self.candidates = tuple(space) if self._large is None else _some_of(self._large)
        self.encoding = Encoding(self.candidates)
        self.all = self.encoding.table(self._pairs_of(self.candidates))
        self._places = {pair: place for place, pair in enumerate(self.all.pairs)}

    def __contains__(self, pair: object) -> bool:
        return pair in self._places

    @property
    def sees_all(self) -> bool:
        """Whether every ask looks at every pair there is."""
        return self._large is None and len(self.all) <= _SCORED

    def loads_for(self, candidate: Candidate) -> Sequence[Load]:
        """The loads that `candidate` may be measured under."""
        return self._loads(candidate) if callable(self._loads) else self._loads

    def table(self, pairs: Sequence[Pair]) -> Table:
        """The rows of pairs, known or not."""
        if all(pair in self._places for pair in pairs):
            return self.all.at([self._places[pair] for pair in pairs])
        return self.encoding.table(pairs)

    def looked_at(
        self, told: Sequence[Candidate], leader: Callable[[], Candidate | None], rng: random.Random
    ) -> Table:
        """Every pair; of a large space those of candidates told, the leader's neighbours, and some at random.

        Where even these are too many, those of the candidates told, and every few of the others: every ask
        sees every load, each with some of the candidates; other asks see it with others.

        Args:
            told: candidates of which something is known.
            leader: the best one so far; looked for only in a large space.
            rng: draws what this ask looks at.
        """
        if self._large is None:
            return self._some(self.all, told, rng)
        reach = dict.fromkeys([self._large.baseline, *told])
        if (best := leader()) is not None:
            reach |= dict.fromkeys(neighbours(self._large, best))
        while len(reach) < _WIDE:
            reach[random_point(self._large, rng)] = None
        return self._some(self.encoding.table(self._pairs_of(tuple(reach))), told, rng)

    def _some(self, table: Table, told: Sequence[Candidate], rng: random.Random) -> Table:
        step = math.ceil(len(table) / _SCORED)
        if step <= 1:
            return table
        begin, whole = rng.randrange(step), {self._baseline, *told}
        seen: Counter[Candidate] = Counter()
        numbers: dict[Candidate, int] = {}
        places = []
        for place, (candidate, _) in enumerate(table.pairs):
            shifted = seen[candidate] + numbers.setdefault(candidate, len(numbers))
            seen[candidate] += 1
            if shifted % step == begin or candidate in whole:
                places.append(place)
        return table.at(places)

    def _pairs_of(self, candidates: Sequence[Candidate]) -> list[Pair]:
        return [(each, load) for each in candidates for load in self.loads_for(each)]


def _some_of(space: Space) -> tuple[Candidate, ...]:
    rng = random.Random(0)  # noqa: S311
    return (space.baseline, *(random_point(space, rng) for _ in range(_WIDE)))
