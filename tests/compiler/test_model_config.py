from pathlib import Path
from typing import Any

import pytest

from tests.compiler.projects import CPU, FIXED, GPU, IMAGE, project_of, spec_of
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.knobs.legal_candidate import candidate_from
from tritonc.compiler.model_config import render, warmup_batch_sizes
from tritonc.compiler.pbtxt import print_pbtxt
from tritonc.compiler.project import Project
from tritonc.compiler.signature import Signature, Tensor
from tritonc.compiler.space import baseline_for

CPU_BASELINE = """\
name: "m"
backend: "onnxruntime"
max_batch_size: 32
input {
  name: "x"
  data_type: TYPE_FP32
  dims: [ 3, 48, -1 ]
}
output {
  name: "y"
  data_type: TYPE_FP32
  dims: [ -1, 5 ]
}
instance_group {
  kind: KIND_CPU
  count: 2
}
dynamic_batching { }
"""
TUNED = """\
instance_group {
  kind: KIND_CPU
  count: 3
}
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 500
}
optimization {
  graph {
    level: 1
  }
}
parameters {
  key: "enable_mem_arena"
  value {
    string_value: "0"
  }
}
parameters {
  key: "execution_mode"
  value {
    string_value: "1"
  }
}
parameters {
  key: "intra_op_thread_count"
  value {
    string_value: "2"
  }
}
"""


def text_of(project: Project, target: str = "t", **knobs: Any) -> str:
    """The config of the baseline with these knobs changed; None takes one away."""
    values = {**baseline_for(project, "m", target).values, **knobs}
    known = {name: value for name, value in values.items() if value is not None}
    return print_pbtxt(render(project, candidate_from(project, "m", target, known)))


def test_the_baseline_is_written_out_in_full(tmp_path: Path) -> None:
    assert text_of(project_of(tmp_path, spec_of({"max_batch_size": 32}))) == CPU_BASELINE


def test_every_knob_has_its_place(tmp_path: Path) -> None:
    text = text_of(
        project_of(tmp_path, spec_of()),
        instance_count=3,
        preferred_batch_size=(4, 8),
        max_queue_delay_microseconds=500,
        intra_op_thread_count=2,
        execution_mode=1,
        graph_level=1,
        enable_mem_arena=False,
    )
    assert text[text.index("instance_group") :] == TUNED


def test_batching_off_is_no_block(tmp_path: Path) -> None:
    text = text_of(
        project_of(tmp_path, spec_of()),
        dynamic_batching=False,
        max_queue_delay_microseconds=None,
        preferred_batch_size=None,
    )
    assert "dynamic_batching" not in text


def test_a_fixed_batch_is_served_with_max_batch_size_0_and_full_dims(tmp_path: Path) -> None:
    text = text_of(project_of(tmp_path, spec_of({"shapes": {}}), FIXED))
    assert "max_batch_size: 0\n" in text
    assert "  dims: [ 1, 4 ]\n" in text


def test_max_batch_size_0_puts_the_batch_axis_into_the_dims(tmp_path: Path) -> None:
    text = text_of(project_of(tmp_path, spec_of({"max_batch_size": 0, "shapes": {}})))
    assert "max_batch_size: 0\n" in text
    assert "  dims: [ -1, 3, 48, -1 ]\n" in text


def test_dims_of_the_spec_are_pinned(tmp_path: Path) -> None:
    text = text_of(project_of(tmp_path, spec_of({"dims": {"x": [3, 48, 320]}})))
    assert "  dims: [ 3, 48, 320 ]\n" in text


@pytest.mark.parametrize(("batch", "reshape"), [(True, "  reshape { }\n"), (False, "")])
def test_a_tensor_without_dims_is_1_outside(tmp_path: Path, batch: bool, reshape: str) -> None:
    signature = Signature((Tensor("x", "TYPE_FP32", ()),), (Tensor("y", "TYPE_FP32", ()),), batch)
    text = text_of(project_of(tmp_path, spec_of({"shapes": {}}), signature))
    assert text.count(f"  dims: [ 1 ]\n{reshape}}}\n") == 2


def test_a_gpu_baseline_names_the_gpus_and_warms_each_batch_size_up(tmp_path: Path) -> None:
    target = {**GPU, "triton": "25.04", "gpu": {"name": "L4", "memory": "24GiB", "count": 2}}
    signature = Signature(
        (Tensor("x", "TYPE_FP32", (3, 48, -1)), Tensor("n", "TYPE_INT64", ())), IMAGE.outputs, True
    )
    text = text_of(project_of(tmp_path, spec_of({"max_batch_size": 6}, target), signature))
    assert "instance_group {\n  kind: KIND_GPU\n  count: 1\n  gpus: [ 0, 1 ]\n}\n" in text
    assert [line for line in text.splitlines() if line.startswith("  batch_size")] == [
        "  batch_size: 1",
        "  batch_size: 2",
        "  batch_size: 4",
        "  batch_size: 6",
    ]
    assert "      dims: [ 3, 48, 320 ]\n      random_data: true\n" in text
    assert "      data_type: TYPE_INT64\n      dims: [ 1 ]\n      zero_data: true\n" in text


def test_warm_up_without_a_batch_axis_is_one_sample(tmp_path: Path) -> None:
    text = text_of(project_of(tmp_path, spec_of({"shapes": {}}), FIXED), model_warmup=True)
    assert text.count("model_warmup {") == 1
    assert "  batch_size: 1\n" in text
    assert "      dims: [ 1, 4 ]\n" in text


def test_warm_up_covers_preferred_batch_sizes() -> None:
    assert warmup_batch_sizes({"max_batch_size": 8, "preferred_batch_size": (3, 6)}) == (1, 2, 3, 4, 6, 8)
    assert warmup_batch_sizes({"max_batch_size": 0}) == (1,)


def test_pinned_memory_is_written_where_it_is_searched(tmp_path: Path) -> None:
    text = text_of(
        project_of(tmp_path, spec_of({}, GPU)), input_pinned_memory=False, output_pinned_memory=True
    )
    assert (
        "optimization {\n  input_pinned_memory { }\n  output_pinned_memory {\n    enable: true\n  }\n}\n"
        in text
    )


def test_rendering_needs_no_order_of_knobs(tmp_path: Path) -> None:
    project = project_of(tmp_path, spec_of({}, CPU))
    baseline = baseline_for(project, "m", "t")
    shuffled = Candidate("m", "t", tuple(reversed(baseline.knobs)))
    assert render(project, shuffled) == render(project, baseline)
