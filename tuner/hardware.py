"""The machine that measures: what a Measurement records of it, and whether it can stand in for a target."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonc.schemas.measurement import Hardware
from tritonc.schemas.spec import TargetSpec


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML names it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use of the machine it runs on.

    Attributes:
        cpu: the processor's own name.
        cores: numbers of the cores that this process may run on.
        core_quota: cores' worth of time that the container grants; None without a limit.
        memory_bytes: the smaller of what is built in and what the container grants.
    """

    cpu: str
    cores: tuple[int, ...]
    core_quota: float | None
    memory_bytes: int
    gpus: tuple[Gpu, ...]

    @property
    def usable_cores(self) -> int:
        """How many cores can be kept busy at once."""
        granted = len(self.cores) if self.core_quota is None else math.floor(self.core_quota)
        return max(1, min(len(self.cores), granted))

    def record(self) -> Hardware:
        """As the lock writes it."""
        return Hardware(
            cpu=self.cpu,
            cores=self.usable_cores,
            memory_bytes=self.memory_bytes,
            gpus=tuple(gpu.name for gpu in self.gpus),
        )


@dataclass(frozen=True, slots=True)
class Pinning:
    """Which cores the server and the load generator run on; empty where they are not pinned."""

    server: tuple[int, ...]
    load_generator: tuple[int, ...]


def this_machine(root: Path = Path("/")) -> Machine:
    """The machine this process runs on, as seen under the file system's `root`."""
    groups = _cgroup_folders(root)
    return Machine(
        cpu=_cpu_name(root),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        core_quota=_core_quota(groups),
        memory_bytes=_memory_bytes(root, groups),
        gpus=_gpus(),
    )


def why_not_measurable(target: TargetSpec, machine: Machine) -> str | None:
    """Why `machine` cannot measure for `target`, in half a sentence; None where it can."""
    if target.cores is not None and target.cores > machine.usable_cores:
        return f"it has {target.cores} cores, this machine {machine.usable_cores}"
    if target.memory is not None and target.memory > machine.memory_bytes:
        return f"it has {_gib(target.memory)} of memory, this machine {_gib(machine.memory_bytes)}"
    if target.gpu is None:
        return None
    alike = [gpu for gpu in machine.gpus if _same_gpu(target.gpu.name, gpu.name)]
    if len(alike) < target.gpu.count:
        have = ", ".join(gpu.name for gpu in machine.gpus) or "none"
        return f"it has {target.gpu.count} x {target.gpu.name}, this machine {have}"
    return None


def pinning(target_cores: int | None, cores: Sequence[int]) -> Pinning:
    """As many cores for the server as the target has, the others, if any, for the load generator.

    >>> pinning(2, (0, 1, 2, 3))
    Pinning(server=(0, 1), load_generator=(2, 3))
    >>> pinning(2, (0, 1))
    Pinning(server=(0, 1), load_generator=())
    """
    count = len(cores) if target_cores is None else target_cores
    return Pinning(tuple(cores[:count]), tuple(cores[count:]))


def _same_gpu(wanted: str, name: str) -> bool:
    """Whether the words of `wanted` ("A10") stand in a device's full name ("NVIDIA A10")."""
    return set(wanted.lower().split()) <= set(name.lower().replace("-", " ").split()) | {name.lower()}


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _cpu_name(root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model"} and value.strip():
            return value.strip()
    return platform.machine()


def _cgroup_folders(root: Path) -> tuple[Path, ...]:
    """This process's control group and those around it (version 2), innermost first."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        if number == "0":
            own = Path(rest.partition(":")[2].lstrip("/"))
            return tuple(root / "sys/fs/cgroup" / part for part in (own, *own.parents))
    return ()


def _core_quota(groups: Sequence[Path]) -> float | None:
    quotas = []
    for group in groups:
        quota, _, period = _read(group / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory_bytes(root: Path, groups: Sequence[Path]) -> int:
    total = 0
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    limits = [_read(group / "memory.max").strip() for group in groups]
    # Version 1 keeps the limit under a folder of its own; "no limit" is a number near 2**63 there.
    limits.append(_read(root / "sys/fs/cgroup/memory/memory.limit_in_bytes").strip())
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _gpus() -> tuple[Gpu, ...]:
    """GPUs that NVML lists; none where it or its driver is absent."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(str(pynvml.nvmlDeviceGetName(h)), int(pynvml.nvmlDeviceGetMemoryInfo(h).total))
            for h in handles
        )
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()
