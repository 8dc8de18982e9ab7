"""`tritonc tune` after a change of the spec, on a real tritonserver: what is known is not measured again."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.cli.running import ANNOUNCED, Running, assert_all_gone, running, trial_lines
from tests.cli.test_tune_faults import SPEC
from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.schemas.lock_file import read_lock

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.usefixtures("brief")]

FIRST = SPEC.replace("max_batch_size: [1, 2, 4]", "max_batch_size: [2, 4]")
SECOND = SPEC.replace("max_batch_size: [1, 2, 4]", "max_batch_size: [2, 3, 4]").replace("5000", "6000")
"""Another SLO, and one more candidate."""


@pytest.fixture
def p(project: Any) -> ProjectFolder:
    folder: ProjectFolder = project({"spec.yaml": FIRST, "models/mlp.onnx": mlp()})
    return folder


def tuned(p: ProjectFolder, *args: str) -> Running:
    """A tune of all candidates that says every event, once it has ended."""
    with running(p, "--sampler", "random", *args, program=ANNOUNCED) as tune:
        assert tune.end() == 0, tune.text
    return tune


def windows(tune: Running) -> list[int]:
    """How many loads were put on a server in each trial."""
    _, *trials = tune.text.partition("event SearchEnded")[0].split("event TrialStarted")
    return [trial.count("event LoadStarted") for trial in trials]


def tags(p: ProjectFolder) -> list[str]:
    """What MLflow says about reuse, of each trial of all studies."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{p.path('.tritonc/mlflow.db')}")
    runs = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    trials = [run.data.tags for run in runs if run.data.tags["tritonc.kind"] == "trial"]
    return [trial.get("tritonc.reused", "") for trial in trials]


def test_with_another_slo_and_a_larger_space_only_what_is_new_is_measured(p: ProjectFolder):
    first = tuned(p)
    assert min(windows(first)) > 0
    assert "measured before" not in first.text

    p.write("spec.yaml", SECOND)
    told = json.loads(p.run("tune", "--dry-run", "--output", "json").stdout)["tasks"][0]
    assert (told["finished"], told["measured_before"], told["partly_measured_before"]) == (0, 2, 0)
    assert "measured before: 2 candidates wholly, 0 partly" in p.run("tune", "--dry-run").stdout

    second = tuned(p, "--seed", "3")
    known = r"; (\d+) of \1 loads measured before \(\d{4}-\d\d-\d\d\)"
    reused = [re.search(known, line) is not None for line in trial_lines(second.text)]
    assert sorted(reused) == [False, True, True], second.text
    assert [count == 0 for count in windows(second)] == reused
    assert "event Confirming" in second.text
    [decision] = read_lock(p.path("spec.lock.yaml")).decisions
    assert decision.slo_met
    assert decision.chosen.measurement.requests >= 1000
    assert (decision.trials, decision.failed_trials, decision.candidates) == (3, 0, 3)
    assert [bool(tag) for tag in sorted(tags(p))] == [False] * 3 + [True] * 2
    assert_all_gone(p.folder)


def test_what_was_measured_when_tune_was_killed_is_not_measured_again(p: ProjectFolder):
    with running(p, "--sampler", "random", program=ANNOUNCED, env={"TEST_HOLD": "store:2"}) as tune:
        tune.wait_for(lambda line: line == "held at store\n")
        tune.process.kill()
        tune.process.wait()
    assert_all_gone(p.folder)
    again = tuned(p)
    [line] = trial_lines(again.text)
    assert line.startswith("trial 2/2")
    assert "measured before" in line
    assert windows(again) == [0]
