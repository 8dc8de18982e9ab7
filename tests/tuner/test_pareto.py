"""Fronts, their knees, and the number that a search for one follows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tritonc.tuner.pareto import chebyshev, is_on_front, knee, spread

tables = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays(float, shape, elements=st.integers(-5, 5).map(float))
)


@given(tables)
def test_on_the_front_is_who_is_beaten_by_nobody(values):
    def beats(one, other):
        return (one >= other).all() and (one > other).any()

    wanted = [not any(beats(other, each) for other in values) for each in values]
    assert is_on_front(values).tolist() == wanted
    assert any(wanted)


@given(tables, st.integers(1, 6))
def test_a_spread_has_the_best_of_every_objective_and_repeats_nobody(values, count):
    rows = spread(values, count)
    assert len(set(rows)) == len(rows) <= count
    assert len(rows) == min(count, len(values))
    if count >= values.shape[1]:
        assert (values[list(rows)].max(axis=0) == values.max(axis=0)).all()


def test_the_knee_loses_little_in_everything():
    values = np.array([[0.0, 1.0], [0.8, 0.9], [1.0, 0.0]])
    assert knee(values) == 1
    assert knee(values * [1, 100]) == 1
    assert knee(values[:1]) == 0


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.5, 0.5), (0.1, 0.9)])
def test_every_point_of_a_front_is_best_for_some_shares_also_where_it_is_hollow(shares):
    hollow = np.array([[0.0, 1.0], [0.3, 0.35], [1.0, 0.0]])
    number = chebyshev(np.vstack([hollow, [[-9.0, -9.0]]]), shares)(hollow.T)
    assert int(number.argmax()) == {0.9: 2, 0.5: 1, 0.1: 0}[shares[0]]


def test_it_is_a_logarithm_as_the_objectives_are():
    seen = np.array([[0.0, 1.0], [1.0, 0.0]])
    number = chebyshev(seen, (0.5, 0.5))([np.array([0.2, 0.3]), np.array([0.2, 0.3])])
    assert number[1] - number[0] == pytest.approx(0.1, rel=0.2)
