"""Whether a candidate computes what the source model computes: its outputs, through the real server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonc.schemas.measurement import Failure
from tritonc.schemas.spec import Accuracy
from tritonc.tuner.engines import Server
from tritonc.tuner.faults import fault
from tritonc.tuner.inputs import Inputs
from tritonc.tuner.tensor_types import wire_name

Array = npt.NDArray[Any]

ROWS = 3
"""Samples that are compared; as many as that, asked as one batch, show an axis that is no batch axis."""
REQUEST_S = 30.0
"""A first request may compile kernels; the CPU's take milliseconds."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the outputs should be: for each row of the inputs, asked alone, the outputs by name."""

    rows: tuple[Mapping[str, Array], ...]


def infer(
    server: Server, model: str, inputs: Inputs, size: int, start: int, timeout_s: float = REQUEST_S
) -> Mapping[str, Array] | Failure:
    """The outputs of one request with `size` rows of the inputs from row `start` on, by name."""
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    dtypes = inputs.dtypes()
    tensors = []
    for name, array in inputs.batch(size, start).items():
        tensor = grpc.InferInput(name, list(array.shape), wire_name(dtypes[name]))
        tensor.set_data_from_numpy(np.ascontiguousarray(array).reshape(array.shape))
        tensors.append(tensor)
    try:
        with grpc.InferenceServerClient(server.grpc_address) as client:
            answer = client.infer(model, tensors, client_timeout=timeout_s)
            return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}
    except InferenceServerException as err:
        return fault(server, "request_errors", f"a request of {size} failed: {err.message()}")


def reference_outputs(server: Server, model: str, inputs: Inputs) -> Reference | Failure:
    """The outputs of what is loaded, for candidates to be compared with."""
    rows = []
    for row in range(ROWS):
        outputs = infer(server, model, inputs, 1, row)
        if isinstance(outputs, Failure):
            return outputs
        rows.append(outputs)
    return Reference(tuple(rows))


def references_of(server: Server, model: str, shapes: Sequence[Inputs]) -> tuple[Reference, ...] | Failure:
    """`reference_outputs` for inputs of each shape."""
    found = []
    for inputs in shapes:
        reference = reference_outputs(server, model, inputs)
        if isinstance(reference, Failure):
            return reference
        found.append(reference)
    return tuple(found)


def verify_all(
    server: Server,
    model: str,
    shapes: Sequence[Inputs],
    references: Sequence[Reference],
    accuracy: Accuracy,
    *,
    max_batch_size: int,
) -> Failure | None:
    """`verify` for inputs of each shape; `references` are those of `references_of`."""
    for inputs, reference in zip(shapes, references, strict=True):
        found = verify(server, model, inputs, reference, accuracy, max_batch_size=max_batch_size)
        if found is not None and len(shapes) > 1:
            return found.model_copy(update={"detail": f"with {inputs.shape_text()}: {found.detail}"})
        if found is not None:
            return found
    return None


def verify(
    server: Server,
    model: str,
    inputs: Inputs,
    reference: Reference,
    accuracy: Accuracy,
    *,
    max_batch_size: int,
) -> Failure | None:
    """Why the outputs of the loaded candidate are not those of the reference; None where they agree.

    Each row is asked alone, and where the model has a batch axis several are asked in one request.

    Args:
        server: has `model` loaded.
        model: the candidate.
        inputs: those that the reference was made with.
        reference: what the outputs should be.
        accuracy: how far they may differ.
        max_batch_size: the candidate's own.
    """
    for row, wanted in enumerate(reference.rows):
        found = infer(server, model, inputs, 1, row)
        if isinstance(found, Failure):
            return found
        if problem := difference(found, wanted, accuracy):
            return Failure(reason="outputs_differ", detail=problem)
    size = min(max_batch_size, len(reference.rows))
    if not inputs.has_batch_axis or size < 2:
        return None
    together = infer(server, model, inputs, size, 0)
    if isinstance(together, Failure):
        return together
    for row in range(size):
        lengths = {name: array.shape[:1] for name, array in together.items()}
        if wrong := next((name for name, length in lengths.items() if length != (size,)), None):
            detail = f'output "{wrong}" has shape {list(together[wrong].shape)} for a batch of {size}'
            return Failure(reason="outputs_differ", detail=detail)
        alone = {name: array[row : row + 1] for name, array in together.items()}
        if problem := difference(alone, reference.rows[row], accuracy):
            return Failure(reason="outputs_differ", detail=f"row {row} of a batch of {size}: {problem}")
    return None


def difference(found: Mapping[str, Array], wanted: Mapping[str, Array], accuracy: Accuracy) -> str | None:
    """In what the outputs differ by more than the tolerance, in one sentence; None where they agree.

    Equal NaNs and infinities agree; text has to be equal.
    """
    if found.keys() != wanted.keys():
        return f"the outputs are {sorted(found)}, and should be {sorted(wanted)}"
    for name, right in wanted.items():
        if problem := _difference(found[name], right, accuracy):
            return f'output "{name}" {problem}'
    return None


def _difference(found: Array, right: Array, accuracy: Accuracy) -> str | None:
    if found.shape != right.shape:
        return f"has shape {list(found.shape)}, and should have {list(right.shape)}"
    if found.dtype != right.dtype:
        return f"is {found.dtype}, and should be {right.dtype}"
    if right.dtype.kind not in "fiub":
        unequal = found != right
        return f"differs in {int(np.count_nonzero(unequal))} of {right.size} texts" if unequal.any() else None
    a, b = found.astype(np.float64), right.astype(np.float64)
    close = np.isclose(a, b, rtol=accuracy.rtol, atol=accuracy.atol, equal_nan=True)
    if close.all():
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        absolute = np.where(close, 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf))
        relative = np.where(close, 0.0, np.nan_to_num(np.abs(a - b) / np.abs(b), nan=np.inf))
    worst = np.unravel_index(int(np.argmax(absolute)), absolute.shape)
    index = [int(position) for position in worst]
    return (
        f"differs in {int(np.count_nonzero(~close))} of {close.size} values "
        f"beyond rtol {accuracy.rtol:g} and atol {accuracy.atol:g}: "
        f"by up to {float(absolute.max()):.3g} (relative {float(relative.max()):.3g}), "
        f"at {index} {a[worst]:.6g} instead of {b[worst]:.6g}"
    )
