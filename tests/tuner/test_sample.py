from __future__ import annotations

import numpy as np
import pytest

from tests.tuner.test_window import clients, served
from tritonc.schemas.measurement import Load, OpenLoad
from tritonc.tuner.engines import Statistics
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.window import Window


def sample(*windows: Window, memory: int = 100, load: Load | None = None) -> Sample:
    counted = Statistics(
        inferences=80,
        executions=20,
        requests=40,
        failed_requests=1,
        queue_ns=40_000_000,
        compute_input_ns=0,
        compute_infer_ns=400_000_000,
        compute_output_ns=0,
    )
    return Sample(load or windows[0].load, windows, counted, memory, None)


def test_windows_are_pooled_with_the_servers_counts() -> None:
    measured = pooled([sample(clients(4, 10)), sample(clients(4, 10), memory=200)])
    assert measured.requests == 2 * 96
    assert measured.throughput.value == pytest.approx(100, rel=0.01)
    assert measured.latency_ms["p99"].value == pytest.approx(40)
    assert measured.duration_s == 2
    assert measured.queue_ms == pytest.approx(1)
    assert measured.compute_infer_ms == pytest.approx(10)
    assert measured.mean_batch == 4
    assert measured.memory_bytes == 200
    assert measured.errors == 2
    assert measured.offered_rate is None


def test_littles_law_holds_for_what_is_measured() -> None:
    measured = pooled([sample(clients(8, 7, window_s=2.0))])
    assert measured.throughput.value * measured.latency_ms["avg"].value / 1000 == pytest.approx(8, rel=0.02)


def test_a_request_of_several_is_several_inferences() -> None:
    window = served(OpenLoad(rate=50, distribution="constant", request_batch=4), 1, 1.0)
    measured = pooled([sample(window)])
    assert measured.throughput.value == pytest.approx(200, rel=0.05)
    assert measured.offered_rate == pytest.approx(50, rel=0.01)


def test_latency_under_a_load_that_is_not_sustained_has_no_upper_end() -> None:
    measured = pooled([sample(served(OpenLoad(rate=2000), 1, 1.0))])
    assert not measured.sustained
    assert all(each.high is None for each in measured.latency_ms.values())


def test_one_stray_window_of_two_does_not_make_a_load_unsustained() -> None:
    good, bad = served(OpenLoad(rate=200), 1, 1.0), served(OpenLoad(rate=200), 10, 1.0)
    assert good.sustained
    assert not bad.sustained
    assert pooled([sample(good), sample(bad)]).sustained
    assert not pooled([sample(bad), sample(bad)]).sustained


def test_a_window_without_any_request_of_the_ramp_is_possible() -> None:
    window = Window(clients(2, 10).load, 1.0, np.array([0.1]), np.array([5.0]))
    assert pooled([sample(window)]).requests == 1
