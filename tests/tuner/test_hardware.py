"""What this machine is, whether it stands in for a target, and who runs on which core."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tritonc.schemas.spec import BackendSpec, TargetSpec
from tritonc.schemas.spec import Gpu as GpuSpec
from tritonc.tuner.git import commit_of
from tritonc.tuner.hardware import Gpu, Machine, pinning, this_machine, why_not_measurable

MACHINE = Machine("Some CPU", (0, 1, 2, 3), None, 8 * 2**30, ())
GPU_MACHINE = replace(MACHINE, gpus=(Gpu("NVIDIA A10", 24 * 2**30),))


def target(device: str = "cpu", **fields) -> TargetSpec:
    return TargetSpec(device=device, backends={"onnxruntime": BackendSpec()}, **fields)


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_this_machine_has_a_name_cores_and_memory():
    record = this_machine().record()
    assert record.cpu
    assert 1 <= record.cores <= len(os.sched_getaffinity(0))
    assert record.memory_bytes > 2**28


def test_a_container_s_limits_count_wherever_they_are_set(tmp_path: Path):
    root = files(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast CPU 9000\n",
            "proc/meminfo": "MemTotal:       16777216 kB\n",
            "proc/self/cgroup": "0::/pod/container\n",
            "sys/fs/cgroup/pod/container/memory.max": "max\n",
            "sys/fs/cgroup/pod/container/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/memory.max": f"{2**30}\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
        },
    )
    machine = this_machine(root)
    assert (machine.cpu, machine.memory_bytes, machine.core_quota) == ("Fast CPU 9000", 2**30, 1.5)
    assert machine.usable_cores == 1


def test_control_groups_of_version_1_limit_memory_too(tmp_path: Path):
    root = files(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:       16777216 kB\n",
            "proc/self/cgroup": "5:memory:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**31}\n",
        },
    )
    assert this_machine(root).memory_bytes == 2**31


@pytest.mark.parametrize(
    ("spec", "machine", "reason"),
    [
        (target(cores=4, memory=8 * 2**30), MACHINE, None),
        (target(), MACHINE, None),
        (target(cores=5), MACHINE, "it has 5 cores, this machine 4"),
        (target(memory=16 * 2**30), MACHINE, "it has 16.0 GiB of memory, this machine 8.0 GiB"),
        (
            target("gpu", gpu=GpuSpec(name="A10", memory=2**34)),
            MACHINE,
            "it has 1 x A10, this machine none",
        ),
        (target("gpu", gpu=GpuSpec(name="A10", memory=2**34)), GPU_MACHINE, None),
        (
            target("gpu", gpu=GpuSpec(name="A100", memory=2**34)),
            GPU_MACHINE,
            "it has 1 x A100, this machine NVIDIA A10",
        ),
        (
            target("gpu", gpu=GpuSpec(name="A10", memory=2**34, count=2)),
            GPU_MACHINE,
            "it has 2 x A10, this machine NVIDIA A10",
        ),
    ],
)
def test_a_machine_measures_only_for_targets_it_can_stand_in_for(spec, machine, reason):
    assert why_not_measurable(spec, machine) == reason


def test_the_server_gets_the_target_s_cores_and_the_load_generator_the_rest():
    assert pinning(1, (4, 5, 6)).server == (4,)
    assert pinning(1, (4, 5, 6)).load_generator == (5, 6)
    assert pinning(None, (4, 5, 6)).load_generator == ()


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_is_dirty_only_where_the_evidence_s_own_files_changed(tmp_path: Path):
    spec, other = tmp_path / "spec.yaml", tmp_path / "notes.txt"
    spec.write_text("a")
    other.write_text("a")
    git(tmp_path, "init")
    assert commit_of(tmp_path, [spec]) is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = commit_of(tmp_path, [spec])
    assert commit is not None
    assert len(commit) == 40
    other.write_text("b")
    assert commit_of(tmp_path, [spec]) == commit
    spec.write_text("b")
    assert commit_of(tmp_path, [spec]) == f"{commit}+dirty"


def test_there_is_no_commit_outside_a_repository(tmp_path: Path):
    assert commit_of(tmp_path) is None
