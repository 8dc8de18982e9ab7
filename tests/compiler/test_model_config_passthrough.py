"""`config:` and `parameters:` of a model."""

from pathlib import Path
from typing import Any

import pytest

from tests.compiler.projects import GPU, messages, project_of, spec_of
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.model_config import render
from tritonc.compiler.pbtxt import print_pbtxt
from tritonc.compiler.space import baseline_for
from tritonc.schemas.errors import InputErrors


def text_of(folder: Path, model: dict[str, Any], search: Any = {}, **knobs: Any) -> str:  # noqa: B006
    project = project_of(folder, spec_of(model, search=search))
    values = {**baseline_for(project, "m", "t").values, **knobs}
    return print_pbtxt(render(project, Candidate.of("m", "t", values)))


def problem(folder: Path, model: dict[str, Any], search: Any = {}) -> str:  # noqa: B006
    with pytest.raises(InputErrors) as caught:
        text_of(folder, model, search)
    (found,) = messages(caught.value)
    return found


def test_any_other_field_passes_through(tmp_path: Path) -> None:
    config = {
        "response_cache": {"enable": True},
        "versionPolicy": {"specific": {"versions": [1, 3]}},
        "model_transaction_policy": {"decoupled": True},
        "metric_tags": {"team": "ocr"},
        "optimization": {"priority": "PRIORITY_MAX"},
    }
    text = text_of(tmp_path, {"config": config})
    assert "response_cache {\n  enable: true\n}\n" in text
    assert "version_policy {\n  specific {\n    versions: [ 1, 3 ]\n  }\n}\n" in text
    assert "optimization {\n  priority: PRIORITY_MAX\n}\n" in text
    assert 'metric_tags {\n  key: "team"\n  value: "ocr"\n}\n' in text


def test_what_tritonc_writes_can_be_added_to(tmp_path: Path) -> None:
    config = {
        "input": [{"name": "x", "format": "FORMAT_NCHW"}],
        "output": [{"name": "y", "label_filename": "labels.txt"}],
        "instance_group": [{"host_policy": "numa0"}],
        "dynamic_batching": {"preserve_ordering": True},
    }
    text = text_of(tmp_path, {"config": config})
    assert '  name: "x"\n  data_type: TYPE_FP32\n  format: FORMAT_NCHW\n  dims: [ 3, 48, -1 ]\n' in text
    assert '  dims: [ -1, 5 ]\n  label_filename: "labels.txt"\n' in text
    assert '  kind: KIND_CPU\n  count: 2\n  host_policy: "numa0"\n' in text
    assert "dynamic_batching {\n  preserve_ordering: true\n}\n" in text


def test_what_is_said_of_batching_does_not_switch_it_on(tmp_path: Path) -> None:
    config = {"dynamic_batching": {"preserve_ordering": True}}
    assert "dynamic_batching" not in text_of(tmp_path, {"config": config}, dynamic_batching=False)


def test_parameters_are_strings(tmp_path: Path) -> None:
    text = text_of(tmp_path, {"parameters": {"b": True, "a": 1.5, "c": "x"}})
    assert [line for line in text.splitlines() if "string_value" in line] == [
        '    string_value: "1.5"',
        '    string_value: "true"',
        '    string_value: "x"',
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"nonsense": 1}, ':15:5: config: ModelConfig has no field "nonsense"; one of: batch_input,'),
        ({"respnse_cache": {}}, 'did you mean "response_cache"?'),
        ({"name": "x"}, "config: name is written by tritonc; it is the model's name in the spec"),
        (
            {"maxBatchSize": 4},
            "config: max_batch_size is written by tritonc; write max_batch_size at the model",
        ),
        ({"default_model_filename": "x"}, "tritonc names the file that it puts into the repository"),
        ({"parameters": {}}, "config: parameters is written by tritonc; write them under parameters"),
        ({"response_cache": {"enabled": True}}, 'has no field named "enabled"'),
        ({"response_cache": 3}, "config: "),
        (
            {"version_policy": {"specific": {"versions": [3]}}},
            "config: version_policy leaves version 1 out, the only one that tritonc writes; add 1",
        ),
        ({"input": [{"name": "z"}]}, 'config: the model has no input "z"; one of: x'),
        (
            {"input": [{"name": "x", "dims": [1]}]},
            "config: input.dims is written by tritonc; pin them under dims",
        ),
        (
            {"instance_group": [{"count": 2}]},
            "config: instance_group.count is written by tritonc; pin instance",
        ),
        (
            {"instance_group": [{"gpus": [1]}]},
            "config: instance_group.gpus is written by tritonc; they are those of the target",
        ),
        ({"instance_group": [{}, {}]}, "config: tritonc writes one instance_group; give a list of one"),
        (
            {"dynamic_batching": {"preferred_batch_size": [4]}},
            "config: dynamic_batching.preferred_batch_size is written by tritonc",
        ),
        ({"optimization": {"graph": {"level": 1}}}, "config: optimization.graph is written by tritonc"),
    ],
)
def test_what_cannot_pass_says_why(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    found = problem(tmp_path, {"config": config})
    assert message in found
    assert found.startswith(":")


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    model = {"config": {"name": "x", "backend": "y", "nonsense": 1}}
    with pytest.raises(InputErrors) as caught:
        text_of(tmp_path, model)
    assert len(messages(caught.value)) == 3


@pytest.mark.parametrize("search", [{}, {"intra_op_thread_count": 2}])
def test_a_parameter_that_is_searched_is_refused_before_anything_is_measured(
    tmp_path: Path, search: dict[str, Any]
) -> None:
    found = problem(tmp_path, {"parameters": {"intra_op_thread_count": 2}}, search)
    assert "parameters: intra_op_thread_count is a knob that is searched; pin intra_op_thread_count" in found


def test_a_parameter_that_is_not_searched_passes_as_it_is_written(tmp_path: Path) -> None:
    model = {"parameters": {"enable_mem_arena": "0"}}
    assert '  key: "enable_mem_arena"\n  value {\n    string_value: "0"\n' in text_of(tmp_path, model)
    project = project_of(tmp_path, spec_of(model))
    knobs = {**baseline_for(project, "m", "t").values, "enable_mem_arena": True}
    with pytest.raises(InputErrors, match='enable_mem_arena is set by a knob, to "1"'):
        render(project, Candidate.of("m", "t", knobs))


def test_warm_up_of_one_s_own_stands_beside_none_of_tritonc_s(tmp_path: Path) -> None:
    sample = {"name": "own", "batch_size": 1, "inputs": {"x": {"data_type": "TYPE_FP32", "dims": [3, 48, 8]}}}
    model = {"config": {"model_warmup": [sample]}}
    assert 'name: "own"' in text_of(tmp_path, model)
    project = project_of(tmp_path, spec_of(model, GPU))
    with pytest.raises(
        InputErrors, match="model_warmup is a knob that is searched; pin model_warmup to false"
    ):
        baseline_for(project, "m", "t")
    off = project_of(tmp_path, spec_of(model, GPU, {"model_warmup": False}))
    assert render(off, baseline_for(off, "m", "t")).model_warmup[0].name == "own"
