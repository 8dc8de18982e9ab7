"""What the baseline computes, which candidates are compared with: asked for until it is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from tritonc.schemas.measurement import Failure
from tritonc.tuner.faults import SERVER_GONE

Outputs = TypeVar("Outputs")

TRIES = 3
"""Candidates before which the baseline is asked until it answers: a machine may be busy."""


class BaselineOutputs(Generic[Outputs]):
    """The outputs of the baseline, or of the baselines of several models.

    Args:
        ask: asks once.
        warn: takes one line for people.

    Attributes:
        known: None as long as they are not.
    """

    def __init__(self, ask: Callable[[], Outputs | Failure], warn: Callable[[str], None]) -> None:
        self.known: Outputs | None = None
        self._ask = ask
        self._warn = warn
        self._tries = TRIES

    def look(self) -> None:
        """Asks before a candidate is measured, where they are not known and it is worth another try."""
        if self.known is not None or not self._tries:
            return
        self._tries -= 1
        found = self._ask()
        if isinstance(found, Failure) and found.reason in SERVER_GONE:
            found = self._ask()  # somebody else may have ended the server
        if not isinstance(found, Failure):
            self.known = found
            return
        why = f"{found.reason}: {found.detail.partition(chr(10))[0]}"
        unchecked = "this candidate's outputs" if self._tries else "outputs from now on"
        self._warn(
            f"warning: the baseline gives no outputs to compare with ({why}); {unchecked} are not checked; "
            "where they have to be, mend that and run tritonc tune --fresh"
        )
