"""Sizes with units, as people write them in a spec."""

from __future__ import annotations

import re

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$")
_UNITS = {
    "": 1,
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
    match = _SIZE.match(value) if isinstance(value, str) else None
    if not match or match[2] not in _UNITS:
        raise ValueError('should be a size such as "8GiB", "512MB" or a number of bytes')
    return int(float(match[1]) * _UNITS[match[2]])
