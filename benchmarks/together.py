"""Two models tuned together against the same two tuned one after another, both served side by side.

    python benchmarks/together.py [--models cnn,mlp] [--trials 50] [--rounds 4] [--requests 300] [--seed 0]
                                  [--folder DIR] [--reuse]

Tunes the two models separately in one project and `together` in another, which searches each alone first as
well; with --reuse it has those studies from the first. Then both pairs of configurations are loaded into one
server and measured in turn, round after round in an order that is drawn anew, always with both models of a
pair under load at the same time: under the loads that each lock has, and under shares of them. What a pair
can do is its best geometric mean of both throughputs under any of these loads at which the p99 of both,
pooled over all rounds, keeps its limit.

Exits 1 where the pair tuned together does less than 0.97 of what the other does, or breaks a limit under its
own loads that the other one keeps under its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models import MODELS

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import joined, members_of
from tritonc.compiler.project import Project, open_project
from tritonc.schemas.lock import Decision
from tritonc.schemas.measurement import ClosedLoad, Failure, Load
from tritonc.tuner.bench import Bench
from tritonc.tuner.demand import read_demands
from tritonc.tuner.engines import engine_named
from tritonc.tuner.events import Decided, Event, SearchEnded, StudyStarted, Warned
from tritonc.tuner.inputs import read_inputs
from tritonc.tuner.joint_measurement import Together
from tritonc.tuner.joint_worth import JOINT_LOAD, Member
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.perf_analyzer import LoadData, PerfAnalyzer
from tritonc.tuner.plan import Settings, plan_of
from tritonc.tuner.stand import Stand
from tritonc.tuner.study_setup import measured_with
from tritonc.tuner.together import JointSample, TogetherMeasuring
from tritonc.tuner.tune import TuneResult, tune

WANTED = 0.97
SLO_MS = {"cnn": 40.0, "mlp": 40.0, "transformer": 60.0}
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Of the loads that the separately tuned models carry alone: together they carry less."""
OWN_SHARES = (1.0, 0.8)
"""Of the loads that the models carry that were tuned together."""
SEPARATE, JOINT = "separately", "together"

Loads = tuple[tuple[str, int], ...]
"""Clients of each model."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The configurations of both models, as one tuning left them.

    Attributes:
        loads: what each carries, as its lock says.
    """

    candidate: Candidate
    loads: Loads


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured of a pair under one set of loads.

    Attributes:
        measured: over all rounds.
        rounds: how well both did in each round, relative to nothing in particular.
    """

    measured: Together
    rounds: tuple[float, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="cnn,mlp", help=f"two of {','.join(MODELS)}")
    parser.add_argument("--trials", type=int, default=50, help="of each study (default 50)")
    parser.add_argument("--rounds", type=int, default=4, help="of the comparison (default 4)")
    parser.add_argument("--requests", type=int, default=300, help="of each model in a turn (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the searches and of the order (default 0)")
    parser.add_argument("--folder", type=Path, help="keeps the projects, to go on where it was interrupted")
    parser.add_argument("--reuse", action="store_true", help="do not measure each model alone a second time")
    arguments = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    models = arguments.models.split(",")
    if len(models) != 2 or set(models) - set(MODELS):
        parser.error(f"--models: two of {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory(prefix="together-") as name:
        folder = arguments.folder or Path(name)
        pairs, seconds = {}, {}
        for kind in (SEPARATE, JOINT):
            if kind == JOINT and arguments.reuse and not (folder / kind).exists():
                # Studies only: the lock would bring the separately tuned pair into the race.
                shutil.copytree(folder / SEPARATE / ".tritonc", folder / kind / ".tritonc")
            began = time.monotonic()
            result, spec = tuned(kind, models, folder / kind, arguments)
            seconds[kind] = time.monotonic() - began
            pairs[kind] = pair_of(result.decisions, models)
        seen = compared(pairs, spec, arguments)
        return report(pairs, seen, seconds, {model: SLO_MS[model] for model in models})


def tuned(
    kind: str, models: Sequence[str], folder: Path, arguments: argparse.Namespace
) -> tuple[TuneResult, Path]:
    """What `tune` ends with, and the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        if not (folder / f"{model}.onnx").exists():
            MODELS[model](folder / f"{model}.onnx")
    content = {
        "apiVersion": "tritonc/v1",
        "name": "together",
        "models": {
            model: {
                "source": f"{model}.onnx",
                "max_batch_size": 8,
                "workload": {"arrival": "closed", "max_concurrency": 32},
                "slo": {"p99_latency_ms": SLO_MS[model]},
            }
            for model in models
        },
        "targets": {
            "cpu": {
                "device": "cpu",
                "cores": os.cpu_count(),
                "backends": {"onnxruntime": {"accelerators": ["none"]}},
            }
        },
    }
    spec = folder / "spec.yaml"
    spec.write_text(json.dumps(content if kind == SEPARATE else {**content, "together": list(models)}))
    project = open_project(spec)
    settings = Settings(trials=arguments.trials, seed=arguments.seed)
    return tune(
        project, plan_of(project, settings), settings, engine=engine_named("embedded"), observer=_say
    ), spec


def _say(event: Event) -> None:
    match event:
        case StudyStarted():
            text = f"{event.model}: {event.candidates} candidates"
        case SearchEnded():
            text = f"search ended: {event.reason}"
        case Decided():
            text = f"{event.decision.model}: {event.reason}"
        case Warned():
            text = event.text
        case _:
            return
    _note(text)


def _note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def pair_of(decisions: Sequence[Decision], models: Sequence[str]) -> Pair:
    """What the lock has of both models."""
    chosen = {decision.model: decision.chosen for decision in decisions}
    candidates, loads = [], []
    for model in models:
        load = chosen[model].measurement.load
        assert isinstance(load, ClosedLoad)
        candidates.append(Candidate.of(model, "cpu", chosen[model].configuration.knobs))
        loads.append((model, load.concurrency))
    return Pair(joined(candidates), tuple(loads))


def compared(
    pairs: Mapping[str, Pair], spec: Path, arguments: argparse.Namespace
) -> dict[tuple[str, Loads], Seen]:
    """Both pairs under all loads, in every round in an order drawn anew."""
    project = open_project(spec)
    settings = Settings(seed=arguments.seed)
    task = plan_of(project, settings).tasks[-1]  # that of both together
    engine = engine_named("embedded")
    levels = dict.fromkeys(
        [
            *(_scaled(pairs[SEPARATE].loads, share) for share in SHARES),
            *(_scaled(pairs[JOINT].loads, share) for share in OWN_SHARES),
        ]
    )
    turns = [(kind, loads) for kind in pairs for loads in levels]
    samples: dict[tuple[str, Loads], list[JointSample]] = {turn: [] for turn in turns}
    rng = random.Random(arguments.seed)
    with Stand(
        project, engine, spec.parent / "served", cores=task.cores.server, on_start=lambda _restarted: None
    ) as stand:
        _, generator = measured_with(engine, task, settings)
        members = [
            _member(project, one, generator, stand, arguments.seed)
            for one in members_of(pairs[JOINT].candidate).values()
        ]
        measuring = {
            loads: TogetherMeasuring(
                stand,
                members,
                baseline=pairs[SEPARATE].candidate,
                carried=partial(_carried, loads),
                on_load=lambda _candidate, _load: None,
                warn=_note,
            )
            for loads in levels
        }
        both = [one for pair in pairs.values() for one in members_of(pair.candidate).values()]
        stand.serve_together(tuple(dict.fromkeys(both)))
        stand.settle()
        for number in range(arguments.rounds):
            _note(f"round {number + 1} of {arguments.rounds}")
            for kind, loads in rng.sample(turns, len(turns)):
                seen = measuring[loads].sample(pairs[kind].candidate, JOINT_LOAD, arguments.requests)
                if isinstance(seen, Failure):
                    raise SystemExit(f"{kind} failed: {seen.reason}: {seen.detail}")
                samples[kind, loads].append(seen)
    return {
        (kind, loads): Seen(
            measuring[loads].pooled(each),
            tuple(measuring[loads].pooled([one]).throughput.value for one in each),
        )
        for (kind, loads), each in samples.items()
    }


def _member(project: Project, one: Candidate, generator: PerfAnalyzer, stand: Stand, seed: int) -> Member:
    spec = project.spec.models[one.model]
    inputs = read_inputs(project, one.model)
    folder = stand.folder / "load" / one.model
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        generator=generator,
        data=LoadData.of(inputs, folder),
        inputs=(inputs,),
        workload=read_demands(project, one.model)[0],
        slo=spec.slo,
        objective="throughput",
        accuracy=spec.accuracy,
        seed=seed,
    )
    measuring = StandMeasuring(
        stand,
        bench,
        baseline=one,
        compared_with=lambda: None,
        on_load=lambda _candidate, _load: None,
        warn=_note,
    )
    return Member(one.model, 1.0, measuring, bench)


def _scaled(loads: Loads, share: float) -> Loads:
    return tuple((model, max(1, round(share * clients))) for model, clients in loads)


def _carried(loads: Loads, _candidate: Candidate) -> dict[str, Load]:
    return {model: ClosedLoad(concurrency=clients) for model, clients in loads}


def report(
    pairs: Mapping[str, Pair],
    seen: Mapping[tuple[str, Loads], Seen],
    seconds: Mapping[str, float],
    limits_ms: Mapping[str, float],
) -> int:
    """Prints all that was measured and what it means; the exit code."""
    for kind, pair in pairs.items():
        knobs = ", ".join(f"{knob} {value}" for knob, value in pair.candidate.knobs)
        print(f"{kind}: tuned in {seconds[kind]:.0f} s: {knobs}")
    names = list(limits_ms)
    print(
        f"{'':11} {'clients':>9}  {'mean':>7}  " + "  ".join(f"{name + ' /s, p99 ms':>24}" for name in names)
    )
    for (kind, loads), each in sorted(seen.items(), key=lambda item: (item[0][0], item[0][1])):
        members = each.measured.members
        cells = "  ".join(
            f"{members[name].throughput.value:11.1f} {_p99(each, name):7.1f}"
            f" {'kept' if _p99(each, name) <= limits_ms[name] else 'MISS':>4}"
            for name in names
        )
        clients = "+".join(str(count) for _, count in loads)
        own = " own" if loads == pairs[kind].loads else ""
        print(f"{kind:11} {clients:>9}  {each.measured.throughput.value:7.1f}  {cells}{own}")
    best = {kind: _best(kind, seen, limits_ms) for kind in pairs}
    ratio, half = _ratio(seen[JOINT, best[JOINT]], seen[SEPARATE, best[SEPARATE]])
    kept = {
        kind: {name for name in names if _p99(seen[kind, pair.loads], name) <= limits_ms[name]}
        for kind, pair in pairs.items()
    }
    broken = kept[SEPARATE] - kept[JOINT]
    own, own_half = _ratio(seen[JOINT, pairs[JOINT].loads], seen[SEPARATE, pairs[SEPARATE].loads])
    print(
        f"under their own loads: {own:.3f} (+-{own_half:.3f}) of the separately tuned; "
        f"limits kept: together {sorted(kept[JOINT])}, separately {sorted(kept[SEPARATE])}"
    )
    met = ratio >= WANTED and not broken
    print(
        f"within the limits: {ratio:.3f} (+-{half:.3f}) of the separately tuned, at least {WANTED} wanted; "
        f"limits broken that those keep: {sorted(broken) or 'none'}: {'kept' if met else 'MISSED'}"
    )
    return int(not met)


def _p99(seen: Seen, model: str) -> float:
    return seen.measured.members[model].latency_ms["p99"].value


def _best(kind: str, seen: Mapping[tuple[str, Loads], Seen], limits_ms: Mapping[str, float]) -> Loads:
    """The loads under which a pair does best within all limits, else those that miss them least."""

    def rank(loads: Loads) -> tuple[float, float]:
        here = seen[kind, loads]
        over = max(_p99(here, name) / limit for name, limit in limits_ms.items())
        return (-max(1.0, over), here.measured.throughput.value)

    return max((loads for of, loads in seen if of == kind), key=rank)


def _ratio(one: Seen, other: Seen) -> tuple[float, float]:
    """What one does over what the other does, and half of its 95% interval, from the rounds."""
    from scipy import stats

    logs = [math.log(mine / theirs) for mine, theirs in zip(one.rounds, other.rounds, strict=True)]
    ratio = math.exp(statistics.fmean(logs))
    if len(logs) < 2:
        return ratio, math.inf
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return ratio, ratio * half


if __name__ == "__main__":
    sys.exit(main())
