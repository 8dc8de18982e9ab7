from __future__ import annotations

import math

import pytest

from tritonc.schemas.measurement import ClosedLoad, Interval, Load, Measurement, OpenLoad
from tritonc.schemas.spec import Slo, SoftLimit
from tritonc.tuner.objective import (
    HOPELESS,
    SOFT_WEIGHT,
    Objective,
    cost_per_million,
    decisive_percentile,
    latency_limits,
    lowered,
    objective_value,
    score,
    seeks_capacity,
    soft_cost,
    soft_violations,
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
    assert latency_limits(Slo().limits) == {}


def test_the_queue_and_the_time_of_loading_are_limits_like_others() -> None:
    slo = Slo(avg_queue_ms=4, max_load_seconds=2)
    seen = measured().model_copy(update={"queue_ms": 5.0, "load_s": 1.0})
    assert violations(slo, seen) == pytest.approx({"avg_queue_ms": 0.25, "max_load_seconds": -0.5})
    assert violations(slo, measured()) == {}


def test_a_soft_limit_is_no_violation_and_costs_what_it_is_missed_by() -> None:
    slo = Slo(p99_latency_ms=SoftLimit(limit=40, soft=True), p50_latency_ms=100)
    assert violations(slo, measured()) == pytest.approx({"p50_latency_ms": -0.5})
    assert soft_violations(slo, measured()) == pytest.approx({"p99_latency_ms": 0.25})
    assert soft_cost(soft_violations(slo, measured())) == pytest.approx(SOFT_WEIGHT * math.log(1.25))
    assert soft_cost(soft_violations(slo, measured(p99=40))) == 0
    assert decisive_percentile(slo) == "p99"


@pytest.mark.parametrize("objective", ["throughput", "latency", "cost", {"memory": 1.0}])
def test_a_lowered_value_is_worse_by_its_cost(objective: Objective) -> None:
    value = objective_value(objective, Slo(), measured(), measured(memory=1500))
    lower = lowered(objective, value, 0.3)
    assert score(objective, value) - score(objective, lower) == pytest.approx(0.3)


def test_the_objective_latency_is_about_the_highest_limited_percentile() -> None:
    assert decisive_percentile(Slo()) == "p99"
    assert decisive_percentile(Slo(p50_latency_ms=1, p95_latency_ms=2)) == "p95"


def test_every_objective_is_larger_when_better() -> None:
    slo = Slo()
    assert objective_value("throughput", slo, measured(throughput=7), None) == 7
    assert objective_value("latency", slo, measured(p99=7), None) == -7
    assert objective_value("memory", slo, measured(memory=7), None) == -7
    on_gpu = measured(memory=7).model_copy(update={"gpu_memory_bytes": 9, "joules_per_inference": 0.5})
    assert objective_value("memory", slo, on_gpu, None) == -9
    assert objective_value("energy", slo, on_gpu, None) == -0.5
    assert objective_value("energy", slo, measured(), None) == -HOPELESS


def test_cost_is_the_price_of_a_million_inferences() -> None:
    seen = measured(throughput=1000)
    assert objective_value("cost", Slo(), seen, None, price_per_hour=3.6) == pytest.approx(-1.0)
    interval = cost_per_million(Interval(value=1000, low=500, high=2000), 3.6)
    assert (interval.low, interval.value, interval.high) == pytest.approx((0.5, 1.0, 2.0))
    assert objective_value("cost", Slo(), measured(throughput=0), None) == -HOPELESS


def test_who_pays_by_the_hour_seeks_the_largest_load() -> None:
    assert all(map(seeks_capacity, ("throughput", "cost", "energy", {"cost": 0.5, "memory": 0.5})))
    assert not any(map(seeks_capacity, ("latency", "memory", {"latency": 0.5, "memory": 0.5})))


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
