"""Who wins: a decision on fresh, interleaved measurements of the finalists and of what they have to beat.

The best of many noisy numbers is too good to be true, so the search's own numbers decide nothing. Contenders
are measured in rounds. What a round has in common (a busy machine) is taken out of the comparison; the rest
is the noise: a two-way layout without interaction, in which a contender may miss rounds.

The race may stop after any round that settles it, so it looks at growing data several times, and each look
is a chance to be fooled. Pocock's boundary pays for that: the same smaller error at every look, so that all
looks together err in 5% of the decisions (both sides; Jennison and Turnbull, "Group Sequential Methods with
Applications to Clinical Trials", 2000, section 2.4; in terms of significance levels for t, section 4.4). The
number of comparisons is paid for by Bonferroni's correction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

import numpy as np
import numpy.typing as npt

from tritonc.compiler.candidate import Candidate
from tritonc.tuner.statistics import ALIKE

Role = Literal["baseline", "previous", "finalist"]

FIRST_LOOK = 3
"""Rounds after which a race may first be decided: with fewer, little is known about the noise."""
LAST_LOOK = 8
"""Rounds after which it is over."""
MATTERS = 0.03
"""Differences below 3% matter to nobody (docs/search.md, fact 5)."""
CLEARLY = 0.05
"""A violation beyond this share of the limit is believed before all requests are there."""

_ERROR = 0.05
_SHARE_OF_A_LOOK = 0.3
"""Of the error, for each of the looks after rounds 3 to 8. From the recursion of Armitage, McPherson and Rowe
(1969), which gives 0.347 for an error of 5%, 0.303 for one of 1%; six independent looks would get 1/6."""
_EQUAL = 0.02
"""Among finalists closer than this the cheaper one wins: a step of load has to gain as much, too
(`load_search.GAIN`)."""
BEARABLE_LOSS = 0.01
"""Which of several finalists wins is left to chance where serving the second instead would gain no more
than 1%, as far as is known: with a lead of nothing that is when a difference of 5% would have shown."""
_NO_NOISE_KNOWN = 100.0
"""A logarithm above which a difference is not finite in any sense that matters."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate as the confirmation saw it.

    Attributes:
        role: what it is measured for; the baseline and the lock's previous choice are to be beaten.
        scores: the natural logarithm of its objective by round, larger is better.
        slo_met: over all rounds together.
        violation: by how much it misses the SLO, relative, summed; 0 where it meets it.
        cost: what decides among equals, smaller first: instances, then memory.
        errors: standard errors of the scores that the measurements themselves say, by round; empty where
            they say none.
    """

    candidate: Candidate
    role: Role
    scores: Mapping[int, float]
    slo_met: bool = True
    violation: float = 0.0
    cost: tuple[float, ...] = ()
    errors: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was chosen, and why.

    Attributes:
        improved: the chosen one beats the baseline by more than the noise, or keeps an SLO that it breaks.
        gain: objective over the baseline's minus 1; None without a baseline.
        noise: relative difference below which the chosen one and what it was compared with are equal; None
            where nothing was compared.
        reason: one sentence for people.
    """

    chosen: Contender
    improved: bool
    gain: float | None
    noise: float | None
    reason: str


class Comparison:
    """Contenders compared on the rounds that they have in common, directly or by way of others.

    Least squares for score = contender + round + noise. How large the noise is say the residuals, together
    with what the measurements say of themselves: two contenders of three rounds leave two degrees of freedom.

    Args:
        contenders: those that were in the race, the dropped ones included; at least one.
    """

    def __init__(self, contenders: Sequence[Contender]) -> None:
        self._rows = {id(contender): row for row, contender in enumerate(contenders)}
        cells = [
            (row, number, score)
            for row, contender in enumerate(contenders)
            for number, score in contender.scores.items()
        ]
        numbers = {number: column for column, number in enumerate(sorted({cell[1] for cell in cells}))}
        design = np.zeros((len(cells), len(contenders) + len(numbers)))
        for index, (row, number, _) in enumerate(cells):
            design[index, row] = design[index, len(contenders) + numbers[number]] = 1
        scores = np.array([cell[2] for cell in cells])
        self._inverse = np.linalg.pinv(design)
        self._estimable = self._inverse @ design
        self._effects = self._inverse @ scores
        residuals = scores - design @ self._effects
        said = [error**2 for contender in contenders for error in contender.errors.values()]
        before = ALIKE if said else 0.0
        squares = float(residuals @ residuals) + (before * median(said) if said else 0.0)
        self._freedom = before + len(cells) - (int(np.linalg.matrix_rank(design)) if cells else 0)
        self._variance = squares / self._freedom if self._freedom else math.inf
        self._comparisons = max(1, len(contenders) - 1)

    def lead(self, one: Contender, other: Contender) -> float:
        """By how much `one` is ahead of `other`; 0 where nothing compares them."""
        contrast = self._contrast(one, other)
        return float(contrast @ self._effects) if self._compares(contrast) else 0.0

    def least(self, one: Contender, other: Contender) -> float:
        """The lead of `one` over `other` that is more than noise, at any look and in any comparison.

        Infinite where nothing is known about the noise.
        """
        return self._least(one, other, _ERROR * _SHARE_OF_A_LOOK / self._comparisons)

    def loss(self, one: Contender, other: Contender) -> float:
        """By how much `other` is expected to be ahead where it is ahead after all, times how likely that is.

        The expected value of the positive part of a normal distribution.
        """
        from scipy.special import ndtr

        error = self._error(one, other)
        if not 0 < error < math.inf:
            return error
        ahead = self.lead(one, other) / error
        density = math.exp(-(ahead**2) / 2) / math.sqrt(2 * math.pi)
        return error * (density - ahead * float(ndtr(-ahead)))

    def _least(self, one: Contender, other: Contender, error: float) -> float:
        from scipy.special import stdtrit  # scipy.stats has this too, and takes a second to import

        if not self._freedom:
            return math.inf
        return float(stdtrit(self._freedom, 1 - error / 2)) * self._error(one, other)

    def _error(self, one: Contender, other: Contender) -> float:
        """Standard error of a lead; infinite where nothing is known about the noise."""
        contrast = self._contrast(one, other)
        if not self._freedom or not self._compares(contrast):
            return math.inf
        weights = contrast @ self._inverse
        return math.sqrt(self._variance * float(weights @ weights))

    def _contrast(self, one: Contender, other: Contender) -> npt.NDArray[np.float64]:
        contrast = np.zeros(len(self._effects))
        contrast[self._rows[id(one)]] += 1
        contrast[self._rows[id(other)]] -= 1
        return contrast

    def _compares(self, contrast: npt.NDArray[np.float64]) -> bool:
        """Whether a chain of rounds leads from one to the other."""
        return bool(np.allclose(contrast @ self._estimable, contrast, atol=1e-6))

    def best(self, contenders: Sequence[Contender]) -> Contender:
        """The one that is ahead of the others; the first of equals."""
        return max(contenders, key=lambda contender: self._effects[self._rows[id(contender)]])


def decide(contenders: Sequence[Contender]) -> Verdict:
    """The contender to serve.

    One that keeps the SLO and beats what is there by more than the noise; among such that are equal the
    cheapest. Else what is there stays: the previous choice unless the baseline beats it. Where none keeps the
    SLO, the least violating.

    Args:
        contenders: at least one.
    """
    seen = Comparison(contenders)
    base = next((c for c in contenders if c.role == "baseline"), None)
    able = [c for c in contenders if c.slo_met]
    if not able:
        fewest = min(c.violation for c in contenders)
        least = [c for c in contenders if c.violation == fewest]
        chosen = base if base in least else seen.best(least)
        return _verdict(
            chosen, base, seen, contenders, "no configuration kept the SLO; this one misses it least"
        )
    standing = _standing(able, seen)
    finalists = [c for c in able if c.role == "finalist"]
    if standing is not None:
        finalists = [c for c in finalists if seen.lead(c, standing) > seen.least(c, standing)]
        if not finalists:
            return _verdict(standing, base, seen, contenders, _stays(standing, base, seen))
    chosen = _cheapest(finalists or able, seen)
    if standing is None:
        reason = (
            "it keeps the SLO, which the baseline does not" if base else "the baseline could not be measured"
        )
    else:
        reason = f"it beats the {_called(standing)} by more than the noise"
    return _verdict(chosen, base, seen, contenders, reason)


def verdict_on(chosen: Contender, contenders: Sequence[Contender], reason: str) -> Verdict:
    """What choosing one of the contenders amounts to, whoever chose it.

    Whatever is not the baseline counts as improved where it keeps the SLO: it was wanted.
    """
    base = next((c for c in contenders if c.role == "baseline"), None)
    verdict = _verdict(chosen, base, Comparison(contenders), contenders, reason)
    return replace(verdict, improved=chosen.slo_met and chosen is not base)


def hopeless(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """Those that are surely behind one that keeps the SLO, or clearly miss it: they cannot win any more.

    Both are known after two rounds, as one may be off by far; that it is surely behind before the first look
    only of finalists: nothing is decided then about what is there already, and it is to be measured well.
    """
    able = [c for c in contenders if c.slo_met]
    if not able:
        return ()
    seen = Comparison(contenders)
    leader = seen.best(able)

    def is_hopeless(contender: Contender) -> bool:
        if contender.violation > CLEARLY:
            return len(contender.scores) > 1
        looked = len(contender.scores) >= (2 if contender.role == "finalist" else FIRST_LOOK)
        return looked and seen.lead(leader, contender) > seen.least(leader, contender)

    return tuple(contender for contender in contenders if is_hopeless(contender))


def is_settled(contenders: Sequence[Contender], running: Sequence[Contender]) -> bool:
    """Whether more rounds would change nothing that matters.

    That is so where the best finalist is surely ahead of what is there, or not ahead at all, or ahead by what
    matters to nobody; and, where one of several finalists wins, it matters to nobody which.

    Args:
        contenders: all that were in the race, the dropped ones included.
        running: those of them that are measured still.
    """
    seen = Comparison(contenders)
    able = [c for c in running if c.slo_met]
    finalists = [c for c in able if c.role == "finalist"]
    if not finalists:
        return True
    best = seen.best(finalists)
    standing = _standing(able, seen)
    if standing is not None:
        lead, least = seen.lead(best, standing), seen.least(best, standing)
        if lead <= 0:
            return True
        if lead <= least:
            return least <= MATTERS
    others = [c for c in finalists if c is not best]
    if not others:
        return True
    return seen.loss(best, seen.best(others)) <= BEARABLE_LOSS


def _standing(able: Sequence[Contender], seen: Comparison) -> Contender | None:
    """What is there already: the previous choice, unless the baseline is better by more than the noise."""
    previous = next((c for c in able if c.role == "previous"), None)
    baseline = next((c for c in able if c.role == "baseline"), None)
    if previous is None or baseline is None:
        return previous or baseline
    return baseline if seen.lead(baseline, previous) > seen.least(baseline, previous) else previous


def _cheapest(contenders: Sequence[Contender], seen: Comparison) -> Contender:
    """The cheapest of those that equal the best."""
    best = seen.best(contenders)

    def is_equal(contender: Contender) -> bool:
        return seen.lead(best, contender) <= min(_EQUAL, seen.least(best, contender))

    equal = [contender for contender in contenders if contender is best or is_equal(contender)]
    return min(equal, key=lambda contender: (contender.cost, seen.lead(best, contender)))


def _called(standing: Contender) -> str:
    return "baseline" if standing.role == "baseline" else "previous choice"


def _stays(standing: Contender, base: Contender | None, seen: Comparison) -> str:
    if standing.role == "baseline":
        return "nothing beats the baseline by more than the noise, so it stays"
    stays = "nothing beats the previous choice by more than the noise, so it stays"
    if base is not None and base.slo_met and seen.lead(standing, base) < seen.least(standing, base):
        return f"{stays}; nor does it beat the baseline"
    return stays


def _verdict(
    chosen: Contender, base: Contender | None, seen: Comparison, contenders: Sequence[Contender], reason: str
) -> Verdict:
    others = [c for c in contenders if c is not chosen]
    compared = base if base is not None and base is not chosen else seen.best(others) if others else None
    difference = seen.least(chosen, compared) if compared else math.inf
    noise = math.expm1(difference) if difference < _NO_NOISE_KNOWN else None
    if base is None or chosen is base:
        return Verdict(chosen, base is None and chosen.slo_met, 0.0 if base else None, noise, reason)
    gained = seen.lead(chosen, base)
    improved = chosen.slo_met and (gained > difference or not base.slo_met)
    return Verdict(chosen, improved, math.expm1(gained), noise, reason)
