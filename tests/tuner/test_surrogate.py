"""How far a model of the space follows what other studies showed."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable

import pytest

from tests.tuner.tables import candidate, measurement
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import ClosedLoad, Interval
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


def test_batches_that_are_padded_to_a_power_of_two_are_found_out():
    """Three sizes tell: the next power of two is expected to do more than those, what follows less."""
    one = candidate(format="onnx")
    loads = [ClosedLoad(concurrency=1, request_batch=size) for size in (16, 32, 48, 64, 96)]
    made = Surrogate(Encoding([one]), ("throughput",))
    told = []
    for load in loads[:3]:
        milliseconds = 1 + 0.1 * 2 ** math.ceil(math.log2(load.request_batch))
        told.append(measurement(load, 1000 * load.request_batch / milliseconds, milliseconds))
    made.fit(made.encoding.table([(one, load) for load in loads[:3]]), told)
    expected = made.predict(made.encoding.table([(one, load) for load in loads]))["throughput"][0]
    assert expected[3] > expected[1] > expected[2]
    assert expected[3] > expected[4]


def test_that_executions_hold_half_of_what_is_in_flight_is_found_out():
    """Clients are answered in turns then: no batch is full before there are twice as many."""
    sizes = [candidate(dynamic_batching=True, max_batch_size=size) for size in (2, 4, 8)]
    pairs = [(one, load) for one in sizes for load in LOADS[:4]]

    def told(share: float) -> str:
        made = Surrogate(Encoding(sizes), ("throughput",))
        held = [max(1.0, min(made_for(one), load.concurrency * share)) for one, load in pairs]
        rates = [1000 * batch / (1 + 0.25 * batch) for batch in held]
        shown = [measurement(load, rate, 1) for (_, load), rate in zip(pairs, rates, strict=True)]
        made.fit(made.encoding.table(pairs), shown)
        return made._law.fill

    def made_for(one: Candidate) -> float:
        size = one.values["max_batch_size"]
        assert isinstance(size, int)
        return size

    assert (told(1), told(1 / 2)) == ("whole", "half")


@pytest.mark.parametrize("count", [1, 2, 9])
def test_each_measurement_makes_a_prediction_one_degree_of_freedom_surer(count: int):
    pairs = [(one, LOADS[0]) for one in CANDIDATES[:count]]
    assert surrogate(lambda _: 100.0, pairs).freedom == 5 + count


def test_one_measurement_tells_how_much_a_batch_waits_that_cannot_be_filled():
    """A delay of 3 ms costs 4 clients 3 ms, however quick an execution is, and 32 clients nothing."""
    at_once, waiting = (
        candidate(dynamic_batching=True, max_batch_size=32, max_queue_delay_microseconds=us)
        for us in (0, 3000)
    )
    made = Surrogate(Encoding([at_once, waiting]), ("throughput",))
    few, many = ClosedLoad(concurrency=4), ClosedLoad(concurrency=32)
    made.fit(made.encoding.table([(at_once, few)]), [measurement(few, 4000, 1)])
    wanted = [(at_once, few), (waiting, few), (at_once, many), (waiting, many)]
    expected = [math.exp(each) for each in made.predict(made.encoding.table(wanted))["throughput"][0]]
    assert expected[0] == pytest.approx(4000, rel=0.05)
    assert expected[1] == pytest.approx(4 / 0.004, rel=0.2)
    assert expected[3] == pytest.approx(expected[2], rel=0.2)


def test_a_measurement_that_is_off_in_its_latency_is_not_believed_in_its_throughput_either():
    """Nothing makes a server faster than it is, so a throughput that is too high alone is believed."""

    def told(tail: float) -> float:
        made = Surrogate(Encoding(CANDIDATES), ("throughput", "p99"))
        seen = []
        for one, load in pairs:
            rate = 100 * instances(one) * load.concurrency / (load.concurrency + 4)
            odd = (one, load) == pairs[5]
            rate *= 1.3 if odd else 1.0
            shown = measurement(load, rate, 1000 * load.concurrency / rate)
            p99 = Interval(value=shown.latency_ms["p99"].value * (tail if odd else 1.0))
            seen.append(shown.model_copy(update={"latency_ms": {**shown.latency_ms, "p99": p99}}))
        table = made.encoding.table(pairs)
        made.fit(table, seen)
        return float(made.predict(table)["throughput"][0][5] - math.log(seen[5].throughput.value))

    pairs = random.Random(0).sample([(one, load) for one in CANDIDATES for load in LOADS], 40)
    assert told(tail=1.0) > -0.6 * math.log(1.3)
    assert told(tail=2.0) == pytest.approx(-math.log(1.3), abs=0.05)
