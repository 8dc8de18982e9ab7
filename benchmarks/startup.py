"""Wall time of `tritonc --help` and of `tritonc build` of one model, as ratios to `python -c pass`.

    python benchmarks/startup.py [--repeats 20]

The commands run in turns, so that a slow spell of the machine hits all of them; medians are compared. Exits
1 where `--help` is over its limit (150 ms, 6 times `python -c pass`).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HELP_LIMIT_MS = 150.0
HELP_LIMIT_RATIO = 6.0

SPEC = """\
apiVersion: tritonc/v1
name: startup
models: {mlp: {source: mlp.onnx}}
targets: {cpu: {device: cpu, cores: 2, triton: "24.10", backends: {onnxruntime: {}}}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="runs of each command (default 20)")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(SPEC)
        write_mlp(folder / "mlp.onnx")
        tritonc = str(Path(sys.executable).with_name("tritonc"))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "tritonc --help": [tritonc, "--help"],
            "tritonc build, new": [tritonc, "build", "spec.yaml", "-o", "out-{run}"],
            "tritonc build, no change": [tritonc, "build", "spec.yaml", "-o", "out"],
        }
        medians_ms = median_times_ms(commands, folder, repeats)
    base = medians_ms["python -c pass"]
    for command, median_ms in medians_ms.items():
        print(f"{command:26} {median_ms:7.1f} ms   {median_ms / base:5.1f}x")
    help_ms = medians_ms["tritonc --help"]
    kept = help_ms <= HELP_LIMIT_MS and help_ms <= HELP_LIMIT_RATIO * base
    print(f"--help: {'within' if kept else 'OVER'} {HELP_LIMIT_MS:.0f} ms and {HELP_LIMIT_RATIO:.0f}x")
    return 0 if kept else 1


def median_times_ms(commands: Mapping[str, Sequence[str]], folder: Path, repeats: int) -> dict[str, float]:
    """Median wall time of each command; they run in turns in `folder`, and the first run does not count."""
    times_ms: dict[str, list[float]] = {name: [] for name in commands}
    for run in range(repeats + 1):
        for name, command in commands.items():
            arguments = [part.replace("{run}", str(run)) for part in command]
            start = time.perf_counter()
            subprocess.run(arguments, cwd=folder, check=True, capture_output=True, stdin=subprocess.DEVNULL)
            if run:
                times_ms[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times_ms.items()}


def write_mlp(path: Path) -> None:
    """A small model: 16 inputs, one layer, 4 outputs."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    weights = numpy_helper.from_array(np.ones((16, 4), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "mlp", [x], [y], [weights])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


if __name__ == "__main__":
    sys.exit(main())
