from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests import models
from tritonc.compiler.signature import Signature, Tensor, signature_from_onnx
from tritonc.schemas.errors import ModelFileError

Write = Callable[[onnx.ModelProto], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(proto: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return write


def fp32(name: str, *dims: int) -> Tensor:
    return Tensor(name, "TYPE_FP32", dims)


@pytest.mark.parametrize(
    ("proto", "inputs", "outputs", "has_batch_axis"),
    [
        (models.mlp(), [fp32("x", 4)], [fp32("y", 3)], True),
        (models.mlp("batch", out_batch="rows"), [fp32("x", 4)], [fp32("y", 3)], True),
        (models.mlp("?"), [fp32("x", 4)], [fp32("y", 3)], True),
        (models.mlp(-1), [fp32("x", 4)], [fp32("y", 3)], True),
        (models.mlp(0), [fp32("x", 4)], [fp32("y", 3)], True),
        (models.mlp(""), [fp32("x", 4)], [fp32("y", 3)], True),
        (models.mlp(None), [fp32("x", 4)], [fp32("y", 3)], True),
        (models.mlp("batch", out_batch=None), [fp32("x", 4)], [fp32("y", 3)], True),
        (models.fixed_batch(), [fp32("x", 1, 4)], [fp32("y", 1, 3)], False),
        (models.conv(), [fp32("image", 3, -1, -1)], [fp32("features", 2, -1, -1)], True),
        (models.conv(8, None), [fp32("image", 3, 8, -1)], [fp32("features", 2, 8, -1)], True),
        (models.text_recognition(), [fp32("x", 3, 48, -1)], [fp32("softmax", -1, 5)], True),
        (
            models.two_inputs(),
            [Tensor("ids", "TYPE_INT64", (-1,)), fp32("scale", 1)],
            [fp32("scores", -1), fp32("total")],
            True,
        ),
        (models.scalar_input(), [fp32("x", -1, 4), fp32("factor")], [fp32("y", -1, 4)], False),
        (models.no_inputs(), [], [fp32("y", 3)], False),
        (models.legacy(), [fp32("x", 4)], [fp32("y", 3)], True),
        (models.folded_batch(), [fp32("x", -1, -1, 4)], [fp32("y", -1, 4)], False),
        (models.reduced_batch(), [fp32("x", -1, 4)], [fp32("y", -1, 4)], False),
        (models.data_dependent(), [fp32("x", -1, 4)], [Tensor("y", "TYPE_INT64", (-1, 2))], False),
    ],
)
def test_inputs_outputs_and_batch_axis(
    write: Write,
    proto: onnx.ModelProto,
    inputs: list[Tensor],
    outputs: list[Tensor],
    has_batch_axis: bool,
) -> None:
    assert signature_from_onnx(write(proto)) == Signature(tuple(inputs), tuple(outputs), has_batch_axis)


TYPES = {
    "BOOL": "TYPE_BOOL",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "FLOAT16": "TYPE_FP16",
    "FLOAT": "TYPE_FP32",
    "DOUBLE": "TYPE_FP64",
    "STRING": "TYPE_STRING",
    "BFLOAT16": "TYPE_BF16",
}


@pytest.mark.parametrize("onnx_type", sorted(TensorProto.DataType.keys()))
def test_every_element_type_is_tritons_or_refused(write: Write, onnx_type: str) -> None:
    path = write(models.identity(TensorProto.DataType.Value(onnx_type)))
    if onnx_type in TYPES:
        signature = signature_from_onnx(path)
        assert [t.dtype for t in (*signature.inputs, *signature.outputs)] == [TYPES[onnx_type]] * 2
    else:
        with pytest.raises(ModelFileError, match=f'"x" has element type {onnx_type}, which Triton lacks'):
            signature_from_onnx(path)


def test_all_of_tritons_types_have_an_onnx_type() -> None:
    from tritonclient.grpc import model_config_pb2

    assert set(TYPES.values()) == set(model_config_pb2.DataType.keys()) - {"TYPE_INVALID"}


def test_an_element_type_of_the_future_is_refused(write: Write) -> None:
    with pytest.raises(ModelFileError, match="element type number 99"):
        signature_from_onnx(write(models.identity(99)))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [3])), "of type sequence;"),
        (helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, [])), "of type map;"),
        (helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [3])), "of type optional;"),
        (helper.make_sparse_tensor_type_proto(1, [3]), "of type sparse_tensor;"),
        (onnx.TypeProto(), "of type unknown;"),
    ],
)
def test_what_is_no_tensor_is_refused(write: Write, kind: onnx.TypeProto, what: str) -> None:
    proto = models.mlp()
    proto.graph.output[0].type.CopyFrom(kind)
    with pytest.raises(ModelFileError, match=f'"y" is {what} Triton serves tensors only'):
        signature_from_onnx(write(proto))


def test_an_output_without_a_shape_gets_the_inferred_one(write: Write) -> None:
    proto = models.mlp()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert signature_from_onnx(write(proto)) == signature_from_onnx(write(models.mlp()))


def test_an_input_or_output_of_unknown_rank_is_refused(write: Write) -> None:
    proto = models.mlp()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelFileError, match='input "x" does not say how many dimensions it has'):
        signature_from_onnx(write(proto))
    proto = models.model(
        [helper.make_node("Secret", ["x"], ["y"], domain="acme")],
        [models.tensor("x", models.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", models.FLOAT, None)],
    )
    with pytest.raises(ModelFileError, match='output "y" does not say how many dimensions it has'):
        signature_from_onnx(write(proto))


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [(b"\x01y", b"\x01\x93", r"b'\x93'"), (b"\x01y", b"\x01\n", r"'\n'"), (b"\x01y", b"\x01\x1b", r"'\x1b'")],
)
def test_a_name_that_cannot_be_shown_is_refused(tmp_path: Path, old: bytes, new: bytes, shown: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.mlp().SerializeToString().replace(old, new))
    with pytest.raises(ModelFileError) as caught:
        signature_from_onnx(path)
    assert f"an input or output is named {shown};" in str(caught.value)


def test_a_tensor_without_a_name_is_refused(write: Write) -> None:
    proto = models.mlp()
    proto.graph.output[0].name = ""
    with pytest.raises(ModelFileError, match="an input or output is named ''"):
        signature_from_onnx(write(proto))


def test_digest_depends_on_the_signature_and_not_on_weights(write: Write) -> None:
    digest = signature_from_onnx(write(models.mlp())).digest
    assert signature_from_onnx(write(models.mlp(seed=7))).digest == digest
    others = [models.mlp(1), models.mlp(0, width=3), models.conv(), models.scalar_input(), models.no_inputs()]
    digests = [signature_from_onnx(write(proto)).digest for proto in others]
    assert digests[1] == digest
    assert len({digest, *digests}) == len(others)


def test_digest_stays_the_same_from_version_to_version() -> None:
    signature = Signature((fp32("x", 4),), (fp32("y", 3),), has_batch_axis=True)
    assert signature.digest == "d4018e87864b5047953c3d5b5e6d91d7195cd82797a83b476ace73481ac5635f"


def test_with_batch_in_dims_opens_the_first_dimension_of_each(write: Write) -> None:
    signature = signature_from_onnx(write(models.mlp())).with_batch_in_dims()
    assert signature == Signature((fp32("x", -1, 4),), (fp32("y", -1, 3),), has_batch_axis=False)
    assert signature.with_batch_in_dims() is signature


LIGHT_MODELS = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx"))


@pytest.mark.parametrize("path", LIGHT_MODELS, ids=lambda path: path.stem)
def test_the_model_zoo_graphs_of_the_onnx_package_have_a_fixed_batch(path: Path) -> None:
    signature = signature_from_onnx(path)
    assert not signature.has_batch_axis
    assert [t.dims for t in signature.inputs] == [(1, 3, 224, 224)]
    assert signature.outputs[0].dims[:2] == (1, 1000)


def test_names_may_have_slashes_and_initializers_may_be_inputs() -> None:
    path = next(path for path in LIGHT_MODELS if path.stem == "light_resnet50")
    assert [t.name for t in signature_from_onnx(path).inputs] == ["gpu_0/data_0"]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("ocr-detection/models/ch_PP-OCRv4_det_infer.onnx", [fp32("x", 3, -1, -1)], [(1, -1, -1)]),
        ("ocr/models/ch_PP-OCRv4_rec_infer.onnx", [fp32("x", 3, -1, -1)], [(-1, 6625)]),
    ],
)
def test_the_models_of_the_ocr_example_have_a_batch_axis(
    name: str, inputs: list[Tensor], outputs: list[tuple[int, ...]]
) -> None:
    path = Path(__file__).parents[2] / "examples" / name
    if not path.exists():
        pytest.skip(f"examples/{name} is not there; run: make models")
    signature = signature_from_onnx(path)
    assert signature.has_batch_axis
    assert list(signature.inputs) == inputs
    assert [t.dims for t in signature.outputs] == outputs
