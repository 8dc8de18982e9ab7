"""What `tritonc tune` prints at its end."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.conftest import ProjectFolder
from tests.locks import decision
from tests.models import mlp
from tritonc.compiler.project import open_project
from tritonc.schemas.errors import InputErrors, LockError
from tritonc.schemas.lock import Decision
from tritonc.schemas.measurement import OpenLoad
from tritonc.tune_report import estimate_text, result_document, result_text
from tritonc.tuner.coverage import Coverage
from tritonc.tuner.events import TargetSkipped, Undecided
from tritonc.tuner.tune import Estimate, TuneResult

SPEC = """\
apiVersion: tritonc/v1
name: test
models: {mlp: {source: models/mlp.onnx}}
targets: {cpu: {device: cpu, cores: 2, backends: {onnxruntime: {accelerators: [none]}}}}
"""


@pytest.fixture
def decided(project: Any) -> Decision:
    folder: ProjectFolder = project({"spec.yaml": SPEC, "models/mlp.onnx": mlp()})
    opened = open_project(folder.path("spec.yaml"))
    return decision(opened, "mlp", "cpu", {"instance_count": 4}, caveats=("Careful.",))


def result_of(*decisions: Decision, **fields: Any) -> TuneResult:
    values = {
        "decisions": decisions,
        "reasons": {(d.model, d.target): "it beats the baseline" for d in decisions},
        "objectives": {d.model: "throughput" for d in decisions},
        "undecided": (),
        "skipped": (TargetSkipped("gpu", "it has a GPU"),),
        "spec_path": Path("spec.yaml"),
        "lock_path": Path("spec.lock.yaml"),
        "out": Path("build"),
        "built": {},
        "not_built": None,
        "tracking_uri": "sqlite:///.tritonc/mlflow.db",
    }
    return TuneResult(**(values | fields))


def text_of(result: TuneResult) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(result_text(result))
    return console.file.getvalue()


def test_baseline_and_choice_stand_side_by_side_with_intervals_load_and_engine(decided: Decision):
    text = text_of(result_of(decided))
    assert f"baseline {decided.baseline.configuration.id}" in text
    assert f"chosen {decided.chosen.configuration.id}" in text
    assert "concurrency 12" in text
    assert "88.2 inferences/s [83.8, 92.7]" in text
    assert "44.1 ms [41.5, unknown (n = 1204)]" in text
    assert "embedded engine, Triton 2.51.0 (24.10), onnxruntime 1.24.1" in text


def test_what_changed_and_how_sure_it_is_is_said(decided: Decision):
    text = text_of(result_of(decided))
    assert "It beats the baseline." in text
    assert "Throughput +106.8% to the baseline's; differences below 3.0% count as noise here (95%)." in text
    assert "  instance_count: 2 -> 4" in text
    assert "Note: Careful." in text
    assert "target gpu was skipped: it has a GPU" in text


def test_the_next_commands_can_be_typed(decided: Decision):
    text = text_of(result_of(decided))
    for command in (
        "git add -N spec.lock.yaml build",
        "git diff spec.lock.yaml build",
        "tritonc build --check",
        "mlflow ui --backend-store-uri sqlite:///.tritonc/mlflow.db",
    ):
        assert f"  {command}\n" in text


@pytest.mark.parametrize(
    ("ignored", "shown"),
    [("", "spec.lock.yaml build"), ("build/\n", "spec.lock.yaml"), ("build/\n*.lock.yaml\n", "")],
)
def test_git_is_not_asked_to_add_what_it_ignores(
    ignored: str, shown: str, decided: Decision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    (tmp_path / ".gitignore").write_text(ignored)
    (tmp_path / "spec.lock.yaml").touch()
    (tmp_path / "build").mkdir()
    text = text_of(result_of(decided))
    assert (f"  git add -N {shown}\n  git diff {shown}\n" in text) == bool(shown)
    assert ("git " in text) == bool(shown)
    assert "  tritonc build --check\n" in text


def test_a_gain_is_told_in_what_the_model_is_tuned_for(decided: Decision):
    quicker = decided.model_copy(update={"gain": 0.25})
    assert "Latency -20.0% to the baseline's;" in text_of(result_of(quicker, objectives={"mlp": "latency"}))
    weighted = {"mlp": {"throughput": 0.5, "memory": 0.5}}
    assert "Weighted objective +25.0% to the baseline's;" in text_of(result_of(quicker, objectives=weighted))


def test_a_rate_that_was_not_sustained_and_warnings_of_the_load_generator_are_said(decided: Decision):
    measured = decided.chosen.measurement
    open_loop = measured.model_copy(
        update={"load": OpenLoad(rate=200), "sustained": False, "warnings": ("4% were delayed", "5%", "6%")}
    )
    chosen = decided.chosen.model_copy(update={"measurement": open_loop, "slo_met": False})
    text = text_of(result_of(decided.model_copy(update={"chosen": chosen, "slo_met": False})))
    assert "missed: the rate is not sustained" in text
    assert "Note: chosen: 4% were delayed; and 2 more like it in the lock." in text
    assert "44.1 ms [41.5, unknown]" in text


def test_soft_limits_that_the_choice_misses_are_said(decided: Decision):
    chosen = decided.chosen.model_copy(update={"missed_soft": {"p99_latency_ms": 0.1, "avg_queue_ms": 0.5}})
    text = text_of(result_of(decided.model_copy(update={"chosen": chosen})))
    assert "The choice misses soft limits: p99_latency_ms by 10%, avg_queue_ms by 50%." in text
    assert "met; soft: p99_latency_ms by 10%, avg_queue_ms by 50%" in text
    assert "Throughput +106.8% to the baseline's (soft limits count);" in text


def test_limits_that_are_missed_are_named(decided: Decision):
    chosen = decided.chosen.model_copy(update={"missed": {"max_load_seconds": 0.5}, "slo_met": False})
    text = text_of(result_of(decided.model_copy(update={"chosen": chosen, "slo_met": False})))
    assert "missed: max_load_seconds by 50%" in text


def test_cost_and_energy_stand_in_the_table_where_they_are_known(decided: Decision):
    measured = decided.chosen.measurement.model_copy(update={"joules_per_inference": 0.25})
    chosen = decided.chosen.model_copy(update={"measurement": measured})
    result = result_of(
        decided.model_copy(update={"chosen": chosen, "gain": 1.0}),
        objectives={"mlp": "cost"},
        prices={"cpu": 1.8},
    )
    text = text_of(result)
    assert "2.74 per million inferences [2.61, 2.88]" in text
    assert "0.250 J/inference" in text
    assert "Cost -50.0% to the baseline's;" in text


def test_commands_to_type_next_survive_a_space_in_a_name(decided: Decision):
    text = text_of(result_of(decided, lock_path=Path("my spec.lock.yaml")))
    assert "git diff 'my spec.lock.yaml' build" in text


def test_a_kept_baseline_has_one_column(decided: Decision):
    kept = decided.model_copy(update={"chosen": decided.baseline, "improved": False, "gain": 0.0})
    text = text_of(result_of(kept))
    assert "chosen" not in text
    assert "Changed from the baseline" not in text


def test_nothing_measured_is_said_and_the_answer_is_no():
    result = result_of(undecided=(Undecided("mlp", "cpu", "nothing could be measured; load_failed: x"),))
    text = text_of(result)
    assert "mlp on cpu: nothing could be measured; load_failed: x" in text
    assert "git diff" not in text
    assert not result.slo_met


def test_the_document_is_json_with_the_decisions_of_the_lock(decided: Decision):
    document = json.loads(json.dumps(result_document(result_of(decided))))
    reason = document["decisions"][0].pop("reason")
    assert reason == "it beats the baseline"
    assert Decision.model_validate(document["decisions"][0]) == decided
    assert document["slo_met"] is True


def test_an_estimate_says_what_it_rests_on():
    typical = Estimate("a", "cpu", 240, 50, 0, 590.0, False)
    measured = Estimate("b", "cpu", 240, 50, 20, 240.0, True, Coverage(7, 2))
    lines = estimate_text([typical, measured], []).splitlines()
    assert "about 9 min 50 s (10 s a trial is typical)" in lines[0]
    assert "50 trials (20 finished), about 4 min (as its trials took so far)" in lines[1]
    assert lines[2] == "  measured before: 7 candidates wholly, 2 partly"
    assert lines[3] == "together about 13 min 50 s"


def test_a_spec_elsewhere_is_named_in_what_to_type_next(decided: Decision):
    text = text_of(result_of(decided, spec_path=Path("ocr") / "my spec.yaml"))
    assert "tritonc build 'ocr/my spec.yaml' --check" in text


def test_a_lock_that_could_not_be_built_says_so(decided: Decision):
    stale = InputErrors([LockError('the weights of "other" changed', "run: tritonc tune")])
    result = result_of(decided, not_built=stale)
    assert "The lock is spec.lock.yaml, the repository not built." in text_of(result)
    assert result_document(result)["not_built"] == str(stale)


def test_what_was_measured_under_further_workloads_is_said(decided: Decision):
    measured = decided.chosen.measurement
    burst = measured.model_copy(update={"load": OpenLoad(rate=300, distribution={"trace": "ab" * 32})})
    chosen = decided.chosen.model_copy(update={"further": (burst,)})
    text = text_of(result_of(decided.model_copy(update={"chosen": chosen})))
    assert "workload 2" in text
    assert "not measured" in text
    assert "of trace" in text
