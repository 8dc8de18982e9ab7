"""NVIDIA Model Analyzer, run in local mode with the tritonserver and perf_analyzer of tritonc.

It lives in a virtual environment of its own in the user's cache, made at the first use from
`model_analyzer_requirements.txt`. It starts a server and a perf_analyzer by path and gives them arguments of
its own, so each gets a small program that adds what both need here: libraries, backends, loopback addresses.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonc.tuner.bundle import cache_folder
from tritonc.tuner.engines.embedded import EmbeddedEngine
from tritonc.tuner.process import Child

MODES = ("brute", "quick", "optuna")
LIMIT_S = 7200.0
"""No search takes so long: brute takes 450 s for 60 points on a small machine."""

_REQUIREMENTS = Path(__file__).with_name("model_analyzer_requirements.txt")
_SERVER_STARTED = "Started GRPCInferenceService"  # the server's log, once a start
_LAUNCHER = """\
#!{python} -IS
import os, sys

environment = {{**os.environ, **{environment!r}}}
for name in ("PYTHONPATH", "PYTHONHOME"):
    environment.pop(name, None)
arguments = [argument.replace("@PID@", str(os.getpid())) for argument in {arguments!r}]
os.execve({program!r}, [{program!r}, *sys.argv[1:], *arguments], environment)
"""


class ModelAnalyzerError(Exception):
    """It ended with an error of its own.

    Attributes:
        wall_s: after how long.
    """

    def __init__(self, what: str, wall_s: float) -> None:
        super().__init__(what)
        self.wall_s = wall_s


@dataclass(frozen=True, slots=True)
class Limits:
    """What a search may try.

    Attributes:
        max_instance_count: every count from 1 to this.
        max_batch_size: 1, then doubling up to this.
        max_concurrency: clients that wait for each answer; Model Analyzer doubles from 1.
        p99_latency_ms: the SLO.
    """

    max_instance_count: int
    max_batch_size: int
    max_concurrency: int
    p99_latency_ms: float


@dataclass(frozen=True, slots=True)
class Finish:
    """What a search ended with.

    Attributes:
        wall_s: of the whole command.
        configurations: that were measured.
        points: load levels measured, over all configurations.
        server_starts: how often it started a tritonserver.
        config: `config.pbtxt` of its best configuration.
        concurrency: at which it measured that one best.
        throughput: inferences a second, as it measured them there.
        p99_latency_ms: as it measured it there.
        slo_met: whether its best configuration keeps the SLO, as it measured it.
    """

    wall_s: float
    configurations: int
    points: int
    server_starts: int
    config: str
    concurrency: int
    throughput: float
    p99_latency_ms: float
    slo_met: bool


def installed_model_analyzer() -> Path:
    """The `model-analyzer` program, installed first where this version of it is not there yet."""
    pins = hashlib.sha256(_REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache_folder() / "model-analyzer" / pins
    program = folder / "bin" / "model-analyzer"
    if not (folder / "complete").exists():
        print(f"installing Model Analyzer in {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--require-hashes"]
        command = [*pip, "--only-binary=:all:", "-r", str(_REQUIREMENTS)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise SystemExit(f"Model Analyzer cannot be installed; pip said:\n{ended.stderr[-2000:]}")
        (folder / "complete").touch()
    return program


def profile(model: str, repository: Path, mode: str, limits: Limits, folder: Path) -> Finish:
    """What a search of Model Analyzer ends with.

    Args:
        model: its name.
        repository: holds the model, with a configuration to start from.
        mode: one of `MODES`.
        limits: of the search.
        folder: an empty one, for its files; neither spaces nor "=" in its path, on which it splits arguments.

    Raises:
        ModelAnalyzerError: it ended with an error.
    """
    program = installed_model_analyzer()
    shared_memory = f"race-{uuid.uuid4().hex[:12]}-"
    config = folder / "config.yaml"
    config.write_text(json.dumps(_config(model, repository, mode, limits, folder, shared_memory), indent=2))
    for name in ("checkpoints", "results"):
        (folder / name).mkdir()
    log = folder / "log"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # else it looks for GPUs with DCGM
    environment.pop("PYTHONPATH", None)  # this module has the name of its package
    command = [str(program), "profile", "-f", str(config)]
    began = time.monotonic()
    with Child(command, output=log, env=environment, cwd=folder, shared_memory=shared_memory) as child:
        code = child.wait(LIMIT_S)
        wall_s = time.monotonic() - began
    if code != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise ModelAnalyzerError(f"model-analyzer, {mode} mode, ended with {code}:\n{last}", wall_s)
    return _finish(model, folder, limits, wall_s)


def _config(
    model: str, repository: Path, mode: str, limits: Limits, folder: Path, shared_memory: str
) -> dict[str, Any]:
    """Its configuration file: search limits, SLO and places; its own defaults for everything else."""
    http, grpc, metrics = _free_ports(3)
    server, perf_analyzer = _launchers(folder, shared_memory)
    return {
        "model_repository": str(repository),
        "checkpoint_directory": str(folder / "checkpoints"),
        "output_model_repository_path": str(folder / "output"),
        "export_path": str(folder / "results"),
        "skip_summary_reports": True,  # tables and PDF files, which nobody waits for here
        "skip_detailed_reports": True,
        "gpus": ["[]"],
        "triton_launch_mode": "local",
        "triton_server_path": str(server),
        "triton_output_path": str(folder / "server.log"),
        "triton_http_endpoint": f"127.0.0.1:{http}",
        "triton_grpc_endpoint": f"127.0.0.1:{grpc}",
        "triton_metrics_url": f"http://127.0.0.1:{metrics}/metrics",
        "perf_analyzer_path": str(perf_analyzer),
        "run_config_search_mode": mode,
        "run_config_search_min_instance_count": 1,
        "run_config_search_max_instance_count": limits.max_instance_count,
        "run_config_search_min_model_batch_size": 1,
        "run_config_search_max_model_batch_size": limits.max_batch_size,
        "run_config_search_min_concurrency": 1,
        "run_config_search_max_concurrency": limits.max_concurrency,
        "profile_models": {
            model: {
                "cpu_only": True,
                "objectives": {"perf_throughput": 10},  # a weight; it is the only objective
                "constraints": {"perf_latency_p99": {"max": limits.p99_latency_ms}},
            }
        },
    }


def _launchers(folder: Path, shared_memory: str) -> tuple[Path, Path]:
    """Programs that start the tritonserver and the perf_analyzer of tritonc's embedded engine."""
    engine = EmbeddedEngine()
    server = engine.installation()
    perf_analyzer, environment = engine.perf_analyzer()
    arguments = [
        f"--backend-directory={server.backends}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory}@PID@-",
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
        "--exit-timeout-secs=1",  # as the engine does: else each of its restarts waits for the stubs
    ]
    return (
        _launcher(folder / "tritonserver", server.binary, server.env, arguments),
        _launcher(folder / "perf_analyzer", perf_analyzer, environment, ()),
    )


def _launcher(path: Path, program: Path, environment: Mapping[str, str], arguments: Sequence[str]) -> Path:
    added = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    path.write_text(
        _LAUNCHER.format(
            python=sys.executable, program=str(program), environment=added, arguments=list(arguments)
        )
    )
    path.chmod(0o755)
    return path


def _free_ports(count: int) -> list[int]:
    """Loopback ports that are free now; all bound at once, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _finish(model: str, folder: Path, limits: Limits, wall_s: float) -> Finish:
    """Reads its last checkpoint, which holds every measurement: reports would show the best few only."""
    checkpoint = max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: int(path.stem))
    results = json.loads(checkpoint.read_text())["ResultManager.results"]["_results"][model]
    points = [
        (variant, _point(measurement))
        for variant, (_, measurements) in results.items()
        for measurement in measurements.values()
    ]

    def rank(point: tuple[str, tuple[int, float, float]]) -> tuple[bool, float]:
        _, (_, throughput, p99_ms) = point
        return (p99_ms <= limits.p99_latency_ms, throughput)

    variant, (concurrency, throughput, p99_ms) = max(points, key=rank)
    return Finish(
        wall_s=wall_s,
        configurations=len(results),
        points=len(points),
        server_starts=server_starts(folder / "server.log"),
        config=(folder / "output" / variant / "config.pbtxt").read_text(),
        concurrency=concurrency,
        throughput=throughput,
        p99_latency_ms=p99_ms,
        slo_met=p99_ms <= limits.p99_latency_ms,
    )


def _point(measurement: Mapping[str, Any]) -> tuple[int, float, float]:
    """Concurrency, inferences a second and p99 in milliseconds of a measurement in a checkpoint."""
    (of_model,) = measurement["_model_config_measurements"]
    values = {tag: record["_value"] for tag, record in of_model["_non_gpu_data"]}
    concurrency = of_model["_model_specific_pa_params"]["concurrency-range"]
    return int(concurrency), float(values["perf_throughput"]), float(values["perf_latency_p99"])


def server_starts(log: Path) -> int:
    """How many servers wrote this log, one after another."""
    return log.read_text(errors="replace").count(_SERVER_STARTED)
