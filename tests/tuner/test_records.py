"""What was measured before: found by content, damaged entries and other tolerances left out, nothing lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.tuner.spaces import measurement, small_space
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.errors import SetupError
from tritonc.schemas.measurement import ClosedLoad, Failure, Measurement
from tritonc.schemas.spec import Accuracy, ClosedWorkload, Slo
from tritonc.tuner import record_store
from tritonc.tuner.coverage import Coverage, coverage
from tritonc.tuner.load_search import LoadLadder, LoadSearch
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.recorded import Reused
from tritonc.tuner.records import NOTHING_BEFORE, StoredRecords
from tritonc.tuner.statistics import Scatter

SPACE = small_space()
ONE, OTHER = SPACE.baseline, next(candidate for candidate in SPACE if candidate != SPACE.baseline)
NOISE = NoiseFloor(Scatter(0.02, 7), Scatter(0.03, 7))
DIFFERS = Failure(reason="outputs_differ", detail="by 3")


class Opened(StoredRecords):
    """Records of made-up content in a file; what is said of them is kept."""

    def __init__(
        self,
        folder: Path,
        content: str = "content",
        *,
        accuracy: Accuracy | None = None,
        baseline: Candidate = ONE,
        requests_in_sight: int = LoadSearch.requests_in_sight,
        counts_energy: bool = False,
    ) -> None:
        self.said: list[str] = []
        super().__init__(
            folder / "measurements.db",
            content,
            lambda candidate: candidate.id,
            baseline=baseline,
            accuracy=accuracy or Accuracy(),
            requests_in_sight=requests_in_sight,
            counts_energy=counts_energy,
            warn=self.said.append,
        )


def shown(clients: int, throughput: float = 100.0, p99_ms: float = 20.0) -> Measurement:
    load = ClosedLoad(concurrency=clients)
    return measurement(throughput, p99_ms).model_copy(update={"load": load})


def kept(folder: Path, candidate: Candidate = ONE, **options) -> Opened:
    records = Opened(folder, **options)
    records.keep(candidate, [(shown(4), 1), (shown(8), 2)], NOISE, is_verified=True)
    return records


def test_what_was_kept_is_there_in_the_next_run(tmp_path: Path):
    kept(tmp_path)
    before = Opened(tmp_path).of(ONE)
    assert {load.concurrency: (each.measurement, each.windows) for load, each in before.loads.items()} == {
        4: (shown(4), 1),
        8: (shown(8), 2),
    }
    assert before.is_verified
    assert before.failure is None
    assert Opened(tmp_path).noise() == NOISE
    assert Reused.of(before.loads.values()).loads == 2
    assert Opened(tmp_path).of(OTHER) == NOTHING_BEFORE
    assert Opened(tmp_path, "other").of(ONE) == NOTHING_BEFORE
    assert Opened(tmp_path, "other").noise() is None


def test_a_load_that_is_measured_again_is_the_new_one_and_others_stay(tmp_path: Path):
    kept(tmp_path).keep(ONE, [(shown(4, 50.0), 3)], None, is_verified=False)
    before = Opened(tmp_path).of(ONE)
    throughputs = {load.concurrency: each.measurement.throughput.value for load, each in before.loads.items()}
    assert throughputs == {4: 50.0, 8: 100.0}
    assert before.is_verified


def test_what_is_forgotten_is_measured_again(tmp_path: Path):
    kept(tmp_path, OTHER)
    records = kept(tmp_path)
    records.forget(ONE)
    assert records.of(ONE) == NOTHING_BEFORE
    assert records.of(OTHER).is_verified
    records.forget_all()
    assert records.of(OTHER) == NOTHING_BEFORE
    assert records.noise() is None


@pytest.mark.parametrize(
    ("rtol", "atol", "is_verified"),
    [(0.01, 0.001, True), (0.1, 0.001, True), (0.01, 0.1, True), (0.001, 0.1, False), (0.01, 0.0, False)],
)
def test_outputs_are_compared_again_where_the_tolerance_became_tighter(
    tmp_path: Path, rtol: float, atol: float, is_verified: bool
):
    kept(tmp_path, accuracy=Accuracy(rtol=0.01, atol=0.001))
    before = Opened(tmp_path, accuracy=Accuracy(rtol=rtol, atol=atol)).of(ONE)
    assert before.is_verified is is_verified
    assert len(before.loads) == 2


def test_outputs_are_compared_again_where_the_baseline_is_another_one(tmp_path: Path):
    kept(tmp_path)
    assert not Opened(tmp_path, baseline=OTHER).of(ONE).is_verified


def test_outputs_that_differed_differ_again_within_the_same_tolerance_alone(tmp_path: Path):
    Opened(tmp_path).keep_failure(OTHER, DIFFERS)
    failure = Opened(tmp_path).of(OTHER).failure
    assert failure.reason == "outputs_differ"
    assert failure.detail.endswith(": by 3")
    for other in (Accuracy(rtol=0.5), Accuracy(rtol=0.001)):
        assert Opened(tmp_path, accuracy=other).of(OTHER) == NOTHING_BEFORE


@pytest.mark.parametrize(
    ("reason", "is_its_own"),
    [
        ("load_failed", True),
        ("load_timeout", False),
        ("server_crashed", False),
        ("server_hung", False),
        ("request_errors", False),
        ("no_result", False),
        ("out_of_memory", False),
    ],
)
def test_only_a_failure_of_its_own_fails_again(tmp_path: Path, reason, is_its_own: bool):
    Opened(tmp_path).keep_failure(OTHER, Failure(reason=reason, detail="so"))
    before = Opened(tmp_path, accuracy=Accuracy(rtol=0.5)).of(OTHER)
    assert (before.failure is not None) == is_its_own


def test_shorter_windows_are_no_ground_truth_and_longer_ones_are_good_for_all(tmp_path: Path):
    kept(tmp_path, ONE)
    kept(tmp_path, OTHER, requests_in_sight=LoadLadder.requests_in_sight)
    ladder = Opened(tmp_path, requests_in_sight=LoadLadder.requests_in_sight)
    assert not ladder.of(ONE).loads
    assert len(ladder.of(OTHER).loads) == len(Opened(tmp_path).of(OTHER).loads) == 2


def test_where_energy_counts_what_was_measured_without_it_does_not(tmp_path: Path):
    kept(tmp_path)
    records = Opened(tmp_path, counts_energy=True)
    assert not records.of(ONE).loads
    with_energy = shown(4).model_copy(update={"joules_per_inference": 0.5})
    records.keep(ONE, [(with_energy, 1)], None, is_verified=True)
    assert [load.concurrency for load in records.of(ONE).loads] == [4]
    assert len(Opened(tmp_path).of(ONE).loads) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE records SET entry = replace(entry, '\"errors\":0', '\"errors\":1') WHERE which LIKE '%8%'",
        "UPDATE records SET entry = 'no JSON' WHERE which LIKE '%8%'",
        "UPDATE records SET which = replace(which, '8', '9') WHERE kind = 'load'",
    ],
)
def test_a_damaged_entry_is_said_and_the_others_count(tmp_path: Path, damage: str):
    kept(tmp_path)
    with closing(sqlite3.connect(tmp_path / "measurements.db")) as database, database:
        assert database.execute(damage).rowcount >= 1
    records = Opened(tmp_path)
    assert [load.concurrency for load in records.of(ONE).loads] == [4]
    assert records.said == [f"note: what was stored of {ONE.id} is damaged, and is measured again"]
    records.keep(ONE, [(shown(8), 1)], None, is_verified=False)
    assert 8 in [load.concurrency for load in Opened(tmp_path).of(ONE).loads]


def test_a_damaged_noise_floor_is_measured_again(tmp_path: Path):
    kept(tmp_path)
    with closing(sqlite3.connect(tmp_path / "measurements.db")) as database, database:
        database.execute("UPDATE records SET entry = '{}' WHERE kind = 'noise'")
    assert Opened(tmp_path).noise() is None


def test_a_file_that_is_no_database_or_that_is_locked_is_a_setup_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(record_store, "_TIMEOUT_S", 0.1)
    records = kept(tmp_path)
    with closing(sqlite3.connect(tmp_path / "measurements.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SetupError, match=r"measurements\.db cannot be .*: database is locked"):
            records.keep(ONE, [(shown(1), 1)], None, is_verified=False)
        other.execute("ROLLBACK")
    assert len(records.of(ONE).loads) == 2
    (tmp_path / "measurements.db").write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(SetupError, match="not a database"):
        records.of(ONE)


def _keep_and_die(folder: Path) -> None:
    kept(folder)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_kept_outlives_a_killed_process(tmp_path: Path):
    process = multiprocessing.get_context("spawn").Process(target=_keep_and_die, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(Opened(tmp_path).of(ONE).loads) == 2


def test_what_a_space_has_of_what_was_measured_is_counted(tmp_path: Path):
    whole, failing, unverified, gone = [candidate for candidate in SPACE if candidate != ONE][:4]
    records = Opened(tmp_path)
    for candidate, is_verified in ((ONE, True), (whole, True), (unverified, False)):
        records.keep(candidate, [(shown(1), 2), (shown(2, 101.0), 2)], None, is_verified=is_verified)
    records.keep(gone, [], None, is_verified=True)
    records.keep_failure(failing, DIFFERS)
    elsewhere = Candidate.of("mlp", "cpu", ONE.values | {"instance_count": 64})
    records.keep(elsewhere, [(shown(1), 2)], None, is_verified=True)
    before = records.all_in(SPACE)
    assert before.keys() == {ONE, whole, failing, unverified, gone}

    def counted(slo: Slo, most: int) -> Coverage:
        workload = ClosedWorkload(max_concurrency=most)
        return coverage(before, lambda: LoadSearch(workload, slo, "throughput"))

    assert counted(Slo(p99_latency_ms=60), 2) == Coverage(wholly=3, partly=1)
    assert counted(Slo(p99_latency_ms=60), 64) == Coverage(wholly=1, partly=3)
