"""Whether dimension 0 of a model is a batch: declared open everywhere, confirmed by ONNX's shape inference.

A batch axis is the first dimension of every input and every output, as Triton requires of a model with
`max_batch_size` above 0. Symbols do not decide: exporters name one axis differently in inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tritonc.compiler.models.shape_inference import Dim, ShapeInference, Shapes

if TYPE_CHECKING:
    import onnx

_BATCH = "tritonc:batch"
"""A symbol that no exporter writes."""

_OTHER_SIZE = 320
"""Tried for every other open dimension: a multiple of 32 (images) below 512 (the least limit of texts)."""

_UNPREDICTABLE_SIZE = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose output has as many rows as the values of the input make it have."""


def has_batch_axis(model: onnx.ModelProto, inputs: Shapes, outputs: Shapes) -> bool:
    """Whether axis 0 is open in every input and output, and every output's follows the inputs'.

    Where shape inference contradicts the declaration (an output's axis 0 is constant, or another dimension,
    or a product of several), there is no batch axis. Where it cannot tell, the declaration is believed,
    unless the rows of the output come from an operator such as NonZero, under a symbol that no input has.

    Args:
        model: a model without its weights; left as it is.
        inputs: the declared dims of what a request must send.
        outputs: the declared dims of the outputs.
    """
    if not inputs or not _open_first([*inputs.values(), *outputs.values()]):
        return False
    batch_symbols = {dims[0] for dims in inputs.values() if dims and dims[0] is not None}
    other_symbols = {dim for dims in inputs.values() if dims for dim in dims[1:] if isinstance(dim, str)}
    if batch_symbols & other_symbols:
        return False  # [N, N]: two requests in one batch would change the other axis
    inference = ShapeInference(model)
    verdict = _symbolic_verdict(inference, inputs, outputs, other_symbols)
    if verdict is None:
        verdict = _concrete_verdict(inference, inputs, outputs)
    if verdict is None:
        unnamed = [name for name, dims in outputs.items() if not dims or dims[0] not in batch_symbols]
        return not _has_unpredictable_size(model.graph, unnamed)
    return verdict


def _open_first(shapes: Sequence[tuple[Dim, ...] | None]) -> bool:
    return all(dims and not isinstance(dims[0], int) for dims in shapes)


def _symbolic_verdict(
    inference: ShapeInference, inputs: Shapes, outputs: Shapes, other_symbols: set[str]
) -> bool | None:
    """Follows a fresh symbol at axis 0 of the inputs: it must arrive at axis 0 of every output only."""
    fresh = {name: (_BATCH, *dims[1:]) for name, dims in inputs.items() if dims}
    inferred = inference.outputs(fresh)
    known = True
    for name, declared in outputs.items():
        dims = _plausible(inferred.get(name), declared)
        if dims is None:
            known = False
        elif isinstance(dims[0], int) or dims[0] in other_symbols or _BATCH in dims[1:]:
            return False
        elif dims[0] != _BATCH:
            known = False
    return True if known else None


def _concrete_verdict(inference: ShapeInference, inputs: Shapes, outputs: Shapes) -> bool | None:
    """Compares the outputs' shapes at batch 1 and at batch 2."""
    at_batch = {}
    for batch in (1, 2):
        sizes = {
            name: (batch, *(dim if isinstance(dim, int) else _OTHER_SIZE for dim in dims[1:]))
            for name, dims in inputs.items()
            if dims
        }
        at_batch[batch] = inference.outputs(sizes)
    known = True
    for name, declared in outputs.items():
        one = _plausible(at_batch[1].get(name), declared)
        two = _plausible(at_batch[2].get(name), declared)
        if one is None or two is None:
            known = False
            continue
        if one[0] not in (1, None) or two[0] not in (2, None) or _differ(one[1:], two[1:]):
            return False
        known = known and one[0] == 1 and two[0] == 2
    return True if known else None


def _plausible(inferred: tuple[Dim, ...] | None, declared: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """The inferred dims, unless they contradict the fixed ones: then a size we tried is not a legal one."""
    if not inferred or not declared or len(inferred) != len(declared):
        return None
    return None if _differ(inferred, declared) else inferred


def _differ(one: tuple[Dim, ...], two: tuple[Dim, ...]) -> bool:
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(one, two, strict=True))


def _has_unpredictable_size(graph: onnx.GraphProto, outputs: Sequence[str]) -> bool:
    """Whether an operator whose number of rows depends on values leads to one of these outputs."""
    if not any(node.op_type in _UNPREDICTABLE_SIZE for node in graph.node):
        return False
    wanted = set(outputs)
    for node in reversed(graph.node):  # the nodes of a graph are sorted: makers before users
        if wanted.intersection(node.output):
            if node.op_type in _UNPREDICTABLE_SIZE:
                return True
            wanted.update(node.input)
    return False
