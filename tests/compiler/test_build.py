"""Compiling and writing every target of a spec: properties that hold whatever the spec says."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import mlp
from tritonc.compiler.build import check_targets, compile_targets, write_targets
from tritonc.compiler.project import open_project

TARGETS = {
    "cpu": "{device: cpu, cores: 4, backends: {onnxruntime: {accelerators: [none, openvino]}}}",
    "native": "{device: cpu, memory: 8GiB, backends: {openvino: {}}}",
    "gpu": "{device: gpu, gpu: {name: A10, memory: 24GiB}, backends: {onnxruntime: {accelerators: [cuda]}}}",
}
MODELS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True), st.integers(0, 64), min_size=1, max_size=4
)


def spec(models: dict[str, int], targets: list[str]) -> str:
    lines = ["apiVersion: tritonc/v1", "name: any", "models:"]
    lines += [f'  "{name}": {{source: mlp.onnx, max_batch_size: {size}}}' for name, size in models.items()]
    return "\n".join([*lines, "targets:", *(f"  {name}: {TARGETS[name]}" for name in targets), ""])


def built(folder: Path, text: str) -> dict[str, bytes]:
    """Every file that a build in a project of its own writes, by path."""
    folder.mkdir()
    (folder / "spec.yaml").write_text(text)
    (folder / "mlp.onnx").write_bytes(mlp().SerializeToString())
    project = open_project(folder / "spec.yaml")
    repositories = compile_targets(project, None, project.spec.targets)
    out = folder / "build"
    write_targets(repositories, project.spec.name, out)
    assert check_targets(repositories, out) == {}
    assert write_targets(repositories, project.spec.name, out) == {}
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@settings(max_examples=25, deadline=None)
@given(MODELS, st.lists(st.sampled_from(sorted(TARGETS)), min_size=1, unique=True))
def test_two_builds_are_the_same_bytes_and_a_rebuild_has_nothing_to_do(
    models: dict[str, int], targets: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = spec(models, targets)
        one, other = (built(Path(folder) / name, text) for name in ("one", "other"))
        assert one == other
        assert len(one) == len(targets) * (2 + 2 * len(models))
