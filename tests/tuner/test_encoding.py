"""Rows of candidates and loads: distances that mean something."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.tuner.tables import candidate, candidates
from tritonc.compiler.joint import joined
from tritonc.schemas.measurement import ClosedLoad, OpenLoad
from tritonc.tuner.encoding import Encoding
from tritonc.tuner.serving import LOAD_COLUMNS, Law, Service, behaviour, in_flight

ALL = candidates()
ENCODING = Encoding(ALL)
LOAD = ClosedLoad(concurrency=8)


def distance(one, other) -> float:
    rows = ENCODING.table([(one, LOAD), (other, LOAD)]).rows
    return float(np.linalg.norm(rows[0] - rows[1]))


def with_knobs(**changes):
    base = {"precision": "fp32", "accelerator": "none", "instance_count": 2, "max_batch_size": 8}
    return candidate(**{**base, "dynamic_batching": False, **changes})


def test_categories_are_one_apart():
    assert distance(with_knobs(), with_knobs(precision="fp16")) == pytest.approx(1.0)


def test_counts_are_apart_by_their_ratio():
    near = distance(with_knobs(instance_count=3), with_knobs(instance_count=4))
    far = distance(with_knobs(instance_count=1), with_knobs(instance_count=2))
    assert near < far


def test_a_size_that_is_never_reached_matters_little():
    unbatched = distance(with_knobs(), with_knobs(max_batch_size=32))
    batched = [
        with_knobs(dynamic_batching=True, max_queue_delay_microseconds=0, max_batch_size=s) for s in (8, 32)
    ]
    assert unbatched < 0.4 * distance(*batched)
    assert behaviour(with_knobs()) == behaviour(with_knobs(max_batch_size=32))


def test_the_load_is_seen_by_itself_and_by_the_place():
    table = ENCODING.table([(with_knobs(), ClosedLoad(concurrency=n)) for n in (8, 16)])
    change = np.diff(table.rows, axis=0)[0]
    np.testing.assert_allclose(change[-LOAD_COLUMNS:], [1 / 6, 1 / 6, 0, 0, 0])
    np.testing.assert_allclose(change[:-LOAD_COLUMNS], 0)
    np.testing.assert_allclose(table.amounts, np.log([8, 16]))


def test_what_an_execution_holds_and_what_waits_for_more():
    batching = with_knobs(
        dynamic_batching=True, max_queue_delay_microseconds=1000
    )  # 2 instances, batches of 8
    rows = ENCODING.table([(batching, ClosedLoad(concurrency=n)) for n in (4, 16, 24)]).rows
    formed, waiting = rows[:, -2], rows[:, -1]
    np.testing.assert_allclose(formed, np.log2([2, 8, 8]) / 6)
    assert waiting[0] > 0
    np.testing.assert_allclose(waiting[1:], 0)


def test_laws_differ_in_what_batches_bring():
    batching = with_knobs(dynamic_batching=True, max_queue_delay_microseconds=0)
    table = ENCODING.table([(batching, ClosedLoad(concurrency=n)) for n in (2, 16)])
    cheap, dear = (np.diff(table.expected_throughput(Law(part, 0.5)))[0] for part in (0.03, 8.0))
    assert cheap > np.log(6)
    assert 0 < dear < np.log(1.2)


def test_where_no_knob_says_requests_may_share_executions_or_not():
    pairs = [
        (candidate(format="onnx"), ClosedLoad(concurrency=n, request_batch=b)) for n, b in ((64, 1), (1, 64))
    ]
    table = Encoding([pairs[0][0]]).table(pairs)
    shared, alone = (table.expected_throughput(Law(0.25, 0.5, fill)) for fill in ("whole", "alone"))
    assert shared[0] == shared[1] == alone[1]
    assert alone[0] < alone[1] - np.log(3)
    unbatched = candidate(format="onnx", dynamic_batching=False)
    table = Encoding([unbatched]).table([(unbatched, load) for _, load in pairs])
    np.testing.assert_allclose(table.expected_throughput(Law(0.25, 0.5)), alone)


def test_what_arrives_during_an_execution_may_wait_for_the_next_one():
    eager, patient = (
        with_knobs(dynamic_batching=True, max_queue_delay_microseconds=delay) for delay in (0, 2000)
    )  # 2 instances, batches of 8
    loads = [ClosedLoad(concurrency=n) for n in (2, 8, 16, 32)]
    for one, held in ((eager, [1, 2, 4, 8]), (patient, [1, 4, 8, 8])):
        alternating = ENCODING.table([(one, load) for load in loads])
        batched = ENCODING.table([(one, ClosedLoad(concurrency=size * 2)) for size in held])
        np.testing.assert_allclose(
            alternating.expected_throughput(Law(0.25, 0, "half")),
            batched.expected_throughput(Law(0.25, 0, "whole")),
        )


def test_a_batch_may_cost_what_the_next_power_of_two_costs():
    one, law = candidate(format="onnx"), Law(8.0, 0.5, fill="alone", padded=True)
    pairs = [(one, ClosedLoad(concurrency=1, request_batch=size)) for size in (32, 48, 64)]
    table = Encoding([one]).table(pairs)
    padded = np.exp(np.diff(table.expected_throughput(law)))
    np.testing.assert_allclose(padded, [48 / 64, 64 / 48], rtol=0.005)
    assert (np.diff(table.expected_throughput(Law(8.0, 0.5, fill="alone"))) > 0).all()


def test_what_executions_hold_only_on_average_is_not_padded():
    batching = with_knobs(dynamic_batching=True, max_queue_delay_microseconds=0)  # 2 instances, batches of 8
    table = ENCODING.table([(batching, ClosedLoad(concurrency=n)) for n in (6, 12, 64)])
    padded, plain = (table.expected_throughput(Law(0.25, 0.5, padded=each)) for each in (True, False))
    np.testing.assert_array_equal(padded, plain)


def test_a_batch_that_those_in_flight_cannot_fill_waits_as_long_as_it_may():
    batching = with_knobs(dynamic_batching=True, max_queue_delay_microseconds=2000)  # batches of 8
    patient = [batching, with_knobs(dynamic_batching=True, max_queue_delay_microseconds=0), with_knobs()]
    preferring = with_knobs(**batching.values, preferred_batch_size=(4, 8))
    few, many = ClosedLoad(concurrency=4), ClosedLoad(concurrency=8)
    pairs = [(one, load) for one in (*patient, preferring) for load in (few, many, OpenLoad(rate=4))]
    waits = np.array(Encoding([*patient, preferring]).table(pairs).waits).reshape(4, 3)
    np.testing.assert_allclose(waits[0], [0.002 / 4, 0, 0])
    np.testing.assert_array_equal(waits[1:], 0)


def test_waiting_adds_to_the_time_of_a_request_as_little_has_it():
    batching = with_knobs(dynamic_batching=True, max_queue_delay_microseconds=2000)
    table = ENCODING.table([(batching, ClosedLoad(concurrency=n)) for n in (2, 4, 8, 16)])
    law, level = Law(0.25, 0.5), np.log(4000)
    free, waiting = (np.exp(table.expected_throughput(law, of) + level) for of in (-np.inf, level))
    in_flight_s = np.array([2, 4, 8, 16]) / waiting
    np.testing.assert_allclose(in_flight_s[:2], [2, 4] / free[:2] + 0.002)
    np.testing.assert_array_equal(waiting[2:], free[2:])
    assert table.level(law, np.log(waiting)) == pytest.approx(level)
    assert table.at([0, 1]).level(law, np.log([1e6, 2e6])) == -np.inf  # quicker than it can be


def test_amounts():
    assert in_flight(ClosedLoad(concurrency=3, request_batch=4)) == 12
    assert in_flight(OpenLoad(rate=2.5, request_batch=4)) == 10


def test_a_knob_of_one_value_needs_no_column():
    encoding = Encoding([candidate(instance_count=n, format="onnx") for n in (1, 2)])
    assert encoding.knobs == 1


def test_a_number_below_zero_is_a_category_beside_those_that_count():
    levels = [candidate(graph_level=level) for level in (0, 1, -1, 3)]
    rows = Encoding(levels).table([(one, LOAD) for one in levels]).rows[:, :2]
    np.testing.assert_allclose(rows, [[0, 0], [0.5, 0], [0, 1 / np.sqrt(2)], [1, 0]])
    two = levels[0], levels[2]
    assert len(set(Encoding(two).table([(one, LOAD) for one in two]).rows[:, 0])) == 2


def test_candidates_of_other_spaces_have_rows_too():
    other = candidate(precision="int8", instance_count=64)
    rows = ENCODING.table([(other, LOAD)]).rows
    assert rows.shape == (1, ENCODING.knobs + LOAD_COLUMNS)
    assert np.all(np.isfinite(rows))


def test_an_ensemble_has_the_places_of_all_its_models_and_models_that_share_a_machine_have_none():
    batching = with_knobs(dynamic_batching=True, max_queue_delay_microseconds=500)
    members = [replace(with_knobs(), model="a"), replace(batching, model="b")]
    service = Service.of(joined(members, "pipeline"), 1)
    assert service.instances == 4
    assert service.instances * service.batch == 2 * 1 + 2 * 8
    assert service.delay_us == 500
    together = Service.of(joined(members), 1)
    assert (together.instances, together.batch, together.delay_us) == (1, 1, 0)


def test_an_ensemble_is_padded_as_each_of_its_models_is():
    def padding(size: int) -> float:
        """What is lost at saturation to batches of 8 in one model, and of `size` in the other."""
        sizes = {"a": 8, "b": size}
        batching = [
            replace(
                with_knobs(dynamic_batching=True, max_queue_delay_microseconds=0, max_batch_size=each),
                model=name,
            )
            for name, each in sizes.items()
        ]
        whole = joined(batching, "pipeline")
        table = Encoding([whole]).table([(whole, ClosedLoad(concurrency=64))])
        plain, padded = (table.expected_throughput(Law(8.0, 0.5, padded=each)) for each in (False, True))
        return float((plain - padded)[0])

    assert padding(4) == 0  # 6 on average
    assert padding(5) == pytest.approx(np.log(8 / 6.5), rel=0.1)


def test_what_is_known_of_a_candidate_hangs_together_whatever_the_batch_of_its_requests():
    space = [candidate(instance_count=1, max_batch_size=size) for size in (8, 32)]
    loads = [ClosedLoad(concurrency=4, request_batch=2**step) for step in range(7)]
    encoding = Encoding(space)
    rows = encoding.table([(space[0], load) for load in loads]).rows[:, : encoding.knobs]
    assert len(np.unique(rows, axis=0)) == 1
