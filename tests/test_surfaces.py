"""The recorded surfaces: complete, and the same after being written and read."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tritonc.schemas.measurement import Failure, Measurement

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TABLES = sorted((BENCHMARKS / "surfaces").glob("*.csv"))


@pytest.fixture(scope="module")
def surfaces() -> ModuleType:
    spec = importlib.util.spec_from_file_location("surfaces", BENCHMARKS / "surfaces.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["surfaces"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_there_are_three_models():
    assert len(TABLES) >= 3


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_candidate_was_measured_under_every_load(surfaces: ModuleType, path: Path):
    surface = surfaces.read_surface(path)
    assert len(surface.candidates) >= 96
    assert surface.baseline in surface.candidates
    for candidate in surface.candidates:
        outcomes = [surface.outcomes[candidate, load] for load in surface.loads(candidate)]
        assert len(outcomes) == 7
        assert all(isinstance(each, Failure) for each in outcomes) or all(
            isinstance(each, Measurement) and each.throughput.value > 0 for each in outcomes
        )


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_that_is_written_is_the_one_that_was_read(surfaces: ModuleType, path: Path, tmp_path: Path):
    notes = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    surfaces.write_surface(tmp_path / path.name, surfaces.read_surface(path), notes[:-1])
    assert (tmp_path / path.name).read_text() == path.read_text()
