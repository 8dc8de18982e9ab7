"""How honest the tuner's intervals are: coverage, width, time of a decision, bias of the capacity.

    python benchmarks/measurement.py [--repeats 34] [--blocks 4] [--truths 8] [--cores N] [--record FILE]

Two configurations of each of three small models are measured over and over again, interleaved in an order
that is drawn anew for every round, each time loaded, verified, warmed up and measured exactly as a trial of
`tune` measures and reports the load that decides. The server has `--cores`, the load generator those that are
left; where none is, it shares them, as in a `tune` of a target with all the machine's cores. Every block
begins as a study does, with the noise floor of each model's baseline. The truth is the mean of long runs of
the same points, spread over the whole session: before, among and after the repeats. The capacity within an
SLO is found several times by the whole load search, and compared with long runs at the loads that it chose
and their neighbours.

Exits 1 where the Wilson interval of the coverage of throughput's 95% interval does not contain 95%, or the
median of its relative half-width is above 5%. A drift between the halves of the session that is larger than
the intervals says that something else ran meanwhile: `--record` writes all repeats and long runs with times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from models import MODELS

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import open_project
from tritonc.compiler.space import Space, space_for
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import ClosedLoad, Failure, Interval, Measurement
from tritonc.schemas.spec import ClosedWorkload, Slo
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import Capacity, Known
from tritonc.tuner.demand import read_demands
from tritonc.tuner.engines import engine_named
from tritonc.tuner.hardware import pinning, this_machine
from tritonc.tuner.inputs import read_inputs
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.perf_analyzer import LoadData, perf_analyzer_at
from tritonc.tuner.points import adapted
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.stand import Stand

Thing = TypeVar("Thing")
Outcome = TypeVar("Outcome")

CONFIDENCE = 0.95
WIDEST = 0.05
LONG_S = 3.0
"""Of load in each long run; there are several of each point."""
ROOM = 1.5
"""The limit under which a capacity is looked for, over the p99 of a point's long run."""
LENIENT = Slo(p99_latency_ms=60_000)
SPEC = """\
apiVersion: tritonc/v1
name: measurement
models: {{{model}: {{source: {model}.onnx, max_batch_size: 8, slo: {{p99_latency_ms: 60000}}}}}}
targets: {{cpu: {{device: cpu, cores: {cores}, backends: {{onnxruntime: {{accelerators: [none]}}}}}}}}
"""
THREADS: Mapping[str, KnobValue] = {"instance_count": 1, "intra_op_thread_count": 2}
INSTANCES: Mapping[str, KnobValue] = {"instance_count": 2, "intra_op_thread_count": 1}
BATCHES: Mapping[str, KnobValue] = {**INSTANCES, "dynamic_batching": True, "max_batch_size": 8}
POINTS: Mapping[str, Sequence[tuple[Mapping[str, KnobValue], int]]] = {
    "cnn": ((THREADS, 2), (BATCHES, 16)),
    "mlp": ((INSTANCES, 2), (BATCHES, 16)),
    "transformer": ((THREADS, 4), (INSTANCES, 4)),
}
"""Knobs that differ from the baseline's, as near as the cores allow, and clients."""


@dataclass
class Subject:
    """A model on a server of its own.

    Attributes:
        noise: its noise floor in this block.
    """

    name: str
    stand: Stand
    bench: Bench
    baseline: Candidate
    space: Space
    noise: NoiseFloor | None = None

    def measuring(self, slo: Slo, clients: int) -> StandMeasuring:
        """As the tuner has it, with loads up to `clients`."""
        bench = replace(self.bench, slo=slo, workload=ClosedWorkload(max_concurrency=clients))
        return StandMeasuring(
            self.stand,
            bench,
            baseline=self.baseline,
            compared_with=lambda: None,
            on_load=lambda _candidate, _load: None,
            warn=sys.exit,
        )


@dataclass
class Point:
    """A candidate under a load."""

    subject: Subject
    candidate: Candidate
    clients: int
    measuring: StandMeasuring
    seen: list[Measurement] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    long: list[Sample] = field(default_factory=list)
    long_times: list[float] = field(default_factory=list)

    @property
    def load(self) -> ClosedLoad:
        """That is measured."""
        return ClosedLoad(concurrency=self.clients)

    @property
    def truth(self) -> Measurement:
        """Of all long runs."""
        return pooled(self.long)

    def decide(self) -> None:
        """One repeat, as a trial does it."""
        began = time.monotonic()
        known = Known(first=self.load, noise=self.subject.noise)
        found = well(self.measuring.capacity(self.candidate, known))
        assert found.measurement.load == self.load
        self.seconds.append(time.monotonic() - began)
        self.times.append(began)
        self.seen.append(found.measurement)
        self.subject.noise = found.noise

    def run_long(self) -> None:
        """One long run."""
        rate = self.seen[-1].throughput.value if self.seen else 300.0
        self.long_times.append(time.monotonic())
        self.long.append(well(self.measuring.sample(self.candidate, self.load, int(LONG_S * rate))))


@dataclass
class Limited:
    """A candidate whose capacity within a p99 limit is looked for again and again."""

    point: Point
    limit_ms: float
    measuring: StandMeasuring
    found: list[Capacity] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def decide(self) -> None:
        """One whole load search, as a trial without a prediction does it."""
        began = time.monotonic()
        self.found.append(
            well(self.measuring.capacity(self.point.candidate, Known(noise=self.point.subject.noise)))
        )
        self.seconds.append(time.monotonic() - began)

    def run_long(self) -> dict[int, Measurement]:
        """Long runs at the loads that were chosen and their neighbours, in turn, by clients."""
        chosen = {clients_of(each.measurement) for each in self.found}
        loads = sorted({max(1, n + step) for n in chosen for step in (-1, 0, 1)})
        samples: dict[int, list[Sample]] = {n: [] for n in loads}
        rate = self.found[0].measurement.throughput.value
        for _, n in itertools.product(range(2), loads):
            load = ClosedLoad(concurrency=n)
            samples[n].append(well(self.measuring.sample(self.point.candidate, load, int(LONG_S * rate))))
        return {n: pooled(each) for n, each in samples.items()}


def well(outcome: Outcome | Failure) -> Outcome:
    """The outcome, which nothing can be said without."""
    if isinstance(outcome, Failure):
        sys.exit(f"{outcome.reason}: {outcome.detail}")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=34, help="of each of six points (default 34)")
    parser.add_argument("--blocks", type=int, default=4, help="each with noise floors of its own (default 4)")
    parser.add_argument("--truths", type=int, default=8, help="long runs of each point (default 8)")
    cores = this_machine().usable_cores
    choices = range(1, cores + 1)
    parser.add_argument(
        "--cores", type=int, default=cores, choices=choices, help="of the server (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order (default 0)")
    parser.add_argument("--record", type=Path, help="write every repeat and long run to FILE, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        subjects = [subject(model, Path(name), stack, arguments.cores) for model in POINTS]
        points = [point for each in subjects for point in points_of(each)]
        began = time.monotonic()
        limited = session(subjects, points, arguments)
        print(
            f"session of {time.monotonic() - began:.0f} s: {sum(len(p.seen) for p in points)} repeats of "
            f"{len(points)} points, {arguments.truths} long runs of each"
        )
        if arguments.record:
            arguments.record.write_text(json.dumps([recorded(point) for point in points], indent=1) + "\n")
        for each in limited:
            report_capacity(each)
        return report(points)


def session(
    subjects: Sequence[Subject], points: Sequence[Point], arguments: argparse.Namespace
) -> Sequence[Limited]:
    """Everything measured: blocks of rounds, long runs spread over them, and load searches now and then."""
    rng = random.Random(arguments.seed)
    rounds = arguments.repeats
    long_rounds = {round(i * rounds / (arguments.truths - 1)) for i in range(arguments.truths)}
    block_rounds = {round(i * rounds / arguments.blocks) for i in range(arguments.blocks)}
    limited: list[Limited] = []
    for number in range(rounds + 1):
        if number in long_rounds:
            in_turn(points, rng, Point.run_long)
        if number == rounds:
            break
        if number in block_rounds:
            begin_block(subjects)
            limited = limited or [limited_of(points, each) for each in subjects]
            in_turn(limited, rng, Limited.decide)
        in_turn(points, rng, Point.decide)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return limited


def in_turn(things: Iterable[Thing], rng: random.Random, do: Callable[[Thing], None]) -> None:
    """Once for each, in an order drawn anew."""
    drawn = list(things)
    rng.shuffle(drawn)
    for each in drawn:
        do(each)


def begin_block(subjects: Iterable[Subject]) -> None:
    """A study begins: the noise floor of each model's baseline."""
    for each in subjects:
        found = well(each.measuring(LENIENT, 4).capacity(each.baseline))
        each.noise = found.noise
        if found.noise:
            apart = found.noise.throughput.deviation
            print(f"noise floor of {each.name}: {apart:.1%}, measured in {found.seconds.noise:.1f} s")


def subject(model: str, folder: Path, stack: ExitStack, cores: int) -> Subject:
    """A model with its server, which is started when it is needed."""
    own = folder / model
    (own / "load").mkdir(parents=True)
    MODELS[model](own / f"{model}.onnx")
    pinned = pinning(cores, this_machine().cores)
    (own / "spec.yaml").write_text(SPEC.format(model=model, cores=cores))
    project = open_project(own / "spec.yaml")
    space = space_for(project, model, "cpu")
    engine = engine_named("embedded")
    engine.describe()
    binary, environment = engine.perf_analyzer()
    stand = Stand(project, engine, own / "served", cores=pinned.server, on_start=lambda _restarted: None)
    spec, inputs = project.spec.models[model], read_inputs(project, model)
    bench = Bench(
        generator=perf_analyzer_at(binary, environment, pinned.load_generator),
        data=LoadData.of(inputs, own / "load"),
        inputs=(inputs,),
        workload=read_demands(project, model)[0],
        slo=spec.slo,
        objective="throughput",
        accuracy=spec.accuracy,
    )
    return Subject(model, stack.enter_context(stand), bench, space.baseline, space)


def points_of(each: Subject) -> list[Point]:
    found = []
    for knobs, clients in POINTS[each.name]:
        candidate = adapted(each.space, each.baseline, knobs)
        found.append(Point(each, candidate, clients, each.measuring(LENIENT, clients)))
    return found


def limited_of(points: Sequence[Point], each: Subject) -> Limited:
    """The model's last point under a limit that lies above its latency there."""
    point = [point for point in points if point.subject is each][-1]
    limit_ms = ROOM * point.truth.latency_ms["p99"].value
    return Limited(point, limit_ms, each.measuring(Slo(p99_latency_ms=limit_ms), 64))


def recorded(point: Point) -> dict[str, object]:
    """All that was seen of a point, with the seconds at which it was."""
    return {
        "point": f"{point.subject.name}, {point.clients} clients",
        "repeats": [
            {"at_s": at, "windows_s": seen.duration_s, **seen.throughput.model_dump()}
            for at, seen in zip(point.times, point.seen, strict=True)
        ],
        "long": [
            {"at_s": at, **pooled([sample]).throughput.model_dump()}
            for at, sample in zip(point.long_times, point.long, strict=True)
        ],
    }


def drift_between_halves(point: Point) -> float:
    """Throughput of the later half of the repeats over that of the earlier half, minus 1."""
    values = [seen.throughput.value for seen in point.seen]
    half = len(values) // 2
    return statistics.fmean(values[half:]) / statistics.fmean(values[:half]) - 1


def report_capacity(limited: Limited) -> None:
    """Capacities against long runs."""
    long = limited.run_long()
    able = [n for n, seen in long.items() if seen.latency_ms["p99"].value <= limited.limit_ms]
    if not able:
        print(f"{limited.point.subject.name}: no load keeps {limited.limit_ms:.1f} ms in long runs")
        return
    true = max(long[n].throughput.value for n in able)
    biases = [each.measurement.throughput.value / true - 1 for each in limited.found]
    at = [long[clients_of(each.measurement)].throughput.value / true - 1 for each in limited.found]
    steps = [len(each.steps) for each in limited.found]
    print(
        f"{limited.point.subject.name}: capacity within {limited.limit_ms:.1f} ms, {len(biases)} times: "
        f"bias {statistics.median(biases):+.1%} (from {min(biases):+.1%} to {max(biases):+.1%}); "
        f"the loads chosen carry {statistics.median(at):+.1%} (from {min(at):+.1%}) in long runs; "
        f"{statistics.fmean(steps):.1f} loads, {statistics.fmean(limited.seconds):.1f} s each"
    )


def clients_of(measured: Measurement) -> int:
    assert isinstance(measured.load, ClosedLoad)
    return measured.load.concurrency


def report(points: Sequence[Point]) -> int:
    """Prints coverage and widths; the exit code."""
    from scipy.stats import binomtest

    columns = f"{'inside':>9} {'half-width':>10} {'spread':>7} {'drift':>7} {'seconds':>8}"
    print(f"{'point':24} {'truth':>8} {columns}")
    for point in points:
        true, seen = point.truth.throughput.value, [each.throughput for each in point.seen]
        values = [each.value for each in seen]
        print(
            f"{point.subject.name + f', {point.clients} clients':24} {true:6.0f}/s "
            f"{sum(holds(each, true) for each in seen):4}/{len(seen):<4} "
            f"{statistics.median(map(half_width, seen)):10.1%} "
            f"{statistics.stdev(values) / true:7.1%} {drift_between_halves(point):+7.1%} "
            f"{statistics.fmean(point.seconds):7.1f}s"
        )
    passed = True
    for name, of in QUANTITIES.items():
        rows = [(of(each), of(point.truth).value) for point in points for each in point.seen]
        known = [(seen, true) for seen, true in rows if seen.low is not None and seen.high is not None]
        if not known:
            print(f"{name}: every interval has an unknown end")
            continue
        inside = sum(holds(seen, true) for seen, true in known)
        wilson = binomtest(inside, len(known)).proportion_ci(method="wilson")
        width = statistics.median(half_width(seen) for seen, _ in known)
        print(
            f"{name}: coverage {inside / len(known):.1%} of {len(known)} known intervals of {len(rows)} "
            f"(Wilson {wilson.low:.1%} to {wilson.high:.1%}), median half-width {width:.1%}"
        )
        if name == "throughput":
            passed = wilson.low <= CONFIDENCE <= wilson.high and width <= WIDEST and len(known) == len(rows)
    windows = [seen.duration_s for point in points for seen in point.seen]
    seconds = [each for point in points for each in point.seconds]
    print(
        f"a decided point takes {statistics.median(seconds):.1f} s, loading included (mean "
        f"{statistics.fmean(seconds):.1f} s), on {statistics.fmean(windows):.1f} s of windows"
    )
    return int(not passed)


def holds(interval: Interval, true: float) -> bool:
    """Whether the truth is in it; an unknown end excludes nothing."""
    return (interval.low is None or interval.low <= true) and (interval.high is None or true <= interval.high)


def half_width(interval: Interval) -> float:
    """Half of it, relative; infinite where an end is unknown."""
    if interval.low is None or interval.high is None:
        return float("inf")
    return (interval.high - interval.low) / 2 / interval.value


QUANTITIES: Mapping[str, Callable[[Measurement], Interval]] = {
    "throughput": lambda seen: seen.throughput,
    "average latency": lambda seen: seen.latency_ms["avg"],
    "p50": lambda seen: seen.latency_ms["p50"],
    "p90": lambda seen: seen.latency_ms["p90"],
    "p99": lambda seen: seen.latency_ms["p99"],
}

if __name__ == "__main__":
    sys.exit(main())
