"""Whether a candidate is warm, from short windows of few requests."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tuner.test_sample import sample
from tritonc.schemas.measurement import ClosedLoad
from tritonc.tuner.measure import _is_warm
from tritonc.tuner.sample import Sample
from tritonc.tuner.window import Window


def one_client(*latencies_ms: float) -> Sample:
    """A window of 0.4 s of one client, whose first request is the ramp."""
    latency = np.array(latencies_ms)
    sent = (np.cumsum(latency) - latency) / 1000
    kept = sent + latency / 1000 <= 0.4
    return sample(Window(ClosedLoad(concurrency=1), 0.4, sent[kept], latency[kept]))


@pytest.mark.parametrize("latency_ms", [1, 5, 20, 25])
def test_a_steady_window_is_warm_by_itself(latency_ms: float):
    assert _is_warm(None, one_client(*[latency_ms] * 400))


def test_a_window_that_begins_slowly_is_not():
    assert not _is_warm(None, one_client(*[60.0] * 4, *[10.0] * 40))


def test_of_very_few_requests_two_windows_tell():
    slow, fast = one_client(*[80.0] * 9), one_client(*[40.0] * 20)
    assert not _is_warm(None, slow)
    assert not _is_warm(slow, fast)
    assert _is_warm(fast, one_client(*[38.0] * 20))
