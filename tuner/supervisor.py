"""Runs one command so that nothing of it outlives the process that asked for it.

A program of its own, started by `process.py` with `python -I -S supervisor.py …`; only the standard library.
Between tritonc and a server stands this single-threaded process. It holds the reading end of a pipe whose
writing end only tritonc has: when that closes, for whatever reason (a clean stop, a crash, `kill -9`), it
kills the command with all its descendants and removes the shared memory they left. It is the reaper of their
orphans, so that none can slip away, and the kernel kills the command if the supervisor itself is killed.

What happens is written to a second pipe, as lines: `pid N`, `exit N`, `error TEXT`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux has POSIX shared memory
_REAP_S = 5.0


def main(argv: Sequence[str]) -> int:
    """Runs the command of `argv` and gives its exit code (128 + N for signal N)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--status", type=int, required=True)
    parser.add_argument("--cores", default="")
    parser.add_argument("--shared-memory", default="")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    command = args.command[1:]  # after "--"
    cores = [int(core) for core in args.cores.split(",") if core]
    for pipe in (args.lifeline, args.status):
        os.set_inheritable(pipe, False)  # its end tells tritonc that we are gone, not that the command is
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # only the lifeline ends us: it ends the command, too
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    exec_read, exec_write = os.pipe()  # closed by a successful exec
    pid = os.fork()
    if pid == 0:
        _become(command, cores, exec_write, libc)
    os.close(exec_write)
    error = os.read(exec_read, 4096).decode()
    _say(args.status, f"error {error}" if error else f"pid {pid}")
    code = None
    try:
        code = _wait(pid, args.lifeline, wake_read)
        if code is not None:
            _say(args.status, f"exit {code}")
    finally:
        _kill_all(pid)
        _remove_shared_memory(args.shared_memory)
    if code is None:
        return 128 + signal.SIGKILL
    return code if code >= 0 else 128 - code


def _become(command: Sequence[str], cores: Sequence[int], errors: int, libc: ctypes.CDLL) -> None:
    """In the forked child: becomes the command, in a session of its own. Tells `errors` if it cannot."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if cores:
            os.sched_setaffinity(0, cores)
        os.execvpe(command[0], list(command), os.environ)  # noqa: S606 - a shell is what must not be
    except OSError as err:
        os.write(errors, (err.strerror or str(err)).encode())
    finally:
        os._exit(127)


def _say(status: int, line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(status, f"{line}\n".encode())


def _wait(pid: int, lifeline: int, wake: int) -> int | None:
    """The command's exit code, or None when the lifeline closed first. Reaps adopted orphans meanwhile."""
    os.set_blocking(wake, False)
    while True:
        ready, _, _ = select.select([lifeline, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            for child, code in _reaped():
                if child == pid:
                    return code
        if lifeline in ready and not os.read(lifeline, 1):
            return None


def _reaped() -> Iterator[tuple[int, int]]:
    """Children that have ended, as (pid, exit code; minus the signal's number if one ended it)."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        yield child, os.waitstatus_to_exitcode(status)


def _children() -> list[int]:
    """Processes whose parent is this one: the command, and orphans of it that were adopted."""
    found = []
    me = str(os.getpid())
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = Path("/proc", entry.name, "stat").read_text().rpartition(")")[2].split()
                if fields[1] == me:
                    found.append(int(entry.name))
    return found


def _kill_all(pid: int) -> None:
    """Kills the command's process group, then every descendant that turns up, until none is left."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + _REAP_S
    while (children := _children()) and time.monotonic() < deadline:
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        for _ in _reaped():
            pass
        time.sleep(0.01)


def _remove_shared_memory(prefix: str) -> None:
    """Removes the shared memory whose name begins with `prefix`, which names one server's alone."""
    if prefix:
        for path in _SHARED_MEMORY.glob(f"{prefix}*"):
            with contextlib.suppress(OSError):
                path.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
