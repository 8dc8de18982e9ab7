"""What a model is asked while it is measured: the workloads of the spec, with their files read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonc.compiler.models.source import path_of_source
from tritonc.compiler.project import Project
from tritonc.schemas.errors import InputErrors, ModelFileError, SpecError
from tritonc.schemas.measurement import Trace
from tritonc.schemas.request_batch import BatchMix
from tritonc.schemas.spec import ClosedWorkload, OpenWorkload, TraceWorkload, Workload
from tritonc.tuner.arrival_trace import ArrivalTrace, TraceFileError, read_trace
from tritonc.tuner.arrivals import WHOLE_S


@dataclass(frozen=True, slots=True, eq=False)
class TraceDemand:
    """A workload whose requests arrive as in a trace; see `TraceWorkload`."""

    trace: ArrivalTrace
    rate: float
    max_rate: float | None = None
    request_batch: int | BatchMix = 1

    @property
    def arrival(self) -> Trace:
        """As a load names it."""
        return Trace(trace=self.trace.sha256)

    @property
    def stretches(self) -> int:
        """In how many parts windows replay it at `rate`; 1: as a whole."""
        return len(self.trace.stretches(WHOLE_S * self.rate / self.trace.rate))


OpenDemand = OpenWorkload | TraceDemand
Demand = ClosedWorkload | OpenDemand


def replay_note(demand: TraceDemand) -> str:
    """What a person should know about how a trace is replayed; "" where each window has all of it."""
    if (stretches := demand.stretches) == 1:
        return ""
    length_s = demand.trace.length_s * demand.trace.rate / demand.rate
    return (
        f"note: at {demand.rate:.4g} requests/s the trace lasts {length_s:.0f} s, longer than a window: each "
        f"window replays another one of {stretches} stretches of it; a trace of at most {WHOLE_S:g} s is "
        "replayed as a whole"
    )


def traces_of(demand: Demand) -> Mapping[str, ArrivalTrace]:
    """The trace that its loads name, by its digest."""
    return {demand.trace.sha256: demand.trace} if isinstance(demand, TraceDemand) else {}


def read_demands(project: Project, model: str, *, allow_outside: bool = False) -> tuple[Demand, ...]:
    """What `model` is asked, with the files of its workloads read; the first one's capacity is sought.

    Args:
        project: with the model's spec.
        model: its name.
        allow_outside: whether a file may lie outside the project's folder.

    Raises:
        InputErrors: a file cannot be read, holds no trace, or `max_rate` is below what the trace has.
    """
    spec = project.spec.asked_of(model)
    found: list[Demand] = []
    errors: list[SpecError] = []
    for number, workload in enumerate(spec.workloads):
        try:
            found.append(_read(workload, project.folder.resolve(), allow_outside))
        except _DemandError as err:
            key_path = (*project.spec.keys_of(model), *spec.workload_keys(number), err.key)
            errors.append(project.spec_file.error(key_path, err.what, err.hint))
    if errors:
        raise InputErrors(errors)
    return tuple(found)


class _DemandError(Exception):
    def __init__(self, key: str, what: str, hint: str) -> None:
        super().__init__(what)
        self.key, self.what, self.hint = key, what, hint


def _read(workload: Workload, folder: Path, allow_outside: bool) -> Demand:
    if not isinstance(workload, TraceWorkload):
        return workload
    file = workload.file
    try:
        trace = read_trace(path_of_source(file, folder, allow_outside=allow_outside))
    except ModelFileError as err:
        raise _DemandError("file", f"{file}: {err.what.removeprefix(f'{err.path}: ')}", err.hint) from err
    except TraceFileError as err:
        raise _DemandError("file", f"{file}: {err.what}", err.hint) from err
    rate = workload.rate or trace.rate
    if workload.max_rate is not None and workload.max_rate < rate:
        what = f"max_rate is {workload.max_rate:g}, below the trace's own mean rate of {rate:.4g}"
        hint = "it is a ceiling: raise it, or write the rate that must be carried as rate:"
        raise _DemandError("max_rate", what, hint)
    return TraceDemand(trace, rate, workload.max_rate, workload.request_batch)
