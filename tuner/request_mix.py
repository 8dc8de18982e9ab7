"""What the requests of a workload hold: inputs of one shape, or of several in proportion to their weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonc.compiler.project import Project
from tritonc.tuner.inputs import Inputs, read_inputs

_MOST_STEPS = 64
_STEPS_BYTES = 4 << 20
"""The load generator parses the file anew for every window."""


@dataclass(frozen=True, slots=True)
class RequestMix:
    """Inputs of the requests of one workload.

    Attributes:
        inputs: of each shape; at least one.
        weights: requests with each, relative to the others.
    """

    inputs: tuple[Inputs, ...]
    weights: tuple[float, ...] = (1.0,)

    def write_load_file(self, path: Path) -> None:
        """Writes what perf_analyzer's `--input-data` reads, whose steps it sends in turn."""
        if len(self.inputs) == 1:
            self.inputs[0].write_load_file(path)
            return
        mean_bytes = sum(each.sample_bytes for each in self.inputs) / len(self.inputs)
        most = max(2 * len(self.inputs), min(_MOST_STEPS, int(_STEPS_BYTES / max(1.0, mean_bytes))))
        taken = [0] * len(self.inputs)
        data = []
        for place in interleaved(self.weights, most):
            data.append(self.inputs[place].step(taken[place]))
            taken[place] += 1
        path.write_text(json.dumps({"data": data}), encoding="utf-8")

    def shape_arguments(self) -> list[str]:
        """perf_analyzer's `--shape`; with it no step may have another shape, so that mixes go without."""
        return self.inputs[0].shape_arguments() if len(self.inputs) == 1 else []


def interleaved(weights: Sequence[float], most: int) -> list[int]:
    """Places of the weights, as often as they say and evenly spread, in at most so many steps.

    The fewest steps that come as near to the weights as any number of steps does; what is rarer than one of
    `most` is one of them.

    >>> interleaved([3, 1], 64), interleaved([1000, 1], 8)
    ([0, 0, 1, 0], [0, 0, 0, 0, 1, 0, 0, 0])
    """
    least = [max(weight / sum(weights), 1 / most) for weight in weights]
    shares = [share / sum(least) for share in least]

    def off(steps: int) -> float:
        return max(abs(max(1, round(share * steps)) - share * steps) / steps for share in shares)

    steps = min(range(len(shares), most + 1), key=lambda n: (round(off(n), 6), n))
    counts = [max(1, round(share * steps)) for share in shares]
    credit = [0.0] * len(shares)
    order = []
    for _ in range(sum(counts)):
        credit = [have + count for have, count in zip(credit, counts, strict=True)]
        chosen = max(range(len(shares)), key=lambda place: (credit[place], -place))
        credit[chosen] -= sum(counts)
        order.append(chosen)
    return order


def read_mix(
    project: Project, model: str, number: int, *, seed: int = 0, allow_outside: bool = False
) -> RequestMix:
    """What the requests of one of the workloads of `model` hold.

    Args:
        project: with the model's signature.
        model: its name in the spec.
        number: of the workload.
        seed: of the random values; the same seed gives the same values.
        allow_outside: whether data files may lie outside the project's folder.

    Raises:
        InputErrors: every problem of `data` and `shapes` of this model.
    """
    shares = project.spec.asked_of(model).workloads[number].shapes
    if not shares:
        return RequestMix((read_inputs(project, model, seed=seed, allow_outside=allow_outside),))
    inputs = (
        read_inputs(project, model, seed=seed, allow_outside=allow_outside, own=share.shapes)
        for share in shares
    )
    return RequestMix(tuple(inputs), tuple(share.weight for share in shares))


def read_mixes(project: Project, model: str, *, allow_outside: bool = False) -> tuple[RequestMix, ...]:
    """`read_mix` of every workload of a model or an ensemble."""
    count = len(project.spec.asked_of(model).workloads)
    return tuple(read_mix(project, model, number, allow_outside=allow_outside) for number in range(count))


def every_shape(mixes: Sequence[RequestMix]) -> tuple[Inputs, ...]:
    """The inputs of all mixes, each shape once."""
    found = {each.shape_text(): each for mix in mixes for each in mix.inputs}
    return tuple(found.values())
