"""What was measured before on a real server: not measured again, unless the machine became another one."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from tests.models import mlp
from tests.tuner.test_stand import SPEC, bench_of
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import open_project
from tritonc.compiler.space import space_for
from tritonc.schemas.measurement import ClosedLoad, Failure, Interval, Load
from tritonc.schemas.spec import Accuracy, ClosedWorkload, Slo
from tritonc.tuner.bench import Bench
from tritonc.tuner.capacity import Capacity, Known
from tritonc.tuner.content import candidate_digest
from tritonc.tuner.engines import engine_named
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.record_store import RecordStore
from tritonc.tuner.recorded import Recorded
from tritonc.tuner.records import StoredRecords
from tritonc.tuner.stand import Stand

pytestmark = pytest.mark.triton


@dataclass
class Here:
    """A server, and what studies that begin one after another see of it."""

    folder: Path
    stand: Stand
    bench: Bench
    candidates: list[Candidate]
    digest_of: partial[str]
    loads: list[tuple[Candidate, Load | None]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def study(self, slo: Slo | None = None, accuracy: Accuracy | None = None) -> StandMeasuring:
        """The measuring of a new study; what was seen of the one before is cleared."""
        self.loads.clear()
        self.said.clear()
        bench = replace(
            self.bench,
            slo=slo or self.bench.slo,
            accuracy=accuracy or self.bench.accuracy,
            workload=ClosedWorkload(max_concurrency=2),
        )
        return StandMeasuring(
            self.stand,
            bench,
            baseline=self.candidates[0],
            compared_with=lambda: None,
            on_load=lambda candidate, load: self.loads.append((candidate, load)),
            warn=self.said.append,
            records=self.records(bench),
        )

    def records(self, bench: Bench) -> StoredRecords:
        return StoredRecords(
            self.folder / "measurements.db",
            "content",
            self.digest_of,
            baseline=self.candidates[0],
            accuracy=bench.accuracy,
            requests_in_sight=bench.load_search.requests_in_sight,
            counts_energy=False,
            warn=self.said.append,
        )

    def measured(self, measuring: StandMeasuring, *candidates: Candidate) -> list[Capacity]:
        """The capacities of candidates, measured or recalled."""
        found = [measuring.capacity(candidate, Known()) for candidate in candidates]
        assert all(isinstance(each, Capacity) for each in found), found
        return found


@contextmanager
def serving(folder: Path) -> Iterator[Here]:
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "mlp.onnx").write_bytes(mlp().SerializeToString())
    project = open_project(folder / "spec.yaml")
    space = space_for(project, "mlp", "cpu")
    candidates = [space.baseline, *(c for c in space if c != space.baseline)]
    with Stand(
        project, engine_named("embedded"), folder / "served", cores=(), on_start=lambda _restarted: None
    ) as stand:
        digest_of = partial(candidate_digest, project)
        yield Here(folder, stand, bench_of(project, folder), candidates, digest_of)


def faster(folder: Path, by: float, only: Load | None = None) -> None:
    """Makes what was measured, or only under one load, that much faster than it was."""
    store = RecordStore(folder / "measurements.db")
    rows = []
    for row in store.read("content"):
        if row.kind == "load":
            assert row.entry is not None
            recorded = Recorded.model_validate_json(row.entry)
            if only is not None and recorded.measurement.load != only:
                continue
            seen = recorded.measurement.throughput
            throughput = {name: end and end * by for name, end in seen.model_dump().items()}
            measured = recorded.measurement.model_copy(update={"throughput": type(seen)(**throughput)})
            then = {"measurement": measured, "measured_at": "2026-01-02T03:04:05+00:00"}
            rows.append(replace(row, entry=recorded.model_copy(update=then).model_dump_json()))
    store.write("content", rows)


def test_a_trial_outlives_a_file_that_cannot_be_written(tmp_path: Path):
    with serving(tmp_path) as here:
        study = here.study()
        broken = "no database any more, but long enough to be taken for one" * 100
        study._on_load = lambda *_: (tmp_path / "measurements.db").write_text(broken)
        [found] = here.measured(study, here.candidates[1])
        assert found.steps
        [warning] = here.said
        assert warning.startswith(f"warning: other studies will measure {here.candidates[1].id} again: ")


@pytest.mark.usefixtures("brief")
def test_another_study_measures_what_is_missing_and_looks_at_the_machine_once(tmp_path: Path):
    with serving(tmp_path) as here:
        baseline, other, third, *_ = here.candidates
        first = here.measured(here.study(Slo(p99_latency_ms=60_000)), baseline, other)
        assert all(capacity.reused is None for capacity in first)
        assert first[0].noise is not None

        again = here.study(Slo(p99_latency_ms=50_000, p50_latency_ms=40_000))
        second = here.measured(again, baseline, other)
        assert here.loads == []
        assert [capacity.steps for capacity in second] == [capacity.steps for capacity in first]
        assert [capacity.measurement for capacity in second] == [capacity.measurement for capacity in first]
        assert [capacity.reused.loads for capacity in second] == [len(each.steps) for each in first]
        assert set(second[0].violations) == {"p50_latency_ms", "p99_latency_ms"}
        assert second[0].noise == first[1].noise, "the last trial's"
        here.measured(again, third)
        assert {candidate for candidate, _ in here.loads} == {third}

        again.capacity(other, Known(is_doubted=True))
        assert {candidate for candidate, load in here.loads if load} == {third, other}
        assert here.said == []


@pytest.mark.usefixtures("brief")
def test_a_load_that_is_damaged_is_measured_alone_and_with_nothing_believed_all_are(tmp_path: Path):
    with serving(tmp_path) as here:
        baseline = here.candidates[0]
        (whole,) = here.measured(here.study(Slo(p99_latency_ms=60_000)), baseline)
        one, most = ClosedLoad(concurrency=1), ClosedLoad(concurrency=2)
        assert [step.load for step in whole.steps] == [one, most]
        with closing(sqlite3.connect(tmp_path / "measurements.db")) as database, database:
            damage = "UPDATE records SET entry = '{}' WHERE which = ?"
            assert database.execute(damage, (most.model_dump_json(),)).rowcount == 1
        (part,) = here.measured(here.study(Slo(p99_latency_ms=60_000)), baseline)
        assert {load for _, load in here.loads if load} == {most}
        assert part.reused is not None
        assert part.reused.loads == 1
        assert part.steps[0] == whole.steps[0]
        assert set(here.said) == {f"note: what was stored of {baseline.id} is damaged, and is measured again"}
        anew = here.study(Slo(p99_latency_ms=60_000))
        anew.start_over()
        here.measured(anew, baseline)
        assert {load for _, load in here.loads if load} == {one, most}


@pytest.mark.usefixtures("brief")
def test_the_step_of_one_client_that_followed_the_decision_does_not_decide_when_it_is_recalled(
    tmp_path: Path,
):
    with serving(tmp_path) as here:
        baseline = here.candidates[0]
        (first,) = here.measured(here.study(Slo(p99_latency_ms=60_000)), baseline)
        one, most = ClosedLoad(concurrency=1), ClosedLoad(concurrency=2)
        assert first.measurement.load == most
        faster(tmp_path, 30.0, only=one)
        (second,) = here.measured(here.study(Slo(p99_latency_ms=60_000)), baseline)
        assert {load for _, load in here.loads} == set()
        assert second.steps[0].throughput.value > 10 * first.steps[0].throughput.value
        assert second.measurement == first.measurement


def test_on_a_machine_that_became_another_one_everything_is_measured_anew(tmp_path: Path):
    with serving(tmp_path) as here:
        baseline = here.candidates[0]
        (first,) = here.measured(here.study(), baseline)
        faster(tmp_path, 30.0)
        (second,) = here.measured(here.study(), baseline)
        assert second.reused is None
        assert {candidate for candidate, load in here.loads if load} == {baseline}
        (said,) = here.said
        assert re.fullmatch(
            r"note: the machine is \d+% slower than on 2026-01-02: what was measured then is measured again",
            said,
        )
        assert second.measurement.throughput.value < 2.5 * first.measurement.throughput.value


@pytest.mark.usefixtures("brief")
def test_outputs_are_compared_again_within_a_tighter_tolerance_and_nothing_else_is_done(tmp_path: Path):
    with serving(tmp_path) as here:
        baseline, other, *_ = here.candidates
        here.measured(here.study(accuracy=Accuracy(rtol=0.1, atol=0.1)), baseline, other)
        wider = here.measured(here.study(accuracy=Accuracy(rtol=0.5, atol=0.1)), other)
        assert here.loads == []
        assert here.stand._loaded == baseline, "the look at the machine is all that was loaded"
        tighter = here.measured(here.study(accuracy=Accuracy(rtol=1e-4, atol=1e-4)), other)
        assert here.loads == []
        assert here.stand._loaded == other
        assert tighter[0].steps == wider[0].steps


@pytest.mark.usefixtures("brief")
def test_the_baseline_is_worth_what_it_is_by_definition_also_when_it_is_measured_again(tmp_path: Path):
    with serving(tmp_path) as here:
        here.bench = replace(here.bench, objective={"throughput": 0.7, "memory": 0.3})
        baseline, other, *_ = here.candidates
        (first,) = here.measured(here.study(), baseline)
        half = first.measurement.throughput.value / 2
        before = first.measurement.model_copy(update={"throughput": Interval(value=half)})
        study = here.study()
        study._compared_with = lambda: before
        recalled = study.capacity(baseline, Known())
        again = study.capacity(baseline, Known(is_doubted=True))
        compared = study.capacity(other, Known())
        assert here.loads
        assert [each.objective for each in (first, recalled, again)] == [0.0, 0.0, 0.0]
        assert compared.objective > 0


def test_what_does_not_load_fails_again_without_a_server(tmp_path: Path):
    with serving(tmp_path) as here:
        _, other, *_ = here.candidates
        failure = Failure(reason="load_failed", detail="no such kernel")
        here.records(here.bench).keep_failure(other, failure)
        found = here.study().capacity(other)
        assert isinstance(found, Failure)
        assert found.reason == "load_failed"
        assert found.detail.endswith(": no such kernel")
        assert here.stand._server is None
