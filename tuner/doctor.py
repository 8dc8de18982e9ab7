"""What this machine can build and measure, as data. Nothing is started, fetched or changed."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritonc.schemas.errors import TritoncError
from tritonc.tuner import bundle
from tritonc.tuner.extras import TUNE_PACKAGES, installed_versions
from tritonc.tuner.hardware import Gpu, Machine, this_machine
from tritonc.tuner.tracking import redacted

State = Literal["ok", "note", "problem"]
"""ok: there; note: not there, and tritonc does without it; problem: measuring needs it."""

ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-openvino", "onnxruntime-gpu")
"""The packages that bring the module `onnxruntime`; each is an extra of tritonc by the same name."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where POSIX shared memory lies on Linux)
_MIN_SHM_BYTES = 256 * 2**20  # the Python backend moves every tensor through it; containers give 64 MiB
_MIN_FREE_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        state: whether it will do.
        found: what was found, with versions.
        remedy: what to do about it; empty where nothing is to be done.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a machine has, and so what it can do.

    Attributes:
        checks: in the order in which they are shown.
        measurable: accelerators by backend that this machine can measure, by device ("cpu", "gpu").
    """

    checks: tuple[Check, ...]
    measurable: Mapping[str, Mapping[str, tuple[str, ...]]]

    @property
    def can_measure(self) -> bool:
        """Whether `tritonc tune` can measure anything here."""
        return bool(self.measurable) and all(check.state != "problem" for check in self.checks)


def examine(folder: Path, environ: Mapping[str, str] = os.environ) -> Report:
    """Looks at this machine.

    Args:
        folder: where the project lies; the disk it is on is looked at.
        environ: the environment variables.
    """
    runtimes = installed_versions(ONNX_RUNTIMES)
    providers = _providers() if len(runtimes) == 1 else ()
    openvino = installed_versions(["openvino"]).get("openvino")
    machine = this_machine()
    checks = (
        Check("Python", "ok", f"{platform.python_version()} ({sys.executable})"),
        _machine(machine),
        _platform(),
        _shared_library(),
        _tune_packages(installed_versions(TUNE_PACKAGES)),
        _embedded_engine(),
        _local_engine(environ),
        onnxruntime_check(runtimes, providers),
        _optional("OpenVINO", openvino, "the openvino backend", "openvino"),
        _gpu(machine.gpus),
        _optional(
            "TensorRT", _tensorrt(), "ONNX Runtime's TensorRT execution provider, on a GPU", "tensorrt"
        ),
        _shared_memory(),
        _disk(folder),
        _tracking(environ),
    )
    return Report(
        checks, _measurable(providers, has_openvino=openvino is not None, has_gpu=bool(machine.gpus))
    )


def installed_backends() -> dict[str, tuple[str, ...]]:
    """Accelerators of the CPU by backend that the installed packages can run; for a starter spec.

    Only what is installed is looked at, nothing is imported. Without any runtime it is onnxruntime alone,
    which compiles everywhere.
    """
    found = installed_versions(["onnxruntime-openvino", "openvino"])
    backends: dict[str, tuple[str, ...]] = {"onnxruntime": ("none",)}
    if "onnxruntime-openvino" in found:
        backends["onnxruntime"] = ("none", "openvino")
    if "openvino" in found:
        backends["openvino"] = ()
    return backends


def onnxruntime_check(runtimes: Mapping[str, str], providers: tuple[str, ...]) -> Check:
    """The verdict on the installed ONNX Runtime packages (versions by name) and their execution providers."""
    name = "ONNX Runtime"
    if len(runtimes) > 1:
        return Check(
            name,
            "problem",
            " and ".join(f"{package} {version}" for package, version in runtimes.items()),
            f"they overwrite each other's files: pip uninstall {' '.join(runtimes)}, then install one",
        )
    if not runtimes:
        return Check(
            name,
            "problem",
            "not installed",
            "pip install 'tritonc[onnxruntime-openvino]' (GPU: onnxruntime-gpu)",
        )
    ((package, version),) = runtimes.items()
    if not providers:
        return Check(
            name,
            "problem",
            f"{package} {version}, but it does not import",
            f"pip install --force-reinstall {package}",
        )
    short = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)
    return Check(name, "ok", f"{package} {version} ({short})")


def _providers() -> tuple[str, ...]:
    try:
        import onnxruntime
    except (ImportError, OSError):
        return ()
    return tuple(onnxruntime.get_available_providers())


def _measurable(
    providers: tuple[str, ...], *, has_openvino: bool, has_gpu: bool
) -> dict[str, dict[str, tuple[str, ...]]]:
    names = {"CPUExecutionProvider": "none", "OpenVINOExecutionProvider": "openvino"}
    cpu: dict[str, tuple[str, ...]] = {}
    if providers:
        cpu["onnxruntime"] = tuple(word for provider, word in names.items() if provider in providers)
    if has_openvino:
        cpu["openvino"] = ("none",)
    devices = {"cpu": cpu} if cpu else {}
    names = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}
    gpu = tuple(word for provider, word in names.items() if provider in providers)
    if gpu and has_gpu:
        devices["gpu"] = {"onnxruntime": gpu}
    return devices


def _platform() -> Check:
    found = f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}"
    try:
        bundle.check_platform()
    except TritoncError as error:
        return Check("platform", "problem", error.what, error.hint)
    return Check("platform", "ok", found)


def _shared_library() -> Check:
    from tritonc.tuner.engines.embedded import find_libpython

    try:
        return Check("libpython", "ok", str(find_libpython()))
    except TritoncError as error:
        return Check("libpython", "problem", error.what, error.hint)


def _tune_packages(found: Mapping[str, str]) -> Check:
    missing = [package for package in TUNE_PACKAGES if package not in found]
    if missing:
        return Check("tune extra", "problem", f"missing: {', '.join(missing)}", "pip install 'tritonc[tune]'")
    return Check("tune extra", "ok", ", ".join(f"{name} {found[name]}" for name in ("optuna", "mlflow")))


def _embedded_engine() -> Check:
    name = "embedded engine"
    versions = f"tritonserver {bundle.SERVER_VERSION}, perf_analyzer {bundle.PERF_ANALYZER_VERSION}"
    try:
        installed = bundle.installed_bundle()
    except TritoncError as error:
        return Check(name, "problem", error.what, error.hint)
    if installed is None:
        return Check(name, "note", "not fetched yet", f"the first `tritonc tune` fetches it ({versions})")
    return Check(name, "ok", f"{versions} ({installed.folder})")


def _local_engine(environ: Mapping[str, str]) -> Check:
    from tritonc.tuner.engines.local import LocalEngine

    try:
        return Check("local engine", "ok", str(LocalEngine().installation(environ=environ).binary))
    except TritoncError as error:
        return Check("local engine", "note", error.what, f"only for `tune --engine local`: {error.hint}")


def _optional(name: str, version: str | None, use: str, extra: str) -> Check:
    if version is None:
        return Check(name, "note", "not installed", f"only for {use}: pip install 'tritonc[{extra}]'")
    return Check(name, "ok", version)


def _tensorrt() -> str | None:
    return next(iter(installed_versions(["tensorrt", "tensorrt-rtx"]).values()), None)


def _gpu(gpus: Sequence[Gpu]) -> Check:
    if not gpus:
        return Check("GPU", "note", "none that NVML sees", "GPU targets compile here; measure them elsewhere")
    return Check("GPU", "ok", "; ".join(f"{gpu.name}, {_gib(gpu.memory_bytes)}" for gpu in gpus))


def _shared_memory() -> Check:
    name = str(_SHARED_MEMORY)
    try:
        usage = shutil.disk_usage(_SHARED_MEMORY)
    except OSError:
        return Check(name, "problem", "not there", f"mount a tmpfs on {name}")
    found = f"{_gib(usage.total)}, {_gib(usage.free)} free"
    if usage.free < _MIN_SHM_BYTES:
        return Check(name, "problem", found, "tensors pass through it: in a container, --shm-size=1g")
    return Check(name, "ok", found)


def _machine(machine: Machine) -> Check:
    found = f"{machine.usable_cores} cores, {_gib(machine.memory_bytes)} of memory ({machine.cpu})"
    if machine.usable_cores == 1:
        return Check("machine", "note", found, "server and load generator share the core: numbers are coarse")
    return Check("machine", "ok", found)


def _disk(folder: Path) -> Check:
    usage = shutil.disk_usage(folder)
    found = f"{_gib(usage.free)} free in {folder}"
    if usage.free < _MIN_FREE_BYTES:
        return Check("disk", "note", found, "2 GiB keep a tuning run from ending early")
    return Check("disk", "ok", found)


def _tracking(environ: Mapping[str, str]) -> Check:
    uri = environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return Check(
            "MLflow", "ok", "a database in .tritonc/ beside the spec (MLFLOW_TRACKING_URI is not set)"
        )
    return Check("MLflow", "ok", f"MLFLOW_TRACKING_URI={redacted(uri)}")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
