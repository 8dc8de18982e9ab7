"""Reading a spec: what is accepted, and every wrong input with its place and its words."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from ruamel.yaml import YAML

from tritonc.schemas.errors import InputErrors, SpecError, TritoncError
from tritonc.schemas.json_schema import json_schema
from tritonc.schemas.spec import (
    ClosedWorkload,
    ConstantData,
    FileData,
    ModelSpec,
    OpenWorkload,
    Pareto,
    RandomData,
    Range,
    Slo,
    Spec,
    TraceWorkload,
)
from tritonc.schemas.spec_file import SpecFile, read_spec

SPEC = """\
apiVersion: tritonc/v1
name: ocr
models:
  rec:
    source: models/rec.onnx
    max_batch_size: 32
    shapes: {x: [3, 48, 320]}
    data: {x: {range: [-1, 1]}}
    workload: {arrival: closed, max_concurrency: 32, request_batch: 1}
    slo: {p99_latency_ms: 80, min_throughput: 50}
    objective: throughput
targets:
  cpu:
    device: cpu
    cores: 2
    memory: 8GiB
    triton: "24.10"
    backends:
      onnxruntime: {accelerators: [none, openvino]}
search:
  instance_count: [1, 2, 4]
  max_queue_delay_microseconds: {min: 0, max: 5000}
  intra_op_thread_count: 2
"""

Read = Callable[[str], SpecFile]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_text(text: str) -> SpecFile:
        path = tmp_path / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        return read_spec(path)

    return read_text


def messages(read: Read, text: str) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        read(text)
    return [re.sub(r"^.*/spec\.yaml:", "", str(error)) for error in caught.value]


def with_model(line: str) -> str:
    return SPEC.replace("    objective: throughput\n", f"    {line}\n")


def test_a_whole_spec(read: Read) -> None:
    file = read(SPEC)
    model = file.spec.models["rec"]
    assert model.shapes == {"x": (3, 48, 320)}
    assert model.data == {"x": RandomData(range=(-1, 1))}
    assert model.workload == ClosedWorkload(max_concurrency=32)
    assert model.slo.p99_latency_ms == 80
    assert file.spec.targets["cpu"].memory == 8 * 2**30
    assert file.spec.targets["cpu"].backends["onnxruntime"].accelerators == ("none", "openvino")
    assert file.spec.search == {
        "instance_count": (1, 2, 4),
        "max_queue_delay_microseconds": Range(min=0, max=5000),
        "intra_op_thread_count": 2,
    }
    assert file.folder == file.path.parent
    assert file.lock_path == file.folder / "spec.lock.yaml"
    assert len(file.sha256) == 64


def test_values_keep_the_type_they_were_written_with(read: Read) -> None:
    domain = '[true, 1, 1.0, "1", [1, 2], none]'
    values = read(with_model(f"search: {{a: {domain}, b: true, c: '4'}}")).spec.models["rec"].search
    assert repr(values["a"]) == "(True, 1, 1.0, '1', (1, 2), 'none')"
    assert values["b"] is True
    assert values["c"] == "4"


def test_workloads_data_and_objectives(read: Read) -> None:
    open_loop = read(
        with_model("config: {a: [1]}").replace(
            "arrival: closed, max_concurrency: 32", "arrival: poisson, rate: 5"
        )
    )
    assert open_loop.spec.models["rec"].workload == OpenWorkload(arrival="poisson", rate=5)
    assert open_loop.spec.models["rec"].config == {"a": (1,)}
    implied = read(SPEC.replace("arrival: closed, max_concurrency: 32", "max_concurrency: 8"))
    assert implied.spec.models["rec"].workload == ClosedWorkload(max_concurrency=8)
    closed = "{arrival: closed, max_concurrency: 32, request_batch: 1}"
    several = read(SPEC.replace(closed, "[{max_concurrency: 8}, {arrival: trace, file: burst.txt, rate: 9}]"))
    assert several.spec.models["rec"].workloads == (
        ClosedWorkload(max_concurrency=8),
        TraceWorkload(arrival="trace", file="burst.txt", rate=9),
    )
    data = (
        read(SPEC.replace("{x: {range: [-1, 1]}}", "{x: {constant: 1}, y: {file: a.npz}}"))
        .spec.models["rec"]
        .data
    )
    assert data == {"x": ConstantData(constant=1), "y": FileData(file="a.npz")}
    weights = read(with_model("objective: {throughput: 0.7, memory: 0.3}")).spec.models["rec"].objective
    assert weights == {"throughput": 0.7, "memory": 0.3}
    front = read(with_model("objective: {pareto: [throughput, p99_latency_ms, memory]}")).spec.models["rec"]
    assert front.objective == Pareto(pareto=("throughput", "p99_latency_ms", "memory"))
    assert front.objectives == ("throughput", "p99_latency_ms", "memory")


def test_limits_are_hard_unless_they_are_said_to_be_soft(read: Read) -> None:
    text = (
        "{p99_latency_ms: 80, max_memory: {limit: 2GiB, soft: true}, avg_queue_ms: {limit: 5, soft: false}}"
    )
    slo = read(SPEC.replace("{p99_latency_ms: 80, min_throughput: 50}", text)).spec.models["rec"].slo
    assert slo.hard == {"p99_latency_ms": 80, "avg_queue_ms": 5}
    assert slo.soft == {"max_memory": 2 << 30}
    assert slo.limits == slo.hard | slo.soft
    assert Slo.model_validate(slo.model_dump()) == slo


def test_models_can_be_built_from_python() -> None:
    model = ModelSpec(
        source="m.onnx", workload=OpenWorkload(arrival="constant", rate=1), data={"x": FileData(file="a")}
    )
    assert ModelSpec.model_validate(model.model_dump()) == model
    assert ModelSpec(source="m.onnx", search={"a": Range(min=1, max=2)}).search["a"] == Range(min=1, max=2)


def test_defaults_and_merged_keys(read: Read) -> None:
    text = SPEC.replace("  rec:\n", "  rec: &rec\n").replace(
        "targets:", "  det:\n    <<: *rec\n    source: det.onnx\ntargets:"
    )
    models = read(text).spec.models
    assert models["det"] == models["rec"].model_copy(update={"source": "det.onnx"})


def wrong_specs() -> list[tuple[str, str, str]]:
    text = Path(__file__).with_name("wrong_specs.txt").read_text(encoding="utf-8")
    cases = (case.split("\n") for case in text.rstrip("\n").split("\n\n")[1:])
    return [(old[1:].replace("⏎", "\n"), new[1:].replace("⏎", "\n"), message) for old, new, message in cases]


@pytest.mark.parametrize(("old", "new", "message"), wrong_specs())
def test_wrong_input_has_one_clear_message(read: Read, old: str, new: str, message: str) -> None:
    assert old in SPEC
    assert messages(read, SPEC.replace(old, new, 1)) == [message]


def test_request_batch_of_a_model_without_batch_axis(read: Read) -> None:
    text = SPEC.replace("max_batch_size: 32", "max_batch_size: 0").replace(
        "request_batch: 1", "request_batch: 2"
    )
    assert messages(read, text) == [
        "9:69: workload.request_batch is 2 but max_batch_size is 0 (no batch axis); "
        "lower request_batch, or raise max_batch_size"
    ]
    assert read(text.replace("request_batch: 2", "request_batch: 1"))


def test_every_problem_is_reported_in_the_order_of_lines(read: Read) -> None:
    text = (
        SPEC.replace("device: cpu", "device: cpuu")
        .replace("32", "x", 1)
        .replace("ms: 80", "ms: 0")
        .replace('"24.10"', "24.10")
        .replace("name: ocr", "name: ocr\nname: x")
        .replace("[1, 2, 4]", "[]")
    )
    found = messages(read, text)
    assert [int(message.split(":")[0]) for message in found] == [3, 7, 11, 15, 18, 22]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1:1: the file is empty; a spec begins with apiVersion: tritonc/v1"),
        ("# nothing\n", "1:1: the file is empty; a spec begins with apiVersion: tritonc/v1"),
        (
            "- 1\n",
            "1:1: the file is not a mapping of keys and values; a spec begins with apiVersion: tritonc/v1",
        ),
        (
            "hello\n",
            "1:1: the file is not a mapping of keys and values; a spec begins with apiVersion: tritonc/v1",
        ),
        (
            "a: [",
            "1:5: this is not valid YAML: a value or a closing bracket is missing; "
            "look at this line and those above it",
        ),
    ],
)
def test_files_that_are_no_mapping(read: Read, text: str, message: str) -> None:
    assert messages(read, text) == [message]


def test_a_missing_spec_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(TritoncError, match=r"there is no such file; write a spec with: tritonc init"):
        read_spec(tmp_path / "spec.yaml")


def test_the_compiler_reports_at_the_same_places(read: Read, tmp_path: Path) -> None:
    file = read(SPEC)
    error = file.error(("models", "rec", "slo", "p99_latency_ms"), "what", "hint")
    assert isinstance(error, SpecError)
    assert str(error) == f"{tmp_path}/spec.yaml:10:27: what; hint"
    assert error.key_path == ("models", "rec", "slo", "p99_latency_ms")
    assert str(file.location(("models", "rec", "accuracy", "rtol"))) == f"{tmp_path}/spec.yaml:4:3"


def test_an_alias_repeats_no_message(read: Read) -> None:
    text = (
        SPEC.replace("  rec:\n", "  rec: &m\n")
        .replace("targets:", "  det: *m\ntargets:")
        .replace("ms: 80", "ms: 0")
    )
    assert messages(read, text) == ["10:27: slo.p99_latency_ms is the number 0; it must be more than 0"] * 2


def paths_in(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(below for key, value in items for below in paths_in(value, (*path, key)))]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just([]), st.just({}),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """A valid spec with up to three values replaced, removed or renamed."""
    data: Any = YAML(typ="safe").load(SPEC)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths_in(data)[1:] or [()]))
        if not path:
            continue
        parent: Any = data
        for step in path[:-1]:
            parent = parent[step]
        action = draw(st.sampled_from(["replace", "remove", "rename"]))
        if action == "replace":
            parent[path[-1]] = draw(VALUES)
        elif action == "remove" or isinstance(parent, list):
            del parent[path[-1]]
        else:
            parent[draw(st.text(max_size=6))] = parent.pop(path[-1])
    return data


def as_yaml(data: Any) -> str:
    """Flow YAML, which needs no emitter."""
    if isinstance(data, dict):
        return f"{{{', '.join(f'{as_yaml(key)}: {as_yaml(value)}' for key, value in data.items())}}}"
    if isinstance(data, list):
        return f"[{', '.join(map(as_yaml, data))}]"
    if isinstance(data, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in data) + '"'
    if isinstance(data, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(data), repr(data))
    return str(data).lower().replace("none", "null")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=mutations())
def test_any_mutation_is_accepted_or_refused_with_a_line(read: Read, data: Any) -> None:
    try:
        read(as_yaml(data))
    except InputErrors as errors:
        for error in errors:
            assert isinstance(error, SpecError)
            assert error.location.line == 1
            assert "Input should" not in str(error)
            assert "\n" not in str(error)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, len(SPEC)), length=st.integers(0, 30), text=st.text(max_size=5))
def test_any_edit_of_the_text_is_accepted_or_refused_with_a_line(
    read: Read, start: int, length: int, text: str
) -> None:
    try:
        read(SPEC[:start] + text + SPEC[start + length :])
    except InputErrors as errors:
        for error in errors:
            assert isinstance(error, SpecError)


def test_what_the_models_accept_editors_accept() -> None:
    data = YAML(typ="safe").load(SPEC)
    Draft7Validator(json_schema("spec")).validate(data)
    spec = Spec.model_validate(data)
    assert Spec.model_validate(spec.model_dump()) == spec


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("examples/*/spec.yaml")), ids=lambda p: p.parent.name
)
def test_examples_are_valid_for_tritonc_and_for_editors(path: Path) -> None:
    read_spec(path)
    Draft7Validator(json_schema("spec")).validate(YAML(typ="safe").load(path))
