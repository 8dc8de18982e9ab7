from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonc.tuner.arrival_trace import ArrivalTrace, TraceFileError, read_trace

gaps = st.lists(st.floats(0, 5).map(lambda gap: 0.0 if gap < 0.5 else gap), min_size=1, max_size=60)
traces = (
    gaps.filter(lambda each: sum(each) > 0)
    .map(lambda each: np.concatenate([[0.0], np.cumsum(each)]))
    .map(lambda times: ArrivalTrace(times, "a" * 64))
)


def test_times_are_read_from_the_first_arrival_on(tmp_path: Path) -> None:
    path = tmp_path / "traffic.txt"
    path.write_text("# a day of it\n\n1700000000.5\n1700000000.5 # two at once\n  1.7000000025e9\n")
    trace = read_trace(path)
    assert trace.times_s == pytest.approx([0, 0, 2])
    assert trace.rate == 1
    assert trace.length_s == 3
    assert trace.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\nabc\n", 'line 2 is "abc"'),
        (b"1\n1_000\n", 'line 2 is "1_000"'),
        (b"1\nnan\n", 'line 2 is "nan"'),
        (b"1\n1e999\n", 'line 2 is "1e999"'),
        (b"1\n2 3\n", 'line 2 is "2 3"'),
        (b"1\n#\n2\n1.5\n", "line 4 is 1.5, before the arrival above it at 2"),
        (b"# nothing\n", "it has fewer than two arrivals"),
        (b"1\n", "it has fewer than two arrivals"),
        (b"1\n1\n", "all of its arrivals are at the same time"),
        (b"\xff\xfe", "it is no text"),
        (None, "there is no such file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "traffic.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TraceFileError) as wrong:
        read_trace(path)
    assert message in wrong.value.what
    assert wrong.value.hint


@given(traces, st.floats(0.5, 200))
def test_stretches_have_every_arrival_once_and_are_not_too_long(
    trace: ArrivalTrace, longest_s: float
) -> None:
    stretches = trace.stretches(longest_s)
    assert sum(len(each.times_s) for each in stretches) == len(trace.times_s)
    for each in stretches:
        assert each.times_s[0] >= 0
        assert (np.diff(each.times_s) >= 0).all()
        assert each.times_s[-1] <= each.length_s * (1 + 1e-9)
        assert each.length_s <= 1.5 * longest_s * (1 + 1e-6)
    if trace.length_s <= longest_s:
        assert len(stretches) == 1
        assert stretches[0].times_s[0] == 0


@given(traces, st.floats(1.001, 3))
def test_a_server_that_carries_the_mean_rate_is_idle_at_the_end_of_a_replay(
    trace: ArrivalTrace, share: float
) -> None:
    [whole] = trace.stretches(trace.length_s)
    free = 0.0
    for time in whole.times_s:
        free = max(free, time) + 1 / (share * trace.rate)
    assert free <= whole.length_s * (1 + 1e-9)
