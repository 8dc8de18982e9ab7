from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests import models
from tritonc.compiler.models.onnx_file import read_onnx
from tritonc.schemas.errors import ModelFileError

LARGE = models.mlp(width=1000)


def test_reads_a_model_without_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    path.write_bytes(LARGE.SerializeToString())
    file = read_onnx(path)
    assert path.stat().st_size > 25_000
    assert file.proto.ByteSize() < 1000
    assert [list(w.dims) for w in file.proto.graph.initializer] == [[4, 1000], [1000], [1000, 3], [3]]
    assert file.external_data == ()


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_onnx(path)
    assert caught.value.what.startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "does not exist; check the path"),
        (Path.mkdir, "is a folder; name the .onnx file in it"),
        (os.mkfifo, "is not a regular file"),
        (Path.touch, "is empty"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (
            lambda path: path.write_text("layers: 3\n"),
            "is not an ONNX model, or is truncated; copy or export",
        ),
        (lambda path: path.write_bytes(bytes(64)), "is not an ONNX model, or is damaged; copy or export"),
        (lambda path: path.write_bytes(b"\x08\x08"), "is not a complete ONNX model: it lacks"),
        (lambda path: path.write_bytes(os.urandom(500)), "is not a"),
        (
            lambda path: path.write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
            ),
            "is a Git LFS pointer, not the model itself; run: git lfs pull",
        ),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "model.onnx"
    make(path)
    assert refused(path).startswith(message)


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / ("m" * 300)).startswith("cannot be read: File name too long")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(models.two_inputs().SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(content)
    with contextlib.suppress(ModelFileError):
        read_onnx(path)


@pytest.mark.parametrize("proto", [models.mlp(), models.two_inputs()])
def test_a_model_truncated_anywhere_is_refused(tmp_path: Path, proto: onnx.ModelProto) -> None:
    content = proto.SerializeToString()
    path = tmp_path / "model.onnx"
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        assert refused(path).startswith("is not a")


def external(path: Path, location: str, **entries: str) -> Path:
    proto = models.mlp()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


def test_finds_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m" / "model.onnx"
    models.write_with_external_data(models.mlp(), path)
    assert read_onnx(path).external_data == (tmp_path / "m" / "weights.bin",)
    assert path.stat().st_size < 1000


def stored_in(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=models.FLOAT, dims=[3])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_finds_external_data_wherever_a_tensor_can_be(tmp_path: Path) -> None:
    proto = models.no_inputs()
    inner = helper.make_graph([], "inner", [], [], [stored_in("branch")])
    sparse = onnx.SparseTensorProto(values=stored_in("values"), indices=stored_in("indices"))
    attributes = {
        "t": stored_in("tensor"),
        "g": inner,
        "sparse": sparse,
        "gs": [inner],
        "ts": [stored_in("list")],
    }
    for key, value in attributes.items():
        node = proto.graph.node.add(op_type="Any", domain="acme")
        node.attribute.append(helper.make_attribute(key, value))
    proto.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=stored_in("sparse"), indices=stored_in("sparse"))
    )
    node = helper.make_node("Constant", [], ["c"], value=stored_in("function"))
    proto.functions.append(helper.make_function("acme", "F", [], ["c"], [node], proto.opset_import))
    names = ("branch", "function", "indices", "list", "sparse", "tensor", "values")
    for name in names:
        (tmp_path / name).write_bytes(bytes(12))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert read_onnx(path).external_data == tuple(tmp_path / name for name in names)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("../w.bin", "'../w.bin'"),
        ("/etc/passwd", "'/etc/passwd'"),
        ("a/../../w", "'a/../../w'"),
        ("", "''"),
        ("..", "'..'"),
        ("w\0", r"'w\\x00'"),
    ],
)
def test_external_data_outside_the_models_folder_is_refused(
    tmp_path: Path, location: str, shown: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(128))
    (tmp_path / "m").mkdir()
    message = refused(external(tmp_path / "m" / "model.onnx", location))
    assert message.startswith(f'tensor "w1" is stored in {shown}'.replace("\\\\", "\\"))


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path / "model.onnx", "w.bin")
    assert refused(path) == ("its external data file w.bin does not exist; copy it together with the model")
    (tmp_path / "w.bin").mkdir()
    assert refused(path).startswith("its external data file w.bin is a folder")


def test_external_data_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = external(tmp_path / "model.onnx", "w.bin")
    (tmp_path / "w.bin").symlink_to("w.bin")
    assert refused(path).startswith("its external data file w.bin cannot be read: Too many levels")


def test_truncated_external_data_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "model.onnx", "w.bin", offset="64", length="128")
    (tmp_path / "w.bin").write_bytes(bytes(191))
    assert refused(path).startswith("its external data file w.bin is truncated: 191 of at least 192 bytes")
    (tmp_path / "w.bin").write_bytes(bytes(192))
    assert read_onnx(path).external_data == (tmp_path / "w.bin",)


def test_external_data_with_a_nonsense_offset_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "model.onnx", "w.bin", offset="here")
    assert refused(path).startswith('tensor "w1" has external data whose offset or length is no number')
