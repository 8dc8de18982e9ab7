"""`parameters:` and `config:` of a model: fields of config.pbtxt that the spec passes through.

They are merged into what tritonc writes and may add to it, never contradict it: what a knob sets is set
through `search:`, what the model file says is not set at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from tritonc.compiler.backends import CATALOGUE
from tritonc.compiler.candidate import VERSION
from tritonc.compiler.knobs.dimension import Dimension
from tritonc.compiler.knobs.knob import Place
from tritonc.compiler.protobuf import ModelConfig
from tritonc.schemas.errors import InputErrors, SpecError, did_you_mean

if TYPE_CHECKING:
    from tritonc.schemas.spec_file import SpecFile

_OWN: Mapping[str, str] = {
    "name": "it is the model's name in the spec",
    "platform": "tritonc writes backend instead",
    "backend": "allow backends at the target, or pin backend in search",
    "max_batch_size": "write max_batch_size at the model, or pin it in search",
    "parameters": "write them under parameters of the model",
    "default_model_filename": "tritonc names the file that it puts into the repository",
    "ensemble_scheduling": "write the steps under `ensembles` of the spec",
}
"""Fields that tritonc alone writes, with where to say it."""
_BY_NAME = ("input", "output")
"""Lists that are merged entry by entry, by name."""
_KNOB_OF: Mapping[str, str] = {
    "input.data_type": "the model file says it",
    "input.dims": "pin them under dims of the model",
    "output.data_type": "the model file says it",
    "output.dims": "pin them under dims of the model",
    "instance_group.count": "pin instance_count in search",
    "instance_group.kind": "pin instance_kind in search",
    "instance_group.gpus": "they are those of the target: write gpu: {count: …} there",
    "dynamic_batching.preferred_batch_size": "pin preferred_batch_size in search",
    "dynamic_batching.max_queue_delay_microseconds": "pin max_queue_delay_microseconds in search",
    "optimization.execution_accelerators": "allow accelerators at the target; search names their parameters",
    "optimization.graph": "pin graph_level in search",
    "optimization.input_pinned_memory": "pin input_pinned_memory in search",
    "optimization.output_pinned_memory": "pin output_pinned_memory in search",
    "model_warmup": "pin model_warmup in search, or leave it false",
}
"""Fields that tritonc writes inside others, with where to say it."""


class _PassthroughError(ValueError):
    """One problem of `config`; `key_path` begins at the model."""

    def __init__(self, key_path: tuple[str | int, ...], what: str, hint: str) -> None:
        super().__init__(what)
        self.key_path = key_path
        self.what = what
        self.hint = hint


def merge_passthrough(spec_file: SpecFile, model: str, config: ModelConfig) -> None:
    """Adds the model's `parameters` and `config` to what tritonc wrote into `config`.

    Raises:
        InputErrors: everything in them that is no ModelConfig, or contradicts `config`.
    """
    spec = spec_file.spec.models[model]
    problems: list[_PassthroughError] = []
    for name, value in spec.parameters.items():
        try:
            _merge_parameter(config, name, value)
        except _PassthroughError as err:
            problems.append(err)
    for key, value in spec.config.items():
        try:
            _merge_field(config, str(key), value)
        except _PassthroughError as err:
            problems.append(err)
    if problems:
        raise InputErrors(
            spec_file.error(("models", model, *one.key_path), one.what, one.hint, at_key=True)
            for one in problems
        )


def knob_problems(spec_file: SpecFile, model: str, dimensions: Iterable[Dimension]) -> list[SpecError]:
    """What the model's `parameters` and `config` set that is a knob of its space, whatever its values are."""
    spec = spec_file.spec.models[model]
    problems = []
    for dimension in dimensions:
        name = dimension.knob
        if name in spec.parameters and CATALOGUE[name].place is Place.PARAMETER:
            place, hint = ("parameters", name), f"pin {name} in search instead"
            problems.append((place, hint))
        own_warmup = next((key for key in ("model_warmup", "modelWarmup") if key in spec.config), "")
        if name == "model_warmup" and own_warmup and True in dimension.values:
            place, hint = ("config", own_warmup), "pin model_warmup to false in search"
            problems.append((place, hint))
    return [
        spec_file.error(
            ("models", model, *place), f"{place[0]}: {place[1]} is a knob that is searched", hint, at_key=True
        )
        for place, hint in problems
    ]


def _merge_parameter(config: ModelConfig, name: str, value: object) -> None:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if name in config.parameters and config.parameters[name].string_value != text:
        what = f'parameters: {name} is set by a knob, to "{config.parameters[name].string_value}"'
        raise _PassthroughError(("parameters", name), what, f"pin {name} in search instead")
    config.parameters[name].string_value = text


def _merge_field(config: ModelConfig, key: str, value: Any) -> None:
    place = ("config", key)
    names = _field_names()
    if key not in names:
        raise _PassthroughError(place, f'config: ModelConfig has no field "{key}"', _near(key, names))
    field = names[key]
    if field in _OWN:
        raise _PassthroughError(place, f"config: {field} is written by tritonc", _OWN[field])
    added = _parsed(place, field, value)
    if field in _BY_NAME:
        _merge_by_name(config, added, field, place)
    elif field == "instance_group":
        if len(added.instance_group) != 1:
            what = "config: tritonc writes one instance_group"
            raise _PassthroughError(place, what, "give a list of one, with what to add to it")
        _refuse_written(added.instance_group[0], field, (*place, 0))
        config.instance_group[0].MergeFrom(added.instance_group[0])
    elif field == "dynamic_batching":
        _refuse_written(added.dynamic_batching, field, place)
        # A candidate without dynamic batching must stay without it.
        if config.HasField(field):
            config.dynamic_batching.MergeFrom(added.dynamic_batching)
    else:
        if field == "model_warmup" and config.model_warmup:
            raise _PassthroughError(place, "config: model_warmup is written by tritonc", _KNOB_OF[field])
        if field == "optimization":
            _refuse_written(added.optimization, field, place)
        if field == "version_policy" and VERSION not in (added.version_policy.specific.versions or [VERSION]):
            what = f"config: version_policy leaves version {VERSION} out, the only one that tritonc writes"
            raise _PassthroughError(place, what, f"add {VERSION} to versions")
        config.MergeFrom(added)


def _merge_by_name(config: ModelConfig, added: ModelConfig, field: str, place: tuple[str | int, ...]) -> None:
    written = {tensor.name: tensor for tensor in getattr(config, field)}
    for i, tensor in enumerate(getattr(added, field)):
        if tensor.name not in written:
            what = f'config: the model has no {field} "{tensor.name}"'
            raise _PassthroughError((*place, i), what, did_you_mean(tensor.name, written))
        _refuse_written(tensor, field, (*place, i))
        written[tensor.name].MergeFrom(tensor)


def _refuse_written(message: Any, field: str, place: tuple[str | int, ...]) -> None:
    for descriptor, _ in message.ListFields():
        path = f"{field}.{descriptor.name}"
        if path in _KNOB_OF:
            what = f"config: {path} is written by tritonc"
            raise _PassthroughError((*place, descriptor.name), what, _KNOB_OF[path])


def _parsed(place: tuple[str | int, ...], field: str, value: Any) -> ModelConfig:
    from google.protobuf import json_format

    try:
        return json_format.ParseDict({field: value}, ModelConfig())
    except json_format.ParseError as err:
        what = " ".join(str(err).split())
        raise _PassthroughError(place, f"config: {what}", "see Triton's model_config.proto") from None


@cache
def _field_names() -> dict[str, str]:
    fields = ModelConfig.DESCRIPTOR.fields
    return {name: field.name for field in fields for name in (field.camelcase_name, field.name)}


def _near(key: str, names: Mapping[str, str]) -> str:
    return did_you_mean(key, set(names.values()) - set(_OWN))
