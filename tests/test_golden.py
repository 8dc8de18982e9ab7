"""Specs and the repositories they compile to, compared file by file.

A case is a folder of `tests/golden` with `spec.yaml`, perhaps `spec.lock.yaml`, and `expected/`: what `build`
writes, less weights and manifest. A source `models/NAME.onnx` is made by the function NAME of `tests.models`.
`pytest tests/test_golden.py --update-golden` rewrites `expected/` and the digests in the lock.
"""

from __future__ import annotations

import difflib
import re
import shutil
from pathlib import Path

import pytest

from tests import models
from tritonc.compiler.build import compile_targets
from tritonc.compiler.pbtxt import parse_pbtxt, print_pbtxt
from tritonc.compiler.project import Project, open_project
from tritonc.compiler.repository import Weights
from tritonc.compiler.stale import digests
from tritonc.schemas.lock import Lock
from tritonc.schemas.lock_file import read_lock, write_lock

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/spec.yaml"))
SOURCE = re.compile(r"models/(\w+)\.onnx")


def opened(case: str, folder: Path) -> Project:
    """The case's project, copied to `folder` with its models."""
    shutil.copytree(GOLDEN / case, folder, ignore=shutil.ignore_patterns("expected"))
    (folder / "models").mkdir()
    for name in set(SOURCE.findall((folder / "spec.yaml").read_text())):
        (folder / f"models/{name}.onnx").write_bytes(getattr(models, name)().SerializeToString())
    return open_project(folder / "spec.yaml")


def compiled(project: Project, lock: Lock | None) -> dict[str, str]:
    """The text files that `build` would write, but the manifests, by path."""
    return {
        f"{target}/{path}": content.decode()
        for target, repository in compile_targets(project, lock, project.spec.targets).items()
        for path, content in repository.files.items()
        if not isinstance(content, Weights) and path.name != "manifest.json"
    }


def with_current_digests(project: Project, lock: Lock) -> Lock:
    for decision in lock.decisions:
        now = digests(project, decision.model, decision.target)
        lock = lock.with_decision(decision.model_copy(update={"digests": now}))
    return lock


def expected(case: str) -> dict[str, str]:
    folder = GOLDEN / case / "expected"
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def update(case: str, files: dict[str, str]) -> None:
    shutil.rmtree(GOLDEN / case / "expected", ignore_errors=True)
    for path, text in files.items():
        place = GOLDEN / case / "expected" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_a_spec_compiles_to_what_was_reviewed(
    case: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    project = opened(case, tmp_path / case)
    lock = read_lock(project.spec_file.lock_path)
    if request.config.getoption("--update-golden"):
        if lock:
            lock = with_current_digests(project, lock)
            write_lock(GOLDEN / case / "spec.lock.yaml", lock)
        update(case, compiled(project, lock))
    files, wanted = compiled(project, lock), expected(case)
    assert files.keys() == wanted.keys()
    diff = "".join(
        line
        for path in files
        for line in difflib.unified_diff(
            wanted[path].splitlines(True), files[path].splitlines(True), f"expected/{path}", path
        )
    )
    assert not diff, f"\n{diff}"


@pytest.mark.parametrize("case", CASES)
def test_a_reviewed_config_reads_back_to_the_same_text(case: str) -> None:
    configs = [text for path, text in expected(case).items() if path.endswith(".pbtxt")]
    assert configs
    for text in configs:
        header = [line.removeprefix("# ") for line in text.split("\n\n")[0].splitlines()]
        assert print_pbtxt(parse_pbtxt(text), header) == text


@pytest.mark.parametrize("case", CASES)
def test_where_it_was_built_does_not_show(case: str, tmp_path: Path) -> None:
    for text in expected(case).values():
        assert not re.search(r"(?m)(^|[\s\"'=])/(?!models\b)", text)


def test_there_are_cases() -> None:
    assert len(CASES) >= 8
