"""Wall time of a measured trial, by where it goes, and tritonc's own CPU while load runs.

    python benchmarks/trial_cost.py [SPEC] [--trials 20] [--target cpu] [--model NAME]

Tunes a copy of the project from scratch (default: a small MLP of its own), so that the person's own lock and
studies stay as they are. "own" is what is left: tritonc itself, and asking the server how it is. The whole
tune, confirmation and build included, is compared with what it could not do without: loading each candidate
and three windows of load. Thinking is asking for a candidate and taking in what came of it; logging is
telling MLflow of it. CPU is that of this process, all its threads included, from the start of the load
generator until its report is read. Exits 1 where the tune takes more than twice what it could not do without,
tritonc thinks for 0.5 s or more or logs for 0.3 s or more a trial, or uses 3% of a core or more under load.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from models import write_mlp

from tritonc.compiler.project import open_project
from tritonc.schemas.lock import Decision
from tritonc.tuner.engines import engine_named
from tritonc.tuner.events import Event, SearchEnded, TrialFinished
from tritonc.tuner.optuna_search import OptunaSearch
from tritonc.tuner.perf_analyzer import PerfAnalyzer
from tritonc.tuner.plan import Settings, plan_of
from tritonc.tuner.tracking import Tracking
from tritonc.tuner.trial import Trial
from tritonc.tuner.tune import tune
from tritonc.tuner.under_load import WINDOW_S

WALL_LIMIT = 2.0
THINKING_LIMIT_S = 0.5
LOGGING_LIMIT_S = 0.3
CPU_LIMIT = 0.03
WINDOWS = 3

SPEC = """\
apiVersion: tritonc/v1
name: trial-cost
models: {mlp: {source: mlp.onnx, max_batch_size: 8, slo: {p99_latency_ms: 50}}}
targets: {cpu: {device: cpu, backends: {onnxruntime: {accelerators: [none]}}}}
"""


@dataclass
class Spent:
    """Seconds in calls of some functions: of wall time, and of this process's CPU."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def counted(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted."""

        @wraps(plain)
        def call(*args: object, **options: object) -> Any:
            wall_s, cpu_s = time.monotonic(), time.process_time()
            try:
                return plain(*args, **options)
            finally:
                self.wall_s += time.monotonic() - wall_s
                self.cpu_s += time.process_time() - cpu_s

        return call


@dataclass
class Meter:
    """Watches a tuning job: its trials, how long it thinks and logs, and this process's CPU under load."""

    trials: list[Trial] = field(default_factory=list)
    search_s: float = 0.0
    thinking: Spent = field(default_factory=Spent)
    logging: Spent = field(default_factory=Spent)
    load: Spent = field(default_factory=Spent)
    _began: float = field(default_factory=time.monotonic)

    def __call__(self, event: Event) -> None:
        """Takes an event in."""
        if isinstance(event, TrialFinished):
            self.trials.append(event.trial)
        if isinstance(event, SearchEnded):
            self.search_s = time.monotonic() - self._began

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Counts what happens inside."""
        with (
            patch.object(OptunaSearch, "ask", self.thinking.counted(OptunaSearch.ask)),
            patch.object(OptunaSearch, "tell", self.thinking.counted(OptunaSearch.tell)),
            patch.object(Tracking, "log_trial", self.logging.counted(Tracking.log_trial)),
            patch.object(PerfAnalyzer, "run", self.load.counted(PerfAnalyzer.run)),
        ):
            yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", type=Path, help="a spec (default: a small MLP)")
    parser.add_argument("--trials", type=int, default=20, help="trials to measure (default 20)")
    parser.add_argument("--target", action="append", default=[], help="only this target")
    parser.add_argument("--model", action="append", default=[], help="only this model")
    arguments = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as name:
        spec = copied_project(arguments.spec, Path(name) / "project")
        project = open_project(spec)
        settings = Settings(trials=arguments.trials, tracking_uri=None)
        plan = plan_of(project, settings, models=arguments.model, targets=arguments.target)
        meter = Meter()
        began = time.monotonic()
        with meter.watching():
            result = tune(project, plan, settings, engine=engine_named("embedded"), observer=meter)
        return report(meter, result.decisions, time.monotonic() - began)


def copied_project(spec: Path | None, folder: Path) -> Path:
    """The project in a folder of its own, without studies, lock and build."""
    if spec is not None:
        ignored = shutil.ignore_patterns(".tritonc", "build", "*.lock.yaml")
        shutil.copytree(spec.parent, folder, ignore=ignored)
        return folder / spec.name
    folder.mkdir()
    write_mlp(folder / "mlp.onnx", width=512)
    (folder / "spec.yaml").write_text(SPEC)
    return folder / "spec.yaml"


def report(meter: Meter, decisions: Sequence[Decision], total_s: float) -> int:
    """Prints the split, a line a part; the exit code."""
    measured = [trial for trial in meter.trials if trial.capacity is not None]
    if not measured:
        sys.exit("no trial could be measured")
    parts = ("load", "warm_up", "verify", "steps", "noise")
    rows = {
        part: [getattr(trial.capacity.seconds, part) for trial in measured if trial.capacity]
        for part in parts
    }
    rows["own"] = [
        trial.seconds - sum(rows[part][index] for part in parts) for index, trial in enumerate(measured)
    ]
    mean_s = statistics.fmean(trial.seconds for trial in measured)
    between_s = meter.search_s / len(meter.trials) - statistics.fmean(t.seconds for t in meter.trials)
    print(f"{len(measured)} trials measured, {len(meter.trials) - len(measured)} failed")
    print(f"{'part':12}  {'mean':>7}  {'median':>7}  share of a trial")
    for part, seconds in rows.items():
        mean = statistics.fmean(seconds)
        print(f"{part:12}  {mean:6.2f}s  {statistics.median(seconds):6.2f}s  {mean / mean_s:6.1%}")
    print(f"{'trial':12}  {mean_s:6.2f}s")
    print(f"between trials, the start of the server included: {between_s:.2f} s a trial")
    print(
        f"load steps a trial: {statistics.fmean(len(t.capacity.steps) for t in measured if t.capacity):.1f}"
    )
    print(f"confirmation and build: {total_s - meter.search_s:.1f} s; all: {total_s:.1f} s")
    cpu_share = meter.load.cpu_s / meter.load.wall_s
    print(f"tritonc's CPU while load runs: {cpu_share:.1%} of a core (limit {CPU_LIMIT:.0%})")
    needed_s = sum(rows["load"]) + WINDOWS * WINDOW_S * len(measured)
    thinking_s = meter.thinking.wall_s / len(meter.trials)
    print(f"all / (loads + {WINDOWS} windows a trial): {total_s / needed_s:.2f} (limit {WALL_LIMIT:g})")
    print(f"thinking: {thinking_s:.2f} s a trial (limit {THINKING_LIMIT_S:g} s)")
    logging_s = meter.logging.wall_s / len(meter.trials)
    print(f"logging: {logging_s:.2f} s a trial (limit {LOGGING_LIMIT_S:g} s)")
    for decision in decisions:
        print(f"{decision.model} on {decision.target}: noise {decision.noise or 0:.1%} in the confirmation")
    is_slow = thinking_s >= THINKING_LIMIT_S or logging_s >= LOGGING_LIMIT_S
    return int(is_slow or total_s > WALL_LIMIT * needed_s or cpu_share >= CPU_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
