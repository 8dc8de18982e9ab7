"""Which candidate a repository serves for a (model, target): what the lock decided, or else the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.joint import members_of, of_member
from tritonc.compiler.knobs.legal_candidate import candidate_from
from tritonc.compiler.project import Project
from tritonc.compiler.space import Space, baseline_for, legal_choices, space_for
from tritonc.compiler.stale import Part, changed_parts, digests, digests_in
from tritonc.schemas.errors import LockError, TritoncError
from tritonc.schemas.lock import Decision, Lock, Result
from tritonc.schemas.yaml_source import read_yaml

_OF_ANOTHER = {
    "signature": "inputs or outputs of the model file",
    "source": "the model file's weights",
    "load": "workload, SLO, objective, accuracy, inputs or the target's machine",
}
"""What a changed digest means, in words; a changed space alone leaves the evidence true."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is served for one (model, target), and why.

    Attributes:
        candidate: what config.pbtxt is rendered from.
        decision: the lock's; None where it has none.
        result: the measurement of `candidate`; None where it has none.
        slo_met: False where the decision says that nothing met the SLO.
        notice: one sentence for the person who builds it; "" where all is as expected.
    """

    candidate: Candidate
    decision: Decision | None = None
    result: Result | None = None
    slo_met: bool = True
    notice: str = ""


def select(project: Project, model: str, target: str, decision: Decision | None) -> Selection:
    """The candidate to serve, given what the lock decided.

    Raises:
        InputErrors: the spec allows no candidate there.
        LockError: the decision does not belong to the spec or the model file, or holds an illegal value.
    """
    if decision is None:
        return Selection(baseline_for(project, model, target))
    space = space_for(project, model, target)
    result = served_result(decision)
    changed = changed_parts(decision.digests, digests_in(project, space))
    _require_current(project, decision, changed)
    notices = []
    candidate = _candidate(project, space, decision, result) if result else space.baseline
    if not decision.slo_met:
        kept = "the configuration before is" if result else "the baseline is"
        notices.append(f"nothing met the SLO when it was tuned: {kept} kept")
    if "space" in changed:
        notices.append(
            "the search space has changed since it was tuned: `tritonc tune` may find a better one"
        )
    notice = f"{model} on {target}: {'; '.join(notices)}" if notices else ""
    return Selection(candidate, decision, result, decision.slo_met, notice)


def served_result(decision: Decision) -> Result | None:
    """What `build` serves of a decision; None: the baseline.

    Where nothing met the SLO that is the configuration before, not the least violating one that was chosen.
    """
    return decision.chosen if decision.slo_met else decision.previous


def accept_stale(project: Project, lock: Lock) -> Lock:
    """The lock with every decision that has become stale marked as accepted.

    One whose model has other inputs or outputs stays as it is: it must be measured again.

    Raises:
        InputErrors: the spec allows no candidate for one of them.
    """
    tuned = set(project.spec.tuned)
    decisions = tuple(
        _accepted(project, decision)
        if decision.model in tuned and decision.target in project.spec.targets
        else decision
        for decision in lock.decisions
    )
    return lock.model_copy(update={"decisions": decisions})


def _accepted(project: Project, decision: Decision) -> Decision:
    now = digests(project, decision.model, decision.target)
    changed = changed_parts(decision.digests, now)
    if "signature" in changed or not {"source", "load"} & set(changed):
        return decision
    kept = now.model_copy(update={"space": decision.digests.space})
    return decision.model_copy(update={"digests": kept, "stale_evidence_accepted": True})


def _require_current(project: Project, decision: Decision, changed: tuple[Part, ...]) -> None:
    reason = next((_OF_ANOTHER[part] for part in changed if part in _OF_ANOTHER), None)
    if reason is None:
        return
    if decision.model in project.ensembles and changed[0] == "signature":
        reason = "steps of the ensemble, or inputs or outputs of its models,"
    hint = "measure it again with: tritonc tune"
    if changed[0] != "signature":
        hint += "; or accept it as it is with: tritonc build --accept-stale-evidence"
    what = f"the evidence is stale: {reason} changed since it was measured"
    raise _error(project, decision, ("digests",), what, hint)


def _candidate(project: Project, space: Space, decision: Decision, result: Result) -> Candidate:
    configuration = result.configuration
    here = ("chosen" if decision.slo_met else "previous", "configuration")
    by_hand = "where the lock was edited, restore it and pin the knob with `search:` in the spec instead"
    try:
        candidate = candidate_from(project, decision.model, decision.target, configuration.knobs)
    except ValueError as err:
        hint = f"where the spec has changed, measure again with: tritonc tune; {by_hand}"
        raise _error(project, decision, (*here, "knobs"), str(err), hint) from None
    if candidate.id != configuration.id:
        what = f"the knobs are not those of candidate {configuration.id}, which was measured"
        raise _error(
            project, decision, (*here, "id"), what, f"{by_hand}; or measure again with: tritonc tune"
        )
    for knob, allowed in _contradicted(project, space, candidate):
        what = f"{knob} is {candidate.values.get(knob, 'absent')}, but the spec's search allows {allowed}"
        raise _error(project, decision, (*here, "knobs", knob), what, "measure it again with: tritonc tune")
    return candidate


def _contradicted(project: Project, space: Space, candidate: Candidate) -> Iterator[tuple[str, str]]:
    """The knobs that `search:` of the spec names and whose values it does not allow, with those it allows."""
    values = candidate.values
    searched = set(_named_by_search(project, candidate))
    for dimension in space.dimensions:
        if dimension.knob in searched:
            legal = [choice.value for choice in legal_choices(dimension, values)]
            if legal and values.get(dimension.knob) not in legal:
                yield dimension.knob, ", ".join(str(value) for value in legal)


def _named_by_search(project: Project, candidate: Candidate) -> Iterator[str]:
    """Knobs that `search:` of the spec names, as the candidate has them."""
    for model in members_of(candidate):
        own = (*project.spec.search, *project.spec.models[model].search)
        yield from own if model == candidate.model else (of_member(model, knob) for knob in own)


def _error(project: Project, decision: Decision, keys: tuple[str, ...], what: str, hint: str) -> LockError:
    place = _place(project.spec_file.lock_path, decision, keys)
    return LockError(f"{place}: {decision.model} on {decision.target}: {what}", hint)


def _place(path: Path, decision: Decision, keys: tuple[str, ...]) -> str:
    """Where a decision has a key in the lock file; the file alone if it is no longer as it was read."""
    try:
        source = read_yaml(path)
        decisions = source.data["decisions"]
        index = next(
            number
            for number, found in enumerate(decisions)
            if (found["model"], found["target"]) == (decision.model, decision.target)
        )
    except (TritoncError, LookupError, TypeError, StopIteration):
        return str(path)
    return str(source.location(("decisions", index, *keys)))


def check_lock(project: Project, lock: Lock | None) -> tuple[str, ...]:
    """Notices about the lock as a whole.

    Raises:
        LockError: it is the lock of another spec.
    """
    spec, path = project.spec, project.spec_file.lock_path
    if lock is None:
        return (f"there is no {path.name}: every model gets its baseline; to measure, run: tritonc tune",)
    if lock.spec != spec.name:
        raise LockError(
            f'{path}: is the lock of "{lock.spec}", not of "{spec.name}"',
            "give the spec its name back, or measure again with: tritonc tune --fresh",
        )
    tuned = set(spec.tuned)
    return tuple(
        f"{path.name} has a decision for {d.model} on {d.target}, {_why_unused(project, d)}"
        for d in lock.decisions
        if d.model not in tuned or d.target not in spec.targets
    )


def _why_unused(project: Project, decision: Decision) -> str:
    ensemble = project.spec.ensemble_with(decision.model)
    if ensemble and decision.model in project.spec.models and decision.target in project.spec.targets:
        return f"which is a step of ensemble {ensemble} now: what was decided for that counts"
    return "which the spec no longer has"
