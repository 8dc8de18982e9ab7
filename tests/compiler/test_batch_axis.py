from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests import models
from tests.models import FLOAT, INT64, tensor
from tritonc.compiler.models import batch_axis
from tritonc.compiler.models.shape_inference import declared_dims


def has_batch_axis(proto: onnx.ModelProto) -> bool:
    inputs = {value.name: declared_dims(value) for value in proto.graph.input}
    outputs = {value.name: declared_dims(value) for value in proto.graph.output}
    return batch_axis.has_batch_axis(proto, inputs, outputs)


def int64s(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def one_node(op: str, x: Sequence[models.Dim], y: Sequence[models.Dim], **attributes: Any) -> onnx.ModelProto:
    return models.model(
        [helper.make_node(op, ["x"], ["y"], **attributes)], [tensor("x", FLOAT, x)], [tensor("y", FLOAT, y)]
    )


def similarity() -> onnx.ModelProto:
    """`a` [n, 4], `b` [m, 4] -> [n, m]: axis 1 of the output grows with the batch."""
    return models.model(
        [helper.make_node("Transpose", ["b"], ["t"]), helper.make_node("MatMul", ["a", "t"], ["y"])],
        [tensor("a", FLOAT, ["n", 4]), tensor("b", FLOAT, ["m", 4])],
        [tensor("y", FLOAT, ["n", "m"])],
    )


def doubled() -> onnx.ModelProto:
    """Twice as many rows as the input has: only sizes show it, symbols do not."""
    return models.model(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
        [tensor("x", FLOAT, ["batch", 4])],
        [tensor("y", FLOAT, ["rows", 4])],
    )


def view_by_shape() -> onnx.ModelProto:
    """What PyTorch exports for `x.view(x.size(0), -1)`: the shape is computed in the graph."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"], axis=0),
        helper.make_node("Concat", ["b", "minus_one"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    return models.model(
        nodes,
        [tensor("x", FLOAT, ["batch", 2, "length"])],
        [tensor("y", FLOAT, ["batch", "flat"])],
        [int64s("zero", 0), int64s("minus_one", -1)],
    )


def opaque(y_symbol: str, *more: onnx.NodeProto) -> onnx.ModelProto:
    """An operator that shape inference knows nothing about."""
    return models.model(
        [*more, helper.make_node("Secret", [more[-1].output[0] if more else "x"], ["y"], domain="acme")],
        [tensor("x", FLOAT, ["batch", 4])],
        [tensor("y", FLOAT, [y_symbol, 4])],
    )


NONZERO = helper.make_node("NonZero", ["x"], ["n"])
ELSEWHERE = helper.make_node("NonZero", ["unrelated"], ["unused"])


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (one_node("Relu", ["batch", 4], ["batch", 4]), True),
        (one_node("Relu", ["batch", 4], ["rows", 4]), True),
        (one_node("Relu", ["batch"], ["batch"]), True),
        (one_node("Relu", [], []), False),
        (one_node("Relu", [4], [4]), False),
        (one_node("Relu", ["batch", 4], [2, 4]), False),
        (one_node("Transpose", ["batch", "length"], ["length", "batch"], perm=[1, 0]), False),
        (one_node("Transpose", ["batch", None], [None, "batch"], perm=[1, 0]), False),
        (one_node("Relu", ["nodes", "nodes"], ["nodes", "nodes"]), False),
        (one_node("Flatten", ["batch", 2, "length"], ["batch", "flat"]), True),
        (view_by_shape(), True),
        (similarity(), False),
        (doubled(), False),
        (opaque("batch"), True),
        (opaque("rows"), True),
        (opaque("batch", NONZERO), True),
        (opaque("rows", NONZERO), False),
    ],
)
def test_has_batch_axis(proto: onnx.ModelProto, expected: bool) -> None:
    assert has_batch_axis(proto) is expected


def test_an_unrelated_data_dependent_operator_does_not_matter() -> None:
    proto = opaque("rows")
    proto.graph.node.insert(0, ELSEWHERE)
    assert has_batch_axis(proto)


def test_a_size_that_the_model_does_not_accept_decides_nothing() -> None:
    """Any length but 8 contradicts the declared 16 columns, so the sizes tried say nothing about rows."""
    proto = models.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [tensor("x", FLOAT, ["batch", "length", 2])],
        [tensor("y", FLOAT, ["rows", 16])],
        [int64s("shape", 0, -1)],
    )
    assert has_batch_axis(proto)


def test_a_graph_that_shape_inference_rejects_is_believed() -> None:
    proto = models.mlp()
    proto.graph.node[0].op_type = "NoSuchOperator"
    assert has_batch_axis(proto)
    proto.opset_import[0].version = 0
    assert has_batch_axis(proto)


def test_the_model_is_left_as_it_is() -> None:
    proto = models.two_inputs()
    before = proto.SerializeToString()
    has_batch_axis(proto)
    assert proto.SerializeToString() == before


def test_stale_shapes_inside_the_file_do_not_matter() -> None:
    proto = models.mlp()
    proto.graph.value_info.append(tensor("h", FLOAT, [7, 8]))
    assert has_batch_axis(proto)


# Each step maps [rows, 4] to [some rows, 4].
Step = Callable[[str, str], tuple[list[onnx.NodeProto], list[onnx.TensorProto]]]


def step(op: str, *constants: onnx.TensorProto, **attributes: Any) -> Step:
    def build(x: str, y: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        renamed = []
        for constant in constants:
            copy = onnx.TensorProto()
            copy.CopyFrom(constant)
            copy.name = f"{y}_{constant.name}"
            renamed.append(copy)
        return [helper.make_node(op, [x, *(c.name for c in renamed)], [y], **attributes)], renamed

    return build


def twice(x: str, y: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    return [helper.make_node("Concat", [x, x], [y], axis=0)], []


def nonzero_rows(x: str, y: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """One row for each nonzero value: for all of them here, as not every step can do with no rows."""
    nodes = [
        helper.make_node("Exp", [x], [f"{y}_e"]),
        helper.make_node("NonZero", [f"{y}_e"], [f"{y}_n"]),
        helper.make_node("Transpose", [f"{y}_n"], [f"{y}_t"], perm=[1, 0]),
        helper.make_node("Concat", [f"{y}_t", f"{y}_t"], [f"{y}_i"], axis=1),
        helper.make_node("Cast", [f"{y}_i"], [y], to=FLOAT),
    ]
    return nodes, []


STEPS = {
    "relu": step("Relu"),
    "bias": step("Add", models.weights("c", 4)),
    "matmul": step("MatMul", models.weights("c", 4, 4)),
    "mean": step("ReduceMean", axes=[0], keepdims=1),
    "one row": step("Slice", int64s("a", 0), int64s("b", 1), int64s("c", 0)),
    "reshape": step("Reshape", int64s("c", -1, 4)),
    "keep": step("Reshape", int64s("c", 0, 4)),
    "halves": step("Reshape", int64s("c", -1, 2, 2)),
    "flatten": step("Flatten", axis=1),
    "gather": step("Gather", int64s("c", 0, 0, 0), axis=0),
    "twice": twice,
    "nonzero": nonzero_rows,
}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5))
def test_agrees_with_running_the_model_at_batch_1_and_2(names: list[str]) -> None:
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    value, rank = "x", 2
    rows_depend_on_values = False
    for place, name in enumerate(names):
        if rank == 3:  # back to [rows, 4], which every step takes
            name = "flatten"
        rows_depend_on_values = rows_depend_on_values or name == "nonzero"
        more_nodes, more_initializers = STEPS[name](value, f"v{place}")
        nodes += more_nodes
        initializers += more_initializers
        value, rank = f"v{place}", 3 if name == "halves" else 2
    proto = models.model(
        nodes,
        [tensor("x", FLOAT, ["batch", 4])],
        [tensor(value, FLOAT, ["rows", *([2, 2] if rank == 3 else [4])])],
        initializers,
    )
    run = ReferenceEvaluator(proto)
    values = np.random.default_rng(0).uniform(0.5, 1, (2, 4)).astype(np.float32)
    outputs: list[Any] = [run.run(None, {"x": values[:batch]}) for batch in (1, 2)]
    rows = [output[0].shape[0] for output in outputs]
    # One nonzero value in each row of these very values would look like a batch axis.
    assert has_batch_axis(proto) is (rows == [1, 2] and not rows_depend_on_values)


def test_int64_inputs_are_followed_too() -> None:
    assert has_batch_axis(models.identity(INT64))
