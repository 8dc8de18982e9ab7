"""Real measuring made brief, for tests of everything else: only as long as it has to be.

The procedure at its full length has tests of its own (`tests/tuner`, and the workloads of
`tests/cli/test_tune.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def changes() -> Iterator[tuple[Any, str, Any]]:
    """What is to be set: of whom, by what name, to what."""
    from tritonc.tuner import confirm, load_search, measuring, race, reference, statistics

    yield reference.ReferenceWatch, "change", lambda _watch, _seen: None  # the machine is what it was
    yield load_search, "PRECISION", math.inf  # a load wants no further windows
    yield measuring, "WINDOWS", statistics.LEAST_WINDOWS  # of the noise floor
    yield race, "LAST_LOOK", confirm.FIRST_LOOK  # rounds of the confirmation
