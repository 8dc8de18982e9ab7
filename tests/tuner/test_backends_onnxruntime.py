from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from tests import models
from tests.tuner.conftest import Served, config_pbtxt, parameter, run_onnxruntime, uniform
from tritonc.tuner.engines import ServerFailure

pytestmark = pytest.mark.triton

CPU_OPENVINO = 'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }'


def accelerator(kind: str, name: str, **parameters: str) -> str:
    inside = " ".join(f'parameters {{ key: "{k}" value: "{v}" }}' for k, v in parameters.items())
    return (
        f"optimization {{ execution_accelerators {{ {kind}_execution_accelerator "
        f'{{ name: "{name}" {inside} }} }} }}'
    )


def test_outputs_are_bit_equal_to_onnx_runtime_for_one_request_and_for_a_batch(served: Served) -> None:
    proto = models.conv()
    name = served.load(proto, config_pbtxt(proto, max_batch_size=8))
    for batch in (1, 3, 8):
        image = uniform(batch, 3, 17, 23, seed=batch)
        answer = served.infer(name, image=image)["features"]
        assert np.array_equal(answer, run_onnxruntime(proto, image=image)[0])


def test_each_of_several_requests_in_one_execution_gets_its_own_rows(served: Served) -> None:
    proto = models.two_inputs()
    batching = "dynamic_batching { preferred_batch_size: [8] max_queue_delay_microseconds: 500000 }"
    name = served.load(proto, config_pbtxt(proto, max_batch_size=8, more=batching))
    requests = [
        {"ids": np.arange(rows * 5).reshape(rows, 5) + 100 * rows, "scale": uniform(rows, 1, seed=rows)}
        for rows in (1, 2, 1, 3, 1)
    ]
    before = served.server.statistics(name)
    answers = served.infer_together(name, requests)
    while (done := served.server.statistics(name).since(before)).requests < 5:
        time.sleep(0.01)
    assert (done.requests, done.inferences, done.executions) == (5, 8, 1)
    scores, total = run_onnxruntime(
        proto, **{name: np.concatenate([requests[i][name] for i in range(5)]) for name in ("ids", "scale")}
    )
    start = 0
    for request, answer in zip(requests, answers, strict=True):
        end = start + len(request["scale"])
        np.testing.assert_array_equal(answer["scores"], scores[start:end])
        np.testing.assert_allclose(answer["total"].ravel(), total[start:end], rtol=1e-6)
        start = end


def test_requests_of_other_shapes_in_one_execution_are_executed_apart(served: Served) -> None:
    proto = models.two_inputs()
    batching = "dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 500000 }"
    name = served.load(proto, config_pbtxt(proto, max_batch_size=4, more=batching))
    requests = [{"ids": np.ones((1, n), np.int64), "scale": uniform(1, 1)} for n in (2, 3, 2, 3)]
    for request, answer in zip(requests, served.infer_together(name, requests), strict=True):
        assert np.array_equal(answer["scores"], run_onnxruntime(proto, **request)[0])


def test_only_the_outputs_that_were_asked_for_are_sent(served: Served) -> None:
    proto = models.two_inputs()
    name = served.load(proto, config_pbtxt(proto, max_batch_size=4))
    answer = served.infer(name, ["total"], ids=np.ones((2, 3), np.int64), scale=uniform(2, 1))
    assert set(answer) == {"total"}


@pytest.mark.parametrize(
    "dtype",
    ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FLOAT16", "DOUBLE"],
)
def test_every_element_type_goes_through_unchanged(served: Served, dtype: str) -> None:
    number = onnx.TensorProto.DataType.Value(dtype)
    proto = models.identity(number)
    name = served.load(proto, config_pbtxt(proto, max_batch_size=4))
    x = (np.random.default_rng(0).uniform(0, 100, (3, 4))).astype(
        onnx.helper.tensor_dtype_to_np_dtype(number)
    )
    answer = served.infer(name, x=x)["y"]
    assert answer.dtype == x.dtype
    assert np.array_equal(answer, x)


def test_reshape_is_applied_to_inputs_and_outputs(served: Served) -> None:
    proto = models.identity(dims=("batch",))
    name = served.load(proto, config_pbtxt(proto, max_batch_size=4))
    x = uniform(3, 1)
    assert np.array_equal(served.infer(name, x=x)["y"], x)


def test_a_scalar_is_written_as_a_dimension_of_one(served: Served) -> None:
    proto = models.scalar_input()
    name = served.load(proto, config_pbtxt(proto))
    x = uniform(2, 4)
    answer = served.infer(name, x=x, factor=np.float32([3]))["y"]
    assert np.array_equal(answer, x * np.float32(3))


def test_a_configuration_that_triton_refuses_fails_with_tritons_reason(served: Served) -> None:
    proto = models.scalar_input()
    empty = config_pbtxt(proto).replace("TYPE_FP32 dims: [1]", "TYPE_FP32 dims: [1] reshape { shape: [] }")
    with pytest.raises(ServerFailure, match="scalar tensors are not supported"):
        served.load(proto, empty)
    with pytest.raises(ServerFailure, match="no_such_field"):
        served.load(models.mlp(), config_pbtxt(models.mlp(), more="no_such_field: 1"))


def test_text_is_served_or_refused_with_the_reason(served: Served) -> None:
    proto = models.identity(onnx.TensorProto.STRING)
    config = config_pbtxt(proto, max_batch_size=4)
    x = np.array([["a", "bc", "", "déf"]], dtype=np.object_)
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        assert served.infer(served.load(proto, config), x=x)["y"].tolist() == [[v.encode() for v in x[0]]]
    else:
        with pytest.raises(ServerFailure, match="TYPE_STRING only where numpy is older than 2"):
            served.load(proto, config)


def test_a_request_that_the_model_cannot_execute_is_answered_with_the_runtimes_error(served: Served) -> None:
    proto = models.two_inputs()
    name = served.load(proto, config_pbtxt(proto, max_batch_size=4))
    with pytest.raises(Exception, match=r"FP32"):
        served.infer(name, ids=np.ones((1, 3), np.int64), scale=np.ones((1, 1), np.float64))
    assert served.server.alive()


@pytest.mark.parametrize(
    "more",
    [
        parameter("intra_op_thread_count", "2"),
        parameter("intra_op_thread_count", "-3"),
        parameter("inter_op_thread_count", "2") + parameter("execution_mode", "1"),
        parameter("enable_mem_arena", "0"),
        parameter("enable_mem_arena", "ON"),
        parameter("enable_mem_pattern", "false"),
        parameter("memory.enable_memory_arena_shrinkage", "cpu:0"),
        parameter("session.use_device_allocator_for_initializers", "1"),
        *(f"optimization {{ graph {{ level: {level} }} }}" for level in (-1, 0, 1, 2, 7)),
        "optimization { input_pinned_memory { enable: false } output_pinned_memory { enable: false } }",
        CPU_OPENVINO,
        "instance_group { count: 2 kind: KIND_CPU }",
    ],
)
def test_every_key_that_means_something_here_loads_and_serves(served: Served, more: str) -> None:
    proto = models.mlp()
    name = served.load(proto, config_pbtxt(proto, max_batch_size=8, more=more))
    x = uniform(8, 4)
    np.testing.assert_allclose(
        served.infer(name, x=x)["y"], run_onnxruntime(proto, x=x)[0], rtol=1e-3, atol=1e-4
    )
    served.server.unload(name)


GPU = "instance_group { count: 1 kind: KIND_GPU gpus: [0] } "


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            parameter("intra_op_threads", "2"),
            'unknown key "intra_op_threads".*did you mean "intra_op_thread_count"',
        ),
        (parameter("session.intra_op.allow_spinning", "0"), 'unknown key "session.intra_op.allow_spinning"'),
        (parameter("intra_op_thread_count", "4x"), 'intra_op_thread_count: "4x" should be a whole number'),
        (parameter("execution_mode", "2"), 'execution_mode: "2" should be one of: 0, 1'),
        (parameter("enable_mem_arena", "yes"), 'enable_mem_arena: "yes" should be 1 or 0'),
        (parameter("memory.enable_memory_arena_shrinkage", "foo"), '"foo" should look like cpu:0'),
        (
            parameter("cudnn_conv_algo_search", "1"),
            "cudnn_conv_algo_search have no effect without .*KIND_GPU",
        ),
        (accelerator("cpu", "openvino", num_of_threads="2"), "num_of_threads would be ignored"),
        (accelerator("cpu", "dnnl"), r'cpu_execution_accelerator: unknown "dnnl" \(known: openvino\)'),
        (accelerator("gpu", "tensorrt"), '"tensorrt" has no effect without an instance_group of KIND_GPU'),
        ("optimization { priority: PRIORITY_MAX }", "optimization.priority"),
        ("optimization { cuda { graphs: true } }", "optimization.cuda"),
        ("optimization { eager_batching: true }", "optimization.eager_batching"),
        ("optimization { gather_kernel_buffer_threshold: 9 }", "gather_kernel_buffer_threshold"),
        ("model_transaction_policy { decoupled: true }", "decoupled"),
        ('default_model_filename: "other.onnx"', "there is no other.onnx"),
        ('instance_group { kind: KIND_CPU host_policy: "numa" }', "instance_group.host_policy"),
        (
            "instance_group { kind: KIND_CPU secondary_devices { kind: KIND_NVDLA } } "
            "instance_group { kind: KIND_CPU }",
            "instance_group.secondary_devices",
        ),
    ],
)
def test_a_key_that_is_not_honoured_fails_the_load_with_its_reason(
    served: Served, more: str, reason: str
) -> None:
    proto = models.mlp()
    with pytest.raises(ServerFailure, match=f"(?s){reason}") as caught:
        served.load(proto, config_pbtxt(proto, max_batch_size=8, more=more))
    assert caught.value.failure.reason == "load_failed"
    assert "Traceback" not in caught.value.failure.detail


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("TYPE_FP32", "TYPE_FP16", 'input "x" is TYPE_FP32 in the model, not TYPE_FP16'),
        ('name: "x"', 'name: "X1"', 'the model has no input "X1"'),
        ("dims: [4]", "dims: [5]", r'input "x" has the dims \[-1, 4\] in the model'),
        ('name: "y"', 'name: "why"', 'the model has no output "why"'),
    ],
)
def test_tensors_that_are_not_the_models_fail_the_load(
    served: Served, before: str, after: str, reason: str
) -> None:
    proto = models.mlp()
    config = config_pbtxt(proto, max_batch_size=8)
    assert before in config
    with pytest.raises(ServerFailure, match=reason):
        served.load(proto, config.replace(before, after, 1))


def test_a_model_of_bf16_tensors_is_refused(served: Served) -> None:
    proto = models.identity(onnx.TensorProto.BFLOAT16)
    with pytest.raises(ServerFailure, match="TYPE_BF16"):
        served.load(proto, config_pbtxt(proto, max_batch_size=4))


def test_a_model_file_named_in_the_configuration_is_the_one_served(served: Served) -> None:
    proto = models.mlp(seed=7)
    more = 'default_model_filename: "other.onnx"'
    name = served.put(models.mlp(seed=1), config_pbtxt(proto, max_batch_size=8, more=more))
    (served.server.repository / name / "1" / "other.onnx").write_bytes(proto.SerializeToString())
    served.server.load(name)
    x = uniform(2, 4)
    assert np.array_equal(served.infer(name, x=x)["y"], run_onnxruntime(proto, x=x)[0])


def test_a_truncated_model_fails_the_load_with_the_runtimes_reason(served: Served) -> None:
    proto = models.mlp()
    name = served.put(proto, config_pbtxt(proto, max_batch_size=8))
    path = served.server.repository / name / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ServerFailure, match="ONNX Runtime"):
        served.server.load(name)
