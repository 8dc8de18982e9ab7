"""Finalists, baseline and previous choice measured again, interleaved, each at the load that it carries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import AFTER_MODEL, members_of
from tritonc.schemas.measurement import Failure, Load, Measurement
from tritonc.tuner.capacity import NOTHING_KNOWN, Capacity, Known, Seconds
from tritonc.tuner.confirm import (
    CLEARLY,
    FIRST_LOOK,
    LAST_LOOK,
    Comparison,
    Contender,
    Role,
    hopeless,
    is_settled,
)
from tritonc.tuner.faults import SERVER_GONE
from tritonc.tuner.further_workloads import first_of, further_in, is_of_further
from tritonc.tuner.joint_measurement import members_in
from tritonc.tuner.objective import soft_cost

REQUESTS = 1000
"""Requests on which the numbers of the winner and of what it beats rest at least (docs/search.md, 5)."""

_MENDABLE = ("avg_queue_ms", "sustained")
"""Limits, apart from those of latency, that a smaller load can mend."""
_SHARE_OF_LATER_ROUNDS = 1 / 3
"""Of the requests of each of the first. What keeps a race open after those is how much visits differ, on a
machine that changes; more visits tell that, longer ones do not."""
_TRIES = 6
"""Loads tried at most in one turn, each at least about a seventh below the one before."""

Sample = TypeVar("Sample")


class Measuring(Protocol[Sample]):
    """How candidates are measured: the seam between the search and the server.

    A `Sample` is what one visit to a candidate gives; several under one load can be pooled. Every
    method that measures loads the candidate first, in the place of what was there, where it is not loaded.
    """

    def capacity(self, candidate: Candidate, known: Known = NOTHING_KNOWN) -> Capacity | Failure:
        """The largest load at which the candidate keeps the SLO, or the least violating one."""
        ...

    def gather(self, known: Mapping[Candidate, Measurement | None]) -> None:
        """Loads these candidates side by side where that is possible and does not change what is measured.

        Args:
            known: with what was measured of each alone; None where nothing was.
        """
        ...

    def sample(self, candidate: Candidate, load: Load, requests: int) -> Sample | Failure:
        """One visit: at least `requests` requests under a given load."""
        ...

    def look(self, candidate: Candidate, load: Load, requests: int) -> Measurement | Failure:
        """A look at how fast the machine is: at least `requests` requests under a given load, no more."""
        ...

    def joined(self, samples: Sequence[Sample]) -> Sample:
        """Samples of a candidate under one load, without anything else in between: they are one visit."""
        ...

    def pooled(self, samples: Sequence[Sample]) -> Measurement:
        """All samples of a candidate under one load as one Measurement."""
        ...

    def violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each hard limit of the SLO is missed, relative to it; not above 0 where it is kept."""
        ...

    def soft_violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each soft limit of the SLO is missed, likewise."""
        ...

    def objective(self, measurement: Measurement) -> float:
        """The objective, larger is better."""
        ...

    def score(self, objective: float) -> float:
        """The objective on a scale on which equal differences are equal ratios."""
        ...

    def error(self, sample: Sample) -> float | None:
        """Standard error of the score of a sample beside others of its round; None where it is not known."""
        ...

    def lower(self, load: Load, excess: float) -> Load | None:
        """The next smaller load that could keep a latency limit; None where there is none to try.

        Args:
            load: that broke it.
            excess: by how much, relative to the limit.
        """
        ...

    def start_over(self) -> None:
        """Believes nothing that was measured before, in this study or in others."""
        ...


@dataclass(frozen=True, slots=True)
class Entrant:
    """Who takes part in a race, and under which load.

    Attributes:
        known: what its trial measured under that load; None where it had none.
    """

    candidate: Candidate
    role: Role
    load: Load
    known: Measurement | None = None


@dataclass(frozen=True, slots=True)
class Finisher:
    """An entrant with what its rounds showed.

    Attributes:
        contender: for the decision.
        measurement: over all rounds under the load it came down to.
    """

    contender: Contender
    measurement: Measurement
    violations: Mapping[str, float]
    objective: float
    soft: Mapping[str, float] = field(default_factory=dict)

    @property
    def capacity(self) -> Capacity:
        """As a trial would record it."""
        measured = first_of(self.measurement)
        return Capacity(
            measurement=measured,
            steps=(measured,),
            slo_met=self.contender.slo_met,
            violations=self.violations,
            objective=self.objective,
            seconds=Seconds(),
            soft=self.soft,
            members=members_in(self.measurement),
            further=further_in(self.measurement),
        )


@dataclass(slots=True)
class _Runner(Generic[Sample]):
    """An entrant while it runs: the load it has come down to, and what it did there.

    Attributes:
        visits: what was seen, with rounds that followed each other as one.
        scores: by round, as are the errors.
    """

    entrant: Entrant
    load: Load
    visits: list[Sample] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)
    failure: Failure | None = None
    is_dropped: bool = False

    @property
    def is_short(self) -> bool:
        """Whether it has too few rounds to be judged."""
        return len(self.scores) < FIRST_LOOK

    @property
    def counts(self) -> bool:
        """Whether it is compared; what is there already is so, too, where it failed after some rounds."""
        return self.failure is None or (self.entrant.role != "finalist" and not self.is_short)


def race(
    entrants: Sequence[Entrant],
    measuring: Measuring[Sample],
    *,
    on_turn: Callable[[Entrant, int], None],
    requests: int = REQUESTS,
    is_front: bool = False,
) -> tuple[tuple[Finisher, ...], Mapping[Candidate, Failure]]:
    """Measures the entrants in rounds, forwards and backwards in turn, until the decision is settled.

    Those that cannot win any more are dropped on the way. One that breaks a latency limit at its load goes on
    with the next smaller one and its rounds count from there; what needs no more rounds then waits for it,
    apart from the best, with which it is compared.

    Args:
        entrants: at least one.
        measuring: measures them.
        on_turn: told who is measured next, and in which round, from 1 to `LAST_LOOK` at most.
        requests: for each entrant that is not dropped, over its rounds together.
        is_front: nobody is to win: all are measured as long as it takes to judge them, and none is dropped.

    Returns:
        Those that could be measured, the dropped ones included, in the order of `entrants`, and why some
        could not, or not to the end: what is there already keeps its rounds where it can be judged by them.
    """
    measuring.gather({entrant.candidate: entrant.known for entrant in entrants})
    runners = [_Runner[Sample](entrant, entrant.load) for entrant in entrants]
    turns = runners
    last: _Runner[Sample] | None = None
    for number in range(1, LAST_LOOK + 1):
        for runner in turns if number % 2 else reversed(turns):
            on_turn(runner.entrant, number)
            _turn(runner, number, measuring, math.ceil(requests / FIRST_LOOK), is_next=runner is last)
            last = runner
        measured = [runner for runner in runners if runner.counts]
        short = [runner for runner in measured if runner.is_short]
        turns = short if is_front else _next_turns(measured, measuring)
        if not turns:
            break
    failures = {runner.entrant.candidate: runner.failure for runner in runners if runner.failure is not None}
    return tuple(_finished(runner, measuring) for runner in runners if runner.counts), failures


def _turn(
    runner: _Runner[Sample], number: int, measuring: Measuring[Sample], requests: int, *, is_next: bool
) -> None:
    """Measures one entrant once, or a few times until it has come down to a load that it carries.

    Args:
        runner: the entrant.
        number: of the round.
        measuring: measures it.
        requests: of a round while it has too few of them to be judged.
        is_next: whether the turn before was its, too.
    """
    for left in reversed(range(_TRIES)):
        wanted = requests if runner.is_short else math.ceil(_SHARE_OF_LATER_ROUNDS * requests)
        sample = measuring.sample(runner.entrant.candidate, runner.load, wanted)
        if isinstance(sample, Failure) and sample.reason not in SERVER_GONE:
            sample = measuring.sample(
                runner.entrant.candidate, runner.load, wanted
            )  # it did well in its trial
        if isinstance(sample, Failure):
            runner.failure = sample
            return
        if is_next and runner.visits:
            runner.visits[-1] = measuring.joined([runner.visits[-1], sample])
        else:
            runner.visits.append(sample)
        seen = measuring.pooled([sample])
        cost = soft_cost(measuring.soft_violations(seen))
        runner.scores[number] = measuring.score(measuring.objective(seen)) - cost
        if (said := measuring.error(sample)) is not None:
            runner.errors[number] = said
        missed, for_good = _missed(measuring, runner.visits)
        is_believed = missed > CLEARLY or (missed > 0 and not runner.is_short)
        has_time = left > 0 and number + FIRST_LOOK <= LAST_LOOK + 1
        is_of_use = is_believed and has_time and for_good <= CLEARLY
        lower = measuring.lower(runner.load, missed) if is_of_use else None
        if lower is None:
            return
        runner.load = lower
        runner.visits.clear()
        runner.scores.clear()
        runner.errors.clear()


def _next_turns(measured: Sequence[_Runner[Sample]], measuring: Measuring[Sample]) -> list[_Runner[Sample]]:
    """Who runs in the next round; nobody where the decision is settled. Drops who cannot win any more."""
    contenders = {id(runner): _finished(runner, measuring).contender for runner in measured}
    out = {id(contender) for contender in hopeless(list(contenders.values()))}
    for runner in measured:
        runner.is_dropped |= id(contenders[id(runner)]) in out
    running = [runner for runner in measured if runner.failure is None and not runner.is_dropped]
    short = [runner for runner in running if runner.is_short]
    rested = [runner for runner in running if not runner.is_short]
    if short and rested:
        best = Comparison(list(contenders.values())).best([contenders[id(runner)] for runner in rested])
        return [runner for runner in running if runner.is_short or contenders[id(runner)] is best]
    if short:
        return running
    settled = is_settled(list(contenders.values()), [contenders[id(runner)] for runner in running])
    return [] if settled else running


def is_mendable(limit: str) -> bool:
    """Whether a smaller load can mend a limit of this name, that of a joint candidate's member included."""
    if is_of_further(limit):
        return False
    return "latency" in limit or limit.rpartition(AFTER_MODEL)[2] in _MENDABLE


def _missed(measuring: Measuring[Sample], samples: Sequence[Sample]) -> tuple[float, float]:
    """The largest violation of a limit that a smaller load can mend, and of one that it cannot."""
    violations = measuring.violations(measuring.pooled(samples))
    mendable = [value for limit, value in violations.items() if is_mendable(limit)]
    others = [value for limit, value in violations.items() if not is_mendable(limit)]
    return max(mendable, default=0.0), max(others, default=0.0)


def _finished(runner: _Runner[Sample], measuring: Measuring[Sample]) -> Finisher:
    measurement = measuring.pooled(runner.visits)
    violations = measuring.violations(measurement)
    missed = sum(max(0.0, value) for value in violations.values())
    contender = Contender(
        candidate=runner.entrant.candidate,
        role=runner.entrant.role,
        scores=dict(runner.scores),
        slo_met=missed == 0,
        violation=missed,
        cost=_cost(runner.entrant.candidate, measurement),
        errors=dict(runner.errors),
    )
    soft = measuring.soft_violations(measurement)
    return Finisher(contender, measurement, violations, measuring.objective(measurement), soft)


def _cost(candidate: Candidate, measurement: Measurement) -> tuple[float, ...]:
    counts = (each.values.get("instance_count", 1) for each in members_of(candidate).values())
    instances = sum(float(count) if isinstance(count, int) else 1.0 for count in counts)
    memory = (measurement.memory_bytes or 0) + (measurement.gpu_memory_bytes or 0)
    return (instances, float(memory))
