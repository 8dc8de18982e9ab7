"""What a model of the space says of (candidate, load) pairs: their worth, and what measuring one promises.

A pair is worth its objective, counted only where it keeps the limits. Pure; imports scipy in functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import Measurement
from tritonc.tuner.encoding import Table
from tritonc.tuner.objective import SOFT_WEIGHT
from tritonc.tuner.terms import Goals, Term

if TYPE_CHECKING:
    from tritonc.tuner.surrogate import Predicted, Surrogate

Floats = npt.NDArray[np.float64]
Aim = Callable[[Sequence[Floats]], Floats]
"""One number out of the objectives, all logarithms, larger is better."""

_FAR = 4.0  # standard deviations beyond which nothing is expected
_DRAWS = 256  # of the model, to count what is to be gained; a power of two, for Sobol's sequence
_AT_ONCE = 4000  # pairs that draws are made for: of each they take 9 kB
_MOST = 3.0  # a logarithm: nothing promises more than twenty times the best
_HIDDEN = math.log(2.3)  # the farthest that a measurement is off (docs/search.md, fact 5)
SURE = 0.5
"""Probability to keep the limits from which a pair is said to keep them."""
_HOPE = 0.01  # probability to keep the limits below which the least violating pair is the better choice
_TIMES = (1, 2, 4)
"""Measurements of one pair, one after another, that are looked ahead to: one alone may be worth nothing."""
_QUANTILES = 32
"""Outcomes of a measurement that are looked at, evenly spread."""


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What pairs are worth as far as it is known, one number a pair.

    Attributes:
        objective: expected, as a logarithm, less what missing soft limits costs.
        kept: the probability that all limits are kept.
        excess: of the limit that is expected to be missed most: the logarithm of what it is about over it.
    """

    objective: Floats
    kept: Floats
    excess: Floats

    @property
    def order(self) -> Sequence[int]:
        """Places, the pair to choose first.

        Those that more likely keep the limits than not, worth most first; then the others, or the least
        violating first where none is likely to keep them.
        """
        wanted = self.objective + np.log(self.kept) if self.kept.max() > _HOPE else -self.excess
        return [int(place) for place in np.lexsort((-wanted, self.kept < SURE))]

    @property
    def best(self) -> int:
        """The first of these."""
        return self.order[0]

    @property
    def worth(self) -> Floats:
        """Of each pair, relative to the best one's objective; the best one's own is its `kept`."""
        return np.asarray(np.exp(self.objective - self.objective[self.best]) * self.kept)


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """Pairs that were never measured, of candidates that were.

    Attributes:
        table: the pairs; one may be there several times.
        places: for each of them a measurement of its candidate, as the number of what a model was fitted to.
    """

    table: Table
    places: npt.NDArray[np.intp]

    @classmethod
    def of(cls, table: Table, measured: Mapping[int, Candidate]) -> Beside:
        """What a table has of candidates, given by the numbers of their measurements."""
        rows: dict[Candidate, list[int]] = {}
        for row, (candidate, _) in enumerate(table.pairs):
            rows.setdefault(candidate, []).append(row)
        found = [(row, place) for place, one in measured.items() for row in rows.get(one, ())]
        return cls(table.at([row for row, _ in found]), np.array([place for _, place in found], np.intp))


class Prospects:
    """What a fitted surrogate says of pairs.

    Args:
        model: fitted to everything known.
        goals: of the search.
        points: `sobol_points` for the quantities of the goals.
        aim: what to maximise.
    """

    def __init__(self, model: Surrogate, goals: Goals, points: Floats, aim: Aim) -> None:
        from scipy.special import stdtrit

        self._model = model
        self._goals = goals
        self._draws = np.asarray(stdtrit(model.freedom, points))
        self._aim = aim

    def standing(self, table: Table) -> Standing:
        """What pairs are worth."""
        predicted = self._model.predict(table)
        excess = [_mean(term, table, predicted) for term in self._goals.limits.values()]
        worst = np.max(excess, axis=0) if excess else np.full(len(table), -1.0)
        kept = self._drawn(table, predicted)[1].mean(axis=0)
        soft = [_mean(term, table, predicted) for term in self._goals.soft.values()]
        objective = self._aim([_mean(term, table, predicted) for term in self._goals.axes]) - _soft_cost(soft)
        return Standing(objective, np.maximum(kept, 0.5 / _DRAWS), worst)

    def of_new(self, table: Table, best: float, worth: float) -> Floats:
        """Expected gain of measuring pairs that never were.

        Args:
            table: the pairs.
            best: the objective of the best known pair.
            worth: of that pair, relative to its objective.
        """
        gains = np.zeros(len(table))
        hopeful = np.flatnonzero(self._is_hopeful(table, best, worth)) if len(table) else np.empty(0, np.intp)
        for begin in range(0, len(hopeful), _AT_ONCE):
            places = hopeful[begin : begin + _AT_ONCE]
            some = table.at([int(place) for place in places])
            gains[places] = self._gain(some, self._model.predict(some), best, worth)
        return gains

    def of_limits(self, table: Table, standing: Standing) -> Floats:
        """Expected gain of measuring known pairs again, to learn whether they keep the limits.

        The expected worth of the best choice then, less that of the best choice now (the knowledge gradient;
        Frazier, Powell and Dayanik, "A knowledge-gradient policy for sequential information collection",
        2008), of as many measurements in a row as are worth most each (Frazier and Powell, "Paradoxes in
        learning and the marginal value of information", 2010). Each pair is taken to be about the limit that
        it keeps least surely.
        """
        limits = self._goals.limits.values()
        if not limits:
            return np.zeros(len(table))
        predicted = self._model.predict(table)
        means = np.array([_mean(term, table, predicted) for term in limits])
        deviations = np.array([_deviation(term, predicted) for term in limits])
        noises = np.array([self._model.scatter(term) for term in limits])
        decisive = np.argmax(means / deviations, axis=0)
        rows = np.arange(len(table))
        return limit_gains(
            standing.worth,
            standing.kept,
            means[decisive, rows],
            deviations[decisive, rows],
            noises[decisive],
            freedom=self._model.freedom,
        )

    def of_doubts(
        self, table: Table, measured: Sequence[Measurement], beside: Beside, best: float, worth: float
    ) -> Floats:
        """Expected gain of measuring pairs again because what was seen of them may be off.

        What all others say of a pair, or of its candidate under other loads, as far as a measurement that is
        off can hide it, times the probability that its own one means nothing.

        Args:
            table: a row for each measurement that the model is fitted to.
            measured: these.
            beside: what each may hide of its candidate.
            best: the objective of the best known pair.
            worth: of that pair, relative to its objective.
        """
        others, off = self._model.left_out(table, measured)
        seen = self._aim([_seen(term, table, measured) for term in self._goals.axes])
        hidden = self._gain(table, others, best, worth, seen + _HIDDEN - best)
        if len(beside.table):
            told = self._aim(list(axis_means(self._model, self._goals, beside.table).T))
            others = self._model.without(beside.places, beside.table)
            behind = self._gain(beside.table, others, best, worth, told + _HIDDEN - best)
            np.maximum.at(hidden, beside.places, behind)
        return hidden * off

    def _gain(
        self, table: Table, predicted: Predicted, best: float, worth: float, most: Floats | float = _MOST
    ) -> Floats:
        objective, kept = self._drawn(table, predicted)
        drawn = np.where(kept, np.exp(np.minimum(objective - best, np.minimum(most, _MOST))), 0.0)
        return np.asarray(np.maximum(0.0, drawn - worth).mean(axis=0))

    def _is_hopeful(self, table: Table, best: float, worth: float) -> npt.NDArray[np.bool_]:
        """Pairs that could keep every limit and be worth more, each taken four standard deviations well."""
        from tritonc.tuner.surrogate import level_of

        predicted, noise = self._model.predict(table), self._model.noise

        def best_case(term: Term, sign: float) -> Floats:
            total = level_of(term, table)
            for name, weight in term.weights.items():
                mean, deviation = predicted[name]
                spread = np.sqrt(deviation**2 + noise[name] ** 2)
                total = total + weight * mean + sign * _FAR * abs(weight) * spread
            return total

        soft = [best_case(term, -1.0) for term in self._goals.soft.values()]
        objective = self._aim([best_case(term, 1.0) for term in self._goals.axes])
        hopeful = objective - _soft_cost(soft) - best > math.log(max(worth, 1e-12))
        for term in self._goals.limits.values():
            hopeful &= best_case(term, -1.0) <= 0
        return np.asarray(hopeful)

    def _drawn(self, table: Table, predicted: Predicted) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """What pairs (columns) are worth, and whether they keep all limits, in draws of the model (rows).

        Args:
            table: the pairs.
            predicted: mean and deviation of every quantity at the pairs.
        """
        from tritonc.tuner.surrogate import level_of

        quantities = {
            name: mean + deviation * draws[:, None]
            for (name, (mean, deviation)), draws in zip(predicted.items(), self._draws.T, strict=True)
        }

        def valued(term: Term) -> Floats:
            total: Floats = np.broadcast_to(level_of(term, table), (_DRAWS, len(table)))
            for name, weight in term.weights.items():
                total = total + weight * quantities[name]
            return total

        kept = np.ones((_DRAWS, len(table)), bool)
        for term in self._goals.limits.values():
            kept &= valued(term) <= 0
        soft = [valued(term) for term in self._goals.soft.values()]
        return self._aim([valued(term) for term in self._goals.axes]) - _soft_cost(soft), kept


def axis_means(model: Surrogate, goals: Goals, table: Table) -> Floats:
    """The expected objectives of pairs, a row each."""
    predicted = model.predict(table)
    return np.column_stack([_mean(term, table, predicted) for term in goals.axes])


def limit_gains(
    worth: Floats, kept: Floats, mean: Floats, deviation: Floats, noise: Floats, *, freedom: float
) -> Floats:
    """The gain of `Prospects.of_limits` a measurement, one number a pair, with the other pairs as they are.

    Args:
        worth: of each pair, its probability to keep the limits included.
        kept: that probability.
        mean: expected logarithm of what the limit is about over the limit.
        deviation: how surely that is known.
        noise: of one measurement of it.
        freedom: degrees, of what is expected; see `Surrogate.freedom`.
    """
    from scipy.special import stdtr, stdtrit

    order = np.argsort(worth)[::-1]
    best = worth[order[0]]
    quantiles = stdtrit(freedom, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)[:, None]
    second = worth[order[1]] if len(worth) > 1 else 0.0
    others = np.where(np.arange(len(worth)) == order[0], second, best)

    def gained(times: int) -> Floats:
        learned = deviation**2 / (deviation**2 + noise**2 / times)
        then = mean + deviation * np.sqrt(learned) * quantiles
        left = np.maximum(1e-9, deviation * np.sqrt(1 - learned))
        worth_then = worth / kept * stdtr(freedom, -then / left)
        now = np.maximum(worth_then.mean(axis=0), others)  # being measured alone makes nothing surer
        return np.asarray(np.maximum(worth_then, others).mean(axis=0) - now)

    gains = np.max([gained(times) / times for times in _TIMES], axis=0)
    return np.asarray(np.maximum(0.0, gains))


def sobol_points(quantities: int, seed: int) -> Floats:
    """Evenly spread points between 0 and 1, one column a quantity: a scrambled Sobol sequence."""
    from scipy.stats import qmc

    points = qmc.Sobol(quantities, seed=seed).random(_DRAWS)
    return np.asarray(np.clip(points, 1e-6, 1 - 1e-6))


def _mean(term: Term, table: Table, predicted: Mapping[str, tuple[Floats, Floats]]) -> Floats:
    """What a term is expected to be at pairs."""
    from tritonc.tuner.surrogate import level_of

    parts = [weight * predicted[name][0] for name, weight in term.weights.items()]
    return np.asarray(level_of(term, table) + np.sum(parts, axis=0))


def _seen(term: Term, table: Table, measured: Sequence[Measurement]) -> Floats:
    """What a term was in the measurement of each pair."""
    from tritonc.tuner.surrogate import level_of, quantities

    parts = [weight * quantities(name, measured)[0] for name, weight in term.weights.items()]
    return np.asarray(level_of(term, table) + np.sum(parts, axis=0))


def _deviation(term: Term, predicted: Mapping[str, tuple[Floats, Floats]]) -> Floats:
    """The standard deviation of that."""
    parts = np.array([weight * predicted[name][1] for name, weight in term.weights.items()])
    return np.asarray(np.sqrt((parts**2).sum(axis=0)))


def _soft_cost(excesses: Sequence[Floats]) -> Floats | float:
    """What soft limits that are missed cost, given the logarithms of measured over limit."""
    return SOFT_WEIGHT * sum(np.maximum(0.0, excess) for excess in excesses)
