"""The server flags that belong to a repository, and the command that serves it."""

from __future__ import annotations

from collections.abc import Iterable

from tritonc.compiler.protobuf import ModelConfig
from tritonc.schemas.spec import TargetSpec

IMAGE = '"$REGISTRY/nvidia/tritonserver:{release}-py3"'
"""Triton's own container image, from whichever registry a team pulls it."""

_CACHE_BYTES_A_MODEL = 64 << 20
"""Room in the response cache for each model that uses it; the cache is one for the whole server."""


def server_args(target: TargetSpec, configs: Iterable[ModelConfig]) -> bytes:
    """The content of `server.args`: the `docker run` line as a comment, then one flag a line."""
    cached = sum(config.response_cache.enable for config in configs)
    flags = [f"--cache-config=local,size={cached * _CACHE_BYTES_A_MODEL}"] if cached else []
    comment = [
        "# Flags that tritonserver needs for this repository, one a line. To serve it, in this folder,",
        "# with REGISTRY set to the host of NVIDIA's NGC registry or of your mirror:",
        f"# {docker_run(target)}",
    ]
    return "\n".join([*comment, *flags, ""]).encode()


def docker_run(target: TargetSpec) -> str:
    """The command that serves the repository in the current folder on a machine like the target."""
    limits = []
    if target.cores:
        limits.append(f"--cpus={target.cores}")
    if target.memory:
        limits.append(f"--memory={target.memory}")
    if target.device == "gpu":
        limits.append(f"--gpus={target.gpu.count if target.gpu else 'all'}")
    return " ".join(
        [
            "docker run --rm",
            *limits,
            "-p 8000:8000 -p 8001:8001 -p 8002:8002",
            '-v "$PWD:/models:ro"',
            IMAGE.format(release=target.triton),
            "tritonserver --model-repository=/models $(grep -v '^#' server.args)",
        ]
    )
