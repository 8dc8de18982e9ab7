"""An ensemble measured as a whole on a real tritonserver."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from tests.models import mlp, softmax
from tests.tuner.conftest import Served, run_onnxruntime
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import members_of
from tritonc.compiler.output.writer import write_repository
from tritonc.compiler.project import open_project
from tritonc.compiler.repository import compile_candidate, parts_of
from tritonc.compiler.space import space_for
from tritonc.schemas.errors import EngineError
from tritonc.schemas.measurement import ClosedLoad, Failure
from tritonc.schemas.spec import ClosedWorkload, Slo
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.engines import Server, Statistics, engine_named
from tritonc.tuner.inputs import read_inputs
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.perf_analyzer import LoadData, perf_analyzer_at
from tritonc.tuner.stand import Stand
from tritonc.tuner.verify import infer

pytestmark = [pytest.mark.triton, pytest.mark.slow]

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  score: {source: mlp.onnx, max_batch_size: 8}
  norm: {source: softmax.onnx, max_batch_size: 8}
ensembles:
  pipeline:
    max_batch_size: 4
    steps:
      - {model: score, input_map: {x: features}, output_map: {y: scores}}
      - {model: norm, input_map: {scores: scores}, output_map: {probabilities: label}}
targets: {cpu: {device: cpu, cores: 1, backends: {onnxruntime: {accelerators: [none]}}}}
"""


@dataclass
class Here:
    """An ensemble on a stand of its own."""

    stand: Stand
    measuring: StandMeasuring
    bench: Bench
    baseline: Candidate
    warnings: list[str] = field(default_factory=list)

    def with_knobs(self, **knobs: object) -> Candidate:
        """The baseline with other values, `model__knob=value`."""
        changed = {name.replace("__", "/"): value for name, value in knobs.items()}
        values = {**self.baseline.values, **changed}
        return Candidate.of("pipeline", "cpu", values)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("ensemble")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "mlp.onnx").write_bytes(mlp().SerializeToString())
    (folder / "softmax.onnx").write_bytes(softmax().SerializeToString())
    project = open_project(folder / "spec.yaml")
    try:
        binary, env = engine_named("embedded").perf_analyzer()
    except EngineError as err:
        pytest.skip(str(err))
    inputs, warnings = read_inputs(project, "pipeline"), []
    bench = Bench(
        generator=perf_analyzer_at(binary, env),
        data=LoadData.of(inputs, folder),
        inputs=(inputs,),
        workload=ClosedWorkload(max_concurrency=2),
        slo=Slo(p99_latency_ms=60_000),
        objective="throughput",
        accuracy=project.spec.ensembles["pipeline"].accuracy,
        max_batch_size=4,
    )
    baseline = space_for(project, "pipeline", "cpu").baseline
    engine = engine_named("embedded")
    with Stand(project, engine, folder / "served", cores=(), on_start=lambda _restarted: None) as stand:
        measuring = StandMeasuring(
            stand,
            bench,
            baseline=baseline,
            compared_with=lambda: None,
            on_load=lambda _candidate, _load: None,
            warn=warnings.append,
        )
        yield Here(stand, measuring, bench, baseline, warnings)


def moved(server: Server, here: Here, requests: int) -> dict[str, Statistics]:
    """What the server counts for requests of two, one after another.

    It counts a request when its answer has been sent, so that the last one may not be counted yet.
    """
    names = ("pipeline", "score", "norm")
    before = {name: server.statistics(name) for name in names}
    for number in range(requests):
        assert not isinstance(infer(server, "pipeline", here.bench.inputs[0], 2, number), Failure)

    def seen() -> dict[str, Statistics]:
        return {name: server.statistics(name).since(before[name]) for name in names}

    deadline = time.monotonic() + 5
    while any(each.requests < requests for each in seen().values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return seen()


def test_it_computes_what_its_models_compute_one_after_the_other(here: Here):
    server, loaded_s = here.stand.serve(here.baseline)
    assert loaded_s > 0
    assert server.steps("pipeline") == ("score", "norm")
    assert server.steps("norm") == ()
    found = infer(server, "pipeline", here.bench.inputs[0], 4, 0)
    assert not isinstance(found, Failure), found
    x = here.bench.inputs[0].batch(4)["features"]
    [scores] = run_onnxruntime(mlp(), x=x)
    [wanted] = run_onnxruntime(softmax(), scores=scores)
    np.testing.assert_allclose(found["label"], wanted, rtol=1e-5)
    refused = infer(server, "pipeline", here.bench.inputs[0], 5, 0)
    assert isinstance(refused, Failure)
    assert "batch-size must be <= 4" in refused.detail


def test_its_statistics_are_those_of_its_models_added_up(here: Here):
    server, _ = here.stand.serve(here.with_knobs(score__max_queue_delay_microseconds=5000))
    seen = moved(server, here, 3)
    pipeline, parts = seen["pipeline"], [seen["score"], seen["norm"]]
    assert (pipeline.requests, pipeline.inferences, pipeline.executions) == (3, 6, 6)
    assert pipeline.mean_batch == 2.0
    assert pipeline.queue_ns == sum(part.queue_ns for part in parts)
    assert pipeline.queue_ns >= 3 * 4_000_000  # no batch fills: each request waits for the delay to pass
    assert pipeline.compute_infer_ns == sum(part.compute_infer_ns for part in parts)


def test_its_capacity_is_that_of_the_whole_and_candidates_take_each_others_place(here: Here):
    found = here.measuring.capacity(here.baseline)
    assert isinstance(found, Capacity), found
    assert found.slo_met
    measured = found.measurement
    assert measured.queue_ms is not None
    assert measured.errors == 0
    assert (measured.mean_batch or 0) >= 1
    other = here.with_knobs(norm__instance_count=3, score__dynamic_batching=False)
    values = {k: v for k, v in other.knobs if not k.startswith("score/max_queue") and "score/pref" not in k}
    other = Candidate.of("pipeline", "cpu", values)
    before = here.stand.start().pid
    server, loaded_s = here.stand.serve(other)  # in the place of the baseline, by the same server
    assert loaded_s > 0
    assert server.pid == before
    assert not isinstance(infer(server, "pipeline", here.bench.inputs[0], 4, 0), Failure)
    here.measuring.gather({here.baseline: measured, other: measured})
    names = {here.stand.name_of(one) for one in (here.baseline, other)}
    assert names == {f"pipeline-{here.baseline.id}", f"pipeline-{other.id}"}
    for one in (here.baseline, other):
        sample = here.measuring.sample(one, ClosedLoad(concurrency=2), 40)
        assert not isinstance(sample, Failure), sample
        assert sample.requests >= 40
        assert sample.counted.queue_ns > 0
        steps = here.stand.start().steps(here.stand.name_of(one))
        assert list(steps) == [f"{model}-{members_of(one)[model].id}" for model in ("score", "norm")]
    here.stand.withdraw()
    assert here.warnings == []


def test_other_outputs_of_the_whole_fail_a_candidate(here: Here):
    from tritonc.tuner.verify import reference_outputs, verify

    server, _ = here.stand.serve(here.baseline)
    reference = reference_outputs(server, "pipeline", here.bench.inputs[0])
    assert not isinstance(reference, Failure), reference
    wrong = replace(reference, rows=tuple({"label": row["label"] + 0.5} for row in reference.rows))
    accuracy = here.bench.accuracy
    args = (server, "pipeline", here.bench.inputs[0])
    assert verify(*args, reference, accuracy, max_batch_size=4) is None
    differs = verify(*args, wrong, accuracy, max_batch_size=4)
    assert isinstance(differs, Failure)
    assert differs.reason == "outputs_differ"


def test_a_model_that_does_not_load_is_named(here: Here):
    broken = here.with_knobs(norm__accelerator="cuda")
    found = here.measuring.capacity(broken)
    assert isinstance(found, Failure)
    assert found.reason == "load_failed"
    assert found.detail.startswith("norm: ")
    assert isinstance(here.measuring.capacity(here.baseline), Capacity)


NORM_AGAIN = "      - {model: norm, input_map: {scores: label}, output_map: {probabilities: again}}\n"
SCORE, NORM = SPEC.splitlines(keepends=True)[9:11]


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ([(SCORE + NORM, NORM + SCORE)], {"label": (2, 3)}),
        ([(NORM, NORM + NORM_AGAIN)], {"again": (2, 3)}),
        ([(NORM, f"{NORM}    outputs: [label, scores]\n")], {"label": (2, 3), "scores": (2, 3)}),
        ([("softmax.onnx, max_batch_size: 8", "softmax.onnx, max_batch_size: 0")], {"label": (2, 3)}),
        (
            [
                ("softmax.onnx, max_batch_size: 8", "softmax.onnx, max_batch_size: 0"),
                ("_size: 4", "_size: 0"),
            ],
            {"label": (2, 3)},
        ),
    ],
    ids=["any order", "a model twice", "inner output", "mixed in batches", "mixed without"],
)
def test_triton_takes_what_is_accepted(served: Served, tmp_path: Path, changes, shapes):
    text = SPEC
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    own = f"e{len(list(served.server.repository.iterdir()))}"
    for name in ("score", "norm", "pipeline"):
        text = text.replace(f" {name}:", f" {name}{own}:").replace(f"model: {name},", f"model: {name}{own},")
    (tmp_path / "spec.yaml").write_text(text)
    (tmp_path / "mlp.onnx").write_bytes(mlp().SerializeToString())
    (tmp_path / "softmax.onnx").write_bytes(softmax().SerializeToString())
    project = open_project(tmp_path / "spec.yaml")
    baseline = space_for(project, f"pipeline{own}", "cpu").baseline
    write_repository(compile_candidate(project, baseline), tmp_path / "out")
    for part in parts_of(project, baseline):
        shutil.copytree(tmp_path / "out" / part.model, served.server.repository / part.model)
        served.server.load(part.model)
    found = served.infer(baseline.model, features=np.ones((2, 4), np.float32))
    assert {name: array.shape for name, array in found.items()} == shapes
    for part in reversed(parts_of(project, baseline)):
        served.server.unload(part.model, wait=False)
