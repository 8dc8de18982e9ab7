"""A tritonserver process of ours that runs: talking to it, and stopping it."""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tritonc.schemas.errors import MissingExtraError
from tritonc.schemas.measurement import Failure
from tritonc.tuner.energy import gpu_energy_j
from tritonc.tuner.engines import ServerFailure, Statistics
from tritonc.tuner.process import Child

_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_STOP_S = 0.5  # with a model loaded it takes its time by the second, for nothing that we would miss
_POLL_S = 0.02
_HUNG_S = 10.0  # a server that answers nobody for so long does not only take its time to load
_HEALTH_S = 2.0
_HEALTH_EVERY_S = 1.0
_SCRATCH = Path("/tmp")  # noqa: S108  (where the Python backend has its own, whatever TMPDIR says)
_OF_STEPS = ("executions", "queue_ns", "compute_input_ns", "compute_infer_ns", "compute_output_ns")
"""What an ensemble's models count for it."""
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|out of memory|failed to allocate memory|cannot allocate|No space left on device|MemoryError",
    re.IGNORECASE,
)


class TritonServer:
    """The `Server` of every engine that starts a process (see `Server` for what its methods promise)."""

    def __init__(self, child: Child, ports: tuple[int, int, int], log: Path, repository: Path) -> None:
        self._child = child
        self.http_address, self.grpc_address, self.metrics_address = (f"{LOOPBACK}:{p}" for p in ports)
        self.log = log
        self.repository = repository
        self.pid = child.pid
        self._steps: dict[str, tuple[str, ...]] = {}
        self._scratch: set[Path] = set()

    @cached_property
    def _client(self) -> Any:
        from tritonclient import grpc

        return grpc.InferenceServerClient(self.grpc_address)

    def load(self, model: str, timeout_s: float = 120.0) -> None:
        """Returns once `model` serves."""
        self._steps.pop(model, None)
        before = _scratch_folders()
        try:
            self._control("load", model, timeout_s, self._watched(self._client.load_model))
        finally:
            new = _scratch_folders() - before
            if len(new) == 1:  # else there is another server, and one is its
                self._scratch |= new

    def unload(self, model: str, timeout_s: float = 30.0, *, wait: bool = True) -> None:
        """Has the server unload `model`."""
        deadline = time.monotonic() + timeout_s
        self._control("unload", model, timeout_s, self._client.unload_model)
        while wait and self._is_listed(model, deadline - time.monotonic()):
            if time.monotonic() > deadline:
                raise self._failure("server_hung", f"{model} was not unloaded within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def _is_listed(self, model: str, timeout_s: float) -> bool:
        """Whether the server still has some instance of the model."""
        index = self._ask(self._client.get_model_repository_index, timeout_s)
        return any(
            (entry.name == model and entry.state not in ("", "UNAVAILABLE"))
            or (entry.name == model and entry.reason not in ("", "unloaded"))
            for entry in index.models
        )

    def _control(self, verb: str, model: str, timeout_s: float, call: Callable[..., Any]) -> None:
        from tritonclient.utils import InferenceServerException

        logged = self.log.stat().st_size
        try:
            call(model, client_timeout=timeout_s)
        except InferenceServerException as err:
            if not self._still_alive():
                raise self._failure(
                    "server_crashed", f"the server ended while it was to {verb} {model}"
                ) from err
            if "DEADLINE_EXCEEDED" in str(err.status()):
                is_slow = verb == "load" and self._is_live(_HEALTH_S)
                reason = "load_timeout" if is_slow else "server_hung"
                raise self._failure(reason, f"{model} did not {verb} within {timeout_s:g} s") from err
            message = _cleaned(err.message() or "")
            # the reason, for example a field that is not known, is only logged
            if "failed to poll" in message:
                message = "\n".join([message, *_logged_errors(self.log, logged)])
            reason = "out_of_memory" if _OUT_OF_MEMORY.search(message) else "load_failed"
            raise ServerFailure(Failure.model_validate({"reason": reason, "detail": message})) from err

    def _watched(self, call: Callable[..., Any]) -> Callable[..., None]:
        """`call`, left where the server answers nobody meanwhile: loading a model is no reason for it."""

        def watched(model: str, client_timeout: float) -> None:
            done: Future[None] = Future()

            def run() -> None:
                try:
                    call(model, client_timeout=client_timeout)
                except Exception as err:  # noqa: BLE001  (raised below, where the result is taken)
                    done.set_exception(err)
                else:
                    done.set_result(None)

            threading.Thread(target=run, name=f"load {model}", daemon=True).start()
            answered = time.monotonic()
            while not wait([done], _HEALTH_EVERY_S).done:
                if self._is_live(_HEALTH_S):
                    answered = time.monotonic()
                elif time.monotonic() - answered > _HUNG_S and not done.done():
                    what = f"the server answered nothing for {_HUNG_S:g} s while it was to load {model}"
                    raise self._failure("server_hung" if self._still_alive() else "server_crashed", what)
            done.result()

        return watched

    def _is_live(self, timeout_s: float) -> bool:
        """Whether it answers a health request over HTTP, which has threads that load nothing."""
        connection = http.client.HTTPConnection(self.http_address, timeout=timeout_s)
        try:
            connection.request("GET", "/v2/health/live")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _ask(self, call: Callable[..., Any], timeout_s: float, *args: object) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return call(*args, client_timeout=max(0.001, timeout_s))
        except InferenceServerException as err:
            if not self._still_alive():
                raise self._failure("server_crashed", "the server ended") from err
            raise self._failure("server_hung", f"the server did not answer: {err.message()}") from err

    def _failure(self, reason: str, what: str) -> ServerFailure:
        code = self._child.poll()
        ended = "" if code is None else f" (exit code {code})"
        detail = f"{what}{ended}; last lines of {self.log.name}:\n{self.log_tail()}"
        return ServerFailure(Failure.model_validate({"reason": reason, "detail": detail}))

    def has_all_ports(self) -> bool:
        """Whether it is this server that listens on its three ports, and nobody else."""
        import psutil

        wanted = {int(each.rpartition(":")[2]) for each in self.addresses}
        found: set[int] = set()
        for pid in self._processes():
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                for each in psutil.Process(pid).net_connections("tcp"):
                    if each.status == psutil.CONN_LISTEN:
                        found.add(each.laddr.port)
        return wanted <= found

    @property
    def addresses(self) -> tuple[str, str, str]:
        """Where it listens."""
        return self.http_address, self.grpc_address, self.metrics_address

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._child.poll() is None

    def _still_alive(self) -> bool:
        """`alive`, allowing for the moment between a broken connection and the news of the process's end."""
        return self._child.wait(0.5) is None

    def responsive(self, timeout_s: float = 2.0) -> bool:
        """Whether it answers a health request in time."""
        from tritonclient.utils import InferenceServerException

        if not self.alive():
            return False
        try:
            return bool(self._client.is_server_live(client_timeout=timeout_s))
        except InferenceServerException:
            return False

    def metadata(self, timeout_s: float = 5.0) -> tuple[str, str]:
        """The server's id and version."""
        answer = self._ask(self._client.get_server_metadata, timeout_s)
        return answer.name, answer.version

    def statistics(self, model: str) -> Statistics:
        """The statistics so far, over all versions; of an ensemble with what its models counted.

        Triton counts for an ensemble what its models computed, but not that they let requests wait.
        """
        own, parts = self._counted(model), [self._counted(step) for step in self.steps(model)]
        if not parts:
            return own
        added = {name: sum(getattr(part, name) for part in parts) for name in _OF_STEPS}
        return replace(own, **added, executed=sum(part.inferences for part in parts))

    def steps(self, model: str) -> tuple[str, ...]:
        """The models of an ensemble, each once; none of any other model."""
        if model not in self._steps:
            config = self._ask(self._client.get_model_config, 5.0, model).config
            names = (step.model_name for step in config.ensemble_scheduling.step)
            self._steps[model] = tuple(dict.fromkeys(names))
        return self._steps[model]

    def _counted(self, model: str) -> Statistics:
        """What the server itself counts for a model."""
        answer = self._ask(self._client.get_inference_statistics, 5.0, model)
        every = answer.model_stats
        sums = [s.inference_stats for s in every]
        return Statistics(
            inferences=sum(s.inference_count for s in every),
            executions=sum(s.execution_count for s in every),
            requests=sum(s.success.count for s in sums),
            failed_requests=sum(s.fail.count for s in sums),
            queue_ns=sum(s.queue.ns for s in sums),
            compute_input_ns=sum(s.compute_input.ns for s in sums),
            compute_infer_ns=sum(s.compute_infer.ns for s in sums),
            compute_output_ns=sum(s.compute_output.ns for s in sums),
        )

    def metrics(self) -> Mapping[str, float]:
        """Every Prometheus sample by name and labels."""
        try:
            from prometheus_client.parser import text_string_to_metric_families
        except ImportError as err:
            raise MissingExtraError("prometheus-client", "tune") from err
        url = f"http://{self.metrics_address}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except (OSError, http.client.HTTPException) as err:
            reason = "server_hung" if self._still_alive() else "server_crashed"
            raise self._failure(reason, f"the server did not show its metrics: {err}") from err
        written = set(re.findall(r"^(\w+)", text, re.MULTILINE))  # the parser adds "_total" to counters
        return {
            _sample_name(
                sample.name if sample.name in written else sample.name.removesuffix("_total"), sample.labels
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def memory_bytes(self, without: Set[int] = frozenset()) -> int:
        """Proportional set size of the server and its stubs, less the private pages of stubs that leave."""
        ours = self._processes()
        private = sum(_bytes(pid, "Private_Clean", "Private_Dirty") for pid in without & set(ours))
        return sum(_bytes(pid, "Pss") for pid in ours) - private

    def gpu_memory_bytes(self, without: Set[int] = frozenset()) -> int | None:
        """Memory the server and its stubs hold on all GPUs, but for stubs that leave."""
        try:
            import pynvml
        except ImportError:
            return None
        ours = set(self._processes()) - without
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            running = [p for h in handles for p in pynvml.nvmlDeviceGetComputeRunningProcesses(h)]
            return sum(p.usedGpuMemory or 0 for p in running if p.pid in ours)
        except pynvml.NVMLError as err:
            _log.debug("NVML does not tell the memory of processes: %s", err)
            return None
        finally:
            pynvml.nvmlShutdown()

    def energy_j(self) -> float | None:
        """Joules that the GPUs it runs on have used since their driver was loaded."""
        return gpu_energy_j(self._processes())

    def _processes(self) -> list[int]:
        """The server and its stubs."""
        found, pending = [], [self.pid]
        while pending:
            pid = pending.pop()
            found.append(pid)
            with contextlib.suppress(OSError):  # it has ended meanwhile
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    with contextlib.suppress(OSError):  # that thread has
                        pending += [int(child) for child in children.read_text().split()]
        return found

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its log."""
        return log_tail(self.log, lines)

    def close(self) -> None:
        """Stops the server, at once if it does not go by itself, and leaves nothing of it."""
        if "_client" in self.__dict__:
            with contextlib.suppress(Exception):  # a broken channel must not keep the server running
                self._client.close()
        self._child.stop(_STOP_S)
        for folder in self._scratch:
            with contextlib.suppress(OSError):  # it is gone, or not empty and so somebody else's
                folder.rmdir()


def _scratch_folders() -> set[Path]:
    """Folders of Python backends.

    A server makes one for each backend in Python as the first of its models is loaded, and leaves it where it
    is not given the time to unload them all. It stays empty where no model brings an environment, as none of
    ours does.
    """
    return set(_SCRATCH.glob("python_env_??????"))


def _sample_name(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inside}}}" if inside else name


def _bytes(pid: int, *kinds: str) -> int:
    """Memory of a process of these kinds, as in proc_pid_smaps(5)."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended meanwhile
        return 0
    found = re.findall(rf"^(?:{'|'.join(kinds)}):\s+(\d+) kB", rollup, re.MULTILINE)
    return 1024 * sum(map(int, found))


def _cleaned(message: str) -> str:
    """A load error of Triton without its envelope and without the Python backend's trace."""
    text = re.sub(
        r"^load failed for model '[^']*': version \d+ is at UNAVAILABLE state: ", "", message.strip()
    )
    text = re.sub(r"^(Internal|Invalid argument|Unavailable): ", "", text)
    text = re.sub(r"\n+At:\n.*", "", text, flags=re.DOTALL)
    return re.sub(r"^TritonModelException: ", "", text).strip(" ;\n")


def _logged_errors(log: Path, offset: int) -> list[str]:
    """Messages of the errors that the server has logged since the file was `offset` bytes long."""
    with log.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").splitlines()
    return [
        line.partition("] ")[2] or line for line in lines if re.match(r"E\d{4} |\[libprotobuf ERROR", line)
    ]


def log_tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log file; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64 * 1024))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
