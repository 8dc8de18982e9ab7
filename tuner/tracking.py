"""Trials in MLflow: a parent run for each (model, target), a nested run for each trial.

Optuna's study is what tritonc itself relies on; MLflow is for people. So a tracking server that cannot be
reached, or does not answer in time, never stops a study: it is said once, and the next `tune` logs what is
missing. All that is done with it is done in one thread, one thing after another.
Importing MLflow and opening its database take about two seconds, so a thread does both while the server
starts and the first model loads; `Tracking.settle` waits for it before a load runs. A trial costs about
0.02 s after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from tritonc.schemas.measurement import Failure, Measurement
from tritonc.tuner.bundle import cache_folder

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from tritonc.tuner.capacity import Capacity
    from tritonc.tuner.trial import Outcome

_ENVIRONMENT = {
    # No word to anybody from a person's machine.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # MLflow waits 120 s and tries 8 times by default: an unreachable server would stop a study for minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
_PATIENCE_S = 60.0
"""MLflow gets so long for one thing: it opens in two seconds, and takes a trial in 0.02 s."""
LEAVING_S = 5.0
"""It gets so long where the person waits for tritonc to end."""
_PARAMETER_LENGTH = 6000
"""MLflow refuses longer values of parameters."""

OPTUNA_TRIAL = "tritonc.optuna_trial"
"""The tag of a trial's run that says which of a candidate's trials it is (`Trial.optuna_trial`)."""

Kind = Literal["trial", "confirmation"]
Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, slots=True)
class TrialRun:
    """What MLflow shows of one trial.

    Attributes:
        name: shown in lists, for example "trial 007 4bcc5294ff".
        candidate: the candidate's id, unique in its study for each kind.
        config: its config.pbtxt.
        server_log: last lines of the server's log; logged where the trial failed.
    """

    name: str
    candidate: str
    knobs: Mapping[str, object]
    outcome: Outcome
    config: str
    server_log: str = ""
    kind: Kind = "trial"
    tags: Mapping[str, str] | None = None


def metrics_of(measurement: Measurement) -> dict[str, float]:
    """The numbers of a measurement by name, each name with its unit."""
    numbers: dict[str, float | None] = {
        "throughput_inferences_per_s": measurement.throughput.value,
        "throughput_low_inferences_per_s": measurement.throughput.low,
        "throughput_high_inferences_per_s": measurement.throughput.high,
        "offered_requests_per_s": measurement.offered_rate,
        "requests": measurement.requests,
        "errors": measurement.errors,
        "sustained": float(measurement.sustained),
        "queue_ms": measurement.queue_ms,
        "compute_input_ms": measurement.compute_input_ms,
        "compute_infer_ms": measurement.compute_infer_ms,
        "compute_output_ms": measurement.compute_output_ms,
        "mean_batch_inferences": measurement.mean_batch,
        "memory_bytes": measurement.memory_bytes,
        "gpu_memory_bytes": measurement.gpu_memory_bytes,
        "load_s": measurement.load_s,
        "joules_per_inference": measurement.joules_per_inference,
    }
    for statistic, interval in measurement.latency_ms.items():
        numbers[f"{statistic}_latency_ms"] = interval.value
        numbers[f"{statistic}_latency_low_ms"] = interval.low
        numbers[f"{statistic}_latency_high_ms"] = interval.high
    return {name: float(value) for name, value in numbers.items() if value is not None}


def load_of(measurement: Measurement) -> tuple[str, float]:
    """Name with its unit, and value, of the load that a measurement was made under."""
    load = measurement.load
    return ("concurrency", load.concurrency) if load.kind == "closed" else ("rate_requests_per_s", load.rate)


def redacted(uri: str) -> str:
    """`uri` without user, password, query and fragment, any of which may hold a credential.

    >>> redacted("https://me:secret@mlflow.example:5000/x?token=abc")
    'https://***@mlflow.example:5000/x?***'
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "set, but no URI"
    visible = uri.partition("?")[0].partition("#")[0]
    if "@" in parts.netloc:
        visible = visible.replace(parts.netloc, f"***@{parts.netloc.rpartition('@')[2]}", 1)
    return f"{visible}?***" if parts.query or parts.fragment else visible


class Tracking:
    """Logs to MLflow, or says once that it cannot.

    Args:
        folder: where `mlflow.db` and `mlartifacts` are kept if `uri` is None.
        uri: another tracking server's address (`MLFLOW_TRACKING_URI`). It may hold a credential, so only
            `shown_uri` is for people.
        experiment: name of the MLflow experiment, the spec's name.
        warn: takes one line for people.
    """

    def __init__(
        self, folder: Path, *, uri: str | None, experiment: str, warn: Callable[[str], None]
    ) -> None:
        self.uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        self.shown_uri = redacted(uri) if uri else self.uri
        self._database = None if uri else folder / "mlflow.db"
        self._artifacts = None if uri else (folder / "mlartifacts").as_uri()
        self._experiment = experiment
        self._warn = warn
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._parent: Run | None = None
        self._problem = ""
        self._folder = folder
        self._logged: frozenset[tuple[str, int]] = frozenset()
        self._thread: threading.Thread | None = None
        self._is_off = False

    def connect(self) -> None:
        """Begins to open the connection, which takes seconds; whatever needs it waits for it."""
        if self._thread is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._begin(self._connect)

    def _begin(self, work: Callable[[], None]) -> None:
        """Has a thread do some work after what it does already; `settle` says what goes wrong."""
        if self._is_off:
            return
        before = self._thread

        def guarded() -> None:
            if before is not None:
                before.join()
            try:
                work()
            except Exception as err:  # noqa: BLE001  (a thread's seam: said to the person by `settle`)
                self._problem = self._in_one_line(err)

        self._thread = threading.Thread(target=guarded, name="mlflow", daemon=True)
        self._thread.start()

    def settle(self, patience_s: float = _PATIENCE_S) -> None:
        """Returns when nothing is done in the background any more, and says what went wrong there.

        What takes longer than `patience_s` is waited for no more, and nothing more is logged in this run.
        """
        if self._is_off or self._thread is None:
            return
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._problem = f"no answer within {patience_s:g} s"
        if problem := self._problem:
            self._say(problem)

    @property
    def place(self) -> str:
        """A name of this MLflow, without credentials; empty where it is a database that is not there."""
        if self._database is not None and not self._database.exists():
            return ""
        return hashlib.sha256(self.uri.encode()).hexdigest()[:12]

    @property
    def is_on(self) -> bool:
        """Whether anything can still be logged."""
        return self._ready() is not None

    @property
    def parent_run(self) -> str | None:
        """Id of the open parent run."""
        self.settle()
        return self._parent.info.run_id if self._parent else None

    @property
    def logged(self) -> frozenset[tuple[str, int]]:
        """The trials that the parent run had when it was opened: candidates' ids, `OPTUNA_TRIAL`."""
        self.settle()
        return self._logged

    def open_study(self, study: str, name: str, tags: Mapping[str, str]) -> None:
        """Begins to open the parent run of a study, the one it had before if there is one."""
        self._parent, self._logged = None, frozenset()
        self.connect()
        self._begin(lambda: self._open(study, name, tags))

    def _open(self, study: str, name: str, tags: Mapping[str, str]) -> None:
        client = self._client
        if client is None:
            return
        found = self._continued_or_new(client, study, name)
        parent = found.info.run_id
        client.log_batch(parent, tags=_tags(tags))
        runs = self._runs(client, f"tags.`mlflow.parentRunId` = '{parent}'")
        for run in runs:  # a tune that was killed left it half logged
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
        trials = (run for run in runs if run.data.tags["tritonc.kind"] == "trial")
        ended = (run for run in trials if run.info.status in ("FINISHED", "FAILED"))
        of_ended = (run.data.tags for run in ended)
        self._logged = frozenset(
            (each["tritonc.candidate"], int(each.get(OPTUNA_TRIAL, 0))) for each in of_ended
        )
        self._parent = found

    def _continued_or_new(self, client: MlflowClient, study: str, name: str) -> Run:
        found = self._runs(client, f"tags.`tritonc.study` = '{study}' and tags.`tritonc.kind` = 'study'")
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0]
        own = {"tritonc.study": study, "tritonc.kind": "study"}
        return client.create_run(self._experiment_id, run_name=name, tags=own)

    def log_trial(self, trial: TrialRun) -> None:
        """Logs a finished trial as a nested run of the open study."""
        self._begin(lambda: self._log(trial))
        self.settle()

    def _log(self, trial: TrialRun) -> None:
        client = self._client
        if client is None or self._parent is None:
            return
        tags = {
            "mlflow.parentRunId": self._parent.info.run_id,
            "tritonc.kind": trial.kind,
            "tritonc.candidate": trial.candidate,
            **(trial.tags or {}),
        }
        run = client.create_run(self._experiment_id, run_name=trial.name, tags=tags).info.run_id
        _log_outcome(client, run, trial)

    def close_study(
        self, status: Status, tags: Mapping[str, str] | None = None, *, patience_s: float = _PATIENCE_S
    ) -> None:
        """Ends the parent run; waits for MLflow no longer than `patience_s`."""
        self._begin(lambda: self._close(status, tags or {}))
        self.settle(patience_s)

    def _close(self, status: Status, tags: Mapping[str, str]) -> None:
        if self._client is not None and self._parent is not None:
            self._client.log_batch(self._parent.info.run_id, tags=_tags(tags))
            self._client.set_terminated(self._parent.info.run_id, status)

    def _connect(self) -> None:
        os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
        from mlflow.tracking import MlflowClient

        # MLflow sets these levels up itself when it is imported; what goes wrong is said by _say.
        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)
        if self._database is not None and not self._database.exists():
            _make(self._database)
        client = MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(self._experiment)
        self._experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(self._experiment, artifact_location=self._artifacts)
        )
        self._client = client

    def _ready(self) -> MlflowClient | None:
        """The client, once it is there."""
        self.connect()
        self.settle()
        return None if self._is_off else self._client

    def _say(self, problem: str) -> None:
        self._warn(
            f"warning: MLflow at {self.shown_uri} does not work ({problem}); trials are kept in the study, "
            "and the next `tritonc tune` logs what is missing"
        )
        self._problem = ""
        self._is_off = True

    def _in_one_line(self, err: Exception) -> str:
        """What went wrong, without the credentials that MLflow repeats with its address."""
        said = re.sub(r"(?<=://)[^\s/]*@", "***@", str(err).replace(self.uri, self.shown_uri))
        # SQLAlchemy begins with advice to programmers now and then.
        lines = [line for line in said.strip().splitlines() if not line.startswith("(raised as a result")]
        return (lines[0] if lines else type(err).__name__)[:200]

    def _runs(self, client: MlflowClient, query: str) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = client.search_runs([self._experiment_id], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs


def _make(database: Path) -> None:
    """Makes MLflow's database, whole or not at all: one that is half made never works again.

    MLflow makes one by all the migrations that it ever had, which takes a core two seconds. So an empty one
    of its version is kept in the user's cache.
    """
    new = _beside(database)
    try:
        shutil.copyfile(_empty_database(), new)
    except Exception:  # noqa: BLE001  (whatever is wrong with the cache, the project has a place of its own)
        new.unlink(missing_ok=True)
        _migrate(new)
    with contextlib.suppress(sqlite3.Error):  # it is about MLflow's "Default", in which tritonc logs nothing
        _keep_artifacts_in(database.parent / "mlartifacts/0", new)
    new.rename(database)


def _keep_artifacts_in(folder: Path, database: Path) -> None:
    """MLflow would have them in whichever folder its database was made from."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", [folder.as_uri()])


def _empty_database() -> Path:
    """That of the cache, made where it is not there."""
    import filelock
    from mlflow.version import VERSION

    database = cache_folder() / f"mlflow-{VERSION}.db"
    if not database.exists():
        database.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(database.parent / ".mlflow.lock"):
            if not database.exists():  # another process may have been faster
                new = _beside(database)
                _migrate(new)
                new.rename(database)
    return database


def _beside(database: Path) -> Path:
    """A name for what will be this database, of which nothing else is left there."""
    for left in database.parent.glob(f"{database.name}.*.new*"):
        left.unlink()
    return database.with_name(f"{database.name}.{secrets.token_hex(4)}.new")  # MLflow remembers failed ones


def _migrate(database: Path) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments(max_results=1)


def _log_outcome(client: MlflowClient, run: str, trial: TrialRun) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    params = [Param(knob, str(value)[:_PARAMETER_LENGTH]) for knob, value in trial.knobs.items()]
    metrics: list[Metric] = []
    tags: dict[str, str] = {}
    if isinstance(trial.outcome, Failure):
        tags = {"tritonc.failure": trial.outcome.reason, "tritonc.failure_detail": trial.outcome.detail}
    else:
        metrics = [Metric(name, value, now, step) for name, value, step in _capacity_metrics(trial.outcome)]
    client.log_batch(run, metrics, params, _tags(tags))
    client.log_text(run, trial.config, "config.pbtxt")
    if isinstance(trial.outcome, Failure):
        client.log_text(run, trial.server_log, "server.log")
        client.set_terminated(run, "FAILED")
        return
    steps = [step.model_dump(mode="json", exclude_none=True) for step in trial.outcome.steps]
    client.log_dict(run, {"load_steps": steps}, "load_steps.json")
    client.set_terminated(run, "FINISHED")


def _capacity_metrics(capacity: Capacity) -> Iterable[tuple[str, float, int]]:
    """(name, value, step) of everything in a capacity; load steps are numbered from 1, and say their load."""
    seen = {f"{model}/": each for model, each in capacity.members.items()} or {"": capacity.measurement}
    for of, measured in seen.items():
        for name, value in metrics_of(measured).items():
            yield f"{of}{name}", value, 0
        name, value = load_of(measured)
        yield f"{of}{name}", value, 0
    for number, measured in enumerate(capacity.further, 2):
        for name, value in metrics_of(measured).items():
            yield f"workload {number}/{name}", value, 0
        name, value = load_of(measured)
        yield f"workload {number}/{name}", value, 0
    yield "objective", capacity.objective, 0
    yield "slo_met", float(capacity.slo_met), 0
    for slo, violation in capacity.violations.items():
        yield f"violation_of_{slo}", violation, 0
    for slo, violation in capacity.soft.items():
        yield f"violation_of_soft_{slo}", violation, 0
    for number, measured in enumerate(_steps_alike(capacity), 1):
        name, value = load_of(measured)
        yield f"step_{name}", value, number
        for name, value in metrics_of(measured).items():
            yield f"step_{name}", value, number


def _steps_alike(capacity: Capacity) -> list[Measurement]:
    """The load steps, ascending, whose load is of the kind of the one that decides.

    The baseline has one of a single client whatever the workload; those of a joint candidate say no load.
    """
    steps = () if capacity.members else capacity.steps
    return [step for step in steps if step.load.kind == capacity.measurement.load.kind]


def _tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, value[:_PARAMETER_LENGTH]) for name, value in tags.items() if value]
