"""What a Measurement depends on: the study's identity, and where its ranking may not hold elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import Digests
from tritonc.schemas.measurement import EngineInfo, Hardware
from tritonc.schemas.spec import EnsembleSpec, ModelSpec
from tritonc.tuner.capacity import Capacity
from tritonc.tuner.confirm import MATTERS
from tritonc.tuner.engines import EngineDescription
from tritonc.tuner.hardware import Pinning

_EMBEDDED = "embedded"
_SHORT_EXECUTION_MS = 2.0
_TIGHT_SLO_EXECUTIONS = 5.0
"""docs/engines.md, "How far it can be trusted": the embedded backends add 0.15 to 0.46 ms a request."""


def engine_info(name: str, description: EngineDescription, load_generator: str, cores: Pinning) -> EngineInfo:
    """The engine as the lock records it."""
    return EngineInfo(
        name=name,
        triton=description.triton,
        release=description.release,
        runtimes=dict(sorted(description.runtimes.items())),
        load_generator=load_generator,
        server_cores=cores.server,
        load_generator_cores=cores.load_generator,
    )


def study_name(
    model: str,
    target: str,
    digests: Digests,
    engine: EngineInfo,
    hardware: Hardware,
    existing: Iterable[str],
    kind: str = "on",
) -> str:
    """Name of the study to continue: the latest whose numbers compare with what would be measured now.

    It holds a digest of everything that numbers depend on, so that a study is never continued with others.
    """
    text = json.dumps(
        [model, target, digests.model_dump(), engine.model_dump(), hardware.model_dump()], sort_keys=True
    )
    first = f"{model} {kind} {target} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return max((name for name in existing if _generation(name, first)), key=_number, default=first)


def next_study_name(name: str) -> str:
    """Name of a new study of what `name` studied.

    >>> next_study_name("mlp on cpu 0123456789ab"), next_study_name("mlp on cpu 0123456789ab #2")
    ('mlp on cpu 0123456789ab #2', 'mlp on cpu 0123456789ab #3')
    """
    return f"{name.split(' #')[0]} #{_number(name) + 1}"


def _generation(name: str, first: str) -> bool:
    return name == first or (name.startswith(f"{first} #") and name.rpartition("#")[2].isdigit())


def _number(name: str) -> int:
    return int(name.rpartition(" #")[2]) if " #" in name else 1


def caveats(
    engine: EngineInfo,
    model: ModelSpec | EnsembleSpec,
    baseline: Capacity | None,
    chosen: Mapping[Candidate, Capacity],
) -> tuple[str, ...]:
    """What to know of a decision, in sentences.

    Which outputs nobody compared, why the numbers are noisy, and why the ranking may not carry over to the
    official backend. Each step of an ensemble has the overhead of an execution, so short ones count on
    average.

    Args:
        engine: that measured.
        model: of the spec.
        baseline: what it did; None where it failed.
        chosen: what was decided for, or may be picked, other than the baseline.
    """
    of_outputs = _of_outputs(chosen)
    if baseline is None:
        return tuple(of_outputs)
    of_engine = _of_embedded_engine(model, baseline) if engine.name == _EMBEDDED else []
    return (*of_outputs, *_of_shared_cores(engine, baseline), *of_engine)


def _of_outputs(chosen: Mapping[Candidate, Capacity]) -> list[str]:
    unchecked = [candidate.id for candidate, found in chosen.items() if not found.is_verified]
    if not unchecked:
        return []
    return [
        f"The outputs of {', '.join(unchecked)} were not compared with the baseline's, which gave none: "
        "check them before they are served, or mend the baseline and run `tritonc tune --fresh`."
    ]


def _of_shared_cores(engine: EngineInfo, baseline: Capacity) -> list[str]:
    count = len(engine.server_cores)
    if count < 2 or engine.load_generator_cores or baseline.noise is None:
        return []
    apart = baseline.noise.throughput.deviation
    if apart <= MATTERS:
        return []
    return [
        f"Equal windows differ by {apart:.1%} more than each of them shows, and server and load generator "
        f"share {count} cores: numbers can be steadier where the load generator has one of its own "
        f"(`cores: {count - 1}`)."
    ]


def _of_embedded_engine(model: ModelSpec | EnsembleSpec, baseline: Capacity) -> list[str]:
    times = [step.compute_infer_ms for step in (*baseline.steps, baseline.measurement)]
    execution_ms = min((time for time in times if time is not None), default=None)
    if execution_ms is None:
        return []
    remedy = "confirm it with `tritonc tune --engine local` and an installed tritonserver"
    found = []
    steps = len(model.steps) if isinstance(model, EnsembleSpec) else 1
    if execution_ms / steps < _SHORT_EXECUTION_MS:
        which = "An execution" if steps == 1 else "On average a step"
        found.append(
            f"{which} of the baseline takes {execution_ms / steps:.2g} ms, "
            f"less than {_SHORT_EXECUTION_MS:g}: "
            f"the embedded engine's own overhead may change the ranking; {remedy}."
        )
    latencies = {name: limit for name, limit in model.slo.limits.items() if "latency" in name}
    tightest = min(latencies, key=lambda name: latencies[name], default=None)
    if tightest is not None and latencies[tightest] < _TIGHT_SLO_EXECUTIONS * execution_ms:
        found.append(
            f"The {tightest.partition('_')[0]} limit of {latencies[tightest]:g} ms is less than "
            f"{_TIGHT_SLO_EXECUTIONS:g} times the baseline's execution ({execution_ms:.2g} ms): capacity may "
            f"be given away; {remedy}."
        )
    return found
