"""Fixtures of every test of the command line."""

from __future__ import annotations

import math

import pytest

from tritonc.tuner import load_search
from tritonc.tuner.reference import ReferenceWatch


@pytest.fixture(autouse=True)
def own_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials go to the project's own MLflow store, wherever the person's go."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `TEST_SAME_MACHINE` of announced.py has it for tunes in this process, however busy it is."""
    monkeypatch.setattr(ReferenceWatch, "change", lambda _watch, _seen: None)
    monkeypatch.setattr(load_search, "PRECISION", math.inf)
