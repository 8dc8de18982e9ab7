"""A server that is slow to start or to load is told from one that hangs, on a real tritonserver."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests import models
from tests.tuner.conftest import Served, config_pbtxt
from tritonc.schemas.errors import EngineError
from tritonc.tuner.engines import Server, ServerFailure, engine_named, starting
from tritonc.tuner.engines import server as server_module
from tritonc.tuner.engines.embedded import EmbeddedEngine
from tritonc.tuner.engines.local import LocalEngine

pytestmark = pytest.mark.triton


def local_engine(folder: Path, before: str) -> LocalEngine:
    """An engine whose server does something first."""
    installation = EmbeddedEngine().installation()
    program = folder / "tritonserver"
    program.write_text(
        f"#!/bin/sh\nexport LD_LIBRARY_PATH='{installation.env['LD_LIBRARY_PATH']}'\n"
        f"export PATH='{installation.env['PATH']}'\n"
        f'{before}\nexec {installation.binary} "$@"\n'
    )
    program.chmod(0o755)
    return LocalEngine(program, installation.backends)


LISTENS = f"""exec {sys.executable} -c "
import socket, sys, time
ports = [int(word.partition('=')[2]) for word in sys.argv if '-port=' in word]
held = [socket.create_server(('127.0.0.1', port)) for port in ports]
time.sleep(600)" "$@"
"""


@pytest.mark.parametrize(
    ("before", "state", "said", "hint"),
    [
        (
            "sleep 600",
            lambda s: psutil.Process(s.pid).children(),
            "was still starting",
            "run the command again",
        ),
        (
            "kill -STOP $$",
            lambda s: psutil.Process(s.pid).status() == psutil.STATUS_STOPPED,
            "had been stopped by a signal",
            "",
        ),
        (
            LISTENS,
            lambda s: all(map(starting._accepts, (s.http_address, s.grpc_address, s.metrics_address))),
            "took connections and answered nothing",
            "",
        ),
    ],
    ids=["slow", "stopped", "silent"],
)
def test_why_a_server_is_not_ready_in_time_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    state: Callable[[Server], object],
    said: str,
    hint: str,
):
    def at_the_deadline(server: Server, _name: str) -> bool:
        deadline = time.monotonic() + 60
        while not state(server):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return False

    monkeypatch.setattr(starting, "_await_ready", at_the_deadline)
    (tmp_path / "repository").mkdir()
    serving = local_engine(tmp_path, before).serve(tmp_path / "repository", log=tmp_path / "server.log")
    with pytest.raises(EngineError) as caught, serving:
        pass
    assert caught.value.what.startswith(f"tritonserver {said} after 60 s: ")
    assert hint in caught.value.hint
    assert caught.value.hint.endswith(f"the whole log is {tmp_path / 'server.log'}")
    running = [each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])]
    assert [words for words in running if str(tmp_path) in " ".join(words)] == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "repository").mkdir()
    with engine_named("embedded").serve(tmp_path / "repository", log=tmp_path / "server.log") as started:
        yield started


def put(server: Server) -> str:
    """A model that waits to be loaded."""
    proto = models.mlp()
    return Served(server).put(proto, config_pbtxt(proto, max_batch_size=4))


def failure_of_load(server: Server, model: str, timeout_s: float) -> tuple[str, str]:
    with pytest.raises(ServerFailure) as caught:
        server.load(model, timeout_s)
    return caught.value.failure.reason, caught.value.failure.detail


def test_a_server_that_hangs_while_it_loads_is_not_waited_for_until_the_limit_of_loads(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "_HUNG_S", 1.0)
    model = put(server)
    os.kill(server.pid, signal.SIGSTOP)
    reason, detail = failure_of_load(server, model, 100_000)
    assert reason == "server_hung"
    assert detail.startswith(f"the server answered nothing for 1 s while it was to load {model}")


@contextmanager
def slow_to_load(folder: Path, gate: Path) -> Iterator[Server]:
    """A server whose models load only once a file is there."""
    installation = EmbeddedEngine().installation()
    backends = folder / "backends"
    shutil.copytree(installation.backends / "onnxruntime", backends / "onnxruntime")
    (backends / "python").symlink_to(installation.backends / "python")
    source = backends / "onnxruntime" / "model.py"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.02)\n"
    source.write_text(source.read_text().replace("import os\n", wait, 1))
    engine = LocalEngine(local_engine(folder, ":").installation().binary, backends)
    (folder / "repository").mkdir()
    with engine.serve(folder / "repository", log=folder / "server.log") as started:
        yield started


def test_a_model_that_loads_for_longer_than_a_server_may_be_silent_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "_HUNG_S", 0.5)
    monkeypatch.setattr(server_module, "_HEALTH_EVERY_S", 0.1)
    gate, checks, is_live = tmp_path / "gate", [], server_module.TritonServer._is_live

    def checked(self: server_module.TritonServer, _timeout_s: float) -> bool:
        checks.append(is_live(self, 60.0))  # a busy machine may be slow
        if len(checks) == 20:
            gate.touch()
        return checks[-1]

    monkeypatch.setattr(server_module.TritonServer, "_is_live", checked)
    with slow_to_load(tmp_path, gate) as server:
        server.load(put(server), 250)
    assert len(checks) >= 20
    assert all(checks)


def test_a_model_that_loads_for_too_long_is_told_from_a_server_that_hangs(server: Server):
    model = put(server)
    began = time.monotonic()

    reason, detail = failure_of_load(server, model, 0.01)
    assert reason == "load_timeout"
    assert detail.startswith(f"{model} did not load within 0.01 s")
    assert time.monotonic() - began < 60
