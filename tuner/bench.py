"""What the candidates of one model are measured with."""

from __future__ import annotations

from dataclasses import dataclass

from tritonc.schemas.measurement import Measurement
from tritonc.schemas.spec import Accuracy, Slo
from tritonc.tuner.demand import Demand
from tritonc.tuner.inputs import Inputs
from tritonc.tuner.load_search import LoadSearch
from tritonc.tuner.objective import Objective, objective_value, weights_of
from tritonc.tuner.perf_analyzer import LoadData, PerfAnalyzer


@dataclass(frozen=True, slots=True)
class Bench:
    """What the candidates of one model are measured with, the same for all of them.

    Attributes:
        data: what the load generator sends.
        inputs: what outputs are compared on: those of each shape that clients send.
        seed: of the times of Poisson arrivals.
        load_search: decides which loads a candidate is put under.
        price_per_hour: of the target, for cost.
        max_batch_size: of an ensemble, the same for all candidates; None: it is a knob.
    """

    generator: PerfAnalyzer
    data: LoadData
    inputs: tuple[Inputs, ...]
    workload: Demand
    slo: Slo
    objective: Objective
    accuracy: Accuracy
    seed: int = 0
    load_search: type[LoadSearch] = LoadSearch
    price_per_hour: float = 1.0
    max_batch_size: int | None = None

    def value(self, measured: Measurement, baseline: Measurement | None) -> float:
        """The objective, larger is better; see `objective_value`."""
        return objective_value(self.objective, self.slo, measured, baseline, self.price_per_hour)

    @property
    def counts_energy(self) -> bool:
        """Whether the objective is about energy."""
        return "energy" in weights_of(self.objective)
