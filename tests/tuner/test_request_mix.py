"""Requests of several shapes: in the load file, on a real server, and compared shape by shape."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ProjectFolder
from tests.models import conv
from tests.tuner.conftest import Served, config_pbtxt
from tritonc.compiler.project import open_project
from tritonc.compiler.signature import Tensor
from tritonc.schemas.errors import InputErrors
from tritonc.schemas.measurement import ClosedLoad, Failure, Load, OpenLoad
from tritonc.schemas.spec import Accuracy
from tritonc.tuner.arrivals import Arrivals
from tritonc.tuner.engines import engine_named
from tritonc.tuner.inputs import Inputs, InputSamples
from tritonc.tuner.perf_analyzer import LoadData, perf_analyzer_at
from tritonc.tuner.request_mix import RequestMix, every_shape, interleaved, read_mix
from tritonc.tuner.verify import references_of, verify_all
from tritonc.tuner.window import Window

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  conv:
    source: models/conv.onnx
    workload: {shapes: [{weight: 3, image: [3, 8, 8]}, {image: [3, 8, 16]}]}
targets: {cpu: {device: cpu, cores: 2, backends: {onnxruntime: {accelerators: [none]}}}}
"""
SAYS_SHAPES = """\
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.file = open(args["model_repository"] + "/shapes", "a")

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            print(len(requests), x.shape[1], file=self.file, flush=True)
            y = pb_utils.Tensor("y", np.zeros((len(x), 1), np.float32))
            answers.append(pb_utils.InferenceResponse([y]))
        return answers
"""


def inputs_of(*dims: int) -> Inputs:
    samples = np.zeros((4, *dims), np.float32)
    return Inputs((InputSamples(Tensor("x", "TYPE_FP32", (-1,)), samples),), True)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=6), st.integers(12, 64))
def test_steps_have_the_proportion_of_the_weights_evenly_spread(weights: list[float], most: int) -> None:
    order = interleaved(weights, most)
    counts = Counter(order)
    assert set(counts) == set(range(len(weights)))
    assert len(order) <= most + len(weights)
    least = [max(weight / sum(weights), 1 / most) for weight in weights]
    for place, each in enumerate(least):
        share = each / sum(least)
        assert counts[place] / len(order) == pytest.approx(share, abs=0.5 / len(order) + 0.1 * share + 0.02)
        for seen in range(1, len(order)):
            ahead = order[:seen].count(place) - seen * counts[place] / len(order)
            assert abs(ahead) < len(weights)


def test_shapes_of_the_workload_are_in_the_load_file_and_are_compared(project: Any, tmp_path: Path) -> None:
    folder: ProjectFolder = project({"spec.yaml": SPEC, "models/conv.onnx": conv()})
    mix = read_mix(open_project(folder.path("spec.yaml")), "conv", 0)
    data = LoadData.of(mix, tmp_path)
    steps = json.loads(data.file.read_text())["data"]
    widths = [step["image"]["shape"][2] for step in steps]
    assert widths.count(8) == 3 * widths.count(16) > 0
    assert (data.shape_arguments, data.open_threads) == ((), 1)
    assert [each.shape_text() for each in every_shape([mix, mix])] == ["image [3, 8, 8]", "image [3, 8, 16]"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{imag: [3, 8, 16]}, {imag: [3, 8, 8]}", '6:32: shapes: the model has no input "imag"'),
        ("{image: [8, 16]}, {image: [8, 8]}", "6:33: shapes: image is [8, 16], but [3, -1, -1] in the file"),
        ("{image: [3, 8, 8]}, {image: [4, 8, 8]}", "6:54: shapes: dimension 0 of image is 4, but the file"),
    ],
)
def test_shapes_that_contradict_the_file_are_errors_at_their_place(
    project: Any, entry: str, message: str
) -> None:
    spec = SPEC.replace("{weight: 3, image: [3, 8, 8]}, {image: [3, 8, 16]}", entry)
    folder: ProjectFolder = project({"spec.yaml": spec, "models/conv.onnx": conv()})
    with pytest.raises(InputErrors) as wrong:
        open_project(folder.path("spec.yaml"))
    assert message in "\n".join(str(each) for each in wrong.value)


@pytest.mark.triton
@pytest.mark.parametrize("batching", ["", "dynamic_batching { max_queue_delay_microseconds: 2000 }"])
@pytest.mark.parametrize("load", [ClosedLoad(concurrency=5), OpenLoad(rate=200)])
def test_a_real_server_gets_the_shapes_in_the_proportion_of_the_weights(
    served: Served, tmp_path: Path, batching: str, load: Load
) -> None:
    name = f"shapes{load.kind}{bool(batching)}"
    version = served.server.repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(SAYS_SHAPES)
    (version.parent / "config.pbtxt").write_text(
        'backend: "python"\nmax_batch_size: 4\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [-1] }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: [1] }\n'
        f"instance_group {{ count: 1 kind: KIND_CPU }}\n{batching}\n"
    )
    served.server.load(name)
    binary, env = engine_named("embedded").perf_analyzer()
    data = LoadData.of(RequestMix((inputs_of(2), inputs_of(5)), (3, 1)), tmp_path)
    window = perf_analyzer_at(binary, env).run(
        served.server.grpc_address, name, load, 1.0, data, arrivals=Arrivals(0)
    )
    assert isinstance(window, Window)
    said = [line.split() for line in (version.parent / "shapes").read_text().splitlines()]
    shapes = Counter(shape for _, shape in said)
    assert set(shapes) == {"2", "5"}
    assert shapes["5"] / len(said) == pytest.approx(0.25, abs=0.03)
    assert (max(int(together) for together, _ in said) > 1) == bool(batching)


@pytest.mark.triton
def test_outputs_are_compared_with_inputs_of_each_shape(served: Served, project: Any) -> None:
    folder: ProjectFolder = project({"spec.yaml": SPEC, "models/conv.onnx": conv()})
    shapes = read_mix(open_project(folder.path("spec.yaml")), "conv", 0).inputs
    proto = conv()
    model = served.load(proto, config_pbtxt(proto, max_batch_size=4))
    references = references_of(served.server, model, shapes)
    assert not isinstance(references, Failure)
    assert [each.rows[0]["features"].shape for each in references] == [(1, 2, 8, 8), (1, 2, 8, 16)]
    same = verify_all(served.server, model, shapes, references, Accuracy(), max_batch_size=4)
    assert same is None
    other = verify_all(served.server, model, shapes, references[::-1], Accuracy(), max_batch_size=4)
    assert other is not None
    assert other.detail.startswith("with image [3, 8, 8]: ")
