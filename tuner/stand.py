"""Where candidates are measured: one tritonserver with one repository, one candidate in it at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import Project
from tritonc.compiler.repository import compile_candidate
from tritonc.compiler.writer import write_repository
from tritonc.schemas.measurement import Failure
from tritonc.tuner.engines import Engine, Server, ServerFailure

_LOAD_S = 120.0
"""A model that loads for longer has failed; the CPU's take a second or two."""
_GIVE_UP = frozenset({"load_timeout", "server_crashed", "server_hung", "out_of_memory"})
"""After these a server cannot be trusted with the next candidate."""


class Stand:
    """Serves one candidate after another without restarting the server, as long as that one is well.

    Use it as a context manager; leaving it stops the server.

    Args:
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
        self._project = project
        self._engine = engine
        self._cores = cores
        self._on_start = on_start
        self._repository = folder / "repository"
        self._log = folder / "server.log"
        self._stack = ExitStack()
        self._server: Server | None = None
        self._loaded: str | None = None
        self._starts = 0

    def serve(self, candidate: Candidate) -> tuple[Server, float]:
        """The server with `candidate` loaded in the place of the one before, and the seconds loading took.

        Raises:
            ServerFailure: it does not load.
            EngineError: no server can be started.
        """
        self.withdraw()
        server = self._server or self._start()
        write_repository(compile_candidate(self._project, candidate), self._repository, "link")
        started = time.monotonic()
        self._loaded = candidate.model
        server.load(candidate.model, _LOAD_S)
        return server, time.monotonic() - started

    def withdraw(self) -> None:
        """Unloads what is loaded; a server that cannot is given up."""
        if self._server is None or self._loaded is None:
            return
        try:
            self._server.unload(self._loaded)
        except ServerFailure:
            self.give_up()
        self._loaded = None

    def recover(self, failure: Failure) -> None:
        """Gives the server up if, after `failure`, the next candidate should have a new one."""
        if self._server is None:
            return
        if failure.reason in _GIVE_UP or not (self._server.alive() and self._server.responsive()):
            self.give_up()

    def give_up(self) -> None:
        """Stops the server; the next candidate gets a new one."""
        self._server = None
        self._loaded = None
        self._stack.close()

    def log_tail(self, lines: int = 50) -> str:
        """The last lines that any of its servers wrote."""
        try:
            text = self._log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def start(self) -> Server:
        """The running server, started where there is none.

        Raises:
            EngineError: it cannot be started.
        """
        return self._server or self._start()

    def _start(self) -> Server:
        self._repository.mkdir(parents=True, exist_ok=True)
        serving = self._engine.serve(self._repository, log=self._log, cores=self._cores)
        self._server = self._stack.enter_context(serving)
        self._starts += 1
        self._on_start(self._starts > 1)
        return self._server

    def __enter__(self) -> Stand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()
