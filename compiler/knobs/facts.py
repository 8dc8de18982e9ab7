"""What a model and a target say that decides which knobs and values are legal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tritonc.compiler.release import Release

ASSUMED_CORES = 4
"""Cores of a target that does not say how many it has: grids must not depend on the machine that compiles."""

InstanceKind = Literal["KIND_CPU", "KIND_GPU"]


@dataclass(frozen=True, slots=True)
class Allowed:
    """One backend that may serve the model on the target, with what the spec lets it use."""

    backend: str
    accelerators: tuple[str, ...]
    precisions: tuple[str, ...]
    batches_requests: bool
    """It can answer several requests in one execution."""
    shares_weights: bool
    """Its instances share one copy of the weights."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A (model, target), reduced to what legality depends on.

    Attributes:
        declared_cores: of the target; None where it does not say.
        memory_bytes: of the target's host; None where unknown.
        gpu_memory_bytes: of one GPU; None where unknown.
        max_batch_size: the largest to consider; 0 where requests have no batch axis of Triton's.
        request_batch: inferences in a request of the workloads, of several sizes the largest.
        least_batch: what the model has to accept in one request, `request_batch` or more.
        weights_bytes: the model file with its external data.
        latency_slo_ms: the smallest latency limit of the SLO; None where there is none.
        own_scheduler: the scheduler that the model's `config:` sets, for example "sequence_batching", or "".
        open_inputs: inputs with a dimension that neither the file, `dims` nor `shapes` settles.
        backends: those that can serve the model here, in the spec's order; never empty.
        kinds: the instance kind of every accelerator that is allowed here.
    """

    model: str
    target: str
    device: Literal["cpu", "gpu"]
    release: Release
    declared_cores: int | None
    memory_bytes: int | None
    gpu_memory_bytes: int | None
    gpus: int
    max_batch_size: int
    request_batch: int
    least_batch: int
    weights_bytes: int
    latency_slo_ms: float | None
    own_scheduler: str
    open_inputs: tuple[str, ...]
    backends: tuple[Allowed, ...]
    kinds: Mapping[str, InstanceKind]

    @property
    def cores(self) -> int:
        """What grids go up to."""
        return self.declared_cores or ASSUMED_CORES

    def allowed(self, backend: str) -> Allowed | None:
        """What the spec lets `backend` use here; None where it cannot serve the model."""
        return next((allowed for allowed in self.backends if allowed.backend == backend), None)

    def backends_with(self, accelerator: str) -> tuple[str, ...]:
        """The backends that may use `accelerator` here."""
        return tuple(allowed.backend for allowed in self.backends if accelerator in allowed.accelerators)

    def instances_that_fit(self, kind: InstanceKind) -> int | None:
        """How many instances the memory of `kind` has room for; None where nothing limits them."""
        memory = self.gpu_memory_bytes if kind == "KIND_GPU" else self.memory_bytes
        if memory is None or not self.weights_bytes:
            return None
        copies = memory // self.weights_bytes
        running = (a for a in self.backends if any(self.kinds.get(name) == kind for name in a.accelerators))
        return None if copies and all(a.shares_weights for a in running) else copies
