from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tritonc.schemas.errors import EngineError
from tritonc.tuner import bundle
from tritonc.tuner.bundle import (
    Bundle,
    Wheel,
    bundle_folder,
    cache_folder,
    fetch_bundle,
    installed_bundle,
    unpack,
)

# Two small wheels in the place of the real ones: the same code, in milliseconds.
_SERVER = {
    "pytriton/tritonserver/bin/tritonserver": "#!/bin/sh\necho server\n",
    "pytriton/tritonserver/backends/python/libtriton_python.so": "library",
    "pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub": "stub",
    "pytriton/model_config/generator.py": "not wanted",
    "nvidia_pytriton.libs/libb64-98cb6333.so.0d": "b64",
    "nvidia_pytriton.libs/libcudart-09529672.so.12.6.77": "cudart",
}
_CLIENT = {
    "tritonclient-2.43.0.data/data/bin/perf_analyzer": "#!/bin/sh\necho analyzer\n",
    "tritonclient-2.43.0.data/data/LICENSE.txt": "license",
    "tritonclient-2.43.0.data/purelib/tritonclient/__init__.py": "not wanted",
}


def make_wheel(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    files = [
        make_wheel(folder / "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl", _SERVER),
        make_wheel(folder / "tritonclient-2.43.0-py3-none-manylinux1_x86_64.whl", _CLIENT),
    ]
    pinned = tuple(
        Wheel(w.package, w.version, hashlib.sha256(file.read_bytes()).hexdigest(), w.wanted)
        for w, file in zip(bundle.WHEELS, files, strict=True)
    )
    monkeypatch.setattr(bundle, "WHEELS", pinned)
    monkeypatch.setenv("TRITONC_BUNDLE_WHEELS", str(folder))
    return folder


def test_unpacks_what_is_needed_with_run_bits_and_plain_library_names(wheels: Path, tmp_path: Path) -> None:
    told: list[str] = []
    got = fetch_bundle(tmp_path / "cache", lambda what, _: told.append(what))
    for program, says in ((got.tritonserver, "server"), (got.perf_analyzer, "analyzer")):
        assert subprocess.run([program], capture_output=True, text=True).stdout.strip() == says
    assert os.access(got.stub((3, 11)), os.X_OK)
    assert {p.name: p.resolve().read_text() for p in got.plain_libraries.iterdir()} == {
        "libb64.so.0d": "b64",
        "libcudart.so.12": "cudart",
    }
    assert not list(got.folder.rglob("generator.py"))
    assert told == ["unpacking nvidia-pytriton 0.7.0", "unpacking tritonclient 2.43.0"]
    assert sorted(p.name for p in got.folder.parent.iterdir()) == [".lock", got.folder.name]


def test_is_fetched_once(wheels: Path, tmp_path: Path) -> None:
    assert installed_bundle(tmp_path / "cache") is None
    first = fetch_bundle(tmp_path / "cache")
    shutil.rmtree(wheels)
    assert fetch_bundle(tmp_path / "cache") == first == installed_bundle(tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut", "gone", "no run bit", "no manifest", "bad manifest"])
def test_a_damaged_bundle_is_made_anew(wheels: Path, tmp_path: Path, damage: str) -> None:
    got = fetch_bundle(tmp_path / "cache")
    library = got.python_backend / "libtriton_python.so"
    match damage:
        case "cut":
            library.write_text("libr")
        case "gone":
            library.unlink()
        case "no run bit":
            got.tritonserver.chmod(0o644)
        case "no manifest":
            (got.folder / "bundle.json").unlink()
        case "bad manifest":
            (got.folder / "bundle.json").write_text('["?"]')
    expected_missing = os.geteuid() != 0 or damage != "no run bit" or not os.access(got.tritonserver, os.X_OK)
    assert (installed_bundle(tmp_path / "cache") is None) == expected_missing
    fetch_bundle(tmp_path / "cache")
    assert library.read_text() == "library"
    assert os.access(got.tritonserver, os.X_OK)


def test_processes_that_start_together_fetch_it_once(wheels: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from tritonc.tuner import bundle
bundle.WHEELS = {bundle.WHEELS!r}
bundle.fetch_bundle(Path(sys.argv[1]), lambda what, share: print(what))
"""
    code = code.replace("Wheel(", "bundle.Wheel(")
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert sorted(len(output.splitlines()) for output in outputs) == [0, 0, 0, 2]


def test_a_wheel_that_is_not_the_pinned_one_is_refused(wheels: Path, tmp_path: Path) -> None:
    make_wheel(next(wheels.glob("nvidia*")), {**_SERVER, "more": "x"})
    with pytest.raises(EngineError, match=r"nvidia_pytriton-0\.7\.0-\*\.whl has another SHA-256"):
        fetch_bundle(tmp_path / "cache")
    shutil.rmtree(wheels)
    with pytest.raises(EngineError, match="is not there") as caught:
        fetch_bundle(tmp_path / "cache")
    assert "TRITONC_BUNDLE_WHEELS" in caught.value.hint
    assert not bundle_folder(tmp_path / "cache").exists()


def test_pip_downloads_the_pinned_wheels_and_nothing_of_them_is_left(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITONC_BUNDLE_WHEELS")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    for wheel, members in ((next(wheels.glob("nvidia*")), _SERVER), (next(wheels.glob("tritonc*")), _CLIENT)):
        package, version = wheel.name.split("-")[:2]
        info = f"{package}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        make_wheel(wheel, {**members, f"{info}/METADATA": metadata, f"{info}/WHEEL": "Wheel-Version: 1.0\n"})
    pinned = tuple(
        Wheel(w.package, w.version, hashlib.sha256(file.read_bytes()).hexdigest(), w.wanted)
        for w, file in zip(
            bundle.WHEELS, (next(wheels.glob("nvidia*")), next(wheels.glob("tritonc*"))), strict=True
        )
    )
    monkeypatch.setattr(bundle, "WHEELS", pinned)
    got = fetch_bundle(tmp_path / "cache")
    assert got.tritonserver.exists()
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_an_interrupted_download_leaves_no_pip_running(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = tmp_path / "python"
    pip.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho Progress 1 of 10\nexec sleep 60\n")
    pip.chmod(0o755)
    monkeypatch.delenv("TRITONC_BUNDLE_WHEELS")
    monkeypatch.setattr("sys.executable", str(pip))

    def terminated(_what: str, share: float | None) -> None:
        if share is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_bundle(tmp_path / "cache", terminated)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
    assert not list((tmp_path / "cache" / "bundle").glob(".unpacking-*"))


def test_without_an_index_the_message_says_how_to_bring_the_wheels(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITONC_BUNDLE_WHEELS")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        EngineError, match=r"nvidia-pytriton 0\.7\.0 cannot be downloaded; pip said"
    ) as caught:
        fetch_bundle(tmp_path / "cache")
    assert "pip download --no-deps tritonclient==2.43.0" in caught.value.hint
    assert "TRITONC_BUNDLE_WHEELS" in caught.value.hint


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/escaped", "a\\..\\escaped"])
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    wheel = make_wheel(tmp_path / "bad.whl", {f"wanted/{name}": "x"})
    with pytest.raises(EngineError, match="would leave the folder"):
        unpack(wheel, {"wanted/": ""}, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("escaped"))


def test_a_file_that_is_no_wheel_and_a_wheel_that_lacks_something_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.whl").write_text("no zip")
    with pytest.raises(EngineError, match=r"no\.whl is not a wheel"):
        unpack(tmp_path / "no.whl", {"a/": ""}, tmp_path / "out")
    wheel = make_wheel(tmp_path / "other.whl", {"b/c": "x"})
    with pytest.raises(EngineError, match=r"other\.whl lacks a/"):
        unpack(wheel, {"a/": ""}, tmp_path / "out")


def test_a_cache_that_cannot_be_written_says_what_to_do(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be written") as caught:
        fetch_bundle(tmp_path / "file" / "cache")
    assert "TRITONC_CACHE_DIR" in caught.value.hint


def test_the_cache_goes_where_the_environment_says(tmp_path: Path) -> None:
    assert cache_folder({"TRITONC_CACHE_DIR": str(tmp_path)}) == tmp_path
    assert cache_folder({}).name == "tritonc"


def test_other_machines_are_told_to_use_the_local_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(EngineError, match="x86-64 Linux only; this is Linux on aarch64"):
        bundle.check_platform()
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    with pytest.raises(EngineError, match=r"need glibc 2\.35 or newer; this system has glibc 2\.31"):
        bundle.check_platform()


def test_paths_of_a_bundle_hang_together(tmp_path: Path) -> None:
    got = Bundle(tmp_path)
    assert got.stub((3, 12)).parent.name == "3.12"
    assert str(got.libraries) in got.library_path
