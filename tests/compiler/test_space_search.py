"""What `search:` may say, and what it is told when it may not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.compiler.projects import CPU, FIXED, GPU, messages, project_of, spec_of
from tritonc.compiler.space import space_for
from tritonc.schemas.errors import InputErrors

OPENVINO = {**CPU, "backends": {"openvino": {}}}
OLD = {**CPU, "triton": "23.12"}


def problems(folder: Path, text: str, *signatures: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        space_for(project_of(folder, text, *signatures, **kwargs), "m", "t")
    return messages(caught.value)


def grid(folder: Path, knob: str, search: Any, target: Mapping[str, Any] = CPU) -> tuple[Any, ...]:
    named = {knob: search, "execution_mode": 1} if knob == "inter_op_thread_count" else {knob: search}
    space = space_for(project_of(folder, spec_of({"max_batch_size": 32}, target, named)), "m", "t")
    return next((d.values for d in space.dimensions if d.knob == knob), ())


@pytest.mark.parametrize(
    ("knob", "search", "expected"),
    [
        ("instance_count", 4, (4,)),
        ("instance_count", [4, 1, 4, 2.0], (1, 2, 4)),
        ("instance_count", {"min": 3, "max": 20}, (3, 6, 12, 20)),
        ("instance_count", 100, (100,)),
        ("max_batch_size", [8, 32], (8, 32)),
        ("max_queue_delay_microseconds", {"min": 0, "max": 1000}, (0, 100, 200, 400, 800, 1000)),
        ("max_queue_delay_microseconds", {"min": 0, "max": 50}, (0, 50)),
        ("max_queue_delay_microseconds", {"min": 7, "max": 7}, (7,)),
        ("preferred_batch_size", [[], [4, 8], 2], ((), (4, 8), (2,))),
        ("preferred_batch_size", 16, ((16,),)),
        ("dynamic_batching", "off", (False,)),
        ("dynamic_batching", [True, 0], (True, False)),
        ("intra_op_thread_count", [0, 3], (0, 3)),
        ("inter_op_thread_count", 2, (2,)),
        ("graph_level", [0, -1], (0, -1)),
        ("graph_level", {"min": 1, "max": 2}, (1, 2)),
        ("execution_mode", 1, (1,)),
        ("enable_mem_pattern", [True, False], (True, False)),
        ("memory.enable_memory_arena_shrinkage", "cpu:0", ("cpu:0",)),
        ("model_warmup", True, (True,)),
    ],
)
def test_a_search_is_a_pin_a_list_or_a_range(tmp_path: Path, knob: str, search: Any, expected: Any) -> None:
    assert grid(tmp_path, knob, search) == expected


@pytest.mark.parametrize(
    ("knob", "search", "expected"),
    [
        ("gpu_mem_limit", "1GiB", (2**30,)),
        ("max_workspace_size_bytes", [2**20, "1MiB", "2MiB"], (2**20, 2**21)),
        ("cudnn_conv_algo_search", [0, 1, 2], (0, 1, 2)),
        ("precision_mode", ["fp16", "INT8"], ("FP16", "INT8")),
        ("trt_tactic_sources", "-CUDNN,+CUBLAS", ("-CUDNN,+CUBLAS",)),
        ("trt_auxiliary_streams", -1, (-1,)),
        ("use_tf32", [True, False], (True, False)),
        ("input_pinned_memory", False, (False,)),
        ("accelerator", "tensorrt", ("tensorrt",)),
        ("instance_kind", "KIND_GPU", ()),
    ],
)
def test_a_gpu_has_knobs_of_its_own(tmp_path: Path, knob: str, search: Any, expected: Any) -> None:
    assert grid(tmp_path, knob, search, GPU) == expected


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"instance_cuont": 1}, ':28:3: unknown knob "instance_cuont"; did you mean "instance_count"?'),
        ({"xyz": 1}, ':28:3: unknown knob "xyz"; usual ones: backend, accelerator,'),
        ({"count": 1}, ':28:3: unknown knob "count"; the knob is instance_count'),
        ({"response_cache": True}, "it is set, not searched: write it under the model's config"),
        (
            {"instance_count": 0},
            "instance_count: 0 is out of bounds: it should be a whole number of at least 1",
        ),
        ({"instance_count": 2**31}, "2147483648 is out of bounds: it should be at most 2147483647"),
        ({"instance_count": "4x"}, 'instance_count: "4x" should be a whole number of at least 1'),
        ({"instance_count": True}, "instance_count: True should be a whole number"),
        ({"instance_count": [1, 2.5]}, "instance_count: 2.5 should be a whole number"),
        ({"instance_count": {"min": 0, "max": 4}}, "instance_count: 0 is out of bounds"),
        ({"intra_op_thread_count": 8}, "8 threads are more than the 4 cores of target t"),
        ({"max_batch_size": 16}, "16 is above the model's max_batch_size of 8"),
        ({"max_batch_size": 0}, "write max_batch_size: 0 at the model"),
        ({"preferred_batch_size": [[2, 9]]}, "9 is above the model's max_batch_size of 8"),
        ({"preferred_batch_size": [[4, 2]]}, "should be batch sizes in rising order"),
        ({"preferred_batch_size": {"min": 1, "max": 8}}, "it has no ranges: write a list of lists"),
        ({"dynamic_batching": "maybe"}, 'dynamic_batching: "maybe" should be true or false'),
        ({"dynamic_batching": {"min": 0, "max": 1}}, "it is on or off and has no ranges"),
        ({"graph_level": 3}, "graph_level: 3 is not a value of it; one of: -1, 0, 1, 2"),
        ({"execution_mode": {"min": 2, "max": 9}}, "has no value of it: 0, 1"),
        ({"memory.enable_memory_arena_shrinkage": "cpu"}, 'should be devices such as "cpu:0"'),
        (
            {"memory.enable_memory_arena_shrinkage": {"min": 1, "max": 2}},
            "it has no ranges: it should be devices",
        ),
        ({"cudnn_conv_algo_search": 1}, "it acts only with accelerator cuda or tensorrt; target t has none"),
        ({"use_tf32": False}, "it acts only with accelerator cuda; target t has none"),
        ({"input_pinned_memory": True}, "target t runs nothing on a GPU"),
        ({"NUM_STREAMS": 2}, "it belongs to the openvino backend, which is not used here"),
        (
            {"session.use_device_allocator_for_initializers": True},
            "needs Triton 25.02; target t is served by 24.10",
        ),
        ({"backend": "openvino"}, "target t can serve model m with onnxruntime only"),
        ({"accelerator": "cuda"}, "target t allows none only"),
        ({"instance_kind": "KIND_GPU"}, "no accelerator of target t runs as KIND_GPU"),
        (
            {"inter_op_thread_count": 2},
            "it acts only where execution_mode is 1, and execution_mode is not searched",
        ),
        (
            {"inter_op_thread_count": 2, "execution_mode": 0},
            "inter_op_thread_count is illegal here: it acts only where execution_mode is 1",
        ),
        (
            {"max_queue_delay_microseconds": 100, "dynamic_batching": False},
            "it acts only where dynamic_batching is true",
        ),
    ],
)
def test_an_illegal_search_says_why_and_where(tmp_path: Path, search: Any, message: str) -> None:
    found = problems(tmp_path, spec_of({"max_batch_size": 8}, search=search))
    assert len(found) == 1, found
    assert message in found[0]
    assert found[0].startswith(":")


def test_a_model_s_own_search_wins_and_is_named_in_its_place(tmp_path: Path) -> None:
    text = spec_of({"search": {"instance_count": 2}}, search={"instance_count": 3, "graph_level": 1})
    space = space_for(project_of(tmp_path, text), "m", "t")
    assert space.baseline.values["instance_count"] == 2
    assert space.baseline.values["graph_level"] == 1
    own = problems(
        tmp_path, spec_of({"search": {"instance_count": [1, "two"]}}, search={"instance_count": -1})
    )
    assert own == [':17:6: instance_count: "two" should be a whole number of at least 1']


def test_every_problem_is_reported_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    search = {"instance_count": [0, 1, -1], "intra_op_thread_count": 99, "nonsense": 1}
    found = problems(tmp_path, spec_of(search=search))
    assert [one.split(" ")[1] for one in found] == [
        "instance_count:",
        "instance_count:",
        "intra_op_thread_count:",
        "unknown",
    ]


def test_what_is_legal_on_one_target_may_stand_beside_another(tmp_path: Path) -> None:
    search = {"cudnn_conv_algo_search": [0, 1], "intra_op_thread_count": [1, 4, 16], "NUM_STREAMS": 2}
    large = {**CPU, "cores": 16, "backends": {"onnxruntime": {}, "openvino": {}}}
    project = project_of(tmp_path, spec_of({}, CPU, search, gpu=GPU, large=large))
    knobs = {
        target: {d.knob: d.values for d in space_for(project, "m", target).dimensions}
        for target in ("t", "gpu", "large")
    }
    assert knobs["t"]["intra_op_thread_count"] == (1, 4)
    assert knobs["large"]["intra_op_thread_count"] == (1, 4, 16)
    assert knobs["gpu"]["cudnn_conv_algo_search"] == (0, 1)
    assert "cudnn_conv_algo_search" not in knobs["t"]
    assert knobs["large"]["NUM_STREAMS"] == (2,)


def test_a_target_left_without_a_value_is_an_error(tmp_path: Path) -> None:
    large = {**CPU, "cores": 16}
    found = problems(tmp_path, spec_of({}, CPU, {"intra_op_thread_count": 16}, large=large))
    assert found == [":35:28: intra_op_thread_count: 16 threads are more than the 4 cores of target t"]


def test_a_search_for_all_passes_models_by_that_cannot_batch(tmp_path: Path) -> None:
    text = spec_of({"shapes": {}}, search={"max_batch_size": [2, 4], "dynamic_batching": True}).replace(
        '"models": {', '"models": {"other": {"source": "other.onnx"},'
    )
    project = project_of(tmp_path, text)
    fixed = project_of(tmp_path, text, project.models["other"].signature, FIXED)
    assert space_for(fixed, "m", "t").baseline.values["max_batch_size"] == 0
    assert space_for(fixed, "other", "t").baseline.values["max_batch_size"] == 4


def test_only_what_no_model_and_target_can_have_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, spec_of({"shapes": {}}, search={"dynamic_batching": True}), FIXED)
    assert found == [
        ":21:3: dynamic_batching is illegal here: model m has max_batch_size 0: there is nothing to batch"
    ]
    broken = {**CPU, "backends": {"tensort": {}}}
    found = problems(tmp_path, spec_of({}, CPU, {"use_tf32": True}, broken=broken))
    assert found[0].endswith(
        "use_tf32 is illegal here: it acts only with accelerator cuda; target t has none"
    )


def test_the_kind_of_instances_narrows_the_accelerators(tmp_path: Path) -> None:
    target = {**GPU, "cores": 2, "backends": {"onnxruntime": {"accelerators": ["cuda", "none"]}}}
    space = space_for(project_of(tmp_path, spec_of({}, target, {"instance_kind": "kind_cpu"})), "m", "t")
    assert {candidate.values["accelerator"] for candidate in space} == {"none"}


def test_pins_that_no_backend_can_meet_together_are_an_error(tmp_path: Path) -> None:
    target = {**CPU, "backends": {"onnxruntime": {"accelerators": ["openvino"]}, "openvino": {}}}
    search = {"backend": "onnxruntime", "accelerator": "none"}
    found = problems(tmp_path, spec_of({}, target, search))
    assert found == [
        ":31:12: model m has no legal configuration on target t: target t allows openvino only; "
        "target t can serve model m with openvino only"
    ]


def test_a_scheduler_of_the_model_s_own_leaves_no_dynamic_batching(tmp_path: Path) -> None:
    model = {"config": {"sequence_batching": {"max_sequence_idle_microseconds": 5}}}
    space = space_for(project_of(tmp_path, spec_of(model)), "m", "t")
    assert "dynamic_batching" not in space.baseline.values
    found = problems(tmp_path, spec_of(model, search={"dynamic_batching": True}))
    assert "model m has a scheduler of its own (sequence_batching in its config)" in found[0]


def test_warm_up_needs_to_know_the_dims(tmp_path: Path) -> None:
    found = problems(tmp_path, spec_of({"shapes": {}}, search={"model_warmup": True}))
    assert found[0].endswith(
        "model_warmup is illegal here: it needs the dims of x: give them in the model's shapes"
    )
    gpu = space_for(project_of(tmp_path, spec_of({"shapes": {}}, GPU)), "m", "t")
    assert "model_warmup" not in gpu.baseline.values


def test_a_profile_is_given_whole_or_not_at_all(tmp_path: Path) -> None:
    ends = {"trt_profile_min_shapes": "x:1x3x48x32", "trt_profile_max_shapes": "x:8x3x48x640"}
    found = problems(tmp_path, spec_of({}, GPU, ends))
    assert len(found) == 2
    assert found[0].endswith("it needs trt_profile_opt_shapes beside it")
    whole = {**ends, "trt_profile_opt_shapes": "x:4x3x48x320"}
    space = space_for(project_of(tmp_path, spec_of({}, GPU, {**whole, "accelerator": "tensorrt"})), "m", "t")
    assert whole.items() <= space.baseline.values.items()


def test_threads_are_not_bounded_by_cores_that_nobody_declared(tmp_path: Path) -> None:
    target = {key: value for key, value in CPU.items() if key != "cores"}
    assert grid(tmp_path, "intra_op_thread_count", [1, 64], target) == (1, 64)


def test_no_batch_is_smaller_than_a_request(tmp_path: Path) -> None:
    model = {"workload": {"arrival": "closed", "request_batch": 4}}
    found = problems(tmp_path, spec_of(model, search={"max_batch_size": [2, 8]}))
    assert found[0].endswith("max_batch_size: 2 is below the workload's request_batch of 4")


def test_graph_level_two_is_off_only_since_24_01(tmp_path: Path) -> None:
    found = problems(tmp_path, spec_of({}, OLD, {"graph_level": [0, 2]}))
    assert "level 2 (off) needs Triton 24.01; target t is served by 23.12" in found[0]


def test_weights_that_do_not_fit_once_are_an_error(tmp_path: Path) -> None:
    target = {**CPU, "memory": "1GiB"}
    found = problems(tmp_path, spec_of({}, target), size_bytes=2 * 2**30)
    assert (
        "no legal configuration on target t: the weights of model m (2048 MiB) fit 0 times "
        "into the memory of target t, not more often"
    ) in found[0]
    found = problems(tmp_path, spec_of({}, target, {"instance_count": 3}), size_bytes=2**29)
    assert "(512 MiB) fit 2 times into the memory of target t, not more often" in found[0]


def test_values_refused_for_one_reason_are_one_line(tmp_path: Path) -> None:
    text = spec_of({}, {**CPU, "memory": "1GiB"}, {"instance_count": list(range(1, 10_001))})
    found = problems(tmp_path, text, size_bytes=2**29)
    assert len(found) == 1
    assert found[0].endswith("into the memory of target t, not more often, as for 9,997 more values")
