"""`together` of a spec: which models are tuned as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tritonc.schemas.errors import InputErrors
from tritonc.schemas.spec import Spec
from tritonc.schemas.spec_file import read_spec

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  a: {source: a.onnx}
  b: {source: b.onnx}
  c: {source: c.onnx}
  front: {source: d.onnx, objective: {pareto: [throughput, memory]}}
targets:
  cpu: {device: cpu, backends: {onnxruntime: {}}}
"""


def spec_with(folder: Path, together: str) -> Spec:
    path = folder / "spec.yaml"
    path.write_text(f"{SPEC}together: {together}\n")
    return read_spec(path).spec


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("[a, b]", ({"a": 1.0, "b": 1.0},)),
        ("{a: 0.7, b: 0.3}", ({"a": 0.7, "b": 0.3},)),
        ("[a, b, c]", ({"a": 1.0, "b": 1.0, "c": 1.0},)),
        ("[[c, a]]", ({"c": 1.0, "a": 1.0},)),
        ("[]", ()),
    ],
)
def test_one_group_or_several_with_or_without_weights(
    tmp_path: Path, written: str, groups: tuple[dict[str, float], ...]
):
    spec = spec_with(tmp_path, written)
    assert spec.together == groups
    assert Spec.model_validate(spec.model_dump(mode="python")) == spec


def test_a_model_knows_its_group(tmp_path: Path):
    spec = spec_with(tmp_path, "[a, b]")
    assert spec.group_of("b") == {"a": 1.0, "b": 1.0}
    assert spec.group_of("c") == {}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[a, bb]", '10:15: together names "bb", which is no model of the spec; did you mean "b"? '),
        ("[a, a]", "10:15: together names a twice; name each model once"),
        ("[[a, b], [c, b]]", "10:24: together names b twice; name each model once"),
        ("[a]", "10:11: together names one model; name at least two"),
        ("[[a, b], {c: 1}]", "10:20: together names one model; name at least two"),
        ("{a: 1, b: 0}", "together has the weight the number 0 for b; a weight is a number above 0"),
        ("{a: 1, b: much}", "a weight is a number above 0"),
        ("a", 'together is the text "a"; write the models as [a, b]'),
        ("[a, 3]", "in the place of a model; write the models as [a, b]"),
        ("[a, front]", "together names front, whose objective is a front; give it one objective"),
    ],
)
def test_a_wrong_group_is_refused_at_its_place(tmp_path: Path, written: str, message: str):
    with pytest.raises(InputErrors) as refused:
        spec_with(tmp_path, written)
    assert message in str(refused.value)
