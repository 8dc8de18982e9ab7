"""`tritonc doctor` on this machine, and its verdicts on others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tritonc.cli import cli
from tritonc.tuner.doctor import Check, Report, examine, onnxruntime_check, redacted


def test_prints_one_line_a_check_and_what_can_be_measured() -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code in (0, 3)
    for name in ("Python", "libpython", "embedded engine", "ONNX Runtime", "GPU", "/dev/shm", "MLflow"):
        assert name in result.stdout
    assert "build    every target" in result.stdout
    assert "measure  " in result.stdout


def test_the_exit_code_says_whether_tune_can_measure() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--output", "json"])
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert result.exit_code == (0 if document["can_measure"] else 3)
    assert document["can_build"] is True
    assert {check["state"] for check in document["checks"]} <= {"ok", "note", "problem"}


def test_every_problem_says_what_to_do() -> None:
    for check in examine(Path.cwd(), {}).checks:
        assert check.found
        assert check.state == "ok" or check.remedy


def test_the_local_engine_is_where_the_environment_says(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "my-tritonserver"
    program.parent.mkdir()
    program.touch(mode=0o755)
    environ = {"TRITONC_TRITONSERVER": str(program)}

    def found() -> Check:
        return next(check for check in examine(tmp_path, environ).checks if check.name == "local engine")

    assert found().state == "note"
    assert "has no backends" in found().found
    assert "in TRITONC_TRITONSERVER_BACKENDS" in found().remedy
    (tmp_path / "backends").mkdir()
    assert (found().state, found().found) == ("ok", str(program))


def test_two_onnxruntime_packages_are_a_problem() -> None:
    check = onnxruntime_check({"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}, ())
    assert check.state == "problem"
    assert "pip uninstall onnxruntime onnxruntime-gpu, then install one" in check.remedy


def test_no_onnxruntime_names_the_extra() -> None:
    assert "tritonc[onnxruntime-openvino]" in onnxruntime_check({}, ()).remedy


def test_an_onnxruntime_that_does_not_import_is_a_problem() -> None:
    assert onnxruntime_check({"onnxruntime": "1.31"}, ()).state == "problem"


def test_providers_are_named_as_the_spec_s_reader_knows_them() -> None:
    check = onnxruntime_check({"onnxruntime": "1.31"}, ("CPUExecutionProvider",))
    assert (check.state, check.found) == ("ok", "onnxruntime 1.31 (CPU)")


def test_a_problem_means_nothing_can_be_measured() -> None:
    cpu = {"cpu": {"onnxruntime": ("none",)}}
    assert Report((Check("a", "note", "x", "y"),), cpu).can_measure
    assert not Report((Check("a", "problem", "x", "y"),), cpu).can_measure
    assert not Report((), {}).can_measure


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@host:5000/x", "https://***@host:5000/x"),
        ("https://token@host", "https://***@host"),
        ("postgresql://u:p%40ss@host/db?password=x", "postgresql://***@host/db?***"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("https://[broken", "set, but no URI"),
    ],
)
def test_credentials_are_never_shown(uri: str, shown: str) -> None:
    assert redacted(uri) == shown
    tracking = next(
        check for check in examine(Path.cwd(), {"MLFLOW_TRACKING_URI": uri}).checks if check.name == "MLflow"
    )
    assert tracking.found == f"MLFLOW_TRACKING_URI={shown}"
