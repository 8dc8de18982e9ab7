"""What a configuration carries within an SLO, by a procedure that is no tuner's own.

Each configuration is served by a server of its own, one after another, round after round, and put under a
ladder of concurrencies. What it carries is its throughput at the largest concurrency whose p99, pooled over
all rounds, keeps the SLO. Load is sent as perf_analyzer sends it by default, which is how Model Analyzer runs
it.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonc.tuner.engines.embedded import EmbeddedEngine

_LADDER = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
_NEAR = 1.5  # a concurrency whose p99 was this far from the SLO in the first round is not looked at again
_WARM_UP_S = 2.0
_STRETCH = 1.2  # a window of perf_analyzer lasts this much longer than its -p says; it takes at least three


@dataclass(frozen=True, slots=True)
class Sample:
    """One stretch of load.

    Attributes:
        latency_ms: of each request, ascending.
        seconds: how long it lasted.
    """

    latency_ms: tuple[float, ...]
    seconds: float

    @property
    def throughput(self) -> float:
        """Requests a second; one inference each."""
        return len(self.latency_ms) / self.seconds

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latencies."""
        return self.latency_ms[math.ceil(0.99 * len(self.latency_ms)) - 1]


@dataclass(frozen=True, slots=True)
class Verified:
    """What the re-measurement found of one configuration.

    Attributes:
        concurrency: the largest that keeps the SLO, or the smallest of all where none does.
        slo_met: whether it does.
        throughput: there, over all rounds.
        low: of the 95% interval of `throughput`.
        high: of that interval.
        p99_ms: there, of the requests of all rounds.
        rounds: each round's own throughput, at the largest concurrency that kept the SLO in that round.
    """

    concurrency: int
    slo_met: bool
    throughput: float
    low: float
    high: float
    p99_ms: float
    rounds: tuple[float, ...]


def verify(
    model: str,
    repositories: Mapping[str, Path],
    *,
    max_concurrency: int,
    slo_ms: float,
    rounds: int,
    window_s: float,
    say: Callable[[str], None],
) -> dict[str, Verified]:
    """What each repository's `model` carries, measured in every round, in an order drawn anew.

    Args:
        model: its name in all of them.
        repositories: by the name of the configuration.
        max_concurrency: the top of the ladder.
        slo_ms: the limit of p99.
        rounds: at least two.
        window_s: of load at each concurrency.
        say: told what is about to be measured.
    """
    levels = {name: _ladder(max_concurrency) for name in repositories}
    samples: dict[str, list[dict[int, Sample]]] = {name: [] for name in repositories}
    rng = random.Random(0)
    for index in range(rounds):
        for name in rng.sample(sorted(repositories), len(repositories)):
            say(f"round {index + 1} of {rounds}, {name}")
            samples[name].append(_measure(model, repositories[name], levels[name], window_s))
        if index == 0:
            levels = {name: _telling(each[0], slo_ms) for name, each in samples.items()}
    return {name: _verified(each, slo_ms) for name, each in samples.items()}


def _ladder(most: int) -> tuple[int, ...]:
    return (*(level for level in _LADDER if level < most), most)


def _telling(first: Mapping[int, Sample], slo_ms: float) -> tuple[int, ...]:
    """Concurrencies that may turn out to be the largest within the SLO, and one that surely keeps it."""
    near = [level for level, each in first.items() if slo_ms / _NEAR <= each.p99_ms <= slo_ms * _NEAR]
    safe = max((level for level, each in first.items() if each.p99_ms < slo_ms / _NEAR), default=min(first))
    return tuple(sorted({safe, *(level for level in near if level > safe)}))


def _measure(model: str, repository: Path, levels: Sequence[int], window_s: float) -> dict[int, Sample]:
    """A sample at each concurrency, on a server of its own, warm."""
    engine = EmbeddedEngine()
    with engine.serve(repository, log=repository.with_name("server.log")) as server:
        server.load(model)
        _load(model, server.grpc_address, max(levels), _WARM_UP_S)
        return {level: _load(model, server.grpc_address, level, window_s) for level in levels}


def _load(model: str, grpc_address: str, concurrency: int, window_s: float) -> Sample:
    program, environment = EmbeddedEngine().perf_analyzer()
    with tempfile.TemporaryDirectory(prefix="race-load-") as name:
        export = Path(name) / "export.json"
        command = [
            *(str(program), "-m", model, "-u", grpc_address, "-i", "grpc"),
            *("--concurrency-range", str(concurrency), "-p", str(round(window_s * 1000 / 3 / _STRETCH))),
            *("-r", "3", "-s", "1000000", "--profile-export-file", str(export)),  # never "not stable"
        ]
        ended = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, cwd=name, check=False
        )
        if ended.returncode != 0:
            raise SystemExit(f"perf_analyzer ended with {ended.returncode}:\n{ended.stdout[-2000:]}")
        (experiment,) = json.loads(export.read_bytes())["experiments"]
    latency_ms = sorted(
        (request["response_timestamps"][-1] - request["timestamp"]) / 1e6
        for request in experiment["requests"]
    )
    bounds = experiment["window_boundaries"]
    return Sample(tuple(latency_ms), (bounds[-1] - bounds[0]) / 1e9)


def _verified(rounds: Sequence[Mapping[int, Sample]], slo_ms: float) -> Verified:
    pooled = {
        level: _pooled([each[level] for each in rounds])
        for level in set.intersection(*(set(each) for each in rounds))
    }
    level, slo_met = _largest_within(pooled, slo_ms)
    logs = [math.log(each[level].throughput) for each in rounds]
    half = _t(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    throughput = pooled[level].throughput
    return Verified(
        concurrency=level,
        slo_met=slo_met,
        throughput=throughput,
        low=throughput * math.exp(-half),
        high=throughput * math.exp(half),
        p99_ms=pooled[level].p99_ms,
        rounds=tuple(
            each[_largest_within({at: each[at] for at in pooled}, slo_ms)[0]].throughput for each in rounds
        ),
    )


def _pooled(samples: Sequence[Sample]) -> Sample:
    latency_ms = sorted(latency for sample in samples for latency in sample.latency_ms)
    return Sample(tuple(latency_ms), sum(sample.seconds for sample in samples))


def _largest_within(samples: Mapping[int, Sample], slo_ms: float) -> tuple[int, bool]:
    within = [level for level, sample in samples.items() if sample.p99_ms <= slo_ms]
    return (max(within), True) if within else (min(samples), False)


def noise_floor(found: Mapping[str, Verified]) -> float:
    """The change in a ratio of two throughputs that the rounds cannot tell from none (95%).

    From what is left of the logarithms of the rounds' throughput when each configuration's level and each
    round's own is taken out.
    """
    logs = [[math.log(value) for value in each.rounds] for each in found.values()]
    columns = list(zip(*logs, strict=True))
    mean = statistics.fmean(value for row in logs for value in row)
    left = sum(
        (value - statistics.fmean(row) - statistics.fmean(columns[index]) + mean) ** 2
        for row in logs
        for index, value in enumerate(row)
    )
    freedom = (len(logs) - 1) * (len(columns) - 1)
    return math.expm1(_t(freedom) * math.sqrt(2 * left / freedom / len(columns)))


def _t(freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))
