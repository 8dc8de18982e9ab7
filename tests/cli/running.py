"""A `tritonc tune` in a process of its own, to be watched, disturbed and waited for."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.conftest import ProjectFolder

GONE_S = 15
"""Nothing of a tune is left so long after it has ended."""
ANNOUNCED = ("-m", "tests.cli.announced")
"""A program that says every event, and can be disturbed."""
PATIENCE_S = 120
"""How long tests wait for what comes within seconds on an idle machine."""


def trial_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("trial ")]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that name the folder in their arguments, this one left out."""
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        words = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(process)
    return found


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {condition}"
        time.sleep(0.02)


class Running:
    """A `tritonc tune` in a process of its own, in a session and process group of its own.

    Args:
        p: its spec is tuned.
        args: more arguments of `tune`.
        program: what is run in the place of `python -m tritonc`.
        env: more environment variables.
    """

    def __init__(
        self,
        p: ProjectFolder,
        *args: str,
        program: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = p.folder
        self.process = subprocess.Popen(
            [sys.executable, *(program or ("-m", "tritonc")), "tune", str(p.path("spec.yaml")), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(line)
        self._queue.put(None)

    def wait_for(self, found: Callable[[str], bool], timeout_s: float = PATIENCE_S) -> str:
        """The first line to come that is what is looked for."""
        deadline = time.monotonic() + timeout_s
        while (line := self._queue.get(timeout=max(0.1, deadline - time.monotonic()))) is not None:
            self.lines.append(line)
            if found(line):
                return line
        raise AssertionError(self.text)

    @property
    def text(self) -> str:
        """What it has said to people so far, as far as it was waited for."""
        return "".join(self.lines)

    @property
    def server_log(self) -> Path:
        """What its servers write."""
        return self.folder / ".tritonc" / "served" / "cpu" / "server.log"

    def server(self) -> psutil.Process:
        """Its tritonserver."""
        servers = [one for one in processes_of(self.folder) if one.info["name"] == "tritonserver"]
        assert len(servers) == 1
        return servers[0]

    def stubs(self) -> list[psutil.Process]:
        """The instances of its models, the newest last."""
        children = self.server().children(recursive=True)
        return sorted(children, key=lambda child: child.create_time())

    def interrupt(self) -> None:
        """Ctrl-C in its terminal: a SIGINT to its whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def go_on(self) -> None:
        """Ends the wait of a held stage (`tests/cli/announced.py`)."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(timeout_s)
        while (line := self._queue.get(timeout=10)) is not None:
            self.lines.append(line)
        return code


@contextmanager
def running(
    p: ProjectFolder, *args: str, program: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    started = Running(p, *args, program=program, env=env)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def assert_all_gone(folder: Path) -> None:
    """No process that names the folder is left, and no shared memory of its servers."""
    deadline = time.monotonic() + GONE_S
    while left := [*map(_shown, processes_of(folder)), *_shared_memory_of(folder)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _shown(process: psutil.Process) -> str:
    return f"{process.pid} {process.info['cmdline']}"


def _shared_memory_of(folder: Path) -> list[str]:
    logs = (folder / ".tritonc").glob("served/*/server.log")
    names = {name for log in logs for name in re.findall(r"tritonc-[0-9a-f]{12}", log.read_text())}
    return [path.name for path in Path("/dev/shm").iterdir() if path.name[:20] in names]
