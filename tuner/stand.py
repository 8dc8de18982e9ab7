"""Where candidates are measured: one tritonserver with one repository, one candidate in it at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.output.writer import write_repository
from tritonc.compiler.project import Project
from tritonc.compiler.repository import compile_candidate
from tritonc.schemas.measurement import Failure
from tritonc.tuner.engines import Engine, Server, ServerFailure

_LOAD_S = {"cpu": 120.0, "gpu": 1800.0}
"""A model that loads for longer has failed: it takes seconds on a CPU, minutes where TensorRT builds."""
_SETTLE_S = 20.0
_POLL_S = 0.05
_GIVE_UP = frozenset({"load_timeout", "server_crashed", "server_hung", "out_of_memory"})
"""After these a server cannot be trusted with the next candidate."""


class Stand:
    """Serves one candidate after another without restarting the server, as long as that one is well.

    Use it as a context manager; leaving it stops the server.

    Args:
        project: candidates are compiled from it.
        engine: runs the server.
        folder: for the served repository and the server's log; made if absent.
        cores: the only cores the server may run on; empty for all.
        on_start: told when a server has been started, and whether that was a restart.
    """

    def __init__(
        self,
        project: Project,
        engine: Engine,
        folder: Path,
        *,
        cores: tuple[int, ...],
        on_start: Callable[[bool], None],
    ) -> None:
        self.folder = folder
        self._project = project
        self._engine = engine
        self._cores = cores
        self._on_start = on_start
        self._repository = folder / "repository"
        self._log = folder / "server.log"
        self._stack = ExitStack()
        self._server: Server | None = None
        self._starts = 0
        self._forget()

    def _forget(self) -> None:
        self._loaded: Candidate | None = None
        self._loaded_s = 0.0
        self._models: set[str] = set()
        self._leaving: frozenset[int] = frozenset()

    def start(self) -> Server:
        """The running server, started where there is none.

        Raises:
            EngineError: it cannot be started.
        """
        if self._server is not None and not self._server.responsive():
            self.give_up()  # it ended or hung between two candidates, which is neither's fault
        if self._server is None:
            self._repository.mkdir(parents=True, exist_ok=True)
            serving = self._engine.serve(self._repository, log=self._log, cores=self._cores)
            self._server = self._stack.enter_context(serving)
            self._starts += 1
            self._on_start(self._starts > 1)
        return self._server

    def serve(self, candidate: Candidate) -> tuple[Server, float]:
        """The server with `candidate` loaded in the place of the one before, and the seconds loading took.

        The one before is not unloaded first: Triton replaces it when the new one is ready, and its Python
        backend then sleeps for a second for each old instance, which nobody has to wait for (see `settle`).

        Raises:
            ServerFailure: it does not load.
            EngineError: no server can be started.
        """
        server = self.start()
        if candidate == self._loaded:
            return server, self._loaded_s
        if candidate.model not in self._models:
            self.withdraw()
            server = self.start()
        write_repository(compile_candidate(self._project, candidate), self._repository, "link", durable=False)
        before = _children(server.pid)
        self._loaded = None
        self._models.add(candidate.model)
        started = time.monotonic()
        server.load(candidate.model, _LOAD_S[self._project.spec.targets[candidate.target].device])
        self._loaded, self._loaded_s = candidate, time.monotonic() - started
        self._leaving = before
        return server, self._loaded_s

    def settle(self) -> None:
        """Returns when the instances of the candidate before are gone: their memory would count too."""
        deadline = time.monotonic() + _SETTLE_S
        while self._server is not None and self._leaving & _children(self._server.pid):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        self._leaving = frozenset()

    def withdraw(self) -> None:
        """Unloads what is loaded; a server that cannot is given up."""
        try:
            for model in tuple(self._models):
                if self._server is not None:
                    self._server.unload(model)
        except ServerFailure:
            self.give_up()
        self._forget()

    def recover(self, failure: Failure) -> None:
        """Gives the server up if, after `failure`, the next candidate should have a new one."""
        self._loaded = None
        if self._server is None:
            return
        if failure.reason in _GIVE_UP or not (self._server.alive() and self._server.responsive()):
            self.give_up()

    def give_up(self) -> None:
        """Stops the server; the next candidate gets a new one."""
        self._server = None
        self._forget()
        self._stack.close()

    def log_tail(self, lines: int = 50) -> str:
        """The last lines that any of its servers wrote."""
        try:
            text = self._log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Stand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()


def _children(pid: int) -> frozenset[int]:
    """Processes that the server has started: the Python backend's instances, one each."""
    import psutil

    try:
        return frozenset(child.pid for child in psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return frozenset()
