"""The Gaussian process: right gradients, sensible with few measurements, not misled by a stray one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from tritonc.tuner.gaussian import Gaussian, Prior, Structured
from tritonc.tuner.serving import LOAD_COLUMNS

PRIOR = Prior(candidate=0.5, load=0.3, rest=0.2, own=0.04, pair=0.015, noise=0.015, only_low=True)
KNOBS = 3


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def surface(rows):
    return 3 + rows[:, 0] - 0.5 * rows[:, 1] + np.tanh(2 * rows[:, 3])


def test_the_gradient_is_that_of_the_covariances(rng):
    rows = rng.random((6, KNOBS + LOAD_COLUMNS))
    kernel = Structured(KNOBS, PRIOR)
    theta = kernel.theta + 0.2 * rng.standard_normal(kernel.n_dims)
    _, gradient = kernel.clone_with_theta(theta)(rows, eval_gradient=True)
    for index, step in enumerate(1e-6 * np.eye(kernel.n_dims)):
        above, below = (kernel.clone_with_theta(theta + sign * step)(rows) for sign in (1, -1))
        np.testing.assert_allclose(gradient[:, :, index], (above - below) / 2e-6, atol=1e-6)


def test_covariances_of_other_rows_have_no_noise(rng):
    rows = rng.random((4, KNOBS + LOAD_COLUMNS))
    kernel = Structured(KNOBS, PRIOR)
    np.testing.assert_allclose(kernel(rows) - kernel(rows, rows), kernel.noise * np.eye(4), atol=1e-12)
    np.testing.assert_allclose(kernel.diag(rows), np.diag(kernel(rows)))


def test_equal_candidates_and_loads_covary_as_row_by_row(rng):
    candidates, loads = rng.random((3, KNOBS)), rng.random((2, LOAD_COLUMNS))
    rows = np.array([[*one, *load] for one in candidates for load in loads])[rng.permutation(6)]
    kernel = Structured(KNOBS, PRIOR)
    kernel = kernel.clone_with_theta(kernel.theta + 0.2 * rng.standard_normal(kernel.n_dims))
    np.testing.assert_allclose(kernel(rows), kernel(rows, eval_gradient=True)[0], rtol=1e-12)
    each = [[kernel(row[None], other[None])[0, 0] for other in rows] for row in rows]
    np.testing.assert_allclose(kernel(rows, rows), each, rtol=1e-12)


def test_it_learns_a_surface_from_thirty_measurements(rng):
    rows, unseen = rng.random((30, KNOBS + LOAD_COLUMNS)), rng.random((200, KNOBS + LOAD_COLUMNS))
    model = Gaussian(KNOBS, PRIOR)
    model.fit(rows, surface(rows) + 0.01 * rng.standard_normal(30), np.zeros(30))
    mean, deviation = model.predict(unseen)
    missed = np.abs(mean - surface(unseen))
    assert np.median(missed) < 0.03
    assert np.mean(missed < 3 * deviation + 0.02) > 0.95


def test_a_single_measurement_moves_all_and_makes_nothing_sure(rng):
    rows = rng.random((50, KNOBS + LOAD_COLUMNS))
    model = Gaussian(KNOBS, PRIOR)
    model.fit(rows[:1], np.array([7.0]), np.zeros(1))
    mean, deviation = model.predict(rows)
    assert np.all(np.abs(mean - 7) < 0.5)
    assert np.median(deviation[1:]) > 0.1


def test_a_stray_measurement_is_not_believed(rng):
    rows = rng.random((60, KNOBS + LOAD_COLUMNS))
    values = surface(rows) + 0.005 * rng.standard_normal(60)
    values[7] -= 0.7
    model = Gaussian(KNOBS, PRIOR)
    model.fit(rows, values, np.zeros(60))
    mean, _ = model.predict(rows[[7]])
    assert abs(mean[0] - surface(rows[[7]])[0]) < 0.1


def test_one_that_looks_too_good_is_believed(rng):
    """Nothing makes a server faster than it is: what was expected of it is wrong."""
    rows = rng.random((60, KNOBS + LOAD_COLUMNS))
    values = surface(rows) + 0.005 * rng.standard_normal(60)
    values[7] += 0.7
    model = Gaussian(KNOBS, PRIOR)
    model.fit(rows, values, np.zeros(60))
    mean, _ = model.predict(rows[[7]])
    assert mean[0] > surface(rows[[7]])[0] + 0.35


def test_a_model_without_one_measurement_is_what_it_would_be_had_it_never_been_told(rng):
    rows, asked = rng.random((20, KNOBS + LOAD_COLUMNS)), rng.random((9, KNOBS + LOAD_COLUMNS))
    values = surface(rows) + 0.005 * rng.standard_normal(20)
    values[3] -= 0.2
    variances = np.full(20, 1e-4)
    whole = Gaussian(KNOBS, PRIOR)
    whole.fit(rows, values, variances)
    mean, deviation = whole.without(np.full(9, 3), asked)
    kept = np.arange(20) != 3
    kernel = whole._fitted.kernel_
    alone = GaussianProcessRegressor(kernel, alpha=whole._fitted.alpha[kept], optimizer=None)
    alone.fit(rows[kept], values[kept])
    wanted, spread = alone.predict(asked, return_std=True)
    assert mean == pytest.approx(wanted)
    assert deviation**2 == pytest.approx(spread**2 - kernel.noise)


def test_one_of_a_dozen_is_not_believed_though_it_widens_the_noise_that_is_learned(rng):
    rows = rng.random((12, KNOBS + LOAD_COLUMNS))
    rows[11] = rows[4]
    values = surface(rows) + 0.005 * rng.standard_normal(12)
    values[4] -= 0.5
    model = Gaussian(KNOBS, PRIOR)
    model.fit(rows, values, np.zeros(12))
    mean, _ = model.predict(rows[[4]])
    assert abs(mean[0] - values[11]) < 0.05


def test_what_all_others_say_of_a_measurement_is_known(rng):
    rows = rng.random((30, KNOBS + LOAD_COLUMNS))
    values = surface(rows)
    values[3] += 0.4
    model = Gaussian(KNOBS, PRIOR)
    model.fit(rows, values, np.zeros(30))
    residuals, deviations = model.left_out()
    assert int(np.argmax(residuals / deviations)) == 3
    assert residuals[3] == pytest.approx(0.4, abs=3 * deviations[3])
    assert deviations[3] < 0.15


def test_repeats_that_agree_to_the_last_digit_leave_no_noise(rng):
    rows = np.repeat(rng.random((5, KNOBS + LOAD_COLUMNS)), 4, axis=0)
    model = Gaussian(KNOBS, PRIOR)
    model.fit(rows, surface(rows), np.zeros(20))
    assert model.noise < PRIOR.noise / 5


def test_more_measurements_than_are_learned_from_all_count(rng):
    rows = rng.random((150, KNOBS + LOAD_COLUMNS))
    model = Gaussian(KNOBS, PRIOR)
    model.fit(rows, surface(rows), np.zeros(150))
    mean, _ = model.predict(rows)
    assert np.max(np.abs(mean - surface(rows))) < 0.05
