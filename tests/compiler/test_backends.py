"""What every backend has to keep, and what each one writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.compiler.projects import CPU, FIXED, GPU, IMAGE, project_of, spec_of
from tritonc.compiler.backends import BACKENDS, CATALOGUE, Backend, onnxruntime, openvino
from tritonc.compiler.knobs.knob import Place
from tritonc.compiler.knobs.legal_candidate import candidate_from
from tritonc.compiler.model_config import render
from tritonc.compiler.protobuf import ModelConfig
from tritonc.compiler.release import Release
from tritonc.compiler.space import baseline_for

R24_10 = Release(24, 10)


class BackendContract:
    """A backend is done when its subclass, which sets `backend`, is green."""

    backend: Backend

    def test_it_is_listed_under_its_name(self) -> None:
        assert BACKENDS[self.backend.name] is self.backend

    def test_it_has_an_accelerator_called_none_on_the_cpu(self) -> None:
        assert self.backend.accelerators["none"].kind == "KIND_CPU"
        assert all(name == a.name for name, a in self.backend.accelerators.items())
        assert all("fp32" in a.precisions for a in self.backend.accelerators.values())

    def test_its_knobs_are_in_the_catalogue_after_those_they_depend_on(self) -> None:
        names = list(CATALOGUE)
        assert len(names) == len(set(names))
        facts: Any = None
        for knob in self.backend.knobs:
            assert CATALOGUE[knob.name] is knob
            for condition in knob.conditions(facts):
                assert names.index(condition.knob) < names.index(knob.name)

    def test_each_knob_is_documented_and_its_default_is_a_value_of_it(self) -> None:
        for knob in self.backend.knobs:
            assert knob.doc.endswith(".")
            assert knob.absent

    def test_it_serves_ordinary_models(self) -> None:
        assert self.backend.refusal(IMAGE, R24_10) == ""
        assert self.backend.refusal(FIXED, R24_10) == ""
        assert self.backend.accelerator_refusal("none", 1, R24_10) == ""

    def test_it_renders_the_least_that_a_candidate_has(self) -> None:
        config = ModelConfig()
        self.backend.render(config, {"backend": self.backend.name, "accelerator": "none"})
        assert not config.parameters
        assert not config.HasField("optimization")

    def test_a_baseline_needs_nothing_else(self, tmp_path: Path) -> None:
        project = project_of(tmp_path, spec_of({}, {**CPU, "backends": {self.backend.name: {}}}))
        config = render(project, baseline_for(project, "m", "t"))
        assert config.backend == self.backend.name
        assert config.instance_group[0].count == 2
        assert not config.platform


class TestOnnxRuntime(BackendContract):
    backend = onnxruntime.BACKEND


class TestOpenVino(BackendContract):
    backend = openvino.BACKEND


def config_of(folder: Path, target: Mapping[str, Any], accelerator: str, **knobs: Any) -> ModelConfig:
    named = {name.replace("__", "."): value for name, value in knobs.items()}
    project = project_of(folder, spec_of({}, target))
    values = {**baseline_for(project, "m", "t").values, "accelerator": accelerator, **named}
    if accelerator != "none":
        values.pop("intra_op_thread_count", None)
    return render(project, candidate_from(project, "m", "t", values))


def gpu_of(*accelerators: str, triton: str = "24.10") -> dict[str, Any]:
    return {**GPU, "triton": triton, "backends": {"onnxruntime": {"accelerators": list(accelerators)}}}


def parameters(config: ModelConfig) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def test_the_openvino_accelerator_is_a_cpu_one_without_parameters(tmp_path: Path) -> None:
    target = {**CPU, "backends": {"onnxruntime": {"accelerators": ["openvino", "none"]}}}
    accelerators = config_of(tmp_path, target, "openvino").optimization.execution_accelerators
    assert [a.name for a in accelerators.cpu_execution_accelerator] == ["openvino"]
    assert not accelerators.cpu_execution_accelerator[0].parameters
    assert not accelerators.gpu_execution_accelerator


def test_the_four_cuda_keys_are_top_level_parameters(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        gpu_of("cuda"),
        "cuda",
        cudnn_conv_algo_search=1,
        gpu_mem_limit=2**30,
        arena_extend_strategy=1,
        do_copy_in_default_stream=False,
    )
    assert parameters(config) == {
        "cudnn_conv_algo_search": "1",
        "gpu_mem_limit": "1073741824",
        "arena_extend_strategy": "1",
        "do_copy_in_default_stream": "0",
    }
    assert not config.HasField("optimization")


def test_the_cuda_block_is_there_only_where_an_option_differs(tmp_path: Path) -> None:
    config = config_of(tmp_path, gpu_of("cuda"), "cuda", use_tf32=False, prefer_nhwc=False)
    (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    same = config_of(tmp_path, gpu_of("cuda"), "cuda", use_tf32=True, tunable_op_max_tuning_duration_ms=0)
    assert not same.HasField("optimization")
    assert same.instance_group[0].kind == 1


def test_tensorrt_parameters_are_plain_pairs(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        gpu_of("tensorrt"),
        "tensorrt",
        precision_mode="FP16",
        trt_engine_cache_enable=True,
        trt_builder_optimization_level=5,
        trt_tactic_sources="-CUDNN,+CUBLAS",
        max_workspace_size_bytes=2**31,
        cudnn_conv_algo_search=2,
    )
    (tensorrt,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert tensorrt.name == "tensorrt"
    assert dict(tensorrt.parameters) == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_builder_optimization_level": "5",
        "trt_tactic_sources": "-CUDNN,+CUBLAS",
        "max_workspace_size_bytes": "2147483648",
    }
    assert parameters(config) == {"cudnn_conv_algo_search": "2"}


@pytest.mark.parametrize(
    ("knob", "value", "first"),
    [
        ("precision_mode", "FP16", "21.06"),
        ("precision_mode", "INT8", "21.09"),
        ("precision_mode", "BF16", "26.02"),
        ("trt_engine_cache_path", "/cache", "21.09"),
        ("trt_timing_cache_enable", True, "24.04"),
        ("use_tf32", False, "24.06"),
        ("cudnn_conv_algo_search", 1, "21.10"),
        ("session.use_device_allocator_for_initializers", True, "25.02"),
        ("enable_mem_arena", False, "22.04"),
        ("execution_mode", 1, "21.12"),
    ],
)
def test_a_key_is_legal_from_its_first_release_on(tmp_path: Path, knob: str, value: Any, first: str) -> None:
    release = Release.parse(first)
    before = Release(release.year, release.month - 1) if release.month > 1 else Release(release.year - 1, 12)
    accelerator = "tensorrt" if knob.startswith(("trt", "prec")) else "cuda"
    name = knob.replace(".", "__")
    config_of(tmp_path, gpu_of(accelerator, triton=first), accelerator, **{name: value})
    with pytest.raises(ValueError, match=f"needs Triton {first}; target t is served by {before}"):
        config_of(tmp_path, gpu_of(accelerator, triton=str(before)), accelerator, **{name: value})


def test_no_thread_count_is_written_where_onnx_runtime_chooses(tmp_path: Path) -> None:
    assert parameters(config_of(tmp_path, CPU, "none", intra_op_thread_count=0)) == {}
    config = config_of(
        tmp_path, CPU, "none", execution_mode=1, inter_op_thread_count=2, intra_op_thread_count=4
    )
    assert parameters(config) == {
        "execution_mode": "1",
        "inter_op_thread_count": "2",
        "intra_op_thread_count": "4",
    }


def test_the_openvino_backend_serves_an_onnx_file_under_its_own_names(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        {**CPU, "backends": {"openvino": {}}},
        "none",
        PERFORMANCE_HINT="THROUGHPUT",
        NUM_STREAMS="AUTO",
        INFERENCE_NUM_THREADS=4,
        HINT_BF16=True,
        RESHAPE_IO_LAYERS=False,
    )
    assert config.default_model_filename == "model.onnx"
    assert parameters(config) == {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": "AUTO",
        "INFERENCE_NUM_THREADS": "4",
        "HINT_BF16": "YES",
    }
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


def test_every_parameter_of_the_backend_has_a_place() -> None:
    places = {knob.name: knob.place for knob in onnxruntime.BACKEND.knobs}
    assert sum(name.startswith("trt_") for name in places) == 28
    assert places.pop("graph_level") is Place.FIELD
    assert Place.FIELD not in places.values()
