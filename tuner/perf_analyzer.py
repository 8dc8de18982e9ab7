"""The load generator: Triton's perf_analyzer, one process for each window of load.

What 2.43 does, seen in experiments (and in its source, triton-inference-server/client
`inference_profiler.cc`):

- The export holds the requests *completed* within the measured windows, unsorted, and the windows' ends;
  there is no warm-up before the first window. It is written before the answers still under way are waited
  for.
- Three windows in a row have to be stable, so `-r 3` is the least; each lasts 1.2 x `-p`. `-s 999` fails a
  queue whose latency grows elevenfold: a larger value does not. A window without a completion still fails
  it.
- `--request-rate-range` draws the same intervals every time and offers about three quarters of the Poisson
  rate asked for (45 asked, 34 sent, in windows of any length), so open loads are sent by
  `--request-intervals`.
- Steps of `--input-data` are sent in turn by a thread. Of several threads that send intervals each begins
  with the first step and takes every fourth (with four of them), so that some steps are never sent and the
  others four times in a row.
- With `--shape` no step may have another shape; without, each step may have its own.
- Asynchronous sending with one thread costs no more than one thread for each client, and less memory.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tritonc.schemas.errors import LoadGeneratorError
from tritonc.schemas.measurement import ClosedLoad, Load, OpenLoad, Trace
from tritonc.schemas.request_batch import BatchMix, BatchShare
from tritonc.tuner.arrivals import Arrivals, is_silent
from tritonc.tuner.inputs import Inputs
from tritonc.tuner.objective import Percentile
from tritonc.tuner.request_mix import RequestMix
from tritonc.tuner.size_mix import load_of_each, merged
from tritonc.tuner.window import Summary, Window

Floats = npt.NDArray[np.float64]

_WINDOWS = 3
_STRETCH = 1.2  # a window of `-p` milliseconds lasts this much longer
_START_S = 5.0  # 0.05 s on an idle machine
_JUMP_S = 0.1  # its times are the wall clock's, which somebody may set
_READINGS = 20  # of two clocks one after the other: one pair at least is not torn apart by other programs
_SHORTEST = 0.3  # of the window asked for: less is no window
_OPEN_THREADS = 4  # with one, a request waits for the one before to be serialised
_CSV = "report.csv"
_COLUMNS: Mapping[Percentile, str] = {
    "avg": "Avg latency",
    "p50": "p50 latency",
    "p90": "p90 latency",
    "p95": "p95 latency",
    "p99": "p99 latency",
}
_REQUEST_COUNT = re.compile(r"Request count: (\d+)")
_VERSION = re.compile(r"Version (\d+\.\d+\.\d+)")
_DELAYED = re.compile(r"([\d.]+)% of the requests were delayed")
_NO_COMPLETIONS = (
    "Failed to obtain stable measurement",
    "No valid requests recorded",
    # It looks for the version whose counts have grown within the window, and none has.
    "failed to find the requested model version",
)
_REQUEST_ERRORS = ("had error", "Failed to retrieve results")
_NO_CONNECTION = (
    "failed to connect",
    "Connection refused",
    "Connection reset",
    "Socket closed",
    "UNAVAILABLE",
)


@dataclass(frozen=True, slots=True)
class NoWindow:
    """Why a window of load has no result.

    Attributes:
        reason: "too_slow": a third of the window passed without a completion; "connection": the server was
            not there; "errors": it answered with errors; "deadline": it did not answer in time;
            "generator": the load generator failed, or a clock, and nothing was seen of the server; "unknown":
            something else, which another try may not meet.
        detail: the load generator's own words.
    """

    reason: Literal["too_slow", "connection", "errors", "deadline", "generator", "unknown"]
    detail: str


@dataclass(frozen=True, slots=True)
class LoadData:
    """What is sent.

    Attributes:
        file: the load file, as `Inputs.write_load_file` or `RequestMix.write_load_file` writes it.
        shape_arguments: its `--shape` arguments.
        open_threads: threads that send an open load; one where steps have to be sent in turn.
    """

    file: Path
    shape_arguments: tuple[str, ...] = ()
    open_threads: int = _OPEN_THREADS

    @classmethod
    def of(cls, sent: Inputs | RequestMix, folder: Path, name: str = "load.json") -> LoadData:
        """Writes the load file into `folder`, once for all windows of a workload."""
        file = folder / name
        sent.write_load_file(file)
        is_mixed = isinstance(sent, RequestMix) and len(sent.inputs) > 1
        return cls(file, tuple(sent.shape_arguments()), 1 if is_mixed else _OPEN_THREADS)


@dataclass(frozen=True, slots=True)
class PerfAnalyzer:
    """A perf_analyzer that can be run.

    Attributes:
        binary: the program.
        env: its whole environment.
        version: its own version, for example "2.43.0".
        cores: the only cores it may run on; empty for all.
        wall: the clock that its times are of, which may jump, in seconds.
        steady: a clock that only grows, in seconds.
    """

    binary: Path
    env: Mapping[str, str]
    version: str
    cores: tuple[int, ...] = ()
    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic

    def run(
        self,
        grpc_address: str,
        model: str,
        load: Load,
        window_s: float,
        data: LoadData,
        *,
        arrivals: Arrivals,
        drain_s: float = 3.0,
    ) -> Window | NoWindow:
        """Puts `model` under a load for about `window_s` seconds, and waits until all is answered.

        This process sleeps meanwhile.

        Args:
            grpc_address: "127.0.0.1:port".
            model: is loaded.
            load: how many clients, or which rate.
            window_s: how long; a trace is replayed as a whole where it can be.
            data: what is sent.
            arrivals: when requests of an open load are sent.
            drain_s: how long answers may take after the window; then the generator is killed, and what was
                completed counts.

        Raises:
            LoadGeneratorError: the program does not run.
        """
        put = partial(self._put, ("-m", model, "-u", grpc_address), data, drain_s)
        if not isinstance(load, OpenLoad):
            return put(load, window_s, np.empty(0))
        schedule = arrivals.schedule(load, window_s)
        mix = load.request_batch
        if isinstance(mix, int):
            return put(load, schedule.window_s, schedule.times_s)
        shared_out = zip(mix, load_of_each(load, mix), arrivals.shared_out(schedule, mix), strict=True)
        sent = {share: (one, times_s) for share, one, times_s in shared_out if len(times_s)}
        pool = ThreadPoolExecutor(len(sent))
        try:
            running = {
                share: pool.submit(put, one, schedule.window_s, times_s)
                for share, (one, times_s) in sent.items()
            }
            found = {share: window.result() for share, window in running.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C stops the server, which ends the load
        rare = {share for share, (_, times_s) in sent.items() if is_silent(times_s, schedule.window_s)}
        return _merged(load, mix, found, rare)

    def _put(
        self,
        where: tuple[str, ...],
        data: LoadData,
        drain_s: float,
        load: Load,
        window_s: float,
        planned: Floats,
    ) -> Window | NoWindow:
        """A window of requests of one size; those of an open load are sent at the `planned` times.

        What perf_analyzer writes lies beside the load file meanwhile: what stays there when tritonc is
        killed goes with that, when the load is set up next.
        """
        deadline_s = _START_S + window_s + drain_s
        with tempfile.TemporaryDirectory(dir=data.file.parent, prefix="window-") as folder:
            export = Path(folder) / "export.json"
            arguments = [
                *(*where, "-i", "grpc", "-a"),
                *("-p", str(max(1, round(window_s * 1000 / _WINDOWS / _STRETCH)))),
                *("-r", str(_WINDOWS), "-s", "1000000"),
                *("-b", str(load.request_batch), "--input-data", str(data.file), *data.shape_arguments),
                *("--profile-export-file", str(export), "-f", str(Path(folder, _CSV)), "--verbose-csv"),
                *_load_arguments(load, planned, window_s, Path(folder), data.open_threads),
            ]
            before_s = self._ahead_s()
            code, output = self._execute(arguments, deadline_s)
            jump_s = self._ahead_s() - before_s
            if abs(jump_s) > _JUMP_S:
                return NoWindow(
                    "generator", f"this machine's clock jumped by {jump_s:+.3g} s within a window"
                )
            return _result(load, window_s, planned, export, code, output, deadline_s)

    def _ahead_s(self) -> float:
        """How far the wall clock is ahead of the steady one, by the closest of a few readings of both."""
        readings = []
        for _ in range(_READINGS):
            before, wall, after = self.steady(), self.wall(), self.steady()
            readings.append((after - before, wall - (before + after) / 2))
        return min(readings)[1]

    def _execute(self, arguments: list[str], deadline_s: float) -> tuple[int | None, str]:
        """Exit code (None: killed at the deadline) and all it said."""
        command = [str(self.binary), *arguments]
        try:
            process = subprocess.Popen(
                command,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for tritonc, which ends it
            )
        except OSError as err:
            raise LoadGeneratorError(f"{self.binary} does not start: {err.strerror or err}") from err
        try:
            if self.cores:
                os.sched_setaffinity(process.pid, self.cores)
            output, _ = process.communicate(timeout=deadline_s)
            return process.returncode, output.decode(errors="replace")
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            return None, output.decode(errors="replace")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _load_arguments(
    load: Load, planned: Floats, window_s: float, folder: Path, open_threads: int
) -> list[str]:
    if isinstance(load, ClosedLoad):
        return ["--concurrency-range", str(load.concurrency), "--max-threads", "1"]
    end_s = _STRETCH * window_s
    if planned[-1] < end_s:  # after the last interval it begins again with the first
        planned = np.append(planned, end_s)
    ticks = np.round(planned * 1e6).astype(np.int64)
    intervals = np.maximum(1, np.diff(ticks, prepend=0))
    file = folder / "intervals"
    file.write_text("\n".join(map(str, intervals.tolist())) + "\n", encoding="ascii")
    return ["--request-intervals", str(file), "--max-threads", str(open_threads)]


def _result(
    load: Load,
    window_s: float,
    planned: Floats,
    export: Path,
    code: int | None,
    output: str,
    deadline_s: float,
) -> Window | NoWindow:
    if code is not None and code < 0:
        return NoWindow("generator", f"perf_analyzer was ended by {_signal_text(-code)}")
    requests, unusable = None, ""
    if not code:
        try:
            requests = _exported(export, _SHORTEST * window_s, deadline_s)
        except ValueError as err:
            unusable = f"perf_analyzer wrote a report that cannot be used: {err}"
    late = _DELAYED.search(output)
    warnings = [f"{late[0]} by the load generator"] if late else []
    if requests is None:
        summary = _summary(export.with_name(_CSV), output) if code == 0 else None
        if summary is None:
            found = _no_window(code, output)
            return NoWindow("generator", unusable) if unusable and found.reason == "unknown" else found
        nothing = np.empty(0)
        warnings.append("the load generator gave no times of single requests: intervals are unknown")
        return Window(
            load, window_s, nothing, nothing, planned, late is not None, True, tuple(warnings), summary
        )
    send_ns, done_ns, begin_ns, end_ns = requests
    order = np.argsort(send_ns, kind="stable")
    window = Window(
        load=load,
        duration_s=(end_ns - begin_ns) / 1e9,
        send_s=(send_ns[order] - begin_ns) / 1e9,
        latency_ms=(done_ns[order] - send_ns[order]) / 1e6,
        planned_s=planned,
        delayed=late is not None,
        drained=code is not None,
        warnings=tuple(warnings),
        began_s=begin_ns / 1e9,
    )
    if not isinstance(load, OpenLoad) or not isinstance(load.distribution, Trace):
        return window
    # A little longer, and it would hold the burst that the next replay begins with.
    whole = window.within(window.began_s, window.began_s + float(window.send_s[0]) + window_s)
    if not len(whole.send_s):
        return NoWindow("too_slow", "nothing was completed until the replay ended")
    return whole if whole.is_late else replace(whole, delayed=False, warnings=())


def _merged(
    load: OpenLoad,
    mix: BatchMix,
    found: Mapping[BatchShare, Window | NoWindow],
    rare: Collection[BatchShare] = (),
) -> Window | NoWindow:
    """One window of what was seen of requests of each size.

    Args:
        load: of all requests.
        mix: of `load`.
        found: of each size that was sent.
        rare: sizes of which a third of the window was to see no request: that none was answered in it says
            nothing of the server.
    """
    windows = {share: each for share, each in found.items() if isinstance(each, Window)}
    for share, each in found.items():
        if isinstance(each, NoWindow) and not (windows and share in rare and each.reason == "too_slow"):
            return each
    if any(each.summary is not None for each in windows.values()):
        return NoWindow(
            "generator", "of requests of several sizes perf_analyzer has to export each one, as 2.43 does"
        )
    whole = merged(load, tuple(windows), tuple(windows.values()))
    if whole is None:
        return NoWindow("generator", "the load generators of several sizes did not send at once")
    if not len(whole.send_s):
        return NoWindow("too_slow", "nothing was completed while requests of all sizes were sent")
    if unseen := [str(share.size) for share in mix if share not in windows]:
        warning = f"requests of {', '.join(unseen)} were too rare to be seen in every window"
        return replace(whole, warnings=(*whole.warnings, warning))
    return whole


def _signal_text(number: int) -> str:
    """A signal by number and name, and who usually sends it."""
    senders: dict[int, str] = {
        signal.SIGKILL: ", as the kernel ends what takes too much memory",
        signal.SIGXFSZ: ": raise the limit of a file's size (ulimit -f)",
    }
    return f"signal {number} ({signal.strsignal(number) or 'unknown'}){senders.get(number, '')}"


def _exported(export: Path, shortest_s: float, longest_s: float) -> tuple[Any, Any, int, int] | None:
    """Send times, completion times, begin and end in nanoseconds; None where the export holds no request.

    Raises:
        ValueError: it cannot be read, or its times cannot be those of a window between these lengths.
    """
    try:
        experiment = json.loads(export.read_bytes())["experiments"][0]
        requests = experiment["requests"]
        begin, end = (int(experiment["window_boundaries"][place]) for place in (0, -1))
        send = np.array([int(request["timestamp"]) for request in requests], np.int64)
        done = np.array([int(request["response_timestamps"][-1]) for request in requests], np.int64)
        if not len(send):
            return None
        times_s = np.concatenate([done - send, send - (begin - round(longest_s * 1e9)), [end - begin]]) / 1e9
    except (OSError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as err:
        raise ValueError(f"{type(err).__name__}: {err}") from err
    if times_s.min() < 0 or times_s.max() > 2 * longest_s or times_s[-1] < shortest_s:
        raise ValueError("its times cannot be those of this window")
    return send, done, begin, end


def _summary(csv_file: Path, output: str) -> Summary | None:
    """What the report of `-f` says: newer versions write exports that cannot be read (docs/engines.md)."""
    count = _REQUEST_COUNT.search(output)
    try:
        row = next(csv.DictReader(csv_file.read_text(encoding="utf-8").splitlines()))
        latency_ms = {name: float(row[column]) / 1000 for name, column in _COLUMNS.items()}
        throughput = float(row["Inferences/Second"])
        if not all(math.isfinite(number) and number >= 0 for number in (throughput, *latency_ms.values())):
            return None
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return None
    return Summary(int(count[1]), throughput, latency_ms) if count else None


def _no_window(code: int | None, output: str) -> NoWindow:
    said = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in said if re.search(r"error|fail|no valid|\[WARNING\]", line, re.IGNORECASE)]
    detail = "\n".join((telling or said)[-4:]) or f"perf_analyzer said nothing (exit code {code})"
    if code is None:
        return NoWindow("deadline", "\n".join(telling[-4:]) or "no answer came until the deadline")
    if any(text in output for text in _NO_CONNECTION):
        return NoWindow("connection", detail)
    if any(text in output for text in _NO_COMPLETIONS) and "had error" not in output:
        return NoWindow("too_slow", detail)
    return NoWindow("errors" if any(text in output for text in _REQUEST_ERRORS) else "unknown", detail)


def perf_analyzer_at(binary: Path, env: Mapping[str, str], cores: tuple[int, ...] = ()) -> PerfAnalyzer:
    """The perf_analyzer at a path, with the version that it says it has.

    Raises:
        LoadGeneratorError: there is none, or it does not run.
    """
    hint = "leave --perf-analyzer out to use the bundle's, or check its libraries with ldd"
    binary = binary.absolute()  # a bare name would be looked for on PATH
    try:
        process = subprocess.run(
            [str(binary), "--version"], env=dict(env), capture_output=True, timeout=_START_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise LoadGeneratorError(f"{binary} does not run: {err}", hint) from err
    said = (process.stdout + process.stderr).decode(errors="replace")
    found = _VERSION.search(said)
    if found is None:
        line = (said.strip().splitlines() or ["nothing"])[0]
        raise LoadGeneratorError(f"{binary} --version says: {line}", hint)
    return PerfAnalyzer(binary, env, found[1], cores)
