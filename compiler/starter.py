"""The text of a starter spec: what the model files say, and a comment where a person has to decide."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from tritonc.compiler.signature import Signature, Tensor

DEFAULT_RELEASE = "24.10"
"""The release of the embedded engine, so that what is measured here is what will be served."""
STARTER_BATCH_SIZE = 8
"""The spec's own default of `max_batch_size`, written out."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
# Words that some YAML reader takes for something else than text.
_NOT_PLAIN = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_NAME_LENGTH = 128


@dataclass(frozen=True, slots=True)
class StarterModel:
    """A model of a starter spec.

    Attributes:
        name: the Triton model's name.
        source: path of the file relative to the spec's folder, with forward slashes.
        signature: what the file says.
    """

    name: str
    source: str
    signature: Signature


@dataclass(frozen=True, slots=True)
class StarterTarget:
    """The machine that the starter spec is written for.

    Attributes:
        cores: cores that the server may use.
        memory_gib: whole gibibytes of memory.
        backends: accelerators by backend; an empty tuple is the backend's default.
    """

    cores: int
    memory_gib: int
    backends: Mapping[str, tuple[str, ...]]


def starter_spec(name: str, models: Sequence[StarterModel], target: StarterTarget) -> str:
    """The text of a spec that loads and builds as it is, with comments that say what to fill in."""
    lines = [
        "# Written by `tritonc init`; yours from now on. `tritonc build` compiles it as it is, and",
        "# `tritonc tune` finds the best configuration by measuring. Every key: `tritonc schema spec`.",
        "apiVersion: tritonc/v1",
        f"name: {_yaml(name)}",
        "",
        "models:",
    ]
    for model in models:
        lines += _model_lines(model)
    lines += _target_lines(target)
    return "\n".join(lines) + "\n"


def model_names(sources: Iterable[PurePath]) -> list[str]:
    """A model name for each file, all different, made of characters that a model name may have.

    The name is the file's, or that of the folder above it where the file has Triton's own (`model.onnx`, in a
    version folder).

    >>> model_names(PurePath(p) for p in ("a/det infer.onnx", "resnet/1/model.onnx", "b/det_infer.onnx"))
    ['det_infer', 'resnet', 'det_infer_2']
    """
    names: list[str] = []
    for source in sources:
        parts = [part for part in (*source.parent.parts, source.stem) if not part.isdigit()]
        word = parts[-2] if len(parts) > 1 and parts[-1] == "model" else (parts or ["model"])[-1]
        base = spec_name(word)
        name, count = base, 1
        while name in names:
            count += 1
            suffix = f"_{count}"
            name = base[: _NAME_LENGTH - len(suffix)] + suffix
        names.append(name)
    return names


def spec_name(text: str) -> str:
    """The nearest name that a spec or a model may have.

    >>> spec_name("_my model (v2)"), spec_name("…")
    ('my_model_v2', 'model')
    """
    word = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-")
    return word[:_NAME_LENGTH] or "model"


def _model_lines(model: StarterModel) -> list[str]:
    signature = model.signature
    lines = [f"  {_yaml(model.name)}:", f"    source: {_yaml(model.source)}"]
    lines += [f"    # {line}" for line in _signature_lines(signature)]
    if open_inputs := [tensor for tensor in signature.inputs if -1 in tensor.dims]:
        shapes = ", ".join(f"{_yaml(tensor.name)}: {_dims(tensor)}" for tensor in open_inputs)
        lines += [
            "    # `tune` has to know the sizes that your clients send (build does not): put them in the",
            '    # places of the question marks, without the batch axis, and take the "# " away.',
            f"    # shapes: {{{shapes}}}",
        ]
    if signature.has_batch_axis:
        lines.append(f"    max_batch_size: {STARTER_BATCH_SIZE}   # the largest to consider")
    else:
        lines.append("    max_batch_size: 0   # the model has no batch axis")
    numeric = [tensor for tensor in signature.inputs if tensor.dtype not in ("TYPE_STRING", "TYPE_BOOL")]
    if numeric:
        data = ", ".join(f"{_yaml(tensor.name)}: {{range: [0, 1]}}" for tensor in numeric)
        lines += [
            "    # Random values to measure with and to compare outputs on: give the range of real inputs.",
            f"    data: {{{data}}}",
        ]
    lines += [
        "    # Clients that wait for each answer, or {arrival: poisson, rate: 200} in requests a second.",
        "    workload: {arrival: closed, max_concurrency: 32}",
        '    # The limits to keep. Take the "# " away and put your own numbers in.',
        "    # slo: {p99_latency_ms: 100, min_throughput: 50}",
        "    objective: throughput   # or latency, memory, {throughput: 0.7, memory: 0.3}",
        "",
    ]
    return lines


def _target_lines(target: StarterTarget) -> list[str]:
    lines = [
        "targets:",
        "  cpu:   # one repository is built for each target; this one is the machine that ran init",
        "    device: cpu",
        f"    cores: {target.cores}",
        f"    memory: {target.memory_gib}GiB",
        f'    triton: "{DEFAULT_RELEASE}"   # the release that will serve it; the quotes matter',
        "    backends:",
    ]
    for backend, accelerators in target.backends.items():
        options = f"{{accelerators: [{', '.join(accelerators)}]}}" if accelerators else "{}"
        lines.append(f"      {backend}: {options}")
    return lines


def _signature_lines(signature: Signature) -> list[str]:
    batch = ["batch"] if signature.has_batch_axis else []
    return [
        f"{kind} {_yaml(tensor.name)}: {tensor.dtype.removeprefix('TYPE_').lower()} "
        f"[{', '.join([*batch, *('?' if dim == -1 else str(dim) for dim in tensor.dims)])}]"
        for kind, tensors in (("input", signature.inputs), ("output", signature.outputs))
        for tensor in tensors
    ]


def _dims(tensor: Tensor) -> str:
    return "[" + ", ".join("?" if dim == -1 else str(dim) for dim in tensor.dims) + "]"


def _yaml(text: str) -> str:
    """`text` as a YAML scalar that every reader takes for this very text, in a flow mapping and in a comment.

    >>> print(_yaml("images/x"), _yaml("1e5"), _yaml("a: b"), _yaml("no"))
    images/x "1e5" "a: b" "no"
    """
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_PLAIN:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)
