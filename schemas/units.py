"""Sizes with units, as people write them in a spec."""

from __future__ import annotations

import re

SIZE_PATTERN = r"^([0-9]{1,18}(\.[0-9]{1,18})?) ?(B|[kKMGT]B|[KMGT]iB)?$"
_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def parse_size_bytes(value: object) -> int:
    """Bytes from a whole number or a text with a unit.

    >>> parse_size_bytes("8GiB")
    8589934592

    Raises:
        ValueError: it is no size; the message says what one looks like.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(SIZE_PATTERN, value) if isinstance(value, str) else None
    if not match:
        raise ValueError('must be a size such as "8GiB", "512MB" or a number of bytes')
    return int(float(match[1]) * _UNITS[match[3] or "B"])
