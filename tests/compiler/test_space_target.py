"""Backends, accelerators and precisions of a target."""

from pathlib import Path
from typing import Any

import pytest

from tests.compiler.projects import CPU, GPU, messages, project_of, spec_of
from tritonc.compiler.signature import Signature, Tensor
from tritonc.compiler.space import baseline_for, space_for
from tritonc.schemas.errors import InputErrors


def problems(folder: Path, target: Any, *signatures: Signature) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        space_for(project_of(folder, spec_of({"shapes": {}}, target), *signatures), "m", "t")
    return messages(caught.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {**CPU, "backends": {"onxruntime": {}}},
            'unknown backend "onxruntime"; did you mean "onnxruntime"?',
        ),
        (
            {**GPU, "backends": {"tensorrt": {}}},
            "tritonc does not compile for Triton's tensorrt backend yet; "
            "use backend onnxruntime with accelerator tensorrt",
        ),
        ({**CPU, "backends": {"python": {}}}, "Triton's python backend yet; one of: onnxruntime, openvino"),
        (
            {**CPU, "backends": {"onnxruntime": {"accelerators": ["none", "tensort"]}}},
            'unknown accelerator "tensort" for onnxruntime; '
            'did you mean "tensorrt"? (cuda, none, openvino, tensorrt)',
        ),
        (
            {**CPU, "backends": {"onnxruntime": {"accelerators": ["cuda"]}}},
            "accelerator cuda needs a GPU, and target t is device: cpu; "
            "use none or openvino, or declare device: gpu",
        ),
        (
            {**CPU, "backends": {"openvino": {"accelerators": ["openvino"]}}},
            'unknown accelerator "openvino" for openvino; one of: none',
        ),
        (
            {**GPU, "backends": {"onnxruntime": {"accelerators": ["tensorrt"], "precisions": ["fp61"]}}},
            'unknown precision "fp61" for onnxruntime; did you mean "fp16"?',
        ),
        (
            {**GPU, "backends": {"onnxruntime": {"accelerators": ["cuda"], "precisions": ["fp32", "fp16"]}}},
            "precision fp16 needs accelerator tensorrt, which target t lacks; "
            "allow it, or leave the precision out (fp32)",
        ),
        (
            {**GPU, "gpu": {"name": "A10", "memory": "24GiB", "count": 2}},
            "tensorrt builds for GPU 0 only before Triton 25.04; serve with a later release, or with one GPU",
        ),
    ],
)
def test_what_a_target_cannot_allow_says_why(tmp_path: Path, target: Any, message: str) -> None:
    found = problems(tmp_path, target)
    assert len(found) == 1, found
    assert message in found[0]


def test_a_precision_of_a_later_release_is_refused(tmp_path: Path) -> None:
    target = {**GPU, "backends": {"onnxruntime": {"accelerators": ["tensorrt"], "precisions": ["bf16"]}}}
    assert "precision bf16 needs Triton 26.02; target t is served by 24.10" in problems(tmp_path, target)[0]
    assert (
        baseline_for(project_of(tmp_path, spec_of({}, {**target, "triton": "26.02"})), "m", "t").values[
            "precision_mode"
        ]
        == "BF16"
    )


def test_a_precision_is_never_dropped_in_silence(tmp_path: Path) -> None:
    backends = {"onnxruntime": {"accelerators": ["tensorrt"], "precisions": ["fp16"]}}
    target = {**GPU, "triton": "21.02", "backends": backends}
    assert "precision fp16 needs Triton 21.06; target t is served by 21.02" in problems(tmp_path, target)[0]


def test_two_gpus_have_two_device_ids_from_25_04_on(tmp_path: Path) -> None:
    target = {**GPU, "triton": "25.04", "gpu": {"name": "A10", "memory": "24GiB", "count": 2}}
    assert baseline_for(project_of(tmp_path, spec_of({}, target)), "m", "t").values["accelerator"] == "cuda"


def test_the_device_chooses_the_accelerator_where_the_spec_does_not(tmp_path: Path) -> None:
    gpu = {**GPU, "backends": {"onnxruntime": {}, "openvino": {}}}
    project = project_of(tmp_path, spec_of({}, CPU, gpu=gpu))
    assert baseline_for(project, "m", "t").values["accelerator"] == "none"
    assert baseline_for(project, "m", "gpu").values["accelerator"] == "cuda"
    space = space_for(project, "m", "gpu")
    assert {(c.values["backend"], c.values["accelerator"]) for c in space} == {
        ("onnxruntime", "cuda"),
        ("openvino", "none"),
    }


@pytest.mark.parametrize(
    ("dtype", "dims", "message"),
    [
        (
            "TYPE_BF16",
            (4,),
            'onnxruntime: "x" is TYPE_BF16, which needs Triton 26.03; openvino: "x" is TYPE_BF16',
        ),
        (
            "TYPE_FP32",
            (),
            'onnxruntime: input "x" is a scalar, which needs Triton 23.10; openvino: input "x"',
        ),
    ],
)
def test_a_model_that_no_backend_can_serve_is_an_error(
    tmp_path: Path, dtype: str, dims: tuple[int, ...], message: str
) -> None:
    signature = Signature((Tensor("x", dtype, dims),), (Tensor("y", "TYPE_FP32", (3,)),), False)
    target = {**CPU, "triton": "23.06", "backends": {"onnxruntime": {}, "openvino": {}}}
    found = problems(tmp_path, target, signature)
    assert f"no backend of target t can serve model m: {message}" in found[0]


def test_a_backend_that_cannot_serve_a_model_is_left_out_for_it(tmp_path: Path) -> None:
    text = Signature((Tensor("x", "TYPE_STRING", (1,)),), (Tensor("y", "TYPE_FP32", (3,)),), True)
    target = {**CPU, "backends": {"openvino": {}, "onnxruntime": {}}}
    space = space_for(project_of(tmp_path, spec_of({"shapes": {}}, target), text), "m", "t")
    assert {candidate.values["backend"] for candidate in space} == {"onnxruntime"}


def test_requests_of_several_sizes_need_a_backend_that_batches(tmp_path: Path) -> None:
    sizes = [{"size": 1, "weight": 3}, {"size": 4}]
    model = {"max_batch_size": 8, "workload": {"arrival": "poisson", "rate": 9, "request_batch": sizes}}
    target = {**CPU, "backends": {"openvino": {}, "onnxruntime": {}}}
    space = space_for(project_of(tmp_path, spec_of(model, target)), "m", "t")
    assert {candidate.values["backend"] for candidate in space} == {"onnxruntime"}
    assert {candidate.values["max_batch_size"] for candidate in space} == {4, 8}


def test_the_openvino_backend_is_given_full_batches_only(tmp_path: Path) -> None:
    model = {"max_batch_size": 8, "workload": {"arrival": "closed", "request_batch": 2}}
    target = {**CPU, "backends": {"openvino": {}, "onnxruntime": {}}}
    space = space_for(project_of(tmp_path, spec_of(model, target)), "m", "t")
    sizes: dict[object, set[object]] = {}
    for candidate in space:
        values = candidate.values
        sizes.setdefault(values["backend"], set()).add(values["max_batch_size"])
        assert values["backend"] == "onnxruntime" or "dynamic_batching" not in values
    assert sizes == {"openvino": {2}, "onnxruntime": {2, 4, 8}}
    assert space.baseline.values["backend"] == "openvino"
    assert space.baseline.values["max_batch_size"] == 2


def test_a_batch_size_that_openvino_cannot_have_leaves_the_other_backend(tmp_path: Path) -> None:
    both = {**CPU, "backends": {"openvino": {}, "onnxruntime": {}}}
    project = project_of(tmp_path, spec_of({}, both, {"max_batch_size": 4}))
    assert baseline_for(project, "m", "t").values["backend"] == "onnxruntime"
    alone = {**CPU, "backends": {"openvino": {}}}
    with pytest.raises(InputErrors) as caught:
        space_for(project_of(tmp_path, spec_of({}, alone, {"max_batch_size": 4})), "m", "t")
    assert "the openvino backend answers full batches only" in messages(caught.value)[0]
