from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tritonc.schemas.errors import EngineError
from tritonc.tuner.process import Child


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_output_and_exit_code_come_back(tmp_path: Path) -> None:
    child = Child(["sh", "-c", "echo out; echo err >&2; exit 3"], output=tmp_path / "out")
    assert child.wait(10) == 3
    assert child.stop() == 3
    assert (tmp_path / "out").read_text() == "out\nerr\n"


def test_env_and_cwd_are_the_commands(tmp_path: Path) -> None:
    with Child(
        ["/bin/sh", "-c", "pwd; echo $A"], output=tmp_path / "o", env={"A": "b"}, cwd=tmp_path
    ) as child:
        child.wait(10)
    assert (tmp_path / "o").read_text() == f"{tmp_path}\nb\n"


def test_the_pid_is_the_commands_own_and_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    with Child(["sleep", "60"], output=tmp_path / "out") as child:
        assert psutil.Process(child.pid).cmdline() == ["sleep", "60"]
        assert os.getsid(child.pid) == child.pid
        assert child.poll() is None
    assert gone(child.pid)
    assert child.poll() == -signal.SIGTERM


def test_only_the_given_cores_are_used(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    with Child(["sleep", "60"], output=tmp_path / "out", cores=(core,)) as child:
        assert os.sched_getaffinity(child.pid) == {core}


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="/nowhere/program cannot be started: No such file or directory"):
        Child(["/nowhere/program"], output=tmp_path / "out")


def test_cores_that_do_not_exist_say_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Invalid argument"):
        Child(["true"], output=tmp_path / "out", cores=(100_000,))


def test_a_program_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    child = Child(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], output=tmp_path / "out")
    assert wait_until(lambda: (tmp_path / "out").read_text() == "up\n")
    assert child.stop(grace_s=0.2) == -signal.SIGKILL
    assert gone(child.pid)


def test_descendants_that_left_the_session_are_killed_too(tmp_path: Path) -> None:
    script = f"setsid sleep 300 & echo $! > {tmp_path}/pid; sleep 0.2; echo done; sleep 300"
    child = Child(["sh", "-c", script], output=tmp_path / "out")
    assert wait_until(lambda: (tmp_path / "out").read_text() == "done\n")
    stray = int((tmp_path / "pid").read_text())
    assert not gone(stray)
    child.kill()
    assert gone(stray)
    assert gone(child.pid)


def test_what_a_dead_command_left_behind_goes_without_being_asked(tmp_path: Path) -> None:
    child = Child(["sh", "-c", f"sleep 300 & echo $! > {tmp_path}/pid; exit 0"], output=tmp_path / "out")
    assert child.wait(10) == 0
    assert wait_until(lambda: gone(int((tmp_path / "pid").read_text())), 5)
    child.stop()


def test_shared_memory_of_its_prefix_is_removed_and_no_other(tmp_path: Path) -> None:
    prefix = f"tritonc-test-{uuid.uuid4().hex}-"
    mine, other = Path("/dev/shm", f"{prefix}1"), Path("/dev/shm", f"x{prefix}1")
    other.touch()
    try:
        with Child(["sh", "-c", f"touch {mine}; sleep 60"], output=tmp_path / "o", shared_memory=prefix):
            assert wait_until(mine.exists)
        assert not mine.exists()
        assert other.exists()
    finally:
        other.unlink()


PARENT = """
import sys, time
from pathlib import Path
from tritonc.tuner.process import Child
out, prefix = sys.argv[1:]
command = ["sh", "-c", f"touch /dev/shm/{prefix}1; sleep 300"]
child = Child(command, output=Path(out), shared_memory=prefix)
print(child.pid, child._supervisor.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_its_parent(tmp_path: Path, number: int) -> None:
    prefix = f"tritonc-test-{uuid.uuid4().hex}-"
    command = [sys.executable, "-c", PARENT, str(tmp_path / "out"), prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        pid, supervisor = map(int, parent.stdout.readline().split())
        assert wait_until(Path("/dev/shm", f"{prefix}1").exists)
        parent.send_signal(number)
        parent.wait(10)
    assert wait_until(lambda: gone(pid) and gone(supervisor))
    assert not Path("/dev/shm", f"{prefix}1").exists()


def test_the_command_goes_with_its_supervisor(tmp_path: Path) -> None:
    child = Child(["sleep", "300"], output=tmp_path / "out")
    child._supervisor.kill()
    assert wait_until(lambda: gone(child.pid))
    assert child.wait(5) == -signal.SIGKILL
    child.stop()


def test_the_end_of_the_supervisor_is_known_while_an_orphan_lives_on(tmp_path: Path) -> None:
    child = Child(["sh", "-c", "sleep 5 & exec sleep 60"], output=tmp_path / "out")
    child._supervisor.kill()
    assert child.wait(3) == -signal.SIGKILL
    child.stop()


def test_several_threads_may_ask_how_it_is(tmp_path: Path) -> None:
    with (
        ThreadPoolExecutor() as pool,
        Child(["sh", "-c", "sleep 0.3; exit 7"], output=tmp_path / "o") as child,
    ):
        assert set(pool.map(lambda _: child.wait(60), range(8))) == {7}
