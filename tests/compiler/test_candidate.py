from pathlib import Path
from typing import Any

import pytest

from tests.compiler.projects import CPU, FIXED, GPU, messages, project_of, spec_of
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.knobs.legal_candidate import candidate_from
from tritonc.compiler.signature import Signature, Tensor
from tritonc.compiler.space import space_for
from tritonc.schemas.errors import InputErrors

KNOBS: dict[str, Any] = {
    "backend": "onnxruntime",
    "accelerator": "none",
    "instance_count": 2,
    "max_batch_size": 8,
    "dynamic_batching": True,
    "max_queue_delay_microseconds": 100,
    "preferred_batch_size": (4, 8),
    "intra_op_thread_count": 1,
}


def test_the_id_depends_on_the_knobs_alone() -> None:
    one = Candidate.of("m", "t", KNOBS)
    assert one.id == "e01c57b403"  # the same for ever: locks and folders carry it
    assert Candidate.of("other", "target", dict(reversed(KNOBS.items()))).id == one.id
    assert Candidate.of("m", "t", {**KNOBS, "instance_count": 3}).id != one.id
    assert Candidate.of("m", "t", {**KNOBS, "dynamic_batching": 1}).id != one.id


def test_a_candidate_gives_its_knobs_back() -> None:
    assert Candidate.of("m", "t", KNOBS).values == KNOBS


def test_legal_knobs_are_a_candidate_even_where_the_search_has_been_narrowed(tmp_path: Path) -> None:
    project = project_of(tmp_path, spec_of(search={"instance_count": 1, "max_queue_delay_microseconds": 0}))
    candidate = candidate_from(project, "m", "t", KNOBS)
    assert candidate == Candidate.of("m", "t", KNOBS)
    assert candidate not in space_for(project, "m", "t")


@pytest.mark.parametrize("target", [CPU, GPU, {**CPU, "backends": {"openvino": {}, "onnxruntime": {}}}])
def test_every_candidate_of_a_space_is_legal(tmp_path: Path, target: Any) -> None:
    project = project_of(tmp_path, spec_of({"max_batch_size": 2}, target))
    for candidate in space_for(project, "m", "t"):
        assert candidate_from(project, "m", "t", candidate.values) == candidate
    fixed = project_of(tmp_path, spec_of({"shapes": {}}, target), FIXED)
    for candidate in space_for(fixed, "m", "t"):
        assert candidate_from(fixed, "m", "t", candidate.values) == candidate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instance_count": 0}, "instance_count 0: 0 is out of bounds"),
        ({"instance_count": None}, "instance_count is missing"),
        ({"instance_count": "2"}, 'instance_count 2: "2" should be a whole number'),
        ({"instance_count": 2.0}, "instance_count 2.0: it should be written as 2"),
        ({"intra_op_thread_count": 64}, "64 threads are more than the 4 cores of target t"),
        ({"max_batch_size": 9}, "9 is above the model's max_batch_size of 8"),
        ({"max_batch_size": 4}, "preferred_batch_size (4, 8): it acts only where max_batch_size is 8"),
        ({"max_batch_size": 1}, "dynamic_batching True: it acts only where max_batch_size is 2 to 8"),
        ({"dynamic_batching": False}, "it acts only where dynamic_batching is true"),
        ({"dynamic_batching": None}, "dynamic_batching is missing"),
        ({"intra_op": 1}, 'unknown knob "intra_op", did you mean "intra_op_thread_count"?'),
        ({"instance_kind": "KIND_CPU"}, "instance_kind follows from the accelerator and is not given"),
        ({"accelerator": "cuda"}, "accelerator cuda: target t allows none only"),
        ({"backend": "openvino"}, "backend openvino: target t can serve model m with onnxruntime only"),
        ({"cudnn_conv_algo_search": 1}, "it acts only with accelerator cuda or tensorrt"),
        ({"inter_op_thread_count": 1}, "it acts only where execution_mode is 1"),
    ],
)
def test_illegal_knobs_of_a_hand_edited_lock_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    project = project_of(tmp_path, spec_of())
    knobs = {name: value for name, value in {**KNOBS, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=r".") as caught:
        candidate_from(project, "m", "t", knobs)
    assert message in str(caught.value)


def test_companions_are_needed_in_a_lock_too(tmp_path: Path) -> None:
    project = project_of(tmp_path, spec_of({}, GPU))
    knobs = {**KNOBS, "accelerator": "tensorrt", "trt_profile_min_shapes": "x:1x3x48x32"}
    with pytest.raises(
        ValueError, match="it needs trt_profile_opt_shapes and trt_profile_max_shapes beside it"
    ):
        candidate_from(project, "m", "t", knobs)


def test_a_model_without_a_batch_axis_has_max_batch_size_0(tmp_path: Path) -> None:
    project = project_of(tmp_path, spec_of({"shapes": {}}), FIXED)
    knobs = {"backend": "onnxruntime", "accelerator": "none", "instance_count": 1, "max_batch_size": 2}
    with pytest.raises(ValueError, match="max_batch_size 2: model m is served without a batch axis"):
        candidate_from(project, "m", "t", knobs)


def test_counts_that_fit_no_memory_are_illegal(tmp_path: Path) -> None:
    text = spec_of(
        {},
        {
            **GPU,
            "cores": 2,
            "memory": "64GiB",
            "backends": {"onnxruntime": {"accelerators": ["none", "cuda"]}},
        },
    )
    project = project_of(tmp_path, text, size_bytes=10 * 2**30)
    knobs = {**KNOBS, "instance_count": 4}
    assert candidate_from(project, "m", "t", knobs).values["instance_count"] == 4
    del knobs["intra_op_thread_count"]
    with pytest.raises(ValueError, match=r"instance_count 7: the weights of model m .* not more often"):
        candidate_from(project, "m", "t", {**knobs, "instance_count": 7})
    with pytest.raises(ValueError, match="instance_count 4: it acts only where accelerator is none"):
        candidate_from(project, "m", "t", {**knobs, "accelerator": "cuda"})


@pytest.mark.parametrize(
    "target",
    [{**CPU, "backends": {"onxruntime": {}}}, {**CPU, "triton": "20.10", "backends": {"openvino": {}}}],
)
def test_a_broken_target_is_the_spec_s_problem(tmp_path: Path, target: Any) -> None:
    text = Signature((Tensor("x", "TYPE_STRING", (1,)),), (), True)
    project = project_of(tmp_path, spec_of({"shapes": {}}, target), text)
    with pytest.raises(InputErrors) as caught:
        candidate_from(project, "m", "t", KNOBS)
    assert messages(caught.value)[0].startswith(":")
