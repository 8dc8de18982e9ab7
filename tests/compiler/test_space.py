from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.compiler.projects import CPU, FIXED, GPU, IMAGE, MIB, project_of, spec_of
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.knobs.legal_candidate import candidate_from
from tritonc.compiler.model_config import render
from tritonc.compiler.pbtxt import parse_pbtxt, print_pbtxt
from tritonc.compiler.signature import Signature
from tritonc.compiler.space import Choice, Condition, Dimension, Space, baseline_for, space_for
from tritonc.schemas.errors import InputErrors


def space_of(folder: Path, text: str, *signatures: Any, **kwargs: Any) -> Space:
    return space_for(project_of(folder, text, *signatures, **kwargs), "m", "t")


def values_of(space: Space, knob: str) -> tuple[Any, ...]:
    return next((d.values for d in space.dimensions if d.knob == knob), ())


def test_the_default_grids_are_those_of_the_contract(tmp_path: Path) -> None:
    model = {"max_batch_size": 32, "slo": {"p99_latency_ms": 80, "min_throughput": 50}}
    space = space_of(tmp_path, spec_of(model, {**CPU, "cores": 6}))
    assert {d.knob: d.values for d in space.dimensions} == {
        "backend": ("onnxruntime",),
        "accelerator": ("none",),
        "instance_count": (1, 2, 3, 4, 6),
        "max_batch_size": (1, 2, 4, 8, 16, 32),
        "dynamic_batching": (False, True),
        "max_queue_delay_microseconds": (0, 100, 500, 2000, 5000),
        "preferred_batch_size": ((),),
        "intra_op_thread_count": (0, 1, 2, 4, 6),
    }
    # 5 counts x 5 thread counts x (batch 1, or 5 sizes x (batching off, or on with 5 delays))
    assert len(space) == 5 * 5 * (1 + 5 * (1 + 5))


def test_a_gpu_searches_one_to_eight_instances_and_warms_every_batch_size_up(tmp_path: Path) -> None:
    space = space_of(tmp_path, spec_of({"max_batch_size": 4}, GPU))
    assert values_of(space, "instance_count") == (1, 2, 3, 4, 6, 8)
    assert values_of(space, "accelerator") == ("cuda", "tensorrt")
    assert values_of(space, "intra_op_thread_count") == ()
    assert values_of(space, "model_warmup") == (True,)


def test_a_model_without_a_batch_axis_has_no_batching_knobs(tmp_path: Path) -> None:
    space = space_of(tmp_path, spec_of({"shapes": {}}), FIXED)
    assert {d.knob for d in space.dimensions} == {
        "backend",
        "accelerator",
        "instance_count",
        "max_batch_size",
        "intra_op_thread_count",
    }
    assert values_of(space, "max_batch_size") == (0,)


def test_the_spec_s_own_batch_size_is_always_among_the_powers_of_two(tmp_path: Path) -> None:
    model = {"max_batch_size": 12, "workload": {"arrival": "closed", "request_batch": 3}}
    assert values_of(space_of(tmp_path, spec_of(model)), "max_batch_size") == (3, 6, 12)


def test_no_delay_is_above_half_the_smallest_latency_limit(tmp_path: Path) -> None:
    model = {"slo": {"p99_latency_ms": 80, "p50_latency_ms": 1}}
    assert values_of(space_of(tmp_path, spec_of(model)), "max_queue_delay_microseconds") == (0, 100, 500)


def test_instances_whose_weights_do_not_fit_are_left_out(tmp_path: Path) -> None:
    space = space_of(tmp_path, spec_of(target={**CPU, "memory": "2500MiB"}), size_bytes=800 * MIB)
    assert values_of(space, "instance_count") == (1, 2, 3)
    gpu = {**GPU, "gpu": {"name": "A10", "memory": "1GiB", "count": 2}, "backends": {"onnxruntime": {}}}
    assert values_of(space_of(tmp_path, spec_of(target=gpu), size_bytes=300 * MIB), "instance_count") == (
        1,
        2,
        3,
    )


def test_cpu_and_gpu_instances_of_one_target_have_counts_of_their_own(tmp_path: Path) -> None:
    target = {**GPU, "cores": 16, "backends": {"onnxruntime": {"accelerators": ["none", "cuda"]}}}
    space = space_of(tmp_path, spec_of(target=target))
    counts: dict[str, set[Any]] = {"none": set(), "cuda": set()}
    for candidate in space:
        counts[str(candidate.values["accelerator"])].add(candidate.values["instance_count"])
    assert counts == {"none": {1, 2, 3, 4, 6, 8, 12, 16}, "cuda": {1, 2, 3, 4, 6, 8}}


def test_without_cores_the_grid_is_that_of_four(tmp_path: Path) -> None:
    target = {key: value for key, value in CPU.items() if key != "cores"}
    space = space_of(tmp_path, spec_of(target=target))
    assert values_of(space, "intra_op_thread_count") == (0, 1, 2, 4)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (CPU, {"accelerator": "none", "instance_count": 2, "intra_op_thread_count": 0}),
        (GPU, {"accelerator": "cuda", "instance_count": 1, "model_warmup": True}),
    ],
)
def test_the_baseline_is_what_triton_would_complete(
    tmp_path: Path, target: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    project = project_of(tmp_path, spec_of({"max_batch_size": 16}, target))
    assert baseline_for(project, "m", "t").values == {
        "backend": "onnxruntime",
        "max_batch_size": 16,
        "dynamic_batching": True,
        "max_queue_delay_microseconds": 0,
        "preferred_batch_size": (),
        **expected,
    }


def test_pins_hold_for_the_baseline_too(tmp_path: Path) -> None:
    search = {
        "instance_count": 4,
        "intra_op_thread_count": [1, 2],
        "max_queue_delay_microseconds": {"min": 100, "max": 400},
        "dynamic_batching": True,
        "accelerator": ["openvino", "none"],
        "max_batch_size": [2, 4],
        "execution_mode": [1],
        "enable_mem_arena": False,
    }
    target = {**CPU, "backends": {"onnxruntime": {"accelerators": ["openvino", "none"]}}}
    space = space_of(tmp_path, spec_of({"search": search}, target))
    assert space.baseline in space
    assert space.baseline.values == {
        "backend": "onnxruntime",
        "accelerator": "none",
        "instance_count": 4,
        "max_batch_size": 4,
        "dynamic_batching": True,
        "max_queue_delay_microseconds": 100,
        "preferred_batch_size": (),
        "intra_op_thread_count": 2,
        "execution_mode": 1,
        "enable_mem_arena": False,
    }
    assert values_of(space, "max_queue_delay_microseconds") == (100, 200, 400)


def test_a_space_counts_iterates_and_contains_the_same_candidates() -> None:
    on = (Condition("a", (1,)),)
    dimensions = (
        Dimension("a", (Choice(0), Choice(1))),
        Dimension("b", (Choice("x"), Choice("y", on), Choice("z", on))),
        Dimension("c", (Choice(True), Choice(False)), (Condition("b", ("y",)),)),
        Dimension("d", (Choice((1, 2)), Choice((), (Condition("c", (True,)),)))),
    )
    space = Space("m", "t", dimensions, Candidate.of("m", "t", {"a": 0, "b": "x", "d": (1, 2)}))
    points = [candidate.values for candidate in space]
    assert points == [
        {"a": 0, "b": "x", "d": (1, 2)},
        {"a": 1, "b": "x", "d": (1, 2)},
        {"a": 1, "b": "y", "c": True, "d": (1, 2)},
        {"a": 1, "b": "y", "c": True, "d": ()},
        {"a": 1, "b": "y", "c": False, "d": (1, 2)},
        {"a": 1, "b": "z", "d": (1, 2)},
    ]
    assert len(space) == len(points)
    assert all(candidate in space for candidate in space)
    assert space.baseline in space


@pytest.mark.parametrize(
    "knobs",
    [
        {"a": 1, "b": "y", "d": (1, 2)},  # c is missing
        {"a": 0, "b": "y", "d": (1, 2)},  # y needs a = 1
        {"a": 0, "b": "x", "c": True, "d": (1, 2)},  # c is not active
        {"a": False, "b": "x", "d": (1, 2)},  # False is no 0
        {"a": 0, "b": "x", "d": (1, 2), "e": 1},
        {"a": 0, "b": "x", "d": (3,)},
    ],
)
def test_what_is_not_legal_is_not_in_the_space(knobs: dict[str, Any]) -> None:
    on = (Condition("a", (1,)),)
    dimensions = (
        Dimension("a", (Choice(0), Choice(1))),
        Dimension("b", (Choice("x"), Choice("y", on))),
        Dimension("c", (Choice(True), Choice(False)), (Condition("b", ("y",)),)),
        Dimension("d", (Choice((1, 2)),)),
    )
    space = Space("m", "t", dimensions, Candidate.of("m", "t", {"a": 0, "b": "x", "d": (1, 2)}))
    assert Candidate.of("m", "t", knobs) not in space


def test_a_candidate_of_another_model_or_target_is_not_in_the_space(tmp_path: Path) -> None:
    space = space_of(tmp_path, spec_of())
    knobs = space.baseline.values
    assert Candidate.of("n", "t", knobs) not in space
    assert Candidate.of("m", "u", knobs) not in space
    assert knobs not in space


def test_the_digest_changes_with_what_is_searched_and_with_nothing_else(tmp_path: Path) -> None:
    digest = space_of(tmp_path, spec_of()).digest
    assert space_of(tmp_path, spec_of({"accuracy": {"rtol": 0.5}})).digest == digest
    assert space_of(tmp_path, spec_of(search={"instance_count": [1, 2]})).digest != digest
    assert space_of(tmp_path, spec_of(target={**CPU, "cores": 2})).digest != digest


SEARCHES: dict[str, list[Any]] = {
    "max_batch_size": [[1, 2, 8], 8],
    "dynamic_batching": ["on", False, [True, False]],
    "preferred_batch_size": [[[], [2], [2, 8]], 8],
    "intra_op_thread_count": [[0, 1], {"min": 1, "max": 4}],
    "execution_mode": [[0, 1], 1],
    "graph_level": [[0, 1, -1, 2]],
    "enable_mem_arena": [[True, False]],
    "model_warmup": [[True, False]],
    "input_pinned_memory": [[True, False]],
    "cudnn_conv_algo_search": [[0, 1]],
    "use_tf32": [[True, False]],
    "prefer_nhwc": [[True, False]],
    "trt_builder_optimization_level": [[1, 5]],
    "precision_mode": [["FP32", "FP16"]],
    "NUM_STREAMS": [[1, "AUTO"]],
    "HINT_BF16": [[True, False]],
}


@st.composite
def specs(draw: st.DrawFn) -> tuple[str, Signature]:
    backends = draw(
        st.sampled_from(
            [
                {"onnxruntime": {}},
                {"onnxruntime": {"accelerators": ["none", "openvino"]}, "openvino": {}},
                {"openvino": {}},
                {"openvino": {}, "onnxruntime": {}},
            ]
        )
    )
    memory = draw(st.sampled_from([f"{copies * 10}MiB" for copies in (1, 2, 4, 800)]))
    cpu = {**CPU, "cores": draw(st.integers(4, 6)), "memory": memory, "backends": backends}
    accelerators = draw(st.permutations(["none", "cuda", "tensorrt", "openvino"]))
    gpu = {
        **GPU,
        "cores": 4,
        "memory": memory,
        "backends": {
            "onnxruntime": {"accelerators": accelerators, "precisions": ["fp32", "fp16"]},
            "openvino": {},
        },
    }
    names = draw(st.lists(st.sampled_from(sorted(SEARCHES)), unique=True, max_size=3))
    search: dict[str, Any] = {"instance_count": [1, 3], "max_queue_delay_microseconds": [0, 250]}
    search.update((name, draw(st.sampled_from(SEARCHES[name]))) for name in names)
    signature = draw(st.sampled_from([IMAGE, FIXED]))
    model = {"max_batch_size": 8} if signature is IMAGE else {"shapes": {}}
    return spec_of(model, cpu, search, gpu=gpu), signature


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=specs(), data=st.data())
def test_any_space_is_countable_and_its_candidates_render_apart(
    tmp_path: Path, spec: tuple[str, Signature], data: st.DataObject
) -> None:
    project = project_of(tmp_path, *spec)
    for target in ("t", "gpu"):
        try:
            space = space_for(project, "m", target)
        except InputErrors:  # a search that is legal nowhere, such as NUM_STREAMS without that backend
            continue
        candidates = list(space)
        assert len(space) == len(candidates) == len(set(candidates)) == len({c.id for c in candidates})
        assert space.baseline in space
        assert space.baseline == baseline_for(project, "m", target)
        start = data.draw(st.integers(0, max(0, len(candidates) - 100)))
        texts = set()
        for candidate in candidates[start : start + 100]:
            assert candidate in space
            assert candidate_from(project, "m", target, candidate.values) == candidate
            config = render(project, candidate)
            text = print_pbtxt(config)
            assert parse_pbtxt(text) == config
            texts.add(text)
        assert len(texts) == len(candidates[start : start + 100])


def test_the_largest_batch_that_may_be_written_takes_no_memory(tmp_path: Path) -> None:
    project = project_of(tmp_path, spec_of({"max_batch_size": 2**31 - 1}))
    space = space_for(project, "m", "t")
    assert space.baseline.values["max_batch_size"] == 2**31 - 1
    assert candidate_from(project, "m", "t", space.baseline.values) == space.baseline
    with pytest.raises(ValueError, match="it acts only where max_batch_size is 2 to 2147483647"):
        candidate_from(project, "m", "t", {**space.baseline.values, "max_batch_size": 1})


BOTH = {"openvino": {}, "onnxruntime": {"accelerators": ["none"]}}


def test_what_one_backend_has_room_for_is_legal_where_another_has_none(tmp_path: Path) -> None:
    text = spec_of({}, {**CPU, "memory": "1GiB", "backends": BOTH}, {"backend": "openvino"})
    project = project_of(tmp_path, text, size_bytes=300 * MIB)
    space = space_for(project, "m", "t")
    assert values_of(space, "instance_count") == (1, 2, 3, 4)
    assert all(candidate_from(project, "m", "t", one.values) == one for one in space)


def test_host_memory_limits_only_what_copies_its_weights_there(tmp_path: Path) -> None:
    backends = {"openvino": {}, "onnxruntime": {"accelerators": ["none", "cuda"]}}
    target = {**GPU, "memory": "1GiB", "backends": backends}
    project = project_of(tmp_path, spec_of({}, target, {"instance_count": 4}), size_bytes=300 * MIB)
    space = space_for(project, "m", "t")
    where = {(c.values["backend"], c.values["accelerator"], c.values["instance_count"]) for c in space}
    assert where == {("openvino", "none", 4), ("onnxruntime", "cuda", 4)}
    assert all(candidate_from(project, "m", "t", one.values) == one for one in space)


def test_weights_that_instances_share_have_to_fit_once(tmp_path: Path) -> None:
    text = spec_of({}, {**CPU, "memory": "1GiB", "backends": {"openvino": {}}})
    with pytest.raises(InputErrors, match="fit 0 times into the memory of target t"):
        space_of(tmp_path, text, size_bytes=1025 * MIB)
