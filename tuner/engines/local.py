"""The local engine: a tritonserver that is installed on this machine, with its own backends."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from tritonc.compiler.release import release_of_server
from tritonc.schemas.errors import EngineError
from tritonc.tuner.bundle import Progress, fetch_bundle, perf_analyzer_environment
from tritonc.tuner.engines import EngineDescription, Server
from tritonc.tuner.engines.starting import Installation, running_server

_USUAL = Path("/opt/tritonserver/bin/tritonserver")  # where the official containers have it


@contextmanager
def _folder_for_log() -> Iterator[Path]:
    """A temporary folder, which stays where a server does not start: the error names the log in it."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="tritonc-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            yield folder
        except EngineError:
            stack.pop_all()
            raise


class LocalEngine:
    """Runs the tritonserver that `TRITONC_TRITONSERVER`, PATH or the official container's folder names.

    Its backends are those in `TRITONC_TRITONSERVER_BACKENDS`, else in the folder `backends` beside its `bin`.
    """

    name = "local"

    def __init__(
        self, binary: Path | None = None, backends: Path | None = None, progress: Progress | None = None
    ) -> None:
        """Starts nothing yet.

        Args:
            binary: the tritonserver program; None to look for it.
            backends: its backends; None to look for them.
            progress: told how the download of perf_analyzer goes.
        """
        self._given_binary = binary
        self._given_backends = backends
        self._progress = progress

    def describe(self) -> EngineDescription:
        """Versions of the server, which is started once to ask it (it has no option that tells)."""
        return EngineDescription(self._version, str(release_of_server(self._version) or "unknown"))

    @cached_property
    def _version(self) -> str:
        installation = self.installation()
        with _folder_for_log() as folder:
            repository = folder / "repository"
            repository.mkdir()
            with running_server(installation, repository, log=folder / "server.log") as server:
                return server.metadata()[1]

    def perf_analyzer(self) -> tuple[Path, Mapping[str, str]]:
        """The bundle's perf_analyzer, so that numbers compare, and the environment to run it in."""
        bundle = fetch_bundle(progress=self._progress)
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
        return running_server(self.installation(env or {}), repository, log=log, cores=cores, args=args)

    def installation(
        self, env: Mapping[str, str] | None = None, environ: Mapping[str, str] = os.environ
    ) -> Installation:
        """The server as it is installed.

        Args:
            env: added to its environment.
            environ: this process's; says where it is.

        Raises:
            EngineError: there is none.
        """
        binary = self._binary(environ)
        backends = self._given_backends or environ.get("TRITONC_TRITONSERVER_BACKENDS")
        folder = Path(backends) if backends else binary.resolve().parent.parent / "backends"
        if not folder.is_dir():
            raise EngineError(
                f"{binary} has no backends: {folder} is not a folder",
                "name the folder with the backends in TRITONC_TRITONSERVER_BACKENDS",
            )
        return Installation(binary, folder, {**environ, **(env or {})})

    def _binary(self, environ: Mapping[str, str]) -> Path:
        named, path = self._given_binary or environ.get("TRITONC_TRITONSERVER"), environ.get("PATH")
        if named:
            found = shutil.which(str(named), path=path)
        else:
            found = shutil.which("tritonserver", path=path) or shutil.which(str(_USUAL))
        if found:
            return Path(found).absolute()
        what = f"{named} is not a program" if named else f"no tritonserver on PATH and none at {_USUAL}"
        raise EngineError(
            what,
            "run tritonc inside the Triton container, name the program in TRITONC_TRITONSERVER, "
            "or use `--engine embedded`",
        )
