"""An ensemble of the spec, checked against its models as Triton checks it, with the signature that follows.

What Triton refuses when it loads an ensemble (ensemble_utils.cc and model_config_utils.cc of its core) is
refused here, where the spec can be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from tritonc.compiler.signature import OPEN, Signature, Tensor
from tritonc.schemas.errors import SpecError, did_you_mean
from tritonc.schemas.problems import KeyPath
from tritonc.schemas.request_batch import sizes_of
from tritonc.schemas.spec import EnsembleSpec, Spec, Step
from tritonc.schemas.spec_file import SpecFile

Dims = tuple[int, ...]

_OF_THE_ENSEMBLE = ("workload", "slo", "objective", "accuracy", "data")
"""Keys of a model that say how it is measured: in an ensemble it is measured with it."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """A valid ensemble.

    Attributes:
        steps: as in the spec.
        max_batch_size: the largest request; 0 where it has no batch axis. Models that have one of their own
            may have a larger one, never a smaller one.
        signature: what clients see.
    """

    name: str
    steps: tuple[Step, ...]
    max_batch_size: int
    signature: Signature

    @property
    def members(self) -> tuple[str, ...]:
        """The models of its steps, each once."""
        return tuple(dict.fromkeys(step.model for step in self.steps))


def ensembles_in(
    spec_file: SpecFile, signatures: Mapping[str, Signature]
) -> tuple[dict[str, Ensemble], list[SpecError]]:
    """The ensembles of a spec, and everything that is wrong with any of them.

    Args:
        spec_file: the spec.
        signatures: of its models, as they are served; those of files that cannot be read are not there.
    """
    spec = spec_file.spec
    found: dict[str, Ensemble] = {}
    errors = list(_membership_problems(spec_file))
    for name, declared in spec.ensembles.items():
        unknown = list(_unknown_models(spec_file, name, declared))
        errors += unknown
        if unknown or any(step.model not in signatures for step in declared.steps):
            continue
        draft = _Draft(spec_file, name, declared, signatures)
        problems = list(draft.problems())
        errors += problems
        if not problems:
            found[name] = draft.ensemble()
    return found, errors


def _membership_problems(spec_file: SpecFile) -> Iterator[SpecError]:
    """Names and models that belong to two things, and what is said of a model that is in an ensemble."""
    spec = spec_file.spec
    owners: dict[str, str] = {}
    for name, ensemble in spec.ensembles.items():
        if name in spec.models:
            what = f'"{name}" is a model already'
            hint = "give the ensemble another name: Triton serves both under theirs"
            yield spec_file.error(("ensembles", name), what, hint, at_key=True)
        for model in ensemble.members:
            if model in owners:
                place = next(i for i, step in enumerate(ensemble.steps) if step.model == model)
                yield spec_file.error(
                    ("ensembles", name, "steps", place, "model"),
                    f"{model} is a step of ensemble {owners[model]} already",
                    "declare the model twice, under two names: each ensemble tunes its own",
                )
            elif model in spec.models:
                owners[model] = name
                yield from _own_measuring(spec_file, spec, model, name)
    for model, ensemble_name in owners.items():
        if spec.group_of(model):
            what = f"together names {model}, which is a step of ensemble {ensemble_name}"
            yield spec_file.error(("together",), what, "take it out: it is tuned with the ensemble")


def _own_measuring(spec_file: SpecFile, spec: Spec, model: str, ensemble: str) -> Iterator[SpecError]:
    for key in _OF_THE_ENSEMBLE:
        if key in spec.models[model].model_fields_set:
            what = (
                f"{key} of {model} has no meaning: it is a step of ensemble {ensemble}, measured as a whole"
            )
            hint = f"write {key} at the ensemble, or leave it out"
            yield spec_file.error(("models", model, key), what, hint, at_key=True)


def _unknown_models(spec_file: SpecFile, name: str, declared: EnsembleSpec) -> Iterator[SpecError]:
    spec = spec_file.spec
    for place, step in enumerate(declared.steps):
        key_path = ("ensembles", name, "steps", place, "model")
        if step.model in spec.models:
            continue
        if step.model in spec.ensembles:
            what = f"{step.model} is an ensemble, and tritonc has no ensembles in ensembles"
            yield spec_file.error(key_path, what, f"write the steps of {step.model} here")
        else:
            what = f'the spec has no model "{step.model}"'
            yield spec_file.error(key_path, what, did_you_mean(step.model, spec.models))


@dataclass(frozen=True, slots=True)
class _Use:
    """A tensor as one model reads or writes it.

    Attributes:
        who: for messages.
        dims: the batch axis included, where the model has one.
    """

    who: str
    dtype: str
    dims: Dims
    key_path: KeyPath


class _Draft:
    """An ensemble that is being checked.

    Args:
        spec_file: the spec.
        name: of the ensemble.
        declared: as the spec has it; its models are there.
        signatures: of the models.
    """

    def __init__(
        self,
        spec_file: SpecFile,
        name: str,
        declared: EnsembleSpec,
        signatures: Mapping[str, Signature],
    ) -> None:
        self._spec_file = spec_file
        self._name = name
        self._declared = declared
        self._signatures = signatures
        self._written = self._uses("output")
        self._read = self._uses("input")

    def problems(self) -> Iterator[SpecError]:
        """Everything that is wrong; what follows from an earlier problem is not said."""
        for checks in (
            (self._mapping_problems, self._written_twice),
            (self._circle, self._output_problems),
            (self._tensor_problems,),
            (self._batch_problems,),
            (self._data_problems,),
        ):
            found = [problem for check in checks for problem in check()]
            yield from found
            if found:
                return

    def ensemble(self) -> Ensemble:
        """The ensemble; there must be no problems."""
        return Ensemble(self._name, self._declared.steps, self._max_batch_size, self._signature())

    @property
    def _max_batch_size(self) -> int:
        if self._declared.max_batch_size is not None:
            return self._declared.max_batch_size
        all_batch = all(self._signatures[model].has_batch_axis for model in self._declared.members)
        sizes = [size for each in self._declared.workloads for size in sizes_of(each.request_batch)]
        return max(sizes) if all_batch else 0

    @property
    def _inputs(self) -> list[str]:
        return [tensor for tensor in self._read if tensor not in self._written]

    @property
    def _outputs(self) -> list[str]:
        own = self._declared.outputs
        return [t for t in self._written if t not in self._read] if own is None else list(own)

    def _error(self, key_path: KeyPath, what: str, hint: str, *, at_key: bool = False) -> SpecError:
        return self._spec_file.error(("ensembles", self._name, *key_path), what, hint, at_key=at_key)

    def _uses(self, side: str) -> dict[str, list[_Use]]:
        """The uses of each tensor as an input or an output of models, in the order of the steps."""
        uses: dict[str, list[_Use]] = {}
        for place, step in enumerate(self._declared.steps):
            signature = self._signatures[step.model]
            mapped, known = step.input_map, signature.inputs
            if side == "output":
                mapped, known = step.output_map, signature.outputs
            tensors = {tensor.name: tensor for tensor in known}
            for own, tensor in mapped.items():
                if own in tensors:
                    key_path = ("steps", place, f"{side}_map", own)
                    who = f'{side} "{own}" of {step.model}'
                    dims = _full_dims(tensors[own], signature.has_batch_axis)
                    uses.setdefault(tensor, []).append(_Use(who, tensors[own].dtype, dims, key_path))
        return uses

    def _mapping_problems(self) -> Iterator[SpecError]:
        """Inputs and outputs that the models do not have, and inputs that get nothing."""
        for place, step in enumerate(self._declared.steps):
            signature = self._signatures[step.model]
            for side, mapped, tensors in (
                ("input", step.input_map, signature.inputs),
                ("output", step.output_map, signature.outputs),
            ):
                known = [tensor.name for tensor in tensors]
                for own in mapped:
                    if own not in known:
                        what = f'{step.model} has no {side} "{own}"'
                        hint = did_you_mean(own, known) if known else "it has none"
                        yield self._error(("steps", place, f"{side}_map", own), what, hint, at_key=True)
            for tensor in signature.inputs:
                if tensor.name not in step.input_map:
                    what = f'input "{tensor.name}" of {step.model} is mapped to no tensor'
                    hint = "every input of a model has to be; add it"
                    yield self._error(("steps", place, "input_map"), what, hint)

    def _written_twice(self) -> Iterator[SpecError]:
        for tensor, (first, *others) in self._written.items():
            for other in others:
                what = f'tensor "{tensor}" is written by {first.who} and by {other.who}'
                yield self._error(other.key_path, what, "give one of them another name")

    def _circle(self) -> Iterator[SpecError]:
        """A step that waits for itself, by way of others or not."""
        writers = {
            tensor: place
            for place, step in enumerate(self._declared.steps)
            for tensor in step.output_map.values()
        }
        waits = [
            {tensor: writers[tensor] for tensor in step.input_map.values() if tensor in writers}
            for step in self._declared.steps
        ]
        done: set[int] = set()
        while ready := {
            place for place, of in enumerate(waits) if place not in done and done.issuperset(of.values())
        }:
            done |= ready
        left = [place for place in range(len(waits)) if place not in done]
        if not left:
            return
        chain, tensors = [left[0]], []
        while chain[-1] not in chain[:-1]:
            tensor, writer = next((t, w) for t, w in waits[chain[-1]].items() if w not in done)
            chain.append(writer)
            tensors.append(tensor)
        start = chain.index(chain[-1])
        steps = self._declared.steps
        said = ", ".join(
            f'{steps[place].model} waits for "{tensor}" of {steps[writer].model}'
            for place, tensor, writer in zip(chain[start:], tensors[start:], chain[start + 1 :], strict=False)
        )
        hint = "tensors have to lead from the inputs to the outputs"
        yield self._error(("steps", chain[start]), f"the steps go in a circle: {said}", hint)

    def _output_problems(self) -> Iterator[SpecError]:
        """Outputs that no step writes, and tensors that lead nowhere: Triton refuses both."""
        own = self._declared.outputs
        for place, tensor in enumerate(own or ()):
            if tensor not in self._written:
                what = f'outputs: no step writes "{tensor}"'
                yield self._error(("outputs", place), what, did_you_mean(tensor, list(self._written)))
            elif tensor in (own or ())[:place]:
                yield self._error(("outputs", place), f'outputs: "{tensor}" stands twice', "name it once")
        loose = [tensor for tensor in self._written if tensor not in self._read]
        for tensor in self._inputs:
            near = get_close_matches(tensor, [t for t in loose if t not in (own or ())], n=1, cutoff=0.8)
            if near:
                what = f'no step writes "{tensor}", and no step reads "{near[0]}"'
                hint = f'did you mean "{near[0]}"? Or list that one in `outputs`, if both are meant'
                yield self._error(self._read[tensor][0].key_path, what, hint)
                loose.remove(near[0])
        for tensor in loose:
            if own is not None and tensor not in own:
                what = f'no step reads "{tensor}", and it is not in `outputs`'
                hint = "take it out of output_map, or list it in `outputs`"
                yield self._error(self._written[tensor][0].key_path, what, hint)

    def _tensor_problems(self) -> Iterator[SpecError]:
        """Models that disagree about the type or the dims of a tensor."""
        for tensor in self._tensors:
            first, *others = self._all_uses(tensor)
            dims: Dims | None = first.dims
            for other in others:
                both = _agreed(dims, other.dims) if dims is not None else None
                if first.dtype != other.dtype or both is None:
                    what = (
                        f'tensor "{tensor}" is {first.dtype} {list(dims or first.dims)} by {first.who}, '
                        f"but {other.dtype} {list(other.dims)} by {other.who}"
                    )
                    hint = "map another tensor, or put a model between them that makes the one of the other"
                    yield self._error(other.key_path, what, hint)
                    break
                dims = both

    def _batch_problems(self) -> Iterator[SpecError]:
        """Requests that a model could not take."""
        declared, largest = self._declared, self._max_batch_size
        said = f"max_batch_size is {largest}"
        if declared.max_batch_size is None and largest:
            said = f"workload.request_batch is {largest}"
        place: KeyPath = ("max_batch_size",) if declared.max_batch_size is not None else ("workload",)
        models = self._spec_file.spec.models
        for model in declared.members if largest else ():
            own = models[model].max_batch_size
            if self._signatures[model].has_batch_axis and own < largest:
                what = f"{said}, but that of {model} is {own}"
                yield self._error(place, what, f"lower it, or raise max_batch_size of {model}")
        uses = [use for tensor in self._tensors for use in self._all_uses(tensor)] if largest else []
        fixed = next((use for use in uses if use.dims[:1] != (OPEN,)), None)
        if fixed is not None:
            what = f"{said}, but {fixed.who} is {list(fixed.dims)}: there is no axis for a batch"
            yield self._error(place, what, "write max_batch_size: 0")
        for number, workload in enumerate(declared.workloads):
            batch = max(sizes_of(workload.request_batch))
            if batch > max(1, largest):
                why = "" if largest else " (no batch axis)"
                what = f"workload.request_batch is {batch} but max_batch_size is {largest}{why}"
                hint = "lower request_batch, or raise max_batch_size"
                yield self._error((*declared.workload_keys(number), "request_batch"), what, hint)

    def _data_problems(self) -> Iterator[SpecError]:
        """What `shapes` and `data` say about inputs that there are not, or against the models."""
        declared = self._declared
        yield from self._input_problems(("data",), declared.data)
        shaped: list[tuple[KeyPath, Mapping[str, Dims]]] = [(("shapes",), declared.shapes)]
        for number, workload in enumerate(declared.workloads):
            there = (*declared.workload_keys(number), "shapes")
            shaped += [((*there, place), share.shapes) for place, share in enumerate(workload.shapes)]
        for key_path, shapes in shaped:
            yield from self._input_problems(key_path, shapes)
            yield from self._shape_problems(key_path, shapes)

    def _input_problems(self, key_path: KeyPath, given: Iterable[str]) -> Iterator[SpecError]:
        inputs = [tensor.name for tensor in self._signature().inputs]
        for tensor in given:
            if tensor not in inputs:
                what = f'{key_path[0]}: the ensemble has no input "{tensor}"'
                yield self._error((*key_path, tensor), what, did_you_mean(tensor, inputs), at_key=True)

    def _shape_problems(self, key_path: KeyPath, shapes: Mapping[str, Dims]) -> Iterator[SpecError]:
        inputs = {tensor.name: tensor.dims for tensor in self._signature().inputs}
        for tensor, dims in shapes.items():
            if tensor in inputs and _agreed(dims, inputs[tensor]) is None:
                without = ", without the batch axis" if self._max_batch_size else ""
                what = (
                    f"shapes: {tensor} is {list(dims)}, but the models take {list(inputs[tensor])}{without}"
                )
                yield self._error((*key_path, tensor), what, "give one size for each; -1 is any")

    @property
    def _tensors(self) -> list[str]:
        """All of them, the inputs first."""
        return list(dict.fromkeys([*self._inputs, *self._written]))

    def _all_uses(self, tensor: str) -> list[_Use]:
        return [*self._written.get(tensor, ()), *self._read.get(tensor, ())]

    def _signature(self) -> Signature:
        has_batch_axis = self._max_batch_size > 0

        def tensor(name: str) -> Tensor:
            first, *others = self._all_uses(name)
            dims = first.dims
            for other in others:
                dims = _agreed(dims, other.dims) or dims
            return Tensor(name, first.dtype, dims[1:] if has_batch_axis else dims)

        inputs, outputs = (tuple(map(tensor, names)) for names in (self._inputs, self._outputs))
        return Signature(inputs, outputs, has_batch_axis)


def _full_dims(tensor: Tensor, has_batch_axis: bool) -> Dims:
    """Dims as Triton compares them; a scalar is [1], as it is in config.pbtxt."""
    dims = tensor.dims or (1,)
    return (OPEN, *dims) if has_batch_axis else dims


def _agreed(one: Dims, other: Dims) -> Dims | None:
    """What two models say about the dims of a tensor taken together; None where they disagree.

    >>> _agreed((-1, 3, -1), (-1, -1, 5)), _agreed((-1, 3), (-1, 4))
    ((-1, 3, 5), None)
    """
    if len(one) != len(other):
        return None
    if any(OPEN not in (a, b) and a != b for a, b in zip(one, other, strict=True)):
        return None
    return tuple(max(a, b) for a, b in zip(one, other, strict=True))
