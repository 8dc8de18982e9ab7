"""What was measured before of the candidates of one (model, target), by content: nothing is measured twice.

An entry is found by what was served and asked (`tritonc.tuner.content`), not by the study that it was
measured in, so that a study with other limits, another objective or another space begins with all that is
known. It holds one load of one candidate, whether its outputs agree with the baseline's, or why it does not
load. What may have been somebody else's fault (a server that crashed or hung, no result) is not kept.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import Failure, Load, Measurement
from tritonc.schemas.spec import Accuracy
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.record_store import RecordStore, Row
from tritonc.tuner.recorded import Checked, Recorded, Unloadable, day_of

if TYPE_CHECKING:
    from tritonc.compiler.space import Space

STORE_NAME = "measurements.db"
"""In the project's state folder."""

_OF_ALL = ""
"""The candidate of what is no candidate's own."""
_OF_THE_MACHINE = re.compile(r"stub process|unhealthy|exited|killed|memory|temporarily", re.IGNORECASE)
"""A load that fails with such words may have failed because of what else ran: it is tried again."""
_LOAD, _OUTPUTS, _UNLOADABLE, _NOISE = "load", "outputs", "unloadable", "noise"
"""Kinds of entries."""

Entry = TypeVar("Entry", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Before:
    """What was measured of one candidate before.

    Attributes:
        loads: by load.
        is_verified: its outputs agree with the baseline's.
        failure: why it cannot be measured, for a cause that is its own.
    """

    loads: Mapping[Load, Recorded] = field(default_factory=dict)
    is_verified: bool = False
    failure: Failure | None = None


NOTHING_BEFORE = Before()


class Records(Protocol):
    """What was measured before, to be asked and added to."""

    def of(self, candidate: Candidate) -> Before:
        """What was measured of a candidate."""
        ...

    def noise(self) -> NoiseFloor | None:
        """The machine's noise floor."""
        ...

    def keep(
        self,
        candidate: Candidate,
        loads: Sequence[tuple[Measurement, int]],
        noise: NoiseFloor | None,
        *,
        is_verified: bool,
    ) -> None:
        """Keeps what was measured now: each load with its number of windows."""
        ...

    def keep_failure(self, candidate: Candidate, failure: Failure) -> None:
        """Keeps why a candidate cannot be measured, where that is its own fault and would be again."""
        ...

    def forget(self, candidate: Candidate) -> None:
        """What was measured of a candidate counts no more."""
        ...

    def forget_all(self) -> None:
        """Nothing that was measured counts any more."""
        ...


class NoRecords:
    """The `Records` of what is to be measured anew in any case."""

    def of(self, candidate: Candidate) -> Before:
        """Nothing."""
        del candidate
        return NOTHING_BEFORE

    def noise(self) -> NoiseFloor | None:
        """Nothing."""
        return None

    def keep(
        self,
        candidate: Candidate,
        loads: Sequence[tuple[Measurement, int]],
        noise: NoiseFloor | None,
        *,
        is_verified: bool,
    ) -> None:
        """Keeps nothing."""

    def keep_failure(self, candidate: Candidate, failure: Failure) -> None:
        """Keeps nothing."""

    def forget(self, candidate: Candidate) -> None:
        """There is nothing to forget."""

    def forget_all(self) -> None:
        """There is nothing to forget."""


class StoredRecords:
    """The `Records` in a file.

    Args:
        path: of the file; made by the first entry that is kept.
        content: `content.content_digest` of the model on this machine.
        digest_of: `content.candidate_digest`.
        baseline: candidates are compared with its outputs.
        accuracy: how far these may differ.
        requests_in_sight: of the search: what was seen in shorter windows does not count.
        counts_energy: whether a Measurement without energy does not count.
        warn: takes one line for people.

    Every method raises SetupError where the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        content: str,
        digest_of: Callable[[Candidate], str],
        *,
        baseline: Candidate,
        accuracy: Accuracy,
        requests_in_sight: int,
        counts_energy: bool,
        warn: Callable[[str], None],
    ) -> None:
        self._store = RecordStore(path)
        self._content = content
        self._digest_of = cache(digest_of)
        self._baseline = baseline
        self._accuracy = accuracy
        self._requests_in_sight = requests_in_sight
        self._counts_energy = counts_energy
        self._warn = warn

    def of(self, candidate: Candidate) -> Before:
        """What was measured of a candidate; an entry that cannot be read is not there, and said."""
        return self._before(candidate, self._store.read(self._content, self._digest_of(candidate)))

    def all_in(self, space: Space) -> dict[Candidate, Before]:
        """What was measured of every candidate of a space of which anything was."""
        rows: dict[Candidate, list[Row]] = {}
        for row in self._store.read(self._content):
            if row.candidate != _OF_ALL and row.entry is not None:
                knobs = ((name, tuple(v) if isinstance(v, list) else v) for name, v in json.loads(row.knobs))
                candidate = Candidate.of(space.model, space.target, dict(knobs))
                if candidate in space and self._digest_of(candidate) == row.candidate:
                    rows.setdefault(candidate, []).append(row)
        return {candidate: self._before(candidate, found) for candidate, found in rows.items()}

    def noise(self) -> NoiseFloor | None:
        """The noise floor as it was known after the last trial."""
        rows = self._store.read(self._content, _OF_ALL)
        entry = next((row.entry for row in rows if row.kind == _NOISE), None)
        try:
            return None if entry is None else _noise_adapter().validate_json(entry)
        except ValidationError:
            return None

    def keep(
        self,
        candidate: Candidate,
        loads: Sequence[tuple[Measurement, int]],
        noise: NoiseFloor | None,
        *,
        is_verified: bool,
    ) -> None:
        """Keeps what was measured now: each load with its number of windows."""
        rows = [
            self._row(
                candidate,
                _LOAD,
                measured.load.model_dump_json(),
                Recorded(
                    measurement=measured,
                    windows=windows,
                    requests_in_sight=self._requests_in_sight,
                    measured_at=_now(),
                ),
            )
            for measured, windows in loads
        ]
        if is_verified:
            rows.append(self._row_of_check(candidate, None))
        if noise is not None:
            rows.append(Row(_OF_ALL, _NOISE, "", "[]", _noise_adapter().dump_json(noise).decode()))
        self._store.write(self._content, rows)

    def keep_failure(self, candidate: Candidate, failure: Failure) -> None:
        """Keeps why a candidate cannot be measured, where that is its own fault and would be again."""
        if failure.reason == "outputs_differ":
            self._store.write(self._content, [self._row_of_check(candidate, failure)])
        is_own = candidate != self._baseline and not _OF_THE_MACHINE.search(failure.detail)
        if failure.reason == "load_failed" and is_own:
            entry = Unloadable(failure=failure, measured_at=_now())
            self._store.write(self._content, [self._row(candidate, _UNLOADABLE, "", entry)])

    def forget(self, candidate: Candidate) -> None:
        """Deletes what was measured of a candidate."""
        self._store.forget(self._content, self._digest_of(candidate))

    def forget_all(self) -> None:
        """Deletes everything that was measured of this content."""
        self._store.forget(self._content)

    def _before(self, candidate: Candidate, rows: Sequence[Row]) -> Before:
        loads = self._entries(candidate, rows, _LOAD, Recorded)
        unloadable = self._entries(candidate, rows, _UNLOADABLE, Unloadable)
        asked = (self._digest_of(self._baseline), self._accuracy.rtol, self._accuracy.atol)
        checks = self._entries(candidate, rows, _OUTPUTS, Checked)
        told = [each for each in checks if each.answers(*asked)]
        failures = [_as_then(each.failure, each.measured_at) for each in unloadable]
        failures += [_as_then(each.failure, each.measured_at) for each in told if each.failure is not None]
        return Before(
            loads={each.measurement.load: each for each in loads if self._counts(each)},
            is_verified=any(each.failure is None for each in told),
            failure=next(iter(failures), None),
        )

    def _counts(self, recorded: Recorded) -> bool:
        has_energy = recorded.measurement.joules_per_inference is not None
        return recorded.requests_in_sight >= self._requests_in_sight and (
            has_energy or not self._counts_energy
        )

    def _entries(
        self, candidate: Candidate, rows: Sequence[Row], kind: str, entry: type[Entry]
    ) -> list[Entry]:
        """Entries of one kind that can be read."""
        found = []
        for row in rows:
            if row.kind != kind:
                continue
            try:
                if row.entry is None:
                    raise ValueError("it is not what was written")
                found.append(entry.model_validate_json(row.entry))
            except ValueError:  # pydantic's ValidationError is one
                self._warn(f"note: what was stored of {candidate.id} is damaged, and is measured again")
        return found

    def _row_of_check(self, candidate: Candidate, failure: Failure | None) -> Row:
        checked = Checked(
            baseline=self._digest_of(self._baseline),
            rtol=self._accuracy.rtol,
            atol=self._accuracy.atol,
            failure=failure,
            measured_at=_now(),
        )
        which = json.dumps([checked.baseline, checked.rtol, checked.atol])
        return self._row(candidate, _OUTPUTS, which, checked)

    def _row(self, candidate: Candidate, kind: str, which: str, entry: BaseModel) -> Row:
        knobs, text = json.dumps(candidate.knobs), entry.model_dump_json()
        return Row(self._digest_of(candidate), kind, which, knobs, text)


def _as_then(failure: Failure, measured_at: str) -> Failure:
    return failure.model_copy(update={"detail": f"as on {day_of(measured_at)}: {failure.detail}"})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@cache
def _noise_adapter() -> TypeAdapter[NoiseFloor]:
    return TypeAdapter(NoiseFloor)
