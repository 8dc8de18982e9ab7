"""Projects made in memory: a real spec file, and signatures in the place of model files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonc.compiler.models.model_file import ModelFile
from tritonc.compiler.project import Project
from tritonc.compiler.signature import Signature, Tensor
from tritonc.schemas.errors import InputErrors
from tritonc.schemas.spec_file import read_spec

CPU: Mapping[str, Any] = {"device": "cpu", "cores": 4, "triton": "24.10", "backends": {"onnxruntime": {}}}
GPU: Mapping[str, Any] = {
    "device": "gpu",
    "gpu": {"name": "A10", "memory": "24GiB", "count": 1},
    "triton": "24.10",
    "backends": {"onnxruntime": {"accelerators": ["cuda", "tensorrt"]}},
}
IMAGE = Signature((Tensor("x", "TYPE_FP32", (3, 48, -1)),), (Tensor("y", "TYPE_FP32", (-1, 5)),), True)
FIXED = Signature((Tensor("x", "TYPE_FP32", (1, 4)),), (Tensor("y", "TYPE_FP32", (1, 3)),), False)
SHAPES = {"x": [3, 48, 320]}
MIB = 2**20


def spec_of(
    model: Mapping[str, Any] = {},
    target: Mapping[str, Any] = CPU,
    search: Mapping[str, Any] = {},
    **more_targets: Mapping[str, Any],
) -> str:
    """The text of a spec with one model `m` and the target `t` (a YAML file that is JSON, too)."""
    spec = {
        "apiVersion": "tritonc/v1",
        "name": "test",
        "models": {"m": {"source": "m.onnx", "shapes": SHAPES, **model}},
        "targets": {"t": target, **more_targets},
        "search": search,
    }
    return json.dumps(spec, indent=1)


def project_of(
    folder: Path, text: str, *signatures: Signature, size_bytes: int = 10 * MIB, name: str = "spec.yaml"
) -> Project:
    """The project of a spec whose models have these signatures (`IMAGE` where none is given)."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    spec_file = read_spec(path)
    models = {}
    for i, (model, spec) in enumerate(spec_file.spec.models.items()):
        signature = signatures[i] if i < len(signatures) else IMAGE
        if spec.max_batch_size == 0:
            signature = signature.with_batch_in_dims()
        models[model] = ModelFile(
            path=folder / f"{model}.onnx",
            sha256="0" * 64,
            size_bytes=size_bytes,
            external_data=(),
            file_sha256=("0" * 64,),
            signature=signature,
        )
    return Project(spec_file, models)


def messages(error: InputErrors) -> list[str]:
    """Each problem as a person reads it, without the folder."""
    return [str(one).rpartition("spec.yaml")[2] for one in error]
