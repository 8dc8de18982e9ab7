"""What a spec says of an input's values: drawn at random, one for all elements, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag

from tritonc.schemas.errors import did_you_mean, found, shortened
from tritonc.schemas.problems import problem
from tritonc.schemas.spec_fields import FilePath, Model, Scalar


def _ends(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise problem(f"{{field}} has {len(value)} numbers", "it must be [low, high]")
    return value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise problem(f"{{field}} goes from {value[0]:g} to {value[1]:g}", "write the lower end first")
    return value


class RandomData(Model):
    """Uniform random values in [low, high]; integers include both ends."""

    range: Annotated[tuple[float, float], BeforeValidator(_ends), AfterValidator(_ordered)]


class ConstantData(Model):
    """Every element has this value."""

    constant: Scalar


class FileData(Model):
    """Values from a file beside the spec: `.npz` (an array named like the input) or perf_analyzer's JSON."""

    file: FilePath


_DATA_KEYS = ("constant", "file", "range")


def _input_data(value: object) -> object:
    if not isinstance(value, Mapping):
        if isinstance(value, Model):
            return value
        raise problem(
            f"{{field}} is {found(value)}", "it must be {range: [low, high]}, {constant: …} or {file: …}"
        )
    for key in value:
        if key not in _DATA_KEYS:
            raise problem(
                f'unknown key "{shortened(str(key))}" in {{field}}',
                did_you_mean(str(key), _DATA_KEYS),
                at=(key,),
            )
    if len(value) != 1:
        raise problem(
            f"{{field}} has {len(value)} sources of data", f"it must have one of: {', '.join(_DATA_KEYS)}"
        )
    return value


def _data_kind(value: object) -> str:
    return f"{next(iter(value if isinstance(value, Mapping) else type(value).__annotations__))} data"


InputData = Annotated[
    Annotated[RandomData, Tag("range data")]
    | Annotated[ConstantData, Tag("constant data")]
    | Annotated[FileData, Tag("file data")],
    Discriminator(_data_kind),
    BeforeValidator(_input_data),
]
