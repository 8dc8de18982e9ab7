from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests import models
from tests.tuner.conftest import Served, config_pbtxt, parameter, run_onnxruntime, uniform
from tritonc.schemas.errors import EngineError, TritoncError
from tritonc.tuner.bundle import fetch_bundle
from tritonc.tuner.engines import (
    ENGINE_NAMES,
    Engine,
    Server,
    ServerFailure,
    Statistics,
    engine_named,
    starting,
)
from tritonc.tuner.engines import server as server_module
from tritonc.tuner.engines.embedded import EmbeddedEngine, assemble_backends, backend_names
from tritonc.tuner.engines.local import LocalEngine
from tritonc.tuner.process import Child
from tritonc.tuner.stand import _yield_to_others

pytestmark = pytest.mark.triton


@contextmanager
def serving(engine: Engine, folder: Path, **options: object) -> Iterator[Server]:
    (folder / "repository").mkdir(exist_ok=True)
    with engine.serve(folder / "repository", log=folder / "server.log", **options) as server:  # type: ignore[arg-type]
        yield server


def left_of(server: Server) -> list[str]:
    """Processes of a server's session and shared memory of its name that are still there."""
    name = server.log.read_text().partition("server_id")[2].split("|")[1].strip()
    processes = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == server.pid and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(f"{process.pid} {process.name()}")
        except (OSError, psutil.Error):
            continue
    return processes + [p.name for p in Path("/dev/shm").glob(f"{name}*")]


def wait_until(condition: object, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def counted(server: Server, model: str, requests: int) -> Statistics:
    """Statistics once this many requests are in them."""
    assert wait_until(lambda: server.statistics(model).requests >= requests, 5)
    return server.statistics(model)


class EngineContract:
    """What every engine has to pass; a test class of its own supplies the `engine` fixture."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("contract")

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, engine: Engine, folder: Path) -> Iterator[Served]:
        with serving(engine, folder) as server:
            yield Served(server)

    def test_describes_the_server_that_would_serve(self, engine: Engine) -> None:
        description = engine.describe()
        assert description.triton == "2.51.0"
        assert description.release == "24.10"

    def test_brings_a_perf_analyzer_that_runs(self, engine: Engine) -> None:
        binary, env = engine.perf_analyzer()
        done = subprocess.run([binary, "--version"], env=env, capture_output=True, text=True, timeout=20)
        assert "Version 2.43.0" in done.stdout + done.stderr

    def test_loads_answers_counts_and_unloads(self, shared: Served) -> None:
        proto = models.mlp()
        server = shared.server
        name = shared.load(proto, config_pbtxt(proto, max_batch_size=8))
        x = uniform(3, 4)
        before = server.statistics(name)
        assert np.array_equal(shared.infer(name, x=x)["y"], run_onnxruntime(proto, x=x)[0])
        done = counted(server, name, 1).since(before)
        assert (done.requests, done.inferences, done.executions, done.failed_requests) == (1, 3, 1, 0)
        assert done.compute_infer_ns > 0
        assert server.alive()
        assert server.responsive()
        server.unload(name)
        with pytest.raises(Exception, match=r"(?i)unknown model|not (found|ready)|unavailable"):
            shared.infer(name, x=x)

    def test_serves_the_files_as_they_are_at_the_next_load(self, shared: Served) -> None:
        first, second = models.mlp(seed=1), models.mlp(seed=9)
        name = shared.load(first, config_pbtxt(first, max_batch_size=8))
        x = uniform(3, 4)
        shared.server.unload(name)
        (shared.server.repository / name / "1" / "model.onnx").write_bytes(second.SerializeToString())
        shared.server.load(name)
        assert np.array_equal(shared.infer(name, x=x)["y"], run_onnxruntime(second, x=x)[0])

    def test_tells_memory_and_metrics(self, shared: Served) -> None:
        proto = models.mlp()
        before = shared.server.memory_bytes()
        name = shared.load(proto, config_pbtxt(proto, max_batch_size=8))
        assert 5 * 2**20 < shared.server.memory_bytes() - before < 500 * 2**20
        x = uniform(1, 4)
        shared.infer(name, x=x)
        counted(shared.server, name, 1)
        metrics = shared.server.metrics()
        assert metrics[f'nv_inference_count{{model="{name}",version="1"}}'] == 1, sorted(metrics)
        shared.server.unload(name)
        assert wait_until(lambda: shared.server.memory_bytes() < before + 5 * 2**20, 5)

    def test_tells_gpu_memory_only_where_there_is_a_gpu(self, shared: Served) -> None:
        memory = shared.server.gpu_memory_bytes()
        assert memory is None or memory >= 0

    def test_a_model_that_is_not_there_is_a_failed_load(self, shared: Served) -> None:
        with pytest.raises(ServerFailure) as caught:
            shared.server.load("nowhere")
        assert caught.value.failure.reason == "load_failed"

    def test_listens_on_loopback_only(self, shared: Served) -> None:
        process = psutil.Process(shared.server.pid)
        listening = {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}

    def test_runs_on_the_cores_it_is_given(self, engine: Engine, tmp_path: Path) -> None:
        core = max(os.sched_getaffinity(0))
        with serving(engine, tmp_path, cores=(core,)) as server:
            served = Served(server)
            proto = models.conv()
            name = served.load(proto, config_pbtxt(proto, max_batch_size=8))
            served.infer(name, image=uniform(8, 3, 64, 64))
            processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            threads = [int(t.name) for p in processes for t in Path(f"/proc/{p.pid}/task").iterdir()]
            assert len(processes) > 1
            assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset({core})}

    def test_leaving_the_context_leaves_nothing_whatever_happened_inside(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        proto = models.mlp()
        with contextlib.suppress(ZeroDivisionError), serving(engine, tmp_path) as server:
            Served(server).load(proto, config_pbtxt(proto, max_batch_size=8))
            assert len(left_of(server)) > 2
            raise ZeroDivisionError
        assert left_of(server) == []
        assert not server.alive()
        assert not server.responsive()

    def test_the_folders_of_its_python_backends_go_too(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are in /tmp, where servers of other tests have theirs: here each load makes one elsewhere."""
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        made = iter(
            [["python_env_own001"], ["python_env_other1", "python_env_other2"], ["python_env_filled"]]
        )
        control = server_module.TritonServer._control

        def loads(server: server_module.TritonServer, verb: str, *rest: Any) -> None:
            for name in next(made) if verb == "load" else ():
                (scratch / name).mkdir()
            control(server, verb, *rest)

        monkeypatch.setattr(server_module, "_SCRATCH", scratch)
        monkeypatch.setattr(server_module.TritonServer, "_control", loads)
        proto = models.mlp()
        with serving(engine, tmp_path) as server:
            served = Served(server)
            for _ in range(3):
                served.load(proto, config_pbtxt(proto, max_batch_size=8))
            (scratch / "python_env_filled" / "somebody's").touch()
        left = {folder.name for folder in scratch.iterdir()}
        assert left == {"python_env_other1", "python_env_other2", "python_env_filled"}

    def test_a_killed_server_is_noticed_at_once_and_its_stubs_go(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        with serving(engine, tmp_path) as server:
            served = Served(server)
            proto = models.mlp()
            name = served.load(proto, config_pbtxt(proto, max_batch_size=8))
            os.kill(server.pid, signal.SIGKILL)
            assert wait_until(lambda: not server.alive(), 0.5)
            assert not server.responsive()
            with pytest.raises(ServerFailure) as caught:
                server.load(name)
            assert caught.value.failure.reason == "server_crashed"
            assert "exit code -9" in caught.value.failure.detail
            assert wait_until(lambda: left_of(server) == [], 5)

    def test_a_stopped_server_does_not_respond_and_is_still_removed(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        with serving(engine, tmp_path) as server:
            assert server.responsive()
            os.kill(server.pid, signal.SIGSTOP)
            assert wait_until(lambda: not server.responsive(0.5), 5)
            assert server.alive()
            with pytest.raises(ServerFailure) as caught:
                server.load("mlp", timeout_s=0.5)
            assert caught.value.failure.reason == "server_hung"
            left = time.monotonic()
        assert time.monotonic() - left < 5
        assert left_of(server) == []

    def test_a_wrong_argument_says_the_command_and_the_end_of_the_log(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        with (
            pytest.raises(EngineError, match=r"(?s)exit code.*--no-such-flag.*unrecognized option") as caught,
            serving(engine, tmp_path, args=["--no-such-flag"]),
        ):
            pass
        assert str(tmp_path / "server.log") in caught.value.hint

    def test_other_ports_are_tried_when_someone_took_one(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free_ports = starting._free_ports
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            answers = iter([(free_ports(2)[0], taken.getsockname()[1], free_ports(1)[0]), free_ports(3)])
            monkeypatch.setattr(starting, "_free_ports", lambda _: next(answers))
            with serving(engine, tmp_path) as server:
                assert server.responsive()
            monkeypatch.setattr(starting, "_PORT_ATTEMPTS", 2)
            answers = iter([(taken.getsockname()[1], *free_ports(2))] * 2)
            with pytest.raises(EngineError, match="2 times"), serving(engine, tmp_path):
                pass


class TestEmbedded(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        return engine_named("embedded")

    def test_runtimes_are_named(self, engine: Engine) -> None:
        assert any(name.startswith("onnxruntime") for name in engine.describe().runtimes)

    def test_a_backend_argument_that_would_be_ignored_is_refused(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        argument = "--backend-config=onnxruntime,enable-global-threadpool=1"
        with pytest.raises(EngineError, match="does not honour"), serving(engine, tmp_path, args=[argument]):
            pass

    def test_backends_of_other_sources_are_assembled_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tritonc.tuner.engines import embedded

        bundle = fetch_bundle()
        first = assemble_backends(bundle, tmp_path)
        assert assemble_backends(bundle, tmp_path) == first
        (first / "complete").unlink()
        (first / "backends" / "onnxruntime" / "model.py").write_text("damaged")
        assert assemble_backends(bundle, tmp_path) == first
        assert "damaged" not in (first / "backends" / "onnxruntime" / "model.py").read_text()
        sources = tmp_path / "sources"
        (sources / "onnxruntime").mkdir(parents=True)
        (sources / "onnxruntime" / "model.py").write_text("# newer\n")
        monkeypatch.setattr(embedded, "_BACKENDS", sources)
        assert assemble_backends(bundle, tmp_path) != first


class TestLocal(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tmp_path_factory: pytest.TempPathFactory) -> Engine:
        installation = EmbeddedEngine().installation()
        program = tmp_path_factory.mktemp("local") / "tritonserver"
        exports = [
            f"export {key}={shlex.quote(installation.env[key])}" for key in ("LD_LIBRARY_PATH", "PATH")
        ]
        program.write_text("\n".join(["#!/bin/sh", *exports, f'exec {installation.binary} "$@"', ""]))
        program.chmod(0o755)
        return LocalEngine(program, installation.backends)


def test_metrics_that_break_off_are_a_fault_of_the_server(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        Child(["sleep", "60"], output=tmp_path / "x") as child,
    ):

        def answer_half() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnv_")

        thread = threading.Thread(target=answer_half)
        thread.start()
        port = listening.getsockname()[1]
        server = server_module.TritonServer(child, (1, 2, port), tmp_path / "x", tmp_path)
        with pytest.raises(ServerFailure) as caught:
            server.metrics()
        thread.join()
    assert caught.value.failure.reason == "server_hung"


def test_engines_go_by_name() -> None:
    assert [engine_named(name).name for name in ENGINE_NAMES] == ["embedded", "local"]
    with pytest.raises(TritoncError, match='did you mean "embedded"') as raised:
        engine_named("embeded")
    assert raised.value.exit_code == 2


def test_a_machine_without_tritonserver_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TRITONC_TRITONSERVER", raising=False)
    if not Path("/opt/tritonserver").exists():
        with pytest.raises(EngineError, match="TRITONC_TRITONSERVER"):
            LocalEngine().describe()
    with pytest.raises(EngineError, match="nowhere is not a program"):
        LocalEngine(tmp_path / "nowhere").describe()


def test_a_server_that_does_not_start_to_say_its_version_leaves_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\nseq 100\necho libcudart is missing\nexit 127\n")
    program.chmod(0o755)
    with pytest.raises(EngineError, match=r"(?s)ended with exit code 127.*libcudart is missing") as caught:
        LocalEngine(program, tmp_path).describe()
    log = Path(caught.value.hint.removeprefix("the whole log is "))
    assert len(log.read_text().splitlines()) == 101


def test_nothing_is_left_of_a_server_that_said_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    installation = EmbeddedEngine().installation()
    for key in ("LD_LIBRARY_PATH", "PATH"):
        monkeypatch.setenv(key, installation.env[key])
    assert LocalEngine(installation.binary, installation.backends).describe().triton == "2.51.0"
    assert list(tmp_path.iterdir()) == []


def test_the_backends_are_those_of_the_compiler() -> None:
    assert backend_names() == ["onnxruntime", "openvino"]


PARENT = """
import sys, time
from pathlib import Path
from tritonc.tuner.engines import engine_named
folder = Path(sys.argv[1])
with engine_named("embedded").serve(folder / "repository", log=folder / "server.log") as server:
    server.load("mlp")
    print(server.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill-9", "kill"])
def test_nothing_outlives_a_killed_tritonc(tmp_path: Path, number: int) -> None:
    proto = models.mlp()
    version = tmp_path / "repository" / "mlp" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(proto.SerializeToString())
    more = parameter("intra_op_thread_count", "1")
    (tmp_path / "repository" / "mlp" / "config.pbtxt").write_text(
        config_pbtxt(proto, max_batch_size=8, more=more)
    )
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        name = (tmp_path / "server.log").read_text().partition("server_id")[2].split("|")[1].strip()
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        assert len(family) == 2  # the server and its stub
        assert list(Path("/dev/shm").glob(f"{name}*"))
        parent.send_signal(number)
        parent.wait(10)
    assert psutil.wait_procs(family, timeout=15)[1] == []
    assert wait_until(lambda: not list(Path("/dev/shm").glob(f"{name}*")), 5)


def test_backends_are_assembled_once_by_processes_that_start_together(tmp_path: Path) -> None:
    bundle = fetch_bundle()
    code = (
        "import sys; from pathlib import Path; from tritonc.tuner.bundle import Bundle;"
        "from tritonc.tuner.engines.embedded import assemble_backends;"
        "print(assemble_backends(Bundle(Path(sys.argv[1])), Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(bundle.folder), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1
    assert len([path for path in (tmp_path / "backends").iterdir() if path.name != ".lock"]) == 1


def test_a_folder_whose_name_means_something_to_a_shell_is_served_and_runs_nothing(tmp_path: Path):
    folder = tmp_path / "a (b) $(touch ran) 'c' & d; e"
    folder.mkdir()
    proto = models.mlp()
    with serving(engine_named("embedded"), folder) as server:
        served = Served(server)
        name = served.put(proto, config_pbtxt(proto, max_batch_size=4))
        server.load(name)
        assert server.statistics(name).requests == 0
    assert not list(tmp_path.rglob("ran"))
    assert not Path("ran").exists()


def test_a_process_that_ends_while_it_is_looked_at_is_no_more_than_gone(monkeypatch: pytest.MonkeyPatch):
    def gone(path: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    server = object.__new__(server_module.TritonServer)
    server.pid = os.getpid()
    monkeypatch.setattr(os, "scandir", gone)
    assert server._processes() == [os.getpid()]
    _yield_to_others([os.getpid()])
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
