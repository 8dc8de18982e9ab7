"""Ensembles of a spec: what follows from their models, what is wrong with them, and what they compile to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import pytest

from tests import locks, models
from tests.conftest import Content, ProjectFolder
from tritonc.compiler.joint import joined, members_of
from tritonc.compiler.project import Project, measuring_shapes, open_project
from tritonc.compiler.repository import compile_candidates, compile_repository, parts_of
from tritonc.compiler.signature import Tensor
from tritonc.compiler.space import baseline_for, space_for
from tritonc.compiler.stale import changed_parts, digests
from tritonc.schemas.errors import InputErrors

MakeProject = Callable[[Mapping[str, Content]], ProjectFolder]

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
    outputs: [label]
    workload: {arrival: closed, max_concurrency: 16, request_batch: 2}
    slo: {p99_latency_ms: 80}
targets:
  cpu: {device: cpu, cores: 2, backends: {onnxruntime: {}}}
"""
NORM_AGAIN = "{model: norm, input_map: {scores: label}, output_map: {probabilities: again}}"
FILES: Mapping[str, Content] = {
    "mlp.onnx": models.mlp(),
    "softmax.onnx": models.softmax(),
    "fixed.onnx": models.fixed_batch(),
    "wide.onnx": models.identity(dims=("batch", 4)),
    "ints.onnx": models.identity(models.INT64, ("batch", 3)),
    "open.onnx": models.identity(dims=("batch", None)),
    "pair.onnx": models.two_inputs(),
}


@pytest.fixture
def with_spec(project: MakeProject) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        return project({"spec.yaml": text, **FILES}).path("spec.yaml")

    return make


def changed(*changes: tuple[str, str]) -> str:
    text = SPEC
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    return text


def errors(path: Path) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        open_project(path)
    return [str(error).removeprefix(f"{path}:") for error in caught.value]


def test_inputs_outputs_types_and_dims_follow_from_the_models(with_spec):
    pipeline = open_project(with_spec(SPEC)).ensembles["pipeline"]
    assert pipeline.members == ("score", "norm")
    assert pipeline.signature.inputs == (Tensor("features", "TYPE_FP32", (4,)),)
    assert pipeline.signature.outputs == (Tensor("label", "TYPE_FP32", (3,)),)
    assert pipeline.signature.has_batch_axis
    assert pipeline.max_batch_size == 4


def test_what_no_step_reads_is_an_output_and_the_request_says_the_batch(with_spec):
    text = changed(("    outputs: [label]\n", ""), ("    max_batch_size: 4\n", ""))
    pipeline = open_project(with_spec(text)).ensembles["pipeline"]
    assert [tensor.name for tensor in pipeline.signature.outputs] == ["label"]
    assert pipeline.max_batch_size == 2


def test_a_tensor_between_steps_can_be_an_output_too_and_one_model_run_twice(with_spec):
    text = changed(
        ("outputs: [label]", "outputs: [label, scores, again]"),
        ("    outputs", f"      - {NORM_AGAIN}\n    outputs"),
    )
    pipeline = open_project(with_spec(text)).ensembles["pipeline"]
    assert [tensor.name for tensor in pipeline.signature.outputs] == ["label", "scores", "again"]
    assert pipeline.members == ("score", "norm")


def test_steps_may_stand_in_any_order(with_spec):
    first, second = SPEC.splitlines(keepends=True)[9:11]
    project = open_project(with_spec(SPEC.replace(first + second, second + first)))
    assert [tensor.name for tensor in project.ensembles["pipeline"].signature.inputs] == ["features"]


def test_a_dimension_is_what_any_of_the_models_knows_of_it(with_spec):
    text = changed(("mlp.onnx", "open.onnx"))
    project = open_project(with_spec(text))
    assert project.ensembles["pipeline"].signature.inputs == (Tensor("features", "TYPE_FP32", (-1,)),)
    with pytest.raises(
        InputErrors, match=r'leave dimensions of input "features" open: \[-1\], without the b'
    ):
        measuring_shapes(project, "pipeline")
    for shapes in (
        changed(("mlp.onnx", "open.onnx"), ("    slo", "    shapes: {features: [3]}\n    slo")),
        changed(("mlp.onnx,", "open.onnx, shapes: {x: [3]},")),
    ):
        assert measuring_shapes(open_project(with_spec(shapes)), "pipeline") == {"features": (3,)}


def test_models_with_and_without_a_batch_axis_go_together_where_the_axis_is_in_the_dims(with_spec):
    text = changed(
        ("softmax.onnx, max_batch_size: 8", "softmax.onnx, max_batch_size: 0"),
        ("    max_batch_size: 4\n", ""),
        (", request_batch: 2", ""),
    )
    pipeline = open_project(with_spec(text)).ensembles["pipeline"]
    assert pipeline.max_batch_size == 0
    assert pipeline.signature.inputs == (Tensor("features", "TYPE_FP32", (-1, 4)),)
    batching = open_project(with_spec(changed(("max_batch_size: 8}\ne", "max_batch_size: 0}\ne"))))
    assert batching.ensembles["pipeline"].signature.outputs == (Tensor("label", "TYPE_FP32", (3,)),)


WRONG = (Path(__file__).parent / "wrong_ensembles.txt").read_text(encoding="utf-8").split("\n\n")[1:]


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_where_it_stands(with_spec, case: str):
    lines = case.strip().split("\n")
    before, after = ([line[1:].replace("⏎", "\n") for line in lines if line[0] == sign] for sign in "-+")
    wanted = [line for line in lines if line[0] not in "-+"]
    assert sorted(errors(with_spec(changed(*zip(before, after, strict=True))))) == wanted


def test_an_input_of_the_model_that_gets_nothing_is_an_error_and_one_tensor_may_be_read_twice(with_spec):
    step = "      - {model: pair, input_map: {ids: features}, output_map: {total: label}}\n"
    text = changed(
        (SPEC.splitlines(keepends=True)[9], step),
        (SPEC.splitlines(keepends=True)[10], ""),
        ("  score:", "  pair: {source: pair.onnx}\n  score:"),
    )
    [message] = errors(with_spec(text))
    assert 'input "scale" of pair is mapped to no tensor' in message
    text = text.replace("pair.onnx", "mlp.onnx").replace("ids:", "x:").replace("total:", "y:")
    assert open_project(with_spec(text)).spec.tuned == ("score", "norm", "pipeline")


def project_of(path: Path) -> Project:
    return open_project(path)


def test_the_space_has_the_knobs_of_all_models_and_keeps_what_the_ensemble_accepts(with_spec):
    project = project_of(with_spec(SPEC))
    space, parts = (
        space_for(project, "pipeline", "cpu"),
        [space_for(project, m, "cpu") for m in ("score", "norm")],
    )
    assert space.model == "pipeline"
    assert len(space) == len(parts[0]) * len(parts[1])
    assert space.baseline == baseline_for(project, "pipeline", "cpu")
    assert members_of(space.baseline) == {part.model: part.baseline for part in parts}
    sizes = next(d.values for d in space.dimensions if d.knob == "score/max_batch_size")
    assert sizes == (4, 8)
    delays = next(d.values for d in space.dimensions if d.knob == "norm/max_queue_delay_microseconds")
    assert max(delays) == 5000


def test_a_backend_that_cannot_take_what_the_ensemble_accepts_is_said(with_spec):
    project = project_of(with_spec(changed(("onnxruntime: {}", "openvino: {}"))))
    with pytest.raises(InputErrors) as caught:
        space_for(project, "pipeline", "cpu")
    assert [error.what for error in caught.value] == [
        f"model {model} has no legal configuration on target cpu: the openvino backend answers full batches "
        "only, so it has to be the workload's request_batch of 2"
        for model in ("score", "norm")
    ]


def test_what_was_decided_for_an_ensemble_configures_its_models(with_spec):
    project = project_of(with_spec(SPEC))
    decision = locks.decision(
        project, "pipeline", "cpu", {"norm/instance_count": 4, "score/instance_count": 1}
    )
    built = compile_repository(project, locks.lock(project, decision), "cpu")
    text = {str(path): content for path, content in built.files.items() if path.name == "config.pbtxt"}
    assert b"count: 4" in text["norm/config.pbtxt"]
    assert b"count: 1" in text["score/config.pbtxt"]
    assert b"the best of 21 of" in text["pipeline/config.pbtxt"]
    assert b"a step of pipeline, whose config.pbtxt says what was measured" in text["norm/config.pbtxt"]
    assert built.files[PurePosixPath("pipeline/1/.gitkeep")] == b""
    assert built.notices == ()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"norm/instance_count": 0}, "norm: instance_count 0"),
        ({"other/instance_count": 1}, "other is no model of the ensemble"),
        ({"instance_count": 1}, "each knob has to have the name of its model before it"),
    ],
)
def test_a_lock_that_was_edited_is_refused(with_spec, knobs, message):
    project = project_of(with_spec(SPEC))
    lock = locks.lock(project, locks.decision(project, "pipeline", "cpu", knobs))
    with pytest.raises(InputErrors, match=message):
        compile_repository(project, lock, "cpu")


def test_what_search_no_longer_allows_is_said_with_its_model(with_spec):
    path = with_spec(SPEC)
    decision = locks.decision(project_of(path), "pipeline", "cpu", {"norm/instance_count": 4})
    path.write_text(changed(("softmax.onnx,", "softmax.onnx, search: {instance_count: [1, 2]},")))
    with pytest.raises(InputErrors, match="norm/instance_count is 4, but the spec's search allows 1, 2"):
        compile_repository(project_of(path), locks.lock(project_of(path), decision), "cpu")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("max_concurrency: 16", "max_concurrency: 17"), "load"),
        (("max_batch_size: 4", "max_batch_size: 8"), "signature"),
        (("features", "attributes"), "signature"),
        (("mlp.onnx,", "mlp.onnx, shapes: {x: [4]},"), "load"),
        (("softmax.onnx,", "softmax.onnx, search: {instance_count: 1},"), "space"),
    ],
)
def test_what_the_evidence_depends_on_is_in_its_digests(with_spec, change, part):
    path = with_spec(SPEC)
    before = digests(project_of(path), "pipeline", "cpu")
    path.write_text(changed(change))
    assert part in changed_parts(before, digests(project_of(path), "pipeline", "cpu"))


def test_other_steps_make_the_evidence_stale_for_good(with_spec):
    path = with_spec(SPEC)
    lock = locks.lock(project_of(path), locks.decision(project_of(path), "pipeline", "cpu"))
    path.write_text(changed(("features", "attributes")))
    with pytest.raises(
        InputErrors, match="steps of the ensemble, or inputs or outputs of its models, changed"
    ):
        compile_repository(project_of(path), lock, "cpu")


def test_a_decision_for_a_model_that_has_become_a_step_is_noticed(with_spec):
    path = with_spec(SPEC[: SPEC.index("ensembles")] + SPEC[SPEC.index("targets") :])
    lock = locks.lock(project_of(path), locks.decision(project_of(path), "norm", "cpu"))
    path.write_text(SPEC)
    built = compile_repository(project_of(path), lock, "cpu")
    assert built.notices == (
        "spec.lock.yaml has a decision for norm on cpu, which is a step of ensemble pipeline now: "
        "what was decided for that counts",
        "cpu: spec.lock.yaml has no decision for pipeline: the baseline is used; "
        "to measure, run: tritonc tune",
    )


def test_candidates_side_by_side_share_the_models_that_they_have_in_common(with_spec):
    project = project_of(with_spec(SPEC))
    baseline = space_for(project, "pipeline", "cpu").baseline
    parts = members_of(baseline)
    other = joined(
        [parts["norm"], next(one for one in space_for(project, "score", "cpu") if one != parts["score"])],
        "pipeline",
    )
    names = {part: f"{part.model}-{part.id}" for one in (baseline, other) for part in parts_of(project, one)}
    assert len(names) == 5
    files = compile_candidates(project, {name: part for part, name in names.items()}).files
    for one in (baseline, other):
        config = files[PurePosixPath(names[one], "config.pbtxt")]
        assert isinstance(config, bytes)
        for model, part in members_of(one).items():
            assert f'model_name: "{model}-{part.id}"'.encode() in config
