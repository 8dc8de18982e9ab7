"""Objective and limits as sums of logarithms of what is measured: linear in what the surrogate models. Pure.

A throughput is its own logarithm; a latency under a closed load is Little's law plus a tail ratio minus the
throughput. So every limit is a linear inequality, and every objective a linear form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tritonc.schemas.spec import Slo
from tritonc.tuner.objective import (
    PERCENTILES,
    Objective,
    axes_of,
    decisive_percentile,
    latency_limits,
    weights_of,
)

_SUSTAINED = 0.98  # share of the requests sent that a sustained rate completes (docs/engines.md)


@dataclass(frozen=True, slots=True)
class Term:
    """A linear form of logarithms.

    Attributes:
        weights: by quantity: "throughput" (inferences a second), "memory" (bytes; on the GPU where the server
            holds any there), "host_memory" (bytes), "queue" (milliseconds), "load" (seconds), "energy"
            (joules an inference), or a percentile: its ratio to what Little's law says of the average under a
            closed load, milliseconds under an open one.
        amount: of the logarithm of the load: inferences in flight (closed), or inferences a second (open).
        constant: added.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    amount: float = 0.0
    constant: float = 0.0

    def scaled(self, factor: float) -> Term:
        """`factor` times this term."""
        weights = {name: factor * weight for name, weight in self.weights.items()}
        return Term(weights, factor * self.amount, factor * self.constant)

    def plus(self, other: Term) -> Term:
        """The sum of two terms."""
        names = dict.fromkeys([*self.weights, *other.weights])
        weights = {name: self.weights.get(name, 0.0) + other.weights.get(name, 0.0) for name in names}
        return Term(weights, self.amount + other.amount, self.constant + other.constant)


@dataclass(frozen=True, slots=True)
class Goals:
    """What a search is after, in terms.

    Attributes:
        axes: what to maximise: one term, or one for each objective of a front.
        limits: what must not be above 0, by the name of the hard limit.
        soft: what should not be above 0, by the name of the soft limit.
    """

    axes: tuple[Term, ...]
    limits: Mapping[str, Term]
    soft: Mapping[str, Term]

    @classmethod
    def of(cls, objective: Objective, slo: Slo, *, closed: bool) -> Goals:
        """Those of a spec, for closed loads or for open ones."""
        return cls(
            axis_terms(objective, slo, closed=closed),
            limit_terms(slo, closed=closed),
            soft_terms(slo, closed=closed),
        )

    @property
    def quantities(self) -> tuple[str, ...]:
        """What has to be modelled; throughput always is."""
        terms = [*self.axes, *self.limits.values(), *self.soft.values()]
        return tuple(dict.fromkeys(["throughput", *(name for term in terms for name in term.weights)]))


THROUGHPUT = Term({"throughput": 1.0})
MEMORY = Term({"memory": 1.0})

_LIMITED: Mapping[str, Term] = {
    "min_throughput": THROUGHPUT.scaled(-1.0),
    "max_memory": Term({"host_memory": 1.0}),
    "avg_queue_ms": Term({"queue": 1.0}),
    "max_load_seconds": Term({"load": 1.0}),
}
"""What a limit is about, other than latency, with the sign that makes larger worse."""


def latency(percentile: str, *, closed: bool) -> Term:
    """The logarithm of a latency in milliseconds."""
    if not closed:
        return Term({percentile: 1.0})
    return Term({percentile: 1.0, "throughput": -1.0}, amount=1.0, constant=math.log(1000))


def objective_term(objective: Objective, slo: Slo, *, closed: bool) -> Term:
    """What to maximise, but for a constant; weighted objectives weigh logarithms, as the spec says."""
    parts = _parts(slo, closed=closed)
    total = Term()
    for name, weight in weights_of(objective).items():
        total = total.plus(parts[name].scaled(weight))
    return total


def axis_terms(objective: Objective, slo: Slo, *, closed: bool) -> tuple[Term, ...]:
    """What to maximise: one term, or one for each objective of a front."""
    parts = _parts(slo, closed=closed)
    return tuple(parts[name] for name in axes_of(objective)) or (
        objective_term(objective, slo, closed=closed),
    )


def _parts(slo: Slo, *, closed: bool) -> Mapping[str, Term]:
    """The logarithm of every objective there is, larger is better."""
    latencies = {name: latency(name, closed=closed).scaled(-1.0) for name in PERCENTILES}
    return {
        "throughput": THROUGHPUT,
        "latency": latencies[decisive_percentile(slo)],
        "memory": MEMORY.scaled(-1.0),
        "cost": THROUGHPUT,
        "energy": Term({"energy": -1.0}),
        **{f"{name}_latency_ms": term for name, term in latencies.items()},
    }


def limit_terms(slo: Slo, *, closed: bool) -> dict[str, Term]:
    """What must not be above 0, by the name of the hard limit; "sustained" is that of an open load."""
    terms = _excesses(slo.hard, closed=closed)
    if not closed:
        terms["sustained"] = Term({"throughput": -1.0}, amount=1.0, constant=math.log(_SUSTAINED))
    return terms


def soft_terms(slo: Slo, *, closed: bool) -> dict[str, Term]:
    """What should not be above 0, by the name of the soft limit."""
    return _excesses(slo.soft, closed=closed)


def _excesses(limits: Mapping[str, float], *, closed: bool) -> dict[str, Term]:
    """The logarithm of measured over limit, of each limit."""
    terms = {
        name: term.plus(Term(constant=(1 if name == "min_throughput" else -1) * math.log(limits[name])))
        for name, term in _LIMITED.items()
        if name in limits
    }
    for name, limit in latency_limits(limits).items():
        terms[f"{name}_latency_ms"] = latency(name, closed=closed).plus(Term(constant=-math.log(limit)))
    return terms
