"""How far a model of the space follows what other studies showed."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import pytest

from tests.tuner.tables import candidate, measurement
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import ClosedLoad
from tritonc.tuner.encoding import Encoding
from tritonc.tuner.surrogate import Surrogate

CANDIDATES = [
    candidate(instance_count=n, intra_op_thread_count=m) for n in (1, 2, 4, 8) for m in (1, 2, 4, 8)
]
LOADS = [ClosedLoad(concurrency=2**power) for power in range(6)]


def instances(one: Candidate) -> float:
    count = one.values["instance_count"]
    assert isinstance(count, int)
    return count


def surrogate(
    capacity: Callable[[Candidate], float], pairs: list, sources: tuple[Surrogate, ...] = ()
) -> Surrogate:
    """One that was told what each pair does; throughput rises with the load on every candidate."""
    made = Surrogate(Encoding(CANDIDATES), ("throughput",), sources)
    told = []
    for one, load in pairs:
        rate = capacity(one) * load.concurrency / (load.concurrency + 4)
        told.append(measurement(load, rate, 1000 * load.concurrency / rate))
    made.fit(made.encoding.table(pairs), told)
    return made


def test_a_source_is_followed_as_far_as_it_ranks_candidates_rightly_not_loads():
    everywhere = [(one, load) for one in CANDIDATES for load in LOADS]
    right = surrogate(lambda one: 300 * (1 + instances(one) / 4), everywhere)
    wrong = surrogate(lambda one: 100 * (1 + 2 / instances(one)), everywhere)
    rng = random.Random(0)
    pairs = [(one, load) for one in rng.sample(CANDIDATES, 8) for load in rng.sample(LOADS, 3)]
    told = surrogate(lambda one: 100 * (1 + instances(one) / 4), pairs, (right, wrong))
    assert told._beliefs[0] > 0.7
    assert told._beliefs[1] < 0.2


@pytest.mark.parametrize("count", [1, 3, 8])
def test_of_a_source_nothing_is_learned_from_what_is_the_same_everywhere(count: int):
    pairs = [(one, LOADS[0]) for one in CANDIDATES[:count]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = surrogate(lambda _: 100.0, pairs)
        told = surrogate(lambda _: 100.0, pairs, (source,))
    assert told._beliefs == (pytest.approx(0.7),)
