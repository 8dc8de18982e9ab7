"""What the onnxruntime backend asks of a GPU, which needs none to be checked: providers and options."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tritonc.tuner.engines.embedded import EmbeddedEngine

pytestmark = pytest.mark.triton  # the backends are assembled from the bundle


@pytest.fixture(scope="module")
def backends() -> Path:
    return EmbeddedEngine().installation().backends


@pytest.fixture
def model(backends: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in (backends / "onnxruntime", backends / "python"):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = backends / "onnxruntime" / "model.py"
    spec = importlib.util.spec_from_file_location("tritonc_test_onnxruntime_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(
    model: ModuleType, tmp_path: Path, *, kind: str = "GPU", groups: str = "KIND_GPU", **fields: Any
) -> Any:
    (tmp_path / "1").mkdir(exist_ok=True)
    (tmp_path / "1" / "model.onnx").touch()
    parameters = {key: {"string_value": value} for key, value in fields.pop("parameters", {}).items()}
    config = {
        "backend": "onnxruntime",
        "max_batch_size": 4,
        "parameters": parameters,
        "instance_group": [{"kind": groups, "count": 1}],
        **fields,
    }
    args = {
        "model_config": json.dumps(config),
        "model_repository": str(tmp_path),
        "model_version": "1",
        "model_instance_kind": kind,
        "model_instance_device_id": "1",
        "model_instance_name": "m_0_0",
    }
    return model.serving.read_settings(args, "model.onnx", model._PARAMETERS)


def accelerators(**lists: list[dict[str, Any]]) -> dict[str, Any]:
    named = {f"{kind}_execution_accelerator": each for kind, each in lists.items()}
    return {"execution_accelerators": named}


def test_a_gpu_instance_has_cuda_with_the_official_defaults(model: ModuleType, tmp_path: Path) -> None:
    assert model._providers(settings(model, tmp_path)) == [
        (
            "CUDAExecutionProvider",
            {
                "cudnn_conv_algo_search": "EXHAUSTIVE",
                "arena_extend_strategy": "kNextPowerOfTwo",
                "do_copy_in_default_stream": "1",
                "device_id": "1",
            },
        ),
        ("CPUExecutionProvider", {}),
    ]


def test_the_four_cuda_parameters_and_the_cuda_accelerators_are_one_set_of_options(
    model: ModuleType, tmp_path: Path
) -> None:
    four = {
        "cudnn_conv_algo_search": "1",
        "gpu_mem_limit": "4294967296",
        "arena_extend_strategy": "1",
        "do_copy_in_default_stream": "false",
    }
    optimization = accelerators(gpu=[{"name": "cuda", "parameters": {"use_tf32": "0"}}])
    providers = model._providers(settings(model, tmp_path, parameters=four, optimization=optimization))
    assert dict(providers)["CUDAExecutionProvider"] == {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": "4294967296",
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "0",
        "device_id": "1",
    }


def test_tensorrt_comes_first_with_its_options_then_cuda_then_openvino(
    model: ModuleType, tmp_path: Path
) -> None:
    tensorrt = {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": "1073741824",
        "trt_engine_cache_enable": "1",
        "trt_profile_min_shapes": "x:1x4",
    }
    optimization = accelerators(
        gpu=[{"name": "tensorrt", "parameters": tensorrt}], cpu=[{"name": "openvino"}]
    )
    providers = model._providers(settings(model, tmp_path, optimization=optimization))
    assert [name for name, _ in providers] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "OpenVINOExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert providers[0][1] == {
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "1073741824",
        "trt_engine_cache_enable": "1",
        "trt_profile_min_shapes": "x:1x4",
        "device_id": "1",
    }
    assert model.tensorrt_options({"precision_mode": "FP32"}) == {}
    assert model.tensorrt_options({"precision_mode": "INT8", "int8_calibration_table_name": "t"}) == {
        "trt_int8_enable": "1",
        "trt_int8_calibration_table_name": "t",
    }


def test_a_cpu_instance_beside_gpu_instances_has_none_of_the_gpus_accelerators(
    model: ModuleType, tmp_path: Path
) -> None:
    optimization = accelerators(gpu=[{"name": "tensorrt"}])
    of_cpu = settings(
        model, tmp_path, kind="CPU", optimization=optimization, parameters={"cudnn_conv_algo_search": "1"}
    )
    assert model._providers(of_cpu) == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize(
    ("gpu", "parameters", "reason"),
    [
        (
            {"name": "tensorrt", "parameters": {"precision_mode": "BF16"}},
            {},
            "should be one of: FP32, FP16, INT8",
        ),
        (
            {"name": "tensorrt", "parameters": {"trt_fp16_enable": "1"}},
            {},
            'unknown parameter "trt_fp16_enable"',
        ),
        (
            {"name": "cuda", "parameters": {"gpu_mem_limit": "1"}},
            {},
            "overwritten by the top-level parameters",
        ),
        ({"name": "cuda", "parameters": {"device_id": "0"}}, {}, "device_id is overwritten by the backend"),
        ({"name": "auto_mixed_precision"}, {}, 'unknown "auto_mixed_precision"'),
        ({"name": "cuda"}, {"cudnn_conv_algo_search": "9"}, "should be one of: 0, 1, 2"),
        ({"name": "cuda"}, {"gpu_mem_limit": "much"}, "should be a whole number"),
    ],
)
def test_what_a_gpu_instance_cannot_honour_is_refused(
    model: ModuleType, tmp_path: Path, gpu: dict[str, Any], parameters: dict[str, str], reason: str
) -> None:
    of_gpu = settings(model, tmp_path, optimization=accelerators(gpu=[gpu]), parameters=parameters)
    with pytest.raises(model.serving.ConfigError, match=reason):
        model._providers(of_gpu)


def test_pinned_memory_can_be_switched_off_only_where_it_means_nothing(
    model: ModuleType, tmp_path: Path
) -> None:
    off = {"input_pinned_memory": {"enable": False}}
    settings(model, tmp_path, kind="CPU", groups="KIND_CPU", optimization=off)
    with pytest.raises(model.serving.ConfigError, match=r"optimization\.input_pinned_memory\.enable: false"):
        settings(model, tmp_path, optimization=off)


def test_a_provider_that_is_not_installed_names_the_package(model: ModuleType, tmp_path: Path) -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed here")
    with pytest.raises(model.serving.ConfigError, match=r"CUDAExecutionProvider.*install onnxruntime-gpu"):
        model._session(settings(model, tmp_path))
