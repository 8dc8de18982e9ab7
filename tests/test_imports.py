"""What the command line may import before a command runs: its start-up time is everyone's."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "openvino",
    "tensorrt",
    "optuna",
    "mlflow",
    "onnxruntime",
    "numpy",
    "onnx",
    "pydantic",
    "rich",
    "scipy",
    "google.protobuf",
    "ruamel.yaml",
    "tritonclient",
    "grpc",
}

PROGRAM = """
import json, sys
try:
    {statement}
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import tritonc.cli",
        "import tritonc.cli; tritonc.cli.cli.main(['--help'])",
        "import tritonc.cli; tritonc.cli.cli.main(['--version'])",
        "import tritonc.cli; tritonc.cli.cli.main(['biuld'])",
    ],
)
def test_start_up_imports_no_heavy_package(statement: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement=statement)],
        capture_output=True,
        text=True,
        check=False,
    )
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert "click" in modules
    assert modules & HEAVY == set()
    assert {name for name in modules if name.startswith("tritonc.commands.")} == set()


@pytest.mark.parametrize("command", ["init", "build", "candidates", "tune", "doctor", "schema"])
def test_help_of_a_command_imports_no_package_of_an_extra(command: str) -> None:
    statement = f"import tritonc.cli; tritonc.cli.cli.main([{command!r}, '--help'])"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement=statement)],
        capture_output=True,
        text=True,
        check=False,
    )
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert done.returncode == 0, done.stderr
    assert modules & {"optuna", "mlflow", "onnxruntime", "openvino", "tensorrt", "scipy", "pandas"} == set()
