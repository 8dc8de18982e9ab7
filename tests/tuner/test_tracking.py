"""What people find in MLflow, on a real SQLite store; and what happens where there is none."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow.tracking import MlflowClient

from tests.tuner.spaces import capacity, measurement
from tritonc.schemas.measurement import ClosedLoad, Failure, OpenLoad
from tritonc.tuner.tracking import Tracking, TrialRun

if TYPE_CHECKING:
    from mlflow.entities import Run

CONFIG = 'name: "mlp"\n'


def trial(candidate: str = "0123456789", **fields) -> TrialRun:
    values = {
        "name": f"trial {candidate}",
        "candidate": candidate,
        "knobs": {"instance_count": 2, "dynamic_batching": True, "preferred_batch_size": (4, 8)},
        "outcome": capacity(120.0, violation=0.25),
        "config": CONFIG,
    }
    return TrialRun(**(values | fields))


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def tracking(tmp_path: Path, warnings: list[str]) -> Tracking:
    return Tracking(tmp_path / "state", uri=None, experiment="ocr", warn=warnings.append)


def runs_of(tracking: Tracking) -> tuple[MlflowClient, list]:
    client = MlflowClient(tracking_uri=tracking.uri)
    experiment = client.get_experiment_by_name("ocr")
    return client, list(client.search_runs([experiment.experiment_id], order_by=["start_time"]))


def history(client: MlflowClient, run: Run, metric: str) -> list[tuple[int, float]]:
    """Every value of a metric with its step."""
    return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, metric)]


def test_a_trial_is_a_nested_run_with_knobs_numbers_and_files(tracking: Tracking, warnings: list[str]):
    tracking.open_study("study-1", "mlp on cpu", {"tritonc.engine": "embedded"})
    assert tracking.logged == frozenset()
    tracking.log_trial(trial(tags={"tritonc.baseline": "true"}))
    tracking.close_study("FINISHED", {"tritonc.chosen": "0123456789"})
    client, (parent, child) = runs_of(tracking)
    assert warnings == []
    assert tracking.parent_run == parent.info.run_id == child.data.tags["mlflow.parentRunId"]
    assert parent.info.status == child.info.status == "FINISHED"
    assert parent.data.tags["tritonc.engine"] == "embedded"
    assert child.data.tags["tritonc.baseline"] == "true"
    assert child.data.params == {
        "instance_count": "2",
        "dynamic_batching": "True",
        "preferred_batch_size": "(4, 8)",
    }
    assert child.data.metrics["throughput_inferences_per_s"] == 120.0
    assert child.data.metrics["p99_latency_ms"] == 25.0
    assert child.data.metrics["violation_of_p99_latency_ms"] == 0.25
    assert history(client, child, "step_throughput_inferences_per_s") == [(1, 60.0), (2, 120.0)]
    assert history(client, child, "step_concurrency") == [(1, 4.0), (2, 8.0)]
    files = {item.path for item in client.list_artifacts(child.info.run_id)}
    assert files == {"config.pbtxt", "load_steps.json"}


def test_every_rate_is_a_load_step_of_its_own_and_the_step_of_one_client_is_none(tracking: Tracking):
    alone = measurement(5.0).model_copy(update={"load": ClosedLoad(concurrency=1)})
    rates = [measurement(rate).model_copy(update={"load": OpenLoad(rate=rate)}) for rate in (0.8, 1.2, 20.0)]
    found = replace(capacity(20.0), measurement=rates[-1], steps=(alone, *rates))
    tracking.open_study("study-1", "mlp on cpu", {})
    tracking.log_trial(trial(outcome=found))
    client, (_, child) = runs_of(tracking)
    assert history(client, child, "step_rate_requests_per_s") == [(1, 0.8), (2, 1.2), (3, 20.0)]
    assert history(client, child, "step_throughput_inferences_per_s") == [(1, 0.8), (2, 1.2), (3, 20.0)]
    assert "step_concurrency" not in child.data.metrics
    listed = client.download_artifacts(child.info.run_id, "load_steps.json")
    assert len(json.loads(Path(listed).read_text())["load_steps"]) == 4


def test_a_failed_trial_carries_its_reason_and_the_server_s_last_words(tracking: Tracking):
    tracking.open_study("study-1", "mlp on cpu", {})
    failure = Failure(reason="server_crashed", detail="signal 9")
    tracking.log_trial(trial(outcome=failure, server_log="Signal (9) received\n"))
    client, (_, child) = runs_of(tracking)
    assert child.info.status == "FAILED"
    assert child.data.tags["tritonc.failure"] == "server_crashed"
    log = client.download_artifacts(child.info.run_id, "server.log")
    assert Path(log).read_text() == "Signal (9) received\n"


def test_a_resumed_study_continues_its_parent_and_knows_what_is_logged(tracking: Tracking, tmp_path: Path):
    tracking.open_study("study-1", "mlp on cpu", {})
    tracking.log_trial(trial("aaaaaaaaaa"))
    tracking.log_trial(trial("bbbbbbbbbb", kind="confirmation"))
    tracking.close_study("KILLED")
    again = Tracking(tmp_path / "state", uri=None, experiment="ocr", warn=pytest.fail)
    again.open_study("study-1", "mlp on cpu", {})
    assert again.logged == {("aaaaaaaaaa", 0)}
    assert again.parent_run == tracking.parent_run
    again.open_study("study-2", "mlp on gpu", {})
    assert again.logged == frozenset()
    assert again.parent_run != tracking.parent_run


def test_a_server_that_cannot_be_reached_is_said_once_and_stops_nothing(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        tracking = Tracking(tmp_path, uri=uri, experiment="ocr", warn=warnings.append)
        tracking.open_study("study-1", "mlp on cpu", {})
        assert warnings == []
        tracking.settle()
        assert len(warnings) == 1
        assert tracking.logged == frozenset()
        tracking.log_trial(trial())
        tracking.close_study("FINISHED")
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: MLflow at {uri} does not work (")
    assert tracking.parent_run is None
    assert not tracking.is_on


def test_credentials_of_the_server_are_not_shown(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        tracking = Tracking(tmp_path, uri=f"http://me:secret@{place}", experiment="ocr", warn=warnings.append)
        assert not tracking.is_on
    assert tracking.shown_uri == f"http://***@{place}"
    assert f"MLflow at http://***@{place} does not work" in warnings[0]
    assert "secret" not in warnings[0]


def test_what_went_wrong_is_the_database_s_own_line(tracking: Tracking):
    err = Exception(
        "(raised as a result of autoflush; advice)\n(sqlite3.OperationalError) disk is full\n(more)"
    )
    assert tracking._in_one_line(err) == "(sqlite3.OperationalError) disk is full"
    assert tracking._in_one_line(ValueError()) == "ValueError"


def test_a_store_that_breaks_midway_is_said_once_and_stops_nothing(
    tracking: Tracking, warnings: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    tracking.open_study("study-1", "mlp on cpu", {})
    tracking.settle()
    (tmp_path / "state" / "mlflow.db").write_bytes(b"no longer a database" * 1000)
    tracking.log_trial(trial())
    tracking.log_trial(trial())
    assert len(warnings) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_server_that_does_not_answer_is_not_waited_for_long(tmp_path: Path, warnings: list[str]):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracking = Tracking(tmp_path, uri=uri, experiment="ocr", warn=warnings.append)
        tracking.open_study("study-1", "mlp on cpu", {})
        tracking.settle(0.1)
        assert len(warnings) == 1
        assert "does not work (no answer within 0.1 s)" in warnings[0]
        tracking.log_trial(trial())
        tracking.close_study("KILLED", patience_s=0.1)
        assert not tracking.is_on
    assert len(warnings) == 1


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process may be larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 100_000, 400_000])
def test_a_database_that_could_not_be_made_is_made_when_there_is_room(
    tracking: Tracking, warnings: list[str], tmp_path: Path, limit: int
):
    with full_disk(limit):
        tracking.open_study("study-1", "mlp on cpu", {})
        tracking.settle()
        assert len(warnings) == 1
        assert tracking.place == ""
    again = Tracking(tmp_path / "state", uri=None, experiment="ocr", warn=pytest.fail)
    again.open_study("study-1", "mlp on cpu", {})
    again.log_trial(trial())
    assert again.is_on
    assert again.place
    assert [path.name for path in (tmp_path / "state").glob("mlflow.db*")] == ["mlflow.db"]


def test_a_new_database_is_as_mlflow_makes_it_and_knows_no_other_project(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is a copy of an empty one in the cache; where there is no place for that one MLflow makes it."""
    monkeypatch.setenv("TRITONC_CACHE_DIR", str(tmp_path / "cache"))
    tracking.open_study("study-1", "mlp on cpu", {})
    assert tracking.is_on
    assert len(list((tmp_path / "cache").glob("mlflow-*.db"))) == 1
    monkeypatch.setenv("TRITONC_CACHE_DIR", str(tmp_path / "state" / "mlflow.db"))
    other = Tracking(tmp_path / "other", uri=None, experiment="ocr", warn=pytest.fail)
    other.open_study("study-1", "mlp on cpu", {})
    assert other.is_on
    schemas = []
    for folder in ("state", "other"):
        with contextlib.closing(sqlite3.connect(tmp_path / folder / "mlflow.db")) as connection:
            # Alembic writes the constraints of a table in whichever order.
            made = connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL").fetchall()
            schemas.append(sorted(sorted(re.split(r",?\s*\n\s*", sql)) for (sql,) in made))
            places = connection.execute("SELECT artifact_location FROM experiments").fetchall()
        assert all(place.startswith((tmp_path / folder).as_uri()) for (place,) in places)
    assert schemas[0] == schemas[1]


def test_a_trial_that_was_half_logged_is_logged_again(tracking: Tracking, tmp_path: Path):
    tracking.open_study("study-1", "mlp on cpu", {})
    tracking.log_trial(trial("aaaaaaaaaa"))
    client, (_, run) = runs_of(tracking)
    client.set_terminated(run.info.run_id, "RUNNING")
    again = Tracking(tmp_path / "state", uri=None, experiment="ocr", warn=pytest.fail)
    again.open_study("study-1", "mlp on cpu", {})
    assert again.logged == frozenset()
    assert client.get_run(run.info.run_id).info.status == "KILLED"
