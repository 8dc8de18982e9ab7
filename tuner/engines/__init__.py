"""Where a tritonserver runs: the seam, and the engines by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from tritonc.schemas.errors import TritoncError, did_you_mean
from tritonc.schemas.measurement import Failure
from tritonc.tuner.bundle import Progress


class ServerFailure(Exception):  # noqa: N818 - it carries a Failure, which is a result and not an error
    """What a candidate did to the server, as the result it is; caught where the trial ends."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """What an engine would measure with.

    Attributes:
        triton: the server's own version, for example "2.51.0".
        release: the Triton release it belongs to, for example "24.10"; "unknown" where no table has it.
        runtimes: what executes models, by package, for example {"onnxruntime-openvino": "1.24.1"}.
    """

    triton: str
    release: str
    runtimes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a model has done since the server started, counts and times summed over all requests.

    An ensemble executes nothing itself: its executions, and the times they took and waited, are those of its
    models added up.

    Attributes:
        inferences: inferences that succeeded (a request of batch 4 is four).
        executions: calls of the model; fewer than inferences where batches were formed.
        requests: requests that succeeded.
        failed_requests: requests that did not.
        queue_ns: waiting for an instance or for a batch to fill, in nanoseconds, as the following are.
        compute_input_ns: handing the inputs to the backend.
        compute_infer_ns: in the backend.
        compute_output_ns: taking the outputs from the backend.
        executed: inferences in the executions of an ensemble's models; 0 where they are `inferences`.
    """

    inferences: int
    executions: int
    requests: int
    failed_requests: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    executed: int = 0

    @property
    def mean_batch(self) -> float | None:
        """Inferences an execution; None where there was none."""
        return (self.executed or self.inferences) / self.executions if self.executions else None

    def since(self, earlier: Statistics) -> Statistics:
        """What happened between `earlier` and this."""
        return Statistics(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))


class Server(Protocol):
    """A running tritonserver with explicit model control: models are served once `load` has returned.

    Addresses are "127.0.0.1:port". Methods may be called from several threads at the same time, apart from
    `load` and `unload` of the same model.
    """

    @property
    def grpc_address(self) -> str:
        """Where it answers gRPC."""
        ...

    @property
    def http_address(self) -> str:
        """Where it answers HTTP."""
        ...

    @property
    def metrics_address(self) -> str:
        """Where it shows Prometheus metrics, under /metrics."""
        ...

    @property
    def pid(self) -> int:
        """Of the tritonserver process."""
        ...

    @property
    def log(self) -> Path:
        """The file that holds all it wrote."""
        ...

    @property
    def repository(self) -> Path:
        """The model repository; files in it may change between a model's `unload` and its next `load`."""
        ...

    def load(self, model: str, timeout_s: float = 120.0) -> None:
        """Returns once `model` serves, as its folder in the repository now is.

        Raises:
            ServerFailure: it does not load, not in time, or the server is gone. After a timeout the server
                must be given up: Triton cannot cancel a load.
        """
        ...

    def unload(self, model: str, timeout_s: float = 30.0, *, wait: bool = True) -> None:
        """Has the server unload `model`, which answers no more; nothing happens if it is not loaded.

        Args:
            model: its name.
            timeout_s: deadline.
            wait: return only when every instance is gone. Triton 24.10 takes a second for that, in which the
                next model can already be loaded (memory is then that of both).

        Raises:
            ServerFailure: it is not gone in time, or the server is.
        """
        ...

    def alive(self) -> bool:
        """Whether the process runs; false within milliseconds of its end."""
        ...

    def responsive(self, timeout_s: float = 2.0) -> bool:
        """Whether it answers a health request in time: false for a server that is gone, stopped or stuck."""
        ...

    def statistics(self, model: str) -> Statistics:
        """The statistics so far of a model or an ensemble; a request counts a moment after its answer.

        Raises:
            ServerFailure: the server does not answer, or does not know the model.
        """
        ...

    def steps(self, model: str) -> Sequence[str]:
        """The models of an ensemble that is loaded, each once; none of any other model.

        Raises:
            ServerFailure: the server does not answer, or does not know the model.
        """
        ...

    def metrics(self) -> Mapping[str, float]:
        """Every Prometheus sample by name and labels as the server writes them (`nv_cpu_utilization`).

        Raises:
            ServerFailure: the server does not answer.
        """
        ...

    def memory_bytes(self, without: Set[int] = frozenset()) -> int:
        """Proportional set size of the server and its stubs: pages they share with each other count once.

        Args:
            without: stubs that leave: what is theirs alone does not count.
        """
        ...

    def gpu_memory_bytes(self, without: Set[int] = frozenset()) -> int | None:
        """Memory the server and its stubs, but for those `without`, hold on all GPUs; None without a GPU."""
        ...

    def energy_j(self) -> float | None:
        """Joules that the GPUs it runs on have used since some time past; None where no GPU tells."""
        ...

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its log."""
        ...


class Engine(Protocol):
    """Runs a tritonserver. Leaving the context of `serve` stops it, whatever happened inside.

    `describe` and `perf_analyzer` may fetch what is missing; the result of `describe` is part of every
    Measurement.
    """

    name: str

    def describe(self) -> EngineDescription:
        """Versions of what would serve.

        Raises:
            EngineError: there is no such server on this machine, and it cannot be had.
        """
        ...

    def perf_analyzer(self) -> tuple[Path, Mapping[str, str]]:
        """The bundle's perf_analyzer and the whole environment to run it in.

        Raises:
            EngineError: it cannot be had.
        """
        ...

    def serve(
        self,
        repository: Path,
        *,
        log: Path,
        cores: tuple[int, ...] = (),
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> AbstractContextManager[Server]:
        """A server that is ready, has no model loaded and listens on free loopback ports.

        Args:
            repository: model repository; may be empty at first.
            log: gets all the server writes, appended.
            cores: the only cores the server and its models may run on; empty for all.
            args: more arguments for tritonserver, for example from `server.args`.
            env: environment variables to add.

        Raises:
            EngineError: it cannot be had or does not start; with the command and the end of its log.
        """
        ...


_ENGINES = {"embedded": "EmbeddedEngine", "local": "LocalEngine"}  # module of this package: class

ENGINE_NAMES = tuple(_ENGINES)


def engine_named(name: str, progress: Progress | None = None) -> Engine:
    """The engine of this name, with its settings from the environment. Starts and fetches nothing.

    Args:
        name: one of `ENGINE_NAMES`.
        progress: told later what is being fetched; None to log it.

    Raises:
        TritoncError: there is no such engine.
    """
    if name not in _ENGINES:
        raise TritoncError(f'unknown engine "{name}"', did_you_mean(name, _ENGINES))
    module = import_module(f"{__name__}.{name}")
    return cast("Engine", getattr(module, _ENGINES[name])(progress=progress))
