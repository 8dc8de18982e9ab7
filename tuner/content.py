"""What a measurement depends on, as digests: the same content has the same digest, wherever it comes from.

Limits, objective, searched space, number of trials, sampler and seed are no part of it, nor are the names of
spec and target: they say what is looked for, not what a candidate does under a load.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from tritonc import __version__
from tritonc.compiler.candidate import Candidate
from tritonc.compiler.output.manifest import MANIFEST_PATH
from tritonc.compiler.project import Project
from tritonc.compiler.repository import Content, compile_candidate
from tritonc.schemas.measurement import EngineInfo, Hardware
from tritonc.tuner.demand import Demand, TraceDemand
from tritonc.tuner.tensor_types import encoded

if TYPE_CHECKING:
    from tritonc.tuner.inputs import Inputs

_FORMAT = 2
"""To be raised when something else is measured under the same name."""
_IN_THE_LOAD = {"arrival", "max_concurrency", "rate", "max_rate", "request_batch", "file"}
"""Keys of `workload` that say which loads are asked; each stored Measurement has its own load, and how
requests arrive is an argument."""


def content_digest(
    project: Project,
    name: str,
    demand: Demand,
    inputs: Sequence[Inputs],
    engine: EngineInfo,
    hardware: Hardware,
) -> str:
    """Of all that measurements of a model on a machine depend on, apart from the candidate and the load.

    Args:
        project: where the model is.
        name: of the model or the ensemble in the spec.
        demand: how it is asked; that of another trace is another content.
        inputs: what it is asked, of each shape.
        engine: what serves it and what puts it under load, on which cores.
        hardware: of the machine.
    """
    first, *_ = project.spec.asked_of(name).workloads
    members = project.ensembles[name].members if name in project.ensembles else (name,)
    return _digest(
        {
            "format": _FORMAT,
            "tritonc": __version__,
            "sources": [project.models[member].sha256 for member in members],
            "inputs": [_digest_of_inputs(each) for each in inputs],
            "arrival": demand.arrival.trace if isinstance(demand, TraceDemand) else demand.arrival,
            "workload": first.model_dump(mode="json", exclude=_IN_THE_LOAD, exclude_defaults=True),
            "engine": engine.model_dump(mode="json"),
            "hardware": hardware.model_dump(mode="json"),
        }
    )


def candidate_digest(project: Project, candidate: Candidate) -> str:
    """Of all that is served where a candidate is: every configuration, every weight and the server's flags.

    Raises:
        InputErrors: the spec and the model file do not go together.
    """
    files = compile_candidate(project, candidate).files
    return _digest({str(path): _served(path, content) for path, content in files.items()})


def _served(path: PurePosixPath, content: Content) -> str:
    """What a file means to the server: comments mean nothing, and it does not read the manifest."""
    if path == MANIFEST_PATH:
        return ""
    if not isinstance(content, bytes):
        return content.sha256
    return "\n".join(line for line in content.decode().splitlines() if line and not line.startswith("#"))


def _digest_of_inputs(inputs: Inputs) -> str:
    seen = hashlib.sha256(repr(inputs.has_batch_axis).encode())
    for each in inputs.inputs:
        shape = (each.tensor.name, each.tensor.dtype, each.tensor.dims, each.samples.shape)
        seen.update(repr(shape).encode())
        for sample in each.samples:
            seen.update(encoded(sample, each.tensor.dtype))
    return seen.hexdigest()


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
