"""The embedded engine: the tritonserver of the bundle, with backends of our own for its Python backend."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tritonc.compiler.release import release_of_server
from tritonc.schemas.errors import EngineError, MissingExtraError
from tritonc.tuner.bundle import (
    SERVER_VERSION,
    Bundle,
    Progress,
    cache_folder,
    fetch_bundle,
    perf_analyzer_environment,
)
from tritonc.tuner.engines import EngineDescription, Server
from tritonc.tuner.engines.starting import Installation, is_plain, running_server

# Each request's tensors are allocated three times on the way to a stub and back. Left to itself, glibc maps
# and unmaps what is larger than 128 KiB: 0.8 ms of page faults for a tensor of 1 MiB each way.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20)}

_BACKENDS = Path(__file__).with_name("backends")
_RUNTIMES = ("onnxruntime", "onnxruntime-openvino", "onnxruntime-gpu", "openvino")


class EmbeddedEngine:
    """Runs the bundle's tritonserver; models are executed by this Python environment's own runtimes."""

    name = "embedded"

    def __init__(self, cache: Path | None = None, progress: Progress | None = None) -> None:
        """Fetches nothing yet.

        Args:
            cache: folder for the bundle; None for the user's cache.
            progress: told how the download goes.
        """
        self._cache = cache
        self._progress = progress

    def describe(self) -> EngineDescription:
        """Versions of the server and of the runtimes installed beside tritonc."""
        return EngineDescription(
            SERVER_VERSION, str(release_of_server(SERVER_VERSION) or "unknown"), installed_runtimes()
        )

    def perf_analyzer(self) -> tuple[Path, Mapping[str, str]]:
        """The bundle's perf_analyzer and the environment to run it in."""
        bundle = self._bundle()
        return bundle.perf_analyzer, perf_analyzer_environment(bundle)

    def serve(
        self,
        repository: Path,
        *,
        log: Path,
        cores: tuple[int, ...] = (),
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> AbstractContextManager[Server]:
        """A ready server (see `Engine.serve`)."""
        for argument in args:
            refuse_backend_argument(argument)
        installation = self.installation(env or {})
        return running_server(installation, repository, log=log, cores=cores, args=args)

    def installation(self, env: Mapping[str, str] | None = None) -> Installation:
        """The server as it lies in the cache, fetched and assembled first where needed."""
        bundle = self._bundle()
        assembled = assemble_backends(bundle, self._cache or cache_folder())
        if not is_plain(assembled):
            raise EngineError(
                f"Triton's Python backend cannot be started from {assembled}: a shell would not read it so",
                "set TRITONC_CACHE_DIR to a folder without spaces and special characters",
            )
        python = Path(sys.executable).parent
        if not (python / "python3").exists():
            raise EngineError(
                f"there is no python3 beside {sys.executable}, which is what Triton's Python backend starts",
                "run tritonc from a virtual environment: python3 -m venv",
            )
        environment = {
            **_MALLOC,
            **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")},
            "LD_LIBRARY_PATH": f"{bundle.library_path}{os.pathsep}{assembled / 'lib'}",
            "PATH": f"{python}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONDONTWRITEBYTECODE": "1",  # the cache's files are shared by processes, and stay as they are
            **(env or {}),
        }
        return Installation(bundle.tritonserver, assembled / "backends", environment)

    def _bundle(self) -> Bundle:
        return fetch_bundle(self._cache, self._progress)


def installed_runtimes() -> dict[str, str]:
    """Versions of the packages that execute models here, by package."""
    found = {}
    for package in _RUNTIMES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def refuse_backend_argument(argument: str) -> None:
    """Returns if the argument has its effect here.

    Raises:
        EngineError: it is meant for an official backend and would be ignored without a word.
    """
    flag, _, value = argument.partition("=")
    backend = value.partition(",")[0]
    if flag == "--backend-config" and backend in backend_names():
        raise EngineError(
            f"the embedded engine's {backend} backend does not honour {argument}",
            "leave it out, or measure with `--engine local` and the official backend",
        )


def backend_names() -> list[str]:
    """Backends that the embedded engine brings."""
    return sorted(path.parent.name for path in _BACKENDS.glob("*/model.py"))


def _libpython_name() -> str:
    return f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def find_libpython() -> Path:
    """The shared library of the interpreter that runs this, which Triton's Python backend links.

    Raises:
        EngineError: this Python has none.
    """
    major, minor = sys.version_info[:2]
    name = _libpython_name()
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        Path(sys.base_prefix) / "lib",
        Path(sys.base_prefix) / "lib64",
        f"/usr/lib/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}",
        "/usr/lib64",
        "/usr/lib",
    ]
    for folder in folders:
        if folder and (path := Path(folder) / name).exists():
            return path.resolve()
    raise EngineError(
        f"{name}, which Triton's Python backend needs, is not there for {sys.executable}",
        f"install it (Debian, Ubuntu: apt install libpython{major}.{minor}), or use a Python that brings it "
        "(uv, conda, or pyenv with --enable-shared)",
    )


def assemble_backends(bundle: Bundle, cache: Path) -> Path:
    """A folder with `backends/` for this interpreter and these very backend sources, made first where needed.

    Its name is a digest of all that goes in, so that an upgraded tritonc or Python never serves with stale
    files.

    Safe to call from several processes at once: one assembles, the others wait.

    Raises:
        EngineError: this interpreter cannot serve.
        MissingExtraError: the package that keeps processes apart is not installed.
    """
    try:
        import filelock
    except ImportError as err:
        raise MissingExtraError("filelock", "tune") from err
    python = sys.version_info[:2]
    stub = bundle.stub((python[0], python[1]))
    if not stub.exists():
        has = ", ".join(sorted(path.name for path in stub.parent.parent.iterdir()))
        raise EngineError(
            f"the bundled Triton has no Python backend for Python {python[0]}.{python[1]} (it has {has})",
            "run tritonc with one of these",
        )
    libpython = find_libpython()
    digest = hashlib.sha256(f"{bundle.folder}\n{libpython}\n{python}\n".encode())
    for path in _sources():
        digest.update(f"{path.relative_to(_BACKENDS)}\n".encode() + path.read_bytes())
    folder = cache / "backends" / digest.hexdigest()[:12]
    if not (folder / "complete").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / ".lock"):
            if not (folder / "complete").exists():  # another process may have been faster
                _assemble(folder, bundle, stub, libpython)
    return folder


def _sources() -> Iterator[Path]:
    return (path for path in sorted(_BACKENDS.rglob("*.py")) if path.name != "__init__.py")


def _assemble(folder: Path, bundle: Bundle, stub: Path, libpython: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".assembling-") as name:
        temporary = Path(name) / "made"
        python_backend = temporary / "backends" / "python"
        shutil.copytree(bundle.python_backend, python_backend)
        shutil.copy2(stub, python_backend / stub.name)
        (temporary / "lib").mkdir()
        (temporary / "lib" / _libpython_name()).symlink_to(libpython)
        shared = [path for path in _sources() if path.parent == _BACKENDS]
        for backend in backend_names():
            target = temporary / "backends" / backend
            target.mkdir()
            for source in (*shared, *(path for path in _sources() if path.parent.name == backend)):
                shutil.copyfile(source, target / source.name)
        (temporary / "complete").touch()
        if folder.exists():  # damaged: it has no `complete`
            folder.rename(Path(name) / "damaged")
        temporary.rename(folder)
