"""`tritonc tune` on a real tritonserver, where something goes wrong: it ends well, or goes on as it was."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import resource
import shutil
import signal
import socket
import sqlite3
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.running import (
    ANNOUNCED,
    PATIENCE_S,
    Running,
    assert_all_gone,
    running,
    trial_lines,
    wait_until,
)
from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.schemas.lock_file import read_lock
from tritonc.tuner.engines import engine_named, server, starting
from tritonc.tuner.engines.embedded import EmbeddedEngine
from tritonc.tuner.engines.starting import Installation

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.usefixtures("brief")]

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  mlp:
    source: models/mlp.onnx
    max_batch_size: 4
    workload: {arrival: closed, max_concurrency: 2}
    slo: {p99_latency_ms: 5000}
targets:
  cpu:
    device: cpu
    cores: 1
    backends:
      onnxruntime: {accelerators: [none]}
search:
  instance_count: 1
  max_batch_size: [1, 2, 4]
  dynamic_batching: false
  intra_op_thread_count: 1
"""


@pytest.fixture
def p(project: Any, monkeypatch: pytest.MonkeyPatch) -> ProjectFolder:
    """A project of three equally fast candidates, with its own folder for temporary files."""
    folder: ProjectFolder = project({"spec.yaml": SPEC, "models/mlp.onnx": mlp()})
    folder.path("tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder.path("tmp")))
    return folder


def announced(
    p: ProjectFolder, trials: int, *args: str, **env: str
) -> contextlib.AbstractContextManager[Running]:
    """A tune of that many random candidates that says every event."""
    return running(p, "--sampler", "random", "--trials", str(trials), *args, program=ANNOUNCED, env=env)


def is_event(name: str) -> Any:
    return lambda line: line == f"event {name}\n"


WARM_UP = is_event("LoadStarted warm-up")
TRIAL = is_event("TrialStarted")


def finished(p: ProjectFolder) -> int:
    """How many trials the study has."""
    told = p.run("tune", "--sampler", "random", "--dry-run", "--output", "json")
    assert told.exit_code == 0, told.stderr
    return int(json.loads(told.stdout)["tasks"][0]["finished"])


def logged(p: ProjectFolder, uri: str | None = None) -> list[str]:
    """The status of every trial in MLflow."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri or f"sqlite:///{p.path('.tritonc/mlflow.db')}")
    experiment = client.get_experiment_by_name("test")
    runs = client.search_runs([experiment.experiment_id])
    return sorted(run.info.status for run in runs if run.data.tags["tritonc.kind"] == "trial")


def assert_ended_well(p: ProjectFolder, tune: Running) -> None:
    assert tune.end() == 0, tune.text
    assert p.path("build/cpu/mlp/config.pbtxt").exists()
    assert_clean(p)


def assert_clean(p: ProjectFolder) -> None:
    assert_all_gone(p.folder)
    assert list(p.path("tmp").iterdir()) == []


def loads(tune: Running) -> int:
    """How many models its servers have begun to load."""
    return tune.server_log.read_text().count("loading: mlp")


@contextmanager
def disturbed(p: ProjectFolder) -> Iterator[tuple[Running, Callable[[int], None]]]:
    """A tune of three candidates, and what ends the wait before the steps of trial 2, or of trial 3."""
    gates = p.path("gates")
    gates.mkdir()
    (gates / "1").touch()
    with announced(p, 3, TEST_GATES=str(gates)) as tune:
        tune.wait_for(is_event("TrialFinished"))
        yield tune, lambda trial: (gates / str(trial)).touch()


def test_servers_and_instances_that_are_killed_fail_a_trial_or_nothing(p: ProjectFolder):
    with disturbed(p) as (tune, open_gate):
        tune.wait_for(WARM_UP)
        tune.stubs()[-1].kill()
        open_gate(2)
        tune.wait_for(is_event("TrialFinished"))
        tune.wait_for(WARM_UP)
        tune.server().kill()
        open_gate(3)
        tune.wait_for(is_event("Confirming"))
        tune.wait_for(is_event("ServerStarted"))
        tune.server().kill()
        assert_ended_well(p, tune)
    lines = trial_lines(tune.text)
    # What Triton makes of it is a matter of luck: errors, silence, or its own end.
    assert re.search("failed, (request_errors|server_hung|server_crashed): ", lines[1]), tune.text
    assert "failed, server_crashed: " in lines[2], tune.text
    assert "could not be measured again" not in tune.text
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    assert (decision.trials, decision.failed_trials, decision.slo_met) == (3, 2, True)
    assert logged(p) == ["FAILED", "FAILED", "FINISHED"]


def test_a_server_that_hangs_in_a_load_or_in_a_window_fails_its_trial(p: ProjectFolder):
    with disturbed(p) as (tune, open_gate):
        tune.wait_for(WARM_UP)
        tune.server().suspend()
        open_gate(2)
        tune.wait_for(is_event("TrialFinished"))
        before = loads(tune)
        tune.wait_for(TRIAL)
        wait_until(lambda: loads(tune) > before)
        tune.server().suspend()
        open_gate(3)
        assert_ended_well(p, tune)
    lines = trial_lines(tune.text)
    assert all("failed, server_hung: " in line for line in lines[1:]), tune.text
    assert tune.text.count("the server was given up and started again") == 2
    assert logged(p) == ["FAILED", "FAILED", "FINISHED"]


def own_tritonserver(p: ProjectFolder, installation: Installation, *, starts_in_s: int = 0) -> Path:
    """A tritonserver as a user has it, which finds its libraries by itself."""
    program = p.write(
        "own-tritonserver",
        f"#!/bin/sh\nexport LD_LIBRARY_PATH='{installation.env['LD_LIBRARY_PATH']}'\n"
        f"export PATH='{installation.env['PATH']}'\nsleep {starts_in_s}\nexec {installation.binary} \"$@\"\n",
    )
    program.chmod(0o755)
    return program


def test_a_slow_start_and_a_slow_load_are_waited_for_and_a_clock_that_jumps_changes_nothing(
    p: ProjectFolder,
):
    installation, gate = EmbeddedEngine().installation(), p.path("gate")
    program = own_tritonserver(p, installation, starts_in_s=2)
    shutil.copytree(installation.backends / "onnxruntime", p.path("backends/onnxruntime"))
    p.path("backends/python").symlink_to(installation.backends / "python")
    source = p.path("backends/onnxruntime/model.py")
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.02)\n"
    source.write_text(source.read_text().replace("import os\n", wait, 1))
    env = {
        "TRITONC_TRITONSERVER": str(program),
        "TRITONC_TRITONSERVER_BACKENDS": str(p.path("backends")),
        "TEST_CLOCK_JUMPS": "-3600",
    }
    with announced(p, 1, "--engine", "local", **env) as tune:
        tune.wait_for(TRIAL)
        time.sleep(server._HUNG_S + 2)  # a load that lasts longer than a server may be silent
        gate.touch()
        assert_ended_well(p, tune)
    [line] = trial_lines(tune.text)
    assert "failed" not in line
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    measured = decision.chosen.measurement
    assert measured.load_s > server._HUNG_S
    assert measured.duration_s < 60
    assert measured.latency_ms["p99"].value < 60_000


STAND_IN = """\
#!{python}
import json, os, signal, sys
from pathlib import Path

if "--version" in sys.argv:
    print("Perf Analyzer Version 2.43.0 (commit 1)")
    sys.exit(0)
count = Path(__file__).with_suffix(".count")
number = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(number))
does = {does}
kind = does[number - 1] if number <= len(does) else "{then}"
export = Path(sys.argv[sys.argv.index("--profile-export-file") + 1])
if kind == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif kind == "nonsense":
    export.write_text('{{"experiments": [{{"requests": 7}}]}}')
elif kind == "other times":
    request = {{"timestamp": 5, "response_timestamps": [3]}}
    export.write_text(json.dumps({{"experiments": [{{"requests": [request], "window_boundaries": [9, 1]}}]}}))
else:
    os.execve("{real}", ["{real}", *sys.argv[1:]], {{**os.environ, "LD_LIBRARY_PATH": "{libraries}"}})
"""


def stand_in(p: ProjectFolder, *does: str, then: str) -> Path:
    """A perf_analyzer that fails now and then: what it does when run for the first times, and later."""
    real, env = engine_named("embedded").perf_analyzer()
    libraries = env["LD_LIBRARY_PATH"]
    text = STAND_IN.format(python=sys.executable, does=list(does), then=then, real=real, libraries=libraries)
    program = p.write(f"{then}-perf_analyzer.py", text)
    program.chmod(0o755)
    return program


def test_a_load_generator_that_is_killed_or_writes_nonsense_is_no_fault_of_a_candidate(p: ProjectFolder):
    now_and_then = stand_in(p, "nonsense", "real", "killed", "real", "other times", then="real")
    done = p.run("tune", "--sampler", "random", "--trials", "1", "--perf-analyzer", now_and_then)
    assert done.exit_code == 0, done.stderr
    assert "failed" not in trial_lines(done.stderr)[0]
    for fault, said in (
        ("nonsense", "a report that cannot be used: "),
        ("killed", "ended by signal 9 (Killed)"),
    ):
        always = stand_in(p, then=fault)
        ended = p.run("tune", "--sampler", "random", "--trials", "2", "--perf-analyzer", always)
        assert ended.exit_code == 3, ended.stderr
        assert "error: there were two windows without a result; perf_analyzer " in ended.stderr
        assert said in ended.stderr
        assert "finished trials are kept" in ended.stderr
        assert finished(p) == 1
        assert_clean(p)
    again = p.run("tune", "--sampler", "random", "--trials", "2")
    assert again.exit_code == 0, again.stderr
    assert "1 trials were finished before" in again.stderr
    assert set(logged(p)) == {"FINISHED"}  # more than two where the machine changed meanwhile


def test_nothing_is_fetched_where_server_and_load_generator_are_the_users_own(
    p: ProjectFolder, monkeypatch: pytest.MonkeyPatch
):
    installation, load_generator = EmbeddedEngine().installation(), stand_in(p, then="real")
    monkeypatch.setenv("TRITONC_TRITONSERVER", str(own_tritonserver(p, installation)))
    monkeypatch.setenv("TRITONC_TRITONSERVER_BACKENDS", str(installation.backends))
    monkeypatch.setenv("TRITONC_CACHE_DIR", str(p.path("cache")))
    monkeypatch.setenv("TRITONC_BUNDLE_WHEELS", str(p.path("no-wheels")))
    done = p.run("tune", "--engine", "local", "--trials", "1", "--perf-analyzer", load_generator)
    assert done.exit_code == 0, done.stderr
    assert not p.path("cache/bundle").exists()


def test_ports_that_others_took_are_said(p: ProjectFolder, monkeypatch: pytest.MonkeyPatch):
    free_ports = starting._free_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        rooms = [(port, 1, 2), (0, port, 2), (0, 1, port)]

        def ports(count: int) -> tuple[int, ...]:
            room = rooms[0]
            rooms.append(rooms.pop(0))
            free = free_ports(count)
            return tuple(port if each == port else free[place] for place, each in enumerate(room))

        monkeypatch.setattr(starting, "_free_ports", ports)
        ended = p.run("tune", "--trials", "1")
    assert ended.exit_code == 3, ended.stderr
    assert "error: 5 times other processes took the ports meant for tritonserver" in ended.stderr
    assert "see what opens and closes so many local ports" in ended.stderr
    assert_clean(p)


def test_what_a_killed_run_left_of_a_window_goes_with_the_next_one(p: ProjectFolder):
    def windows() -> list[Path]:
        return list(p.path(".tritonc").rglob("window-*"))

    with announced(p, 1) as tune:
        wait_until(windows)
        tune.process.kill()
        tune.process.wait()
    assert_clean(p)
    assert windows()
    again = p.run("tune", "--sampler", "random", "--trials", "1")
    assert again.exit_code == 0, again.stderr
    assert windows() == []
    assert_clean(p)


@contextmanager
def full_disk(tune: Running) -> Iterator[None]:
    """Nothing that `tune` writes to a file takes any more, as on a full disk."""
    hard = resource.prlimit(tune.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(tune.process.pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(tune.process.pid, resource.RLIMIT_FSIZE, (hard, hard))


def test_a_locked_or_full_storage_keeps_what_it_has_and_the_next_run_goes_on(p: ProjectFolder):
    with announced(p, 1, TEST_HOLD="log:1") as tune:
        tune.wait_for(lambda line: line == "held at log\n")
        with full_disk(tune):
            tune.go_on()
            tune.wait_for(lambda line: line.startswith("warning: MLflow at sqlite:"))
        assert_ended_well(p, tune)
    assert tune.text.count("warning: MLflow") == 1
    assert (finished(p), logged(p)) == (1, [])
    again = p.run("tune", "--sampler", "random", "--trials", "1")
    assert (again.exit_code, trial_lines(again.stderr)) == (0, []), again.stderr
    assert logged(p) == ["FINISHED"]

    with announced(p, 2, TEST_HOLD="store:1") as tune:
        tune.wait_for(lambda line: line == "held at store\n")
        with contextlib.closing(sqlite3.connect(p.path(".tritonc/optuna.db"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            tune.go_on()
            assert tune.end() == 3, tune.text
    assert "database is locked" in tune.text
    assert "let no other program use it" in tune.text
    assert_clean(p)
    assert finished(p) == 1

    with announced(p, 2, TEST_HOLD="store:1") as tune:
        tune.wait_for(lambda line: line == "held at store\n")
        with full_disk(tune):
            tune.go_on()
            assert tune.end() == 3, tune.text
    assert "error: the study in " in tune.text
    assert "free some space" in tune.text
    assert_clean(p)
    assert (finished(p), logged(p)) == (1, ["FINISHED"])
    assert p.run("tune", "--sampler", "random", "--trials", "2").exit_code == 0
    assert (finished(p), set(logged(p))) == (2, {"FINISHED"})


def quiet_port() -> int:
    """A port that no program gets by chance: none of those that the system hands out."""
    for port in range(20000 + time.monotonic_ns() % 10000, 32000):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[psutil.Popen]:
    """A real MLflow server that keeps its runs in the folder."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow-server.db'}"]
    command += ["--artifacts-destination", str(folder / "mlflow-artifacts")]
    with (folder / "mlflow-server.log").open("ab") as log:
        started = psutil.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: started.poll() is not None or answers(port))
        assert started.poll() is None, (folder / "mlflow-server.log").read_text()
        yield started
    finally:
        end_family(started)


def end_family(process: psutil.Popen) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=PATIENCE_S)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def test_an_mlflow_server_that_goes_stops_nothing_and_gets_everything_when_it_is_back(
    p: ProjectFolder, monkeypatch: pytest.MonkeyPatch
):
    port = quiet_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with mlflow_server(p.folder, port) as mlflow, announced(p, 1, TEST_HOLD="log:1") as tune:
        tune.wait_for(lambda line: line == "held at log\n")
        end_family(mlflow)
        tune.go_on()
        assert tune.end() == 0, tune.text
    assert tune.text.count(f"warning: MLflow at {uri} does not work (") == 1
    unreachable = p.run("tune", "--sampler", "random", "--trials", "1")
    assert unreachable.exit_code == 0, unreachable.stderr
    assert unreachable.stderr.count(f"warning: MLflow at {uri} does not work (") == 1
    with mlflow_server(p.folder, port):
        again = p.run("tune", "--sampler", "random", "--trials", "1")
        assert (again.exit_code, trial_lines(again.stderr)) == (0, []), again.stderr
        assert "warning" not in again.stderr
        assert logged(p, uri) == ["FINISHED"]


def interrupted(tune: Running) -> None:
    tune.interrupt()
    assert tune.end() == 130, tune.text
    assert "finished trials are kept" in tune.text


def test_ctrl_c_while_the_engine_is_fetched_leaves_nothing(p: ProjectFolder, monkeypatch: pytest.MonkeyPatch):
    for name in ("TRITONC_BUNDLE_WHEELS", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that never answers
        nowhere = {
            "TRITONC_CACHE_DIR": str(p.path("cache")),
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple",
        }
        with announced(p, 1, **nowhere) as tune:
            tune.wait_for(lambda line: line.startswith("downloading "))
            interrupted(tune)
    assert_all_gone(p.folder)
    assert {path.name for path in p.path("cache").rglob("*")} == {"bundle", ".lock"}


def test_ctrl_c_at_every_stage_keeps_what_is_finished_and_leaves_nothing(p: ProjectFolder):
    with announced(p, 1, TEST_HOLD="store:1") as tune:
        tune.wait_for(TRIAL)
        wait_until(lambda: tune.server_log.exists() and loads(tune))
        interrupted(tune)
    assert_clean(p)
    for event in ("LoadStarted warm-up", "LoadStarted step"):
        with announced(p, 1, TEST_HOLD="store:1") as tune:
            tune.wait_for(is_event(event))
            interrupted(tune)
        assert_clean(p)
    interrupted_at(p, "verify:1", done=0)
    interrupted_at(p, "end:1", done=1)
    interrupted_at(p, "log:1", done=1)
    with announced(p, 1, TEST_HOLD="lock:1") as tune:
        tune.wait_for(is_event("Confirming"))
        interrupted(tune)
    assert_clean(p)
    interrupted_at(p, "lock:1", done=1)
    assert not p.path("spec.lock.yaml").exists()
    interrupted_at(p, "build:1", done=1)
    assert p.path("spec.lock.yaml").exists()
    assert not p.path("build").exists()
    again = p.run("tune", "--sampler", "random", "--trials", "1")
    assert (again.exit_code, trial_lines(again.stderr)) == (0, []), again.stderr
    assert p.path("build/cpu/mlp/config.pbtxt").exists()
    assert logged(p) == ["FINISHED"]


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)])
def test_ctrl_c_again_and_again_breaks_nothing(p: ProjectFolder, numbers: tuple[signal.Signals, ...]):
    with announced(p, 1, TEST_HOLD="store:1") as tune:
        tune.wait_for(is_event("LoadStarted step"))
        for number in itertools.cycle(numbers):
            tune.process.send_signal(number)
            time.sleep(0.05)
            if tune.process.poll() is not None:
                break
        assert tune.end() == 130, tune.text
    assert "finished trials are kept" in tune.text
    assert "Traceback" not in tune.text
    assert_clean(p)


def interrupted_at(p: ProjectFolder, stage: str, *, done: int) -> None:
    """Ctrl-C when a stage is about to begin; `done` trials are kept."""
    with announced(p, 1, TEST_HOLD=stage) as tune:
        tune.wait_for(lambda line: line == f"held at {stage.partition(':')[0]}\n")
        interrupted(tune)
    assert_clean(p)
    assert finished(p) == done
