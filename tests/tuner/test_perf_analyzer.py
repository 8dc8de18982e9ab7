from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.tuner.conftest import Served, config_pbtxt
from tritonc.compiler.signature import Tensor
from tritonc.schemas.errors import LoadGeneratorError
from tritonc.schemas.measurement import ClosedLoad, Interval, Load, OpenLoad, Trace
from tritonc.tuner.arrival_trace import ArrivalTrace
from tritonc.tuner.arrivals import Arrivals
from tritonc.tuner.engines import Statistics, engine_named
from tritonc.tuner.inputs import Inputs, InputSamples
from tritonc.tuner.perf_analyzer import LoadData, NoWindow, PerfAnalyzer, perf_analyzer_at
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.window import Window

EXPORT = """{"experiments": [{"experiment": {"mode": "concurrency", "value": 2}, "requests": [
  {"timestamp": 1000020000000, "response_timestamps": [1000030000000]},
  {"timestamp": 1000010000000, "response_timestamps": [1000015000000]}],
  "window_boundaries": [1000000000000, 1000500000000, 1001000000000]}], "version": "2.43.0"}"""


def stand_in(
    folder: Path,
    *,
    export: str | None = None,
    csv: str | None = None,
    says: str = "",
    then: str = "sys.exit(0)",
) -> PerfAnalyzer:
    """A program that writes an export and text as perf_analyzer does; its arguments end up in `arguments`."""
    script = folder / "perf_analyzer"
    script.write_text(
        f"#!{sys.executable}\nimport sys, time, os, signal\nfrom pathlib import Path\n"
        f"Path({str(folder / 'arguments')!r}).write_text('\\n'.join(sys.argv[1:]))\n"
        f"if {export!r} is not None:\n"
        f"    Path(sys.argv[sys.argv.index('--profile-export-file') + 1]).write_text({export!r})\n"
        f"if {csv!r} is not None:\n"
        f"    Path(sys.argv[sys.argv.index('-f') + 1]).write_text({csv!r})\n"
        f"print({says!r}, flush=True)\n{then}\n"
    )
    script.chmod(0o755)
    return PerfAnalyzer(script, dict(os.environ), "2.43.0")


def run(
    generator: PerfAnalyzer, folder: Path, load: Load | None = None, drain_s: float = 3
) -> Window | NoWindow:
    data = LoadData(folder / "load.json", ("--shape", "x:3"))
    load = load or ClosedLoad(concurrency=2)
    return generator.run("127.0.0.1:1", "m", load, 1.0, data, arrivals=Arrivals(0), drain_s=drain_s)


def test_the_export_becomes_a_window_in_the_order_of_sending(tmp_path: Path) -> None:
    window = run(stand_in(tmp_path, export=EXPORT), tmp_path)
    assert isinstance(window, Window)
    assert window.send_s == pytest.approx([0.01, 0.02])
    assert window.latency_ms == pytest.approx([5, 10])
    assert window.duration_s == 1
    assert window.drained
    arguments = (tmp_path / "arguments").read_text().split("\n")
    assert arguments[:7] == ["-m", "m", "-u", "127.0.0.1:1", "-i", "grpc", "-a"]
    assert arguments[arguments.index("-p") + 1] == "278"
    assert arguments[arguments.index("--shape") + 1] == "x:3"


def test_an_open_load_is_sent_at_the_times_of_the_plan(tmp_path: Path) -> None:
    then = (
        "file = Path(sys.argv[sys.argv.index('--request-intervals') + 1])\n"
        "Path(sys.argv[0]).with_name('kept').write_text(file.read_text())"
    )
    load = OpenLoad(rate=100, distribution="constant", request_batch=4)
    window = run(stand_in(tmp_path, export=EXPORT, then=then), tmp_path, load)
    assert isinstance(window, Window)
    intervals = [int(line) for line in (tmp_path / "kept").read_text().split()]
    assert intervals == [10000] * 200
    arguments = (tmp_path / "arguments").read_text().split("\n")
    assert arguments[arguments.index("-b") + 1] == "4"


def test_a_generator_that_could_not_keep_up_says_so(tmp_path: Path) -> None:
    says = "[WARNING] Perf Analyzer was not able to keep up. 4.30% of the requests were delayed."
    window = run(stand_in(tmp_path, export=EXPORT, says=says), tmp_path, OpenLoad(rate=2))
    assert isinstance(window, Window)
    assert window.delayed
    assert not window.sustained
    assert window.warnings == ("4.30% of the requests were delayed by the load generator",)


def test_what_was_completed_counts_when_the_answers_take_too_long(tmp_path: Path) -> None:
    generator = stand_in(tmp_path, export=EXPORT, then="time.sleep(60)")
    window = run(generator, tmp_path, drain_s=-4)
    assert isinstance(window, Window)
    assert not window.drained


@pytest.mark.parametrize(
    ("export", "says", "code", "reason"),
    [
        (None, "Failed to obtain stable measurement.", 2, "too_slow"),
        (None, "No valid requests recorded within time interval.", 3, "too_slow"),
        (None, "error: failed to get model metadata: failed to connect to all addresses", 99, "connection"),
        (None, "Thread [0] had error: Socket closed", 99, "connection"),
        (None, "Thread [0] had error: Stub process 'm_0_0' is not healthy.", 99, "errors"),
        ("", "", 0, "generator"),
        ("{", "", 0, "generator"),
        (None, "failed to find the requested model version", 99, "too_slow"),
    ],
)
def test_why_there_is_no_result(
    tmp_path: Path, export: str | None, says: str, code: int, reason: str
) -> None:
    found = run(stand_in(tmp_path, export=export, says=says, then=f"sys.exit({code})"), tmp_path)
    assert isinstance(found, NoWindow)
    assert found.reason == reason
    assert says in found.detail


CSV = (
    "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency,Avg latency\n"
    "2,71.5,3,22585,40925,40926,52147,26270\n"
)


@pytest.mark.parametrize("export", ["", "{", '{"experiments": []}'])
def test_an_unreadable_export_falls_back_to_the_summary(tmp_path: Path, export: str) -> None:
    window = run(stand_in(tmp_path, export=export, csv=CSV, says="    Request count: 77"), tmp_path)
    assert isinstance(window, Window)
    measured = pooled([Sample(window.load, (window,), Statistics(*[0] * 9), 1, None)])
    assert measured.requests == 77
    assert measured.throughput == Interval(value=71.5)
    assert measured.latency_ms["p99"] == Interval(value=52.147)
    assert measured.latency_ms["avg"].value == 26.27
    assert "no times of single requests" in measured.warnings[0]


def test_no_answer_until_the_deadline_is_no_result(tmp_path: Path) -> None:
    began = time.monotonic()
    found = run(stand_in(tmp_path, then="time.sleep(60)"), tmp_path, drain_s=-4.5)
    assert isinstance(found, NoWindow)
    assert found.reason == "deadline"
    assert time.monotonic() - began < 10


def test_a_generator_that_is_killed_is_no_fault_of_the_candidate(tmp_path: Path) -> None:
    found = run(stand_in(tmp_path, then="os.kill(os.getpid(), signal.SIGKILL)"), tmp_path)
    assert isinstance(found, NoWindow)
    assert found.reason == "generator"
    assert "ended by signal 9 (Killed), as the kernel ends what takes too much memory" in found.detail


def requests_of(*times: tuple[object, object], begin: object = 0, end: object = 10**9) -> str:
    requests = [{"timestamp": sent, "response_timestamps": [done]} for sent, done in times]
    return json.dumps({"experiments": [{"requests": requests, "window_boundaries": [begin, end]}]})


@pytest.mark.parametrize(
    "export",
    [
        "nonsense",
        b"\xff\xfe".decode("latin-1"),
        "[1, 2]",
        '"text"',
        "[" * 100_000,
        '{"experiments": [{"requests": 7, "window_boundaries": [0, 1]}]}',
        '{"experiments": [{"requests": [7], "window_boundaries": [0, 1000000000]}]}',
        requests_of(("a", "b")),
        requests_of((None, 1)),
        requests_of((float("nan"), 1)),
        requests_of((1, 2), begin=None),
        requests_of((1, 2), end=10**30),
        requests_of((10**30, 10**30 + 1)),
        requests_of((2, 1)),
        requests_of((1, 10**15)),
        requests_of((-(10**15), 2 - 10**15)),
        requests_of((1, 2), end=0),
        requests_of((1, 2), end=10**8),
        requests_of((1, 2), end=3600 * 10**9),
    ],
)
def test_nonsense_is_a_fault_of_the_generator(tmp_path: Path, export: str) -> None:
    found = run(stand_in(tmp_path, export=export), tmp_path)
    assert isinstance(found, NoWindow)
    assert found.reason == "generator"
    assert found.detail.startswith("perf_analyzer wrote a report that cannot be used: ")


def test_a_summary_of_nonsense_is_no_summary(tmp_path: Path) -> None:
    for number in ("nan", "inf", "-3"):
        csv = CSV.replace("71.5", number)
        found = run(stand_in(tmp_path, export="", csv=csv, says="    Request count: 77"), tmp_path)
        assert isinstance(found, NoWindow)
        assert found.reason == "generator"


@pytest.mark.parametrize("jump_s", [-3600.0, -0.5, 0.5, 3600.0])
def test_a_window_in_which_the_clock_jumped_says_nothing(tmp_path: Path, jump_s: float) -> None:
    def wall() -> float:
        return time.monotonic() + (jump_s if (tmp_path / "arguments").exists() else 0.0)

    generator = dataclasses.replace(stand_in(tmp_path, export=EXPORT), wall=wall)
    found = run(generator, tmp_path)
    assert isinstance(found, NoWindow)
    assert (found.reason, found.detail) == (
        "generator",
        f"this machine's clock jumped by {jump_s:+.3g} s within a window",
    )
    assert isinstance(run(generator, tmp_path), Window)  # it has jumped before


def test_a_generator_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadGeneratorError, match="does not start"):
        run(PerfAnalyzer(tmp_path / "missing", {}, "2.43.0"), tmp_path)
    with pytest.raises(LoadGeneratorError, match="does not run"):
        perf_analyzer_at(tmp_path / "missing", {})


def test_the_version_is_what_the_program_says(tmp_path: Path) -> None:
    generator = stand_in(tmp_path, says="Perf Analyzer Version 2.59.1 (commit 1)")
    assert perf_analyzer_at(generator.binary, generator.env, (0,)).version == "2.59.1"
    with pytest.raises(LoadGeneratorError, match="says: cannot open shared object"):
        perf_analyzer_at(stand_in(tmp_path, says="cannot open shared object").binary, generator.env)


def test_a_program_in_the_working_folder_may_be_named_without_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = stand_in(tmp_path, says="Perf Analyzer Version 2.59.1 (commit 1)")
    monkeypatch.chdir(generator.binary.parent)
    named = perf_analyzer_at(Path(generator.binary.name), generator.env)
    assert named.binary == generator.binary


@pytest.mark.triton
def test_a_real_window_is_about_as_long_as_asked_and_costs_this_process_nothing(
    served: Served, tmp_path: Path
) -> None:
    proto = models.mlp()
    model = served.load(proto, config_pbtxt(proto, max_batch_size=8))
    binary, env = engine_named("embedded").perf_analyzer()
    generator = perf_analyzer_at(binary, env, tuple(os.sched_getaffinity(0)))
    samples = np.random.default_rng(0).uniform(size=(4, 4)).astype(np.float32)
    data = LoadData.of(Inputs((InputSamples(Tensor("x", "TYPE_FP32", (4,)), samples),), True), tmp_path)
    load = OpenLoad(rate=100)
    before = time.process_time()
    window = generator.run(served.server.grpc_address, model, load, 1.0, data, arrivals=Arrivals(0))
    spent_s = time.process_time() - before
    assert isinstance(window, Window)
    assert window.duration_s == pytest.approx(1.0, abs=0.2)
    assert window.offered_rate == pytest.approx(100, rel=0.15)
    assert len(window.send_s) >= 80
    assert spent_s < 0.05
    assert served.server.statistics(model).requests >= 100


@pytest.mark.triton
def test_a_trace_is_replayed_with_its_bursts_and_silences(served: Served, tmp_path: Path) -> None:
    proto = models.mlp()
    model = served.load(proto, config_pbtxt(proto, max_batch_size=8))
    binary, env = engine_named("embedded").perf_analyzer()
    generator = perf_analyzer_at(binary, env)
    samples = np.random.default_rng(0).uniform(size=(4, 4)).astype(np.float32)
    data = LoadData.of(Inputs((InputSamples(Tensor("x", "TYPE_FP32", (4,)), samples),), True), tmp_path)
    trace = ArrivalTrace(np.array([0.0] * 20 + [1.5]), "d" * 64)
    load = OpenLoad(rate=trace.rate, distribution=Trace(trace=trace.sha256))
    arrivals = Arrivals(0, traces={trace.sha256: trace})

    def replayed() -> Window:
        window = generator.run(served.server.grpc_address, model, load, 1.0, data, arrivals=arrivals)
        assert isinstance(window, Window)
        return window

    replayed()  # the first requests of all meet a cold model
    # A busy machine holds the load generator up for some milliseconds now and then; the window says so.
    window = next(each for each in (replayed() for _ in range(5)) if not each.is_late)
    assert window.duration_s == pytest.approx(3 * trace.length_s, abs=0.3)
    assert len(window.send_s) == 3 * 21
    assert window.send_s - window.send_s[0] == pytest.approx(window.planned_s[:63], abs=0.05)
    assert window.sustained
    assert window.warnings == ()
    assert window.offered_rate == pytest.approx(trace.rate, rel=0.05)
    measured = pooled([Sample(load, (window,), Statistics(*[0] * 9), 0, None)])
    assert measured.throughput.value == pytest.approx(trace.rate, rel=0.02)
