"""How long a build and a rebuild with nothing to do take, against the least that any tool would have to do.

    python benchmarks/build_scale.py                  1,000 models x 2 targets, three rounds
    python benchmarks/build_scale.py --models 100     fewer

The peer is a plain loop in a process of its own that parses the same spec with ruamel.yaml (its default
loader) and then reads, hashes and writes the very bytes that the build wrote. The medians of all rounds are
compared. Goals, for 1,000 models and more (below, start-up is what counts): build at most 4x, no-op rebuild
at most 2x.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

GOALS = {"build": 4.0, "no-op rebuild": 2.0}

TARGETS = """\
targets:
  cpu:
    device: cpu
    cores: 2
    backends:
      onnxruntime: {accelerators: [none, openvino]}
  gpu:
    device: gpu
    gpu: {name: A10, memory: 24GiB, count: 1}
    backends:
      onnxruntime: {accelerators: [cuda, tensorrt], precisions: [fp32, fp16]}
"""

PLAIN = """
import hashlib, os, sys
from ruamel.yaml import YAML
spec, source, out = sys.argv[1:]
with open(spec) as file:
    YAML().load(file)
for folder, _, names in os.walk(source):
    target = out + folder[len(source):]
    os.mkdir(target)
    for name in names:
        with open(f"{folder}/{name}", "rb") as file:
            content = file.read()
        hashlib.sha256(content).hexdigest()
        with open(f"{target}/{name}", "wb") as file:
            file.write(content)
"""


def write_model(path: Path, seed: int, weights_kib: int) -> None:
    """One dense layer with a batch axis and random weights of this size."""
    width = max(1, weights_kib * 1024 // (4 * 16))
    weights = np.random.default_rng(seed).standard_normal((16, width), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())


def write_project(folder: Path, models: int, weights_kib: int) -> Path:
    """A spec of this many models, each with a file, a workload and limits of its own."""
    (folder / "models").mkdir(parents=True)
    entries = []
    for number in range(models):
        write_model(folder / "models" / f"model_{number:04d}.onnx", number, weights_kib)
        entries.append(
            f"  model_{number:04d}:\n"
            f"    source: models/model_{number:04d}.onnx\n"
            f"    max_batch_size: 16\n"
            f"    workload: {{arrival: closed, max_concurrency: 32}}\n"
            f"    slo: {{p99_latency_ms: {20 + number % 80}}}\n"
        )
    spec = folder / "spec.yaml"
    spec.write_text(f"apiVersion: tritonc/v1\nname: scale\nmodels:\n{''.join(entries)}{TARGETS}")
    return spec


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return elapsed


def one_round(spec: Path, build: Path, plain: Path) -> dict[str, float]:
    """Seconds of every step, in fresh output folders, with nothing of an earlier round left to write back."""
    for folder in (build, plain):
        shutil.rmtree(folder, ignore_errors=True)
    tritonc = [sys.executable, "-m", "tritonc", "build", str(spec), "-o", str(build)]
    os.sync()
    steps = {"build": seconds(tritonc)}
    os.sync()
    steps["plain loop"] = seconds([sys.executable, "-c", PLAIN, str(spec), str(build), str(plain)])
    os.sync()
    steps["no-op rebuild"] = seconds(tritonc)
    steps["check"] = seconds([*tritonc, "--check"])
    return steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=int, default=1000, help="models in the spec (default 1000)")
    parser.add_argument(
        "--weights-kib", type=int, default=16, help="size of each model file in KiB (default 16)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tritonc-scale-") as folder:
        root = Path(folder)
        spec = write_project(root / "project", options.models, options.weights_kib)
        rounds = [one_round(spec, root / "build", root / "plain") for _ in range(options.rounds)]
    medians = {step: statistics.median(r[step] for r in rounds) for step in rounds[0]}
    ratios = {step: median / medians["plain loop"] for step, median in medians.items()}
    if options.json:
        print(json.dumps({"models": options.models, "targets": 2, "seconds": medians, "ratios": ratios}))
        return 0
    print(f"{options.models} models x 2 targets, {options.weights_kib} KiB each, median of {options.rounds}")
    goals = GOALS if options.models >= 1000 else {}
    for step, ratio in ratios.items():
        goal = goals.get(step)
        verdict = f"  (at most {goal:.0f}x: {'ok' if ratio <= goal else 'TOO SLOW'})" if goal else ""
        print(f"{step:14} {medians[step]:7.2f} s  {ratio:5.2f}x{verdict}")
    return int(any(ratios[step] > goal for step, goal in goals.items()))


if __name__ == "__main__":
    raise SystemExit(main())
