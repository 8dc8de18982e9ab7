"""Who wins: a decision on fresh, interleaved measurements of the finalists and of what they have to beat.

The best of many noisy numbers is too good to be true, so the search's own numbers decide nothing. Each
contender is measured once a round. What a round has in common (a busy machine) is taken out of the
comparison; the rest is the noise: a two-way layout without interaction, its least significant difference
at 95%, with Bonferroni's correction for the number of finalists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tritonc.compiler.candidate import Candidate

Role = Literal["baseline", "previous", "finalist"]

_CONFIDENCE = 0.95
_NO_NOISE_KNOWN = 100.0
"""A logarithm above which a difference is not finite in any sense that matters."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate as the confirmation saw it.

    Attributes:
        role: what it is measured for; the baseline and the lock's previous choice are to be beaten.
        scores: for each round the natural logarithm of its objective, larger is better; equally many for all.
        slo_met: over all rounds together.
        violation: by how much it misses the SLO, relative, summed; 0 where it meets it.
        cost: what decides among equals, smaller first: instances, then memory.
    """

    candidate: Candidate
    role: Role
    scores: tuple[float, ...]
    slo_met: bool = True
    violation: float = 0.0
    cost: tuple[float, ...] = ()

    @property
    def score(self) -> float:
        """The mean over the rounds."""
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was chosen, and why.

    Attributes:
        improved: the chosen one beats the baseline by more than the noise, or keeps an SLO that it breaks.
        gain: objective over the baseline's minus 1; None without a baseline.
        noise: relative difference below which two contenders are equal; None where nothing was compared.
        reason: one sentence for people.
    """

    chosen: Contender
    improved: bool
    gain: float | None
    noise: float | None
    reason: str


def decide(contenders: Sequence[Contender]) -> Verdict:
    """The contender to serve.

    One that keeps the SLO and beats what is there by more than the noise; among such that are equal the
    cheapest. Else what is there stays: the previous choice unless the baseline beats it. Where none keeps the
    SLO, the least violating.

    Args:
        contenders: at least one.
    """
    difference = least_difference([contender.scores for contender in contenders])
    base = next((c for c in contenders if c.role == "baseline"), None)
    able = [c for c in contenders if c.slo_met]
    if not able:
        chosen = min(contenders, key=lambda c: (c.violation, c.role != "baseline", -c.score))
        return _verdict(chosen, base, difference, "no configuration kept the SLO; this one misses it least")
    standing = _standing([c for c in able if c.role != "finalist"], difference)
    finalists = [c for c in able if c.role == "finalist"]
    if standing is not None:
        finalists = [c for c in finalists if c.score - standing.score > difference]
        if not finalists:
            return _verdict(standing, base, difference, _stays(standing, base, difference))
    chosen = _cheapest(finalists or able, difference)
    if standing is None:
        reason = (
            "it keeps the SLO, which the baseline does not" if base else "the baseline could not be measured"
        )
    else:
        reason = f"it beats the {_called(standing)} by more than the noise"
    return _verdict(chosen, base, difference, reason)


def least_difference(scores: Sequence[Sequence[float]]) -> float:
    """Difference of two means that is more than noise, for one row a contender and one column a round.

    Returns:
        Infinity for a single contender or a single round: they say nothing about noise.
    """
    from scipy.stats import t

    count, rounds = len(scores), len(scores[0])
    if count < 2 or rounds < 2:
        return math.inf
    grand = math.fsum(math.fsum(row) for row in scores) / (count * rounds)
    rows = [math.fsum(row) / rounds for row in scores]
    columns = [math.fsum(row[j] for row in scores) / count for j in range(rounds)]
    squares = math.fsum(
        (scores[i][j] - rows[i] - columns[j] + grand) ** 2 for i in range(count) for j in range(rounds)
    )
    freedom = (count - 1) * (rounds - 1)
    quantile = float(t.ppf(1 - (1 - _CONFIDENCE) / (2 * (count - 1)), freedom))
    return quantile * math.sqrt(2 * squares / freedom / rounds)


def _standing(standing: Sequence[Contender], difference: float) -> Contender | None:
    """What is there already: the previous choice, unless the baseline is better by more than the noise."""
    previous = next((c for c in standing if c.role == "previous"), None)
    baseline = next((c for c in standing if c.role == "baseline"), None)
    if previous is None or baseline is None:
        return previous or baseline
    return baseline if baseline.score - previous.score > difference else previous


def _cheapest(contenders: Sequence[Contender], difference: float) -> Contender:
    """The cheapest of those that equal the best."""
    best = max(contender.score for contender in contenders)
    equal = [contender for contender in contenders if best - contender.score <= difference]
    return min(equal, key=lambda contender: (contender.cost, -contender.score))


def _called(standing: Contender) -> str:
    return "baseline" if standing.role == "baseline" else "previous choice"


def _stays(standing: Contender, base: Contender | None, difference: float) -> str:
    if standing.role == "baseline":
        return "nothing beats the baseline by more than the noise, so it stays"
    stays = "nothing beats the previous choice by more than the noise, so it stays"
    if base is not None and base.slo_met and base.score > standing.score - difference:
        return f"{stays}; nor does it beat the baseline"
    return stays


def _verdict(chosen: Contender, base: Contender | None, difference: float, reason: str) -> Verdict:
    noise = math.expm1(difference) if difference < _NO_NOISE_KNOWN else None
    if base is None or chosen is base:
        return Verdict(chosen, base is None and chosen.slo_met, 0.0 if base else None, noise, reason)
    gained = chosen.score - base.score
    improved = chosen.slo_met and (gained > difference or not base.slo_met)
    return Verdict(chosen, improved, math.expm1(gained), noise, reason)
