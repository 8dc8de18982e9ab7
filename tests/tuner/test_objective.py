from __future__ import annotations

import math

import pytest

from tritonc.schemas.measurement import ClosedLoad, Interval, Load, Measurement, OpenLoad
from tritonc.schemas.spec import Slo
from tritonc.tuner.objective import (
    HOPELESS,
    decisive_percentile,
    latency_limits,
    objective_value,
    score,
    violations,
)


def measured(
    throughput: float = 100,
    p99: float = 50,
    memory: int = 1000,
    load: Load | None = None,
    sustained: bool = True,
) -> Measurement:
    return Measurement(
        load=load or ClosedLoad(concurrency=2),
        requests=100,
        duration_s=1,
        throughput=Interval(value=throughput),
        latency_ms={name: Interval(value=p99) for name in ("avg", "p50", "p90", "p95", "p99")},
        sustained=sustained,
        memory_bytes=memory,
    )


def test_violations_are_relative_and_negative_where_there_is_room() -> None:
    slo = Slo(p99_latency_ms=40, avg_latency_ms=100, min_throughput=120, max_memory=2000)
    found = violations(slo, measured())
    assert found == pytest.approx(
        {"p99_latency_ms": 0.25, "avg_latency_ms": -0.5, "min_throughput": 0.2, "max_memory": -0.5}
    )


def test_a_rate_that_is_not_sustained_is_a_violation() -> None:
    load = OpenLoad(rate=50, request_batch=4)
    found = violations(Slo(), measured(throughput=100, load=load, sustained=False))
    assert found == {"sustained": pytest.approx(1.0)}
    assert violations(Slo(), measured(throughput=0, load=load, sustained=False)) == {"sustained": HOPELESS}


def test_without_limits_nothing_is_violated() -> None:
    assert violations(Slo(), measured()) == {}
    assert latency_limits(Slo()) == {}


def test_the_objective_latency_is_about_the_highest_limited_percentile() -> None:
    assert decisive_percentile(Slo()) == "p99"
    assert decisive_percentile(Slo(p50_latency_ms=1, p95_latency_ms=2)) == "p95"


def test_every_objective_is_larger_when_better() -> None:
    slo = Slo()
    assert objective_value("throughput", slo, measured(throughput=7), None) == 7
    assert objective_value("latency", slo, measured(p99=7), None) == -7
    assert objective_value("memory", slo, measured(memory=7), None) == -7


def test_weighted_objectives_weigh_log_ratios_to_the_baseline() -> None:
    base = measured(throughput=100, memory=1000)
    better = measured(throughput=200, memory=2000)
    value = objective_value({"throughput": 0.7, "memory": 0.3}, Slo(), better, base)
    assert value == pytest.approx(0.7 * math.log(2) - 0.3 * math.log(2))
    assert objective_value(
        {"throughput": 0.7, "latency": 0.3}, Slo(), measured(p99=25), base
    ) == pytest.approx(0.3 * math.log(2))
    assert objective_value({"throughput": 1.0}, Slo(), base, base) == 0
    assert objective_value({"throughput": 1.0}, Slo(), base, None) == 0


def test_equal_ratios_are_equal_differences_of_scores() -> None:
    assert score("throughput", 200) - score("throughput", 100) == pytest.approx(math.log(2))
    assert score("latency", -50) - score("latency", -100) == pytest.approx(math.log(2))
    assert score({"memory": 1.0}, 0.3) == 0.3
