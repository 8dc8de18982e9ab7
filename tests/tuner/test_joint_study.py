"""Where a study of several models begins, on the small space of `spaces` and made-up outcomes."""

from __future__ import annotations

from dataclasses import replace

from tests.tuner.spaces import capacity, outcome_of, small_space
from tritonc.compiler.joint import joined, joint_space, members_of
from tritonc.compiler.space import Space
from tritonc.schemas.measurement import Failure
from tritonc.schemas.spec import Slo
from tritonc.tuner.joint_study import Alone, carried_in, goal_of
from tritonc.tuner.joint_worth import JOINT_LOAD
from tritonc.tuner.optuna_search import Goal, OptunaSearch
from tritonc.tuner.serving import behaviour


def of_model(model: str) -> Space:
    space = small_space()
    return replace(space, model=model, baseline=replace(space.baseline, model=model))


def searched(model: str, trials: int) -> OptunaSearch:
    search = OptunaSearch(of_model(model), seed=1, goal=Goal("throughput", Slo()))
    for _ in range(trials):
        candidate = search.ask()
        assert candidate is not None
        search.tell(candidate, outcome_of(candidate))
    return search


def test_it_begins_with_what_each_does_best_alone_and_on_its_share_of_the_cores():
    alone = [Alone(searched("a", 6), 1.0), Alone(searched("b", 8), 1.0)]
    goal = goal_of(alone, cores=2)
    assert goal.start[0] == joined([each.best() for each in alone])
    small = members_of(goal.start[-1])["a"]
    assert small in {trial.candidate for trial in alone[0].search.trials}
    space = joint_space([each.search.space for each in alone])
    search = OptunaSearch(space, seed=1, goal=goal)
    asked = []
    for _ in range(1 + len(goal.start)):
        candidate = search.ask()
        assert candidate is not None
        asked.append(candidate)
        search.tell(candidate, capacity(100.0))
    assert asked == [space.baseline, *goal.start]
    assert search.ask() in space


def test_what_is_expected_of_a_pair_weighs_what_both_did_alone():
    alone = [Alone(searched("a", 5), 3.0), Alone(searched("b", 5), 1.0)]
    expected = {each.candidate: each.outcome for each in goal_of(alone, cores=2).history}
    pair = joined([each.search.space.baseline for each in alone])
    best = joined([each.best() for each in alone])
    assert not isinstance(expected[best], Failure)
    assert max(each.throughput.value for each in expected.values()) == expected[best].throughput.value
    if pair in expected:
        assert expected[pair].throughput.value == 1.0
    for candidate in expected:
        assert candidate in joint_space([each.search.space for each in alone])


def test_a_model_that_could_not_be_measured_alone_begins_with_its_baseline():
    search = OptunaSearch(of_model("a"), seed=1)
    candidate = search.ask()
    assert candidate is not None
    search.tell(candidate, Failure(reason="load_failed", detail="no"))
    alone = [Alone(search, 1.0), Alone(searched("b", 3), 1.0)]
    goal = goal_of(alone, cores=2)
    assert members_of(goal.start[0])["a"] == search.space.baseline
    assert goal.history == ()
    assert alone[0].level == 0.0


def test_the_loads_of_a_trial_are_those_that_its_members_carried():
    space = joint_space([of_model("a"), of_model("b")])
    search = OptunaSearch(space, seed=1)
    candidate = search.ask()
    assert candidate is not None
    assert carried_in(search, candidate) is None
    made = capacity(100.0)
    members = {"a": made.measurement, "b": made.steps[0]}
    search.tell(candidate, replace(made, members=members))
    loads = carried_in(search, candidate)
    assert loads == {"a": made.measurement.load, "b": made.steps[0].load}
    assert JOINT_LOAD not in loads.values()


def test_what_makes_no_difference_to_a_model_makes_none_together():
    space = small_space()
    off = [one for one in space if one.values["dynamic_batching"] is False]
    alike = [replace(one, model="a") for one in off if one.values["max_batch_size"] in (2, 4)][:2]
    partner = of_model("b").baseline
    first, second = (behaviour(joined([one, partner])) for one in alike)
    assert alike[0] != alike[1]
    assert first["a/effective_batch"] == second["a/effective_batch"] == 1
    assert first["b/effective_batch"] == 8
