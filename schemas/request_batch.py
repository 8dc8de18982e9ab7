"""How many inferences a request holds: the same number always, or several in proportion to their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from tritonc.schemas.problems import problem
from tritonc.schemas.spec_fields import Count, Model, Positive


class BatchShare(Model):
    """Inferences in a share of the requests."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: Positive = 1.0
    """Requests of this size, relative to those of others."""
    size: Count
    """Inferences in one request."""


BatchMix = tuple[BatchShare, ...]


def _mix(value: BatchMix) -> BatchMix:
    if len(value) < 2:
        hint = "name at least two sizes, or write the only one as a number"
        raise problem(f"{{field}} has {'one entry' if value else 'no entry'}", hint)
    for place, share in enumerate(value):
        if any(share.size == other.size for other in value[:place]):
            raise problem(
                f"{{field}}[{place}] has the size of another entry", "add their weights", at=(place,)
            )
    return tuple(sorted(value, key=lambda share: share.size))


def _no_mapping(value: object) -> object:
    if isinstance(value, Mapping):
        hint = "write a number, or sizes with weights as in [{weight: 9, size: 1}, {weight: 1, size: 8}]"
        raise problem("{field} is a mapping", hint)
    return value


def _kind(value: object) -> str:
    return "several sizes" if isinstance(value, list | tuple) else "one size"


RequestBatch = Annotated[
    Annotated[Count, Tag("one size")]
    | Annotated[
        BatchMix, AfterValidator(_mix), Field(json_schema_extra={"minItems": 2}), Tag("several sizes")
    ],
    Discriminator(_kind),
    BeforeValidator(_no_mapping),
]
"""Inferences in one request: a number, or sizes with their weights."""


def sizes_of(batch: int | BatchMix) -> tuple[int, ...]:
    """All numbers of inferences that a request may hold, ascending."""
    return (batch,) if isinstance(batch, int) else tuple(share.size for share in batch)


def mean_size(batch: int | BatchMix) -> float:
    """Inferences in a request on average.

    >>> mean_size((BatchShare(weight=3, size=1), BatchShare(weight=1, size=5)))
    2.0
    """
    if isinstance(batch, int):
        return batch
    return sum(share.weight * share.size for share in batch) / sum(share.weight for share in batch)


def describe_sizes(batch: int | BatchMix) -> str:
    """Sizes in words.

    >>> describe_sizes((BatchShare(weight=3, size=1), BatchShare(weight=1, size=5)))
    '1 (75%) and 5 (25%)'
    """
    if isinstance(batch, int):
        return str(batch)
    total = sum(share.weight for share in batch)
    each = [f"{share.size} ({100 * share.weight / total:.3g}%)" for share in batch]
    return f"{', '.join(each[:-1])} and {each[-1]}"
