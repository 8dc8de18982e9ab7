"""How many measured runs a search needs, replayed on recorded surfaces: ratios between samplers in one run.

    python benchmarks/search_replay.py [--tables DIR] [--samplers tritonc,gp,tpe] [--seeds 20] [--jobs 2]

A run is one measured load level of one candidate. A task is a surface with a p99 limit: for each table three
limits, under which about 10%, 30% and 60% of its pairs stay. `gp`, `tpe` and `random` are plain Optuna with
the load as a knob and the limits as constraints; `gp-derived` and so on choose candidates only, the load is
derived. A session has reached 5% when what it would recommend keeps the limits and is within 5% of the best
of the table, both judged without noise. Noise is that of docs/search.md, fact 5: 1% typical, 5% at the 90th
percentile, one in thirty off by a factor of 1.4 to 2.3.

`gp` needs PyTorch (`pip install tritonc[gp]`). Exits 1 where the acceptance of the search is missed.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from surfaces import FOLDER, Surface, read_surface
from threadpoolctl import threadpool_limits

from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.measurement import Failure, Interval, Load, Measurement
from tritonc.schemas.spec import Slo
from tritonc.tuner.objective import violations
from tritonc.tuner.search import Search

RUNS = 60
SHARES = (0.1, 0.3, 0.6)
REGRETS_AT = (10, 20, 30, 50)
BARS = {"gp": 0.5, "tpe": 0.25}
REACHED, STOPPED_AT, STOP_REGRET = 0.98, 20, 0.007

Pair = tuple[Candidate, Load]


@dataclass(frozen=True)
class Task:
    """A surface with a limit."""

    path: Path
    limit_ms: float

    @property
    def name(self) -> str:
        """Table and limit."""
        return f"{self.path.stem} p99 {self.limit_ms:.3g} ms"

    @property
    def slo(self) -> Slo:
        """The limit as an SLO."""
        return Slo(p99_latency_ms=self.limit_ms)


@dataclass
class Session:
    """What one session recommended after each run, as true regret: 1 where nothing feasible was.

    Attributes:
        stopped: runs after which the search said that it was over; None where it never did.
    """

    regrets: list[float] = field(default_factory=list)
    stopped: int | None = None
    seconds: float = 0.0

    def reached(self, regret: float) -> int | None:
        """Runs until the regret was at most this."""
        return next((n for n, seen in enumerate(self.regrets, 1) if seen <= regret), None)


@cache
def surface_at(path: Path) -> Surface:
    return read_surface(path)


@cache
def optimum(task: Task) -> float:
    return max(
        outcome.throughput.value
        for outcome in surface_at(task.path).outcomes.values()
        if isinstance(outcome, Measurement) and outcome.latency_ms["p99"].value <= task.limit_ms
    )


def regret(task: Task, pair: Pair | None) -> float:
    """True regret of serving a pair: its loss against the best, 1 where it breaks the limit."""
    outcome = surface_at(task.path).outcomes.get(pair) if pair else None
    if not isinstance(outcome, Measurement) or outcome.latency_ms["p99"].value > task.limit_ms:
        return 1.0
    return 1 - outcome.throughput.value / optimum(task)


def tasks_in(folder: Path) -> list[Task]:
    """Three limits a table, each of them kept by some pair."""
    tasks = []
    for path in sorted(folder.glob("*.csv")):
        outcomes = surface_at(path).outcomes.values()
        p99 = [each.latency_ms["p99"].value for each in outcomes if isinstance(each, Measurement)]
        limits = dict.fromkeys(rounded(float(np.quantile(p99, share))) for share in SHARES)
        tasks += [Task(path, limit) for limit in limits if limit >= min(p99)]
    return tasks


def rounded(limit: float) -> float:
    """A limit as people write it: 1, 1.5, 2, 3, 5 or 7 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(limit))
    choices = (power * digit for digit in (1, 1.5, 2, 3, 5, 7, 10))
    return min(choices, key=lambda one: abs(math.log(one / limit)))


class Noise:
    """Measurements as a machine would repeat them."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)

    def __call__(self, outcome: Measurement | Failure) -> Measurement | Failure:
        """The outcome, measured once more."""
        if isinstance(outcome, Failure):
            return outcome
        rng = self._rng
        spread = 0.01 * math.exp(1.25 * rng.gauss(0, 1))
        slower = math.exp(min(0.3, max(-0.3, spread * rng.gauss(0, 1))))
        if rng.random() < 1 / 30:
            slower *= rng.uniform(1.4, 2.3)
        tail = math.exp(min(0.3, max(-0.3, 2 * spread * rng.gauss(0, 1))))
        throughput = outcome.throughput.value / slower
        latency = {
            name: Interval(value=each.value * slower * (tail if name == "p99" else 1.0))
            for name, each in outcome.latency_ms.items()
        }
        return outcome.model_copy(update={"throughput": Interval(value=throughput), "latency_ms": latency})


def measured(task: Task, noise: Noise | None, pair: Pair) -> Measurement | Failure:
    outcome = surface_at(task.path).outcomes[pair]
    return noise(outcome) if noise else outcome


def tritonc_session(task: Task, noise: Noise | None, seed: int) -> Session:
    """The product's own search."""
    surface, session = surface_at(task.path), Session()
    candidates = surface.candidates
    if surface.baseline is not None:
        candidates = tuple(dict.fromkeys([surface.baseline, *candidates]))
    search = Search(
        candidates, "throughput", task.slo, loads=surface.loads, seed=seed, baseline=surface.baseline
    )
    for number in range(1, RUNS + 1):
        pair = search.ask()
        if pair is None:
            session.stopped = session.stopped or number - 1
            break
        if session.stopped is None and search.is_over:
            session.stopped = number - 1
        search.tell(*pair, measured(task, noise, pair))
        best = search.recommend()
        session.regrets.append(regret(task, (best.candidate, best.load) if best else None))
    return session


@dataclass
class Incumbent:
    """The best measured pair, by what was seen."""

    task: Task
    pair: Pair | None = None
    rank: tuple[float, float] = (-math.inf, -math.inf)

    def tell(self, pair: Pair, outcome: Measurement | Failure) -> dict[str, float]:
        """Takes a run in; the violations that were seen."""
        if isinstance(outcome, Failure):
            return {}
        missed = violations(self.task.slo, outcome)
        rank = (-max(0.0, *missed.values()), outcome.throughput.value)
        if rank > self.rank:
            self.rank, self.pair = rank, pair
        return missed


def optuna_session(task: Task, noise: Noise | None, seed: int, name: str) -> Session:
    """Plain Optuna, with the load as a knob; or derived: bisection finds the largest that keeps the limit."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    kind, _, derived = name.partition("-")
    make = {
        "gp": optuna.samplers.GPSampler,
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
    }
    surface, session, incumbent = surface_at(task.path), Session(), Incumbent(task)
    study = optuna.create_study(direction="maximize", sampler=make[kind](seed=seed))
    while len(session.regrets) < RUNS:
        trial = study.ask()
        candidate = suggested(trial, surface)
        loads = surface.loads(candidate)
        if not derived:
            index = trial.suggest_int("load", 0, len(longest(surface)) - 1)
            loads = (loads[min(index, len(loads) - 1)],)
        best: tuple[tuple[float, float], dict[str, float], float] | None = None
        low, high = 0, len(loads) - 1
        while low <= high:
            middle = (low + high) // 2
            outcome = measured(task, noise, (candidate, loads[middle]))
            missed = incumbent.tell((candidate, loads[middle]), outcome)
            session.regrets.append(regret(task, incumbent.pair))
            if isinstance(outcome, Failure):
                break
            rank = (-max(0.0, *missed.values()), outcome.throughput.value)
            if best is None or rank > best[0]:
                best = (rank, missed, outcome.throughput.value)
            low, high = (middle + 1, high) if rank[0] == 0 else (low, middle - 1)
        if best is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        for limit, violation in best[1].items():
            trial.set_constraint(limit, violation)
        study.tell(trial, best[2])
    session.regrets = session.regrets[:RUNS]
    return session


@cache
def longest(surface: Surface) -> tuple[Load, ...]:
    return max((surface.loads(candidate) for candidate in surface.candidates), key=len)


def suggested(trial: object, surface: Surface) -> Candidate:
    """A candidate of the table, knob by knob; a proposal goes to the nearest value that is legal there."""
    left = list(surface.candidates)
    for knob, values in knobs_of(surface).items():
        legal = [v for v in values if any(same(c.values.get(knob), v) for c in left)]
        if not legal:
            continue
        wanted = suggested_value(trial, knob, values)
        found = next((v for v in legal if same(v, wanted)), None)
        if found is None:
            found = min(legal, key=lambda v: abs(values.index(v) - values.index(wanted)))
        kept = [candidate for candidate in left if same(candidate.values.get(knob), found)]
        left = kept or left
    return left[0]


def suggested_value(trial: object, knob: str, values: Sequence[KnobValue]) -> KnobValue:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers:
        return values[trial.suggest_int(knob, 0, len(values) - 1)]  # type: ignore[attr-defined]
    names = [str(value) for value in values]
    return values[names.index(trial.suggest_categorical(knob, names))]  # type: ignore[attr-defined]


def same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


@cache
def knobs_of(surface: Surface) -> Mapping[str, tuple[KnobValue, ...]]:
    """Values of every knob, those that others depend on first."""
    found: dict[str, dict[KnobValue, None]] = {}
    active: dict[str, int] = {}
    for candidate in surface.candidates:
        for knob, value in candidate.knobs:
            found.setdefault(knob, {})[value] = None
            active[knob] = active.get(knob, 0) + 1
    order = sorted(found, key=lambda knob: (-active[knob], knob))
    return {knob: tuple(sorted(found[knob], key=lambda v: (str(type(v)), v))) for knob in order}


def session(task: Task, sampler: str, noisy: bool, seed: int) -> Session:
    noise = Noise(f"{task.name} {seed}") if noisy else None
    began = time.perf_counter()
    if sampler == "tritonc":
        done = tritonc_session(task, noise, seed)
    else:
        done = optuna_session(task, noise, seed, sampler)
    done.seconds = time.perf_counter() - began
    return done


def use_one_thread() -> None:
    """Matrices are small, and the threads of several sessions get in each other's way."""
    import scipy.linalg  # noqa: F401  (its BLAS is not numpy's)

    threadpool_limits(1)


def work(arguments: tuple[Task, str, bool, int]) -> Session:
    return session(*arguments)


def geometric(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def report(
    tasks: Sequence[Task], samplers: Sequence[str], done: Mapping[tuple[str, str, bool], list[Session]]
) -> bool:
    """Prints the tables; whether every bar that can be judged is met."""
    fine = True
    for noisy in (False, True):
        title = "with noise" if noisy else "without noise"
        print(f"\n{title}; runs: geometric mean over {len(tasks)} tasks of medians")
        print(
            f"{'sampler':16} {'to 5%':>6} {'to 1%':>6} {'reach 5%':>9} {'reach 1%':>9}"
            + "".join(f"{f'regret@{n}':>11}" for n in REGRETS_AT)
            + f" {'stop at':>8} {'regret':>7} {'s/run':>6}"
        )
        to5: dict[str, float] = {}
        for sampler in samplers:
            sessions = [done[task.name, sampler, noisy] for task in tasks]
            everything = [one for each in sessions for one in each]
            to5[sampler], to1 = (
                geometric(
                    [statistics.median(one.reached(r) or RUNS + 1 for one in each) for each in sessions]
                )
                for r in (0.05, 0.01)
            )
            reach5, reach1 = (
                statistics.fmean(one.reached(r) is not None for one in everything) for r in (0.05, 0.01)
            )
            regrets = [
                statistics.fmean(one.regrets[min(n, len(one.regrets)) - 1] for one in everything)
                for n in REGRETS_AT
            ]
            seconds = statistics.fmean(one.seconds / len(one.regrets) for one in everything)
            line = f"{sampler:16} {to5[sampler]:6.1f} {to1:6.1f} {reach5:9.1%} {reach1:9.1%}"
            line += "".join(f"{value:11.2%}" for value in regrets)
            if sampler == "tritonc":
                stops = [one.stopped or len(one.regrets) for one in everything]
                at_stop = statistics.fmean(
                    one.regrets[(one.stopped or len(one.regrets)) - 1] for one in everything
                )
                stop = statistics.median(stops)
                line += f" {stop:8.0f} {at_stop:7.2%}"
                fine &= reach5 >= REACHED and stop <= STOPPED_AT and at_stop <= STOP_REGRET
            else:
                line += f" {'':8} {'':7}"
            print(f"{line} {seconds:6.3f}")
        for sampler, bar in BARS.items():
            if sampler in to5 and "tritonc" in to5:
                ratio = to5["tritonc"] / to5[sampler]
                print(f"tritonc / {sampler}: {ratio:.2f} (bar: {bar})")
                fine &= ratio <= bar
        print("by task, median runs to 5%: ")
        for task in tasks:
            medians = [
                statistics.median(one.reached(0.05) or RUNS + 1 for one in done[task.name, sampler, noisy])
                for sampler in samplers
            ]
            print(f"  {task.name:32}" + "".join(f"{value:8.1f}" for value in medians))
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, default=FOLDER, help="folder of tables (see surfaces.py)")
    parser.add_argument("--samplers", default="tritonc,gp,tpe,random,gp-derived,tpe-derived,random-derived")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    arguments = parser.parse_args()
    tasks = [task for task in tasks_in(arguments.tables) if arguments.only in task.name]
    samplers = arguments.samplers.split(",")
    keys = [
        (task, sampler, noisy, seed)
        for task in tasks
        for sampler in samplers
        for noisy in (False, True)
        for seed in range(arguments.seeds)
    ]
    done: dict[tuple[str, str, bool], list[Session]] = {}
    with ProcessPoolExecutor(arguments.jobs, initializer=use_one_thread) as pool:
        for (task, sampler, noisy, _), one in zip(keys, pool.map(work, keys, chunksize=4), strict=True):
            done.setdefault((task.name, sampler, noisy), []).append(one)
    return 0 if report(tasks, samplers, done) else 1


if __name__ == "__main__":
    sys.exit(main())
