"""tritonc against NVIDIA Model Analyzer: wall time, measured points, and the configuration each ends with.

    python benchmarks/race.py [--models cnn,mlp,transformer] [--modes brute,quick,optuna] [--rounds 5]
                              [--ma-results FILE]

For each model, on the same tritonserver and perf_analyzer, under the same limits and the same p99 SLO:

- Model Analyzer's `profile` in each mode, in local mode;
- (a) `tritonc tune` within the same limits: instances and batch sizes, dynamic batching as Model Analyzer
  writes it, the same largest concurrency;
- (b) `tritonc tune` with all that it would search on this machine.

Then every final configuration is measured again by a procedure that is neither's own: round after round,
each is served in turn and put under a ladder of concurrencies; its verified throughput is that at the largest
concurrency whose p99, pooled over all rounds, keeps the SLO. The noise floor is how much the ratio of two
configurations' throughput in those rounds varies by itself (95%); the best configuration of Model Analyzer is
in the ladder twice.

Exits 1 where (a) takes more than a quarter of quick's time or is verified below the best of Model Analyzer's
modes by more than the noise floor, or (b) takes longer than quick. With `--ma-results FILE` what Model
Analyzer ends with is written to FILE, mode by mode, and what is there already, within the same limits, is not
run again. A search of Model Analyzer that ends with an error of its own is begun anew, twice at most; of one
that never ends well nothing is known but how long it took until then, at least.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import model_analyzer
from ladder import Verified, noise_floor, verify
from model_analyzer import MODES, Finish, Limits
from models import MODELS

from tritonc.compiler.output.writer import write_repository
from tritonc.compiler.project import open_project
from tritonc.compiler.repository import compile_candidate
from tritonc.compiler.space import space_for
from tritonc.schemas.lock_file import read_lock
from tritonc.schemas.measurement import ClosedLoad
from tritonc.tuner.doctor import installed_backends
from tritonc.tuner.process import Child

WALL_LIMIT = 0.25
"""Of quick's wall time, for (a)."""
SLO_MS: Mapping[str, float] = {"cnn": 20.0, "mlp": 20.0, "transformer": 30.0}
_TRIES = 3
"""Of a mode: quick may raise OverflowError where measurements are noisy."""
SAME, FULL = "tritonc (a)", "tritonc (b)"


def main() -> int:
    arguments = _arguments()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    met = [race(model, arguments) for model in arguments.models]
    return int(not all(met))


def race(model: str, arguments: argparse.Namespace) -> bool:
    """Runs and reports everything for one model; whether the acceptance holds.

    Args:
        model: a key of `MODELS`.
        arguments: of the command line.
    """
    slo_ms = arguments.slo or SLO_MS[model]
    limits = Limits(arguments.instances, arguments.batch, arguments.concurrency, slo_ms)
    modes = arguments.modes
    with tempfile.TemporaryDirectory(prefix="race-") as name:
        folder = Path(name)
        MODELS[model](folder / f"{model}.onnx")
        finishes, broken = _model_analyzer(model, limits, modes, folder, arguments.ma_results)
        modes = list(finishes)
        if not modes:
            raise SystemExit(f"{model}: no mode of Model Analyzer ended well")
        options = ["--seed", str(arguments.seed)]
        if arguments.trials:
            options += ["--trials", str(arguments.trials)]
        for name in (SAME, FULL):
            _say(f"{model}: {name}")
            finishes[name] = tune(model, limits, folder, name, options)
        configs = {name: finish.config for name, finish in finishes.items()}
        configs["again"] = finishes[_claimed_best(modes, finishes)].config
        found = verify(
            model,
            {name: _repository(model, config, folder, name) for name, config in configs.items()},
            max_concurrency=limits.max_concurrency,
            slo_ms=slo_ms,
            rounds=arguments.rounds,
            window_s=arguments.window,
            say=lambda what: _say(f"{model}: {what}"),
        )
        return report(model, limits, modes, finishes, found, broken)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=_names, default=list(MODELS), help=f"of {','.join(MODELS)}")
    parser.add_argument("--modes", type=_names, default=list(MODES), help=f"of {','.join(MODES)}")
    parser.add_argument("--instances", type=int, default=3, help="most instances (default 3)")
    parser.add_argument("--batch", type=int, default=8, help="largest max_batch_size (default 8)")
    parser.add_argument("--concurrency", type=int, default=16, help="most clients (default 16)")
    parser.add_argument("--slo", type=float, help="p99 in milliseconds (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="of tritonc's search (default 0)")
    parser.add_argument("--trials", type=int, help="of tritonc's search (default: tritonc's own)")
    parser.add_argument("--rounds", type=int, default=5, help="of the re-measurement (default 5)")
    parser.add_argument("--window", type=float, default=4.0, help="of load in it, in seconds (default 4)")
    parser.add_argument("--ma-results", type=Path, help="what Model Analyzer ended with, as JSON")
    arguments = parser.parse_args()
    for given, known in ((arguments.models, MODELS), (arguments.modes, MODES)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if arguments.rounds < 2:
        parser.error("--rounds: the noise shows from two on")
    return arguments


def _names(text: str) -> list[str]:
    return text.split(",")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _claimed_best(modes: Sequence[str], finishes: Mapping[str, Finish]) -> str:
    return max(modes, key=lambda mode: (finishes[mode].slo_met, finishes[mode].throughput))


def _model_analyzer(
    model: str, limits: Limits, modes: Sequence[str], folder: Path, results: Path | None
) -> tuple[dict[str, Finish], dict[str, float]]:
    """What each mode ends with, and the seconds until the error of one that always ends with one.

    All begin with one instance and the largest batch, which the limits allow.
    """
    project = open_project(_spec(model, limits, folder, SAME))
    space = space_for(project, model, "cpu")
    wanted = {"instance_count": 1, "max_batch_size": limits.max_batch_size}
    start = next(candidate for candidate in space if wanted.items() <= candidate.values.items())
    write_repository(compile_candidate(project, start), folder / "repository")
    known = json.loads(results.read_text()) if results and results.exists() else {}
    for mode in modes:
        key = _key(model, mode, limits)
        if key in known:
            continue
        _say(f"{model}: Model Analyzer, {mode}")
        ended = _profiled(model, mode, limits, folder)
        known[key] = {"error_s": ended} if isinstance(ended, float) else dataclasses.asdict(ended)
        if results:
            results.write_text(json.dumps(known, indent=1) + "\n")
    seen = {mode: known[_key(model, mode, limits)] for mode in modes}
    broken = {mode: each["error_s"] for mode, each in seen.items() if "error_s" in each}
    return {mode: Finish(**each) for mode, each in seen.items() if mode not in broken}, broken


def _key(model: str, mode: str, limits: Limits) -> str:
    return json.dumps([model, mode, dataclasses.asdict(limits)])


def _profiled(model: str, mode: str, limits: Limits, folder: Path) -> Finish | float:
    """What a mode ends with at the first try that ends well, else the shortest time until its error."""
    errors_s = []
    for number in range(1, _TRIES + 1):
        own = folder / f"{mode}{number}"
        own.mkdir()
        try:
            return model_analyzer.profile(model, folder / "repository", mode, limits, own)
        except model_analyzer.ModelAnalyzerError as err:
            _say(f"{model}: {err}")
            errors_s.append(err.wall_s)
    return min(errors_s)


def _spec(model: str, limits: Limits, folder: Path, name: str) -> Path:
    """A project of the model alone, in a folder of its own."""
    project = folder / _plain(name)
    project.mkdir(exist_ok=True)
    if not (project / f"{model}.onnx").exists():
        (project / f"{model}.onnx").hardlink_to(folder / f"{model}.onnx")
    target: dict[str, Any] = {"device": "cpu", "cores": os.cpu_count()}
    search: dict[str, Any] = {}
    if name == SAME:
        target["backends"] = {"onnxruntime": {"accelerators": ["none"]}}
        search = {
            "instance_count": list(range(1, limits.max_instance_count + 1)),
            # As Model Analyzer has them: it writes `dynamic_batching { }` and leaves threads alone.
            "max_queue_delay_microseconds": 0,
            "intra_op_thread_count": 0,
        }
        if limits.max_batch_size > 1:
            search["dynamic_batching"] = True
    else:
        # What `tritonc init` writes for this machine.
        target["backends"] = {
            backend: {"accelerators": list(accelerators)} if accelerators else {}
            for backend, accelerators in installed_backends().items()
        }
    spec = {
        "apiVersion": "tritonc/v1",
        "name": "race",
        "models": {
            model: {
                "source": f"{model}.onnx",
                "max_batch_size": limits.max_batch_size,
                "workload": {"arrival": "closed", "max_concurrency": limits.max_concurrency},
                "slo": {"p99_latency_ms": limits.p99_latency_ms},
            }
        },
        "targets": {"cpu": target},
        "search": search,
    }
    path = project / "spec.yaml"
    path.write_text(json.dumps(spec, indent=2))  # JSON is YAML
    return path


def tune(model: str, limits: Limits, folder: Path, name: str, options: Sequence[str]) -> Finish:
    """What `tritonc tune` ends with; its wall time is that of the whole command."""
    spec = _spec(model, limits, folder, name)
    project = spec.parent
    command = [sys.executable, "-m", "tritonc", "tune", spec.name, *options]
    log = project / "log"
    began = time.monotonic()
    with Child(command, output=log, cwd=project) as child:
        code = child.wait(model_analyzer.LIMIT_S)
        wall_s = time.monotonic() - began
    lock = read_lock(project / "spec.lock.yaml")
    if code not in (0, 1) or lock is None:  # 1: it met no SLO
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{name} ended with {code}:\n{last}")
    (decision,) = lock.decisions
    configurations, points = _measured(project / ".tritonc" / "optuna.db")
    measurement = decision.chosen.measurement
    assert isinstance(measurement.load, ClosedLoad)
    return Finish(
        wall_s=wall_s,
        configurations=configurations,
        points=points,
        server_starts=model_analyzer.server_starts(project / ".tritonc/served/cpu/server.log"),
        config=(project / "build" / "cpu" / model / "config.pbtxt").read_text(),
        concurrency=measurement.load.concurrency,
        throughput=measurement.throughput.value,
        p99_latency_ms=measurement.latency_ms["p99"].value,
        slo_met=decision.slo_met,
    )


def _measured(storage: Path) -> tuple[int, int]:
    """Trials of a study, and the load levels that they measured; the confirmation repeats some of them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = f"sqlite:///{storage}"
    outcomes = [
        trial.user_attrs["outcome"]
        for study in optuna.get_all_study_names(url)
        for trial in optuna.load_study(study_name=study, storage=url).trials
        if "outcome" in trial.user_attrs
    ]
    return len(outcomes), sum(len(outcome.get("steps", ())) for outcome in outcomes)


def _repository(model: str, config: str, folder: Path, name: str) -> Path:
    """A repository of the model with this configuration."""
    repository = folder / f"verified-{_plain(name)}"
    version = repository / model / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").hardlink_to(folder / f"{model}.onnx")
    (version.parent / "config.pbtxt").write_text(config)
    return repository


def _plain(name: str) -> str:
    """A folder's name without what a shell reads: through one Triton's Python backend starts instances."""
    return "".join(letter for letter in name if letter.isalnum())


def report(
    model: str,
    limits: Limits,
    modes: Sequence[str],
    finishes: Mapping[str, Finish],
    found: Mapping[str, Verified],
    broken: Mapping[str, float],
) -> bool:
    """Prints a model's table and what it means; whether the acceptance holds."""
    print(
        f"\n{model}: p99 within {limits.p99_latency_ms:g} ms, up to {limits.max_concurrency} clients; "
        f"Model Analyzer and (a): 1 to {limits.max_instance_count} instances, batches up to "
        f"{limits.max_batch_size}"
    )
    print(
        f"{'':12} {'wall':>7} {'configs':>7} {'points':>6} {'starts':>6}  {'its own claim':26}"
        f"  {'verified':32}  configuration"
    )
    for name, finish in finishes.items():
        each = found[name]
        claim = f"{finish.throughput:.0f}/s, p99 {finish.p99_latency_ms:.1f} ms at {finish.concurrency}"
        verified = (
            f"{each.throughput:.0f}/s [{each.low:.0f}, {each.high:.0f}] at {each.concurrency}"
            if each.slo_met
            else f"misses the SLO: p99 {each.p99_ms:.1f} ms"
        )
        print(
            f"{name:12} {finish.wall_s:6.0f}s {finish.configurations:7} {finish.points:6} "
            f"{finish.server_starts:6}  {claim:26}  {verified:32}  {described(finish.config)}"
        )
    for mode, error_s in broken.items():
        print(f"{mode:12} {error_s:6.0f}s at least: it ended with an error of its own, {_TRIES} times")
    floor = noise_floor(found)
    again = _claimed_best(modes, finishes)
    print(
        f"noise floor of the verified ratios: {floor:.1%}; {again}'s configuration a second time: "
        f"{found['again'].throughput / found[again].throughput:.3f}"
    )
    quick_s = finishes["quick"].wall_s if "quick" in finishes else broken.get("quick")
    return _judge(modes, finishes, found, floor, quick_s)


def _judge(
    modes: Sequence[str],
    finishes: Mapping[str, Finish],
    found: Mapping[str, Verified],
    floor: float,
    quick_s: float | None,
) -> bool:
    best = max(modes, key=lambda mode: (found[mode].slo_met, found[mode].throughput))
    met = True
    for name, wall_limit in ((SAME, WALL_LIMIT), (FULL, 1.0)):
        gain = found[name].throughput / found[best].throughput
        text = f"{name}: verified {gain:.3f} of Model Analyzer's best ({best})"
        if name == SAME:
            wanted = 1 / (1 + floor)
            as_good = gain >= wanted and found[name].slo_met >= found[best].slo_met
            text += f", at least {wanted:.3f} wanted: {_word(as_good)}"
            met &= as_good
        if quick_s is not None:
            wall = finishes[name].wall_s / quick_s
            text += f"; wall time {wall:.2f} of quick's, at most {wall_limit:g} wanted: "
            text += _word(wall <= wall_limit)
            met &= wall <= wall_limit
        print(text)
    return met


def _word(kept: bool) -> str:
    return "kept" if kept else "MISSED"


def described(config: str) -> str:
    """The knobs of a `config.pbtxt` in a few words."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    parsed = text_format.Parse(config, ModelConfig())
    words = [f"{parsed.instance_group[0].count} x batch {parsed.max_batch_size}"]
    if parsed.backend != "onnxruntime":
        words.append(parsed.backend)
    words += [each.name for each in parsed.optimization.execution_accelerators.cpu_execution_accelerator]
    if parsed.HasField("dynamic_batching"):
        delay = parsed.dynamic_batching.max_queue_delay_microseconds
        words.append(f"dynamic, {delay} us" if delay else "dynamic")
    words += [f"{key} {value.string_value}" for key, value in sorted(parsed.parameters.items())]
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
