"""What a target allows: its backends, accelerators and precisions, checked and reduced to facts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tritonc.compiler.backends import BACKENDS, Backend, backend_hint
from tritonc.compiler.knobs.facts import Allowed, Facts, InstanceKind
from tritonc.compiler.release import Release
from tritonc.schemas.errors import SpecError, did_you_mean
from tritonc.schemas.request_batch import sizes_of
from tritonc.schemas.spec import BackendSpec, Slo, TargetSpec

if TYPE_CHECKING:
    from tritonc.compiler.project import Project
    from tritonc.schemas.spec_file import SpecFile

_SCHEDULERS = ("sequence_batching", "sequenceBatching")
_CPU_DEFAULT, _GPU_DEFAULT = ("none",), ("cuda",)


def target_problems(spec_file: SpecFile, target: str) -> list[SpecError]:
    """Everything that is wrong with the backends of a target, with its place in the spec."""
    spec = spec_file.spec.targets[target]
    problems: list[SpecError] = []
    for name, allowed in spec.backends.items():
        here = ("targets", target, "backends", name)
        if name not in BACKENDS:
            problems.append(spec_file.error(here, *backend_hint(name), at_key=True))
            continue
        for key_path, what, hint in _backend_problems(BACKENDS[name], allowed, spec, target):
            problems.append(spec_file.error((*here, *key_path), what, hint))
    return problems


def _backend_problems(
    backend: Backend, allowed: BackendSpec, spec: TargetSpec, target: str
) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    release = Release.parse(spec.triton)
    gpus = spec.gpu.count if spec.gpu else 1
    for i, name in enumerate(allowed.accelerators or ()):
        accelerator = backend.accelerators.get(name)
        place = ("accelerators", i)
        if accelerator is None:
            hint = did_you_mean(name, backend.accelerators)
            yield place, f'unknown accelerator "{name}" for {backend.name}', hint
        elif accelerator.kind == "KIND_GPU" and spec.device == "cpu":
            what = f"accelerator {name} needs a GPU, and target {target} is device: cpu"
            legal = [a.name for a in backend.accelerators.values() if a.kind == "KIND_CPU"]
            yield place, what, f"use {' or '.join(legal)}, or declare device: gpu"
        elif refusal := backend.accelerator_refusal(name, gpus, release):
            yield place, refusal, "serve with a later release, or with one GPU"
    accelerators = _accelerators(backend, allowed, spec)
    possible = sorted({p for a in accelerators for p in backend.accelerators[a].precisions})
    known = sorted({p for a in backend.accelerators.values() for p in a.precisions})
    for i, precision in enumerate(allowed.precisions or ()):
        place = ("precisions", i)
        if precision not in known:
            what = f'unknown precision "{precision}" for {backend.name}'
            yield place, what, did_you_mean(precision, known)
        elif precision not in possible:
            able = [a.name for a in backend.accelerators.values() if precision in a.precisions]
            what = f"precision {precision} needs accelerator {' or '.join(able)}, which target {target} lacks"
            yield place, what, f"allow it, or leave the precision out ({', '.join(possible)})"
        elif (since := _since(backend, accelerators, precision)) and release < since:
            what = f"precision {precision} needs Triton {since}; target {target} is served by {release}"
            yield place, what, "leave it out, or serve with a later release"


def _since(backend: Backend, accelerators: tuple[str, ...], precision: str) -> Release | None:
    """The first release in which the accelerators that have a precision can use it."""
    able = (backend.accelerators[a].precisions for a in accelerators)
    return next((precisions[precision] for precisions in able if precision in precisions), None)


def _accelerators(backend: Backend, allowed: BackendSpec, spec: TargetSpec) -> tuple[str, ...]:
    """Those that the spec allows, or else the device's usual one, as far as the backend has them."""
    named = allowed.accelerators or (_GPU_DEFAULT if spec.device == "gpu" else _CPU_DEFAULT)
    known = tuple(dict.fromkeys(name for name in named if name in backend.accelerators))
    return known or _CPU_DEFAULT


def facts_for(project: Project, model: str, target: str) -> Facts:
    """What decides legality for a model on a target that has no `target_problems`.

    Raises:
        SpecError: none of the target's backends can serve the model.
    """
    spec_file = project.spec_file
    spec, declared = spec_file.spec.targets[target], spec_file.spec.models[model]
    file = project.models[model]
    signature = project.served_signature(model)
    release = Release.parse(spec.triton)
    ensemble = spec_file.spec.ensemble_with(model)
    asked = spec_file.spec.asked_of(ensemble or model)
    request_batches = {size for workload in asked.workloads for size in sizes_of(workload.request_batch)}
    backends: list[Allowed] = []
    kinds: dict[str, InstanceKind] = {}
    refusals: list[str] = []
    for name, allowed in spec.backends.items():
        backend = BACKENDS[name]
        if refusal := backend.refusal(signature, release):
            refusals.append(f"{name}: {refusal}")
            continue
        if len(request_batches) > 1 and not backend.batches_requests:
            sizes = ", ".join(map(str, sorted(request_batches)))
            refusals.append(f"{name}: it answers full batches only, and there are requests of {sizes}")
            continue
        accelerators = _accelerators(backend, allowed, spec)
        kinds.update((a, backend.accelerators[a].kind) for a in accelerators)
        backends.append(
            Allowed(
                name,
                accelerators,
                tuple(dict.fromkeys(allowed.precisions or ("fp32",))),
                backend.batches_requests,
                backend.shares_weights,
            )
        )
    if not backends:
        raise spec_file.error(
            ("targets", target, "backends"),
            f"no backend of target {target} can serve model {model}: {'; '.join(refusals)}",
            "allow another backend, or serve with a later release",
        )
    shapes = {t.name: declared.shapes.get(t.name, t.dims) for t in signature.inputs}
    gpu = spec.gpu
    return Facts(
        model=model,
        target=target,
        device=spec.device,
        release=release,
        declared_cores=spec.cores,
        memory_bytes=spec.memory,
        gpu_memory_bytes=gpu.memory if gpu else None,
        gpus=gpu.count if gpu else 1,
        max_batch_size=project.max_batch_size(model),
        request_batch=max(request_batches),
        least_batch=max(*request_batches, project.ensembles[ensemble].max_batch_size if ensemble else 0),
        weights_bytes=file.size_bytes + sum(data.stat().st_size for data in file.external_data),
        latency_slo_ms=_latency_slo_ms(asked.slo),
        own_scheduler=next((key for key in _SCHEDULERS if key in declared.config), ""),
        open_inputs=tuple(name for name, dims in shapes.items() if -1 in dims),
        backends=tuple(backends),
        kinds=kinds,
    )


def _latency_slo_ms(slo: Slo) -> float | None:
    """The smallest latency that must not be exceeded; a soft limit rules out nothing."""
    limits = (limit for name, limit in slo.hard.items() if name.endswith("_latency_ms"))
    return min(limits, default=None)
