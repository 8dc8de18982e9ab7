"""One quantity over (candidate, load) pairs as a Gaussian process: scikit-learn's, with structure and priors.

The structure: what a candidate changes under every load, plus what a load changes for every candidate, plus
what is left of both together, plus what a candidate and what a pair has of its own, plus noise. Without the
pair's own an odd load looks like noise, and then no measurement is believed. The priors make three
measurements enough to begin with; with more they fade. Imports scikit-learn: import this module inside
functions only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.stats import Covariance, multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from threadpoolctl import ThreadpoolController

from tritonc.tuner.serving import LOAD_COLUMNS

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]
Optimizer = Callable[[Any, Floats, Floats], tuple[Floats, float]]

_JITTER = 1e-8  # variance that keeps matrices of equal rows positive definite
_BIAS = 25.0  # variance of the level of a logarithm, about which nothing is known: a factor of e ** 5
_STEPS = 25  # of L-BFGS-B
_LENGTHS = {"candidate": 1.0, "load": 1.5, "rest": 1.0}  # the columns of an Encoding are about 1 wide
_LENGTH_SPREAD, _VARIANCE_SPREAD, _NOISE_SPREAD = 0.6, 1.0, 1.5
"""Standard deviations of the log-normal priors; the last also of what a pair has of its own."""
_LENGTH_BOUNDS, _VARIANCE_BOUNDS, _OWN_BOUNDS = (0.1, 20.0), (1e-5, 25.0), (1e-6, 0.25)
_SAME = 1e-9  # squared distance of two rows of one candidate, or of one pair
_NOISE_BOUNDS = (1e-3, 100.0)  # times what is expected
STRAY_ODDS = 1 / 29
"""One measurement in thirty is off by a factor of 1.4 to 2.3 (docs/search.md, fact 5)."""
STRAY_VARIANCE = 0.25
"""Of the logarithm of what is off: (log 1.65) ** 2."""
_LIBRARIES = ThreadpoolController()
"""Matrices are of some dozens of rows: several threads of BLAS wait for each other longer than they compute,
five times as long where two searches run on two cores."""
_SUSPECT = 2.0  # standard deviations from what the others say
_LEARN_FROM = 80  # measurements: hyperparameters are known well enough from so many
_FEWEST = 6  # measurements that can contradict one


@dataclass(frozen=True, slots=True)
class Prior:
    """What is expected of a quantity before anything is measured, as standard deviations of its logarithm.

    Attributes:
        candidate: of what a candidate changes.
        load: of what the load changes.
        rest: of what is left of both together.
        own: of what each candidate has of its own, unlike its neighbours, under every load.
        pair: of what it has under one load alone, whenever it is measured there: a batch that fits the
            hardware's tiles, say, between two that do not.
        noise: of one measurement.
        only_low: whether a measurement that is off is so downwards. Nothing makes a server faster than it is:
            a throughput that looks too good is put down to the model, not to the measurement.
    """

    candidate: float
    load: float
    rest: float
    own: float
    pair: float
    noise: float
    only_low: bool = False

    def doubtful(self, residuals: Floats) -> Floats:
        """Residuals as far as they may mean that a measurement is off."""
        return np.minimum(0.0, residuals) if self.only_low else residuals


class Structured(Kernel):  # type: ignore[misc]
    """Three Matérn kernels (5/2) over the candidate's columns, the load's, and all; with bias and noise.

    Args:
        knobs: how many columns depend on the candidate alone; the others depend on the load.
        prior: sets the hyperparameters that are expected.
        logarithms: of the hyperparameters; those expected if None. In order: variance and lengths of each
            of the three (the last has a single length), then the variances of what a candidate has of its
            own, of what a pair has, and of the noise.
    """

    def __init__(self, knobs: int, prior: Prior, logarithms: Floats | None = None) -> None:
        self.knobs = knobs
        self.prior = prior
        self.logarithms = logarithms

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What it is made of."""
        del deep
        return {"knobs": self.knobs, "prior": self.prior, "logarithms": self.logarithms}

    @property
    def theta(self) -> Floats:
        """Logarithms of the hyperparameters."""
        return expected(self.knobs, self.prior) if self.logarithms is None else self.logarithms

    @theta.setter
    def theta(self, theta: Floats) -> None:
        self.logarithms = theta

    def clone_with_theta(self, theta: Floats) -> Structured:
        """The same with other hyperparameters."""
        return Structured(self.knobs, self.prior, theta)

    @property
    def n_dims(self) -> int:
        """How many hyperparameters there are."""
        return len(self.theta)

    @property
    def bounds(self) -> Floats:
        """Of `theta`."""
        lengths = [_LENGTH_BOUNDS]
        rows = [_VARIANCE_BOUNDS, *lengths * self.knobs, _VARIANCE_BOUNDS, *lengths * LOAD_COLUMNS]
        rows += [_VARIANCE_BOUNDS, *lengths, _OWN_BOUNDS, _OWN_BOUNDS]
        low, high = (factor * self.prior.noise**2 for factor in _NOISE_BOUNDS)
        return np.log([*rows, (low, high)])

    @property
    def own(self) -> float:
        """Variance of what each candidate has of its own."""
        return math.exp(self.theta[-3])

    @property
    def pair(self) -> float:
        """Variance of what each candidate has of its own under one load."""
        return math.exp(self.theta[-2])

    @property
    def noise(self) -> float:
        """Variance of the noise."""
        return math.exp(self.theta[-1])

    def __call__(self, X: Floats, Y: Floats | None = None, eval_gradient: bool = False) -> Any:  # noqa: N803
        """The covariances of rows, with their gradient by `theta` where asked for."""
        if eval_gradient:
            return self._with_gradient(X)
        of_candidate, of_load, (variance, length, _) = self._parts()
        candidates, candidate_of = _alike(X[:, of_candidate[-1]])
        loads = X[:, of_load[-1]]
        other = X if Y is None else Y
        apart = cdist(candidates, other[:, of_candidate[-1]], "sqeuclidean")
        away = cdist(loads, other[:, of_load[-1]], "sqeuclidean")
        squares = apart[candidate_of] + away
        total = variance * _matern(squares / float(length[0]) ** 2) + self.pair * (squares < _SAME)
        total += (_BIAS + self.own * (apart < _SAME) + _covariances(candidates, other, *of_candidate))[
            candidate_of
        ]
        total += _covariances(loads, other, *of_load)
        return total + self.noise * np.eye(len(X)) if Y is None else total

    def _with_gradient(self, rows: Floats) -> tuple[Floats, Floats]:
        differences = (rows[:, None, :] - rows[None, :, :]) ** 2
        noise = self.noise * np.eye(len(rows))
        own = self.own * (differences[:, :, : self.knobs].sum(axis=2) < _SAME)
        pair = self.pair * (differences.sum(axis=2) < _SAME)
        total = _BIAS + own + pair + noise
        gradients: list[Floats] = []
        for variance, length, some in self._parts():
            scaled = differences[:, :, some] / length**2
            squares = scaled.sum(axis=2)
            value, slope = _matern(squares), _matern_slope(squares)
            total += variance * value
            by_length = variance * slope[:, :, None] * scaled
            if len(length) < scaled.shape[2]:
                by_length = by_length.sum(axis=2, keepdims=True)
            gradients += [(variance * value)[:, :, None], by_length]
        gradients += [own[:, :, None], pair[:, :, None], noise[:, :, None]]
        return total, np.concatenate(gradients, axis=2)

    def diag(self, X: Floats) -> Floats:  # noqa: N803
        """The variances of rows, that of the noise included."""
        return np.full(
            len(X),
            _BIAS + sum(variance for variance, _, _ in self._parts()) + self.own + self.pair + self.noise,
        )

    def is_stationary(self) -> bool:
        """It is."""
        return True

    def _parts(self) -> Iterator[tuple[float, Floats, slice]]:
        """Variance, lengths and columns of each of the three."""
        values, loads = np.exp(self.theta), self.knobs + 1
        rest = loads + 1 + LOAD_COLUMNS
        yield float(values[0]), values[1:loads], slice(0, self.knobs)
        yield float(values[loads]), values[loads + 1 : rest], slice(self.knobs, None)
        yield float(values[rest]), values[rest + 1 : rest + 2], slice(None)


def expected(knobs: int, prior: Prior) -> Floats:
    """Logarithms of the hyperparameters that a prior expects."""
    lengths = [[_LENGTHS["candidate"]] * knobs, [_LENGTHS["load"]] * LOAD_COLUMNS, [_LENGTHS["rest"]]]
    variances = [prior.candidate**2, prior.load**2, prior.rest**2]
    parts = [
        value for variance, length in zip(variances, lengths, strict=True) for value in (variance, *length)
    ]
    return np.log([*parts, prior.own**2, prior.pair**2, prior.noise**2])


def _spreads(knobs: int) -> Floats:
    length = [_LENGTH_SPREAD]
    rows = [_VARIANCE_SPREAD, *length * knobs, _VARIANCE_SPREAD, *length * LOAD_COLUMNS]
    return np.array([*rows, _VARIANCE_SPREAD, *length, _VARIANCE_SPREAD, _NOISE_SPREAD, _NOISE_SPREAD])


def _alike(rows: Floats) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Each row that differs from the one before, and which of them every row is.

    A table has a candidate under one load after another. To look for all that are alike took longer than it
    saved, up to some thousand rows.
    """
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[is_new], np.cumsum(is_new) - 1


def _covariances(rows: Floats, others: Floats, variance: float, length: Floats, some: slice) -> Floats:
    """Of rows that have the columns `some` alone, and others that have all."""
    return variance * _matern(cdist(rows / length, others[:, some] / length, "sqeuclidean"))


def _matern(squares: Floats) -> Floats:
    """Matérn 5/2 of squared distances."""
    distance = np.sqrt(5 * squares)
    return np.asarray((1 + distance + 5 / 3 * squares) * np.exp(-distance))


def _matern_slope(squares: Floats) -> Floats:
    """The derivative of that by a logarithmic length, over the scaled square of the distance along it."""
    distance = np.sqrt(5 * squares)
    return np.asarray(5 / 3 * (1 + distance) * np.exp(-distance))


class _WithPriors(GaussianProcessRegressor):  # type: ignore[misc]
    """Fits the most probable hyperparameters, not the most likely: log-normal around those expected."""

    def log_marginal_likelihood(
        self, theta: Floats | None = None, eval_gradient: bool = False, clone_kernel: bool = True
    ) -> Any:
        """The logarithm of the posterior density of `theta`, but for a constant."""
        found = super().log_marginal_likelihood(theta, eval_gradient, clone_kernel)
        if theta is None:
            return found
        spreads = _spreads(self.kernel.knobs)
        away = (theta - expected(self.kernel.knobs, self.kernel.prior)) / spreads
        if not eval_gradient:
            return found - 0.5 * float(away @ away)
        value, gradient = found
        return value - 0.5 * float(away @ away), gradient - away / spreads


class Gaussian:
    """A Gaussian process over rows of an `Encoding`.

    Args:
        knobs: how many columns depend on the candidate alone.
        prior: of the quantity.
    """

    def __init__(self, knobs: int, prior: Prior) -> None:
        self.prior = prior
        self._expected = Structured(knobs, prior)
        self._fitted: _WithPriors | None = None
        self._stray = np.zeros(0, bool)

    def fit(self, rows: Floats, values: Floats, variances: Floats) -> None:
        """Takes in all measurements; the same ones give the same model, whatever it was fitted to before.

        Args:
            rows: one a measurement.
            values: of the quantity, less what was expected of it.
            variances: what is known about the noise of each, beside what is learned.
        """
        with _LIBRARIES.limit(limits=1):
            self._fitted, self._stray = self._believed(rows, values, variances)

    def doubt(self, rows: Floats, values: Floats, variances: Floats, stray: npt.NDArray[np.bool_]) -> None:
        """As `fit`, but it is known already which measurements are off.

        Args:
            rows: one a measurement.
            values: as for `fit`.
            variances: as for `fit`.
            stray: whether each is off.
        """
        with _LIBRARIES.limit(limits=1):
            self._fitted = self._learned(rows, values, variances + STRAY_VARIANCE * stray)
        self._stray = stray

    def _believed(
        self, rows: Floats, values: Floats, variances: Floats
    ) -> tuple[_WithPriors, npt.NDArray[np.bool_]]:
        """A model of all measurements, and which of them are more likely off than not and hardly count."""
        model = self._learned(rows, values, variances)
        stray = np.zeros(len(values), bool)
        while (suspect := _suspect(model, stray)) is not None:
            doubted = stray | (np.arange(len(values)) == suspect)
            other = self._learned(rows, values, variances + STRAY_VARIANCE * doubted)
            gained = other.log_marginal_likelihood_value_ - model.log_marginal_likelihood_value_
            if gained + math.log(STRAY_ODDS) < 0:
                break
            model, stray = other, doubted
        return model, stray

    def _learned(self, rows: Floats, values: Floats, variances: Floats) -> _WithPriors:
        """Hyperparameters from at most `_LEARN_FROM` measurements, then all of them taken in."""
        some = np.unique(np.linspace(0, len(values) - 1, min(len(values), _LEARN_FROM)).astype(int))
        learned = _fitted(self._expected, rows[some], values[some], variances[some], _optimized)
        learned = _likelier(learned, rows[some], values[some], variances[some])
        if len(some) == len(values):
            return learned
        return _fitted(learned.kernel_, rows, values, variances, None)

    def evidence(self, rows: Floats, values: Floats, variances: Floats) -> Floats:
        """Logarithms of the probability density of measurements before anything was learned from them.

        Args:
            rows: one a measurement.
            values: a row for each way in which these may lie about what was expected.
            variances: as for `fit`.
        """
        with _LIBRARIES.limit(limits=1):
            covariance = self._expected(rows) + np.diag(variances + _JITTER)
            root = Covariance.from_cholesky(np.linalg.cholesky(covariance))
            return np.asarray(multivariate_normal.logpdf(np.atleast_2d(values), cov=root))

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the quantity itself, without the noise of a measurement."""
        assert self._fitted is not None
        with _LIBRARIES.limit(limits=1):
            mean, deviation = self._fitted.predict(rows, return_std=True)
        noise = self._fitted.kernel_.noise
        return np.asarray(mean), np.sqrt(np.maximum(1e-12, np.asarray(deviation) ** 2 - noise))

    def left_out(self) -> tuple[Floats, Floats]:
        """For each measurement: how far it lies above what all others say of it, and how surely they say so.

        The second is a standard deviation with the noise of a measurement in it. Leave-one-out residuals of
        a Gaussian process (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 5.12).
        """
        assert self._fitted is not None
        with _LIBRARIES.limit(limits=1):
            residuals, deviations = _left_out(self._fitted)
        return residuals, np.sqrt(deviations**2 - STRAY_VARIANCE * self._stray)

    def without(self, places: Places, rows: Floats) -> tuple[Floats, Floats]:
        """As `predict`, each row as of the same model had it never been told one of its measurements.

        From the inverse of the whole matrix (that of a partitioned one; Rasmussen and Williams, A.3).

        Args:
            places: that measurement for each row, in the order of `fit`.
            rows: to predict.
        """
        model = self._fitted
        assert model is not None
        mean, deviation = self.predict(rows)
        with _LIBRARIES.limit(limits=1):
            inverse = cho_solve((model.L_, True), np.eye(len(model.L_)))
            told = np.einsum("ij,ji->i", model.kernel_(rows, model.X_train_), inverse[:, places])
        own = told / np.diag(inverse)[places]
        return mean - own * np.ravel(model.alpha_)[places], np.sqrt(deviation**2 + own * told)

    @property
    def stray(self) -> npt.NDArray[np.bool_]:
        """Whether each measurement is more likely off than not."""
        return self._stray

    @property
    def noise(self) -> float:
        """Standard deviation of one measurement."""
        return math.sqrt(self._fitted.kernel_.noise) if self._fitted else 0.0


def _fitted(
    kernel: Structured, rows: Floats, values: Floats, variances: Floats, optimizer: Optimizer | None
) -> _WithPriors:
    model = _WithPriors(kernel, alpha=variances + _JITTER, optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, values)
    return model


def _likelier(model: _WithPriors, rows: Floats, values: Floats, variances: Floats) -> _WithPriors:
    """The model, or where that is likelier one in which what is a pair's own and noise change places.

    They look alike but where a pair was measured twice, so that each is a local optimum.
    """
    low, high = model.kernel_.bounds.T
    theta = np.clip([*model.kernel_.theta[:-2], *model.kernel_.theta[:-3:-1]], low, high)
    if model.log_marginal_likelihood(theta) <= model.log_marginal_likelihood_value_:
        return model
    other = _fitted(model.kernel.clone_with_theta(theta), rows, values, variances, _optimized)
    is_better = other.log_marginal_likelihood_value_ > model.log_marginal_likelihood_value_
    return other if is_better else model


def _optimized(objective: Any, begin: Floats, bounds: Floats) -> tuple[Floats, float]:
    found = minimize(
        objective, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
    )
    return np.asarray(found.x), float(found.fun)


def _suspect(model: GaussianProcessRegressor, stray: npt.NDArray[np.bool_]) -> int | None:
    """The measurement that the others contradict most, of those that are believed; None where none is.

    What is off widens the noise that is learned, so that it looks less so: the suspicion is only that.
    """
    if len(stray) < _FEWEST:
        return None
    residuals, deviations = _left_out(model)
    away = np.where(stray, 0.0, np.abs(model.kernel_.prior.doubtful(residuals)) / deviations)
    worst = int(np.argmax(away))
    return worst if away[worst] > _SUSPECT else None


def _left_out(model: GaussianProcessRegressor) -> tuple[Floats, Floats]:
    inverse = np.diag(cho_solve((model.L_, True), np.eye(len(model.L_))))
    return np.asarray(np.ravel(model.alpha_) / inverse), np.asarray(1 / np.sqrt(inverse))
