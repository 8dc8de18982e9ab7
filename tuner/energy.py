"""Energy that GPUs use, as their driver counts it (NVML, from Volta on)."""

from __future__ import annotations

import logging
from collections.abc import Collection

_log = logging.getLogger(__name__)


def gpu_energy_j(pids: Collection[int] = ()) -> float | None:
    """Joules that GPUs have used since their driver was loaded; None where they do not tell.

    Take the difference of two calls around what is measured. The counter is one of the whole device: idle
    power and other programs count.

    Args:
        pids: only GPUs on which one of these processes runs count; all do where NVML shows none of them, as
            in a container that has process numbers of its own.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        running = {
            i: {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}
            for i, device in enumerate(devices)
        }
        used = [device for i, device in enumerate(devices) if running[i] & set(pids)] or devices
        millijoules = [pynvml.nvmlDeviceGetTotalEnergyConsumption(device) for device in used]
    except pynvml.NVMLError as err:
        _log.debug("NVML does not tell the energy of GPUs: %s", err)
        return None
    finally:
        pynvml.nvmlShutdown()
    return sum(millijoules) / 1000 if millijoules else None
