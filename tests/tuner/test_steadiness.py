from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tritonc.schemas.measurement import ClosedLoad
from tritonc.tuner.steadiness import unsteadiness
from tritonc.tuner.window import Summary, Window


def window(rate_at: Callable[[float], float], rng: np.random.Generator, window_s: float = 1.0) -> Window:
    """Completions at a rate that is a function of time, about a tenth apart at random."""
    done, now = [], 0.0
    while now < window_s:
        now += rng.gamma(25, 1 / 25 / rate_at(now))
        done.append(now)
    times = np.array(done[:-1])
    sends = np.concatenate([np.zeros(4), times])[: len(times)]
    return Window(ClosedLoad(concurrency=4), window_s, sends, (times - sends) * 1000)


def test_a_steady_load_seldom_looks_unsteady() -> None:
    rng = np.random.default_rng(0)
    said = [unsteadiness([window(lambda _: 500, rng) for _ in range(count)]) for count in (1, 2, 3) * 60]
    assert sum(map(bool, said)) <= 3


@pytest.mark.parametrize(("last", "word"), [(700, "rose"), (350, "fell")])
def test_drift_is_said(last: float, word: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        (said,) = unsteadiness([window(lambda t: 500 + (last - 500) * t, rng)])
        assert word in said
        assert said.endswith("% while it was measured")


def test_two_levels_are_said() -> None:
    rng = np.random.default_rng(2)
    slow, fast = window(lambda _: 400, rng), window(lambda _: 600, rng)
    (said,) = unsteadiness([slow, fast, slow])
    assert said.startswith("throughput alternates between 40")
    assert "(67% of the time)" in said or "(66% of the time)" in said
    (inside,) = unsteadiness([window(lambda t: 400 if int(t * 6) % 2 else 600, rng)])
    assert "alternates" in inside


def test_few_requests_show_nothing() -> None:
    rng = np.random.default_rng(3)
    assert unsteadiness([window(lambda t: 20 + 60 * t, rng)]) == ()
    nothing = np.empty(0)
    bare = Window(ClosedLoad(concurrency=1), 1.0, nothing, nothing, summary=Summary(9, 9.0, {"avg": 1.0}))
    assert unsteadiness([bare]) == ()
