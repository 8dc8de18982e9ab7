"""A real tritonserver that the tests of one worker share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tritonc.schemas.errors import EngineError
from tritonc.tuner.engines import Server, engine_named

_DTYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.BFLOAT16: "TYPE_BF16",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.UINT16: "TYPE_UINT16",
    onnx.TensorProto.UINT32: "TYPE_UINT32",
    onnx.TensorProto.UINT64: "TYPE_UINT64",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.INT16: "TYPE_INT16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.STRING: "TYPE_STRING",
}


def config_pbtxt(
    proto: onnx.ModelProto, *, max_batch_size: int = 0, backend: str = "onnxruntime", more: str = ""
) -> str:
    """A configuration with the model's own tensors, a scalar written as [1]."""
    lines = [f'backend: "{backend}"', f"max_batch_size: {max_batch_size}"]
    if backend == "openvino":
        lines.append('default_model_filename: "model.onnx"')
    initializers = {each.name for each in proto.graph.initializer}
    inputs = [each for each in proto.graph.input if each.name not in initializers]
    for kind, values in (("input", inputs), ("output", proto.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            dims = [d.dim_value or -1 for d in tensor.shape.dim][1 if max_batch_size else 0 :]
            shape = f"dims: {dims or [1]}"
            if not dims and max_batch_size:
                shape += " reshape { shape: [] }"
            lines.append(f'{kind} {{ name: "{value.name}" data_type: {_DTYPES[tensor.elem_type]} {shape} }}')
    if "instance_group" not in more:
        lines.append("instance_group { count: 1 kind: KIND_CPU }")
    return "\n".join([*lines, more, ""])


def parameter(key: str, value: str) -> str:
    """A top-level parameter of a configuration."""
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


@dataclass
class Served:
    """A server, and models put in its repository on the way."""

    server: Server
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def put(self, proto: onnx.ModelProto | Path, config: str) -> str:
        """Writes a model under a name of its own."""
        name = f"model{next(self._numbers)}"
        version = self.server.repository / name / "1"
        version.mkdir(parents=True)
        content = proto.read_bytes() if isinstance(proto, Path) else proto.SerializeToString()
        (version / "model.onnx").write_bytes(content)
        (self.server.repository / name / "config.pbtxt").write_text(config)
        return name

    def load(self, proto: onnx.ModelProto | Path, config: str) -> str:
        """Writes and loads a model."""
        name = self.put(proto, config)
        self.server.load(name)
        return name

    def infer(self, model: str, outputs: Sequence[str] = (), **inputs: Any) -> Mapping[str, Any]:
        """The answer to one request."""
        return self.infer_together(model, [inputs], outputs)[0]

    def infer_together(
        self, model: str, requests: Sequence[Mapping[str, Any]], outputs: Sequence[str] = ()
    ) -> list[Mapping[str, Any]]:
        """The answers to requests that are sent at the same time; raises the first error."""
        from tritonclient import grpc
        from tritonclient.utils import np_to_triton_dtype

        wanted = [grpc.InferRequestedOutput(name) for name in outputs] or None
        futures: list[Future[Any]] = [Future() for _ in requests]
        with grpc.InferenceServerClient(self.server.grpc_address) as client:
            for future, request in zip(futures, requests, strict=True):
                tensors = []
                for name, array in request.items():
                    tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
                    tensors.append(tensor.set_data_from_numpy(array))

                def done(result: Any, error: Any, future: Future[Any] = future) -> None:
                    future.set_exception(error) if error else future.set_result(result)

                client.async_infer(model, tensors, done, outputs=wanted, client_timeout=30)
            results = [future.result(30) for future in futures]
        return [{o.name: r.as_numpy(o.name) for o in r.get_response().outputs} for r in results]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The embedded engine's server, one for each worker; skipped with the reason where it cannot be had."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "repository").mkdir()
    try:
        context = engine_named("embedded").serve(folder / "repository", log=folder / "server.log")
    except EngineError as err:
        pytest.skip(str(err))
    with context as server:
        yield Served(server)


def run_onnxruntime(proto: onnx.ModelProto | Path, **inputs: Any) -> list[Any]:
    """What ONNX Runtime itself says."""
    import onnxruntime as ort

    content = proto.read_bytes() if isinstance(proto, Path) else proto.SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def uniform(*shape: int, seed: int = 0) -> Any:
    """Random FP32 values between -1 and 1."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
