"""Several models as one candidate, and all their combinations as one space."""

from __future__ import annotations

from dataclasses import replace

from tests.tuner.spaces import small_space
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import joined, joint_space, members_of
from tritonc.compiler.knobs.dimension import Choice, Dimension
from tritonc.compiler.space import Space

FIRST = small_space()
SECOND = Space(
    model="mlp.b",
    target="cpu",
    dimensions=(Dimension("instance_count", (Choice(1), Choice(2)), ordinal=True),),
    baseline=Candidate.of("mlp.b", "cpu", {"instance_count": 1}),
)


def test_what_is_joined_comes_apart_again():
    for one in FIRST:
        for other in SECOND:
            assert members_of(joined([one, other])) == {"mlp": one, "mlp.b": other}


def test_a_candidate_of_one_model_is_its_own_member():
    assert members_of(FIRST.baseline) == {"mlp": FIRST.baseline}


def test_a_joint_space_has_every_combination_once_and_nothing_else():
    space = joint_space([FIRST, SECOND])
    combinations = {joined([one, other]) for one in FIRST for other in SECOND}
    assert len(space) == len(FIRST) * len(SECOND)
    assert set(space) == combinations
    assert all(candidate in space for candidate in combinations)
    assert space.baseline == joined([FIRST.baseline, SECOND.baseline])
    assert replace(space.baseline, model="mlp") not in space


def test_a_knob_whose_condition_does_not_hold_is_not_active_in_a_joint_candidate_either():
    space = joint_space([FIRST, SECOND])
    off = next(one for one in space if not one.values["mlp/dynamic_batching"])
    assert "mlp/max_queue_delay_microseconds" not in off.values
