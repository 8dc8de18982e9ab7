"""Where candidates are measured: one tritonserver with one repository, one candidate in it or a few."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.output.writer import write_repository
from tritonc.compiler.project import Project
from tritonc.compiler.repository import Repository, compile_candidate, compile_candidates, parts_of
from tritonc.schemas.measurement import Failure
from tritonc.tuner.engines import Engine, Server, ServerFailure

_LOAD_S = {"cpu": 120.0, "gpu": 1800.0}
"""A model that loads for longer has failed: it takes seconds on a CPU, minutes where TensorRT builds."""
_SETTLE_S = 20.0
_POLL_S = 0.05
_LOADS_AT_ONCE = 2
"""Models loaded at the same time: most of it is starting an interpreter, on one core each."""
_GIVE_UP = frozenset({"load_timeout", "server_crashed", "server_hung", "out_of_memory"})
"""After these a server cannot be trusted with the next candidate."""


class Stand:
    """Serves one candidate after another, or a few side by side, by one server as long as that is well.

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
        self._models: dict[str, None] = {}
        self._together: dict[Candidate, str] = {}
        self._leaving: frozenset[int] = frozenset()
        self._instances: frozenset[int] = frozenset()

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
        """The server with `candidate` loaded, and the seconds loading took; of an ensemble with its models.

        It takes the place of the one before unless it is one of those loaded side by side. The one before is
        not unloaded first: Triton replaces it when the new one is ready, and its Python backend then sleeps
        for a second for each old instance. Nobody has to wait for that: they run only when nothing else does.

        Raises:
            ServerFailure: it does not load.
            EngineError: no server can be started.
        """
        server = self.start()
        if candidate == self._loaded:
            return server, self._loaded_s
        if candidate in self._together:
            return server, 0.0
        if candidate.model not in self._models:
            self.withdraw()
            server = self.start()
        self._write(compile_candidate(self._project, candidate))
        before = _children(server.pid)
        self._loaded = None
        started = time.monotonic()
        self._load(server, {part: part.model for part in parts_of(self._project, candidate)})
        self._loaded, self._loaded_s = candidate, time.monotonic() - started
        self._leaving = before
        _yield_to_others(before)
        self._instances = _children(server.pid) - before
        return server, self._loaded_s

    def has(self, candidate: Candidate) -> bool:
        """Whether a candidate is loaded, so that `serve` takes no time."""
        return candidate == self._loaded or candidate in self._together

    def serve_together(self, candidates: Sequence[Candidate]) -> None:
        """Loads candidates of one target side by side, in the place of what was there.

        Raises:
            ServerFailure: they cannot be loaded side by side; none of them is loaded then.
            EngineError: no server can be started.
        """
        self.start()
        self.withdraw()
        server = self.start()
        parts = [part for candidate in candidates for part in parts_of(self._project, candidate)]
        names = {part: f"{part.model}-{part.id}" for part in parts}
        self._write(compile_candidates(self._project, {name: one for one, name in names.items()}))
        try:
            self._load(server, names)
        except ServerFailure as err:
            self.recover(err.failure)
            self.withdraw()
            raise
        self._together = names
        self._instances = _children(server.pid) - self._leaving

    def _load(self, server: Server, names: Mapping[Candidate, str]) -> None:
        """Loads models under these names, a few at a time, and then the ensembles of them.

        Raises:
            ServerFailure: one of them does not load; nothing is being loaded any more.
        """
        ensembles = {one: name for one, name in names.items() if one.model in self._project.ensembles}
        models = {one: name for one, name in names.items() if one not in ensembles}
        self._models |= dict.fromkeys([*models.values(), *ensembles.values()])
        pool = ThreadPoolExecutor(_LOADS_AT_ONCE)

        def load(one: Candidate) -> None:
            try:
                server.load(names[one], self._load_s(one))
            except ServerFailure as err:
                if len(names) == 1:
                    raise
                detail = f"{one.model}: {err.failure.detail}"
                raise ServerFailure(err.failure.model_copy(update={"detail": detail})) from err

        try:
            for _ in pool.map(load, models):
                pass
            for one in ensembles:
                load(one)
        except ServerFailure:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C stops the server, which ends the loads

    def name_of(self, candidate: Candidate) -> str:
        """The name that the server knows a candidate by."""
        return self._together.get(candidate, candidate.model)

    def has_room_for(self, target: str, memory_bytes: int) -> bool:
        """Whether models that take so much host memory together may be loaded side by side.

        Not on a GPU: who allocates first there leaves the others what is left.
        """
        import psutil

        spec = self._project.spec.targets[target]
        available = psutil.virtual_memory().available
        return spec.device == "cpu" and memory_bytes <= min(available, spec.memory or available)

    def _write(self, repository: Repository) -> None:
        write_repository(repository, self._repository, "link", durable=False)

    def _load_s(self, candidate: Candidate) -> float:
        return _LOAD_S[self._project.spec.targets[candidate.target].device]

    @property
    def leaving(self) -> Set[int]:
        """Processes of what was loaded before that may not be gone yet."""
        return self._leaving

    def settle(self) -> None:
        """Returns when the instances of what was loaded before are gone."""
        deadline = time.monotonic() + _SETTLE_S
        while self._server is not None and self._leaving & _children(self._server.pid):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        self._leaving = frozenset()

    def withdraw(self) -> None:
        """Unloads what is loaded, without waiting for it to be gone; a server that cannot is given up.

        Nor need others wait, apart from those who measure memory: what goes runs when nothing else does.
        """
        server, models, leaving = self._server, tuple(self._models), self._leaving
        self._forget()
        if server is None or not models:
            self._leaving = leaving if server is not None else frozenset()
            return
        self._leaving = _children(server.pid)
        _yield_to_others(self._leaving)
        try:
            for model in reversed(models):  # ensembles before their models
                server.unload(model, wait=False)
        except ServerFailure:
            self.give_up()

    def recover(self, failure: Failure) -> None:
        """Gives the server up if, after `failure`, the next candidate should have a new one.

        What is loaded stays loaded: Triton would not load unchanged files again, and nobody would be leaving.
        """
        if self._server is None:
            return
        is_well = self._server.alive() and self._server.responsive() and self._has_all_instances()
        if failure.reason in _GIVE_UP or not is_well:
            self.give_up()

    def _has_all_instances(self) -> bool:
        """Whether no instance of what is loaded has ended: a server that lost one cannot unload the model."""
        return self._server is not None and self._instances <= _children(self._server.pid)

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
    """Processes that the server has started and that run: the Python backend's instances, one each."""
    import psutil

    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return frozenset()
    found = set()
    for child in children:
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
    return frozenset(found)


def _yield_to_others(pids: Iterable[int]) -> None:
    """Lets processes run only when nothing else wants a core: ending an instance takes 35 ms of one."""
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for task in Path(f"/proc/{pid}/task").glob("*"):
                with contextlib.suppress(OSError):  # that thread has
                    os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))
