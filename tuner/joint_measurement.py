"""What several models did at the same time."""

from __future__ import annotations

from collections.abc import Mapping

from tritonc.schemas.measurement import Measurement


class Together(Measurement):
    """What a joint candidate did: how well all did, as its throughput, and what each member did.

    See `tuner.together` for what that throughput means.
    """

    members: dict[str, Measurement]
    """By model."""


def members_in(measurement: Measurement) -> Mapping[str, Measurement]:
    """What was measured of each member; nothing where one model was measured."""
    return measurement.members if isinstance(measurement, Together) else {}
