"""A joint candidate under load, without a server: which windows of its members count, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest

from tests.tuner.spaces import small_space
from tests.tuner.test_window import clients
from tritonc.schemas.measurement import ClosedLoad, Failure, Load, Measurement
from tritonc.schemas.spec import Accuracy, ClosedWorkload, Slo
from tritonc.tuner.bench import Bench
from tritonc.tuner.engines import Statistics
from tritonc.tuner.joint_trial import JointTrial
from tritonc.tuner.joint_worth import Member, Members
from tritonc.tuner.load_search import LoadSearch
from tritonc.tuner.measuring import StandMeasuring
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.sample import Sample, pooled
from tritonc.tuner.statistics import Scatter
from tritonc.tuner.window import Window

LOAD = ClosedLoad(concurrency=2)
NOISE = NoiseFloor(Scatter(0.1, 1000), Scatter(0.1, 1000))


class Server:
    """A server that is well."""

    grpc_address = "127.0.0.1:1"

    def statistics(self, _model: str) -> Statistics:
        return Statistics(*[0] * 9)

    def memory_bytes(self, _without: Any) -> int:
        return 0

    def gpu_memory_bytes(self, _without: Any) -> None:
        return None


@dataclass
class Generator:
    """Two clients whose requests take 10 ms each.

    Attributes:
        late_s: how much later than those of others the windows of each model begin.
        longer_s: how long windows of a model are at least.
    """

    late_s: dict[str, float] = field(default_factory=dict)
    longer_s: dict[str, float] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)

    def run(self, _address: str, model: str, load: Load, window_s: float, _data: Any, **_: Any) -> Window:
        assert isinstance(load, ClosedLoad)
        self.runs[model] += 1
        window = clients(load.concurrency, 10, max(window_s, self.longer_s.get(model, 0.0)))
        return replace(window, began_s=100.0 * self.runs[model] + self.late_s.get(model, 0.0))


class Twice(LoadSearch):
    """Asks for the same load twice."""

    told: ClassVar[list[Measurement]] = []

    def ask(self) -> Load | None:
        return LOAD if self._asks < 2 else None

    def tell(self, load: Load, measured: Measurement | None) -> None:
        super().tell(load, measured)
        assert measured is not None
        Twice.told.append(measured)


def trial(generator: Generator, load_search: type[LoadSearch] = LoadSearch) -> JointTrial:
    anything: Any = None
    stand_in: Any = generator
    bench = Bench(
        generator=stand_in,
        data=anything,
        inputs=(),
        workload=ClosedWorkload(max_concurrency=4),
        slo=Slo(),
        objective="throughput",
        accuracy=Accuracy(),
        load_search=load_search,
    )
    measuring = StandMeasuring(
        anything,
        bench,
        baseline=small_space().baseline,
        compared_with=lambda: None,
        on_load=lambda _candidate, _load: None,
        warn=pytest.fail,
        noise=NOISE,
    )
    members = Members([Member(model, 1.0, measuring, bench) for model in ("a", "b")])
    server: Any = Server()
    return JointTrial(server, {"a": "a", "b": "b"}, members, lambda _load: None)


def window(of: JointTrial, window_s: float) -> tuple[Window, Window]:
    found = of.window({"a": LOAD, "b": LOAD}, window_s)
    assert not isinstance(found, Failure), found
    one, other = found["a"], found["b"]
    assert one is not None
    assert other is not None
    return one.windows[0], other.windows[0]


@pytest.mark.parametrize(
    ("generator", "common_s"),
    [
        (lambda: Generator(late_s={"b": 0.25}), 0.75),
        (lambda: Generator(late_s={"b": 0.8}), 1.2),
        (lambda: Generator(longer_s={"b": 25.0}), 25.0),
    ],
    ids=["in time", "late", "slow"],
)
def test_windows_are_longer_until_they_have_enough_time_in_common(
    generator: Callable[[], Generator], common_s: float
):
    one, other = window(trial(generator()), 1.0)
    assert one.began_s == other.began_s
    assert one.duration_s == pytest.approx(other.duration_s)
    assert one.duration_s == pytest.approx(common_s)


def test_windows_that_never_have_enough_time_in_common_are_no_measurement():
    generator = Generator(late_s={"b": 60.0})
    found = trial(generator).window({"a": LOAD, "b": LOAD}, 1.0)
    assert isinstance(found, Failure)
    assert found.reason == "no_result"
    assert found.detail == (
        "the windows of a, b had too little time in common, 3 times; let nothing else run on this machine, "
        "or take the slowest of these models out of `together`"
    )
    assert generator.runs == {"a": 3, "b": 3}


def test_windows_of_one_trial_are_one_visit():
    Twice.told.clear()
    of = trial(Generator(), Twice)
    found = of.searched({})
    assert not isinstance(found, Failure)
    one, both = Twice.told[0].throughput, Twice.told[-1].throughput
    seen = Sample(LOAD, (clients(2, 10), clients(2, 10)), Statistics(*[0] * 9), 0, None)
    assert both == pooled([seen], NOISE, visits=1).throughput
    assert both.low is not None
    assert one.low is not None
    assert one.low < both.low < pooled([seen], NOISE, visits=2).throughput.low
    kept = of.kept(found)
    assert not isinstance(kept, Failure)
    assert of.members.pooled(kept.samples).members["a"].throughput == both
