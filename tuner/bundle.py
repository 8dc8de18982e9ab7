"""The bundle: a tritonserver and a perf_analyzer, taken once from two pinned wheels into the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tritonc.schemas.errors import EngineError, MissingExtraError

_log = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]
"""Told what is being done and the share of it that is done (0 to 1; None where it is not known)."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned file of the package index, and what of it the bundle holds.

    Attributes:
        package: its name on the index.
        version: the pinned version.
        sha256: of the wheel file.
        wanted: path prefixes inside the wheel to unpack, with the prefix to unpack them to.
    """

    package: str
    version: str
    sha256: str
    wanted: Mapping[str, str]

    @property
    def requirement(self) -> str:
        """The line of a requirements file that accepts only this file."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


SERVER_VERSION = "2.51.0"
"""Version of the tritonserver in the pinned wheel, release 24.10."""
PERF_ANALYZER_VERSION = "2.43.0"

WHEELS = (
    Wheel(
        "nvidia-pytriton",
        "0.7.0",
        "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
        {
            "pytriton/tritonserver/": "pytriton/tritonserver/",
            "nvidia_pytriton.libs/": "nvidia_pytriton.libs/",
        },
    ),
    Wheel(
        "tritonclient",
        PERF_ANALYZER_VERSION,
        "a6ce7c1b170db4cc05f81c3bde1726ec65da8646f65dab9e0674eb9d564bec36",
        {
            "tritonclient-2.43.0.data/data/bin/perf_analyzer": "bin/perf_analyzer",
            "tritonclient-2.43.0.data/data/LICENSE.txt": "bin/LICENSE.txt",
        },
    ),
)

# Libraries that perf_analyzer wants by their plain names; the server wheel has them under hashed ones.
_PLAIN_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
_RUNNABLE = re.compile(r"(^|/)bin/(tritonserver|perf_analyzer)$|/triton_python_backend_stub$")
_LAYOUT = 1  # of the unpacked folder: a change of what is unpacked makes a new folder
_MANIFEST = "bundle.json"
_FREE_BYTES = 600 * 2**20  # wheels and unpacked files together take 230 MB
_MIN_GLIBC = (2, 35)  # the wheel's tag: manylinux_2_35


@dataclass(frozen=True, slots=True)
class Bundle:
    """An unpacked bundle."""

    folder: Path

    @property
    def tritonserver(self) -> Path:
        """The server's binary."""
        return self.folder / "pytriton/tritonserver/bin/tritonserver"

    @property
    def libraries(self) -> Path:
        """Shared libraries that server, stubs and perf_analyzer need."""
        return self.folder / "nvidia_pytriton.libs"

    @property
    def plain_libraries(self) -> Path:
        """Links to some of `libraries` under the names that perf_analyzer wants."""
        return self.folder / "lib"

    @property
    def python_backend(self) -> Path:
        """The Python backend without its stub."""
        return self.folder / "pytriton/tritonserver/backends/python"

    @property
    def perf_analyzer(self) -> Path:
        """The load generator's binary."""
        return self.folder / "bin/perf_analyzer"

    @property
    def caches(self) -> Path:
        """Triton's response cache implementations."""
        return self.folder / "pytriton/tritonserver/caches"

    def stub(self, python: tuple[int, int]) -> Path:
        """The Python backend's stub for a Python of this minor version."""
        name = f"{python[0]}.{python[1]}"
        return (
            self.folder / "pytriton/tritonserver/python_backend_stubs" / name / "triton_python_backend_stub"
        )

    @property
    def library_path(self) -> str:
        """Value of LD_LIBRARY_PATH for whatever runs out of the bundle."""
        return f"{self.libraries}{os.pathsep}{self.plain_libraries}"


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's cache folder: `TRITONC_CACHE_DIR`, or where this system keeps caches."""
    if override := environ.get("TRITONC_CACHE_DIR"):
        return Path(override).expanduser().absolute()
    try:
        import platformdirs
    except ImportError as err:
        raise MissingExtraError("platformdirs", "tune") from err
    return platformdirs.user_cache_path("tritonc")


def bundle_folder(cache: Path) -> Path:
    """Where the bundle of these very pins lies in a cache, whether or not it is there yet."""
    pins = json.dumps([_LAYOUT, *((w.sha256, sorted(w.wanted.items())) for w in WHEELS)])
    return cache / "bundle" / hashlib.sha256(pins.encode()).hexdigest()[:12]


def installed_bundle(cache: Path | None = None) -> Bundle | None:
    """The bundle if it lies complete in the cache, else None. Starts no download."""
    folder = bundle_folder(cache or cache_folder())
    return Bundle(folder) if _is_complete(folder) else None


def fetch_bundle(cache: Path | None = None, progress: Progress | None = None) -> Bundle:
    """The bundle, fetched and unpacked first if it is not in the cache or is damaged there.

    Safe to call from several processes at once: one fetches, the others wait.

    Raises:
        EngineError: this machine cannot run it, or the wheels cannot be had; the message says what to do.
    """
    check_platform()
    cache = cache or cache_folder()
    if bundle := installed_bundle(cache):
        return bundle
    try:
        import filelock
    except ImportError as err:
        raise MissingExtraError("filelock", "tune") from err
    folder = bundle_folder(cache)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / ".lock"):
            if not _is_complete(folder):  # another process may have been faster
                _install(folder, progress or _log_progress)
    except OSError as err:
        raise EngineError(
            f"the engine cannot be written to {folder.parent}: {err}",
            "make the folder writable, free some space, or name another one in TRITONC_CACHE_DIR",
        ) from err
    return Bundle(folder)


def perf_analyzer_environment(bundle: Bundle) -> dict[str, str]:
    """The whole environment in which the bundle's perf_analyzer finds its libraries."""
    return {**os.environ, "LD_LIBRARY_PATH": bundle.library_path}


def check_platform() -> None:
    """Returns if this machine can run the bundle's binaries.

    Raises:
        EngineError: it cannot; the message says why.
    """
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise EngineError(
            f"the pinned engine and perf_analyzer run on x86-64 Linux only; this is {system} on {machine}",
            "use `--engine local` with a tritonserver and `--perf-analyzer` of your own",
        )
    name, version = platform.libc_ver()
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if name != "glibc" or found < _MIN_GLIBC:
        raise EngineError(
            "the pinned engine and perf_analyzer need glibc 2.35 or newer; "
            f"this system has {name or 'no glibc'} {version}",
            "use Debian 12, Ubuntu 22.04 or newer, or `--engine local` with a tritonserver and "
            "`--perf-analyzer` of your own",
        )


def _log_progress(what: str, share: float | None) -> None:
    if share is None:
        _log.info("%s", what)


def _is_complete(folder: Path) -> bool:
    """Whether every file that was unpacked is still there with its size and run bit."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return all(
            (path := folder / name).stat().st_size == size
            and (not _RUNNABLE.search(name) or os.access(path, os.X_OK))
            for name, size in manifest.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def _install(folder: Path, progress: Progress) -> None:
    if (free := shutil.disk_usage(folder.parent).free) < _FREE_BYTES:
        raise EngineError(
            f"the engine needs {_FREE_BYTES >> 20} MB in {folder.parent}, which has {free >> 20} MB",
            "free some space or name another folder in TRITONC_CACHE_DIR",
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as name:
        temporary = Path(name)
        unpacked = temporary / "bundle"
        for wheel in WHEELS:
            with _wheel_file(wheel, temporary, progress) as path:
                progress(f"unpacking {wheel.package} {wheel.version}", None)
                unpack(path, wheel.wanted, unpacked)
        _link_plain_libraries(unpacked)
        manifest = {
            str(path.relative_to(unpacked)): path.stat().st_size
            for path in sorted(unpacked.rglob("*"))
            if path.is_file()
        }
        (unpacked / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if folder.exists():
            progress(f"replacing the damaged engine in {folder}", None)
            folder.rename(temporary / "damaged")
        unpacked.rename(folder)


def _link_plain_libraries(unpacked: Path) -> None:
    (unpacked / "lib").mkdir()
    for plain, pattern in _PLAIN_LIBRARIES.items():
        found = sorted((unpacked / "nvidia_pytriton.libs").glob(pattern))
        if not found:
            raise EngineError(f"the wheel of {WHEELS[0].package} has no {pattern}")
        (unpacked / "lib" / plain).symlink_to(Path("..") / "nvidia_pytriton.libs" / found[0].name)


@contextmanager
def _wheel_file(wheel: Wheel, temporary: Path, progress: Progress) -> Iterator[Path]:
    """The wheel with its hash checked: the user's own copy, or a download that is deleted afterwards."""
    if given := os.environ.get("TRITONC_BUNDLE_WHEELS"):
        yield _given_wheel(wheel, Path(given).expanduser())
        return
    target = temporary / wheel.package
    target.mkdir()
    try:
        yield _download(wheel, target, progress)
    finally:
        shutil.rmtree(target)


def _given_wheel(wheel: Wheel, folder: Path) -> Path:
    pattern = f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"
    candidates = sorted(folder.glob(pattern))
    for path in candidates:
        if _sha256(path) == wheel.sha256:
            return path
    found = "has another SHA-256" if candidates else "is not there"
    raise EngineError(
        f"TRITONC_BUNDLE_WHEELS={folder}: {pattern} {found}",
        f"put the x86-64 manylinux wheel of {wheel.package} {wheel.version} there (sha256 {wheel.sha256}), "
        "or unset TRITONC_BUNDLE_WHEELS to download it",
    )


def _download(wheel: Wheel, target: Path, progress: Progress) -> Path:
    """Has pip download the wheel into the empty folder `target`; pip checks the hash."""
    requirements = target / "requirements.txt"
    requirements.write_text(wheel.requirement + "\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    command += ["--progress-bar=raw", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    command += ["-d", str(target), "-r", str(requirements)]
    what = f"downloading {wheel.package} {wheel.version}"
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None
        try:
            progress(what, None)  # once it runs: a Ctrl-C that answers this ends it
            for line in pip.stdout:
                if match := re.match(r"Progress (\d+) of (\d+)", line):
                    progress(what, int(match[1]) / max(1, int(match[2])))
                else:
                    lines.append(line.rstrip())
        except BaseException:
            pip.kill()  # a SIGTERM is for tritonc alone
            raise
    paths = sorted(target.glob("*.whl"))
    if pip.returncode or not paths:
        reason = "\n".join(line for line in lines if line.strip())[-2000:]
        raise EngineError(
            f"{wheel.package} {wheel.version} cannot be downloaded; pip said:\n{reason}",
            "connect to the package index that pip is configured for; or, on a machine that has one, run "
            + " and ".join(f"`pip download --no-deps {w.package}=={w.version}`" for w in WHEELS)
            + ", copy the wheels into a folder here and name that folder in TRITONC_BUNDLE_WHEELS",
        )
    return paths[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(wheel: Path, wanted: Mapping[str, str], out: Path) -> None:
    """Writes the members of `wheel` that begin with a key of `wanted` to `out`, under that key's value.

    Raises:
        EngineError: the file is no wheel, lacks something wanted, or has a member that would leave `out`.
    """
    missing = set(wanted)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                prefix = next((p for p in wanted if member.filename.startswith(p)), None)
                if prefix is None or member.is_dir():
                    continue
                missing.discard(prefix)
                name = wanted[prefix] + member.filename[len(prefix) :]
                parts = PurePosixPath(name).parts
                if name.startswith("/") or "\\" in name or ".." in parts:
                    raise EngineError(f"{wheel.name}: the member {member.filename!r} would leave the folder")
                path = out.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, 2**20)
                path.chmod(0o755 if _RUNNABLE.search(name) or ".so" in path.name else 0o644)
    except (zipfile.BadZipFile, FileExistsError) as err:
        raise EngineError(f"{wheel.name} is not a wheel that can be unpacked: {err}") from err
    if missing:
        raise EngineError(f"{wheel.name} lacks {', '.join(sorted(missing))}")
