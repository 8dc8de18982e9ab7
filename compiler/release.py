"""Triton releases: the year.month of a container, in order, and the server version inside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

_RELEASE = re.compile(r"^(\d{2})\.(\d{2})$")


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """A Triton container release, such as 24.10; later ones compare greater.

    Any year and month will do: a release that no table lists still has its place in the order.
    """

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Release:
        """The release that `text` names.

        >>> Release.parse("24.10") < Release.parse("25.02")
        True

        Raises:
            ValueError: it is no year.month of two digits each.
        """
        return _parse(text)

    def __str__(self) -> str:
        return f"{self.year:02d}.{self.month:02d}"


@cache
def _parse(text: str) -> Release:
    match = _RELEASE.match(text)
    if not match or not 1 <= int(match[2]) <= 12:
        raise ValueError(f'"{text}" is no Triton release; one looks like "24.10"')
    return Release(int(match[1]), int(match[2]))


def _server_versions() -> Iterator[tuple[Release, str]]:
    # One minor version a month since 2.7.0 in 21.02, except that 25.07 was the patch 2.59.1 (release notes of
    # each container: 2.51.0 is 24.10, 2.56.0 is 25.03, 2.68.0 is 26.04, 2.69.0 is 26.05).
    minor = 7
    for months in range(21 * 12 + 1, 26 * 12 + 5):
        release = Release(months // 12, months % 12 + 1)
        if release == Release(25, 7):
            yield release, "2.59.1"
            continue
        yield release, f"2.{minor}.0"
        minor += 1


SERVER_VERSIONS: dict[Release, str] = dict(_server_versions())
"""The server version of every release from 21.02 to 26.05, the last one known here."""

_RELEASES = {version: release for release, version in SERVER_VERSIONS.items()}


def release_of_server(version: str) -> Release | None:
    """The release that carries this server version; None where the table does not have it.

    >>> str(release_of_server("2.51.0"))
    '24.10'
    """
    return _RELEASES.get(version)
