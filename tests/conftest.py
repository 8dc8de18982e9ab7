"""Fixtures that every test may use."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from hypothesis import settings

from tests import brief as briefly

# Hypothesis has a profile of its own in CI (examples that repeat); on a busy machine time says nothing.
settings.register_profile("tritonc", parent=settings(), deadline=None)
settings.load_profile("tritonc")

# A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

COMMANDS_OF_A_SPEC = ("build", "candidates", "tune", "diff", "report")

Content = str | bytes | onnx.ModelProto


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden/*/expected instead of comparing"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Coverage is about the compiler and the schemas; tracing what tunes takes minutes, and tells little."""
    tuning = Path(__file__).parent / "tuner"
    for item in items:
        if tuning in item.path.parents or item.get_closest_marker("triton"):
            item.add_marker("no_cover")


@dataclass(frozen=True)
class ProjectFolder:
    """A folder with a spec and its models, and the real command run on it in this process."""

    folder: Path

    def path(self, relative: str) -> Path:
        return self.folder / relative

    def write(self, relative: str, content: Content) -> Path:
        """Creates or replaces one file, with the folders it needs."""
        path = self.path(relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return path

    def run(self, *args: str | Path, input: str | None = None) -> Result:  # noqa: A002  (CliRunner's own name)
        """Runs `tritonc ARGS`; `spec.yaml` of this folder is SPEC where none is given.

        There is no chdir: give every other path as `p.path("…")`. An exception that the command does not
        turn into an exit code is a bug, and is raised here.
        """
        from tritonc.cli import cli

        result = CliRunner().invoke(cli, self._with_spec([str(arg) for arg in args]), input=input)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def _with_spec(self, args: list[str]) -> list[str]:
        command = next((place for place, arg in enumerate(args) if arg in COMMANDS_OF_A_SPEC), None)
        if command is None or any(arg.endswith((".yaml", ".yml")) or arg == "--help" for arg in args):
            return args
        return [*args[: command + 1], str(self.path("spec.yaml")), *args[command + 1 :]]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured in this process is so briefly, as by tests/cli/announced.py."""
    for owner, name, value in briefly.brief():
        monkeypatch.setattr(owner, name, value)


@pytest.fixture
def same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured in this process does not depend on what others do to the machine meanwhile."""
    for owner, name, value in briefly.same_machine():
        monkeypatch.setattr(owner, name, value)


@pytest.fixture
def project(tmp_path: Path) -> Callable[[Mapping[str, Content]], ProjectFolder]:
    """`project({"spec.yaml": text, "models/mlp.onnx": mlp()})` makes the folder of a project."""

    def make(files: Mapping[str, Content]) -> ProjectFolder:
        folder = ProjectFolder(tmp_path / "project")
        folder.folder.mkdir(exist_ok=True)
        for relative, content in files.items():
            folder.write(relative, content)
        return folder

    return make
