"""Real measuring made brief, for tests of everything else: only as long as it has to be.

The procedure at its full length has tests of its own: those of `tests/tuner`, and `tests/cli/test_tune.py`,
where two configurations are told apart in as many rounds as that takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Changes = Iterator[tuple[Any, str, Any]]
"""What is to be set: of whom, by what name, to what."""


def brief() -> Changes:
    """No more windows and rounds than the procedure needs to come to an end."""
    from tritonc.tuner import confirm, measuring, race, statistics

    yield from same_machine()
    yield measuring, "WINDOWS", statistics.LEAST_WINDOWS  # of the noise floor
    yield race, "LAST_LOOK", confirm.FIRST_LOOK  # rounds of the confirmation


def same_machine() -> Changes:
    """All of the procedure, but nothing that others do to this machine leads to more of it."""
    from tritonc.tuner import load_search, reference

    yield reference.ReferenceWatch, "change", lambda _watch, _seen: None  # the machine is what it was
    yield load_search, "PRECISION", math.inf  # a load wants no further windows
