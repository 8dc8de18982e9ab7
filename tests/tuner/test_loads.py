"""Loads below one that broke a limit."""

from __future__ import annotations

import pytest

from tritonc.schemas.measurement import ClosedLoad, OpenLoad
from tritonc.schemas.spec import ClosedWorkload, OpenWorkload
from tritonc.tuner.loads import lower_load

CLOSED = ClosedWorkload(max_concurrency=64)
OPEN = OpenWorkload(arrival="poisson", rate=100)


@pytest.mark.parametrize(
    ("clients", "excess", "fewer"),
    [(20, 0.01, 17), (20, 0.6, 12), (20, 9.0, 10), (3, 0.01, 2), (2, 0.1, 1)],
)
def test_clients_go_by_as_much_as_a_limit_is_missed(clients: int, excess: float, fewer: int):
    load = ClosedLoad(concurrency=clients, request_batch=4)
    assert lower_load(CLOSED, load, excess) == ClosedLoad(concurrency=fewer, request_batch=4)


def test_nothing_is_below_one_client_or_the_rate_that_must_be_carried():
    assert lower_load(CLOSED, ClosedLoad(concurrency=1), 0.5) is None
    assert lower_load(OPEN, OpenLoad(rate=105), 0.5) == OpenLoad(rate=100)
    assert lower_load(OPEN, OpenLoad(rate=100), 0.5) is None
