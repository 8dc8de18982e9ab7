"""The key of a measurement: any change of content changes it, and nothing else does."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.models import mlp
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import open_project
from tritonc.compiler.space import space_for
from tritonc.schemas.measurement import EngineInfo, Hardware
from tritonc.tuner.content import candidate_digest, content_digest
from tritonc.tuner.demand import read_demands
from tritonc.tuner.inputs import read_inputs

SPEC: dict[str, Any] = {
    "apiVersion": "tritonc/v1",
    "name": "test",
    "models": {
        "mlp": {
            "source": "mlp.onnx",
            "max_batch_size": 8,
            "data": {"x": {"range": [-1, 1]}},
            "workload": {"arrival": "closed", "max_concurrency": 8, "request_batch": 1},
            "slo": {"p99_latency_ms": 80},
            "objective": "throughput",
            "accuracy": {"rtol": 0.01, "atol": 0.001},
            "parameters": {"b": "1", "a": "2"},
        }
    },
    "targets": {
        "cpu": {"device": "cpu", "cores": 1, "backends": {"onnxruntime": {"accelerators": ["none"]}}}
    },
    "search": {"instance_count": [1, 2], "max_batch_size": [4, 8]},
}
ENGINE = EngineInfo(
    name="embedded",
    triton="2.51.0",
    release="24.10",
    runtimes={"onnxruntime": "1.24.1"},
    load_generator="perf_analyzer 2.43.0",
    server_cores=(0,),
    load_generator_cores=(1,),
)
HARDWARE = Hardware(cpu="CPU", cores=2, memory_bytes=2**30)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, str]]:
    """The content's and a candidate's digest, of a spec on an engine and a machine."""
    folder = tmp_path_factory.mktemp("content")
    (folder / "mlp.onnx").write_bytes(mlp().SerializeToString())
    (folder / "other.onnx").write_bytes(mlp(seed=3).SerializeToString())

    def keys_of(
        spec: dict[str, Any] = SPEC, engine: EngineInfo = ENGINE, hardware: Hardware = HARDWARE, **knobs: Any
    ) -> tuple[str, str]:
        path = Path(folder, "spec.yaml")
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        project = open_project(path)
        baseline = space_for(project, "mlp", next(iter(spec["targets"]))).baseline
        candidate = Candidate.of("mlp", baseline.target, baseline.values | knobs)
        inputs = read_inputs(project, "mlp")
        (demand,) = read_demands(project, "mlp")
        content = content_digest(project, "mlp", demand, [inputs], engine, hardware)
        return content, candidate_digest(project, candidate)

    return keys_of


def changed(path: str, value: Any) -> dict[str, Any]:
    """The spec with another value at a path."""
    keys, spec = path.split("/"), yaml.safe_load(yaml.safe_dump(SPEC))
    inner = spec
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = value
    return spec


def shuffled(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict):
        return value
    keys = rng.sample(list(value), len(value))
    return {key: shuffled(value[key], rng) for key in keys}


@given(seed=st.integers(0, 2**32))
def test_the_order_of_keys_in_the_spec_changes_nothing(keys: Callable[..., tuple[str, str]], seed: int):
    assert keys(shuffled(SPEC, random.Random(seed))) == keys()


@pytest.mark.parametrize(
    "spec",
    [
        changed("name", "other"),
        changed("models/mlp/slo", {"p95_latency_ms": 20, "min_throughput": 3}),
        changed("models/mlp/objective", "latency"),
        changed("models/mlp/accuracy", {"rtol": 0.5}),
        changed("models/mlp/workload/max_concurrency", 64),
        changed("search", {"instance_count": [1, 2, 3], "max_queue_delay_microseconds": [0, 100]}),
        changed("targets", {"machine": SPEC["targets"]["cpu"]}),
        changed("targets/cpu/price_per_hour", 2.5),
    ],
    ids=lambda spec: str(next(key for key in spec if spec[key] != SPEC.get(key))),
)
def test_what_is_looked_for_and_names_are_no_content(keys: Callable[..., tuple[str, str]], spec: Any):
    assert keys(spec) == keys()


CONTENT = [
    changed("models/mlp/data/x/range", [0, 1]),
    changed("models/mlp/data/x", {"constant": 0.5}),
    changed("models/mlp/source", "other.onnx"),
    changed("models/mlp/workload", {"arrival": "poisson", "rate": 20, "max_rate": 90}),
    changed("models/mlp/parameters/a", "3"),
    changed("models/mlp/config", {"response_cache": {"enable": True}}),
]


@pytest.mark.parametrize("spec", CONTENT)
def test_inputs_weights_and_what_is_passed_through_are_content(
    keys: Callable[..., tuple[str, str]], spec: Any
):
    assert keys(spec) != keys()


@pytest.mark.parametrize("field", EngineInfo.model_fields)
def test_everything_known_of_the_engine_is_content(keys: Callable[..., tuple[str, str]], field: str):
    other = {"runtimes": {"onnxruntime": "1.25.0"}, "server_cores": (1,), "load_generator_cores": (0,)}
    engine = ENGINE.model_copy(update={field: other.get(field, "other")})
    assert keys(engine=engine)[0] != keys()[0]
    assert keys(engine=engine)[1] == keys()[1]


@pytest.mark.parametrize("field", Hardware.model_fields)
def test_everything_known_of_the_machine_is_content(keys: Callable[..., tuple[str, str]], field: str):
    other = {"cpu": "other", "gpus": ("A10",)}
    hardware = HARDWARE.model_copy(update={field: other.get(field, 3)})
    assert keys(hardware=hardware)[0] != keys()[0]


@given(
    knobs=st.fixed_dictionaries(
        {
            "instance_count": st.sampled_from([1, 2, 5]),
            "max_batch_size": st.sampled_from([4, 8]),
            "intra_op_thread_count": st.sampled_from([1, 3]),
        }
    ),
    others=st.fixed_dictionaries(
        {
            "instance_count": st.sampled_from([1, 2, 5]),
            "max_batch_size": st.sampled_from([4, 8]),
            "intra_op_thread_count": st.sampled_from([1, 3]),
        }
    ),
)
def test_candidates_have_one_key_where_they_have_the_same_knobs(
    keys: Callable[..., tuple[str, str]], knobs: dict[str, int], others: dict[str, int]
):
    one, other = keys(**knobs), keys(**others)
    assert one[0] == other[0]
    assert (one[1] == other[1]) == (knobs == others)


def test_the_key_of_inputs_is_that_of_their_values(keys: Callable[..., tuple[str, str]], tmp_path: Path):
    (tmp_path / "mlp.onnx").write_bytes(mlp().SerializeToString())
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    project = open_project(tmp_path / "spec.yaml")
    inputs = read_inputs(project, "mlp")
    (only,) = inputs.inputs
    samples = only.samples.copy()
    samples.flat[-1] += 1
    other = replace(inputs, inputs=(replace(only, samples=samples),))
    same = replace(inputs, inputs=(replace(only, samples=only.samples.copy()),))
    (demand,) = read_demands(project, "mlp")
    three = (inputs, same, other)
    digests = [content_digest(project, "mlp", demand, [each], ENGINE, HARDWARE) for each in three]
    assert digests[0] == digests[1] == keys()[0]
    assert digests[2] != digests[0]


def test_the_times_in_a_trace_are_part_of_the_key_and_the_name_of_its_file_is_not(tmp_path: Path):
    (tmp_path / "mlp.onnx").write_bytes(mlp().SerializeToString())

    def key(file: str, *times: float) -> str:
        (tmp_path / file).write_text("".join(f"{time}\n" for time in times))
        workload = {"arrival": "trace", "file": file}
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(changed("models/mlp/workload", workload)))
        project = open_project(tmp_path / "spec.yaml")
        (demand,) = read_demands(project, "mlp")
        inputs = [read_inputs(project, "mlp")]
        return content_digest(project, "mlp", demand, inputs, ENGINE, HARDWARE)

    first = key("a.txt", 0, 1, 2)
    assert key("b.txt", 0, 1, 2) == first
    assert key("b.txt", 0, 1, 3) != first
