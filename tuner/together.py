"""Several models measured at the same time on one machine, each under a load of its own.

A joint candidate (`compiler.joint`) is measured as any other is: `TogetherMeasuring` is a `race.Measuring`.
Its members are served side by side by one server; in every window the load of all of them begins at the same
moment, and only what they have in common counts. Each member has its own load search, and all go on in step,
so that every load is judged under the loads of the others; what decides about the candidate is a set of
loads, one for each member, under which all keep their limits at once.

The Measurement of a joint candidate says how well all do: its throughput is the weighted geometric mean of
what each member's objective is over what its baseline does alone. What was measured of each member stands
beside it, in `joint_measurement.Together.members` and `Capacity.members`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import members_of
from tritonc.schemas.measurement import ClosedLoad, Failure, Interval, Load, Measurement
from tritonc.tuner.baseline_outputs import BaselineOutputs
from tritonc.tuner.capacity import NOTHING_KNOWN, Capacity, Known, Seconds
from tritonc.tuner.engines import Server, ServerFailure
from tritonc.tuner.faults import SERVER_GONE
from tritonc.tuner.joint_measurement import Together
from tritonc.tuner.joint_trial import LONGEST_S, SHORTEST_S, WARM_UP_S, JointTrial, last_of
from tritonc.tuner.joint_worth import JOINT_LOAD, Loads, Member, Members, Samples, Visits
from tritonc.tuner.objective import soft_cost
from tritonc.tuner.sample import Sample
from tritonc.tuner.stand import Stand
from tritonc.tuner.verify import Reference, references_of, verify_all

_MOST_STEPS_DOWN = 12
_LONGEST_SAMPLE_S = 120.0
_MOST_WINDOWS = 1000  # of a trial: each draws its times of arrival by a number of its own


@dataclass(frozen=True, slots=True)
class JointSample:
    """One stretch of load on all members at once."""

    load: Load
    members: Samples


class TogetherMeasuring:
    """The `Measuring` of joint candidates.

    Args:
        stand: where they are served.
        members: in the order of the candidate.
        baseline: the joint one; candidates have to compute what its members do.
        carried: the loads that the members of a candidate carried in an earlier trial; None where unknown.
        on_load: told which load comes next; None for a warm-up and where loads have no number in common.
        warn: takes one line for people.
    """

    def __init__(
        self,
        stand: Stand,
        members: Sequence[Member],
        *,
        baseline: Candidate,
        carried: Callable[[Candidate], Loads | None],
        on_load: Callable[[Candidate, Load | None], None],
        warn: Callable[[str], None],
    ) -> None:
        self._stand = stand
        self._members = Members(members)
        self._baseline = baseline
        self._carried_before = carried
        self._carried: dict[Candidate, Loads] = {}
        self._on_load = on_load
        self._warn = warn
        self._outputs = BaselineOutputs(self._baseline_outputs, warn)
        self._verified: dict[Candidate, Failure | None] = {}
        self._visits: dict[tuple[Candidate, Load], Visits] = {}
        self._warm: set[Candidate] = set()
        self._last: tuple[Candidate, Load] | None = None
        self._alone: dict[Candidate, Measurement] = {}
        self._loaded_s = 0.0
        self._trials = 0

    def capacity(self, candidate: Candidate, known: Known = NOTHING_KNOWN) -> Capacity | Failure:
        """The loads at which all members keep their limits, or miss them least, and what they do there."""
        began = time.monotonic()
        try:
            self._outputs.look()
            found = self._capacity(candidate, known)
        except ServerFailure as err:
            found = err.failure
        if isinstance(found, Failure):
            self._stand.recover(found)
            return found
        rest_s = time.monotonic() - began - self._loaded_s
        return replace(found, seconds=Seconds(load=self._loaded_s, steps=rest_s))

    def gather(self, known: Mapping[Candidate, Measurement | None]) -> None:
        """Loads the members of all candidates side by side where they fit; memory is not measured then."""
        members = tuple(
            dict.fromkeys(member for candidate in known for member in members_of(candidate).values())
        )
        measured = {one: seen for one, seen in known.items() if seen is not None and seen.memory_bytes}
        memory = sum(seen.memory_bytes or 0 for seen in measured.values())
        self._alone = {}
        if len(measured) < max(2, len(known)) or self._members.weigh_memory:
            return
        if not self._stand.has_room_for(next(iter(known)).target, memory):
            return
        try:
            self._load(members)
        except ServerFailure as err:
            self._warn(f"note: the contenders are loaded one by one, as not all can be at once: {err}")
            return
        self._alone = measured

    def sample(self, candidate: Candidate, load: Load, requests: int) -> JointSample | Failure:
        """Windows in which every member completes `requests` requests at least, after one to warm up."""
        visits = self._visits_at(candidate, load)
        self._last = (candidate, load)
        found = self._try_sample(candidate, visits, requests)
        if isinstance(found, Failure) and found.reason in SERVER_GONE:
            found = self._try_sample(candidate, visits, requests)  # somebody else may have ended it
        if isinstance(found, Failure):
            return found
        visits.samples.append(found)
        return JointSample(load, found)

    def _try_sample(self, candidate: Candidate, visits: Visits, requests: int) -> Samples | Failure:
        """Windows of all members with what they took to load, and the memory that they have."""
        try:
            found = self._sampled(candidate, visits, requests)
        except ServerFailure as err:
            found = err.failure
        if isinstance(found, Failure):
            self._stand.recover(found)
            return found
        alone = self._alone.get(candidate)
        if alone is None:
            return {model: replace(each, load_s=self._loaded_s) for model, each in found.items()}
        return {
            model: replace(
                each,
                memory_bytes=alone.memory_bytes or 0,
                gpu_memory_bytes=alone.gpu_memory_bytes,
                load_s=alone.load_s,
            )
            for model, each in found.items()
        }

    def joined(self, samples: Sequence[JointSample]) -> JointSample:
        """Samples without anything else in between as one."""
        members = {
            model: Sample.joined([each.members[model] for each in samples])
            for model in self._members.by_model
        }
        return JointSample(samples[0].load, members)

    def pooled(self, samples: Sequence[JointSample]) -> Together:
        """All samples of a candidate under the same loads as one Measurement."""
        return self._members.pooled([each.members for each in samples], samples[0].load)

    def violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each hard limit of each member is missed, as `model/limit`."""
        return self._members.violations(measurement)

    def soft_violations(self, measurement: Measurement) -> Mapping[str, float]:
        """By how much each soft limit of each member is missed, as `model/limit`."""
        return self._members.soft_violations(measurement)

    def objective(self, measurement: Measurement) -> float:
        """How well all members do; see the module."""
        return measurement.throughput.value

    def score(self, value: float) -> float:
        """Its logarithm."""
        return math.log(value)

    def error(self, sample: JointSample) -> None:
        """It is not known how what the members do hangs together."""

    def lower(self, load: Load, excess: float) -> Load | None:
        """A step down for the members that broke a limit in the last sample; None where there is none."""
        del excess  # every member has its own
        assert isinstance(load, ClosedLoad)
        if self._last is None or load.concurrency > _MOST_STEPS_DOWN:
            return None
        candidate, last = self._last
        visits = self._visits_at(candidate, last)
        if self._members.lowered(visits) == visits.loads:
            return None
        return ClosedLoad(concurrency=load.concurrency + 1)

    def look(self, candidate: Candidate, load: Load, requests: int) -> Measurement | Failure:
        """A look at how fast the machine is: one sample."""
        sample = self.sample(candidate, load, requests)
        return sample if isinstance(sample, Failure) else self.pooled([sample])

    def start_over(self) -> None:
        """Believes nothing that was measured of the members alone."""
        for member in self._members.by_model.values():
            member.measuring.start_over()

    def _capacity(self, candidate: Candidate, known: Known) -> Capacity | Failure:
        server = self._serve(candidate)
        differs = self._verify(server, candidate)
        if differs is not None:
            return differs
        trial = self._trial(server, candidate)
        warm = trial.warm_up()
        if isinstance(warm, Failure):
            return warm
        self._warm.add(candidate)
        if trial.is_hopeless(warm, known):
            return self._decided(Visits({m: each.load for m, each in warm.items()}, [warm]), is_cut=True)
        self._stand.settle()
        found = trial.searched(warm)
        if isinstance(found, Failure):
            return found
        visits = trial.kept(found)
        if isinstance(visits, Failure):
            return visits
        self._visits = {key: seen for key, seen in self._visits.items() if key[0] != candidate}
        self._carried[candidate] = visits.loads
        return self._decided(visits)

    def _trial(self, server: Server, candidate: Candidate) -> JointTrial:
        self._trials += 1
        return JointTrial(
            server,
            {model: self._stand.name_of(one) for model, one in members_of(candidate).items()},
            self._members,
            partial(self._on_load, candidate),
            _MOST_WINDOWS * self._trials,
        )

    def _decided(self, visits: Visits, *, is_cut: bool = False) -> Capacity:
        """What a trial records of the loads that decide."""
        server = self._stand.start()
        # The memory of the server is that of all members together.
        memory, gpu_memory = server.memory_bytes(), server.gpu_memory_bytes()
        members = {
            model: member.measuring.pooled(
                [
                    replace(
                        Sample.joined(visits.of(model)),
                        memory_bytes=memory,
                        gpu_memory_bytes=gpu_memory,
                        load_s=self._loaded_s,
                    )
                ]
            )
            for model, member in self._members.by_model.items()
        }
        measured = self._members.together(members)
        violations, soft = self.violations(measured), self.soft_violations(measured)
        slo_met = all(value <= 0 for value in violations.values())
        # A limit that is missed costs, so that the search is drawn to where none is: it has no others here.
        penalty = soft_cost(soft) + (0.0 if is_cut else soft_cost(violations))
        lowered = measured.throughput.value * math.exp(-soft_cost(soft))
        step = measured.model_copy(
            update={"throughput": _scaled(measured.throughput, math.exp(-penalty)), "load": JOINT_LOAD}
        )
        return Capacity(
            measurement=measured,
            steps=(step,),
            slo_met=slo_met,
            violations=violations,
            objective=measured.throughput.value,
            interval=measured.throughput,
            is_cut=is_cut,
            soft=soft,
            lowered=lowered if soft_cost(soft) else None,
            members=members,
            is_verified=self._outputs.known is not None,
        )

    def _sampled(self, candidate: Candidate, visits: Visits, requests: int) -> Samples | Failure:
        trial = self._trial(self._serve(candidate), candidate)
        loads, members = visits.loads, self._members.by_model
        if candidate not in self._warm:
            warm = trial.window(loads, WARM_UP_S)
            if isinstance(warm, Failure):
                return warm
            self._stand.settle()
            self._warm.add(candidate)
            rates = {model: each.request_rate for model, each in warm.items() if each is not None}
        else:
            rates = {model: each.request_rate for model, each in last_of(visits, []).items()}
        seen: list[Samples] = []
        deadline = time.monotonic() + _LONGEST_SAMPLE_S
        while True:
            done = {model: sum(each[model].requests for each in seen) for model in members}
            missing = {model: requests - done[model] for model in done if done[model] < requests}
            if seen and (not missing or time.monotonic() > deadline):
                return {model: Sample.joined([each[model] for each in seen]) for model in members}
            wanted = [1.1 * count / rates[model] for model, count in missing.items() if rates.get(model)]
            window_s = min(LONGEST_S, max([SHORTEST_S, *wanted]))
            found = trial.window(loads, window_s)
            if isinstance(found, Failure):
                return found
            whole = {model: sample for model, sample in found.items() if sample is not None}
            if len(whole) < len(members):
                short = ", ".join(sorted(members.keys() - whole.keys()))
                return Failure(reason="no_result", detail=f"{short} completed nothing in {window_s:g} s")
            rates = {model: each.request_rate for model, each in whole.items()}
            seen.append(whole)

    def _visits_at(self, candidate: Candidate, load: Load) -> Visits:
        """What was seen at a joint load; one further down begins where the limits were broken before."""
        assert isinstance(load, ClosedLoad)
        known = self._visits.get((candidate, load))
        if known is None:
            if load == JOINT_LOAD:
                loads = self._carried.get(candidate) or self._carried_before(candidate)
                assert loads is not None, f"{candidate.id} was not measured"
            else:
                before = ClosedLoad(concurrency=load.concurrency - 1)
                loads = self._members.lowered(self._visits_at(candidate, before))
            known = self._visits[candidate, load] = Visits(loads)
        return known

    def _serve(self, candidate: Candidate) -> Server:
        """The server with the members of a candidate loaded, in the place of what was there."""
        members = tuple(members_of(candidate).values())
        server = self._stand.start()
        if any(self._stand.name_of(one) == one.model for one in members):
            self._load(members)
            server = self._stand.start()
        return server

    def _load(self, members: tuple[Candidate, ...]) -> None:
        self._warm.clear()
        self._alone = {}
        began = time.monotonic()
        self._stand.serve_together(members)
        self._loaded_s = time.monotonic() - began

    def _verify(self, server: Server, candidate: Candidate) -> Failure | None:
        """Why the outputs of a member are not those of its baseline; each is asked once."""
        for model, one in members_of(candidate).items():
            references = (self._outputs.known or {}).get(model)
            if one not in self._verified and references is not None:
                bench, size = self._members[model].bench, one.values.get("max_batch_size", 0)
                self._verified[one] = verify_all(
                    server,
                    self._stand.name_of(one),
                    bench.inputs,
                    references,
                    bench.accuracy,
                    max_batch_size=size if isinstance(size, int) else 0,
                )
            differs = self._verified.get(one)
            if differs is not None:
                if differs.reason != "outputs_differ":
                    del self._verified[one]
                return differs.model_copy(update={"detail": f"{model}: {differs.detail}"})
        return None

    def _baseline_outputs(self) -> dict[str, tuple[Reference, ...]] | Failure:
        outputs: dict[str, tuple[Reference, ...]] = {}
        failure: Failure | None = None
        try:
            server = self._serve(self._baseline)
            for model, one in members_of(self._baseline).items():
                inputs = self._members[model].bench.inputs
                found = references_of(server, self._stand.name_of(one), inputs)
                if isinstance(found, Failure):
                    failure = found.model_copy(update={"detail": f"{model}: {found.detail}"})
                    break
                outputs[model] = found
        except ServerFailure as err:
            failure = err.failure
        if failure is None:
            return outputs
        self._stand.recover(failure)
        return failure


def _scaled(interval: Interval, factor: float) -> Interval:
    low, high = (None if end is None else end * factor for end in (interval.low, interval.high))
    return Interval(value=interval.value * factor, low=low, high=high)
