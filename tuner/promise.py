"""What asking once more is expected to gain, and when that is too little to go on. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tritonc.compiler.candidate import Candidate
from tritonc.tuner.confirm import BEARABLE_LOSS
from tritonc.tuner.encoding import Pair

SMALL_GAIN = 0.003
PATIENCE = 4
"""The search is over when none of four runs promised 0.3%, or a tenth of the noise. That is of five runs in
docs/search.md; a promise here counts what breaks a limit as worthless, and draws from Student's t, so it
falls slower than the expected improvement of which that was said.

On the tables of `benchmarks/laws.py` that is after 14 runs (median) with 0.1% left to gain, with the noise of
docs/search.md after 17 with 1.3%. On the recorded ones of `benchmarks/surfaces`, whose best stands out by
chance as one visit differs from the next, after 20 with 0.2% and after 24 with 1.4%.
"""

_SMALL_SHARE = 0.1
"""Of the standard deviation of one measurement: what is less cannot be told, by the confirmation neither."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What measuring a pair is expected to gain, relative to the best so far.

    Attributes:
        gain: that.
        least: what is worth a run.
        rest: what measuring every candidate that is left promises, all together at most: the sum of what each
            does. Infinite where that is not known, or ends no search.
        all_tried: whether every accelerator, backend, precision and switch was tried: no search ends before.
    """

    gain: float
    least: float = SMALL_GAIN
    rest: float = math.inf
    all_tried: bool = True

    @property
    def enough(self) -> float:
        """What of the rest is worth going on for: a confirmation leaves `BEARABLE_LOSS` to chance anyway."""
        return max(self.least, BEARABLE_LOSS)

    @property
    def is_last(self) -> bool:
        """Whether all that is left is not worth going on for."""
        return self.rest < self.enough


def worth_a_run(scatter: float) -> float:
    """The gain below which a run is not worth it.

    Args:
        scatter: standard deviation of one measurement of the objective's logarithm.
    """
    return max(SMALL_GAIN, _SMALL_SHARE * scatter)


def together(promised: Mapping[Pair, float], pairs: Iterable[Pair]) -> float:
    """What measuring each candidate promises, at its most promising load, in sum.

    The best of several gains is at most their sum, so measuring all of them is expected to gain no more.
    """
    most: dict[Candidate, float] = {}
    for pair in pairs:
        most[pair[0]] = max(most.get(pair[0], 0.0), float(promised[pair]))
    return sum(most.values())


def promises_little(promises: Sequence[Promise]) -> bool:
    """Whether the last asks in a row promised too little, or all that is left does, given what each did."""
    last = promises[-PATIENCE:]
    is_flat = len(last) == PATIENCE and all(each.all_tried and each.gain < each.least for each in last)
    return is_flat or bool(last and last[-1].is_last)
