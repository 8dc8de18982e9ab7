"""Milliseconds a request that the embedded engine's backends add to a bare `InferenceSession.run`.

    .venv/bin/python benchmarks/backend_overhead.py

For one request at a time, and for a batch that Triton formed of eight. The model adds 1 to its input, so
that it costs next to nothing itself and what remains is the way there and back: Triton's own statistics of an
execution (input, infer and output, without the queue) minus the time of a bare run of the same batch in this
process, each the best of several blocks that take turns. `nothing` is a model of Triton's Python backend that
never looks at its input and always gives the same output: the share that is Triton's own, which no backend of
ours can save. One thread each; the goal is 0.2 ms.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tritonc.tuner.engines import Server, engine_named

GOAL_MS = 0.2
SIZES = {"4 values": 4, "text recognition's input, 180 KiB": 3 * 48 * 320, "1 MiB": 2**18}
NOTHING = """
import ctypes
import numpy as np
import triton_python_backend_utils as pb_utils

rename = ctypes.pythonapi.PyCapsule_SetName
rename.argtypes = [ctypes.py_object, ctypes.c_char_p]

class TritonPythonModel:
    def initialize(self, args):
        self.y = np.zeros((1, {values}), np.float32)

    def response(self):
        capsule = self.y.__dlpack__()
        tensor = pb_utils.Tensor.from_dlpack("y", capsule)
        rename(capsule, b"used_dltensor")
        return pb_utils.InferenceResponse([tensor])

    def execute(self, requests):
        return [self.response() for _ in requests]
"""


def model(values: int) -> bytes:
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", values]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])], "g", tensors[:1], tensors[1:], [one]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    return bytes(proto.SerializeToString())


def write(repository: Path, name: str, backend: str, values: int, joined: int) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    if backend == "python":
        (version / "model.py").write_text(NOTHING.format(values=values))
    else:
        (version / "model.onnx").write_bytes(model(values))
    threads = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}.get(backend)
    lines = [
        f'backend: "{backend}"',
        # the openvino backend does not join requests: it gets the eight one by one
        f"max_batch_size: {1 if backend == 'openvino' else joined}",
        *(
            f'{kind} {{ name: "{t}" data_type: TYPE_FP32 dims: {values} }}'
            for kind, t in (("input", "x"), ("output", "y"))
        ),
        "instance_group { count: 1 kind: KIND_CPU }",
        f'parameters {{ key: "{threads}" value {{ string_value: "1" }} }}' if threads else "",
        'default_model_filename: "model.onnx"' if backend == "openvino" else "",
    ]
    if joined > 1 and backend != "openvino":
        lines.append(
            f"dynamic_batching {{ preferred_batch_size: {joined} max_queue_delay_microseconds: 1000000 }}"
        )
    (repository / name / "config.pbtxt").write_text("\n".join(lines))


def served_ms(server: Server, name: str, x: Any, joined: int, executions: int) -> float:
    """Mean of an execution in the server, in milliseconds; `joined` requests are in flight together."""
    from tritonclient import grpc

    with grpc.InferenceServerClient(server.grpc_address) as client:
        tensor = grpc.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
        before = server.statistics(name)
        for _ in range(executions):
            futures: list[Future[Any]] = [Future() for _ in range(joined)]
            for future in futures:
                client.async_infer(
                    name,
                    [tensor],
                    lambda result, error, f=future: f.set_exception(error) if error else f.set_result(result),
                )
            for future in futures:
                future.result(5)
        # Triton counts a request a little after it has answered it
        while (done := server.statistics(name).since(before)).requests < executions * joined:
            time.sleep(0.001)
    if done.executions not in (executions, executions * joined):
        raise SystemExit(f"Triton formed {done.executions} batches of {done.requests} requests")
    # Triton counts an execution's time once for each request in it
    return (done.compute_input_ns + done.compute_infer_ns + done.compute_output_ns) / done.requests / 1e6


def bare_ms(run: Callable[[], object], executions: int) -> float:
    started = time.perf_counter()
    for _ in range(executions):
        run()
    return (time.perf_counter() - started) / executions * 1e3


def bare_session(values: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model(values), options, providers=["CPUExecutionProvider"])


def measure(server: Server, values: int, joined: int, blocks: int, executions: int) -> Mapping[str, float]:
    """Milliseconds a request that each backend adds, and that of a bare run."""
    session = bare_session(values)
    row = np.random.default_rng(0).random((1, values), dtype=np.float32)
    batch = np.repeat(row, joined, axis=0)
    names = {b: f"{b}_{values}_{joined}" for b in ("onnxruntime", "openvino", "python")}
    samples: dict[str, list[float]] = {each: [] for each in (*names, "bare", "bare of one")}
    for backend, name in names.items():
        write(server.repository, name, backend, values, joined)
        server.load(name)
        served_ms(server, name, row, joined, 20)
    for _ in range(blocks):
        samples["bare"].append(bare_ms(lambda: session.run(None, {"x": batch}), executions))
        samples["bare of one"].append(bare_ms(lambda: session.run(None, {"x": row}), executions))
        for backend, name in names.items():
            samples[backend].append(served_ms(server, name, row, joined, executions))
    for name in names.values():
        server.unload(name)
    best = {each: min(found) for each, found in samples.items()}
    return {
        "bare run": best["bare"] / joined,
        "onnxruntime adds": (best["onnxruntime"] - best["bare"]) / joined,
        "openvino adds": best["openvino"] - best["bare of one"],
        "nothing": best["python"] / joined,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--executions", type=int, default=25, help="in a block")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        repository.mkdir()
        with engine_named("embedded").serve(repository, log=Path(folder) / "server.log") as server:
            for size, values in SIZES.items():
                for joined in (1, 8):
                    found = measure(server, values, joined, arguments.blocks, arguments.executions)
                    how = "one request" if joined == 1 else f"batch of {joined}"
                    parts = "  ".join(f"{name} {ms:.3f} ms" for name, ms in found.items())
                    ratio = found["onnxruntime adds"] / GOAL_MS
                    print(f"{size}, {how}: {parts}  (onnxruntime: {ratio:.2f} x the goal of {GOAL_MS} ms)")


if __name__ == "__main__":
    main()
