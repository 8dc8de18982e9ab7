"""Locks as `tune` would write them, with invented measurements."""

from __future__ import annotations

from typing import Any

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.project import Project
from tritonc.compiler.space import space_for
from tritonc.compiler.stale import digests
from tritonc.schemas.lock import Configuration, Decision, KnobValue, Lock, Result
from tritonc.schemas.measurement import ClosedLoad, EngineInfo, Hardware, Interval, Measurement


def result(candidate: Candidate, throughput: float = 182.5, slo_met: bool = True) -> Result:
    """A result in which nothing but the throughput depends on the candidate."""
    measurement = Measurement(
        load=ClosedLoad(concurrency=12),
        requests=1204,
        duration_s=6.6,
        throughput=Interval(value=throughput, low=throughput * 0.95, high=throughput * 1.05),
        latency_ms={
            "p50": Interval(value=20.25, low=20, high=21),
            "p99": Interval(value=44.1, low=41.5, high=None),
        },
    )
    configuration = Configuration(id=candidate.id, knobs=candidate.values)
    return Result(configuration=configuration, measurement=measurement, slo_met=slo_met, objective=throughput)


def decision(
    project: Project, model: str, target: str, knobs: dict[str, KnobValue] | None = None, **changes: Any
) -> Decision:
    """The decision for the baseline with `knobs` in it, and `changes` to its other fields."""
    space = space_for(project, model, target)
    chosen = Candidate.of(model, target, {**space.baseline.values, **(knobs or {})})
    fields = {
        "model": model,
        "target": target,
        "chosen": result(chosen),
        "baseline": result(space.baseline, 88.25),
        "slo_met": True,
        "improved": True,
        "gain": 1.068,
        "noise": 0.03,
        "trials": 21,
        "failed_trials": 3,
        "candidates": len(space),
        "seed": 0,
        "engine": EngineInfo(
            name="embedded",
            triton="2.51.0",
            release="24.10",
            runtimes={"onnxruntime": "1.24.1"},
            load_generator="perf_analyzer 2.43.0",
        ),
        "hardware": Hardware(cpu="A CPU", cores=2, memory_bytes=8 << 30),
        "digests": digests(project, model, target),
        "measured_at": "2026-11-20T12:00:00Z",
    }
    return Decision(**{**fields, **changes})


def lock(project: Project, *decisions: Decision) -> Lock:
    """The lock of these decisions."""
    return Lock(spec=project.spec.name, decisions=decisions)
