"""The seam for Triton backends: one module each, and one line in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from tritonc.compiler.knobs.facts import Facts, InstanceKind
from tritonc.compiler.knobs.knob import Knob
from tritonc.compiler.protobuf import ModelConfig
from tritonc.compiler.release import Release
from tritonc.compiler.signature import Signature
from tritonc.schemas.lock import KnobValue


@dataclass(frozen=True, slots=True)
class Accelerator:
    """An execution accelerator of a backend, or `none`.

    Attributes:
        name: as config.pbtxt spells it.
        kind: where its instances run.
        precisions: those it can compute in, with the first release that can; None: all.
    """

    name: str
    kind: InstanceKind
    precisions: Mapping[str, Release | None] = field(default_factory=lambda: MappingProxyType({"fp32": None}))


class Backend(Protocol):
    """What tritonc knows about one Triton backend.

    `refusal` is asked before anything else; `knobs` make the backend's part of a space; `render` is called
    once for each candidate, after the shared fields are written.
    """

    @property
    def name(self) -> str:
        """As config.pbtxt spells it."""

    @property
    def accelerators(self) -> Mapping[str, Accelerator]:
        """What it can use, by name; `none` is always among them."""

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Its own knobs, each after those that its conditions name."""

    @property
    def batches_requests(self) -> bool:
        """Whether it can answer several requests in one execution."""

    @property
    def shares_weights(self) -> bool:
        """Whether the instances of a model share one copy of its weights."""

    def refusal(self, signature: Signature, release: Release) -> str:
        """Why it cannot serve a model in `release`; "" where it can."""

    def accelerator_refusal(self, accelerator: str, gpus: int, release: Release) -> str:
        """Why `accelerator`, which it has, cannot be used with `gpus` GPUs in `release`; "" where it can."""

    def render(self, config: ModelConfig, values: Mapping[str, KnobValue]) -> None:
        """Writes its part of `config`: accelerators, parameters, the model file's name."""


def facts_have(facts: Facts, backend: str) -> str:
    """Why a knob of `backend` means nothing for a model and target; "" where it is legal."""
    return "" if facts.allowed(backend) else f"it belongs to the {backend} backend, which is not used here"
