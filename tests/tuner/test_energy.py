"""Energy as NVML counts it; where there is no GPU, a module that speaks as pynvml does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tritonc.tuner.energy import gpu_energy_j

NVML = """
class NVMLError(Exception):
    pass

class Process:
    pid = 4711

GPUS = {energies}

def nvmlInit():
    if not GPUS:
        raise NVMLError("Driver Not Loaded")

def nvmlShutdown():
    pass

def nvmlDeviceGetCount():
    return len(GPUS)

def nvmlDeviceGetHandleByIndex(index):
    return index

def nvmlDeviceGetComputeRunningProcesses(device):
    return [Process()] if device == 1 else []

def nvmlDeviceGetTotalEnergyConsumption(device):
    if GPUS[device] is None:
        raise NVMLError("Not Supported")
    return GPUS[device]
"""


@pytest.mark.parametrize(
    ("millijoules", "pids", "joules"),
    [
        ([1500, 2500], [], 4.0),
        ([1500, 2500], [4711], 2.5),
        ([1500, 2500], [1], 4.0),
        ([1500, None], [], None),
        ([], [], None),
    ],
)
def test_the_joules_of_the_gpus_that_a_process_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, millijoules, pids, joules
):
    (tmp_path / "pynvml.py").write_text(NVML.format(energies=millijoules))
    spec = importlib.util.spec_from_file_location("pynvml", tmp_path / "pynvml.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert gpu_energy_j(pids) == joules
