"""The models of `tests.models` are what they say: the checker accepts them and ONNX runs them."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests import models

MAKERS: tuple[Callable[[], onnx.ModelProto], ...] = (
    models.mlp,
    models.fixed_batch,
    models.conv,
    models.text_recognition,
    models.two_inputs,
    models.scalar_input,
    models.no_inputs,
    models.softmax,
    models.identity,
    models.legacy,
    models.folded_batch,
    models.reduced_batch,
    models.data_dependent,
)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_every_model_is_valid_and_runs(make: Callable[[], onnx.ModelProto]) -> None:
    proto = make()
    onnx.checker.check_model(proto, full_check=True)
    known = {initializer.name for initializer in proto.graph.initializer}
    inputs = {}
    for value in proto.graph.input:
        if value.name in known:
            continue
        shape = [dim.dim_value or 8 for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        inputs[value.name] = np.ones(shape, dtype)
    assert ReferenceEvaluator(proto).run(None, inputs)
    assert proto.SerializeToString() == make().SerializeToString()
