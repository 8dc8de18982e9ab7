"""What a model file says about itself: inputs, outputs, dtypes, dims, and which axis is the batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output.

    Attributes:
        name: as the model file spells it.
        dtype: Triton's name of the element type, for example "TYPE_FP32".
        dims: without the batch axis where the signature has one; -1 for an open dimension.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a model, in the file's order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    has_batch_axis: bool
