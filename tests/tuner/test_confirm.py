"""The decision on synthetic numbers: an honest winner, or the baseline stays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tritonc.compiler.candidate import Candidate
from tritonc.tuner.confirm import Comparison, Contender, decide, hopeless, is_settled


def contender(name: str, *values: float, role: str = "finalist", first: int = 1, **fields) -> Contender:
    candidate = Candidate.of("mlp", "cpu", {"name": name})
    scores = {number: math.log(value) for number, value in enumerate(values, start=first)}
    return Contender(candidate, role, scores, **fields)


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


def test_a_cheaper_one_that_is_behind_by_more_than_matters_does_not_win():
    small = contender("small", 112, 121, 118, 109, cost=(1, 500))
    large = contender("large", 121, 120, 130, 125, cost=(4, 900))
    assert name(decide([BASELINE, large, small]).chosen) == "large"


def test_a_single_contender_is_chosen_without_noise():
    verdict = decide([BASELINE])
    assert (name(verdict.chosen), verdict.improved, verdict.noise) == ("baseline", False, None)


def test_the_least_difference_of_a_whole_layout_is_the_one_of_the_textbook():
    # Residuals +-0.5 in each cell: s2 = 1 with one degree of freedom, so the standard error is 1.
    one, other = contender("one", 1, math.e), contender("other", math.e, 1)
    assert Comparison([one, other]).loss(one, other) == pytest.approx(1 / math.sqrt(2 * math.pi))
    # One look of several, two-sided: t(1 - 0.3 * 0.05 / 2, 1) = 42.43.
    assert Comparison([one, other]).least(one, other) == pytest.approx(42.43, abs=0.01)


def test_what_measurements_say_of_their_own_noise_counts_as_six_residuals():
    rounds = range(1, 3)
    said = dict.fromkeys(rounds, 0.5)
    one = contender("one", 1, math.e, errors=said)
    other = contender("other", math.e, 1, errors={**said, 2: 40.0})  # one that knows nothing means nothing
    # Residuals +-0.5 with one degree of freedom: s2 = (1 + 6 * 0.25) / 7, and t(0.9925, 7) = 3.2.
    least = 3.2017 * math.sqrt(2.5 / 7)
    assert Comparison([one, other]).least(one, other) == pytest.approx(least, rel=1e-3)


def test_two_that_share_no_round_are_compared_by_way_of_a_third():
    early, late = contender("early", 100, 102, 98), contender("late", 240, 236, first=4)
    third = contender("third", 110, 112.2, 107.8, 220, 220)
    seen = Comparison([early, late, third])
    assert seen.lead(late, early) == pytest.approx(math.log(1.1 * 238 / 220), abs=1e-3)
    assert seen.least(late, early) > seen.least(third, early)
    assert Comparison([early, late]).least(late, early) == math.inf


def test_who_is_surely_behind_or_clearly_misses_the_slo_is_hopeless():
    behind = contender("behind", 60, 61, 59)
    slow = contender("slow", 130, 131, 129, slo_met=False, violation=0.2)
    near = contender("near", 130, 131, 129, slo_met=False, violation=0.02)
    assert hopeless([BASELINE, BETTER, SLIGHT, behind, slow, near]) == (BASELINE, SLIGHT, behind, slow)
    assert hopeless([slow, near]) == ()


def test_nobody_is_dropped_for_a_single_round_whatever_that_says_of_its_noise():
    fast, slow = contender("fast", 300, errors={1: 0.01}), contender("slow", 150, errors={1: 0.01})
    assert hopeless([fast, slow]) == ()
    said = {1: 0.01, 2: 0.01}
    fast, slow = contender("fast", 300, 301, errors=said), contender("slow", 150, 151, errors=said)
    assert hopeless([fast, slow]) == (slow,)


def test_what_is_there_already_is_not_dropped_before_the_first_look():
    base = contender("baseline", 100, 101, role="baseline")
    fast, slow = contender("fast", 300, 301), contender("slow", 30, 30)
    assert hopeless([base, fast, slow]) == (slow,)
    missing = contender("baseline", 100, 101, role="baseline", slo_met=False, violation=0.2)
    assert hopeless([missing, fast]) == (missing,)


def test_a_race_is_settled_by_a_sure_lead_and_by_none():
    close, behind = contender("close", 101, 106, 100, 103), contender("behind", 99, 97, 101, 98)
    assert is_settled([BASELINE, BETTER], [BASELINE, BETTER])
    assert is_settled([BASELINE, behind], [BASELINE, behind])
    assert not is_settled([BASELINE, close], [BASELINE, close])


def test_a_lead_that_matters_to_nobody_settles_a_race():
    base = contender("baseline", 100, 100.1, 100, 100.1, role="baseline")
    close = contender("close", 100.1, 100.3, 100, 100.2)
    assert is_settled([base, close], [base, close])


def test_finalists_that_differ_by_what_could_matter_are_not_settled():
    one, other = contender("one", 170, 210, 190), contender("other", 200, 170, 188)
    base = contender("baseline", 100, 101, 99, role="baseline")
    assert not is_settled([base, one, other], [one, other])
    assert is_settled([base, one], [one])
    assert is_settled([base], [base])


def test_contenders_of_which_nothing_was_measured_are_compared_too(monkeypatch: pytest.MonkeyPatch):
    rank = np.linalg.matrix_rank

    def rank_in_numpy_1(matrix):
        if not matrix.size:
            raise ValueError("zero-size array to reduction operation maximum which has no identity")
        return rank(matrix)

    monkeypatch.setattr(np.linalg, "matrix_rank", rank_in_numpy_1)
    base = contender("baseline", role="baseline", slo_met=False, violation=1.0)
    other = contender("other", slo_met=False, violation=1.0)
    verdict = decide([base, other])
    assert verdict.chosen is base
    assert verdict.noise is None
    assert hopeless([base, other]) == ()
