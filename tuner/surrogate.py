"""What measurements of some (candidate, load) pairs say about all others.

Everything is modelled as logarithms, in which Little's law is a sum: for a closed load the average latency is
what is in flight over the throughput, so a latency is a throughput and a tail ratio that is nearly constant
within a model (docs/search.md, fact 3). Imports scikit-learn: import this module inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tritonc.schemas.measurement import Load, Measurement
from tritonc.tuner.encoding import Encoding, Table
from tritonc.tuner.gaussian import STRAY_ODDS, STRAY_VARIANCE, Gaussian, Places, Prior
from tritonc.tuner.objective import held_memory_bytes
from tritonc.tuner.serving import LAWS, Law, in_flight
from tritonc.tuner.statistics import standard_error
from tritonc.tuner.terms import Term

Floats = npt.NDArray[np.float64]
Predicted = dict[str, tuple[Floats, Floats]]
"""Means and standard deviations by quantity, one for each pair of a table."""

PRIORS: Mapping[str, Prior] = {
    "throughput": Prior(candidate=0.5, load=0.2, rest=0.15, own=0.05, pair=0.015, noise=0.015, only_low=True),
    "tail": Prior(candidate=0.15, load=0.2, rest=0.15, own=0.05, pair=0.04, noise=0.04),
    "latency": Prior(candidate=0.5, load=0.7, rest=0.3, own=0.05, pair=0.04, noise=0.06),
    "memory": Prior(candidate=0.3, load=0.05, rest=0.02, own=0.01, pair=0.005, noise=0.01),
    "host_memory": Prior(candidate=0.3, load=0.05, rest=0.02, own=0.01, pair=0.005, noise=0.01),
    "energy": Prior(candidate=0.4, load=0.3, rest=0.1, own=0.02, pair=0.01, noise=0.03),
    "queue": Prior(candidate=0.7, load=1.0, rest=0.5, own=0.1, pair=0.05, noise=0.1),
    "load": Prior(candidate=0.5, load=0.01, rest=0.01, own=0.1, pair=0.005, noise=0.1),
}
"""Expectations by kind of quantity: configurations of one model differ by half a unit of log throughput (a
factor of 1.6) and noise is 0.6 to 1.4% typically (docs/search.md, facts 3 to 5).

What a pair has of its own is expected to be as large as noise: only measuring it again tells them apart. With
3% for that of throughput the replay of `benchmarks/surfaces` with noise ended with three times the regret."""

_SEEN: Mapping[str, tuple[Callable[[Measurement], float | None], float]] = {
    "memory": (lambda measured: held_memory_bytes(measured) or None, 1.0),
    "host_memory": (lambda measured: measured.memory_bytes, 1.0),
    "energy": (lambda measured: measured.joules_per_inference, 1e-9),
    "queue": (lambda measured: measured.queue_ms, 1e-2),
    "load": (lambda measured: measured.load_s, 1e-2),
}
"""Quantities without an interval, None where not measured, and how little of each counts as nothing."""
_UNKNOWN = 100.0
"""The variance of what was not measured: nothing is known of it."""
_UNSUSTAINED = 0.97
"""Share of its rate that a load completes at most where it is not sustained: one percent less than is needed,
as `objective.violations` has it."""
_BLAME = 30.0  # how quickly failures are put down to a knob (the inverse of a ridge penalty)
_CERTAIN = 50.0  # a logarithm of odds
_FEWEST_FOR_LAW = 3
_FIRST_FREEDOM = 5.0  # measurements that the priors count for where it is said how sure a prediction is
_SOURCE_BELIEF = 0.7
_LOAD_TERMS = 3  # of a parabola
_FEWEST_RANKS = 3
_ALIKE = 1e-9  # logarithms that differ by less are equal, and have no ranks
_SOURCE_WEIGHT = 4.0  # measurements after which rank agreement counts as much as the first belief


@dataclass(slots=True)
class Surrogate:
    """A model of every quantity that the objective and the limits name.

    Attributes:
        encoding: of the candidates.
        quantities: what is modelled, by name; see `terms.Term`.
        sources: surrogates of other studies, believed as far as their ranks agree with this one's.
    """

    encoding: Encoding
    quantities: tuple[str, ...]
    sources: tuple[Surrogate, ...] = ()
    _models: dict[str, Gaussian] = field(default_factory=dict)
    _law: Law = LAWS[0]
    _level: float = -math.inf
    _measurements: int = 0
    _beliefs: tuple[float, ...] = ()
    _variances: dict[str, float] = field(default_factory=dict)

    def fit(self, table: Table, measured: Sequence[Measurement]) -> None:
        """Takes in all measurements, at least one; `table` has a row for each.

        One that is off in one quantity is believed in none: something else ran meanwhile.
        """
        self._beliefs = self._agreements(table, measured)
        self._law, self._level = self._likeliest(table, measured)
        self._measurements = len(measured)
        told = {}
        for name in self.quantities:
            values, variances = quantities(name, measured)
            told[name] = values - self._expected(name, table), variances
            kind = kind_of(name, table.pairs[0][1])
            model = self._models.setdefault(name, Gaussian(self.encoding.knobs, PRIORS[kind]))
            model.fit(table.rows, *told[name])
            self._variances[name] = float(np.median(variances[variances < _UNKNOWN]))
        stray = self.stray
        for name, model in self._models.items():
            if (model.stray != stray).any():
                model.doubt(table.rows, *told[name], stray)

    def predict(self, table: Table) -> Predicted:
        """Mean and standard deviation of every quantity at the pairs of a table."""
        found = {}
        for name in self.quantities:
            mean, deviation = self._models[name].predict(table.rows)
            found[name] = (mean + self._expected(name, table), deviation)
        return found

    def left_out(self, table: Table, measured: Sequence[Measurement]) -> tuple[Predicted, Floats]:
        """What the other measurements say of each, and how likely it is that it is off.

        Args:
            table: that was fitted.
            measured: likewise.

        Returns:
            As of `predict`, with the noise of a measurement; and probabilities, from how much better what is
            seen is explained by a measurement in thirty that is off than by one that is not.
        """
        found: Predicted = {}
        odds = np.zeros(len(table))
        for name in self.quantities:
            residual, deviation = self._models[name].left_out()
            found[name] = quantities(name, measured)[0] - residual, deviation
            wide = np.sqrt(deviation**2 + STRAY_VARIANCE)
            doubtful = self._models[name].prior.doubtful(residual)
            better = (doubtful / deviation) ** 2 / 2 - (doubtful / wide) ** 2 / 2
            odds = np.maximum(odds, STRAY_ODDS * np.exp(np.minimum(better, _CERTAIN)) * deviation / wide)
        return found, np.asarray(odds / (1 + odds))

    def without(self, places: Places, table: Table) -> Predicted:
        """As `predict`, each pair had the measurement at its place among the fitted ones never been told."""
        found = {}
        for name in self.quantities:
            mean, deviation = self._models[name].without(places, table.rows)
            found[name] = (mean + self._expected(name, table), deviation)
        return found

    @property
    def stray(self) -> npt.NDArray[np.bool_]:
        """Whether each measurement is more likely off than not, in any quantity."""
        return np.asarray(np.any([model.stray for model in self._models.values()], axis=0))

    @property
    def noise(self) -> Mapping[str, float]:
        """Standard deviation of one measurement of each quantity, beside what its interval says."""
        return {name: model.noise for name, model in self._models.items()}

    @property
    def freedom(self) -> float:
        """Degrees of freedom of Student's t, as which a quantity lies about what is predicted of it.

        A Gaussian process is that where its variance is estimated (Shah, Wilson and Ghahramani, "Student-t
        Processes as Alternatives to Gaussian Processes", 2014), and each measurement adds a degree: with few
        of them the tails are far.
        """
        return _FIRST_FREEDOM + self._measurements

    def scatter(self, term: Term) -> float:
        """Standard deviation of a term in a typical measurement, with what the intervals say."""
        noise = {
            name: math.hypot(model.noise, math.sqrt(self._variances[name]))
            for name, model in self._models.items()
        }
        return math.hypot(*(weight * noise[name] for name, weight in term.weights.items()))

    def _likeliest(self, table: Table, measured: Sequence[Measurement]) -> tuple[Law, float]:
        """The law that the measurements fit best, as far as they differ, and its level."""
        if table.pairs[0][1].kind != "closed":
            return LAWS[0], -math.inf
        values, variances = quantities("throughput", measured)
        if len(measured) < _FEWEST_FOR_LAW:
            return LAWS[0], table.level(LAWS[0], values)
        model = Gaussian(self.encoding.knobs, PRIORS["throughput"])
        levels = [table.level(law, values) for law in LAWS]
        expected = [table.expected_throughput(*each) for each in zip(LAWS, levels, strict=True)]
        likeliest = int(np.argmax(model.evidence(table.rows, values - np.array(expected), variances)))
        return LAWS[likeliest], levels[likeliest]

    def _expected(self, name: str, table: Table) -> Floats:
        """What is expected before measuring: informed gains, saturation, and what another study showed."""
        if name != "throughput":
            return np.zeros(len(table))
        if not self.sources:
            return table.expected_throughput(self._law, self._level)
        total = sum(self._beliefs)
        theirs = sum(
            belief / total * source.predict(table)["throughput"][0]
            for belief, source in zip(self._beliefs, self.sources, strict=True)
        )
        follow = max(self._beliefs)
        return np.asarray((1 - follow) * table.expected_throughput(self._law, self._level) + follow * theirs)

    def _agreements(self, table: Table, measured: Sequence[Measurement]) -> tuple[float, ...]:
        """How far to follow each source: a first belief, and then how well its ranks agree.

        Those of throughput apart from what the load explains, about which all sources are right.
        """
        from scipy.stats import spearmanr

        ours = _apart_from_load(quantities("throughput", measured)[0], table)
        left = len(table) - _LOAD_TERMS
        beliefs = []
        for source in self.sources:
            theirs = _apart_from_load(source.predict(table)["throughput"][0], table)
            says = left if left >= _FEWEST_RANKS and min(np.ptp(ours), np.ptp(theirs)) > _ALIKE else 0
            agreement = max(0.0, float(spearmanr(theirs, ours)[0])) if says else 0.0
            beliefs.append((_SOURCE_WEIGHT * _SOURCE_BELIEF + says * agreement) / (_SOURCE_WEIGHT + says))
        return tuple(beliefs)


def _apart_from_load(values: Floats, table: Table) -> Floats:
    """What a parabola in the logarithm of the load leaves of the logarithms of a quantity."""
    powers = np.vander(table.amounts, _LOAD_TERMS)
    return np.asarray(values - powers @ np.linalg.lstsq(powers, values, rcond=None)[0])


def kind_of(quantity: str, load: Load) -> str:
    """Which prior a quantity has: a percentile is a tail ratio under a closed load, else a latency."""
    if quantity in PRIORS:
        return quantity
    return "tail" if load.kind == "closed" else "latency"


def level_of(term: Term, table: Table) -> Floats:
    """What a term adds that is known without measuring."""
    return np.asarray(term.constant + term.amount * table.amounts)


def works(fine: Sequence[bool], rows: Floats, wanted: Floats, average: Floats) -> Floats:
    """The probability that a candidate can be measured at all, from those that could and could not.

    Logistic regression, so that what failures have in common is blamed for them, and one success of an
    average candidate beforehand.

    Args:
        fine: whether each candidate that was tried could be measured.
        rows: their columns.
        wanted: columns of those to be judged.
        average: columns of the average candidate of the space; what is left of it may be what fails.
    """
    if all(fine) or not len(wanted):
        return np.ones(len(wanted))
    from sklearn.linear_model import LogisticRegression

    seen = np.vstack([rows, average])
    model = LogisticRegression(C=_BLAME).fit(seen, [*fine, True])
    return np.asarray(model.predict_proba(wanted)[:, 1])


def quantities(name: str, measured: Sequence[Measurement]) -> tuple[Floats, Floats]:
    """A quantity's logarithm in each measurement, and the variance that its interval says.

    Those that did not measure it get the median of the others, with a variance that says nothing of it.
    """
    known = [quantity(name, each) for each in measured]
    values, variances = np.array([value for value, _ in known]), np.array([variance for _, variance in known])
    missing = np.array([name in _SEEN and _SEEN[name][0](each) is None for each in measured])
    if missing.any() and not missing.all():
        values[missing], variances[missing] = np.median(values[~missing]), _UNKNOWN
    return values, variances


def quantity(name: str, measured: Measurement) -> tuple[float, float]:
    """A quantity's logarithm in one measurement, and the variance that its interval says."""
    throughput = max(1e-9, _carried(measured))
    if name == "throughput":
        return math.log(throughput), standard_error(measured.throughput) ** 2
    if name in _SEEN:
        seen, least = _SEEN[name]
        return math.log(max(least, seen(measured) or 0.0)), 0.0
    latency = measured.latency_ms[name]  # type: ignore[index]
    value = math.log(max(1e-9, latency.value))
    if measured.load.kind == "closed":
        value -= math.log(1000 * in_flight(measured.load) / throughput)
    return value, standard_error(latency) ** 2


def _carried(measured: Measurement) -> float:
    """Inferences a second: under an open load at its nominal rate, of which a window saw more or less."""
    throughput, load = measured.throughput.value, measured.load
    if load.kind == "closed":
        return throughput
    if measured.offered_rate:
        throughput *= load.rate / measured.offered_rate
    return throughput if measured.sustained else min(throughput, _UNSUSTAINED * in_flight(load))
