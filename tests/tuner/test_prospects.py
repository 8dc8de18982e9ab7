"""What measuring again is worth: nothing where all is sure, most where the choice hangs on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import stdtr

from tests.tuner.tables import candidates, measured, measurement
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import Interval, Load, Measurement, OpenLoad
from tritonc.schemas.spec import Slo
from tritonc.tuner import prospects
from tritonc.tuner.promise import SMALL_GAIN
from tritonc.tuner.prospects import Beside, limit_gains
from tritonc.tuner.search import CLOSED_LOADS, Search
from tritonc.tuner.surrogate import quantity

SLO = Slo(p99_latency_ms=25)


def gains(
    kept: list[float], mean: list[float], deviation: float, noise: float, freedom: float = 5.0
) -> np.ndarray:
    """Of a pair of worth 1 that may break its limit, and of one of worth 0.6 that keeps it."""
    worth = np.array([1.0, 0.6]) * kept
    return limit_gains(
        worth, np.array(kept), np.array(mean), np.full(2, deviation), np.full(2, noise), freedom=freedom
    )


def test_where_the_choice_hangs_on_a_limit_measuring_again_pays():
    open_question, other = gains([0.5, 1.0], [0.0, -0.5], 0.05, 0.02)
    assert open_question > 0.1
    assert other == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("deviations", [2.0, 2.5, 3.0, 4.0])
def test_learning_alone_is_no_gain_where_there_is_nothing_else_to_choose(deviations: float):
    """The only pair keeps its limit as surely as Student's t says, which is less than a normal one would."""
    kept = np.array([float(stdtr(5, deviations))])
    [gain] = limit_gains(kept, kept, np.array([-deviations]), np.array([1.0]), np.array([0.5]), freedom=5.0)
    assert gain == pytest.approx(0, abs=1e-9)


def test_what_is_unlikely_promises_less_the_more_is_measured():
    few, many = (gains([0.02, 1.0], [0.13, -0.5], 0.05, 0.02, freedom)[0] for freedom in (5.0, 50.0))
    assert 0 < many < few / 2


def test_noise_makes_it_pay_less_and_certainty_nothing():
    sharp, dull = (gains([0.5, 1.0], [0.0, -0.5], 0.05, noise)[0] for noise in (0.01, 0.5))
    assert 0 <= dull < sharp
    assert gains([1.0, 1.0], [-0.3, -0.5], 0.01, 0.02).max() == pytest.approx(0, abs=1e-6)
    assert gains([0.002, 1.0], [0.3, -0.5], 0.01, 0.02).max() == pytest.approx(0, abs=1e-6)


def test_several_measurements_may_pay_where_one_changes_no_choice(monkeypatch: pytest.MonkeyPatch):
    unlikely, _ = gains([0.3, 1.0], [0.026, -0.5], 0.05, 0.15)
    monkeypatch.setattr(prospects, "_TIMES", (1,))
    alone, _ = gains([0.3, 1.0], [0.026, -0.5], 0.05, 0.15)
    assert alone < 0.002 < 0.004 < unlikely


@pytest.mark.parametrize("is_confirmed", [False, True])
def test_the_best_pair_is_looked_at_again_where_its_only_measurement_was_spoilt(is_confirmed: bool):
    """One measurement in thirty is off by a factor of 1.4 to 2.3, and it may be that of the best pair.

    Where what is recommended is confirmed, that is the look: here the others tell so much that it leads.
    """
    pairs = [(one, load) for one in candidates() for load in CLOSED_LOADS]
    able = [pair for pair in pairs if measured(*pair).latency_ms["p99"].value <= 25]
    best = max(able, key=lambda pair: measured(*pair).throughput.value)
    search = Search(candidates(), "throughput", SLO, is_confirmed=is_confirmed)
    for pair in [*pairs[::5], best]:
        search.tell(*pair, spoilt(*pair) if pair == best else measured(*pair))
    doubts = doubts_in(search, best)
    assert int(np.argmax(doubts)) == len(doubts) - 1
    assert doubts[-1] > 0.05
    led, asked = search.recommend(), []
    assert led is not None
    while len(asked) < 4 and (pair := search.ask()) is not None:
        asked.append(pair)
        search.tell(*pair, measured(*pair))
    assert best in asked or (is_confirmed and (led.candidate, led.load) == best)
    found = search.recommend()
    assert found is not None
    assert (found.candidate, found.load) == best


def test_what_would_not_win_if_its_measurement_were_as_far_off_as_any_is_not_looked_at_again():
    """Others contradict it, but what is off is so by a factor of 2.3 at most: it is another kind of bad."""
    pairs = [(one, load) for one in candidates() for load in CLOSED_LOADS]
    able = [pair for pair in pairs if measured(*pair).latency_ms["p99"].value <= 25]
    best = max(able, key=lambda pair: measured(*pair).throughput.value)
    second = max((pair for pair in able if pair != best), key=lambda pair: measured(*pair).throughput.value)
    search = Search(candidates(), "throughput", SLO)
    for pair in [*pairs[::5], second, best]:
        search.tell(*pair, spoilt(*pair, by=4) if pair == best else measured(*pair))
    assert doubts_in(search, best)[-1] < 1e-6


def test_what_a_spoilt_measurement_hides_of_its_candidate_under_other_loads_counts():
    """Under the load that was measured it could win nothing, under a larger one it is the best."""
    pairs = [(one, load) for one in candidates() for load in CLOSED_LOADS]
    able = [pair for pair in pairs if measured(*pair).latency_ms["p99"].value <= 25]
    best = max(able, key=lambda pair: measured(*pair).throughput.value)
    lower = best[0], CLOSED_LOADS[CLOSED_LOADS.index(best[1]) - 2]
    search = Search(candidates(), "throughput", SLO)
    for pair in [*(pair for pair in pairs[::5] if pair[0] != best[0]), lower]:
        search.tell(*pair, spoilt(*pair, by=2.2) if pair == lower else measured(*pair))
    unmeasured = search._pairs.table([(best[0], load) for load in CLOSED_LOADS if load != lower[1]])
    last = len(search.observations) - 1
    assert doubts_in(search, lower)[last] < 1e-3
    assert doubts_in(search, lower, Beside.of(unmeasured, {last: best[0]}))[last] > SMALL_GAIN


def doubts_in(search: Search, pair: tuple[Candidate, Load], beside: Beside | None = None) -> np.ndarray:
    """What measuring again promises, of every measurement, beside the best of the pairs other than one."""
    seen = search._measured()
    table = search._pairs.table([each for each, _ in seen])
    others = [m for each, m in seen if each != pair and m.latency_ms["p99"].value <= 25]
    known = math.log(max(m.throughput.value for m in others))
    return search._prospects(table, [1.0]).of_doubts(
        table, [m for _, m in seen], beside or Beside.of(table, {}), known, 1.0
    )


def test_what_intervals_say_of_the_noise_counts_where_a_pair_near_its_limit_is_measured_again(
    monkeypatch: pytest.MonkeyPatch,
):
    """A measurement that knows little of its own p99 settles no limit."""
    noises: list[np.ndarray] = []
    monkeypatch.setattr(
        prospects, "limit_gains", lambda *of, **freedom: noises.append(of[-1]) or limit_gains(*of, **freedom)
    )

    def noise(width: float) -> float:
        search = Search(candidates(), "throughput", Slo(p99_latency_ms=20))
        for pair in [(one, load) for one in candidates() for load in CLOSED_LOADS][::5]:
            seen = measured(*pair)
            latency = {
                name: Interval(value=each.value, low=each.value * (1 - width), high=each.value * (1 + width))
                for name, each in seen.latency_ms.items()
            }
            search.tell(*pair, seen.model_copy(update={"latency_ms": latency}))
        table = search._pairs.table([pair for pair, _ in search._measured()])
        seen_now = search._prospects(table, [1.0])
        seen_now.of_limits(table, seen_now.standing(table))
        return float(noises[-1].min())

    assert noise(0.4) > 4 * noise(0.01) > 0


def spoilt(one: Candidate, load: Load, by: float = 1.7) -> Measurement:
    """As `measured` where something else took much of the machine."""
    seen = measured(one, load)
    slower = {name: Interval(value=by * each.value) for name, each in seen.latency_ms.items()}
    throughput = Interval(value=seen.throughput.value / by)
    return seen.model_copy(update={"throughput": throughput, "latency_ms": slower})


def test_a_percentile_without_an_upper_end_is_less_sure_than_one_with_it():
    load, average = CLOSED_LOADS[2], Interval(value=10)

    def variance(p99: Interval) -> float:
        seen = Measurement(
            load=load,
            requests=100,
            duration_s=1,
            throughput=Interval(value=100),
            latency_ms={"avg": average, "p99": p99},
        )
        return quantity("p99", seen)[1]

    assert variance(Interval(value=20, low=15)) > variance(Interval(value=20, low=15, high=25)) > 0
    assert variance(Interval(value=20)) == 0


def test_an_open_load_is_carried_at_its_nominal_rate_and_one_that_is_not_sustained_is_not():
    load = OpenLoad(rate=100.0)

    def carried(throughput: float, **update) -> float:
        return math.exp(
            quantity("throughput", measurement(load, throughput, 5.0).model_copy(update=update))[0]
        )

    assert carried(96.0) == pytest.approx(96.0)
    assert carried(96.0, offered_rate=96.0) == pytest.approx(100.0)
    assert carried(99.0, sustained=False) < 98.0
    assert carried(60.0, sustained=False) == pytest.approx(60.0)
