"""One joint candidate under load: windows of all members at once, and the loads that decide about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement
from tritonc.schemas.spec import ClosedWorkload
from tritonc.tuner.capacity import Known
from tritonc.tuner.engines import Server
from tritonc.tuner.joint_worth import Loads, Members, Samples, Visits
from tritonc.tuner.load_search import FAR, HOPELESS, SLACK, LoadSearch, latency_excess
from tritonc.tuner.loads import closed_load
from tritonc.tuner.measure import CLIENTS, WARM, WARM_UPS
from tritonc.tuner.objective import latency_limits
from tritonc.tuner.sample import Sample
from tritonc.tuner.statistics import settled
from tritonc.tuner.under_load import take_sample

WARM_UP_S = 0.5
SHORTEST_S = 1.0
LONGEST_S = 10.0

_LONGEST_STEP_S = 4.0
_REQUESTS = 60  # of the slowest member in a step, where its length allows
_STEPS = 10
_TRIES = 6
_WINDOWS = 2  # that a set of loads needs to be believed
_WINDOW_TRIES = 3
_OVERLAP = 0.5


@dataclass(slots=True)
class JointTrial:
    """A joint candidate that is loaded.

    Attributes:
        names: the name that the server knows each member by.
        on_load: told all clients together before each window; None where a member has a rate.
        count: of the windows so far, which open loads draw their times by.
    """

    server: Server
    names: Mapping[str, str]
    members: Members
    on_load: Callable[[Load | None], None]
    count: int = 0

    def warm_up(self) -> Samples | Failure:
        """The last of a few short windows in which all members are busy."""
        loads: dict[str, Load] = {}
        for model, member in self.members.by_model.items():
            workload = member.bench.workload
            most = workload.max_concurrency if isinstance(workload, ClosedWorkload) else CLIENTS
            loads[model] = closed_load(workload, min(CLIENTS, most))
        last: Samples = {}
        for _ in range(WARM_UPS):
            found = self.window(loads, WARM_UP_S)
            if isinstance(found, Failure):
                return found
            before, last = last, {model: each for model, each in found.items() if each is not None}
            if before.keys() == last.keys() and all(
                settled(before[model].request_rate, last[model].request_rate, WARM) for model in last
            ):
                break
        return last

    def is_hopeless(self, warm: Samples, known: Known) -> bool:
        """Whether no loads within the limits can come near the incumbent.

        That is so where every member breaks its limits by far and all together do too little even so.
        """
        if known.incumbent is None or known.incumbent.low is None or len(warm) < len(self.members.by_model):
            return False
        seen = {model: self.members[model].measuring.pooled([each]) for model, each in warm.items()}
        for model, measured in seen.items():
            limits = self.members[model].bench.slo.limits
            if latency_excess(latency_limits(limits), measured, limits.get("avg_queue_ms")) <= FAR:
                return False
        return SLACK * self.members.together(dict(seen)).throughput.value < HOPELESS * known.incumbent.low

    def searched(self, warm: Samples) -> tuple[Loads, list[Visits]] | Failure:
        """The loads that each member's own search led to, and all that was seen on the way."""
        searches = {model: self._search(model, warm.get(model)) for model in self.members.by_model}
        seen: list[Visits] = []
        told: dict[tuple[str, Load], list[Sample]] = {}
        rates = {model: sample.request_rate for model, sample in warm.items()}
        loads: dict[str, Load] = {}
        for _ in range(_STEPS):
            asked = {model: search.ask() for model, search in searches.items()}
            if not any(asked.values()):
                break
            # One whose search has ended goes on with the load that it led to.
            loads = {m: asked[m] or search.best() or loads[m] for m, search in searches.items()}
            found = self.window(loads, _step_s(loads, rates))
            if isinstance(found, Failure):
                return found
            for model, sample in found.items():
                if sample is not None:
                    told.setdefault((model, loads[model]), []).append(sample)
                    rates[model] = sample.request_rate
                if asked[model] is not None:
                    windows = told.get((model, loads[model]))
                    searches[model].tell(
                        loads[model], self._in_one_visit(model, windows) if windows else None
                    )
            _add(seen, loads, found)
        best = {model: search.best() for model, search in searches.items()}
        missing = next((model for model, load in best.items() if load is None), None)
        if missing is not None:
            return Failure(reason="no_result", detail=f"{missing} completed nothing under any load")
        return {model: load for model, load in best.items() if load is not None}, seen

    def kept(self, found: tuple[Loads, list[Visits]]) -> Visits | Failure:
        """The first set of loads, going down, under which all keep their limits at once; else the best."""
        loads, seen = found
        tried: list[Visits] = []
        for _ in range(_TRIES):
            visits = next((each for each in seen if each.loads == loads), None) or Visits(loads)
            while len(visits.samples) < _WINDOWS:
                rates = {model: each.request_rate for model, each in last_of(visits, seen).items()}
                window = self.window(loads, _step_s(loads, rates))
                if isinstance(window, Failure):
                    return window
                whole = {model: sample for model, sample in window.items() if sample is not None}
                if len(whole) < len(self.members.by_model):
                    missing = ", ".join(sorted(self.members.by_model.keys() - whole.keys()))
                    return Failure(reason="no_result", detail=f"{missing} completed nothing in time")
                visits.samples.append(whole)
            tried.append(visits.joined())
            lower = self.members.lowered(tried[-1])
            if lower == loads:
                break
            loads = lower
        return min(tried, key=self._rank)

    def _rank(self, visits: Visits) -> tuple[float, float]:
        """By how much limits are missed in all, and then how little is done; smaller is better."""
        measured = self.members.pooled(visits.samples)
        missed = sum(max(0.0, value) for value in self.members.violations(measured).values())
        return missed, -measured.throughput.value

    def _in_one_visit(self, model: str, windows: Sequence[Sample]) -> Measurement:
        """What windows of this trial show of a member."""
        return self.members[model].measuring.pooled([Sample.joined(windows)])

    def window(self, loads: Loads, window_s: float) -> dict[str, Sample | None] | Failure:
        """One window of all members at once, cut to what they have in common; None: nothing was completed.

        Where that is too little, as one began late or is so slow that its window had to be longer, all get a
        longer one, which is as long as the longest.
        """
        self.on_load(_in_all(loads))
        for _ in range(_WINDOW_TRIES):
            found = self._at_once(loads, window_s)
            if isinstance(found, Failure):
                return found
            seen = {model: each for model, each in found.items() if each is not None}
            cut = overlapping(seen)
            if cut is not None:
                return {model: cut.get(model) for model in found}
            longest_s = max(each.windows[0].duration_s for each in seen.values())
            window_s = max(longest_s, min(LONGEST_S, 2 * window_s))
        return Failure(reason="no_result", detail=_apart(loads))

    def _at_once(self, loads: Loads, window_s: float) -> dict[str, Sample | None] | Failure:
        self.count += 1
        pool = ThreadPoolExecutor(len(loads))
        try:
            windows = {
                model: pool.submit(
                    take_sample,
                    self.server,
                    name,
                    self.members[model].bench,
                    loads[model],
                    1,
                    cap_s=0.0,
                    seed=self.members[model].bench.seed + self.count,
                    window_s=window_s,
                    replayed=self.count,
                )
                for model, name in self.names.items()
            }
            found = {model: window.result() for model, window in windows.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C stops the server, which ends the load
        for model, each in found.items():
            if isinstance(each, Failure) and each.reason != "no_result":
                return each.model_copy(update={"detail": f"{model}: {each.detail}"})
        return {model: each if isinstance(each, Sample) else None for model, each in found.items()}

    def _search(self, model: str, warm: Sample | None) -> LoadSearch:
        bench = self.members[model].bench
        saturated = self.members[model].measuring.pooled([warm]) if warm else None
        search = bench.load_search(bench.workload, bench.slo, bench.objective, saturated=saturated)
        if saturated is not None:
            search.hint(saturated.load, saturated)
        return search


def overlapping(samples: Mapping[str, Sample]) -> dict[str, Sample] | None:
    """One window of each member, cut to the time in which all were under load.

    None where that is less than half of the longest one, or one member completed nothing in it.
    """
    windows = [each.windows[0] for each in samples.values()]
    if any(window.summary is not None for window in windows):
        return dict(samples)
    begin_s = max((window.began_s for window in windows), default=0.0)
    end_s = min((window.began_s + window.duration_s for window in windows), default=0.0)
    if windows and end_s - begin_s < _OVERLAP * max(window.duration_s for window in windows):
        return None
    cut = {
        model: replace(each, windows=(each.windows[0].within(begin_s, end_s),))
        for model, each in samples.items()
    }
    return cut if all(len(each.windows[0].send_s) for each in cut.values()) else None


def _apart(models: Iterable[str]) -> str:
    """Why models have no window in common, and what to do about it."""
    return (
        f"the windows of {', '.join(models)} had too little time in common, {_WINDOW_TRIES} times; "
        "let nothing else run on this machine, or take the slowest of these models out of `together`"
    )


def _add(seen: list[Visits], loads: Loads, found: Mapping[str, Sample | None]) -> None:
    """Adds a window to those under the same loads, where every member completed something."""
    whole = {model: sample for model, sample in found.items() if sample is not None}
    if len(whole) < len(found):
        return
    visits = next((each for each in seen if each.loads == loads), None)
    if visits is None:
        seen.append(visits := Visits(loads))
    visits.samples.append(whole)


def last_of(visits: Visits, seen: Sequence[Visits]) -> Samples:
    """The last window under these loads, else under any."""
    last = next((each for each in reversed([*seen, visits]) if each.samples), None)
    return last.samples[-1] if last else {}


def _step_s(loads: Loads, rates: Mapping[str, float]) -> float:
    """How long a window has to be for the slowest member to complete a fair number of requests."""
    wanted = [SHORTEST_S]
    for model, load in loads.items():
        ramp = load.concurrency if isinstance(load, ClosedLoad) else 0
        if rates.get(model):
            wanted.append((_REQUESTS + ramp) / rates[model])
    return min(_LONGEST_STEP_S, max(wanted))


def _in_all(loads: Loads) -> Load | None:
    """All clients together, for people; None where a member has a rate."""
    closed = [load.concurrency for load in loads.values() if isinstance(load, ClosedLoad)]
    return ClosedLoad(concurrency=sum(closed)) if len(closed) == len(loads) else None
