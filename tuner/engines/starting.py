"""Starting a tritonserver of ours: on free loopback ports, from a path that no shell can misread."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonc.schemas.errors import EngineError
from tritonc.tuner.engines import ServerFailure
from tritonc.tuner.engines.server import LOOPBACK, TritonServer, log_tail
from tritonc.tuner.process import Child

_log = logging.getLogger(__name__)

_PORT_ATTEMPTS = 5
_START_S = 60.0  # 0.3 s on an idle machine; the first start reads 130 MB from disk
_STUB_S = (
    3600  # a load's deadline is `load`'s alone: building a GPU engine takes longer than the default of 30 s
)
_POLL_S = 0.02
_ELSE_S = 10.0  # then a server whose ports cannot be seen is believed to have them
_PLAIN_PATH = re.compile(r"[\w./+,:@%-]+", re.ASCII)
_PORT_TAKEN = re.compile(r"already in use|Address in use|failed to bind|Failed to add port", re.IGNORECASE)
_SLOW = "was still starting"
_SLOW_HINT = "a busy machine or a slow disk needs longer the first time: run the command again"


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver that can be started.

    Attributes:
        binary: the tritonserver program.
        backends: folder with the backends, one folder each.
        env: the whole environment it needs.
    """

    binary: Path
    backends: Path
    env: Mapping[str, str]


def _free_ports(count: int) -> tuple[int, ...]:
    """Loopback ports that are free now; all bound at once, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return tuple(each.getsockname()[1] for each in sockets)


def _arguments(
    installation: Installation, repository: Path, ports: Sequence[int], name: str, extra: Sequence[str]
) -> list[str]:
    http, grpc, metrics = ports
    return [
        str(installation.binary),
        f"--id={name}",
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        "--strict-readiness=true",
        # What is measured must be what is written: an absent dynamic_batching block stays absent
        # (docs/onnxruntime_backend.md, trap 3), and no stub is started only to complete a configuration.
        "--disable-auto-complete-config",
        f"--backend-directory={installation.backends}",
        f"--backend-config=python,shm-region-prefix-name={name}-",
        f"--backend-config=python,stub-timeout-seconds={_STUB_S}",
        *(f"--http-address={LOOPBACK}", f"--http-port={http}"),
        *(f"--grpc-address={LOOPBACK}", f"--grpc-port={grpc}"),
        *(f"--metrics-address={LOOPBACK}", f"--metrics-port={metrics}"),
        "--exit-timeout-secs=1",
        *extra,
    ]


@contextlib.contextmanager
def running_server(
    installation: Installation,
    repository: Path,
    *,
    log: Path,
    cores: tuple[int, ...] = (),
    args: Sequence[str] = (),
) -> Iterator[TritonServer]:
    """A ready server for the length of the context.

    Raises:
        EngineError: it does not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    with _plain(repository) as plain:
        server = _start(installation, plain, log, cores, args)
        server.repository = repository
        try:
            yield server
        finally:
            server.close()


def is_plain(path: Path) -> bool:
    """Whether a shell leaves a path as it is."""
    return _PLAIN_PATH.fullmatch(str(path.absolute())) is not None


@contextlib.contextmanager
def _plain(repository: Path) -> Iterator[Path]:
    """A path to the repository that a shell leaves as it is.

    Triton's Python backend starts its stubs by `bash -c "exec … <path of the model> …"` without quoting, so a
    folder's name could run as a command.

    Raises:
        EngineError: the folder for temporary files has no such path either.
    """
    if is_plain(repository):
        yield repository
        return
    with tempfile.TemporaryDirectory(prefix="tritonc-repository-") as folder:
        if not is_plain(Path(folder)):
            raise EngineError(
                f"neither {repository} nor {folder} is a path that Triton's Python backend can use",
                "set TMPDIR to a folder without spaces and special characters",
            )
        link = Path(folder) / "repository"
        link.symlink_to(repository.absolute(), target_is_directory=True)
        yield link


def _start(
    installation: Installation, repository: Path, log: Path, cores: tuple[int, ...], args: Sequence[str]
) -> TritonServer:
    for _attempt in range(_PORT_ATTEMPTS):
        ports = _free_ports(3)
        name = f"tritonc-{uuid.uuid4().hex[:12]}"
        command = _arguments(installation, repository, ports, name, args)
        before = log.stat().st_size
        env = {**installation.env, "TRITONC_SERVER_ID": name}
        child = Child(command, output=log, env=env, cores=cores, shared_memory=f"{name}-")
        server = TritonServer(child, (ports[0], ports[1], ports[2]), log, repository)
        try:
            if _await_ready(server, name):
                return server
        except BaseException:
            server.close()
            raise
        code = child.poll()
        instead = _doing_instead(server) if code is None else ""
        server.close()
        with log.open("rb") as file:
            file.seek(before)
            said = file.read().decode(errors="replace")
        if not _PORT_TAKEN.search(said):
            why = f"{instead} after {_START_S:g} s" if code is None else f"ended with exit code {code}"
            said = said.partition("Usage: tritonserver")[0]  # 400 lines that follow a wrong argument
            last = "\n".join(said.splitlines()[-20:])
            hint = f"the whole log is {log}"
            if instead == _SLOW:
                hint = f"{_SLOW_HINT}; {hint}"
            raise EngineError(f"tritonserver {why}: {shlex.join(command)}\n{last}", hint)
        _log.info("another process took one of the ports %s; trying others", ports)
    raise EngineError(
        f"{_PORT_ATTEMPTS} times other processes took the ports meant for tritonserver:\n{log_tail(log)}",
        "see what opens and closes so many local ports, and try again",
    )


def _doing_instead(server: TritonServer) -> str:
    """What a server does that runs and is not ready in time."""
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in ("T", "t"):
            return "had been stopped by a signal"
    if all(_accepts(each) for each in server.addresses):
        return "took connections and answered nothing"
    return _SLOW


def _await_ready(server: TritonServer, name: str) -> bool:
    """Whether the server under this name is ready before the deadline; false as soon as it has ended."""
    deadline = time.monotonic() + _START_S
    accepted = None
    while server.alive() and time.monotonic() < deadline:
        # A TCP connection first: a gRPC channel that was refused once waits a second before it tries again.
        if not all(_accepts(address) for address in server.addresses):
            time.sleep(_POLL_S)
            continue
        accepted = accepted or time.monotonic()
        # Somebody else may be the one who accepts; tritonserver then ends, in a moment. One that was started
        # by a program that cannot be seen through goes on.
        if not server.has_all_ports() and time.monotonic() - accepted < _ELSE_S:
            time.sleep(_POLL_S)
            continue
        try:
            return server.metadata(deadline - time.monotonic())[0] == name and server.alive()
        except ServerFailure:
            return False
    return False


def _accepts(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False
