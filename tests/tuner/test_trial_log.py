"""Trials of a study in a real MLflow store."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.models import mlp
from tests.tuner.spaces import capacity
from tests.tuner.test_stand import SPEC
from tritonc.compiler.project import Project, open_project
from tritonc.compiler.space import space_for
from tritonc.tuner.engines import engine_named
from tritonc.tuner.optuna_search import OptunaSearch
from tritonc.tuner.stand import Stand
from tritonc.tuner.tracking import Tracking
from tritonc.tuner.trial_log import TrialLog


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "mlp.onnx").write_bytes(mlp().SerializeToString())
    return open_project(tmp_path / "spec.yaml")


def logged(tracking: Tracking) -> list[float]:
    """The objectives of all trials, in the order of logging."""
    client = MlflowClient(tracking_uri=tracking.uri)
    experiment = client.get_experiment_by_name("test")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [run.data.metrics["objective"] for run in runs if "objective" in run.data.metrics]


def test_a_trial_that_was_measured_again_while_mlflow_was_away_is_logged_by_the_next_run(
    project: Project, tmp_path: Path
):
    space = space_for(project, "mlp", "cpu")
    stand = Stand(project, engine_named("embedded"), tmp_path, cores=(), on_start=lambda _: None)

    def opened() -> tuple[OptunaSearch, Tracking, TrialLog]:
        search = OptunaSearch(space, storage=tmp_path / "optuna.db")
        tracking = Tracking(tmp_path / "state", uri=None, experiment="test", warn=pytest.fail)
        log = TrialLog(project, tracking, search, stand)
        log.open({})
        return search, tracking, log

    search, tracking, log = opened()
    candidate = search.ask()
    log.trial(search.tell(candidate, capacity(100.0), 1.0))
    tracking.close_study("FINISHED")
    assert logged(tracking) == [100.0]
    search.again(candidate)
    search.tell(candidate, capacity(200.0), 1.0)
    for _ in range(2):
        search, tracking, _ = opened()
        tracking.close_study("FINISHED")
        assert logged(tracking) == [100.0, 200.0]
