"""`tritonc tune`: candidates measured on a real tritonserver, the best one locked and built."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tritonc.live import fetch_lines, watching
from tritonc.output import Output
from tritonc.tune_report import estimate_document, estimate_text, result_document, result_text
from tritonc.typed import typed_command

if TYPE_CHECKING:
    from tritonc.tuner.plan import SamplerName

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


class Duration(click.ParamType[float]):
    """A duration with a unit, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds of, for example, 90, "90s", "15m" or "1.5h"."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", str(value).strip())
        if not match or match[2] not in _UNITS or float(match[1]) == 0:
            self.fail(f'{value!r} is no duration; write for example "90s", "15m" or "1.5h"', param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.command(epilog="Example: tritonc tune --trials 50 --target cpu")
@click.argument("spec", type=click.Path(path_type=Path), default="spec.yaml")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    help="Candidates to measure at most for each model and target, failed ones and those of earlier runs "
    "included. Default: 50; with --sampler grid all.",
)
@click.option(
    "--timeout",
    type=Duration(),
    help="Time for the search, in seconds or with a unit (90s, 15m, 2h), shared by all models; the winners "
    "are confirmed after it. Default: no limit.",
)
@click.option("--target", "targets", multiple=True, help="Tune only this target; repeatable. Default: all.")
@click.option("--model", "models", multiple=True, help="Tune only this model; repeatable. Default: all.")
@click.option(
    "--engine",
    "engine_name",
    default="embedded",
    show_default=True,
    help="embedded: the tritonserver that tritonc fetches. local: an installed tritonserver (on PATH, or "
    "named by TRITONC_TRITONSERVER).",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the search and of Poisson arrivals. With the same seed and the same measurements the same "
    "candidates are tried in the same order.",
)
@click.option(
    "--sampler",
    type=click.Choice(["tritonc", "gp", "tpe", "random", "grid"]),
    default="tritonc",
    show_default=True,
    help="tritonc: a model of the whole space, which stops by itself when little is left to gain. gp, tpe, "
    "random: Optuna's (gp needs the extra of that name). grid: every candidate under every load, for ground "
    "truth.",
)
@click.option(
    "--pick",
    "picked",
    metavar="ID",
    help="Take this configuration of the front that the lock holds, and build; measures nothing. For models "
    "with objective: {pareto: [...]}.",
)
@click.option("--fresh", is_flag=True, help="Begin a new study, and measure everything anew.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Measure nothing; print how many candidates there are, how many of them are known, and about how "
    "long it takes.",
)
@click.option(
    "--perf-analyzer",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another perf_analyzer than the pinned one, run in your environment; its version is recorded. With "
    "--engine local nothing is fetched then.",
)
@click.option("--allow-outside", is_flag=True, help="Let model files lie outside the spec's folder.")
@click.pass_obj
def command(
    output: Output,
    spec: Path,
    trials: int | None,
    timeout: float | None,
    targets: tuple[str, ...],
    models: tuple[str, ...],
    engine_name: str,
    seed: int,
    sampler: SamplerName,
    picked: str | None,
    fresh: bool,
    dry_run: bool,
    perf_analyzer: Path | None,
    allow_outside: bool,
) -> int:
    """Measure candidates on a real tritonserver, choose the best, write the lock and build.

    Every candidate is loaded into one server and put under load. The best of them are measured again beside
    the baseline (what Triton itself would complete) and what the lock holds, and have to beat these by more
    than the noise. The spec is never changed. Stop it at any time (Ctrl-C): finished trials are kept, and
    the same command goes on from there. Targets that this machine cannot measure are skipped. Exits 1 if
    nothing met a model's SLO, or nothing could be measured or confirmed.
    """
    from tritonc.compiler.project import open_project
    from tritonc.tuner.engines import engine_named
    from tritonc.tuner.plan import Settings, plan_of
    from tritonc.tuner.tune import estimate, pick, tune

    if picked is not None:
        _refuse_beside_pick(click.get_current_context())
    project = open_project(spec, allow_outside=allow_outside)
    if picked is not None:
        tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or None
        result = pick(project, picked, models=models, targets=targets, tracking_uri=tracking_uri)
        output.result(result_document(result), result_text(result))
        return 0
    settings = Settings(
        trials=trials or (sys.maxsize if sampler == "grid" else 50),
        timeout_s=timeout,
        seed=seed,
        sampler=sampler,
        fresh=fresh,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or None,
        perf_analyzer=perf_analyzer,
        allow_outside=allow_outside,
    )
    plan = plan_of(project, settings, models=models, targets=targets)
    engine = engine_named(engine_name, progress=fetch_lines(output))
    if dry_run:
        estimates = estimate(project, plan, settings, engine)
        output.result(estimate_document(estimates, plan.skipped), estimate_text(estimates, plan.skipped))
        return 0
    try:
        with _terminated_as_interrupted(), watching(output) as observer:
            result = tune(project, plan, settings, engine=engine, observer=observer)
    except KeyboardInterrupt:
        output.note("the server is stopped, finished trials are kept; to go on, run it again:")
        output.note(f"  {typed_command(click.get_current_context(), 'fresh')}")
        raise
    output.result(result_document(result), result_text(result))
    if result.not_built is not None:
        output.note(f"error: the lock is written, but nothing was built: {result.not_built}")
        return result.not_built.exit_code
    return 0 if result.slo_met else 1


def _refuse_beside_pick(context: click.Context) -> None:
    """Options that say how to measure have no meaning where nothing is measured.

    Raises:
        UsageError: one was given.
    """
    fine = {"spec", "picked", "models", "targets", "allow_outside", "output"}
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in fine and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--pick measures nothing: leave {parameter.opts[0]} out", context)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end the job as Ctrl-C does, in order; what comes after the first is ignored."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    # nohup has SIGHUP ignored, and that is meant to stay so.
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt:
                signal.signal(number, handler)
