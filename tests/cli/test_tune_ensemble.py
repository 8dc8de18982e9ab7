"""`tritonc tune` of an ensemble on a real tritonserver, and what is said before one starts."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.cli.running import ANNOUNCED, assert_all_gone, running
from tests.conftest import ProjectFolder
from tests.models import mlp, softmax
from tritonc.schemas.lock_file import read_lock

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  score: {source: mlp.onnx, max_batch_size: 4}
  norm: {source: softmax.onnx, max_batch_size: 4}
  alone: {source: mlp.onnx}
ensembles:
  pipeline:
    steps:
      - {model: score, input_map: {x: features}, output_map: {y: scores}}
      - {model: norm, input_map: {scores: scores}, output_map: {probabilities: label}}
    workload: {arrival: closed, max_concurrency: 2}
    slo: {p99_latency_ms: 60000}
targets:
  cpu:
    device: cpu
    cores: 1
    backends:
      onnxruntime: {accelerators: [none]}
search:
  instance_count: [1, 2]
  max_batch_size: 4
  dynamic_batching: false
  intra_op_thread_count: 1
"""


@pytest.fixture
def p(project: Any) -> ProjectFolder:
    folder: ProjectFolder = project({"spec.yaml": SPEC, "mlp.onnx": mlp(), "softmax.onnx": softmax()})
    return folder


def test_an_ensemble_is_one_task_and_its_models_are_none(p: ProjectFolder):
    done = p.run("tune", "--dry-run", "--output", "json")
    assert done.exit_code == 0, done.stderr
    tasks = json.loads(done.stdout)["tasks"]
    assert [(task["model"], task["candidates"]) for task in tasks] == [("alone", 2), ("pipeline", 4)]
    one = p.run("tune", "--dry-run", "--output", "json", "--model", "pipeline")
    assert [task["model"] for task in json.loads(one.stdout)["tasks"]] == ["pipeline"]


@pytest.mark.parametrize("command", [("tune",), ("candidates", "-o", "somewhere")])
def test_a_model_of_an_ensemble_is_not_tuned_without_it(p: ProjectFolder, command: tuple[str, ...]):
    refused = p.run(*command, "--model", "score")
    assert refused.exit_code == 2
    assert (
        "--model: score is a step of ensemble pipeline, and is tuned with it; write --model pipeline"
        in refused.stderr
    )
    assert not p.path(".tritonc").exists()


def test_an_open_dimension_is_said_at_the_ensemble(p: ProjectFolder):
    p.write("spec.yaml", SPEC.replace("mlp.onnx, max_batch_size: 4", "mlp.onnx, max_batch_size: 0"))
    refused = p.run("tune", "--dry-run")
    assert refused.exit_code == 2
    assert 'spec.yaml:8:3: the models leave dimensions of input "features" open: [-1, 4]' in refused.stderr


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_an_ensemble_gets_a_decision_that_goes_on_where_it_was_interrupted(p: ProjectFolder):
    with running(p, "--trials", "3", "--model", "pipeline", program=ANNOUNCED) as tune:
        tune.wait_for(lambda line: line.startswith("trial 1/"), timeout_s=240)
        tune.process.send_signal(signal.SIGINT)
        assert tune.end() == 130
    assert_all_gone(p.folder)
    assert not p.path("spec.lock.yaml").exists()

    done = p.run("tune", "--trials", "3", "--model", "pipeline", "--output", "json")
    assert done.exit_code == 0, done.stderr
    assert "pipeline on cpu: 4 candidates, 3 trials" in done.stderr
    assert "1 trials were finished before, 2 are to come" in done.stderr
    assert "/instance_count" in done.stderr
    [decision] = json.loads(done.stdout)["decisions"]
    assert decision["model"] == "pipeline"
    assert decision["failed_trials"] == 0
    assert {"score/instance_count", "norm/instance_count"} <= decision["chosen"]["configuration"][
        "knobs"
    ].keys()
    assert decision["chosen"]["measurement"]["queue_ms"] is not None
    assert any(note.startswith("On average a step of the baseline takes") for note in decision["caveats"])
    lock = read_lock(p.path("spec.lock.yaml"))
    assert lock is not None
    assert [each.model for each in lock.decisions] == ["pipeline"]
    knobs = lock.decisions[0].chosen.configuration.knobs
    for model in ("score", "norm"):
        config = p.path(f"build/cpu/{model}/config.pbtxt").read_text()
        assert f"count: {knobs[f'{model}/instance_count']}\n" in config
    assert "inferences/s, p99" in p.path("build/cpu/pipeline/config.pbtxt").read_text()
    assert p.path("build/cpu/pipeline/1/.gitkeep").read_bytes() == b""
    assert p.run("build", "--check").exit_code == 0
    before = p.path("spec.lock.yaml").read_bytes()

    again = p.run("tune", "--trials", "3", "--model", "pipeline")
    assert again.exit_code == 0, again.stderr
    assert "trial " not in again.stderr
    assert p.path("spec.lock.yaml").read_bytes() == before

    p.write("spec.yaml", SPEC.replace("max_concurrency: 2", "max_concurrency: 3"))
    stale = p.run("build")
    assert stale.exit_code == 2
    assert "the evidence is stale" in stale.stderr
    p.write("spec.yaml", SPEC)
    p.path("build/cpu/pipeline/1/.gitkeep").unlink()
    assert "missing build/cpu/pipeline/1/.gitkeep" in p.run("build", "--check").output.replace(
        str(p.folder) + "/", ""
    )
