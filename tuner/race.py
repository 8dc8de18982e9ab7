"""Finalists, baseline and previous choice measured again, interleaved, each at the load that it carries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.measurement import Failure, Load, Measurement
from tritonc.tuner.confirm import Contender, Role, least_difference
from tritonc.tuner.measure import Capacity, Seconds

ROUNDS = 4
"""Rounds of a race, over which requests are spread. With fewer, little is known about noise."""
REQUESTS = 1000
"""Requests on which a contender's numbers rest at least (design/search.md, fact 5)."""

_TRIES = 6
"""Loads tried at most in the first round, each about a seventh below the one before."""
_SMALL_NOISE = 0.03
"""Differences below 3% matter to nobody (design/search.md, fact 5)."""
_CLEARLY = 0.05
"""A violation beyond this share of the limit is believed before all rounds are run."""

Sample = TypeVar("Sample")


class Measuring(Protocol[Sample]):
    """How candidates are measured: the seam between the search and the server.

    A `Sample` is what one window of load gives; several of one candidate under one load can be pooled. Every
    method that measures loads the candidate first, in the place of the one before.
    """

    def capacity(self, candidate: Candidate) -> Capacity | Failure:
        """The largest load at which the candidate keeps the SLO, or the least violating one."""
        ...

    def sample(self, candidate: Candidate, load: Load, requests: int) -> Sample | Failure:
        """One window of at least `requests` requests under a given load."""
        ...

    def pooled(self, samples: Sequence[Sample]) -> Measurement:
        """All samples of a candidate under one load as one Measurement."""
        ...

    def violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each limit of the SLO is missed, relative to it; not above 0 where it is kept."""
        ...

    def objective(self, measurement: Measurement) -> float:
        """The objective, larger is better."""
        ...

    def score(self, objective: float) -> float:
        """The objective on a scale on which equal differences are equal ratios."""
        ...

    def lower(self, load: Load) -> Load | None:
        """The next smaller load that could keep a latency limit; None where there is none to try."""
        ...


@dataclass(frozen=True, slots=True)
class Entrant:
    """Who takes part in a race, and under which load."""

    candidate: Candidate
    role: Role
    load: Load


@dataclass(frozen=True, slots=True)
class Finisher:
    """An entrant with what its rounds showed.

    Attributes:
        contender: for the decision.
        measurement: over all rounds that count.
    """

    contender: Contender
    measurement: Measurement
    violations: Mapping[str, float]
    objective: float

    @property
    def capacity(self) -> Capacity:
        """As a trial would record it."""
        return Capacity(
            measurement=self.measurement,
            steps=(self.measurement,),
            slo_met=self.contender.slo_met,
            violations=self.violations,
            objective=self.objective,
            seconds=Seconds(),
        )


@dataclass(slots=True)
class _Runner(Generic[Sample]):
    """An entrant while it runs: the load it has come down to, and its samples under that load, by round."""

    entrant: Entrant
    load: Load
    samples: dict[int, Sample] = field(default_factory=dict)
    failure: Failure | None = None


def race(
    entrants: Sequence[Entrant],
    measuring: Measuring[Sample],
    *,
    on_turn: Callable[[Entrant, int], None],
    rounds: int = ROUNDS,
    requests: int = REQUESTS,
) -> tuple[tuple[Finisher, ...], Mapping[Candidate, Failure]]:
    """Measures every entrant once a round, forwards and backwards in turn.

    One that breaks a latency limit at its load goes on with the next smaller one, and its rounds count from
    there. Rounds are added for that, and where a finalist is ahead by less than a noise that is not small; at
    most as many again. The rounds that all have in common count.

    Args:
        entrants: at least one.
        measuring: measures them.
        on_turn: told who is measured next, and in which round, from 1.
        rounds: how many have to count.
        requests: for each entrant, over all rounds together.

    Returns:
        Those that came through, in the order of `entrants`, and why others did not.
    """
    runners = [_Runner[Sample](entrant, entrant.load) for entrant in entrants]
    for number in range(1, 2 * rounds + 1):
        for runner in runners if number % 2 else reversed(runners):
            if runner.failure is None:
                on_turn(runner.entrant, number)
                _turn(runner, number, measuring, rounds, math.ceil(requests / rounds))
        running = [runner for runner in runners if runner.failure is None]
        if all(len(runner.samples) >= rounds for runner in running) and _is_settled(running, measuring):
            break
    failures = {runner.entrant.candidate: runner.failure for runner in runners if runner.failure is not None}
    return tuple(_finished(runner, _common(running), measuring) for runner in running), failures


def _turn(
    runner: _Runner[Sample], number: int, measuring: Measuring[Sample], rounds: int, requests: int
) -> None:
    """Measures one entrant once; in the first round a few times, to find a load that it carries."""
    for _ in range(_TRIES):
        sample = measuring.sample(runner.entrant.candidate, runner.load, requests)
        if isinstance(sample, Failure):
            runner.failure = sample
            return
        runner.samples[number] = sample
        missed = _latency_violation(measuring, list(runner.samples.values()))
        lower = measuring.lower(runner.load)
        believed = missed > _CLEARLY or (missed > 0 and len(runner.samples) >= rounds)
        if not believed or lower is None or number > rounds:
            return
        runner.load = lower
        runner.samples.clear()
        if number > 1:
            return


def _common(runners: Sequence[_Runner[Sample]]) -> list[int]:
    """Rounds that count for all runners."""
    return sorted(set.intersection(*(set(runner.samples) for runner in runners))) if runners else []


def _scores(
    runner: _Runner[Sample], rounds: Sequence[int], measuring: Measuring[Sample]
) -> tuple[float, ...]:
    return tuple(
        measuring.score(measuring.objective(measuring.pooled([runner.samples[number]]))) for number in rounds
    )


def _is_settled(runners: Sequence[_Runner[Sample]], measuring: Measuring[Sample]) -> bool:
    """Whether more rounds would not help: the noise is small, or no finalist is above what is there."""
    if len(runners) < 2:
        return True
    scores = [_scores(runner, _common(runners), measuring) for runner in runners]
    difference = least_difference(scores)
    if difference <= _SMALL_NOISE or not math.isfinite(difference):
        return True
    means = [math.fsum(row) / len(row) for row in scores]
    pairs = [(mean, runner.entrant.role) for mean, runner in zip(means, runners, strict=True)]
    standing = max((mean for mean, role in pairs if role != "finalist"), default=-math.inf)
    best = max((mean for mean, role in pairs if role == "finalist"), default=-math.inf)
    return not 0 < best - standing <= difference


def _latency_violation(measuring: Measuring[Sample], samples: Sequence[Sample]) -> float:
    """The largest violation of a limit that a smaller load can mend."""
    violations = measuring.violations(measuring.pooled(samples))
    mendable = [v for limit, v in violations.items() if "latency" in limit or limit == "sustained"]
    return max(mendable, default=0.0)


def _finished(runner: _Runner[Sample], common: Sequence[int], measuring: Measuring[Sample]) -> Finisher:
    measurement = measuring.pooled(list(runner.samples.values()))
    violations = measuring.violations(measurement)
    missed = sum(max(0.0, value) for value in violations.values())
    contender = Contender(
        candidate=runner.entrant.candidate,
        role=runner.entrant.role,
        scores=_scores(runner, common, measuring),
        slo_met=missed == 0,
        violation=missed,
        cost=_cost(runner.entrant.candidate, measurement),
    )
    return Finisher(contender, measurement, violations, measuring.objective(measurement))


def _cost(candidate: Candidate, measurement: Measurement) -> tuple[float, ...]:
    instances = candidate.values.get("instance_count", 1)
    memory = (measurement.memory_bytes or 0) + (measurement.gpu_memory_bytes or 0)
    return (float(instances) if isinstance(instances, int) else 1.0, float(memory))
