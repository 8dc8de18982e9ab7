"""Terms agree with what a measurement is judged by."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.tuner.tables import candidate, measurement
from tritonc.schemas.measurement import ClosedLoad, Load, OpenLoad
from tritonc.schemas.spec import Slo
from tritonc.tuner.encoding import Encoding
from tritonc.tuner.objective import objective_value, score, violations
from tritonc.tuner.surrogate import level_of, quantity
from tritonc.tuner.terms import Term, limit_terms, objective_term, soft_terms

loads = st.one_of(
    st.integers(1, 512).map(lambda n: ClosedLoad(concurrency=n)),
    st.integers(1, 64).map(lambda n: ClosedLoad(concurrency=n, request_batch=4)),
    st.floats(1, 1e4).map(lambda rate: OpenLoad(rate=rate)),
)
positive = st.floats(0.1, 1e4)
LIMITS = {
    "p99_latency_ms": 25,
    "p50_latency_ms": 10,
    "min_throughput": 50,
    "max_memory": 3 << 30,
    "avg_queue_ms": 2,
    "max_load_seconds": 5,
}
SLO = Slo(**LIMITS)


def value_of(term: Term, load: Load, seen) -> float:
    table = Encoding([candidate(instance_count=1)]).table([(candidate(instance_count=1), load)])
    parts = [weight * quantity(name, seen)[0] for name, weight in term.weights.items()]
    return float(level_of(term, table)[0]) + sum(parts)


@given(loads, positive, positive)
def test_a_limit_is_missed_where_its_term_is_above_zero(load, rate, average_ms):
    seen = measurement(load, rate, average_ms).model_copy(update={"queue_ms": average_ms / 2, "load_s": rate})
    terms = limit_terms(SLO, closed=load.kind == "closed")
    soft = Slo.model_validate({name: {"limit": limit, "soft": True} for name, limit in LIMITS.items()})
    assert soft_terms(soft, closed=load.kind == "closed") == {name: terms[name] for name in LIMITS}
    assert violations(SLO, seen).keys() - {"sustained"} == LIMITS.keys()
    for name, violation in violations(SLO, seen).items():
        if name != "sustained":
            assert math.isclose(value_of(terms[name], load, seen), math.log1p(violation), abs_tol=1e-6)


@given(loads, positive, positive)
def test_an_objective_is_the_score_that_decisions_use(load, rate, average_ms):
    seen = measurement(load, rate, average_ms).model_copy(update={"joules_per_inference": 1 / rate})
    for objective in ("throughput", "latency", "memory", "energy"):
        term = objective_term(objective, SLO, closed=load.kind == "closed")
        wanted = score(objective, objective_value(objective, SLO, seen, None))
        assert math.isclose(value_of(term, load, seen), wanted, abs_tol=1e-6)


@given(loads, positive, positive, positive, positive)
def test_weighted_objectives_weigh_logarithms(load, rate, average_ms, base_rate, base_ms):
    seen, base = measurement(load, rate, average_ms), measurement(load, base_rate, base_ms)
    weights = {"throughput": 0.5, "latency": 0.2, "memory": 0.1, "cost": 0.2}
    term = objective_term(weights, SLO, closed=load.kind == "closed")
    gained = value_of(term, load, seen) - value_of(term, load, base)
    assert math.isclose(gained, objective_value(weights, SLO, seen, base), abs_tol=1e-6)
