"""A machine that changes while a search runs, or between two runs of it, on made-up numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tuner.spaces import Surface, measurement, small_space, throughput_of
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import Failure, Load
from tritonc.tuner.capacity import NOTHING_KNOWN, Capacity, Known
from tritonc.tuner.events import MachineChanged, ReferenceLook, SearchEnded, Warned
from tritonc.tuner.optuna_search import OptunaSearch
from tritonc.tuner.study import search_candidates

SPACE = small_space()
SLOW = 0.5
FOUND = 17
"""Trials after which a change after ten is found."""
CRASH = Failure(reason="server_crashed", detail="signal 9")


class Machine(Surface):
    """A machine to which something happens when so many trials were measured, the second times included.

    A trial takes ten seconds and a look three, so that the machine is looked at every eight trials.
    """

    def __init__(self) -> None:
        super().__init__({c: throughput_of(c) for c in SPACE}, dict.fromkeys(SPACE, 2.0))
        self.now = 0.0
        self.happens: dict[int, Callable[[], None]] = {}
        self.requests: list[int] = []

    def capacity(self, candidate: Candidate, known: Known = NOTHING_KNOWN) -> Capacity | Failure:
        self.happens.pop(len(self.known), lambda: None)()
        self.now += 10
        found: Capacity | Failure = super().capacity(candidate, known)
        return found

    def look(self, candidate: Candidate, load: Load, requests: int) -> Any:
        self.now += 3
        self.requests.append(requests)
        return super().look(candidate, load, requests)

    def become(self, speed: float) -> None:
        self.capacities = {c: speed * throughput_of(c) for c in SPACE}

    def rest(self) -> None:
        self.now += 10_000


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], OptunaSearch]:
    """Opens one study, as every run does."""
    return lambda: OptunaSearch(SPACE, seed=1, storage=tmp_path / "optuna.db", sampler="random")


def run(
    search: OptunaSearch,
    machine: Machine,
    trials: int,
    deadline: float = float("inf"),
) -> list[Any]:
    """What happened, up to an interruption."""
    seen: list[Any] = []
    try:
        search_candidates(
            search,
            machine,
            trials=trials,
            deadline=deadline,
            observer=seen.append,
            log=lambda _trial: None,
            clock=lambda: machine.now,
        )
    except KeyboardInterrupt:
        seen.append(KeyboardInterrupt)
    return seen


def announced(seen: list[Any]) -> list[tuple[int, ...]]:
    """Of every change that was found the trials that were to be measured again."""
    return [event.again for event in seen if isinstance(event, MachineChanged)]


def of_before(search: OptunaSearch) -> set[int]:
    """The trials that say what the machine did before it became slower."""
    return {
        trial.number
        for trial in search.trials
        if trial.capacity and trial.capacity.objective > 0.9 * throughput_of(trial.candidate)
    }


def changed(machine: Machine, search: OptunaSearch, *, measured_again: int) -> tuple[int, ...]:
    """What is to be measured again after a change, in a run that Ctrl-C ends after some of that."""
    machine.happens |= {10: lambda: machine.become(SLOW), FOUND + measured_again: ctrl_c}
    seen = run(search, machine, 30)
    count = len(search.trials)
    assert (seen[-1], count) == (KeyboardInterrupt, FOUND)
    return announced(seen)[0]


@pytest.mark.parametrize("interruptions", [[1], [2, 1], [9, 1], [11]])
def test_what_an_interruption_left_to_measure_again_is_measured_again_by_later_runs(
    machine: Machine, opened: Callable[[], OptunaSearch], interruptions: list[int]
):
    first, *others = interruptions
    again = changed(machine, opened(), measured_again=first)
    for more in others:
        machine.happens[len(machine.known) + more] = ctrl_c
        assert run(opened(), machine, 30)[-1] is KeyboardInterrupt
    search = opened()
    seen = run(search, machine, 30)
    assert announced(seen) == []
    assert of_before(search).isdisjoint({*again, search.ranked()[0].number})
    asked = [machine.asked.count(search.trials[number - 1].candidate) for number in again]
    assert asked == [2] * len(again)
    assert len(search.trials) == 30


def test_a_change_is_found_again_where_an_interruption_comes_before_the_baseline_is_measured_again(
    machine: Machine, opened: Callable[[], OptunaSearch]
):
    again = changed(machine, opened(), measured_again=0)
    search = opened()
    assert len(announced(run(search, machine, 30))) == 1
    assert of_before(search).isdisjoint({*again, search.ranked()[0].number})


def test_what_there_was_no_time_to_measure_again_is_so_in_the_next_run_and_said(
    machine: Machine, opened: Callable[[], OptunaSearch]
):
    machine.happens |= {10: lambda: machine.become(SLOW), FOUND + 1: machine.rest}
    search = opened()
    seen = run(search, machine, 30, deadline=10_000)
    assert seen[-1] == SearchEnded("the time is up")
    left = announced(seen)[0][2:]
    search = opened()
    seen = run(search, machine, 30)
    which = ", ".join(str(number) for number in left)
    assert Warned(f"note: the machine changed in an earlier run; measured again: trials {which}") in seen
    assert of_before(search).isdisjoint(left)
    assert [machine.asked.count(search.trials[number - 1].candidate) for number in left] == [2] * len(left)


def test_a_change_that_is_found_before_all_is_measured_again_adds_to_that(
    machine: Machine, opened: Callable[[], OptunaSearch]
):
    again = changed(machine, opened(), measured_again=1)
    machine.become(0.2)
    search = opened()
    (later,) = announced(run(search, machine, 30))
    assert set(again) <= set(later)
    for number in later:
        trial = search.trials[number - 1]
        assert trial.capacity
        assert trial.capacity.objective == pytest.approx(0.2 * throughput_of(trial.candidate))


def test_what_is_left_is_measured_again_even_where_the_baseline_fails_by_now(
    machine: Machine, opened: Callable[[], OptunaSearch]
):
    machine.happens[FOUND] = lambda: machine.broken.update({SPACE.baseline: CRASH})
    again = changed(machine, opened(), measured_again=2)
    search = opened()
    run(search, machine, 30)
    assert search.outcome(SPACE.baseline) == CRASH
    assert of_before(search).isdisjoint(again)


def test_what_is_measured_again_is_not_compared_with_what_the_machine_did_before(machine: Machine):
    machine.happens[10] = lambda: machine.become(SLOW)
    search = OptunaSearch(SPACE, seed=1, sampler="random")
    (again,) = announced(run(search, machine, 30))
    known = [each for each in machine.known if each.is_doubted]
    best = SLOW * max(throughput_of(trial.candidate) for trial in search.trials)
    assert len(known) >= len(again)
    assert all(each.incumbent is None or each.incumbent.value <= best for each in known)


def test_a_resumed_study_looks_at_the_machine_before_it_measures(
    machine: Machine, opened: Callable[[], OptunaSearch]
):
    run(opened(), machine, 5)
    machine.become(SLOW)
    search = opened()
    seen = run(search, machine, 8)
    assert isinstance(seen[0], ReferenceLook)
    assert [sorted(again) for again in announced(seen)] == [[1, 2, 3, 4, 5]]
    assert of_before(search) == set()


def test_a_resumed_study_whose_machine_is_the_same_looks_once(
    machine: Machine, opened: Callable[[], OptunaSearch]
):
    run(opened(), machine, 5)
    seen = run(opened(), machine, 8)
    assert [type(event) for event in seen].count(ReferenceLook) == 1
    assert announced(seen) == []
    assert len(machine.known) == 8


def test_a_look_at_a_slow_model_has_as_many_requests_as_ten_seconds_can_count(
    machine: Machine, opened: Callable[[], OptunaSearch]
):
    machine.become(0.01)
    run(opened(), machine, 2)
    run(opened(), machine, 3)
    assert machine.requests == [math.ceil(0.1 * throughput_of(SPACE.baseline)) - 8]  # of its 8 clients
    assert 0 < machine.requests[0] < 50


def test_of_several_models_the_slowest_decides_how_long_a_look_takes(
    machine: Machine, opened: Callable[[], OptunaSearch]
):
    plain = machine.capacity

    def of_two(candidate: Candidate, known: Known = NOTHING_KNOWN) -> Capacity | Failure:
        found = plain(candidate, known)
        assert isinstance(found, Capacity)
        together = {"quick": measurement(500.0), "slow": measurement(2.0)}
        return replace(found, measurement=measurement(0.8), members=together)

    machine.capacity = of_two  # type: ignore[method-assign]
    run(opened(), machine, 2)
    run(opened(), machine, 3)
    assert set(machine.requests) == {20 - 8}
