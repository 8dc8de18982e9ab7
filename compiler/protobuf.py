"""Triton's ModelConfig message, without the gRPC client that carries it.

`import tritonclient.grpc.model_config_pb2` runs `tritonclient/grpc/__init__.py` first, which imports grpc,
numpy and the whole client: 0.5 s. The generated module needs none of them, so it is loaded alone (0.05 s),
under its own full name: a second copy of model_config.proto in one process is refused by protobuf's
descriptor pool.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

_NAME = "tritonclient.grpc.model_config_pb2"


def _load() -> ModuleType:
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2
    from tritonclient.grpc.model_config_pb2 import ModelConfig
else:
    model_config_pb2 = _load()
    ModelConfig = model_config_pb2.ModelConfig

__all__ = ["ModelConfig", "model_config_pb2"]
