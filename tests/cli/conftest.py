"""Fixtures of every test of the command line."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials go to the project's own MLflow store, wherever the person's go."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
