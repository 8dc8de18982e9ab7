"""What `tritonc tune` says and refuses before any server starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from onnx import TensorProto

from tests.conftest import Content, ProjectFolder
from tests.models import conv, identity, mlp, text_recognition
from tritonc.compiler.project import open_project
from tritonc.schemas.errors import SetupError
from tritonc.tuner.hardware import Gpu, this_machine
from tritonc.tuner.plan import Settings, plan_of

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  mlp:
    source: models/mlp.onnx
targets:
  cpu:
    device: cpu
    cores: 1
    backends:
      onnxruntime: {accelerators: [none]}
"""
GPU = """\
  gpu:
    device: gpu
    gpu: {name: A10, memory: 24GiB, count: 1}
    backends:
      onnxruntime: {accelerators: [cuda]}
"""


@pytest.fixture
def p(project: Any) -> ProjectFolder:
    folder: ProjectFolder = project({"spec.yaml": SPEC, "models/mlp.onnx": mlp()})
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_dry_run_says_the_size_and_the_time_and_writes_nothing(p: ProjectFolder):
    before = files(p.folder)
    done = p.run("tune", "--dry-run", "--trials", "12")
    assert done.exit_code == 0, done.stderr
    assert " candidates, 12 trials (0 finished), about 2 min 30 s" in done.stdout
    assert files(p.folder) == before


def test_a_dry_run_as_json_has_every_number(p: ProjectFolder):
    document = json.loads(p.run("tune", "--dry-run", "--trials", "500", "--output", "json").stdout)
    [task] = document["tasks"]
    assert document["schema_version"] == 1
    assert task["trials"] == task["candidates"]


@pytest.mark.skipif(bool(this_machine().gpus), reason="this machine has a GPU")
def test_a_target_that_this_machine_cannot_measure_is_skipped_with_a_line(p: ProjectFolder):
    p.write("spec.yaml", SPEC + GPU)
    done = p.run("tune", "--dry-run")
    assert done.exit_code == 0
    assert "target gpu would be skipped: it has 1 x A10, this machine none" in done.stdout


@pytest.mark.skipif(bool(this_machine().gpus), reason="this machine has a GPU")
def test_energy_that_no_gpu_tells_is_said_before_anything_is_measured(p: ProjectFolder):
    models = SPEC.partition("targets:")[0]
    p.write("spec.yaml", f"{models}    objective: energy\ntargets:\n{GPU}")
    machine = replace(this_machine(), gpus=(Gpu("NVIDIA A10", 24 << 30),))
    with pytest.raises(SetupError, match="no GPU of this machine tells what it uses"):
        plan_of(open_project(p.path("spec.yaml")), Settings(), machine=machine)


def test_exit_3_where_no_target_is_left(p: ProjectFolder):
    p.write("spec.yaml", SPEC.replace("cores: 1", "cores: 4096"))
    done = p.run("tune")
    assert done.exit_code == 3
    assert "this machine can measure none of the targets: cpu: it has 4096 cores" in done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--target", "gpu"), 'the spec has no target "gpu"'),
        (("--model", "mpl"), 'the spec has no model "mpl"; did you mean "mlp"?'),
        (("--timeout", "soon"), "is no duration"),
        (("--timeout", "0s"), "is no duration"),
        (("--trials", "0"), "--trials"),
        (("--perf-analyzer", "nowhere"), "--perf-analyzer"),
    ],
)
def test_a_wrong_option_exits_2(p: ProjectFolder, option: tuple[str, ...], message: str):
    done = p.run("tune", *option)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not p.path(".tritonc").exists()


def test_an_open_dimension_is_an_error_with_its_place(p: ProjectFolder):
    p.write("models/mlp.onnx", text_recognition())
    done = p.run("tune")
    assert done.exit_code == 2
    assert "spec.yaml:4:3" in done.stderr
    assert "shapes:" in done.stderr


@pytest.mark.parametrize(
    ("file", "more", "message"),
    [
        (
            conv(),
            "    shapes: {image: [3, 48, 99999999]}\n",
            "spec.yaml:6:21: one request of image would have 53.6 GiB, more than the 2 GiB that gRPC can",
        ),
        (
            conv(),
            "    shapes: {image: [3, 8192, 4096]}\n    workload: {request_batch: 8}\n",
            "spec.yaml:6:21: one request of image would have 3 GiB",
        ),
        (
            identity(TensorProto.INT8, ("batch", 10**12)),
            "",
            "spec.yaml:4:3: one request of x would have 931 GiB",
        ),
        (
            identity(TensorProto.INT8, ("batch", 10**12, 10**12)),
            "",
            "spec.yaml:4:3: one request of x would have",
        ),
    ],
)
def test_a_request_that_grpc_cannot_carry_is_an_error_with_its_place(
    p: ProjectFolder, file: Content, more: str, message: str
):
    p.write("models/mlp.onnx", file)
    p.write("spec.yaml", SPEC.replace("targets:", f"{more}targets:"))
    done = p.run("tune", "--dry-run")
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (
            "1\nx\n",
            "",
            'spec.yaml:6:38: traffic.txt: line 2 is "x"; a line is a time in seconds, such as 12.5',
        ),
        ("1\n2\n1\n", "", "spec.yaml:6:38: traffic.txt: line 3 is 1, before the arrival above it at 2"),
        (None, "", "spec.yaml:6:38: traffic.txt: there is no such file"),
        (
            "1\n2\n",
            ", max_rate: 0.5",
            "spec.yaml:6:61: max_rate is 0.5, below the trace's own mean rate of 1",
        ),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_an_error_with_its_place(
    p: ProjectFolder, content: str | None, more: str, message: str
):
    p.write(
        "spec.yaml",
        SPEC.replace("targets:", f"    workload: {{arrival: trace, file: traffic.txt{more}}}\ntargets:"),
    )
    if content is not None:
        p.write("traffic.txt", content)
    done = p.run("tune", "--dry-run")
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_trace_outside_the_project_has_to_be_allowed(p: ProjectFolder, tmp_path: Path):
    outside = tmp_path.parent / f"{tmp_path.name}.txt"
    outside.write_text("0\n1\n")
    p.write(
        "spec.yaml", SPEC.replace("targets:", f"    workload: {{arrival: trace, file: {outside}}}\ntargets:")
    )
    done = p.run("tune", "--dry-run")
    assert done.exit_code == 2
    assert "is outside the project's folder" in done.stderr
    assert p.run("tune", "--dry-run", "--allow-outside").exit_code == 0


def test_a_second_tune_in_a_project_exits_3(p: ProjectFolder):
    p.path(".tritonc").mkdir()
    with FileLock(p.path(".tritonc/tune.lock")):
        done = p.run("tune")
    assert done.exit_code == 3
    assert "another tritonc tune runs in" in done.stderr


def test_a_state_folder_that_cannot_be_written_exits_3(p: ProjectFolder):
    state = p.write(".tritonc", "a file")
    for _ in range(2):
        done = p.run("tune")
        assert done.exit_code == 3
        assert ".tritonc cannot be written: File exists; make it a folder that can be" in done.stderr
        state.unlink()
        state.symlink_to("nowhere/else")


def test_nothing_is_fetched_for_a_local_engine_that_is_not_there(
    p: ProjectFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRITONC_TRITONSERVER", "nowhere")
    monkeypatch.setenv("TRITONC_CACHE_DIR", str(p.path("cache")))
    monkeypatch.setenv("TRITONC_BUNDLE_WHEELS", str(p.path("no-wheels")))
    done = p.run("tune", "--engine", "local")
    assert done.exit_code == 3
    assert "nowhere is not a program" in done.stderr
    assert "run tritonc inside the Triton container" in done.stderr


def test_a_foreign_output_folder_is_found_before_anything_is_measured(p: ProjectFolder):
    p.write("build/notes.txt", "mine")
    done = p.run("tune")
    assert done.exit_code == 2
    assert "holds files that tritonc did not write" in done.stderr
    assert not p.path(".tritonc").exists()


def test_a_broken_lock_is_found_before_anything_is_measured(p: ProjectFolder):
    p.write("spec.lock.yaml", "schema_version: 99\n")
    done = p.run("tune")
    assert done.exit_code == 2
    assert not p.path(".tritonc").exists()


def test_a_lock_that_cannot_be_written_is_found_before_anything_is_measured(p: ProjectFolder):
    lock, elsewhere = p.path("spec.lock.yaml"), p.path("elsewhere")
    lock.symlink_to(elsewhere / "spec.lock.yaml")
    done = p.run("tune")
    assert done.exit_code == 2
    assert f"cannot write {lock}: there is no folder {elsewhere}; make it, or remove the link" in done.stderr
    assert not p.path(".tritonc").exists()
    lock.unlink()
    lock.mkdir()
    done = p.run("tune")
    assert done.exit_code == 2
    assert str(lock) in done.stderr
    assert not p.path(".tritonc").exists()


def test_help_has_an_example_and_a_unit_for_the_timeout(p: ProjectFolder):
    text = " ".join(p.run("tune", "--help").stdout.split())
    assert "Example: tritonc tune" in text
    assert "90s, 15m, 2h" in text
