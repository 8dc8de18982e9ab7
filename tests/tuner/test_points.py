"""Starting points and neighbours are legal, and cover what they promise."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.tuner.spaces import small_space
from tritonc.compiler.joint import joint_space, members_of
from tritonc.tuner.points import (
    adapted,
    joint_starting_points,
    neighbours,
    random_point,
    starting_points,
    unseen_near,
)

SPACE = small_space()


def test_the_baseline_is_the_first_starting_point():
    assert starting_points(SPACE)[0] == SPACE.baseline


def test_starting_points_are_legal_and_distinct():
    points = starting_points(SPACE)
    everything = set(SPACE)
    assert set(points) <= everything
    assert len(set(points)) == len(points)


def test_starting_points_hold_each_accelerator_and_both_ways_to_use_the_cores():
    points = [point.values for point in starting_points(SPACE)]
    assert {point["accelerator"] for point in points} == {"none", "openvino"}
    layouts = {(point["instance_count"], point.get("intra_op_thread_count")) for point in points}
    assert {(1, 4), (4, 1)} <= layouts


def test_starting_points_try_a_middle_batch_without_and_with_a_delay():
    delays = {
        point.values.get("max_queue_delay_microseconds")
        for point in starting_points(SPACE)
        if point.values["max_batch_size"] == 4
    }
    assert {0, 500} <= delays


def test_an_inactive_knob_is_left_out():
    point = adapted(SPACE, SPACE.baseline, {"dynamic_batching": False, "max_queue_delay_microseconds": 500})
    assert "max_queue_delay_microseconds" not in point.values


def test_a_value_off_the_grid_goes_to_the_nearest():
    assert adapted(SPACE, SPACE.baseline, {"instance_count": 3}).values["instance_count"] == 4


def test_neighbours_are_legal_new_and_the_closest_come_first():
    here = adapted(SPACE, SPACE.baseline, {"instance_count": 1})
    around = list(neighbours(SPACE, here))
    assert set(around) <= set(SPACE)
    assert here not in around
    counts = [n.values["instance_count"] for n in around if n.values["instance_count"] != 1]
    assert counts == [2, 4]


def test_random_points_reach_the_whole_space():
    rng = random.Random(1)
    assert {random_point(SPACE, rng) for _ in range(20_000)} == set(SPACE)


def test_every_point_is_found_once_and_then_none():
    rng, seen = random.Random(1), []
    while (point := unseen_near(SPACE, SPACE.baseline, seen, rng)) is not None:
        seen.append(point)
    assert len(seen) == len(set(seen)) == len(SPACE)
    assert set(seen) == set(SPACE)


def test_an_ensemble_starts_where_each_of_its_models_would():
    spaces = [replace(SPACE, model=model, baseline=replace(SPACE.baseline, model=model)) for model in "ab"]
    points = joint_starting_points(spaces, "pipeline")
    space = joint_space(spaces, "pipeline")
    assert all(point in space and point != space.baseline for point in points)
    for point, alone in zip(points, starting_points(SPACE)[1:], strict=False):
        assert {one.values == alone.values for one in members_of(point).values()} == {True}
    assert len(set(points)) == 3
