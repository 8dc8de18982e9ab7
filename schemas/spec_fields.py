"""Types of single values in a spec, each with the message a person gets for a wrong one."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from tritonc.schemas.errors import found, shortened
from tritonc.schemas.problems import problem
from tritonc.schemas.units import SIZE_PATTERN, parse_size_bytes

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
"""Names that become folders: no separator, no leading dot, at most 128 characters (files: 255)."""
OWN_FILES = ("index.json", "manifest.json", "server.args")
"""Files that tritonc writes beside the folders of models and targets."""
RELEASE_PATTERN = r"^[0-9]{2}\.(0[1-9]|1[0-2])$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
INT32_MAX = 2**31 - 1
"""Whole numbers of config.pbtxt are int32, dims int64."""
INT64_MAX = 2**63 - 1


def _name(value: str) -> str:
    if value in OWN_FILES:
        raise problem(f'the name "{value}" is that of a file that tritonc writes', "give it another one")
    if re.fullmatch(NAME_PATTERN, value):
        return value
    if not value:
        raise problem("a name is empty", "give it one: it becomes a folder")
    if len(value) > 128:
        raise problem(
            f'the name "{shortened(value, 20)}" has {len(value)} characters', "at most 128 are allowed"
        )
    raise problem(
        f'bad name "{shortened(value)}"',
        'use letters, digits, "_", "-" and ".", beginning with a letter or digit',
    )


def _release(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise problem(
            f"{{field}} is the number {value}, not a release", f'quote it, as in triton: "{value:.2f}"'
        )
    if isinstance(value, str) and not re.fullmatch(RELEASE_PATTERN, value):
        raise problem(f"{{field}} is {found(value)}", 'a release is year.month, such as "24.10"')
    return value


def _sha256(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(SHA256_PATTERN, value):
        raise problem(
            f"{{field}} is {found(value)}",
            "it must be 64 hexadecimal digits in small letters; sha256sum prints them",
        )
    if isinstance(value, int):
        raise problem("{field} is a number", "quote it")
    return value


def _path(value: str) -> str:
    if not value.isprintable():
        raise problem(f"{{field}} is {found(value)}", "a path has no control characters")
    return value


def scalar(value: object) -> object:
    """The value if it is a scalar; raises the problem if it is not."""
    if not isinstance(value, bool | int | float | str):
        raise problem(f"{{field}} is {found(value)}", "it must be a number, text, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise problem(f"{{field}} is {found(value)}", "it must be a finite number")
    return value


def _text(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern})


Name = Annotated[str, AfterValidator(_name), _text(NAME_PATTERN)]
Bytes = Annotated[
    Annotated[int, Field(gt=0, le=INT64_MAX)],
    BeforeValidator(parse_size_bytes),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string", "pattern": SIZE_PATTERN}]}
    ),
]
"""A size in bytes, written as a number or with a unit (`8GiB`, `512MB`)."""
Release = Annotated[str, BeforeValidator(_release), _text(RELEASE_PATTERN)]
"""A Triton container release, year.month, quoted (an unquoted 24.10 is the number 24.1)."""
Sha256 = Annotated[str, BeforeValidator(_sha256), _text(SHA256_PATTERN)]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(_path)]
Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
Positive = Annotated[float, Field(gt=0)]
Dims = tuple[Annotated[int, Field(ge=1, le=INT64_MAX)], ...]
Scalar = Annotated[bool | int | float | str, BeforeValidator(scalar)]


def _open_dim(value: int) -> int:
    if value < -1 or value == 0:
        raise problem(f"{{field}} is {found(value)}", "a dimension is at least 1, or -1 where it stays open")
    return value


OpenDims = tuple[Annotated[int, Field(le=INT64_MAX), AfterValidator(_open_dim)], ...]


class Model(BaseModel):
    """Base of everything people write: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
