"""`tritonc tune` on a real tritonserver: it measures, decides, locks, builds, resumes, and cleans up."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from tests.cli.running import GONE_S, assert_all_gone, running, trial_lines
from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.schemas.lock_file import read_lock

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  mlp:
    source: models/mlp.onnx
    max_batch_size: 4
    workload: {arrival: closed, max_concurrency: 4}
    slo: {p99_latency_ms: 500}
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
    folder: ProjectFolder = project({"spec.yaml": SPEC, "models/mlp.onnx": mlp()})
    return folder


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.usefixtures("same_machine")
def test_a_model_is_tuned_locked_and_built_and_resuming_measures_only_what_is_missing(p: ProjectFolder):
    first = p.run("tune", "--trials", "1", "--output", "json")
    assert first.exit_code == 0, first.stderr
    assert len(trial_lines(first.stderr)) == 1
    document = json.loads(first.stdout)
    assert (document["schema_version"], document["slo_met"]) == (1, True)
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    assert decision.baseline.measurement.requests >= 1000
    assert (decision.trials, decision.candidates) == (1, 2)
    assert decision.engine.server_cores
    assert p.path("build/cpu/mlp/config.pbtxt").exists()
    assert p.run("build", "--check").exit_code == 0

    again = p.run("tune", "--trials", "1")
    assert (again.exit_code, trial_lines(again.stderr)) == (0, [])

    more = p.run("tune", "--trials", "9")
    assert more.exit_code == 0, more.stderr
    assert trial_lines(more.stderr)[-1].split()[1] == "2/2"
    assert "1 trials were finished before" in more.stderr
    assert "search ended: 2 trials are finished" in more.stderr
    assert_runs_are_in_mlflow(p)
    assert_all_gone(p.folder)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_a_front_is_measured_locked_and_picked_from(p: ProjectFolder):
    wanted = "{p99_latency_ms: 60000, avg_queue_ms: 60000, max_load_seconds: {limit: 0.01, soft: true}}"
    spec = SPEC.replace("{p99_latency_ms: 500}", f"{wanted}\n    objective: {{pareto: [throughput, memory]}}")
    p.write("spec.yaml", spec)
    done = p.run("tune", "--trials", "2", "--output", "json")
    assert done.exit_code == 0, done.stderr
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    assert (decision.choice, decision.slo_met) == ("knee", True)
    assert all(member.measurement.load_s and not member.missed for member in decision.front)
    least = min(decision.front, key=lambda member: member.measurement.memory_bytes)
    assert least.configuration.knobs["instance_count"] == 1, done.stderr
    picked = p.run("tune", "--pick", least.configuration.id)
    assert picked.exit_code == 0, picked.stderr
    assert "The front of throughput, memory" in picked.stdout
    assert "count: 1" in p.path("build/cpu/mlp/config.pbtxt").read_text()
    again = p.run("tune", "--trials", "2")
    assert (again.exit_code, trial_lines(again.stderr)) == (0, [])
    assert read_lock(p.path("spec.lock.yaml")).decisions[0].choice == "picked"


@pytest.mark.triton
@pytest.mark.slow
def test_a_trace_is_carried_at_its_rate_and_its_rate_is_raised(p: ProjectFolder):
    trace = "arrival: trace, file: traffic.txt, rate: 300, max_rate: 400"
    p.write("spec.yaml", SPEC.replace("arrival: closed, max_concurrency: 4", trace).replace("[1, 2]", "1"))
    p.write("traffic.txt", "".join(f"{second}.{tenth}\n" for second in range(4) for tenth in "00000777"))
    done = p.run("tune", "--trials", "1", "--output", "json")
    assert done.exit_code == 0, done.stderr
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    measured = decision.chosen.measurement
    assert measured.load.rate == pytest.approx(400)
    assert measured.throughput.value == pytest.approx(400, rel=0.02)
    assert measured.offered_rate == pytest.approx(400, rel=0.02)
    assert (decision.slo_met, measured.sustained) == (True, True)
    of_the_machine = ("load generator", "while it was measured")  # it is busy: late, unsteady
    assert all(any(text in warning for text in of_the_machine) for warning in measured.warnings)
    digest = measured.load.distribution.trace[:12]
    assert f"400 requests/s of trace {digest}" in p.path("build/cpu/mlp/config.pbtxt").read_text()
    assert p.run("build", "--check").exit_code == 0


@pytest.mark.triton
@pytest.mark.slow
def test_requests_of_several_sizes_are_carried_in_their_proportion(p: ProjectFolder):
    sizes = "arrival: poisson, rate: 200, max_rate: 300, request_batch: [{weight: 3, size: 1}, {size: 4}]"
    p.write("spec.yaml", SPEC.replace("arrival: closed, max_concurrency: 4", sizes).replace("[1, 2]", "1"))
    done = p.run("tune", "--trials", "1")
    assert done.exit_code == 0, done.stderr
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    measured = decision.chosen.measurement
    assert [(each.weight, each.size) for each in measured.load.request_batch] == [(3, 1), (1, 4)]
    assert measured.throughput.value == pytest.approx(measured.load.rate * 1.75, rel=0.1)
    assert measured.requests >= 1000
    assert (decision.slo_met, measured.sustained) == (True, True)
    head = p.path("build/cpu/mlp/config.pbtxt").read_text()
    assert "requests/s poisson, requests of 1 (75%) and 4 (25%)" in head
    assert "requests/s poisson, request batch 1 (75%) and 4 (25%)" in done.stdout
    assert p.run("build", "--check").exit_code == 0


@pytest.mark.triton
@pytest.mark.slow
def test_every_workload_has_to_hold_and_a_miss_is_named_by_its_workload(p: ProjectFolder):
    one = "{arrival: closed, max_concurrency: 4}"
    steady, crowd = "{arrival: poisson, rate: 200}", "{arrival: closed, max_concurrency: 1024}"
    spec = SPEC.replace(one, f"[{one}, {steady}, {crowd}]").replace("[1, 2]", "1")
    p.write("spec.yaml", spec.replace("p99_latency_ms: 500", "p50_latency_ms: 60"))
    done = p.run("tune", "--trials", "1")
    assert done.exit_code == 1, done.stderr
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    assert not decision.slo_met
    assert list(decision.chosen.missed) == ["workload 3: p50_latency_ms"]
    assert decision.chosen.measurement.load.kind == "closed"
    assert decision.chosen.measurement.latency_ms["p50"].value < 60
    steadily, crowded = decision.chosen.further
    assert (steadily.load.rate, steadily.sustained, crowded.load.concurrency) == (200, True, 1024)
    assert min(steadily.requests, crowded.requests) >= 1000
    assert "workload 2 (200 requests/s poisson): " in done.stderr
    assert "misses the SLO (workload 3: p50_latency_ms by " in done.stderr
    assert "workload 3" in done.stdout


def assert_runs_are_in_mlflow(p: ProjectFolder) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{p.path('.tritonc/mlflow.db')}")
    runs = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    kinds = [run.data.tags["tritonc.kind"] for run in runs]
    assert (kinds.count("study"), kinds.count("trial")) == (1, 2)
    assert all(run.info.status == "FINISHED" for run in runs)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_tritonc_leaves_nothing_running_and_keeps_finished_trials(
    p: ProjectFolder, number: signal.Signals
):
    with running(p, "--trials", "2") as tune:
        tune.wait_for(lambda line: line.startswith("trial 1/2"))
        time.sleep(1)  # into the middle of the next trial
        tune.process.send_signal(number)
        code = tune.end(GONE_S)
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    assert_all_gone(p.folder)
    estimate = json.loads(p.run("tune", "--dry-run", "--output", "json").stdout)
    assert estimate["tasks"][0]["finished"] >= 1
    assert estimate["tasks"][0]["candidates"] == 2
