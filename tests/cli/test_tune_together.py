"""`together`: two models tuned as one on a real tritonserver, and what is refused before one starts."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.cli.running import ANNOUNCED, assert_all_gone, running
from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.schemas.lock_file import read_lock

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  a:
    source: a.onnx
    max_batch_size: 4
    workload: {arrival: closed, max_concurrency: 2}
    slo: {p99_latency_ms: 60000}
  b:
    source: b.onnx
    max_batch_size: 4
    workload: {arrival: closed, max_concurrency: 2}
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
together: {a: 0.7, b: 0.3}
"""


@pytest.fixture
def p(project: Any) -> ProjectFolder:
    folder: ProjectFolder = project({"spec.yaml": SPEC, "a.onnx": mlp(), "b.onnx": mlp(seed=1)})
    return folder


def test_a_dry_run_counts_every_combination(p: ProjectFolder):
    done = p.run("tune", "--dry-run", "--output", "json")
    assert done.exit_code == 0, done.stderr
    tasks = json.loads(done.stdout)["tasks"]
    assert [(task["model"], task["candidates"]) for task in tasks] == [("a", 2), ("b", 2), ("a+b", 4)]


def test_one_of_them_is_not_tuned_without_the_other(p: ProjectFolder):
    refused = p.run("tune", "--model", "a")
    assert refused.exit_code == 2
    assert "--model: b is missing, which the spec has tuned together with a; add --model b" in refused.stderr
    assert p.run("tune", "--model", "a", "--model", "b", "--dry-run").exit_code == 0


def test_a_grid_of_combinations_is_refused(p: ProjectFolder):
    refused = p.run("tune", "--sampler", "grid", "--dry-run")
    assert refused.exit_code == 2
    assert "--sampler grid: a, b are tuned together" in refused.stderr


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_both_get_a_decision_from_one_study_that_goes_on_where_it_was_interrupted(p: ProjectFolder):
    with running(p, "--trials", "2", program=ANNOUNCED) as tune:
        tune.wait_for(lambda line: line.startswith("a+b on cpu"), timeout_s=240)
        tune.wait_for(lambda line: line.startswith("trial 1/"), timeout_s=120)
        tune.process.send_signal(signal.SIGINT)
        assert tune.end() == 130
    assert_all_gone(p.folder)
    assert not p.path("spec.lock.yaml").exists()

    done = p.run("tune", "--trials", "2", "--output", "json")
    assert done.exit_code == 0, done.stderr
    assert "a+b on cpu: 4 candidates, 2 trials" in done.stderr
    assert "1 trials were finished before, 1 are to come" in done.stderr
    decisions = json.loads(done.stdout)["decisions"]
    assert [each["together"] for each in decisions] == [["a", "b"], ["a", "b"]]
    assert all("(measured together: a, b)" in each["reason"] for each in decisions)
    assert all(each["chosen"]["measurement"]["load"]["kind"] == "closed" for each in decisions)
    lock = read_lock(p.path("spec.lock.yaml"))
    assert lock is not None
    assert len({decision.measured_at for decision in lock.decisions}) == 1
    assert "measured together with b" in p.path("build/cpu/a/config.pbtxt").read_text()
    assert p.run("build", "--check").exit_code == 0
    before = p.path("spec.lock.yaml").read_bytes()

    again = p.run("tune", "--trials", "2")
    assert again.exit_code == 0, again.stderr
    assert "trial " not in again.stderr
    assert p.path("spec.lock.yaml").read_bytes() == before

    alone = p.path("spec.yaml").read_text().replace("together: {a: 0.7, b: 0.3}\n", "")
    p.write("spec.yaml", alone)
    stale = p.run("build")
    assert stale.exit_code == 2
    assert "the evidence is stale" in stale.stderr
