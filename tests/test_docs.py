"""The documents say what is true: commands, links, examples and the generated reference."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from tritonc.cli import COMMANDS
from tritonc.compiler.backends import CATALOGUE
from tritonc.compiler.project import open_project
from tritonc.compiler.repository import compile_repository
from tritonc.schemas.lock_file import read_lock
from tritonc.schemas.spec_file import read_spec

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("changelog.d/*.md"),
    ]
)
EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/spec.yaml"))
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def headings(text: str) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_appears_in_the_readme(command: str) -> None:
    assert f"`tritonc {command}" in README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_and_headings_resolve(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{document.name} links to {link}"
        if anchor and path.suffix == ".md":
            assert anchor in headings(path.read_text(encoding="utf-8")), f"{document.name} links to {link}"


def test_pages_that_code_cites_exist() -> None:
    sources = [
        path
        for folder in ("compiler", "schemas", "tuner", "benchmarks")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    cited = {page for path in sources for page in re.findall(r"\b\w+/\w+\.md", path.read_text("utf-8"))}
    assert "docs/search.md" in cited
    foreign = {"user_guide/architecture.md", "user_guide/model_configuration.md"}  # of Triton's own
    assert [page for page in sorted(cited - foreign) if not (ROOT / page).exists()] == []


@pytest.mark.parametrize(("program", "page"), [("cli_reference.py", "cli.md"), ("knobs.py", "knobs.md")])
def test_a_generated_page_is_current(program: str, page: str) -> None:
    reference = runpy.run_path(str(ROOT / "docs" / program))["reference"]
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == reference(), "run: make docs"
    assert f"docs/{page})" in README


def test_the_page_of_knobs_has_every_knob_once() -> None:
    page = (ROOT / "docs" / "knobs.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)) == sorted(CATALOGUE)


@pytest.mark.parametrize("block", blocks(README, "yaml"), ids=lambda block: block.splitlines()[0][:40])
def test_yaml_in_the_readme_is_a_spec_that_loads(block: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(block, encoding="utf-8")
    assert read_spec(path).spec.models


@pytest.mark.parametrize("target", re.findall(r"`make ([a-z]+)", README))
def test_make_targets_in_the_readme_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_loads(name: str) -> None:
    path = ROOT / "examples" / name / "spec.yaml"
    assert read_spec(path).spec.name == name


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_compiles(name: str) -> None:
    path = ROOT / "examples" / name / "spec.yaml"
    if not (path.parent / "models").is_dir():
        pytest.skip("its models are not fetched (make models)")
    project = open_project(path)
    for target in project.spec_file.spec.targets:
        repository = compile_repository(project, read_lock(project.spec_file.lock_path), target)
        assert any(str(name).endswith("config.pbtxt") for name in repository.files)


def test_every_changelog_fragment_has_a_known_type() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    types = {entry["directory"] for entry in pyproject["tool"]["towncrier"]["type"]}
    for path in ROOT.glob("changelog.d/*"):
        if path.name != "README.md":
            assert re.fullmatch(rf"\d+\.({'|'.join(types)})(\.\d+)?\.md", path.name), path.name


def test_no_registry_and_no_path_of_one_machine_is_committed() -> None:
    """Whatever index pip is configured for is used, and nothing depends on where the project lies."""
    forbidden = re.compile(r"https?://|index-url|/root/|/work/")
    for name in ("Makefile", ".ci/run", "requirements.txt", "pyproject.toml", "examples/fetch_models.py"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("--no-emit-index-url", "")
        assert not forbidden.search(text), name
