"""Child processes that never outlive tritonc, however it ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tritonc.schemas.errors import EngineError

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_START_S = 20.0  # until the supervisor has forked; 20 ms on an idle machine
_CLEAN_UP_S = 10.0  # the supervisor kills what is left and removes shared memory


class Child:
    """A running command, in a session of its own, watched over by a supervisor process.

    When this object is stopped, or the process that made it ends in any way, the command and every descendant
    of it is killed and its shared memory removed. Use it as a context manager. `poll` and `wait` may be
    called from several threads.

    Attributes:
        pid: of the command itself.
        command: what was run.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: Path,
        env: Mapping[str, str] | None = None,
        cores: Sequence[int] = (),
        shared_memory: str = "",
        cwd: Path | None = None,
    ) -> None:
        """Starts `command`.

        Args:
            command: program and arguments.
            output: file that gets its standard output and error, appended.
            env: its whole environment; None for ours.
            cores: the only cores it may run on; empty for all that we may.
            shared_memory: prefix of the names of its POSIX shared memory, which no other process uses; what
                is left under such names is removed after it. Empty: it has none.
            cwd: its working folder; None for ours.

        Raises:
            EngineError: it cannot be started.
        """
        self.command = tuple(command)
        lifeline_read, self._lifeline = os.pipe()
        self._status, status_write = os.pipe()
        try:
            with output.open("ab") as file:
                self._supervisor = subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-S", str(_SUPERVISOR)),
                        *("--lifeline", str(lifeline_read), "--status", str(status_write)),
                        *("--cores", ",".join(map(str, cores)), "--shared-memory", shared_memory),
                        *("--", *command),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=env,
                    cwd=cwd,
                    pass_fds=(lifeline_read, status_write),
                    start_new_session=True,  # Ctrl-C in the terminal is tritonc's, which then stops us
                )
        except OSError as err:
            self._close_pipes()
            raise EngineError(f"{command[0]} cannot be started: {err}") from err
        finally:
            os.close(lifeline_read)
            os.close(status_write)
        self._said = b""
        self._listening = threading.Lock()
        self._exit_code: int | None = None
        self._error = ""
        self.pid = 0
        try:
            self._await_start()
        except BaseException:
            self.kill()
            raise

    def _await_start(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            self._listen(max(0.0, deadline - time.monotonic()))
            if self.pid:  # and perhaps ended already
                return
            if self._error or self._exit_code is not None or time.monotonic() > deadline:
                raise EngineError(
                    f"{self.command[0]} cannot be started: {self._error or 'its supervisor did not answer'}"
                )

    def _listen(self, timeout_s: float) -> None:
        """Takes in what the supervisor says, waiting for it at most `timeout_s`."""
        with self._listening:
            if self._exit_code is None and select.select([self._status], [], [], timeout_s)[0]:
                self._take_in()

    def _take_in(self) -> None:
        said = os.read(self._status, 4096)
        if not said:  # the supervisor is gone without having told an exit code
            self._exit_code = -signal.SIGKILL
        *lines, self._said = (self._said + said).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "pid":
                self.pid = int(rest)
            elif word == "exit":
                self._exit_code = int(rest)
            elif word == "error":
                self._error = rest

    def poll(self) -> int | None:
        """Its exit code (minus the signal's number if one ended it), or None while it runs."""
        self._listen(0.0)
        return self._exit_code

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code once it has ended, or None if it still runs after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self._exit_code is None and (left := deadline - time.monotonic()) > 0:
            self._listen(left)
        return self.poll()

    def stop(self, grace_s: float = 5.0) -> int:
        """Asks the command to end, kills it after `grace_s`; returns its exit code when nothing is left."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self.wait(grace_s)
        return self.kill()

    def kill(self) -> int:
        """Kills the command with its descendants and returns its exit code when nothing of it is left."""
        self.poll()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            self._supervisor.wait(_CLEAN_UP_S)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()  # the kernel then kills the command
            self._supervisor.wait()
        if self._exit_code is None:
            self._exit_code = -signal.SIGKILL
        with self._listening:  # another thread may still read
            self._close_pipes()
        return self._exit_code

    def _close_pipes(self) -> None:
        for name in ("_lifeline", "_status"):
            if (descriptor := getattr(self, name)) >= 0:
                os.close(descriptor)
                setattr(self, name, -1)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
