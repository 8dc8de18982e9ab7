from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests import models
from tests.tuner.conftest import Served, config_pbtxt, parameter, run_onnxruntime, uniform
from tritonc.tuner.engines import ServerFailure

if TYPE_CHECKING:
    import onnx

pytestmark = pytest.mark.triton


def config(proto: onnx.ModelProto, *, max_batch_size: int = 0, more: str = "") -> str:
    return config_pbtxt(proto, max_batch_size=max_batch_size, backend="openvino", more=more)


def test_outputs_agree_with_onnx_runtimes(served: Served) -> None:
    proto = models.conv()
    name = served.load(proto, config(proto))
    for shape in ((1, 3, 17, 23), (4, 3, 8, 8)):
        image = uniform(*shape)
        answer = served.infer(name, image=image)["features"]
        np.testing.assert_allclose(answer, run_onnxruntime(proto, image=image)[0], rtol=2e-2, atol=1e-2)


def test_a_model_that_batches_answers_full_requests_only_as_the_official_backend_does(served: Served) -> None:
    proto = models.mlp()
    name = served.load(proto, config(proto, max_batch_size=4))
    x = uniform(4, 4)
    np.testing.assert_allclose(
        served.infer(name, x=x)["y"], run_onnxruntime(proto, x=x)[0], rtol=2e-2, atol=1e-2
    )
    with pytest.raises(Exception, match=r"batch 4 \(max_batch_size\) only, not 3"):
        served.infer(name, x=x[:3])


@pytest.mark.parametrize(
    "more",
    [
        parameter("INFERENCE_NUM_THREADS", "1"),
        parameter("NUM_STREAMS", "AUTO"),
        parameter("NUM_STREAMS", "2") + "instance_group { count: 2 kind: KIND_CPU }",
        parameter("NUM_STREAMS", "1") + "instance_group { count: 2 kind: KIND_CPU }",
        parameter("PERFORMANCE_HINT", "THROUGHPUT"),
        parameter("PERFORMANCE_HINT", "latency") + parameter("SKIP_OV_DYNAMIC_BATCHSIZE", "YES"),
        parameter("HINT_BF16", "YES"),
        parameter("RESHAPE_IO_LAYERS", "YES"),
    ],
)
def test_every_parameter_loads_and_serves(served: Served, more: str) -> None:
    proto = models.mlp()
    name = served.load(proto, config(proto, max_batch_size=4, more=more))
    requests = [{"x": uniform(4, 4, seed=seed)} for seed in range(4)]
    for request, answer in zip(requests, served.infer_together(name, requests), strict=True):
        np.testing.assert_allclose(answer["y"], run_onnxruntime(proto, **request)[0], rtol=5e-2, atol=2e-2)
    served.server.unload(name, wait=False)


def test_dims_of_the_configuration_are_compiled_in_where_asked(served: Served) -> None:
    proto = models.conv()
    text = config(proto, more=parameter("RESHAPE_IO_LAYERS", "YES"))
    assert "dims: [-1, 3, -1, -1]" in text
    name = served.load(proto, text.replace("dims: [-1, 3, -1, -1]", "dims: [1, 3, 8, 8]"))
    image = uniform(1, 3, 8, 8)
    np.testing.assert_allclose(
        served.infer(name, image=image)["features"],
        run_onnxruntime(proto, image=image)[0],
        rtol=2e-2,
        atol=1e-2,
    )


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (parameter("NUM_STREAM", "1"), 'unknown key "NUM_STREAM".*did you mean "NUM_STREAMS"'),
        (parameter("intra_op_thread_count", "1"), 'unknown key "intra_op_thread_count"'),
        (parameter("ENABLE_BATCH_PADDING", "YES"), "ENABLE_BATCH_PADDING"),
        (parameter("COMPILATION_NUM_THREADS", "1"), "Unsupported property COMPILATION_NUM_THREADS"),
        (parameter("HINT_BF16", "NO"), 'HINT_BF16: "NO" should be one of: YES'),
        (parameter("NUM_STREAMS", "many"), 'NUM_STREAMS: "MANY" should be a whole number'),
        (parameter("INFERENCE_NUM_THREADS", "-1"), "should not be negative"),
        (parameter("PERFORMANCE_HINT", "FAST"), "should be one of: LATENCY"),
        ("optimization { graph { level: 1 } }", "optimization.graph.level"),
        (
            'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }',
            "reads no execution_accelerators",
        ),
    ],
)
def test_what_is_not_honoured_fails_the_load_with_its_reason(served: Served, more: str, reason: str) -> None:
    proto = models.mlp()
    with pytest.raises(ServerFailure, match=f"(?s){reason}") as caught:
        served.load(proto, config(proto, max_batch_size=4, more=more))
    assert caught.value.failure.reason == "load_failed"


def test_tensors_that_are_not_the_models_fail_the_load(served: Served) -> None:
    proto = models.mlp()
    with pytest.raises(ServerFailure, match='input "x" is TYPE_FP32 in the model, not TYPE_FP16'):
        served.load(proto, config(proto, max_batch_size=4).replace("TYPE_FP32", "TYPE_FP16", 1))
