"""Triton backends: one module each, listed here, and the catalogue of every knob."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from tritonc.compiler.backends import onnxruntime, openvino
from tritonc.compiler.backends.backend import Accelerator, Backend
from tritonc.compiler.knobs.knob import Knob
from tritonc.compiler.knobs.shared import SHARED
from tritonc.schemas.errors import did_you_mean

BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {backend.name: backend for backend in (onnxruntime.BACKEND, openvino.BACKEND)}
)

NOT_YET: Mapping[str, str] = MappingProxyType(
    {
        "tensorrt": "use backend onnxruntime with accelerator tensorrt",
        "tensorrtllm": "",
        "pytorch": "export the model to ONNX and use backend onnxruntime",
        "libtorch": "export the model to ONNX and use backend onnxruntime",
        "tensorflow": "export the model to ONNX and use backend onnxruntime",
        "python": "",
        "vllm": "",
        "dali": "",
        "fil": "",
        "ensemble": "write its steps under `ensembles` of the spec",
    }
)
"""Backends that Triton has and tritonc does not compile for, with what to do instead."""

CATALOGUE: Mapping[str, Knob] = MappingProxyType(
    {
        knob.name: knob
        for knob in (*SHARED, *(knob for backend in BACKENDS.values() for knob in backend.knobs))
    }
)
"""Every knob by name, each after those that its conditions name."""

_ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "precision": "the knob is precision_mode, of accelerator tensorrt",
        "instance_group": "the knobs are instance_count and instance_kind",
        "count": "the knob is instance_count",
        "kind": "the knob is instance_kind",
        "level": "the knob is graph_level",
        "response_cache": "it is set, not searched: write it under the model's config",
        "version_policy": "it is set, not searched: write it under the model's config",
        "dims": "they are set, not searched: write them under the model's dims",
        "ENABLE_BATCH_PADDING": "a full batch after a padded one is answered wrongly, so it is not searched",
    }
)


def backend_hint(name: str) -> tuple[str, str]:
    """What is wrong with a backend name that is not in `BACKENDS`, and what to do."""
    if name in NOT_YET:
        known = ", ".join(sorted(BACKENDS))
        return f"tritonc does not compile for Triton's {name} backend yet", NOT_YET[
            name
        ] or f"one of: {known}"
    return f'unknown backend "{name}"', did_you_mean(name, BACKENDS)


def knob_hint(name: str) -> str:
    """What to write in the place of a knob name that is not in `CATALOGUE`."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    lower = {known.lower(): known for known in CATALOGUE}
    near = [lower[one] for one in get_close_matches(name.lower(), lower, n=1, cutoff=0.6)]
    near += [known for one, known in lower.items() if len(name) > 3 and name.lower() in one]
    usual = ", ".join(knob.name for knob in SHARED)
    return f'did you mean "{near[0]}"?' if near else f"usual ones: {usual}, intra_op_thread_count"


__all__ = ["BACKENDS", "CATALOGUE", "NOT_YET", "Accelerator", "Backend", "backend_hint", "knob_hint"]
