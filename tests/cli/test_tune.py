"""`tritonc tune` on a real tritonserver: it measures, decides, locks, builds, resumes, and cleans up."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.schemas.lock_file import read_lock

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  mlp:
    source: models/mlp.onnx
    max_batch_size: 4
    workload: {arrival: closed, max_concurrency: 4}
    slo: {p99_latency_ms: 500}
targets:
  cpu:
    device: cpu
    cores: 1
    backends:
      onnxruntime: {accelerators: [none]}
search:
  instance_count: [1, 2]
  max_batch_size: 4
  dynamic_batching: false
  intra_op_thread_count: 1
"""
GONE_S = 15


@pytest.fixture(autouse=True)
def own_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def p(project: Any) -> ProjectFolder:
    folder: ProjectFolder = project({"spec.yaml": SPEC, "models/mlp.onnx": mlp()})
    return folder


def trial_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("trial ")]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that name the folder in their arguments, this one left out."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(process)
    return found


class Running:
    """A `tritonc tune` in a process of its own."""

    def __init__(self, p: ProjectFolder, *args: str) -> None:
        self.folder = p.folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tritonc", "tune", str(p.path("spec.yaml")), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(line)
        self._queue.put(None)

    def wait_for(self, found: Callable[[str], bool], timeout_s: float = 60) -> str:
        """The first line to come that is what is looked for."""
        deadline = time.monotonic() + timeout_s
        while (line := self._queue.get(timeout=max(0.1, deadline - time.monotonic()))) is not None:
            self.lines.append(line)
            if found(line):
                return line
        raise AssertionError("".join(self.lines))

    def server(self) -> psutil.Process:
        """Its tritonserver."""
        servers = [one for one in processes_of(self.folder) if one.name() == "tritonserver"]
        assert len(servers) == 1
        return servers[0]

    def end(self, timeout_s: float = 120) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(timeout_s)
        while (line := self._queue.get(timeout=10)) is not None:
            self.lines.append(line)
        return code


@contextmanager
def running(p: ProjectFolder, *args: str) -> Iterator[Running]:
    started = Running(p, *args)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def assert_all_gone(folder: Path) -> None:
    deadline = time.monotonic() + GONE_S
    while left := processes_of(folder):
        assert time.monotonic() < deadline, [process.cmdline() for process in left]
        time.sleep(0.1)


@pytest.mark.triton
@pytest.mark.slow
def test_a_model_is_tuned_locked_and_built_and_resuming_measures_only_what_is_missing(p: ProjectFolder):
    first = p.run("tune", "--trials", "1", "--output", "json")
    assert first.exit_code == 0, first.stderr
    assert len(trial_lines(first.stderr)) == 1
    document = json.loads(first.stdout)
    assert (document["schema_version"], document["slo_met"]) == (1, True)
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    assert decision.baseline.measurement.requests >= 1000
    assert (decision.trials, decision.candidates) == (1, 2)
    assert decision.engine.server_cores
    assert p.path("build/cpu/mlp/config.pbtxt").exists()
    assert p.run("build", "--check").exit_code == 0

    again = p.run("tune", "--trials", "1")
    assert (again.exit_code, trial_lines(again.stderr)) == (0, [])

    more = p.run("tune", "--trials", "9")
    assert more.exit_code == 0, more.stderr
    assert [line.split()[1] for line in trial_lines(more.stderr)] == ["2/2"]
    assert "1 trials were finished before" in more.stderr
    assert "search ended: 2 trials are finished" in more.stderr
    assert_runs_are_in_mlflow(p)
    assert_all_gone(p.folder)


def assert_runs_are_in_mlflow(p: ProjectFolder) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{p.path('.tritonc/mlflow.db')}")
    runs = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    kinds = [run.data.tags["tritonc.kind"] for run in runs]
    assert (kinds.count("study"), kinds.count("trial")) == (1, 2)
    assert all(run.info.status == "FINISHED" for run in runs)


@pytest.mark.triton
@pytest.mark.slow
def test_a_killed_server_fails_its_trial_and_the_run_ends_well(p: ProjectFolder):
    with running(p, "--trials", "2") as tune:
        tune.wait_for(lambda line: line.startswith("trial 1/2"))
        time.sleep(1)  # into the middle of the next trial
        tune.server().send_signal(signal.SIGKILL)
        assert tune.end() == 0, "".join(tune.lines)
    lines = trial_lines("".join(tune.lines))
    assert len(lines) == 2
    assert "failed, server_crashed" in lines[1]
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    assert (decision.trials, decision.failed_trials, decision.slo_met) == (2, 1, True)
    assert_all_gone(p.folder)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_tritonc_leaves_nothing_running_and_keeps_finished_trials(
    p: ProjectFolder, number: signal.Signals
):
    with running(p, "--trials", "2") as tune:
        tune.wait_for(lambda line: line.startswith("trial 1/2"))
        time.sleep(1)  # into the middle of the next trial
        tune.process.send_signal(number)
        code = tune.end(GONE_S)
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    assert_all_gone(p.folder)
    estimate = json.loads(p.run("tune", "--dry-run", "--output", "json").stdout)
    assert estimate["tasks"][0]["finished"] >= 1
    assert estimate["tasks"][0]["candidates"] == 2
