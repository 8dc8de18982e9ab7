"""Dims that a spec gives for a model's inputs and outputs, held against those of its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tritonc.compiler.signature import OPEN, Signature, Tensor
from tritonc.schemas.errors import did_you_mean

Dims = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DimsProblem:
    """A contradiction between the spec and a model file.

    Attributes:
        key_path: from `shapes` or `dims` on.
        what: what contradicts what.
        hint: what to do.
    """

    key_path: tuple[str | int, ...]
    what: str
    hint: str


def pinned(signature: Signature, dims: Mapping[str, Dims]) -> Signature:
    """The signature with open dimensions set to those of `dims`; where the rank differs nothing is set."""

    def pin(tensor: Tensor) -> Tensor:
        given = dims.get(tensor.name, ())
        if len(given) != len(tensor.dims):
            return tensor
        sizes = tuple(pin if own == OPEN else own for own, pin in zip(tensor.dims, given, strict=True))
        return replace(tensor, dims=sizes)

    inputs, outputs = (tuple(map(pin, side)) for side in (signature.inputs, signature.outputs))
    return Signature(inputs, outputs, signature.has_batch_axis)


def dims_problems(
    signature: Signature,
    dims: Mapping[str, Dims],
    shapes: Mapping[str, Dims],
    *,
    pinned_by: Mapping[str, Dims] | None = None,
) -> Iterator[DimsProblem]:
    """Everything in `dims` and `shapes` of a model that contradicts its file, or each other.

    Args:
        signature: the file's.
        dims: for config.pbtxt, by input or output; -1 leaves open what the file leaves open.
        shapes: for measuring, by input.
        pinned_by: dims that `shapes` has to agree with, where they are looked at already.
    """
    served = pinned(signature, dims if pinned_by is None else pinned_by)
    for key, kind, own, final, given in (
        ("dims", "input or output", (*signature.inputs, *signature.outputs), (), dims),
        ("shapes", "input", signature.inputs, served.inputs, shapes),
    ):
        own_dims = {tensor.name: tensor.dims for tensor in own}
        pinned_dims = {tensor.name: tensor.dims for tensor in final}
        for name, sizes in given.items():
            if name not in own_dims:
                hint = did_you_mean(name, own_dims) if own_dims else "it has none"
                yield DimsProblem((key, name), f'{key}: the model has no {kind} "{name}"', hint)
            elif len(sizes) != len(own_dims[name]):
                yield _wrong_rank(key, name, sizes, own_dims[name], signature.has_batch_axis)
            else:
                yield from _wrong_sizes(key, name, sizes, own_dims[name], "the file fixes")
                yield from _wrong_sizes(
                    key, name, sizes, _added(own_dims[name], pinned_dims.get(name)), "dims pins"
                )


def _added(own: Dims, pins: Dims | None) -> Dims:
    """What is pinned beyond what the file itself fixes."""
    return tuple(pin if size == OPEN else OPEN for size, pin in zip(own, pins or own, strict=True))


def _wrong_sizes(key: str, name: str, sizes: Dims, fixed: Dims, who: str) -> Iterator[DimsProblem]:
    for axis, (size, fixed_size) in enumerate(zip(sizes, fixed, strict=True)):
        if fixed_size not in (OPEN, size):
            what = f"{key}: dimension {axis} of {name} is {size}, but {who} it at {fixed_size}"
            yield DimsProblem((key, name, axis), what, f"write {fixed_size}")


def _wrong_rank(key: str, name: str, dims: Dims, own: Dims, has_batch_axis: bool) -> DimsProblem:
    without = ", without the batch axis" if has_batch_axis else ""
    what = f"{key}: {name} is {list(dims)}, but {list(own)} in the file{without}"
    batch_given = has_batch_axis and len(dims) == len(own) + 1
    return DimsProblem(
        (key, name), what, "leave out the batch axis" if batch_given else "give one size for each"
    )
