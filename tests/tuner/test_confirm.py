"""The decision on synthetic numbers: an honest winner, or the baseline stays."""

from __future__ import annotations

import math
import random

import pytest

from tritonc.compiler.candidate import Candidate
from tritonc.tuner.confirm import Contender, decide, least_difference


def contender(name: str, *values: float, role: str = "finalist", **fields) -> Contender:
    candidate = Candidate.of("mlp", "cpu", {"name": name})
    return Contender(candidate, role, tuple(math.log(value) for value in values), **fields)


def name(chosen: Contender) -> str:
    return chosen.candidate.values["name"]


BASELINE = contender("baseline", 100, 101, 99, 100, role="baseline")
SLIGHT = contender("slight", 101, 100, 101, 99)
BETTER = contender("better", 120, 121, 119, 121)


def test_a_winner_beats_the_baseline_by_more_than_the_noise():
    verdict = decide([BASELINE, SLIGHT, BETTER])
    assert name(verdict.chosen) == "better"
    assert verdict.improved
    assert verdict.gain == pytest.approx(0.2026, abs=1e-3)
    assert 0.005 < verdict.noise < 0.05
    assert verdict.reason == "it beats the baseline by more than the noise"


def test_a_difference_within_the_noise_leaves_the_baseline():
    verdict = decide([BASELINE, SLIGHT])
    assert name(verdict.chosen) == "baseline"
    assert not verdict.improved
    assert verdict.gain == 0.0
    assert "so it stays" in verdict.reason


def test_what_all_contenders_of_a_round_share_is_not_noise():
    slow = [1.0, 0.5, 1.0, 0.7]
    base = contender("baseline", *(100 * f for f in slow), role="baseline")
    better = contender("better", *(110 * f for f in slow))
    assert decide([base, better]).improved


def test_an_outlier_makes_the_decision_careful():
    lucky = contender("lucky", 101, 100, 230, 100)
    assert not decide([BASELINE, lucky]).improved


def test_among_equals_the_cheaper_one_wins():
    small = contender("small", 120, 119, 121, 120, cost=(1, 500))
    large = contender("large", 121, 120, 121, 121, cost=(4, 900))
    assert name(decide([BASELINE, large, small]).chosen) == "small"


def test_a_finalist_that_breaks_the_slo_cannot_win():
    fast = contender("fast", 200, 201, 199, 200, slo_met=False, violation=0.1)
    assert name(decide([BASELINE, fast, BETTER]).chosen) == "better"


def test_where_only_a_slower_one_keeps_the_slo_it_wins():
    base = contender("baseline", 100, 101, 99, 100, role="baseline", slo_met=False, violation=0.2)
    slower = contender("slower", 80, 81, 79, 80)
    verdict = decide([base, slower])
    assert name(verdict.chosen) == "slower"
    assert verdict.improved
    assert verdict.gain < 0
    assert verdict.reason == "it keeps the SLO, which the baseline does not"


def test_where_none_keeps_the_slo_the_least_violating_is_chosen_and_nothing_improved():
    base = contender("baseline", 100, 101, role="baseline", slo_met=False, violation=0.3)
    near = contender("near", 80, 81, slo_met=False, violation=0.1)
    verdict = decide([base, near])
    assert name(verdict.chosen) == "near"
    assert not verdict.improved
    assert "no configuration kept the SLO" in verdict.reason


def test_the_previous_choice_is_the_one_to_beat():
    previous = contender("previous", 119, 121, 120, 120, role="previous")
    verdict = decide([BASELINE, previous, BETTER])
    assert name(verdict.chosen) == "previous"
    assert verdict.improved


def test_a_previous_choice_that_fell_behind_the_baseline_is_given_up():
    previous = contender("previous", 80, 81, 79, 80, role="previous")
    verdict = decide([BASELINE, previous])
    assert name(verdict.chosen) == "baseline"
    assert not verdict.improved


def test_a_failed_baseline_leaves_the_best_finalist():
    verdict = decide([SLIGHT, BETTER])
    assert name(verdict.chosen) == "better"
    assert verdict.gain is None
    assert verdict.reason == "the baseline could not be measured"


def test_one_round_decides_nothing():
    assert not decide([contender("baseline", 100, role="baseline"), contender("fast", 300)]).improved


def test_a_single_contender_is_chosen_without_noise():
    verdict = decide([BASELINE])
    assert (name(verdict.chosen), verdict.improved, verdict.noise) == ("baseline", False, None)


@pytest.mark.parametrize("finalists", [1, 3])
def test_equal_configurations_are_told_apart_in_about_one_of_forty_decisions_at_most(finalists: int):
    rng = random.Random(7)
    improved = 0
    for _ in range(2000):
        rounds = [rng.gauss(0, 0.1) for _ in range(4)]
        scores = [tuple(r + rng.gauss(0, 0.02) for r in rounds) for _ in range(finalists + 1)]
        base = Contender(BASELINE.candidate, "baseline", scores[0])
        others = [Contender(SLIGHT.candidate, "finalist", row) for row in scores[1:]]
        improved += decide([base, *others]).improved
    assert improved / 2000 < 0.035  # one side of 95%, with three standard errors of this test


def test_the_least_difference_is_that_of_a_two_way_layout():
    # Residuals +-0.5 in each cell: s2 = 1 with one degree of freedom; t(0.975, 1) = 12.706.
    assert least_difference([(0.0, 1.0), (1.0, 0.0)]) == pytest.approx(12.706, abs=1e-3)
