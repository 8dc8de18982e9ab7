"""Every wrong input that a user can hand over: exit code 2, the place, what to do, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Content, ProjectFolder
from tests.locks import decision, lock
from tests.models import conv, fixed_batch, identity, mlp, two_inputs, write_with_external_data
from tritonc.compiler.project import open_project
from tritonc.schemas.lock_file import dump_lock
from tritonc.tuner.optuna_storage import open_study

SPEC = """\
apiVersion: tritonc/v1
name: test
models:
  mlp:
    source: models/mlp.onnx
    slo: {p99_latency_ms: 50}
targets:
  cpu:
    device: cpu
    cores: 2
    memory: 8GiB
    triton: "24.10"
    backends:
      onnxruntime: {accelerators: [none, openvino]}
search: {instance_count: [1, 2]}
"""

Prepare = Callable[[ProjectFolder], object]


@dataclass(frozen=True)
class Wrong:
    """One wrong input.

    Attributes:
        name: of the test.
        says: texts that the messages hold; a place is among them where there is one.
        change: (old, new) texts in SPEC.
        files: added to the project, or put in the place of its own.
        prepare: what else is done to the folder.
        args: of the command.
    """

    name: str
    says: tuple[str, ...]
    change: tuple[str, str] = ("", "")
    files: Mapping[str, Content] = field(default_factory=dict)
    prepare: Prepare = lambda _folder: None
    args: tuple[str, ...] = ("build",)


def spec_is(name: str, content: str | bytes, *says: str) -> Wrong:
    return Wrong(name, says, files={"spec.yaml": content})


def spec_with(name: str, old: str, new: str, *says: str, **rest: Any) -> Wrong:
    return Wrong(name, says, change=(old, new), **rest)


def model_named(name: str, written: str, *says: str) -> Wrong:
    return spec_with(f"model name: {name}", "  mlp:", f"  {written}:", "spec.yaml:4:3", *says)


ALIAS_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)

YAML = [
    spec_is("malformed YAML", "models: [\n", "spec.yaml:2:1"),
    spec_is("not UTF-8", SPEC.encode().replace(b"test", b"t\xff\xfest"), "spec.yaml:2", "UTF-8"),
    spec_is("alias bomb", ALIAS_BOMB, "spec.yaml:6:25", "aliases"),
    spec_is("20 MB", SPEC + "#" * 20_000_000, "spec.yaml", "larger than"),
    spec_is("empty", "", "spec.yaml:1:1", "empty"),
    spec_is("a list", "- 1\n", "spec.yaml:1:1", "mapping"),
    spec_with("unknown key", "slo:", "sloo:", "spec.yaml:6:5", 'did you mean "slo"?'),
    spec_with("wrong type", "cores: 2", "cores: two", "spec.yaml:10:12", "number"),
    spec_with("duplicate key", "    cores: 2\n", "    cores: 2\n    cores: 4\n", "spec.yaml:11:5", "cores"),
    spec_with("two models of one name", "targets:\n", "  mlp: {source: x.onnx}\ntargets:\n", "spec.yaml:7:3"),
    spec_with(
        "no models", "  mlp:\n    source: models/mlp.onnx\n    slo: {p99_latency_ms: 50}\n", "", "models"
    ),
    spec_with("unquoted release", '"24.10"', "24.10", "spec.yaml:12:13", "quote", '"24.10"'),
    spec_with("no such month", '"24.10"', '"24.13"', "spec.yaml:12:13", "24.13"),
    spec_with("SLO of zero", "p99_latency_ms: 50", "p99_latency_ms: 0", "spec.yaml:6:27", "more than 0"),
    spec_with("negative SLO", "p99_latency_ms: 50", "p99_latency_ms: -5", "spec.yaml:6:27", "more than 0"),
    spec_with("unknown objective", "    slo:", "    objective: throughputt\n    slo:", "spec.yaml:6:16"),
    spec_with("size without meaning", "8GiB", "8 apples", "spec.yaml:11:13", "8GiB"),
]

NAMES = [
    model_named("leaves the folder", "../x"),
    model_named("empty", '""'),
    model_named("spaces", '"a b"'),
    model_named("300 characters", "m" * 300),
    model_named("hidden", ".mlp"),
    model_named("the file of server flags", "server.args"),
    model_named("the manifest", "manifest.json"),
]


def external_data_missing(p: ProjectFolder) -> None:
    write_with_external_data(mlp(), p.path("models/mlp.onnx"))
    p.path("models/weights.bin").unlink()


def external_data_leaves(p: ProjectFolder) -> None:
    path = p.path("models/mlp.onnx")
    write_with_external_data(mlp(), path)
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../../x.bin"))


def outside(p: ProjectFolder) -> Path:
    path = p.folder.parent / "outside.onnx"
    path.write_bytes(mlp().SerializeToString())
    return path


def link_outside(p: ProjectFolder) -> None:
    p.path("models/mlp.onnx").unlink()
    p.path("models/mlp.onnx").symlink_to(outside(p))


def folder_for_model(p: ProjectFolder) -> None:
    p.path("models/mlp.onnx").unlink()
    p.path("models/mlp.onnx").mkdir()


SOURCE_PLACE = "spec.yaml:5:13"


def source_is(name: str, source: str, *says: str, **rest: Any) -> Wrong:
    return spec_with(name, "models/mlp.onnx", source, SOURCE_PLACE, *says, **rest)


MODEL_FILES = [
    source_is("missing model file", "models/no.onnx", "models/no.onnx", "does not exist"),
    Wrong("a folder for a model", (SOURCE_PLACE, "is a folder"), prepare=folder_for_model),
    Wrong("not an ONNX file", (SOURCE_PLACE, "ONNX"), files={"models/mlp.onnx": b"PK\3\4 not this"}),
    Wrong("an empty file", (SOURCE_PLACE, "empty"), files={"models/mlp.onnx": b""}),
    Wrong(
        "truncated ONNX",
        (SOURCE_PLACE,),
        files={"models/mlp.onnx": mlp().SerializeToString()[:-40]},
    ),
    Wrong("external data missing", (SOURCE_PLACE, "weights.bin"), prepare=external_data_missing),
    Wrong("external data outside", (SOURCE_PLACE, "x.bin"), prepare=external_data_leaves),
    spec_with(
        "sha256 mismatch",
        "    slo:",
        f"    sha256: {'ab' * 32}\n    slo:",
        "spec.yaml:6:13",
        "has sha256",
    ),
    source_is("source leaves by ..", "../outside.onnx", "--allow-outside", prepare=outside),
    Wrong("source leaves by a link", (SOURCE_PLACE, "--allow-outside"), prepare=link_outside),
    source_is("remote source", "https://example.com/m.onnx", "remote"),
    source_is("source in a registry", "models:/ocr/1", "remote"),
    spec_with(
        "shapes of no input",
        "    slo:",
        "    shapes: {y: [4]}\n    slo:",
        "spec.yaml:6:17",
        '"y"',
    ),
    spec_with(
        "shapes against the file",
        "    slo:",
        "    shapes: {x: [5]}\n    slo:",
        "spec.yaml:6:18",
        "write 4",
    ),
    spec_with(
        "a batch where there is none",
        "    slo:",
        "    max_batch_size: 4\n    slo:",
        "spec.yaml:6:21",
        "no batch axis",
        files={"models/mlp.onnx": fixed_batch()},
    ),
]

BACKENDS = "      onnxruntime: {accelerators: [none, openvino]}\n"

TARGETS = [
    spec_with(
        "unknown backend", "onnxruntime:", "onnxruntim:", "spec.yaml:14", 'did you mean "onnxruntime"?'
    ),
    spec_with(
        "unknown accelerator", "[none, openvino]", "[opnvino]", "spec.yaml:14", 'did you mean "openvino"?'
    ),
    spec_with(
        "unknown precision", "[none, openvino]", "[none], precisions: [fp61]", "spec.yaml:14", "fp61", "fp16"
    ),
    spec_with("accelerator of a GPU on a CPU", "[none, openvino]", "[tensorrt]", "spec.yaml:14", "tensorrt"),
    spec_with(
        "knob newer than the release",
        "search: {instance_count: [1, 2]}",
        'search: {"session.use_device_allocator_for_initializers": [true]}',
        "spec.yaml:15",
        "25.02",
    ),
    spec_with("unknown knob", "instance_count", "instance_cout", "spec.yaml:15", "instance_count"),
    spec_with("empty range", "[1, 2]", "{min: 5, max: 2}", "spec.yaml:15", "min"),
    spec_with("empty list", "[1, 2]", "[]", "spec.yaml:15"),
    spec_with("value of a knob", "[1, 2]", "[0]", "spec.yaml:15", "instance_count"),
    spec_with(
        "no backend can run the model",
        BACKENDS,
        "      openvino: {}\n",
        "spec.yaml:",
        "mlp",
        "openvino",
        files={"models/mlp.onnx": identity(8)},  # onnx.TensorProto.STRING
    ),
    spec_with(
        "a target named like the index of candidates",
        "  cpu:",
        "  index.json:",
        "spec.yaml:8:3",
        "a file that tritonc writes",
        args=("candidates", "-o", "{folder}/c"),
    ),
    spec_with(
        "a number that no config.pbtxt holds",
        "{instance_count: [1, 2]}",
        f"{{max_queue_delay_microseconds: {10**30}}}",
        "spec.yaml:15:40",
        "at most",
    ),
    Wrong("unknown target", ('no target "gpu"', "cpu"), args=("build", "--target", "gpu")),
    Wrong(
        "unknown target of candidates",
        ('no target "gpu"', "cpu"),
        args=("candidates", "-o", "{folder}/c", "--target", "gpu"),
    ),
    Wrong(
        "unknown model of candidates",
        ('no model "mpl"', 'did you mean "mlp"?'),
        args=("candidates", "-o", "{folder}/c", "--model", "mpl"),
    ),
    spec_with(
        "unknown config field",
        "    slo:",
        "    config: {response_cach: {enable: true}}\n    slo:",
        "spec.yaml:6:",
        "response_cache",
    ),
    Wrong("no spec", ("nothere.yaml",), args=("build", "nothere.yaml")),
    Wrong("a name too long for a file", ("too long",), args=("build", f"{'s' * 300}.yaml")),
]


def locked(change: Callable[[str], str] = lambda text: text, **fields: Any) -> Prepare:
    """Writes the lock of the project as it is, with `fields` of its decision and then its text changed."""

    def prepare(p: ProjectFolder) -> None:
        project = open_project(p.path("spec.yaml"))
        text = dump_lock(lock(project, decision(project, "mlp", "cpu", {"instance_count": 1}, **fields)))
        changed = change(text)
        assert changed != text or fields or change("") == ""
        p.write("spec.lock.yaml", changed)

    return prepare


def then(*steps: Prepare) -> Prepare:
    def prepare(p: ProjectFolder) -> None:
        for step in steps:
            step(p)

    return prepare


def edited(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


def rewrite_spec(old: str, new: str) -> Prepare:
    return lambda p: p.write("spec.yaml", edited(old, new)(p.path("spec.yaml").read_text()))


def rewrite_model(content: Any) -> Prepare:
    return lambda p: p.write("models/mlp.onnx", content)


ACCEPT = "tritonc build --accept-stale-evidence"
LOCK_PLACE = "spec.lock.yaml:"
LOCKS = [
    Wrong(
        "lock of another version",
        ("spec.lock.yaml:", "schema_version is the number 99"),
        prepare=locked(edited("schema_version: 1", "schema_version: 99")),
    ),
    Wrong("lock that is no YAML", (LOCK_PLACE,), prepare=locked(lambda _: "{")),
    Wrong("empty lock", (LOCK_PLACE, "the file is empty"), prepare=locked(lambda _: "\n")),
    Wrong(
        "lock of another spec",
        ("spec.lock.yaml", 'the lock of "other"'),
        prepare=locked(edited("spec: test", "spec: other")),
    ),
    Wrong(
        "other weights",
        (LOCK_PLACE, "weights changed", "tritonc tune", ACCEPT),
        prepare=then(locked(), rewrite_model(mlp(seed=9))),
    ),
    Wrong(
        "another SLO",
        (LOCK_PLACE, "SLO", "tritonc tune", ACCEPT),
        prepare=then(locked(), rewrite_spec("p99_latency_ms: 50", "p99_latency_ms: 20")),
    ),
    Wrong(
        "another machine",
        (LOCK_PLACE, "machine", "tritonc tune", ACCEPT),
        prepare=then(locked(), rewrite_spec("memory: 8GiB", "memory: 4GiB")),
    ),
    Wrong(
        "another signature",
        (LOCK_PLACE, "inputs or outputs of the model file", "tritonc tune"),
        prepare=then(locked(), rewrite_model(conv())),
        args=("build", "--accept-stale-evidence"),
    ),
    Wrong(
        "hand-edited to an illegal value",
        ("spec.lock.yaml:11:9", "instance_count 0", "search:"),
        prepare=locked(edited("instance_count: 1", "instance_count: 0")),
    ),
    Wrong(
        "hand-edited to an illegal type",
        (LOCK_PLACE,),
        prepare=locked(edited("instance_count: 1", "instance_count: {}")),
    ),
    Wrong(
        "hand-edited to an unknown knob",
        (LOCK_PLACE, 'unknown knob "instance_cout"'),
        prepare=locked(edited("instance_count: 1", "instance_cout: 1")),
    ),
    Wrong(
        "hand-edited to a legal value that was not measured",
        (LOCK_PLACE, "not those of candidate"),
        prepare=locked(edited("instance_count: 1", "instance_count: 2")),
    ),
]


def out_is_a_file(p: ProjectFolder) -> None:
    p.write("build", "mine")


def out_holds(place: str) -> Prepare:
    return lambda p: p.write(f"build/{place}", "mine")


OUTPUTS = [
    Wrong("output is a file", ("build: is a file", "-o"), prepare=out_is_a_file),
    Wrong("output of a target is a file", ("build/cpu: is a file", "-o"), prepare=out_holds("cpu")),
    Wrong(
        "output is a link to nothing",
        ("build: is a symbolic link that leads nowhere", "-o"),
        prepare=lambda p: p.path("build").symlink_to("nowhere"),
    ),
    Wrong(
        "output below a file",
        ("spec.yaml/build: Not a directory); name another folder with -o",),
        args=("build", "-o", "{folder}/spec.yaml/build"),
    ),
    Wrong("output where none can be", ("/proc/x: No such file", "-o"), args=("build", "-o", "/proc/x")),
    Wrong(
        "candidates below a file",
        ("spec.yaml: File exists", "-o"),
        args=("candidates", "-o", "{folder}/spec.yaml/c", "--limit", "1"),
    ),
    Wrong(
        "foreign file beside the targets", ("did not write: mine.txt", "-o"), prepare=out_holds("mine.txt")
    ),
    Wrong("foreign file in a target", ("did not write: mine.txt",), prepare=out_holds("cpu/mine.txt")),
    Wrong("foreign file in a model", ("did not write: mlp/1/x",), prepare=out_holds("cpu/mlp/1/x")),
    Wrong("output is the project", ("did not write: models, spec.yaml",), args=("build", "-o", "{folder}")),
    Wrong(
        "candidates into the project",
        ("did not write",),
        args=("candidates", "-o", "{folder}", "--limit", "1"),
    ),
    Wrong("candidates into a file", ("is a file",), args=("candidates", "-o", "{folder}/spec.yaml")),
    Wrong("candidates without a folder", ("-o",), args=("candidates",)),
    Wrong("no candidates", ("--limit",), args=("candidates", "-o", "{folder}/c", "--limit", "0")),
    Wrong("unknown way to place weights", ("--weights", "copy"), args=("build", "--weights", "move")),
]

CASES = [*YAML, *NAMES, *MODEL_FILES, *TARGETS, *LOCKS, *OUTPUTS]


def npz(**arrays: np.ndarray) -> Prepare:
    return lambda p: np.savez(p.path("x.npz"), **arrays)  # type: ignore[arg-type]


DATA = ("    slo:", "    data: {x: {file: x.npz}}\n    slo:")
TUNE = ("tune", "--trials", "1")
TUNE_CASES = [
    spec_with(
        "open dimension without shapes",
        "cores: 2",
        "cores: 1",
        '"image"',
        "open",
        "shapes:",
        files={"models/mlp.onnx": conv()},
        args=TUNE,
    ),
    spec_with(
        "open dimension of one input of two",
        "    slo:",
        "    shapes: {scale: [1]}\n    slo:",
        '"ids"',
        "shapes:",
        files={"models/mlp.onnx": two_inputs()},
        args=TUNE,
    ),
    spec_with("data file missing", *DATA, "spec.yaml:6", "x.npz", args=TUNE),
    spec_with(
        "data of another dtype",
        *DATA,
        "spec.yaml:6",
        "int64",
        prepare=npz(x=np.zeros((1, 4), np.int64)),
        args=TUNE,
    ),
    spec_with(
        "data of another shape",
        *DATA,
        "spec.yaml:6",
        "5",
        prepare=npz(x=np.zeros((1, 5), np.float32)),
        args=TUNE,
    ),
    spec_with("data file without the input", *DATA, "spec.yaml:6", prepare=npz(z=np.zeros(4)), args=TUNE),
    spec_with(
        "data for no input", "    slo:", "    data: {z: {constant: 1}}\n    slo:", "spec.yaml:6", args=TUNE
    ),
]

TUNE_CASES += [
    Wrong("unknown target", ('"gpu"', "cpu"), args=(*TUNE, "--target", "gpu")),
    Wrong("unknown model", ('"mpl"', 'did you mean "mlp"?'), args=(*TUNE, "--model", "mpl")),
    Wrong("unknown engine", ('"embeded"', "embedded"), args=(*TUNE, "--engine", "embeded")),
    Wrong("no duration", ("--timeout", "15m"), args=(*TUNE, "--timeout", "soon")),
    Wrong("no trials", ("--trials",), args=("tune", "--trials", "0")),
    Wrong(
        "lock of another version",
        ("spec.lock.yaml:", "schema_version is the number 99"),
        prepare=locked(edited("schema_version: 1", "schema_version: 99")),
        args=TUNE,
    ),
    Wrong(
        "lock of another spec",
        ("spec.lock.yaml", 'the lock of "other"', "tritonc tune --fresh"),
        prepare=locked(edited("spec: test", "spec: other")),
        args=TUNE,
    ),
    Wrong("output folder of others", ("did not write: mine.txt",), prepare=out_holds("mine.txt"), args=TUNE),
    Wrong("output is a file", ("build: is a file",), prepare=out_is_a_file, args=TUNE),
]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def prepared(project: Any, case: Wrong) -> ProjectFolder:
    text = SPEC.replace(*case.change) if case.change[0] else SPEC
    assert case.change[0] in SPEC
    p: ProjectFolder = project({"spec.yaml": text, "models/mlp.onnx": mlp(), **case.files})
    case.prepare(p)
    return p


@pytest.mark.parametrize("case", [*CASES, *TUNE_CASES], ids=lambda case: f"{case.args[0]}: {case.name}")
def test_wrong_input(project: Any, case: Wrong) -> None:
    p = prepared(project, case)
    before = snapshot(p.folder.parent)
    command, *rest = [arg.format(folder=p.folder) for arg in case.args]
    spec = [] if rest and rest[0].endswith(".yaml") else [p.path("spec.yaml")]
    result = p.run(command, *spec, *rest, "--output", "json")
    said = result.stderr.replace(f"{p.folder}/", "")
    assert result.exit_code == 2, f"{said}{result.stdout}"
    assert "Traceback" not in said
    assert "error: " in said
    for text in case.says:
        assert text in said
    problems = json.loads(result.stdout)["error"]["problems"]
    assert problems
    for problem in problems:
        # Where what is wrong already says what would be right, there is no hint.
        assert problem["hint"] or re.search(r"should be|needs", problem["what"]), problem
    assert snapshot(p.folder.parent) == before


def test_every_mistake_of_a_spec_is_reported_at_once(project: Any) -> None:
    text = SPEC.replace("cores: 2", "cores: two").replace("slo:", "sloo:").replace('"24.10"', "24.10")
    p: ProjectFolder = project({"spec.yaml": text, "models/mlp.onnx": mlp()})
    lines = [line for line in p.run("build").stderr.splitlines() if line.startswith("error: ")]
    places = [line.split("spec.yaml:")[1].split(":")[0] for line in lines]
    assert places == ["6", "10", "12"]


def run_without_privileges(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """`tritonc ARGS` as somebody who may not write everywhere."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0 and not setpriv:
        pytest.skip("root may write everywhere, and there is no setpriv to give that up")
    prefix = [str(setpriv), "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    command = [*prefix, sys.executable, "-m", "tritonc", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_an_output_folder_that_is_not_writable(project: Any) -> None:
    p: ProjectFolder = project({"spec.yaml": SPEC, "models/mlp.onnx": mlp()})
    closed = p.path("closed")
    closed.mkdir(mode=0o555)
    done = run_without_privileges("build", p.path("spec.yaml"), "-o", closed / "build")
    assert done.returncode == 2, done.stderr
    assert "is not writable" in done.stderr
    assert "-o" in done.stderr
    assert list(closed.iterdir()) == []


def test_a_folder_that_the_lock_cannot_be_written_to_is_found_before_anything_is_measured(
    project: Any,
) -> None:
    p: ProjectFolder = project({"spec.yaml": SPEC, "models/mlp.onnx": mlp()})
    state = p.path(".tritonc")
    state.mkdir()
    p.folder.chmod(0o555)
    done = run_without_privileges("tune", p.path("spec.yaml"))
    assert done.returncode == 2, done.stderr
    lock = p.path("spec.lock.yaml")
    assert f"cannot write {lock}: {p.folder} is not writable; make it writable" in done.stderr
    assert list(state.iterdir()) == []


@pytest.mark.triton
def test_studies_that_are_read_only_are_to_be_made_writable(project: Any) -> None:
    p: ProjectFolder = project({"spec.yaml": SPEC, "models/mlp.onnx": mlp()})
    storage = p.path(".tritonc/optuna.db")
    open_study(storage, "another one")
    storage.chmod(0o444)
    done = run_without_privileges("tune", p.path("spec.yaml"))
    assert done.returncode == 3, done.stderr
    assert "attempt to write a readonly database; make it and its folder writable" in done.stderr
