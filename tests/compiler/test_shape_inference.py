from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tests.models import FLOAT, INT64, tensor
from tritonc.compiler.models.shape_inference import Dim, ShapeInference, declared_dims


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ([2, "batch"], (2, "batch")),
        ([None, "", "?", "-1", "None", -1, 0], (None,) * 7),
        ([], ()),
    ],
)
def test_declared_dims(written: list[models.Dim], read: tuple[Dim, ...]) -> None:
    assert declared_dims(tensor("x", FLOAT, written)) == read


def test_no_shape_and_text_that_is_not_utf8_say_nothing() -> None:
    assert declared_dims(helper.make_tensor_value_info("x", FLOAT, None)) is None
    value = tensor("x", FLOAT, ["batch"])
    damaged = value.SerializeToString().replace(b"batch", b"\x93atch")
    assert declared_dims(onnx.ValueInfoProto.FromString(damaged)) == (None,)


def test_dims_follow_those_of_the_inputs() -> None:
    inference = ShapeInference(models.conv())
    assert inference.outputs({"image": ("b", 3, 10, None)}) == {"features": ("b", 2, 10, None)}
    assert inference.outputs({"image": (1, 3, None, 6)}) == {"features": (1, 2, None, 6)}


@pytest.mark.parametrize(
    "proto",
    [
        models.mlp(width=2000),
        models.model(
            [
                helper.make_node("Constant", [], ["w"], value=models.weights("value", 4, 500)),
                helper.make_node("MatMul", ["x", "w"], ["y"]),
            ],
            [tensor("x", FLOAT, ["batch", 4])],
            [tensor("y", FLOAT, ["batch", 500])],
        ),
    ],
)
def test_large_constants_keep_their_dims(proto: onnx.ModelProto) -> None:
    columns = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    assert ShapeInference(proto).outputs({"x": ("b", 4)}) == {"y": ("b", columns)}


def test_large_constants_of_subgraphs_keep_their_dims() -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])],
        "branch",
        [],
        [tensor("z", FLOAT, [None, None])],
        [models.weights("w", 4, 500)],
    )
    proto = models.model(
        [helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)],
        [tensor("condition", TensorProto.BOOL, []), tensor("x", FLOAT, ["batch", 4])],
        [tensor("y", FLOAT, [None, None])],
    )
    assert ShapeInference(proto).outputs({"x": (2, 4)}) == {"y": (2, 500)}


@pytest.mark.parametrize("ir_version", [3, 8])
@pytest.mark.parametrize("dims", [[2**40], [-1], [2**20, 2**20]])
def test_dims_that_announce_more_than_memory_holds_allocate_nothing(ir_version: int, dims: list[int]) -> None:
    """Data propagation makes a dimension of every element of what is used as a shape."""
    where = numpy_helper.from_array(np.array([0], np.int64), "where")
    where.dims[:] = dims
    proto = models.model(
        [
            helper.make_node("Shape", ["x"], ["all"]),
            helper.make_node("Gather", ["all", "where"], ["some"]),
            helper.make_node("Concat", ["some", "where"], ["shape"], axis=0),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ],
        [tensor("x", FLOAT, ["batch", 4])],
        [tensor("y", FLOAT, ["batch", 4])],
        [where],
        ir_version=ir_version,
    )
    if ir_version == 3:
        proto.graph.input.append(tensor("where", INT64, dims))
    assert ShapeInference(proto).outputs({"x": (2, 4)}).get("y") is None


OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
SOURCES = (models.mlp, models.text_recognition, models.two_inputs, models.folded_batch, models.legacy)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_graph_gives_dims_or_nothing(data: st.DataObject) -> None:
    proto = data.draw(st.sampled_from(SOURCES))()
    for _ in range(data.draw(st.integers(1, 4))):
        node = proto.graph.node[data.draw(st.integers(0, len(proto.graph.node) - 1))]
        constant = proto.graph.initializer[0] if proto.graph.initializer else onnx.TensorProto()
        match data.draw(
            st.sampled_from(["operator", "attributes", "input", "type", "dims", "data", "opset"])
        ):
            case "operator":
                node.op_type = data.draw(st.sampled_from(OPERATORS))
            case "attributes":
                del node.attribute[:]
            case "input":
                node.input[:] = data.draw(st.lists(st.sampled_from(["", "x", "y", "absent"]), max_size=3))
            case "type":
                constant.data_type = data.draw(st.integers(0, 30))
            case "dims":
                constant.dims[:] = data.draw(st.lists(st.sampled_from([-1, 0, 3, 2**40]), max_size=3))
            case "data":
                constant.raw_data = data.draw(st.binary(max_size=20))
            case "opset":
                proto.opset_import[0].version = data.draw(st.integers(-1, 40))
    outputs = ShapeInference(proto).outputs({"x": ("b", 4)})
    assert all(dims is None or isinstance(dims, tuple) for dims in outputs.values())
