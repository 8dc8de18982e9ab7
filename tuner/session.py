"""Trials of one search, one after another, and the baseline between them: did the machine itself change?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.errors import SetupError
from tritonc.schemas.measurement import Failure, Interval, Load, Measurement
from tritonc.tuner.capacity import Capacity, Known
from tritonc.tuner.events import (
    MachineChanged,
    NoiseMeasured,
    Observer,
    ReferenceLook,
    TrialFinished,
    Warned,
)
from tritonc.tuner.loads import is_replayed
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.objective import soft_cost
from tritonc.tuner.optuna_search import OptunaSearch
from tritonc.tuner.race import Measuring, Sample
from tritonc.tuner.reference import ReferenceWatch, requests_of_look
from tritonc.tuner.trial import Trial

MOST_AGAIN = 10
"""Trials that are measured again at most after a change of the machine: the best ones, which matter.

So many that the change may have spoilt, and of others so many that lead when those have been.
"""
_NO_CHANGE = 1.0
_LOOK_S = 3.0
"""A look at the reference without loading it, until one was taken."""


@dataclass(slots=True)
class Session(Generic[Sample]):
    """The trials of one search.

    Attributes:
        search: is told every trial.
        measuring: measures.
        observer: told what happens.
        log: told every finished trial, while no load runs.
        clock: seconds that only grow.
        expected: the load at which a candidate's limits should end, where there is a guess.
    """

    search: OptunaSearch
    measuring: Measuring[Sample]
    observer: Observer
    log: Callable[[Trial], None]
    clock: Callable[[], float]
    expected: Callable[[Candidate], Load | None]
    _watch: ReferenceWatch | None = field(init=False, default=None)
    _sound: int = field(init=False, default=0)
    _is_resumed: bool = field(init=False)

    def __post_init__(self) -> None:
        self._is_resumed = bool(self.search.trials)

    def trial(self, candidate: Candidate) -> Trial:
        """Measures a candidate that the search asked, and tells it. Interrupted, it counts as never asked."""
        is_known = noise_of(self.search) is not None
        started = self.clock()
        is_baseline = candidate == self.search.space.baseline  # all is compared with what it really carries
        known = Known(
            self.expected(candidate),
            None if is_baseline else incumbent_of(self.search, candidate),
            noise_of(self.search),
            is_doubted=self.search.outcome(candidate) is not None,
        )
        try:
            outcome = self.measuring.capacity(candidate, known)
        except BaseException:
            with suppress(SetupError):  # then its trial ends when the study is opened next
                self.search.abandon(candidate)
            raise
        trial = self.search.tell(candidate, outcome, self.clock() - started)
        self.log(trial)
        self.observer(TrialFinished(trial, self.search.best()))
        noise = noise_of(self.search)
        if noise is not None and not is_known:
            self.observer(NoiseMeasured(noise))
        if self._watch is not None:
            self._watch.searched(trial.seconds)
        return trial

    def look_at_reference(self, deadline: float) -> None:
        """Looks at the baseline again if that is due, and goes after a change of the machine.

        That is due at once where an earlier run left trials: the machine may be another one by now. What is
        to be measured again for a change is remembered until it is, in a later run if need be.
        """
        is_resumed, self._is_resumed = self._is_resumed, False
        left = self.search.left_to_measure_again if is_resumed else ()
        baseline = self.search.outcome(self.search.space.baseline)
        if isinstance(baseline, Capacity):
            load_s = baseline.seconds.load
            self._watch = self._watch or ReferenceWatch(_reference_in(baseline), load_s + _LOOK_S)
            if is_resumed or self._watch.is_due:
                self._look(self._watch, _requests_in(baseline))
        if left and left == self.search.left_to_measure_again:
            which = ", ".join(str(trial.number) for trial in left)
            self.observer(
                Warned(f"note: the machine changed in an earlier run; measured again: trials {which}")
            )
        if self.search.doubted:
            self._measure_again(deadline)

    def _look(self, watch: ReferenceWatch, requests: int) -> None:
        """Looks at the baseline, and remembers what a change spoilt that a second look finds, too.

        A look that fails means nothing.
        """
        started = self.clock()
        change = self._change(watch, requests)
        if change is not None and change != _NO_CHANGE:
            again = self._change(watch, requests)
            change = again if again is not None and (again - 1) * (change - 1) > 0 else None
        watch.looked(self.clock() - started)
        if change is None:
            return
        if change != _NO_CHANGE:
            self._doubt(change)
        elif not self.search.doubted:
            self._sound = len(self.search.trials)

    def _change(self, watch: ReferenceWatch, requests: int) -> float | None:
        """What one look at the reference says about the machine's speed, over that before; None: nothing."""
        baseline = self.search.space.baseline
        self.observer(ReferenceLook(baseline))
        seen = self.measuring.look(baseline, watch.reference.load, requests)
        if isinstance(seen, Failure):
            what = f"{seen.reason}: {seen.detail}"
            self.observer(Warned(f"the baseline could not be looked at again: {what}"))
            return None
        return watch.change(seen) or _NO_CHANGE

    def _doubt(self, speed: float) -> None:
        """Says what is to be measured again, and remembers it before any of it is."""
        spoilt = _spoilt(self.search, self._sound)
        spoilt += tuple(trial for trial in self.search.left_to_measure_again if trial not in spoilt)
        self.observer(MachineChanged(speed, self._sound, tuple(trial.number for trial in spoilt)))
        self.measuring.start_over()
        self.search.doubt(spoilt)

    def _measure_again(self, deadline: float) -> None:
        """Measures again what `doubt` named; what was measured before stands until then.

        On a machine that became slower what was measured before may lead only therefore, so that whoever
        leads then is measured again, too. What there is no time for stays doubted.
        """
        self._watch = None
        left = self.search.left_to_measure_again
        for trial in self._to_measure_again(left):
            if self.clock() >= deadline:
                return
            if trial not in left:
                why = "it leads by what the machine could do before"
                self.observer(Warned(f"note: trial {trial.number} is measured again: {why}"))
            self.search.again(trial.candidate)
            self.trial(trial.candidate)
        self.search.believe()
        self._sound = len(self.search.trials)

    def _to_measure_again(self, left: Sequence[Trial]) -> Iterator[Trial]:
        """What the change may have spoilt, and then whoever leads without having been measured since."""
        yield from left
        for _ in range(MOST_AGAIN):
            leader = self.search.best()
            if leader is None or leader not in self.search.doubted:
                return
            yield leader


def _reference_in(baseline: Capacity) -> Measurement:
    """What the baseline did where that can be seen again; windows of a trace may hold other parts of it."""
    if not is_replayed(baseline.measurement.load):
        return baseline.measurement
    plain = (step for step in baseline.steps if not is_replayed(step.load))
    return next(plain, baseline.measurement)


def _requests_in(baseline: Capacity) -> int:
    """Requests of a look at the baseline; of several models the slowest one decides."""
    return min(requests_of_look(each) for each in baseline.members.values() or [_reference_in(baseline)])


def _spoilt(search: OptunaSearch, sound: int) -> tuple[Trial, ...]:
    """What to measure again: the baseline, the best, and the trials since the last sound look, best first."""
    ranked = search.ranked()
    wanted = [trial for trial in ranked if trial.candidate == search.space.baseline]
    wanted += ranked[:1]
    wanted += [trial for trial in ranked if trial.number > sound]
    return tuple({trial.number: trial for trial in wanted}.values())[:MOST_AGAIN]


def noise_of(search: OptunaSearch) -> NoiseFloor | None:
    """The noise floor that the baseline's trial measured, with what all trials since have added."""
    measured = (trial.capacity for trial in reversed(search.trials) if trial.capacity is not None)
    return next((capacity.noise for capacity in measured if capacity.noise is not None), None)


def incumbent_of(search: OptunaSearch, candidate: Candidate) -> Interval | None:
    """Throughput within the limits of the best trial that keeps the SLO, other than of `candidate`.

    None where that one misses a soft limit: less throughput may be better then. What another machine did, and
    is being measured again, is nothing to compare with.
    """
    doubted = search.doubted
    for trial in search.ranked():
        if trial.candidate == candidate or trial in doubted:
            continue
        if trial.capacity is not None and trial.capacity.slo_met:
            if soft_cost(trial.capacity.soft):
                return None
            return trial.capacity.interval or trial.capacity.measurement.throughput
    return None
