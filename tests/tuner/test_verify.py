from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests import models
from tests.tuner.conftest import Served, config_pbtxt
from tritonc.compiler.signature import Tensor
from tritonc.schemas.measurement import Failure
from tritonc.schemas.spec import Accuracy
from tritonc.tuner.inputs import Inputs, InputSamples
from tritonc.tuner.verify import Reference, difference, infer, reference_outputs, verify

EXACT = Accuracy(rtol=0, atol=0)


def inputs(has_batch_axis: bool = True) -> Inputs:
    dims = (4,) if has_batch_axis else (1, 4)
    samples = np.random.default_rng(0).uniform(-1, 1, (5, *dims)).astype(np.float32)
    return Inputs((InputSamples(Tensor("x", "TYPE_FP32", dims), samples),), has_batch_axis)


def diff(found: Any, wanted: Any, accuracy: Accuracy = Accuracy(rtol=1e-2, atol=1e-3)) -> str:  # noqa: B008
    return difference({"y": np.asarray(found)}, {"y": np.asarray(wanted)}, accuracy) or ""


def test_values_within_the_tolerance_agree() -> None:
    assert diff([1.0, 2.0], [1.009, 2.0]) == ""
    assert diff([1.0, np.nan, np.inf], [1.0, np.nan, np.inf]) == ""
    assert diff([1, 2], [1, 2], EXACT) == ""
    assert diff(np.array([b"a"], object), np.array([b"a"], object)) == ""


def test_a_difference_is_named_with_its_size_and_place() -> None:
    said = diff([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 5.0]])
    assert said.startswith('output "y" differs in 1 of 4 values')
    assert "by up to 1 (relative 0.2), at [1, 1] 4 instead of 5" in said


@pytest.mark.parametrize(
    ("found", "wanted", "what"),
    [
        ([np.nan], [1.0], "nan instead of 1"),
        ([1.0], [np.nan], "1 instead of nan"),
        ([np.inf], [-np.inf], "inf instead of -inf"),
        ([1.0, 2.0], [1.0], "has shape [2], and should have [1]"),
        ([1], [1.0], "is int64, and should be float64"),
        (np.array([b"a", b"b"], object), np.array([b"a", b"c"], object), "differs in 1 of 2 texts"),
    ],
)
def test_what_does_not_agree(found: Any, wanted: Any, what: str) -> None:
    assert what in diff(found, wanted)


def test_missing_and_additional_outputs_differ() -> None:
    assert "should be ['y', 'z']" in (
        difference({"y": np.zeros(1)}, {"y": np.zeros(1), "z": np.zeros(1)}, EXACT) or ""
    )


def mixing() -> onnx.ModelProto:
    """FP32 `x` [batch, 4] -> `y` [batch, 4]: the batch's mean is taken off, so rows depend on each other."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    dims = ["batch", 4]
    return models.model(
        nodes, [models.tensor("x", models.FLOAT, dims)], [models.tensor("y", models.FLOAT, dims)]
    )


def reference(served: Served, model: str, data: Inputs) -> Reference:
    found = reference_outputs(served.server, model, data)
    assert isinstance(found, Reference)
    return found


@pytest.mark.triton
@pytest.mark.parametrize("batched", [True, False])
def test_the_same_model_agrees_with_itself(served: Served, batched: bool) -> None:
    proto = models.mlp() if batched else models.fixed_batch()
    size = 8 if batched else 0
    model = served.load(proto, config_pbtxt(proto, max_batch_size=size))
    data = inputs(batched)
    wanted = reference(served, model, data)
    assert verify(served.server, model, data, wanted, Accuracy(), max_batch_size=size) is None


@pytest.mark.triton
def test_other_weights_and_rows_that_depend_on_each_other_are_found(served: Served) -> None:
    proto, other, mixed = models.mlp(), models.mlp(seed=7), mixing()
    model = served.load(proto, config_pbtxt(proto, max_batch_size=8))
    wrong = served.load(other, config_pbtxt(other, max_batch_size=8))
    found = verify(
        served.server, wrong, inputs(), reference(served, model, inputs()), EXACT, max_batch_size=8
    )
    assert isinstance(found, Failure)
    assert found.reason == "outputs_differ"
    assert found.detail.startswith('output "y" differs in 3 of 3 values')
    model = served.load(mixed, config_pbtxt(mixed, max_batch_size=8))
    wanted = reference(served, model, inputs())
    found = verify(served.server, model, inputs(), wanted, Accuracy(), max_batch_size=8)
    assert isinstance(found, Failure)
    assert found.detail.startswith("row 0 of a batch of 3: ")
    assert verify(served.server, model, inputs(), wanted, Accuracy(), max_batch_size=1) is None


@pytest.mark.triton
def test_a_refused_request_is_a_failure(served: Served) -> None:
    proto = models.mlp()
    model = served.load(proto, config_pbtxt(proto, max_batch_size=2))
    found = infer(served.server, model, inputs(), 3, 0)
    assert isinstance(found, Failure)
    assert found.reason == "request_errors"
    assert "a request of 3 failed" in found.detail
