"""One point of a Space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from tritonc.schemas.lock import KnobValue

VERSION = 1
"""The version folder of every model; which versions are served is Triton's version_policy."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One legal configuration of a (model, target): the value of every knob that is active, and nothing else.

    Attributes:
        model: name of the model in the spec.
        target: name of the target in the spec.
        knobs: (name, value) of every active knob, sorted by name.
    """

    model: str
    target: str
    knobs: tuple[tuple[str, KnobValue], ...]

    @classmethod
    def of(cls, model: str, target: str, knobs: Mapping[str, KnobValue]) -> Candidate:
        """The candidate with these active knobs."""
        return cls(model, target, tuple(sorted(knobs.items())))

    @property
    def values(self) -> dict[str, KnobValue]:
        """Active knobs by name."""
        return dict(self.knobs)

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that depend on the knobs alone, the same on every machine."""
        text = json.dumps(self.knobs, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]
