"""A person's choice from a front that the lock holds. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tritonc.schemas.errors import InputErrors, LockError, TritoncError
from tritonc.schemas.lock import Decision, Lock, Result


def picked(
    lock: Lock | None,
    configuration: str,
    path: Path,
    *,
    models: Sequence[str],
    targets: Sequence[str],
) -> Decision:
    """The decision with another configuration of its front chosen.

    Args:
        lock: None where there is none.
        configuration: id of a configuration on a front.
        path: of the lock, for messages.
        models: only fronts of these.
        targets: only fronts of these.

    Raises:
        LockError: there is no front to pick from.
        InputErrors: none of the fronts has that configuration, or several of them have.
    """
    fronts = [
        decision
        for decision in (lock.decisions if lock else ())
        if decision.front and decision.model in models and decision.target in targets
    ]
    if not fronts:
        raise LockError(
            f"{path}: there is no front to pick from",
            "write objective: {pareto: [throughput, memory]} or the like in the spec, and run: tritonc tune",
        )
    found = [
        (one, member) for one in fronts for member in one.front if member.configuration.id == configuration
    ]
    if not found:
        on_front = "; ".join(_listed(one) for one in fronts)
        raise InputErrors([TritoncError(f'--pick: "{configuration}" is on no front', on_front)])
    if len(found) > 1:
        places = ", ".join(f"{one.model} on {one.target}" for one, _ in found)
        what = f"--pick: {configuration} is on the fronts of {places}"
        raise InputErrors([TritoncError(what, "name one with --model and --target")])
    [(decision, member)] = found
    return _with(decision, member)


def _with(decision: Decision, member: Result) -> Decision:
    base = decision.baseline
    return decision.model_copy(
        update={
            "chosen": member,
            "choice": "picked",
            "improved": base is None or member.configuration.id != base.configuration.id,
            "gain": math.expm1(member.objective - base.objective) if base else None,
        }
    )


def _listed(decision: Decision) -> str:
    ids = ", ".join(member.configuration.id for member in decision.front)
    return f"on that of {decision.model} on {decision.target} are {ids}"
