from __future__ import annotations

from importlib import metadata

import pytest

from tritonc.schemas.errors import MissingExtraError
from tritonc.tuner import extras


def test_versions_are_those_of_what_is_installed() -> None:
    assert extras.installed_versions(["optuna", "no-such-package"]) == {"optuna": metadata.version("optuna")}


def test_what_tune_needs_is_there() -> None:
    extras.require_tune_extra()


def test_everything_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "TUNE_PACKAGES", ("optuna", "x-1", "x-2"))
    with pytest.raises(MissingExtraError) as caught:
        extras.require_tune_extra()
    assert str(caught.value) == "x-1, x-2 are not installed; run: pip install 'tritonc[tune]'"
