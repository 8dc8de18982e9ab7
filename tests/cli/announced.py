"""The command `tritonc` as it is, which also says on standard error how far it is, and measures briefly.

A program for tests: `python -m tests.cli.announced tune …`. Every event becomes a line `event NAME`, for a
load `event LoadStarted warm-up` or `event LoadStarted step`. These environment variables disturb it:

- `TEST_HOLD=STAGE:N`: before a stage begins for the Nth time it says `held at STAGE` and waits for a line on
  standard input, or for a signal.
- `TEST_GATES=FOLDER`: before each step of trial N it waits until there is a file FOLDER/N.
- `TEST_CLOCK_JUMPS=S`: 0.1 s after the first load of a step begins, the wall clock of tritonc jumps by S
  seconds.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import select
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.brief import brief

STAGES = {
    "verify": "tritonc.tuner.measure:verify_all",
    "store": "tritonc.tuner.optuna_search:OptunaSearch.tell",
    "end": "tritonc.tuner.optuna_search:close_trial",
    "log": "tritonc.tuner.tracking:Tracking.log_trial",
    "lock": "tritonc.tuner.job:write_lock",
    "build": "tritonc.tuner.tune:write_targets",
}
"""Functions that do a stage, by its name."""


def main() -> None:
    """Runs the command."""
    jump_s = float(os.environ.get("TEST_CLOCK_JUMPS", "0"))
    clock = JumpingClock()
    if jump_s:
        inject(clock)
    if where := os.environ.get("TEST_HOLD"):
        stage, _, number = where.partition(":")
        hold(stage, int(number))
    for owner, name, value in brief():
        setattr(owner, name, value)
    announce_events(clock, jump_s)
    from tritonc.cli import main as tritonc

    tritonc()


class JumpingClock:
    """The wall clock, which can be set."""

    def __init__(self) -> None:
        self._real = time.time
        self.ahead_s = 0.0

    def __call__(self) -> float:
        """Seconds since the epoch, as far as anybody here knows."""
        return self._real() + self.ahead_s

    def jump(self, seconds: float) -> None:
        """Sets it."""
        self.ahead_s += seconds


def inject(clock: JumpingClock) -> None:
    """Makes it the wall clock of tritonc. Other packages keep theirs: gRPC makes deadlines of it."""
    from tritonc.tuner import study_setup, tracking

    made = study_setup.perf_analyzer_at

    def perf_analyzer_at(*args: Any) -> Any:
        return dataclasses.replace(made(*args), wall=clock)

    study_setup.perf_analyzer_at = perf_analyzer_at  # type: ignore[attr-defined]
    tracking.time = SimpleNamespace(time=clock)  # type: ignore[attr-defined]


def say(text: str) -> None:
    """A line for the test."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def hold(stage: str, number: int) -> None:
    """Makes the stage wait when it is begun for that time."""
    module, _, path = STAGES[stage].partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        owner = getattr(owner, each)
    function, times = getattr(owner, name), itertools.count(1)

    def held(*args: Any, **options: Any) -> Any:
        if next(times) == number:
            say(f"held at {stage}")
            # A signal that comes just before a call that blocks is seen only when that returns.
            while not select.select([sys.stdin], [], [], 0.1)[0]:
                pass
        return function(*args, **options)

    setattr(owner, name, held)


def wait_at_gate(trial: int) -> None:
    """Returns once the test has done to the trial what it wanted to do."""
    folder = os.environ.get("TEST_GATES")
    while folder and not Path(folder, str(trial)).exists():
        time.sleep(0.02)


def announce_events(clock: JumpingClock, jump_s: float) -> None:
    """Has the plain view say every event, and the clock jump in a window of load."""
    from tritonc.live import PlainView

    shown = PlainView.__call__
    has_jumped, trials = False, 0

    def told(view: PlainView, event: Any) -> None:
        nonlocal has_jumped, trials
        shown(view, event)
        name = type(event).__name__
        trials += name == "TrialStarted"
        if name != "LoadStarted":
            say(f"event {name}")
            return
        say(f"event {name} {'step' if event.load else 'warm-up'}")
        if event.load:
            wait_at_gate(trials)
        if jump_s and event.load and not has_jumped:
            has_jumped = True
            threading.Timer(0.1, clock.jump, [jump_s]).start()

    PlainView.__call__ = told  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
