"""Which candidate to measure next and under which load: a pure ask/tell search, no server, clock or disk.

The optimum lies on the SLO's boundary and its top is sharp, so every (candidate, load) pair is scored by a
model of what was measured (`tritonc.tuner.surrogate`): how much is to be gained there, counted only where the
limits are kept (docs/search.md).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.space import Space
from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement
from tritonc.schemas.spec import Slo
from tritonc.tuner.categories import Category, categories_of, differences, with_any, with_names
from tritonc.tuner.encoding import Encoding, Pair, Table
from tritonc.tuner.objective import Objective
from tritonc.tuner.pairs import Loads, Pairs
from tritonc.tuner.pareto import chebyshev, is_on_front
from tritonc.tuner.promise import Promise, promises_little, together, worth_a_run
from tritonc.tuner.prospects import SURE, Beside, Prospects, axis_means, sobol_points
from tritonc.tuner.serving import LAWS, in_flight
from tritonc.tuner.terms import Goals

if TYPE_CHECKING:
    from tritonc.tuner.surrogate import Surrogate

Floats = npt.NDArray[np.float64]
CLOSED_LOADS: tuple[Load, ...] = tuple(ClosedLoad(concurrency=2**step) for step in range(7))
"""The loads of a search that is given none: 1, 2, 4 … 64 clients."""

REPEATS = 8
"""Times that a pair is measured at most."""
_UNSETTLED = 0.03  # a promise below which the leader is rather measured again: one in thirty is far off
_SEEN = 2
"""Times that the leader is measured at least, then. What is taken to be off counts as none: where two of one
pair contradict each other, it may be the other one that is."""
_ANOTHER_LOOK = 0.1
"""Share of what is worth a run from which a known pair is rather measured again than a new one that promises
less. With noise 179, not 176, of 180 sessions of 60 runs on `benchmarks/surfaces` came within 5% then."""
_GIVEN_UP = 0.2  # probability to be measurable at all below which a candidate is not tried


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured load level of one candidate, or why it could not be measured."""

    candidate: Candidate
    load: Load
    outcome: Measurement | Failure


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The measured pair to serve.

    Attributes:
        measurement: what was seen there, the last where it was measured more than once.
        slo_met: whether the limits are more likely kept than not, after all that was measured.
        objective: expected, as a logarithm, less what missing soft limits costs; larger is better.
    """

    candidate: Candidate
    load: Load
    measurement: Measurement
    slo_met: bool
    objective: float


class Search:
    """An ask/tell search over candidates and loads.

    Args:
        space: candidates, or any sequence of them (`Candidate.of(model, target, knobs)`).
        objective: of the spec. For a front each ask looks in a direction of its own, drawn at random.
        slos: of the spec.
        loads: under which a candidate may be measured, for all or by candidate; ascending.
        seed: the same seed and the same tells give the same asks.
        history: measurements of other studies, of the same model or on the same target, to begin from; knobs
            are matched by name.
        baseline: what is measured first, if it may be asked; that of a `Space` unless given.
        is_confirmed: whether what it recommends is measured anew before it is believed. Then a pair is asked
            twice only where others contradict it, and not where it leads or may break a limit; none is asked
            where all that is left promises too little together.

    Example:
        Replaying a table of measurements, `table[candidate, load]`:

        >>> from tritonc.schemas.measurement import ClosedLoad, Interval, Measurement
        >>> candidates = [
        ...     Candidate.of("mlp", "cpu", {"instance_count": n, "dynamic_batching": b})
        ...     for n in (1, 2, 4) for b in (False, True)
        ... ]
        >>> def measured(candidate, load):
        ...     instances, batching = candidate.values["instance_count"], candidate.values["dynamic_batching"]
        ...     rate = 100 * min(load.concurrency, instances * (3 if batching else 1))
        ...     latency = 1000 * load.concurrency / rate
        ...     latencies = {"avg": Interval(value=latency), "p99": Interval(value=1.3 * latency)}
        ...     throughput = Interval(value=rate)
        ...     return Measurement(
        ...         load=load, requests=rate, duration_s=1, throughput=throughput, latency_ms=latencies
        ...     )
        >>> search = Search(candidates, "throughput", Slo(p99_latency_ms=30), seed=1)
        >>> for _ in range(12):
        ...     candidate, load = search.ask()
        ...     search.tell(candidate, load, measured(candidate, load))
        >>> best = search.recommend()
        >>> best.candidate.values, best.load.concurrency, best.slo_met
        ({'dynamic_batching': True, 'instance_count': 4}, 16, True)
    """

    def __init__(
        self,
        space: Space | Sequence[Candidate],
        objective: Objective,
        slos: Slo,
        *,
        loads: Loads = CLOSED_LOADS,
        seed: int = 0,
        history: Iterable[Observation] = (),
        baseline: Candidate | None = None,
        is_confirmed: bool = False,
    ) -> None:
        self.space = space
        self._is_confirmed = is_confirmed
        self.seed = seed
        self._baseline = baseline or (space.baseline if isinstance(space, Space) else None)
        self._pairs = Pairs(space, loads, self._baseline)
        closed = self._pairs.all.pairs[0][1].kind == "closed"
        self._goals = Goals.of(objective, slos, closed=closed)
        self._points = sobol_points(len(self._goals.quantities), seed)
        self._told: list[Observation] = []
        self._open: list[Pair] = []
        self._refused: set[Candidate] = set()
        self._promises: list[Promise] = []
        self._surrogate: Surrogate | None = None
        self._fitted: int | None = None
        alike = [each for each in history if (each.load.kind == "closed") == closed]
        self._sources = _sources(self._pairs.encoding, alike)
        self._all_categories = set[Category]().union(*map(categories_of, self._pairs.candidates))

    @property
    def observations(self) -> tuple[Observation, ...]:
        """Everything told, in order."""
        return tuple(self._told)

    @property
    def promise(self) -> Promise | None:
        """What the last ask promised; None where no model was asked."""
        return self._promises[-1] if self._promises else None

    @property
    def is_over(self) -> bool:
        """Whether what is left promises too little to be worth its time (`promise.PATIENCE`)."""
        return promises_little(self._promises)

    def ask(self, *, skip: Collection[Candidate] = (), settled: Collection[Candidate] = ()) -> Pair | None:
        """A pair to measure, a new one or one that is known already; None where none is left to be worth it.

        Args:
            skip: candidates that are not asked.
            settled: candidates of which no new pair is asked, but perhaps one that is known.
        """
        rng = random.Random(f"{self.seed} {len(self._told)} {len(self._open)}")  # noqa: S311
        table = self._askable(rng, skip, settled)
        known = self._known_besides(table, skip)
        if not len(table) and not known:
            return None
        has_measured = any(isinstance(each.outcome, Measurement) for each in self._told)
        pair = self._promising(table, known) if has_measured else self._first(table)
        if pair is not None:
            self._open.append(pair)
        return pair

    def tell(self, candidate: Candidate, load: Load, outcome: Measurement | Failure) -> None:
        """Takes in what a pair showed, whether it was asked or not.

        A candidate fails where it completes nothing.
        """
        if isinstance(outcome, Measurement) and not outcome.throughput.value:
            outcome = Failure(reason="no_result", detail="no request was completed")
        if (candidate, load) in self._open:
            self._open.remove((candidate, load))
        self._told.append(Observation(candidate, load, outcome))

    def refuse(self, candidate: Candidate) -> None:
        """Takes in that a candidate cannot be served, whatever it was measured to do here.

        It misses what is not modelled, such as the limits under another workload. What was told of it says
        still how others do; it is asked and recommended no more, and others like it less.
        """
        self._refused.add(candidate)

    def withdraw(self, candidate: Candidate) -> None:
        """Takes back what was asked of a candidate and is not told yet."""
        self._open = [pair for pair in self._open if pair[0] != candidate]

    def forget(self, candidate: Candidate) -> None:
        """Takes back everything told of a candidate, because it is to be measured again."""
        self.withdraw(candidate)
        self._refused.discard(candidate)
        self._told = [each for each in self._told if each.candidate != candidate]
        self._promises.clear()
        self._fitted = None

    def recommend(self) -> Recommendation | None:
        """The best measured pair that keeps the limits, else the least violating; None before any."""
        return next(iter(self._ranked(dict(self._able()))), None)

    def ranking(self, among: Collection[Pair]) -> tuple[Recommendation, ...]:
        """The best of these pairs of each candidate that can be served, the best candidate first.

        Pairs that more likely keep the limits than not come first. Candidates that failed are left out, and
        so are those that were refused.

        Args:
            among: pairs; those that were not measured are left out, too.
        """
        out = self._out(())
        seen = {pair: shown for pair, shown in self._measured() if pair in among and pair[0] not in out}
        found: dict[Candidate, Recommendation] = {}
        for each in self._ranked(seen):
            found.setdefault(each.candidate, each)
        return tuple(found.values())

    def _ranked(self, seen: Mapping[Pair, Measurement]) -> list[Recommendation]:
        """Measured pairs, the one to choose first."""
        if not seen:
            return []
        table = self._pairs.table(list(seen))
        standing = self._prospects(table, self._equal_shares).standing(table)
        found = []
        for place in standing.order:
            candidate, load = pair = table.pairs[place]
            is_kept, objective = bool(standing.kept[place] >= SURE), float(standing.objective[place])
            found.append(Recommendation(candidate, load, seen[pair], is_kept, objective))
        return found

    def front(self) -> tuple[Recommendation, ...]:
        """The measured pairs that keep the limits and that no other one beats in every objective.

        The best in the first objective come first; of a single objective it is the best pair.
        """
        seen = dict(self._able())
        if not seen:
            return ()
        table = self._pairs.table(list(seen))
        standing = self._prospects(table, self._equal_shares).standing(table)
        able = np.flatnonzero(standing.kept >= SURE)
        values = axis_means(self._model(), self._goals, table)[able]
        on_front = np.flatnonzero(is_on_front(values)) if len(able) else able
        places = able[on_front[np.argsort(-values[on_front, 0], kind="stable")]]
        found = [
            (*table.pairs[place], seen[table.pairs[place]], float(standing.objective[place]))
            for place in places
        ]
        return tuple(Recommendation(one, load, shown, True, value) for one, load, shown, value in found)

    def loads_for(self, candidate: Candidate) -> Sequence[Load]:
        """The loads that `candidate` may be measured under."""
        return self._pairs.loads_for(candidate)

    def _measured(self) -> list[tuple[Pair, Measurement]]:
        return [
            ((each.candidate, each.load), each.outcome)
            for each in self._told
            if isinstance(each.outcome, Measurement)
        ]

    def _able(self) -> list[tuple[Pair, Measurement]]:
        """What was measured of candidates that can be served; of all where none can be."""
        seen, out = self._measured(), self._out(())
        return [each for each in seen if each[0][0] not in out] or seen

    def _first(self, table: Table) -> Pair:
        """The baseline, or what is expected to be best, under a middle load: it says what a request costs."""
        asked = {candidate for candidate, _ in self._open}
        fresh = [place for place, pair in enumerate(table.pairs) if pair[0] not in asked] or range(len(table))
        candidate = self._baseline
        if all(candidate != table.pairs[place][0] for place in fresh):
            worth = table.expected_throughput(LAWS[0]) + np.log(self._works(table))
            candidate = table.pairs[max(fresh, key=lambda place: worth[place])][0]
        loads = [table.pairs[place][1] for place in fresh if table.pairs[place][0] == candidate]
        middle = math.sqrt(in_flight(loads[0]) * in_flight(loads[-1]))
        assert candidate is not None
        return candidate, min(loads, key=lambda load: abs(math.log(in_flight(load) / middle)))

    def _promising(self, table: Table, besides: Sequence[Pair]) -> Pair | None:
        """The pair whose measurement promises most, be it a new one or one that is known already.

        Args:
            table: pairs that may be asked.
            besides: known ones that may be asked too.
        """
        seen = self._able()
        times = Counter(pair for pair, _ in seen)
        known = self._pairs.table(list(times))
        new = table.at([place for place, pair in enumerate(table.pairs) if pair not in times])
        prospects = self._prospects(known, self._drawn_shares())
        standing = prospects.standing(known)
        best, worth = (float(of[standing.best]) for of in (standing.objective, standing.worth))
        works = self._works(new)
        usable = np.where(works > _GIVEN_UP, works, 0.0) * self._apart(new)
        gains = prospects.of_new(new, best, worth) * usable
        promised = dict(zip(new.pairs, gains, strict=True))
        again = np.zeros(len(known)) if self._is_confirmed else prospects.of_limits(known, standing)
        promised |= zip(known.pairs, again, strict=True)
        fitted = self._measured()
        measured = self._pairs.table([pair for pair, _ in fitted])
        once = [place for place, (pair, _) in enumerate(fitted) if times[pair] == 1]
        beside = Beside.of(new, {place: fitted[place][0][0] for place in once})
        doubts = prospects.of_doubts(measured, [each for _, each in fitted], beside, best, worth)
        for place in once:
            pair = fitted[place][0]
            promised[pair] = max(promised[pair], doubts[place])
        model = self._model()
        least = worth_a_run(max(map(model.scatter, self._goals.axes)))
        askable = [
            pair
            for pair in (*table.pairs, *besides)
            if not self._is_confirmed or pair not in times or promised[pair] >= least
        ]
        if not askable:
            return None
        leader = known.pairs[standing.best]
        untried = self._untried(askable)
        chosen = max(with_names(untried) or askable, key=lambda pair: promised[pair])
        if untried and promised[chosen] < least:
            chosen = min(untried, key=lambda pair: (*differences(leader, pair), -promised[pair]))
        elif usable.any() and promised[chosen] <= (_ANOTHER_LOOK * least if chosen in times else 0.0):
            chosen = new.pairs[int(np.argmax(prospects.standing(new).worth * usable))]
        is_front = len(self._goals.axes) > 1  # of which each ask sees but one direction
        knows_rest = self._is_confirmed and self._pairs.sees_all and not untried and not is_front
        rest = together(promised, askable) if knows_rest else math.inf
        promise = Promise(float(promised[chosen]), least, rest, all_tried=not untried)
        self._promises.append(promise)
        if self._is_confirmed:
            return None if promise.is_last else chosen
        believed = Counter(pair for (pair, _), is_off in zip(fitted, model.stray, strict=True) if not is_off)
        is_unsettled = not is_front and believed[leader] < _SEEN and leader in askable
        return leader if is_unsettled and promised[chosen] < _UNSETTLED else chosen

    def _untried(self, askable: Sequence[Pair]) -> Mapping[Pair, Set[Category]]:
        """Pairs with categories that were never measured, of which nothing is known.

        What has a name is tried first, what is but on or off once nothing else promises much. None where
        other studies tell, and none for a front: its directions are looked at in turn, each for what promises
        most there.
        """
        if self._sources or len(self._goals.axes) > 1:
            return {}
        tried = {pair[0] for pair in self._open} | {each.candidate for each in self._told}
        return with_any(askable, self._all_categories - set().union(*map(categories_of, tried)))

    @property
    def _equal_shares(self) -> Sequence[float]:
        return [1 / len(self._goals.axes)] * len(self._goals.axes)

    def _drawn_shares(self) -> Sequence[float]:
        """What each objective of a front counts in this ask, evenly spread over all that is possible.

        The gaps between points on a line are uniform; those of Sobol's sequence leave out no direction long.
        """
        from scipy.stats import qmc

        if len(self._goals.axes) == 1:
            return [1.0]
        points = qmc.Sobol(len(self._goals.axes) - 1, seed=self.seed)
        if number := len(self._told) + len(self._open):
            points.fast_forward(number)
        cuts = np.sort(points.random(1)[0])
        return [float(gap) for gap in np.diff([0.0, *cuts, 1.0])]

    def _prospects(self, seen: Table, shares: Sequence[float]) -> Prospects:
        """What the model says, with one number for all objectives of a front.

        That is how far the worst one lags behind the best of the pairs that were seen, by these shares: of
        those that keep the limits where some do.
        """
        model = self._model()
        if len(self._goals.axes) == 1:
            return Prospects(model, self._goals, self._points, lambda values: values[0])
        values = axis_means(model, self._goals, seen)
        able = Prospects(model, self._goals, self._points, lambda axes: axes[0]).standing(seen).kept >= SURE
        aim = chebyshev(values[able] if able.any() else values, shares)
        return Prospects(model, self._goals, self._points, aim)

    def _model(self) -> Surrogate:
        """The surrogate, fitted to everything told."""
        from tritonc.tuner.surrogate import Surrogate

        if self._surrogate is None:
            self._surrogate = Surrogate(self._pairs.encoding, self._goals.quantities, self._sources)
        if self._fitted != len(self._told):
            seen = self._measured()
            self._surrogate.fit(self._pairs.table([pair for pair, _ in seen]), [each for _, each in seen])
            self._fitted = len(self._told)
        return self._surrogate

    def _works(self, table: Table) -> Floats:
        """The probability that the candidates can be measured at all, and served."""
        from tritonc.tuner.surrogate import works

        tried = {each.candidate: each for each in self._told}
        if not tried:
            return np.ones(len(table))
        fine = [
            isinstance(each.outcome, Measurement) and each.candidate not in self._refused
            for each in tried.values()
        ]
        known = self._pairs.table([(each.candidate, each.load) for each in tried.values()])
        knobs = self._pairs.encoding.knobs
        average = self._pairs.all.rows[:, :knobs].mean(axis=0)
        return works(fine, known.rows[:, :knobs], table.rows[:, :knobs], average)

    def _apart(self, table: Table) -> Floats:
        """Less for pairs that are like those asked and not told yet: they will be known soon."""
        if not self._open:
            return np.ones(len(table))
        asked = self._pairs.table(self._open)
        squares = ((table.rows[:, None, :] - asked.rows[None, :, :]) ** 2).sum(axis=2)
        return np.asarray((1 - np.exp(-2.0 * squares)).prod(axis=1))

    def _askable(
        self, rng: random.Random, skip: Collection[Candidate], settled: Collection[Candidate]
    ) -> Table:
        """Pairs that are not being measured, of candidates that did not fail; of settled ones known pairs."""
        out, done, times = self._out(skip), self._done(), self._times()
        table = self._pairs.looked_at([each.candidate for each in self._told], self._leader, rng)
        return table.at(
            [
                place
                for place, pair in enumerate(table.pairs)
                if pair[0] not in out and pair not in done and (pair[0] not in settled or pair in times)
            ]
        )

    def _known_besides(self, table: Table, skip: Collection[Candidate]) -> list[Pair]:
        """Known pairs that may be asked and are not in the table: loads between those that it has."""
        out, done, listed = self._out(skip), self._done(), set(table.pairs)
        return [
            pair
            for pair in self._times()
            if pair not in listed and pair not in self._pairs and pair[0] not in out and pair not in done
        ]

    def _times(self) -> Counter[Pair]:
        return Counter((each.candidate, each.load) for each in self._told)

    def _out(self, skip: Collection[Candidate]) -> Set[Candidate]:
        """Candidates that failed, or are refused, or are to be left out."""
        failed = {each.candidate for each in self._told if isinstance(each.outcome, Failure)}
        return failed.union(skip, self._refused)

    def _done(self) -> Set[Pair]:
        """Pairs that are being measured, or were often enough."""
        return {pair for pair, count in self._times().items() if count >= REPEATS} | set(self._open)

    def _leader(self) -> Candidate | None:
        best = self.recommend()
        return best.candidate if best else None


def _sources(encoding: Encoding, history: Sequence[Observation]) -> tuple[Surrogate, ...]:
    """A surrogate of throughput for each (model, target) of other studies that measured something."""
    from tritonc.tuner.surrogate import Surrogate

    studies: dict[tuple[str, str], list[tuple[Pair, Measurement]]] = {}
    for each in history:
        if isinstance(each.outcome, Measurement):
            key = (each.candidate.model, each.candidate.target)
            studies.setdefault(key, []).append(((each.candidate, each.load), each.outcome))
    sources = []
    for seen in studies.values():
        source = Surrogate(encoding, ("throughput",))
        source.fit(encoding.table([pair for pair, _ in seen]), [outcome for _, outcome in seen])
        sources.append(source)
    return tuple(sources)
