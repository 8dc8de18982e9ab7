"""Requests of several sizes: shared out, sent by several load generators at once, and one window again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import models
from tests.tuner.conftest import Served, config_pbtxt
from tests.tuner.test_request_mix import SAYS_SHAPES, inputs_of
from tests.tuner.test_sample import sample
from tritonc.schemas.measurement import OpenLoad
from tritonc.schemas.request_batch import BatchShare
from tritonc.schemas.spec import OpenWorkload
from tritonc.tuner.arrivals import Arrivals
from tritonc.tuner.engines import engine_named
from tritonc.tuner.loads import closed_load, load_to_hold
from tritonc.tuner.perf_analyzer import LoadData, NoWindow, _load_arguments, _merged, perf_analyzer_at
from tritonc.tuner.sample import pooled
from tritonc.tuner.size_mix import load_of_each, merged
from tritonc.tuner.window import Summary, Window

MIX = (BatchShare(weight=3, size=1), BatchShare(size=4))
LOAD = OpenLoad(rate=100, request_batch=MIX)


@given(
    st.lists(st.floats(0.01, 20), min_size=2, max_size=4),
    st.floats(20, 500),
    st.integers(0, 9),
)
def test_each_size_is_in_each_third_of_a_window_as_often_as_its_weight_says(
    weights: list[float], rate: float, seed: int
) -> None:
    mix = tuple(BatchShare(weight=weight, size=size + 1) for size, weight in enumerate(weights))
    load = OpenLoad(rate=rate, distribution="constant", request_batch=mix)
    arrivals = Arrivals(seed)
    schedule = arrivals.schedule(load, 1.5)
    times = arrivals.shared_out(schedule, mix)
    assert sorted(np.concatenate(times)) == sorted(schedule.times_s)
    for third in range(3):
        within = [np.count_nonzero(np.floor(each / 0.5) == third) for each in times]
        in_time = [np.count_nonzero((each >= third / 2) & (each <= third / 2 + 0.401)) for each in times]
        assert min(within) >= 1
        assert min(in_time) >= 1
        for count, share in zip(within, mix, strict=True):
            wanted = sum(within) * share.weight / sum(weights)
            assert wanted - len(mix) <= count <= max(1, wanted + 1)


def window(size: int, began_s: float, *send_s: float) -> Window:
    times = np.array(send_s)
    load = load_of_each(LOAD, MIX)[0 if size == 1 else 1]
    return Window(load, 1.0, times, np.full(len(times), 10.0), np.array([*times, 1.5]), began_s=began_s)


def test_what_was_seen_while_all_were_sending_is_one_window() -> None:
    whole = merged(LOAD, MIX, [window(1, 50.0, 0.05, 0.2, 0.4, 0.9), window(4, 50.1, 0.2, 0.85, 0.895)])
    assert whole is not None
    assert (whole.began_s, whole.duration_s) == (50.1, pytest.approx(0.9))
    assert whole.send_s == pytest.approx([0.1, 0.2, 0.3, 0.8, 0.85])
    assert whole.sizes.tolist() == [1, 4, 1, 1, 4]
    assert whole.planned_s == pytest.approx([0.1, 0.2, 0.3, 0.8, 0.85, 0.895, 1.4, 1.5])
    assert whole.sustained
    assert (whole.load, whole.warnings) == (
        LOAD,
        ("requests of 4 were sent more often than their weight says",),
    )
    measured = pooled([sample(whole)])
    assert measured.throughput.value == pytest.approx(5 / 0.9 * 1.75, rel=0.2)


def test_load_generators_that_did_not_send_at_once_show_nothing() -> None:
    assert merged(LOAD, MIX, [window(1, 50.0, 0.5), window(4, 51.2, 0.5)]) is None
    assert merged(LOAD, MIX, [window(1, 50.0, 0.1), window(4, 50.6, 0.5)]) is None


def test_without_a_window_of_each_size_there_is_none() -> None:
    one, other = window(1, 50.0, 0.1, 0.2), window(4, 50.0, 0.1, 0.3)
    killed = NoWindow("generator", "perf_analyzer was ended by signal 9")
    assert _merged(LOAD, MIX, dict(zip(MIX, [one, killed], strict=True)), rare=MIX) is killed
    summed = replace(other, summary=Summary(9, 4.0, {"p99": 3.0}))
    late, silent = replace(other, began_s=50.7), window(4, 50.3, 0.98)
    found = [
        _merged(LOAD, MIX, dict(zip(MIX, [one, each], strict=True))) for each in (other, summed, late, silent)
    ]
    reasons = [each.reason if isinstance(each, NoWindow) else None for each in found]
    assert reasons == [None, "generator", "generator", "too_slow"]


def test_a_size_that_is_too_rare_to_be_seen_does_not_spoil_the_window_of_others() -> None:
    seen, unseen = window(1, 50.0, 0.1, 0.2), NoWindow("too_slow", "no valid requests")
    found = dict(zip(MIX, [seen, unseen], strict=True))
    assert _merged(LOAD, MIX, found) is unseen
    for sizes in (found, {MIX[0]: seen}):  # sent too rarely, and not at all
        whole = _merged(LOAD, MIX, sizes, rare=MIX[1:])
        assert isinstance(whole, Window)
        assert whole.sizes.tolist() == [1, 1]
        assert whole.warnings == ("requests of 4 were too rare to be seen in every window",)
    hung = NoWindow("deadline", "it did not answer")
    assert _merged(LOAD, MIX, dict(zip(MIX, [seen, hung], strict=True)), rare=MIX) is hung
    nothing = dict.fromkeys(MIX, unseen)
    assert _merged(LOAD, MIX, nothing, rare=MIX) is unseen


def test_a_window_in_which_nothing_was_completed_is_empty() -> None:
    nothing = merged(LOAD, MIX, [window(1, 50.0, 0.1), window(4, 50.3, 0.98)])
    assert nothing is not None
    assert len(nothing.send_s) == 0


def test_a_size_that_takes_long_may_be_under_way_at_the_end() -> None:
    sends = np.arange(0, 1.0, 0.02)
    sizes = np.where(np.arange(50) % 5 == 2, 64.0, 1.0)
    latency_ms = np.where(sizes == 64, 200.0, 5.0)
    done = sends + latency_ms / 1000 <= 1.0
    seen = Window(LOAD, 1.0, sends[done], latency_ms[done], planned_s=sends, sizes=sizes[done])
    assert seen.sustained
    assert not replace(seen, sizes=np.empty(0)).sustained
    few = {name: getattr(seen, name)[:30] for name in ("send_s", "latency_ms", "sizes")}
    assert not replace(seen, **few).sustained


def test_a_load_of_several_sizes_is_so_many_requests_of_their_mean() -> None:
    workload = OpenWorkload(arrival="poisson", rate=100, request_batch=MIX)
    assert load_to_hold(workload) == LOAD
    assert LOAD.mean_request_batch == 1.75
    assert closed_load(workload, 3).request_batch == 2
    assert [(each.rate, each.request_batch) for each in load_of_each(LOAD, MIX)] == [(75, 1), (25, 4)]


@pytest.mark.triton
def test_a_real_server_gets_the_sizes_in_the_proportion_of_their_weights(
    served: Served, tmp_path: Path
) -> None:
    version = served.server.repository / "sizes" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(
        SAYS_SHAPES.replace("len(requests), x.shape[1]", "len(requests), len(x)")
    )
    (version.parent / "config.pbtxt").write_text(
        'backend: "python"\nmax_batch_size: 8\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [-1] }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: [1] }\n'
        "instance_group { count: 1 kind: KIND_CPU }\n"
    )
    served.server.load("sizes")
    binary, env = engine_named("embedded").perf_analyzer()
    load = LOAD.model_copy(update={"rate": 200.0})
    found = perf_analyzer_at(binary, env).run(
        served.server.grpc_address,
        "sizes",
        load,
        1.5,
        LoadData.of(inputs_of(3), tmp_path),
        arrivals=Arrivals(0),
    )
    assert isinstance(found, Window)
    said = {line.split()[1] for line in (version.parent / "shapes").read_text().splitlines()}
    assert said == {"1", "4"}
    # The server sees more: each generator begins and ends when it can, and only what they share counts.
    assert (found.sizes == 4).mean() == pytest.approx(0.25, abs=0.03)
    planned = np.count_nonzero(found.planned_s <= found.duration_s)
    assert len(found.send_s) == pytest.approx(planned, rel=0.1)
    assert found.offered_rate == pytest.approx(200, rel=0.1)
    assert Counter(found.sizes.tolist())[4.0] / len(found.sizes) == pytest.approx(0.25, abs=0.06)
    assert pooled([sample(found)]).throughput.value == pytest.approx(200 * 1.75, rel=0.1)


def test_what_is_sent_is_not_begun_again_within_the_window(tmp_path: Path) -> None:
    _load_arguments(LOAD, np.array([0.1, 0.3]), 1.0, tmp_path, 1)
    assert (tmp_path / "intervals").read_text().split() == ["100000", "200000", "900000"]


@pytest.mark.triton
@pytest.mark.parametrize(("seed", "requests"), [(6, (6, 6)), (10, (7, 4, 1))])
def test_a_window_is_no_longer_where_a_size_has_few_requests_or_none(
    served: Served, tmp_path: Path, seed: int, requests: tuple[int, ...]
) -> None:
    mix = (BatchShare(weight=8, size=1), BatchShare(size=2), BatchShare(size=4))
    load = OpenLoad(rate=2, distribution="constant", request_batch=mix)
    times = Arrivals(seed).shared_out(Arrivals(seed).schedule(load, 3.0), mix)
    assert tuple(len(each) for each in times if len(each)) == requests
    proto = models.mlp()
    name = served.load(proto, config_pbtxt(proto, max_batch_size=4))
    binary, env = engine_named("embedded").perf_analyzer()
    generator, data = perf_analyzer_at(binary, env), LoadData.of(inputs_of(4), tmp_path)
    for _ in range(3):  # on a busy machine a third of a window may see none of seven requests
        before = served.server.statistics(name)
        found = generator.run(served.server.grpc_address, name, load, 3.0, data, arrivals=Arrivals(seed))
        if isinstance(found, Window):
            break
    assert isinstance(found, Window)
    assert found.duration_s == pytest.approx(3, rel=0.2)
    assert found.warnings == ("requests of 2, 4 were too rare to be seen in every window",)
    assert served.server.statistics(name).since(before).requests <= sum(requests)
