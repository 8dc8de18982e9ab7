"""What a person sees while `tune` measures: a live view on a terminal, one plain line a trial elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tritonc import numbers
from tritonc.compiler.candidate import Candidate
from tritonc.output import Output
from tritonc.schemas.measurement import EngineInfo, Failure, Hardware, Measurement
from tritonc.tuner.events import (
    Confirming,
    Decided,
    Event,
    LoadStarted,
    MachineChanged,
    NoiseMeasured,
    Observer,
    ReferenceLook,
    SearchEnded,
    ServerStarted,
    StudyStarted,
    TargetSkipped,
    TrialFinished,
    TrialStarted,
    Warned,
)
from tritonc.tuner.objective import Objective, held_memory_bytes, weights_of
from tritonc.tuner.trial import Trial, best_of

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFRESHES_PER_SECOND = 1
"""Drawing costs CPU that the measured server should have: once a second is enough for a clock."""


@contextmanager
def watching(output: Output) -> Iterator[Observer]:
    """The observer that shows a tuning job to whoever runs it, for as long as the job runs."""
    if not output.is_live:
        yield PlainView(output)
        return
    from rich.live import Live

    view = LiveView(output)
    with Live(get_renderable=view.draw, console=output.console, refresh_per_second=_REFRESHES_PER_SECOND):
        yield view


def engine_line(engine: EngineInfo) -> str:
    """Engine, server and runtimes in one line."""
    runtimes = ", ".join(f"{package} {version}" for package, version in sorted(engine.runtimes.items()))
    cores = f"; server on cores {numbers.cores(engine.server_cores)}" if engine.server_cores else ""
    others = f", load on {numbers.cores(engine.load_generator_cores)}" if engine.load_generator_cores else ""
    return (
        f"{engine.name} engine, Triton {engine.triton} ({engine.release})"
        f"{', ' + runtimes if runtimes else ''}; {engine.load_generator}{cores}{others}"
    )


def hardware_line(hardware: Hardware) -> str:
    """The machine in one line."""
    gpus = f", {', '.join(hardware.gpus)}" if hardware.gpus else ""
    return f"{hardware.cpu}, {hardware.cores} cores, {numbers.size(hardware.memory_bytes)}{gpus}"


def candidate_text(candidate: Candidate, baseline: Candidate) -> str:
    """A candidate by what distinguishes it from the baseline."""
    active = candidate.values
    changed = numbers.changes(baseline.values, active)
    what = ", ".join(f"{name} {after}" for name, _, after in changed if name in active)
    return (
        f"{candidate.id} ({'baseline' if candidate == baseline else what or 'fewer knobs than the baseline'})"
    )


def outcome_text(trial: Trial, baseline: Trial | None, objective: Objective) -> str:
    """What came of a trial, with its unit, interval and load; compared by what the model is tuned for."""
    if isinstance(trial.outcome, Failure):
        return failure_text(trial.outcome)
    measured = trial.outcome.measurement
    members = trial.outcome.members
    text = "; ".join(f"{model} {_capacity_text(each)}" for model, each in members.items())
    text = text or _capacity_text(measured)
    text += "".join(f"; {line}" for line in numbers.further(trial.outcome.further))
    if "memory" in weights_of(objective):
        text += f", {numbers.size(held_memory_bytes(measured))}"
    if "energy" in weights_of(objective):
        text += f", {numbers.energy(measured)}"
    if not trial.outcome.slo_met:
        over = numbers.missed(trial.outcome.violations)
        text += f"; misses the SLO ({over})" if over else "; misses the SLO"
    if soft := numbers.missed(trial.outcome.soft):
        text += f"; misses soft limits ({soft})"
    if trial.outcome.is_cut:
        text += "; left early, as it cannot come near the best"
    if reused := trial.outcome.reused:
        text += f"; {reused.loads} of {len(trial.outcome.steps)} loads measured before ({reused.since})"
    text += "".join(f"; {warning}" for warning in measured.warnings)
    if baseline is not None and baseline.capacity is not None and baseline.candidate != trial.candidate:
        gain = numbers.gain_between(objective, baseline.capacity.objective, trial.outcome.objective)
        if members:
            gain = gain.replace("throughput", "all together")
        text += f"; {gain} to the baseline's" if gain else ""
    return text


def _capacity_text(measured: Measurement) -> str:
    """What was reached, and under which load."""
    return f"{numbers.throughput(measured)}, p99 {numbers.latency(measured)} at {numbers.load(measured.load)}"


def failure_text(failure: Failure) -> str:
    """Why a trial failed, in one line."""
    return f"failed, {failure.reason}: {first_line(failure.detail)}"


def first_line(text: str, length: int = 160) -> str:
    """The first line of a text, cut where it is long."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= length else f"{line[: length - 1]}…"


def study_lines(event: StudyStarted) -> list[str]:
    """What is going to be measured, and with what."""
    lines = [
        f"{event.model} on {event.target}: {event.candidates} candidates, {event.trials} trials",
        f"  {engine_line(event.engine)}",
        f"  {hardware_line(event.hardware)}",
    ]
    if event.finished:
        done = len(event.finished)
        lines.append(f"  {done} trials were finished before, {max(0, event.trials - done)} are to come")
    return lines


@dataclass
class Progress:
    """What the events so far add up to."""

    study: StudyStarted | None = None
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    now: str = ""
    started_s: float = 0.0

    @property
    def baseline(self) -> Trial | None:
        """The baseline's trial, once it is finished."""
        return next(
            (t for t in self.trials if self.study is not None and t.candidate == self.study.baseline), None
        )

    def left_s(self) -> float | None:
        """Seconds that the trials to come will take, as long as those so far on average."""
        if self.study is None:
            return None
        missing = max(0, self.study.trials - len(self.trials))
        seconds = [trial.seconds for trial in self.trials if trial.seconds > 0 and not trial.was_known]
        return missing * sum(seconds) / len(seconds) if seconds else None

    def take(self, event: Event) -> None:
        """Adds an event."""
        match event:
            case StudyStarted():
                self.study, self.trials = event, list(event.finished)
                self.best = best_of(event.finished)
                self.now, self.started_s = "starting the server", time.monotonic()
            case TrialStarted() if self.study:
                self.now = f"loading {candidate_text(event.candidate, self.study.baseline)}"
            case LoadStarted() if self.study:
                under = numbers.load(event.load) if event.load else "warm-up"
                self.now = f"{candidate_text(event.candidate, self.study.baseline)}: {under}"
            case ReferenceLook():
                self.now = "the baseline again: has the machine changed?"
            case TrialFinished():
                self.trials = [t for t in self.trials if t.number != event.trial.number] + [event.trial]
                self.best = event.best
            case Confirming() if self.study:
                who = candidate_text(event.candidate, self.study.baseline)
                self.now = f"confirming, round {event.round_number}: {event.role} {who}"
            case SearchEnded():
                self.now = f"search ended: {event.reason}"
            case _:
                pass


def fetch_lines(output: Output) -> Callable[[str, float | None], None]:
    """Says what of the engine is being fetched: a line for each thing, and one for each quarter of it."""
    said: set[tuple[str, int]] = set()

    def progress(what: str, share: float | None) -> None:
        quarter = int(4 * share) if share is not None else 0
        if (what, quarter) not in said:
            said.add((what, quarter))
            output.note(f"{what}: {25 * quarter}%" if quarter else what)

    return progress


class PlainView:
    """One line an event that matters, to standard error."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._progress = Progress()
        self._round = 0

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        self._progress.take(event)
        for line in self._lines(event):
            self._output.note(line)

    def _lines(self, event: Event) -> list[str]:
        study = self._progress.study
        match event:
            case StudyStarted():
                return study_lines(event)
            case TrialFinished() if study:
                trial = event.trial
                who = candidate_text(trial.candidate, study.baseline)
                what = outcome_text(trial, self._progress.baseline, study.objective)
                place = f"trial {trial.number}/{study.trials}"
                return [f"{place}  {who}: {what}; took {numbers.duration(trial.seconds)}"]
            case Confirming() if study:
                return self._round_lines(event, study)
            case _:
                return rare_lines(event)

    def _round_lines(self, event: Confirming, study: StudyStarted) -> list[str]:
        """Who is measured again, in the first round; after it a line for each round."""
        is_new = event.round_number != self._round
        self._round = event.round_number
        lines = [f"confirming, round {event.round_number} of at most {event.rounds}"] if is_new else []
        if event.round_number == 1:
            lines.append(f"  {event.role} {candidate_text(event.candidate, study.baseline)}")
        return lines


def rare_lines(event: Event) -> list[str]:
    """Lines for events that both views show in the same words."""
    match event:
        case TargetSkipped():
            return [f"target {event.target} is skipped: {event.reason}"]
        case ServerStarted(restarted=True):
            return ["the server was given up and started again"]
        case NoiseMeasured():
            apart = event.noise.throughput.deviation
            return [f"noise floor: equal windows differ by {apart:.1%} more than each of them shows"]
        case MachineChanged():
            return [machine_text(event)]
        case SearchEnded():
            return [f"search ended: {event.reason}"]
        case Decided():
            decision = event.decision
            return [f"{decision.model} on {decision.target}: {event.reason}"]
        case Warned():
            return [event.text]
        case _:
            return []


def machine_text(event: MachineChanged) -> str:
    """What became of the machine, and what is done about it, in one line."""
    became = f"{event.speed - 1:.0%} faster" if event.speed > 1 else f"{1 - event.speed:.0%} slower"
    trials = ", ".join(str(number) for number in event.again)
    since = f"after trial {event.since}" if event.since else "since the baseline was measured"
    return f"the machine became {became} {since}; measured again: trials {trials}"


class LiveView:
    """A picture of the job, drawn again once a second; rare events scroll by above it."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._progress = Progress()

    def __call__(self, event: Event) -> None:
        """Takes an event in."""
        self._progress.take(event)
        lines = study_lines(event) if isinstance(event, StudyStarted) else rare_lines(event)
        if isinstance(event, TrialFinished) and isinstance(event.trial.outcome, Failure):
            what = failure_text(event.trial.outcome)
            lines = [f"trial {event.trial.number}  {event.trial.candidate.id}: {what}"]
        for line in lines:
            self._output.console.print(line, markup=False)

    def draw(self) -> RenderableType:
        """The picture of now."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        progress, study = self._progress, self._progress.study
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        if study is None:
            table.add_row("now", "getting the engine ready")
            return table
        done = len(progress.trials)
        row = Table.grid(padding=(0, 2))
        row.add_row(f"{done}/{study.trials}", ProgressBar(total=study.trials, completed=done, width=30))
        table.add_row("trials", row)
        table.add_row("now", progress.now)
        baseline = progress.baseline
        if baseline is not None:
            table.add_row("baseline", outcome_text(baseline, None, study.objective))
        if progress.best is not None and progress.best is not baseline:
            who = candidate_text(progress.best.candidate, study.baseline)
            table.add_row("best so far", f"{outcome_text(progress.best, baseline, study.objective)}\n{who}")
        left = progress.left_s()
        passed = numbers.duration(time.monotonic() - progress.started_s)
        about = (
            "unknown" if left is None else f"about {numbers.duration(left)} for the trials, then confirmation"
        )
        table.add_row("time", f"{passed} passed, left: {about}")
        return table
