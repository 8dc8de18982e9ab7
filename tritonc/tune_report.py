"""What `tritonc tune` prints at its end: baseline and choice side by side, and what to type next."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonc import numbers
from tritonc.live import engine_line, hardware_line
from tritonc.schemas.lock import Decision, Result
from tritonc.schemas.measurement import Measurement
from tritonc.schemas.spec import Axis
from tritonc.tuner.events import TargetSkipped
from tritonc.tuner.objective import Objective, axes_of, weights_of
from tritonc.tuner.tune import Estimate, TuneResult

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_LATENCIES = ("p50", "p90", "p95", "p99")


def result_document(result: TuneResult) -> dict[str, Any]:
    """The result of a tuning job as JSON; decisions are as in the lock."""
    return {
        "slo_met": result.slo_met,
        "lock": str(result.lock_path),
        "out": str(result.out),
        "not_built": str(result.not_built) if result.not_built else None,
        "tracking_uri": result.tracking_uri,
        "decisions": [
            {
                **decision.model_dump(mode="json"),
                "reason": result.reasons[decision.model, decision.target],
            }
            for decision in result.decisions
        ],
        "undecided": [
            {"model": one.model, "target": one.target, "reason": one.reason} for one in result.undecided
        ],
        "skipped": [{"target": skip.target, "reason": skip.reason} for skip in result.skipped],
    }


def result_text(result: TuneResult) -> RenderableType:
    """The result of a tuning job for people."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for decision in result.decisions:
        reason = result.reasons[decision.model, decision.target]
        price = result.prices.get(decision.target)
        parts += _decision(decision, reason, result.objectives[decision.model], price)
    parts += [f"{one.model} on {one.target}: {one.reason}" for one in result.undecided]
    parts += [f"target {skip.target} was skipped: {skip.reason}" for skip in result.skipped]
    return Group(*parts, *_next(result))


def estimate_document(estimates: Iterable[Estimate], skipped: Iterable[TargetSkipped]) -> dict[str, Any]:
    """What a tuning job would do, as JSON."""
    return {
        "dry_run": True,
        "tasks": [
            {
                "model": one.model,
                "target": one.target,
                "candidates": one.candidates,
                "trials": one.trials,
                "finished": one.finished,
                "seconds": round(one.seconds),
                "is_measured": one.is_measured,
                "measured_before": one.before.wholly,
                "partly_measured_before": one.before.partly,
            }
            for one in estimates
        ],
        "skipped": [{"target": skip.target, "reason": skip.reason} for skip in skipped],
    }


def estimate_text(estimates: Sequence[Estimate], skipped: Iterable[TargetSkipped]) -> str:
    """What a tuning job would do, for people."""
    lines = []
    for one in estimates:
        basis = "as its trials took so far" if one.is_measured else "10 s a trial is typical"
        lines.append(
            f"{one.model} on {one.target}: {one.candidates} candidates, {one.trials} trials "
            f"({one.finished} finished), about {numbers.duration(one.seconds)} ({basis})"
        )
        if one.before.wholly or one.before.partly:
            lines.append(
                f"  measured before: {one.before.wholly} candidates wholly, {one.before.partly} partly"
            )
    if len(estimates) > 1:
        lines.append(f"together about {numbers.duration(sum(one.seconds for one in estimates))}")
    lines += [f"target {skip.target} would be skipped: {skip.reason}" for skip in skipped]
    return "\n".join(lines)


def _decision(
    decision: Decision, reason: str, objective: Objective, price: float | None
) -> list[RenderableType]:
    columns = _columns(decision)
    lines: list[RenderableType] = [
        "",
        _table(decision, columns, price if "cost" in weights_of(objective) else None),
        f"{reason[0].upper()}{reason[1:]}.",
    ]
    if decision.gain is not None and decision.noise is not None:
        gain = numbers.gain(objective, decision.gain)
        noise = abs(numbers.change(objective, decision.noise))
        soft = any(result.missed_soft for _, result in columns)
        lines.append(
            f"{gain[0].upper()}{gain[1:]} to the baseline's{' (soft limits count)' if soft else ''}; "
            f"differences below {noise:.1%} count as noise here (95%)."
        )
    lines += _front(decision, axes_of(objective), price)
    base = decision.baseline.configuration.knobs if decision.baseline else {}
    changed = numbers.changes(base, decision.chosen.configuration.knobs)
    if changed and decision.baseline:
        lines.append("Changed from the baseline:")
        lines += [f"  {name}: {before} -> {after}" for name, before, after in changed]
    if not decision.slo_met:
        kept = "previous configuration" if decision.previous else "baseline"
        lines.append(f"The repository keeps the {kept}: what misses the SLO is recorded, but not built.")
    if decision.chosen.missed_soft:
        lines.append(f"The choice misses soft limits: {numbers.missed(decision.chosen.missed_soft)}.")
    lines += [f"Note: {caveat}" for caveat in decision.caveats]
    lines += [
        f"Note: {name}: {_warnings(result)}." for name, result in columns if result.measurement.warnings
    ]
    lines.append(
        f"{decision.trials} of {decision.candidates} candidates tried, {decision.failed_trials} failed; "
        f"{engine_line(decision.engine)}; {hardware_line(decision.hardware)}"
    )
    return lines


def _table(decision: Decision, columns: Sequence[tuple[str, Result]], price: float | None) -> Table:
    from rich.table import Table

    table = Table(title=f"{decision.model} on {decision.target}", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for name, result in columns:
        table.add_column(f"{name} {result.configuration.id}", overflow="fold")
    measured = [result.measurement for _, result in columns]
    table.add_row("load", *(numbers.load(m.load) for m in measured))
    table.add_row("throughput", *(numbers.throughput(m) for m in measured))
    for statistic in _LATENCIES:
        if any(statistic in m.latency_ms for m in measured):
            table.add_row(f"{statistic} latency", *(numbers.latency(m, statistic) for m in measured))
    if price is not None:
        table.add_row("cost", *(numbers.cost(m, price) for m in measured))
    if any(m.joules_per_inference is not None for m in measured):
        table.add_row("energy", *(numbers.energy(m) for m in measured))
    table.add_row("memory", *(numbers.size(m.memory_bytes) for m in measured))
    if any(m.gpu_memory_bytes is not None for m in measured):
        table.add_row("GPU memory", *(numbers.size(m.gpu_memory_bytes) for m in measured))
    for place in range(max(len(result.further) for _, result in columns)):
        under = (result.further[place : place + 1] for _, result in columns)
        table.add_row(
            f"workload {place + 2}", *(_held(seen[0]) if seen else "not measured" for seen in under)
        )
    table.add_row("requests", *(f"{m.requests}, {m.errors} errors" for m in measured))
    table.add_row("SLO", *(_slo(result) for _, result in columns))
    return table


def _held(measured: Measurement) -> str:
    """What was measured under a workload that must hold, too."""
    what = f"{numbers.throughput(measured)}, p99 {numbers.latency(measured)}"
    return f"{numbers.load(measured.load)}: {what}; {measured.requests} requests"


def _front(decision: Decision, axes: Sequence[Axis], price: float | None) -> list[RenderableType]:
    """The configurations that a person can pick, with what they reach in every objective."""
    from rich.table import Table

    if not decision.front or not axes:
        return []
    table = Table(title=f"The front of {', '.join(axes)}", title_justify="left")
    for name in ("", *axes, "load"):
        table.add_column(name, overflow="fold")
    base = decision.baseline.configuration.id if decision.baseline else None
    for member in decision.front:
        name = member.configuration.id
        roles = [
            role
            for role, one in (("baseline", base), ("chosen", decision.chosen.configuration.id))
            if one == name
        ]
        reached = (numbers.on_axis(axis, member.measurement, price) for axis in axes)
        table.add_row(" ".join([name, *roles]), *reached, numbers.load(member.measurement.load))
    how = "its knee" if decision.choice == "knee" else "what a person picked"
    return [table, f"Chosen is {how}. To take another one, without measuring: tritonc tune --pick ID"]


def _warnings(result: Result) -> str:
    """What the load generator said; it says the like of each window in other numbers."""
    first, *more = result.measurement.warnings
    return f"{first}; and {len(more)} more like it in the lock" if more else first


def _slo(result: Result) -> str:
    soft = f"; soft: {numbers.missed(result.missed_soft)}" if result.missed_soft else ""
    if result.slo_met:
        return f"met{soft}"
    by = numbers.missed({name: v for name, v in result.missed.items() if name != "sustained"})
    missed = ": ".join(["missed", by] if by else ["missed"])
    return f"{missed}{soft}" if result.measurement.sustained else f"{missed}: the rate is not sustained{soft}"


def _columns(decision: Decision) -> list[tuple[str, Result]]:
    columns = [("baseline", decision.baseline)] if decision.baseline else []
    if decision.previous and decision.previous.configuration.id != decision.chosen.configuration.id:
        columns.append(("previous", decision.previous))
    kept = decision.baseline and decision.baseline.configuration.id == decision.chosen.configuration.id
    if not kept:
        columns.append(("chosen", decision.chosen))
    return [(name, result) for name, result in columns if result is not None]


def _next(result: TuneResult) -> list[str]:
    lock, out = _short(result.lock_path), _short(result.out)
    repository = "not built" if result.not_built else out
    locked = f"The lock is {lock}, the repository {repository}."
    lines = ["", locked if result.decisions else "Nothing was locked.", "Next:"]
    if result.decisions:
        # `add -N` has the diff show new files, too.
        shown = [_short(path) for path in (result.lock_path, result.out) if not _is_ignored(path)]
        commands = [["git", "add", "-N", *shown], ["git", "diff", *shown]] if shown else []
        commands += [["tritonc", "build", *_spec_argument(result.spec_path), "--check"]]
        lines += [f"  {shlex.join(words)}" for words in commands]
    if result.tracking_uri.startswith("sqlite:"):
        database = _short(Path(result.tracking_uri.removeprefix("sqlite:///")))
        lines.append(f"  {shlex.join(['mlflow', 'ui', '--backend-store-uri', f'sqlite:///{database}'])}")
    else:
        lines.append(f"  see {result.tracking_uri}")
    return lines


def _is_ignored(path: Path) -> bool:
    """Whether git ignores it, and so refuses to add it; false outside a repository and without git.

    `--no-index`: of an ignored folder git adds nothing new, even where it has files of it already.
    """
    command = ["git", "-C", str(path.parent), "check-ignore", "--quiet", "--no-index", "--", path.name]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _spec_argument(path: Path) -> list[str]:
    return [] if str(path) == "spec.yaml" else [str(path)]


def _short(path: Path) -> str:
    """The path from here where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
