"""Recorded surfaces: every candidate of a space under every load, as compact tables.

    python benchmarks/surfaces.py record NAME --folder DIR [--passes 3]   measures a model, 10 minutes a pass
    python benchmarks/surfaces.py list                                    what is recorded

A surface is a CSV file in `benchmarks/surfaces/`: one column a knob (empty where it is inactive), then
`concurrency`, `request_batch`, `throughput` (inferences a second), `avg`, `p50`, `p90`, `p95`, `p99`
(milliseconds), `requests` and `memory_bytes`; a candidate that failed has one row with `failure`. Lines that
begin with `#` say how it was made. Other tables of this form can be replayed too.

The very same configuration differs by 2 to 15% from one time that it is loaded to the next, so a surface is
measured in several passes, each candidate loaded anew in each, and a row holds their medians. A pass that is
in the folder already is not measured again: more passes can be added later.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import ClosedLoad, Failure, Interval, Load, Measurement
from tritonc.tuner.serving import in_flight

FOLDER = Path(__file__).parent / "surfaces"
MEASURES = ("throughput", "avg", "p50", "p90", "p95", "p99", "requests", "memory_bytes")
_LATENCIES = ("avg", "p50", "p90", "p95", "p99")

SEARCH = """\
  instance_count: [1, 2, 3, 4]
  intra_op_thread_count: 1
  max_batch_size: [1, 4, 8, 32]
  max_queue_delay_microseconds: [0, 1000, 3000]
"""
SPEC = """\
apiVersion: tritonc/v1
name: surface-{name}
models:
  {name}:
    source: {name}.onnx
    max_batch_size: 32
    workload: {{arrival: closed, max_concurrency: 64}}
    slo: {{p99_latency_ms: 20}}
    accuracy: {{rtol: 5.0e-2, atol: 1.0e-1}}
targets:
  cpu:
    device: cpu
    cores: 1
    memory: 8GiB
    triton: "24.10"
    backends:
      onnxruntime: {{accelerators: [none, openvino]}}
      openvino: {{}}
search:
{search}"""


@dataclass(eq=False)
class Surface:
    """A recorded table.

    Attributes:
        outcomes: by candidate and load; a candidate that failed has its failure under every load.
        baseline: the candidate that a search begins with; None where the table names none.
    """

    name: str
    outcomes: Mapping[tuple[Candidate, Load], Measurement | Failure]
    baseline: Candidate | None

    def __post_init__(self) -> None:
        loads: dict[Candidate, list[Load]] = {}
        for candidate, load in self.outcomes:
            loads.setdefault(candidate, []).append(load)
        self._loads = {candidate: tuple(sorted(each, key=in_flight)) for candidate, each in loads.items()}

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates, in the order of the table."""
        return tuple(self._loads)

    def loads(self, candidate: Candidate) -> tuple[Load, ...]:
        """The loads that a candidate was measured under, ascending."""
        return self._loads[candidate]


def read_surface(path: Path) -> Surface:
    """The table in a CSV file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    notes = dict(line[1:].split(":", 1) for line in lines if line.startswith("#") and ":" in line)
    rows = list(csv.DictReader(line for line in lines if line and not line.startswith("#")))
    knobs = [name for name in rows[0] if name not in (*MEASURES, "concurrency", "request_batch", "failure")]
    levels = sorted({int(row["concurrency"]) for row in rows if row["concurrency"]})
    outcomes: dict[tuple[Candidate, Load], Measurement | Failure] = {}
    for row in rows:
        values = {knob: _value(row[knob]) for knob in knobs if row[knob]}
        candidate = Candidate.of(path.stem, "recorded", values)
        if row.get("failure"):
            failure = Failure(reason=row["failure"], detail="recorded")  # type: ignore[arg-type]
            outcomes |= {(candidate, ClosedLoad(concurrency=level)): failure for level in levels}
        else:
            measured = _measurement(row)
            outcomes[candidate, measured.load] = measured
    wanted = notes.get(" baseline", "").strip()
    baseline = next((candidate for candidate, _ in outcomes if candidate.id == wanted), None)
    return Surface(path.stem, outcomes, baseline)


def write_surface(path: Path, surface: Surface, notes: Sequence[str]) -> None:
    """Writes a table, with `notes` above it."""
    knobs = sorted({knob for candidate in surface.candidates for knob in candidate.values})
    text = io.StringIO()
    text.writelines(f"# {note}\n" for note in notes)
    if surface.baseline is not None:
        text.write(f"# baseline: {surface.baseline.id}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*knobs, "concurrency", "request_batch", *MEASURES, "failure"])
    for candidate in surface.candidates:
        values = [_text(candidate.values.get(knob)) for knob in knobs]
        for load in surface.loads(candidate):
            outcome = surface.outcomes[candidate, load]
            if isinstance(outcome, Failure):
                writer.writerow([*values, "", "", *("" for _ in MEASURES), outcome.reason])
                break
            writer.writerow([*values, *_measures(outcome), ""])
    path.write_text(text.getvalue(), encoding="utf-8")


def _measures(outcome: Measurement) -> Iterable[object]:
    load = outcome.load
    assert isinstance(load, ClosedLoad)
    yield from (load.concurrency, load.request_batch, f"{outcome.throughput.value:.5g}")
    yield from (f"{outcome.latency_ms[name].value:.4g}" for name in _LATENCIES)  # type: ignore[index]
    yield from (outcome.requests, outcome.memory_bytes or "")


def _measurement(row: Mapping[str, str]) -> Measurement:
    load = ClosedLoad(concurrency=int(row["concurrency"]), request_batch=int(row["request_batch"] or 1))
    latency_ms: dict[Any, Interval] = {
        name: Interval(value=float(row[name])) for name in _LATENCIES if row.get(name)
    }
    return Measurement(
        load=load,
        requests=int(row["requests"] or 0),
        duration_s=0.0,
        throughput=Interval(value=float(row["throughput"])),
        latency_ms=latency_ms,
        memory_bytes=int(row["memory_bytes"]) if row.get("memory_bytes") else None,
    )


def _text(value: KnobValue | None) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "[" + " ".join(map(str, value)) + "]"
    return str(value)


def _value(text: str) -> KnobValue:
    if text.startswith("["):
        return tuple(int(item) for item in text[1:-1].split())
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def write_model(name: str, path: Path) -> None:
    """A model of half a millisecond an execution, so that short windows see enough requests for a p99.

    Raises:
        KeyError: there is none of this name.
    """
    from models import write_cnn, write_mlp, write_transformer

    writers: Mapping[str, Callable[[Path], None]] = {
        "cnn": partial(write_cnn, channels=24),
        "mlp": partial(write_mlp, width=512),
        "transformer": partial(write_transformer, layers=2, sequence=(16, 128)),
    }
    writers[name](path)


def record(name: str, folder: Path, seed: int) -> Surface:
    """One pass: measures a surface with `--sampler grid` in a project of its own in `folder`.

    Args:
        name: of a model that `write_model` knows.
        folder: made if absent.
        seed: of the order of the candidates.
    """
    from tritonc.compiler.project import open_project
    from tritonc.tuner.engines import engine_named
    from tritonc.tuner.events import Event, SearchEnded, TrialFinished
    from tritonc.tuner.plan import Settings, plan_of
    from tritonc.tuner.trial import Trial
    from tritonc.tuner.tune import tune

    folder.mkdir(parents=True, exist_ok=True)
    write_model(name, folder / f"{name}.onnx")
    (folder / "spec.yaml").write_text(SPEC.format(name=name, search=SEARCH))
    project = open_project(folder / "spec.yaml")
    trials: list[Trial] = []

    def watch(event: Event) -> None:
        if isinstance(event, TrialFinished):
            trials.append(event.trial)
            print(
                f"{len(trials)} {event.trial.candidate.values} {event.trial.seconds:.1f} s", file=sys.stderr
            )
        if isinstance(event, SearchEnded):
            raise KeyboardInterrupt  # nothing is to be decided

    settings = Settings(trials=10_000, sampler="grid", seed=seed, fresh=True)
    plan = plan_of(project, settings)
    with contextlib.suppress(KeyboardInterrupt):
        tune(project, plan, settings, engine=engine_named("embedded"), observer=watch)
    space = plan.tasks[0].space
    if len(trials) < len(space):
        sys.exit(f"only {len(trials)} of {len(space)} candidates were measured")
    return surface_of(name, trials, space.baseline)


def surface_of(name: str, trials: Sequence[object], baseline: Candidate) -> Surface:
    """The table of all trials of a grid."""
    from tritonc.tuner.trial import Trial

    outcomes: dict[tuple[Candidate, Load], Measurement | Failure] = {}
    for trial in trials:
        assert isinstance(trial, Trial)
        if isinstance(trial.outcome, Failure):
            outcomes[trial.candidate, ClosedLoad(concurrency=1)] = trial.outcome
        else:
            outcomes |= {(trial.candidate, step.load): step for step in trial.outcome.steps}
    return Surface(name, outcomes, baseline)


def pooled(passes: Sequence[Surface]) -> Surface:
    """The medians of several passes over one space.

    A candidate that failed in most of them failed; a load that none completed under is not there.
    """
    first = passes[0]
    outcomes: dict[tuple[Candidate, Load], Measurement | Failure] = {}
    for candidate in first.candidates:
        seen = [{load: each.outcomes[candidate, load] for load in each.loads(candidate)} for each in passes]
        failures = [one for each in seen for one in each.values() if isinstance(one, Failure)]
        if 2 * len(failures) > len(passes):
            outcomes[candidate, ClosedLoad(concurrency=1)] = failures[0]
            continue
        for load in sorted({load for each in seen for load in each}, key=in_flight):
            found = [one for each in seen if isinstance(one := each.get(load), Measurement)]
            if found:
                outcomes[candidate, load] = _median(found)
    return Surface(first.name, outcomes, first.baseline)


def _median(measured: Sequence[Measurement]) -> Measurement:
    return measured[0].model_copy(
        update={
            "throughput": Interval(value=median(each.throughput.value for each in measured)),
            "latency_ms": {
                name: Interval(value=median(each.latency_ms[name].value for each in measured))
                for name in measured[0].latency_ms
            },
            "requests": sum(each.requests for each in measured),
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is recorded")
    recording = commands.add_parser("record", help="measure a surface on this machine")
    recording.add_argument("name", help="cnn, mlp or transformer")
    recording.add_argument("--folder", type=Path, required=True, help="for the projects; made if absent")
    recording.add_argument("--passes", type=int, default=3, help="over all candidates (default 3)")
    arguments = parser.parse_args()
    if arguments.command == "list":
        for path in sorted(FOLDER.glob("*.csv")):
            surface = read_surface(path)
            print(f"{surface.name}: {len(surface.candidates)} candidates, {len(surface.outcomes)} runs")
        return 0
    passes = []
    for number in range(arguments.passes):
        folder = arguments.folder / f"{arguments.name}-{number}"
        path = folder / f"{arguments.name}.csv"
        if not path.exists():
            write_surface(path, record(arguments.name, folder, seed=number), notes(1))
        passes.append(read_surface(path))
    write_surface(FOLDER / f"{arguments.name}.csv", pooled(passes), notes(arguments.passes))
    return 0


def notes(passes: int) -> list[str]:
    """How a table was made, for its head."""
    from tritonc.tuner.hardware import this_machine

    hardware = this_machine().record()
    return [
        "made by: python benchmarks/surfaces.py record (tritonc tune --sampler grid, embedded engine)",
        f"machine: {hardware.cpu}, {hardware.cores} cores",
        "closed loop, one window of 0.4 to 3 s a load after a warm-up, candidates in random order",
        "the server on one core, the load generator on the other",
        *([f"medians of {passes} passes, each candidate loaded anew in each"] if passes > 1 else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
