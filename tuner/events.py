"""What a tuning job tells whoever watches it: frozen values, in the order in which things happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import Decision
from tritonc.schemas.measurement import EngineInfo, Hardware, Load
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.objective import Objective
from tritonc.tuner.trial import Trial


@dataclass(frozen=True, slots=True)
class TargetSkipped:
    """A target that this machine cannot measure, and why, in half a sentence."""

    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerStarted:
    """A tritonserver serves; `restarted` says that the one before had to be given up."""

    engine: EngineInfo
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class StudyStarted:
    """A (model, target) is being searched.

    Attributes:
        candidates: size of its space.
        trials: how many will have been finished at the end.
        finished: trials that earlier runs finished.
        objective: of the model.
    """

    model: str
    target: str
    candidates: int
    trials: int
    finished: tuple[Trial, ...]
    baseline: Candidate
    objective: Objective
    engine: EngineInfo
    hardware: Hardware


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """Trial `number` (from 1) loads `candidate`."""

    number: int
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class LoadStarted:
    """The candidate of the running trial, or a contender, is put under a load (None: it is warmed up)."""

    candidate: Candidate
    load: Load | None


@dataclass(frozen=True, slots=True)
class TrialFinished:
    """A trial ended, well or not; `best` is the best so far."""

    trial: Trial
    best: Trial | None


@dataclass(frozen=True, slots=True)
class NoiseMeasured:
    """How far windows of the same load lie apart on this machine; it is in every interval from now on."""

    noise: NoiseFloor


@dataclass(frozen=True, slots=True)
class ReferenceLook:
    """The baseline is measured again, to see whether the machine itself changed."""

    baseline: Candidate


@dataclass(frozen=True, slots=True)
class MachineChanged:
    """The reference point does something else than it did: the machine itself changed.

    Attributes:
        speed: of the machine now over that before.
        since: finished trials at the last look that found nothing.
        again: trials that are measured again, by number.
    """

    speed: float
    since: int
    again: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SearchEnded:
    """No more trials, and why: enough of them, no more time, all candidates measured, or nothing in sight."""

    reason: str


@dataclass(frozen=True, slots=True)
class Confirming:
    """A contender is measured again, interleaved with the others; `rounds` is the most that there will be."""

    candidate: Candidate
    role: str
    round_number: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Decided:
    """The decision for a (model, target), written to the lock."""

    decision: Decision
    reason: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """A (model, target) of which no candidate could be measured, or none confirmed, and why."""

    model: str
    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that a person should know, in one line."""

    text: str


Event = (
    TargetSkipped
    | ServerStarted
    | StudyStarted
    | TrialStarted
    | LoadStarted
    | TrialFinished
    | NoiseMeasured
    | ReferenceLook
    | MachineChanged
    | SearchEnded
    | Confirming
    | Decided
    | Undecided
    | Warned
)
Observer = Callable[[Event], None]
