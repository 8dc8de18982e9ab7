from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tritonc.compiler.models.protobuf_wire import KEPT_BYTES, without_weights


def slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(without_weights(memoryview(proto.SerializeToString())))


def large(name: str = "w") -> onnx.TensorProto:
    return models.weights(name, KEPT_BYTES, 4)


def identity_of(tensor: onnx.TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Identity", [tensor.name], ["y"])
    return models.model([node], [], [models.tensor("y", tensor.data_type, list(tensor.dims))], [tensor])


@pytest.mark.parametrize("make", [models.mlp, models.conv, models.two_inputs, models.no_inputs])
def test_a_small_model_stays_as_it_is(make: Callable[[], onnx.ModelProto]) -> None:
    assert slim(make()) == make()


def test_what_is_large_but_no_weight_stays() -> None:
    proto = models.mlp()
    proto.doc_string = "long " * KEPT_BYTES
    assert slim(proto) == proto


@pytest.mark.parametrize(
    "data_type",
    [
        TensorProto.FLOAT,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.DOUBLE,
        TensorProto.UINT64,
        TensorProto.BOOL,
        TensorProto.BFLOAT16,
    ],
)
def test_weights_in_typed_fields_go_and_the_rest_stays(data_type: int) -> None:
    tensor = helper.make_tensor("w", data_type, [KEPT_BYTES, 2], [1] * (2 * KEPT_BYTES))
    assert not tensor.raw_data
    expected = onnx.TensorProto(name="w", data_type=data_type, dims=[KEPT_BYTES, 2])
    assert slim(identity_of(tensor)) == identity_of(expected)


def test_raw_weights_go_and_the_rest_stays() -> None:
    expected = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[KEPT_BYTES, 4])
    assert slim(identity_of(large())) == identity_of(expected)


def test_weights_go_wherever_a_tensor_can_be() -> None:
    inner = identity_of(large("inner")).graph
    inner.name = "inner"
    sparse = onnx.SparseTensorProto(dims=[9000])
    sparse.values.CopyFrom(large("sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4096), "places"))
    proto = models.model(
        [
            helper.make_node("Constant", [], ["constant"], value=large("value")),
            helper.make_node("Constant", [], ["sparse_constant"], sparse_value=sparse),
            helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=inner),
        ],
        [models.tensor("condition", TensorProto.BOOL, [])],
        [models.tensor("y", models.FLOAT, [KEPT_BYTES, 4])],
    )
    proto.graph.sparse_initializer.append(sparse)
    body = [helper.make_node("Constant", [], ["c"], value=large("in_function"))]
    proto.functions.append(helper.make_function("acme", "F", [], ["c"], body, proto.opset_import))
    small = slim(proto)
    assert small.ByteSize() < 2000
    assert small.graph.node[0].attribute[0].t.dims == [KEPT_BYTES, 4]
    assert small.graph.node[2].attribute[0].g.initializer[0].name == "inner"
    assert small.graph.sparse_initializer[0].values.dims == [KEPT_BYTES, 4]
    assert small.functions[0].node[0].attribute[0].t.name == "in_function"


@pytest.mark.parametrize("size", range(1, 60, 7))
def test_a_cut_off_message_is_refused(size: int) -> None:
    content = large().SerializeToString()[:size]
    with pytest.raises(ValueError, match="cut off"):
        without_weights(memoryview(content), "tensor")


def test_fixed_size_fields_are_stepped_over_and_groups_refused() -> None:
    content = bytes([1 << 3 | 1, *range(8), 2 << 3 | 5, *range(4)])
    assert without_weights(memoryview(content)) == content
    with pytest.raises(ValueError, match="wire type 3 at byte 0"):
        without_weights(memoryview(bytes([1 << 3 | 3])))
    with pytest.raises(ValueError, match="64 bits"):
        without_weights(memoryview(b"\xff" * 20))


def test_endless_nesting_is_refused() -> None:
    content = bytes(2000)
    for level in range(150):
        field = (6, 5, 1)[level % 3]  # a graph's node, its attribute, the graph in that
        size = len(content)
        varint = b""
        while size > 0x7F:
            varint += bytes([size & 0x7F | 0x80])
            size >>= 7
        content = bytes([field << 3 | 2]) + varint + bytes([size]) + content
    with pytest.raises(ValueError, match="more than 100 messages"):
        without_weights(memoryview(content), "graph")


@given(st.binary(max_size=3000))
def test_any_bytes_give_bytes_or_a_value_error(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert len(without_weights(memoryview(content))) <= len(content)
