"""Writes docs/knobs.md, the list of all knobs, from the compiler's catalogue: make docs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tritonc.compiler.backends import BACKENDS, CATALOGUE, Backend
from tritonc.compiler.knobs.dimension import Condition
from tritonc.compiler.knobs.domains import BatchSizes, Domain, OneOf, Switch, Text, Whole
from tritonc.compiler.knobs.facts import Allowed, Facts
from tritonc.compiler.knobs.knob import Knob, Place
from tritonc.compiler.knobs.shared import SHARED
from tritonc.compiler.release import Release
from tritonc.schemas.lock import KnobValue
from tritonc.schemas.spec_fields import INT32_MAX

TARGET = Path(__file__).with_name("knobs.md")
HEADER = """\
# Knobs

Written by `make docs` from the compiler's catalogue; a test fails when it is stale. These are the names that
`search:` of a spec understands: at the top level for all models, inside a model for that one.

- A list is tried value by value, and a single value pins the knob. `{min, max}` of a number stands for both
  ends and the doubled steps between them, after 0 where it begins there.
- *Searched* knobs are tried where `search:` says nothing; which values, the
  [README](../README.md#the-spec-by-example) says. All others are set only where `search:` names them.
- *Without it* is what Triton does where `config.pbtxt` does not have the knob. *Since* is the first release
  that knows it, where that matters.
- `tritonc build` checks names and values, and says why a value is illegal for a model or a target (as more
  threads than the target has cores). The JSON Schema of the spec does not know the knobs.
"""
COLUMNS = ("knob", "what it does", "values", "without it", "since", "searched")
PLACES = {
    Place.FIELD: "In a field of its own",
    Place.PARAMETER: "In `parameters`",
    Place.GPU_ACCELERATOR: "In the `parameters` of `gpu_execution_accelerator`",
}
NAMES = {
    "backend": tuple(BACKENDS),
    "accelerator": tuple(dict.fromkeys(name for each in BACKENDS.values() for name in each.accelerators)),
}
"""The values of knobs whose domain is any name."""
EVERYTHING = Facts(
    model="model",
    target="target",
    device="gpu",
    release=Release(99, 12),
    declared_cores=None,
    memory_bytes=None,
    gpu_memory_bytes=None,
    gpus=1,
    max_batch_size=INT32_MAX,
    request_batch=1,
    least_batch=1,
    weights_bytes=1,
    latency_slo_ms=None,
    own_scheduler="",
    open_inputs=(),
    backends=tuple(
        Allowed(name, tuple(each.accelerators), ("fp32",), each.batches_requests, each.shares_weights)
        for name, each in BACKENDS.items()
    ),
    kinds={name: each.kind for backend in BACKENDS.values() for name, each in backend.accelerators.items()},
)
"""A model and a target on which every knob is legal."""


def reference() -> str:
    """The whole document."""
    parts = [HEADER, f"## Of every backend\n\n{table(SHARED)}"]
    for backend in BACKENDS.values():
        parts.append(f"## Of backend `{backend.name}`\n")
        sections: dict[tuple[Place, tuple[str, ...]], list[Knob]] = {}
        for knob in backend.knobs:
            sections.setdefault((knob.place, accelerators(backend, knob)), []).append(knob)
        for (place, names), knobs in sorted(sections.items(), key=lambda section: -len(section[0][1])):
            is_any = len(names) == len(backend.accelerators)
            with_which = "whatever the accelerator" if is_any else f"with accelerator {listed(names, ' or ')}"
            parts.append(f"{PLACES[place]}, {with_which}:\n\n{table(knobs)}")
    return "\n".join(parts)


def table(knobs: Iterable[Knob]) -> str:
    """Knobs, one a line."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(row, knobs)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def row(knob: Knob) -> Sequence[str]:
    """What `COLUMNS` says of a knob."""
    needs = [condition_text(each) for each in knob.conditions(EVERYTHING) if is_told(knob, each)]
    others = [name for name in knob.companions if name != knob.name]
    needs += [f"{listed(others, ' and ')} beside it"] if others else []
    return (
        f"`{knob.name}`",
        f"{knob.doc} Only with {', and '.join(needs)}." if needs else knob.doc,
        listed(NAMES[knob.name]) if knob.name in NAMES else values(knob.domain),
        knob.absent,
        str(knob.since or ""),
        "yes" if knob.grid else "",
    )


def is_told(knob: Knob, condition: Condition) -> bool:
    """Whether a row has to tell a condition: that of a backend's own knob is told above its table."""
    return knob in SHARED or condition.knob not in NAMES


def condition_text(condition: Condition) -> str:
    """What a knob has to be, in words."""
    if isinstance(condition.values, range):
        return f"`{condition.knob}` of at least {condition.values[0]}"
    return f"`{condition.knob}` {listed(condition.values, ' or ')}"


def values(domain: Domain) -> str:
    """The values of a domain in words."""
    match domain:
        case Switch():
            return "`true`, `false`"
        case OneOf():
            return listed(domain.values)
        case BatchSizes():
            return "rising batch sizes, as `[4, 8]`; `[]`: none"
        case Text():
            return domain.described
        case Whole(size=True):
            return "bytes, or a size with a unit, as `512MiB`"
        case Whole():
            numbers = f"whole numbers from {domain.low}"
            end = f" to {domain.high}" if domain.high < INT32_MAX else ""
            return ", ".join([numbers + end, *(f"`{word}`" for word in domain.words)])
    raise AssertionError(f"{domain} has no words yet")


def accelerators(backend: Backend, knob: Knob) -> tuple[str, ...]:
    """The accelerators with which a backend's knob acts, also by way of the knobs that it depends on."""
    names = tuple(backend.accelerators)
    for condition in knob.conditions(EVERYTHING):
        if condition.knob == "accelerator":
            names = tuple(name for name in names if name in condition.values)
        elif condition.knob not in NAMES:
            further = accelerators(backend, CATALOGUE[condition.knob])
            names = tuple(name for name in names if name in further)
    return names


def listed(names: Iterable[KnobValue], between: str = ", ") -> str:
    """Values as they are written in a spec."""
    texts = (str(name).lower() if isinstance(name, bool) else str(name) for name in names)
    return between.join(f"`{text}`" for text in texts)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
