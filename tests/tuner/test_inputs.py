from __future__ import annotations

import io
import json
import zipfile
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests import models
from tests.conftest import Content, ProjectFolder
from tritonc.compiler.project import open_project
from tritonc.schemas.errors import InputErrors, SpecError
from tritonc.tuner.inputs import Inputs, read_inputs
from tritonc.tuner.tensor_types import decoded, encoded

MakeProject = Callable[[Mapping[str, Content]], ProjectFolder]

SPEC = """\
apiVersion: tritonc/v1
name: demo
models:
  m:
    source: m.onnx
    shapes: {SHAPES}
    data: {DATA}
targets:
  cpu: {device: cpu, backends: {onnxruntime: {}}}
"""


def inputs_of(
    project: MakeProject,
    model: Any,
    data: str = "{}",
    shapes: str = "{}",
    files: Mapping[str, bytes] | None = None,
    seed: int = 0,
) -> Inputs:
    folder = project(
        {
            "spec.yaml": SPEC.replace("{SHAPES}", shapes).replace("{DATA}", data),
            "m.onnx": model,
            **(files or {}),
        }
    )
    return read_inputs(open_project(folder.path("spec.yaml")), "m", seed=seed)


def problem_of(
    project: MakeProject, data: str, model: Any = None, files: Mapping[str, bytes] | None = None
) -> SpecError:
    with pytest.raises(InputErrors) as caught:
        inputs_of(project, model or models.mlp(), data, files=files)
    (error,) = caught.value
    assert isinstance(error, SpecError)
    return error


def npz(tmp_path: Path, **arrays: Any) -> bytes:
    path = tmp_path / "made.npz"
    np.savez(path, **arrays)
    return path.read_bytes()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(compression: int = zipfile.ZIP_STORED, damage: bytes = b"", **members: bytes) -> bytes:
    """A zip file; `damage` takes the place of its first compressed bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, content in members.items():
            written.writestr(name, content)
    begin = 30 + len(next(iter(members)))
    return file.getvalue()[:begin] + damage + file.getvalue()[begin + len(damage) :]


def encrypted(content: bytes) -> bytes:
    """A zip file that says of its only member that it is encrypted."""
    entry = content.index(b"PK\1\2")
    return content[:6] + b"\1" + content[7 : entry + 8] + b"\1" + content[entry + 9 :]


def test_random_inputs_are_the_same_every_time_and_differ_between_samples(project: MakeProject) -> None:
    one, two = inputs_of(project, models.mlp()), inputs_of(project, models.mlp())
    assert one.batch(2)["x"].shape == (2, 4)
    assert one.batch(2)["x"].dtype == np.float32
    assert np.array_equal(one.batch(8)["x"], two.batch(8)["x"])
    assert not np.array_equal(one.batch(1, 0)["x"], one.batch(1, 1)["x"])
    assert not np.array_equal(one.batch(8)["x"], inputs_of(project, models.mlp(), seed=1).batch(8)["x"])


def test_a_batch_larger_than_the_samples_repeats_them(project: MakeProject) -> None:
    batch = inputs_of(project, models.mlp()).batch(20)["x"]
    assert batch.shape == (20, 4)
    assert np.array_equal(batch[:8], batch[8:16])


def test_a_model_without_a_batch_axis_gets_full_dims(project: MakeProject) -> None:
    assert inputs_of(project, models.fixed_batch()).batch(1)["x"].shape == (1, 4)


def test_open_dimensions_get_the_shape_of_the_spec_and_perf_analyzer_is_told(project: MakeProject) -> None:
    inputs = inputs_of(project, models.two_inputs(), shapes="{ids: [7]}")
    assert inputs.batch(3)["ids"].shape == (3, 7)
    assert inputs.batch(3)["ids"].dtype == np.int64
    assert set(np.unique(inputs.batch(8)["ids"])) <= {0, 1}
    assert inputs.shape_arguments() == ["--shape", "ids:7"]


def test_a_range_holds_for_floats_and_includes_both_ends_for_integers(project: MakeProject) -> None:
    inputs = inputs_of(
        project, models.two_inputs(), "{ids: {range: [3, 5]}, scale: {range: [-2, -1]}}", "{ids: [50]}"
    )
    batch = inputs.batch(8)
    assert set(np.unique(batch["ids"])) == {3, 4, 5}
    assert batch["scale"].min() >= -2
    assert batch["scale"].max() <= -1


def test_a_constant_fills_the_input(project: MakeProject) -> None:
    assert (inputs_of(project, models.mlp(), "{x: {constant: 0.5}}").batch(2)["x"] == 0.5).all()


def test_samples_come_from_npz(project: MakeProject, tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    files = {"d.npz": npz(tmp_path, x=values, other=values)}
    assert np.array_equal(
        inputs_of(project, models.mlp(), "{x: {file: d.npz}}", files=files).batch(2)["x"], values
    )


def test_a_single_sample_and_a_single_array_are_enough(project: MakeProject, tmp_path: Path) -> None:
    files = {"d.npz": npz(tmp_path, anything=np.ones(4, np.float32))}
    assert (inputs_of(project, models.mlp(), "{x: {file: d.npz}}", files=files).batch(2)["x"] == 1).all()


@pytest.mark.parametrize(
    "data",
    [
        [{"x": [1, 2, 3, 4]}, {"x": {"content": [5, 6, 7, 8], "shape": [4]}}],
        [[{"x": [1, 2, 3, 4]}], [{"x": [5, 6, 7, 8]}]],
    ],
)
def test_samples_come_from_perf_analyzers_json(project: MakeProject, data: Any) -> None:
    files = {"d.json": json.dumps({"data": data}).encode()}
    batch = inputs_of(project, models.mlp(), "{x: {file: d.json}}", files=files).batch(2)["x"]
    assert batch.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


TYPES = [
    ("FLOAT16", "TYPE_FP16"),
    ("BFLOAT16", "TYPE_BF16"),
    ("DOUBLE", "TYPE_FP64"),
    ("BOOL", "TYPE_BOOL"),
    ("INT8", "TYPE_INT8"),
    ("UINT8", "TYPE_UINT8"),
    ("UINT16", "TYPE_UINT16"),
    ("INT64", "TYPE_INT64"),
    ("STRING", "TYPE_STRING"),
]


@pytest.mark.parametrize(("onnx_type", "dtype"), TYPES)
def test_what_the_load_generator_reads_are_the_same_values(
    project: MakeProject, tmp_path: Path, onnx_type: str, dtype: str
) -> None:
    inputs = inputs_of(project, models.identity(TensorProto.DataType.Value(onnx_type)))
    inputs.write_load_file(tmp_path / "load.json")
    steps = json.loads((tmp_path / "load.json").read_text())["data"]
    assert len(steps) == 9, "odd, so that each of four threads sends all of them"
    for row, step in enumerate(steps):
        sample = inputs.batch(1, row)["x"][0]
        if dtype == "TYPE_STRING":
            assert [text.encode() for text in step["x"]["content"]] == sample.tolist()
        else:
            again = decoded(b64decode(step["x"]["b64"]), dtype)
            assert np.array_equal(encoded(again, dtype), encoded(sample, dtype))
        assert step["x"]["shape"] == [4]
    assert inputs.dtypes() == {"x": dtype}


def test_the_load_file_of_large_inputs_holds_few_samples(project: MakeProject, tmp_path: Path) -> None:
    inputs = inputs_of(project, models.conv(), shapes="{image: [3, 640, 640]}")
    inputs.write_load_file(tmp_path / "load.json")
    assert len(json.loads((tmp_path / "load.json").read_text())["data"]) == 1


@pytest.mark.parametrize(
    ("data", "keys", "what"),
    [
        ("{x: {range: [0, 1.0e+39]}}", "range", "outside of TYPE_FP32"),
        ("{x: {constant: apple}}", "constant", "no value of a TYPE_FP32"),
        ("{x: {constant: true}}", "constant", "no value of a TYPE_FP32"),
        ("{x: {file: missing.npz}}", "file", "missing.npz: there is no such file"),
        ("{x: {file: ../d.npz}}", "file", "../d.npz"),
        ("{x: {file: broken.npz}}", "file", "not a readable .npz"),
        ("{x: {file: pickled.npz}}", "file", "not a readable .npz"),
        ("{x: {file: type.npz}}", "file", "float64, but the input is TYPE_FP32"),
        ("{x: {file: shape.npz}}", "file", "has shape [3]"),
        ("{x: {file: names.npz}}", "file", 'no array "x"'),
        ("{x: {file: npy.npz}}", "file", "it is a .npy file"),
        ("{x: {file: deflate.npz}}", "file", "not a readable .npz file: Error -3 while decompressing"),
        ("{x: {file: lzma.npz}}", "file", "not a readable .npz file: "),
        ("{x: {file: encrypted.npz}}", "file", "is encrypted"),
        ("{x: {file: other.npz}}", "file", '"x" in it is no array'),
        ("{x: {file: bad.json}}", "file", "not JSON"),
        ("{x: {file: list.json}}", "file", 'no list "data"'),
        ("{x: {file: none.json}}", "file", 'no data for "x"'),
        ("{x: {file: short.json}}", "file", "3 values"),
        ("{x: {file: text.json}}", "file", "not of TYPE_FP32"),
        ("{x: {file: b64.json}}", "file", "cannot be decoded"),
    ],
)
def test_wrong_data_is_reported_at_its_key(
    project: MakeProject, tmp_path: Path, data: str, keys: str, what: str
) -> None:
    files = {
        "broken.npz": b"PK\3\4 no",
        "pickled.npz": npz(tmp_path, x=np.array([object()])),
        "type.npz": npz(tmp_path, x=np.zeros(4)),
        "shape.npz": npz(tmp_path, x=np.zeros(3, np.float32)),
        "names.npz": npz(tmp_path, a=np.zeros(4), b=np.zeros(4)),
        "npy.npz": npy(np.zeros(4, np.float32)),
        "deflate.npz": archive(zipfile.ZIP_DEFLATED, b"\xff" * 9, x=npy(np.zeros(4, np.float32))),
        "lzma.npz": archive(zipfile.ZIP_LZMA, b"\0" * 30, x=npy(np.zeros(4, np.float32))),
        "encrypted.npz": encrypted(archive(x=npy(np.zeros(4, np.float32)))),
        "other.npz": archive(x=b"no array"),
        "bad.json": b"{",
        "list.json": b"[]",
        "none.json": b'{"data": [{"y": [1]}]}',
        "short.json": b'{"data": [{"x": [1, 2, 3]}]}',
        "text.json": b'{"data": [{"x": ["1", "2", "3", "4"]}]}',
        "b64.json": b'{"data": [{"x": {"b64": "?"}}]}',
    }
    error = problem_of(project, data, files=files)
    assert error.key_path == ("models", "m", "data", "x", keys)
    assert what in str(error)
    assert error.location.line == 7


def test_integers_have_whole_ranges_within_their_type(project: MakeProject) -> None:
    model = models.identity(TensorProto.UINT8)
    assert "whole numbers" in problem_of(project, "{x: {range: [0, 1.5]}}", model).what
    assert "outside of TYPE_UINT8" in problem_of(project, "{x: {range: [0, 256]}}", model).what
    assert "outside of TYPE_UINT8" in problem_of(project, "{x: {constant: -1}}", model).what


def test_a_range_is_no_wider_than_the_type(project: MakeProject) -> None:
    error = problem_of(project, "{x: {range: [-1.7e+308, 1.7e+308]}}", models.identity(TensorProto.DOUBLE))
    assert "from -1.7e+308 to 1.7e+308 is wider than TYPE_FP64 goes; halve both ends" in str(error)
    assert error.location.line == 7


def test_half_a_character_is_no_text(project: MakeProject, tmp_path: Path) -> None:
    text = np.array(["\ud800", "b", "c", "d"])
    files = {
        "half.json": b'{"data": [{"x": ["\\ud800", "b", "c", "d"]}]}',
        "half.npz": npz(tmp_path, x=text),
    }
    for name in files:
        model = models.identity(TensorProto.STRING)
        error = problem_of(project, f"{{x: {{file: {name}}}}}", model, files)
        assert f'{name}: a text for "x" has no UTF-8' in error.what
        assert "b64" in error.hint


def test_booleans_and_texts_have_no_range(project: MakeProject) -> None:
    for dtype in (TensorProto.BOOL, TensorProto.STRING):
        assert "has no range" in problem_of(project, "{x: {range: [0, 1]}}", models.identity(dtype)).what


def test_data_for_an_input_that_the_model_does_not_have_is_an_error(project: MakeProject) -> None:
    error = problem_of(project, "{X: {range: [0, 1]}}")
    assert 'no input "X"' in str(error)
    assert error.key_path[:4] == ("models", "m", "data", "X")
