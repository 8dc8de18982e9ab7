"""pydantic's complaints in plain words: what is wrong at which key path, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from tritonc.schemas.errors import did_you_mean, found, shortened

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

KeyPath = tuple[str | int, ...]

_PROBLEM = "tritonc_problem"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in data read from a file.

    Attributes:
        key_path: where; its last step may be a key that is missing.
        at_key: the key itself is wrong, not its value.
    """

    key_path: KeyPath
    what: str
    hint: str
    at_key: bool = False


def problem(what: str, hint: str, *, at: KeyPath = ()) -> PydanticCustomError:
    """What a validator raises: `{field}` in the texts becomes the name of the value that is validated.

    Args:
        what: what was found.
        hint: what would be right.
        at: where in the value it stands, as steps from the value.
    """
    return PydanticCustomError(_PROBLEM, "{what}; {hint}", {"what": what, "hint": hint, "at": at})


def problems_of(error: ValidationError, model: type[BaseModel]) -> tuple[Problem, ...]:
    """The problems that a validation of `model` found, in pydantic's order, each once.

    A required key that is missing is left out where an unknown key beside it looks like a misspelling of it.
    """
    details = error.errors(include_url=False)
    unknown: dict[tuple[str | int, ...], list[str]] = {}
    for detail in details:
        if detail["type"] == "extra_forbidden":
            unknown.setdefault(detail["loc"][:-1], []).append(str(detail["loc"][-1]))
    return tuple(
        dict.fromkeys(
            _problem(detail, model)
            for detail in details
            if not (
                detail["type"] == "missing"
                and get_close_matches(str(detail["loc"][-1]), unknown.get(detail["loc"][:-1], ()))
            )
        )
    )


def label(key_path: KeyPath) -> str:
    """A key path as messages name it: without the model or target it is in, which the location shows.

    >>> label(("models", "ocr", "shapes", "x", 0))
    'shapes.x[0]'
    """
    steps = (
        key_path[2:] if len(key_path) > 2 and key_path[0] in ("models", "ensembles", "targets") else key_path
    )
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{shortened(step, 40)}" for step in steps)
    return text.removeprefix(".") or "the file"


def _problem(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    key_path, at_key, types, parents = _resolve(details["loc"], model)
    context = details.get("ctx", {})
    if details["type"] == _PROBLEM:
        name = label(key_path)
        what, hint = (context[part].replace("{field}", name) for part in ("what", "hint"))
        return Problem((*key_path, *context["at"]), what, hint, at_key)
    name, value = label(key_path), details["input"]
    if details["type"] == "missing":
        return Problem(key_path, f'{label(key_path[:-1])} has no "{key_path[-1]}"', "add it")
    if details["type"] == "extra_forbidden":
        key, known = str(key_path[-1]), sorted(_fields(parents))
        what = f'unknown key "{shortened(key)}" in {label(key_path[:-1])}'
        return Problem(key_path, what, did_you_mean(key, known), at_key=True)
    if details["type"] == "literal_error":
        known = [str(value) for value in _literals(types)]
        what = f"{name} is {found(value)}"
        if isinstance(value, str):
            noun, where = ("key", f" in {label(key_path[:-1])}") if at_key else (key_path[-1], "")
            what = f'unknown {noun} "{shortened(value)}"{where}'
        return Problem(key_path, what, did_you_mean(str(value), known), at_key)
    if details["type"] == "value_error":
        return Problem(key_path, f"{name} is {found(value)}", f"it {context['error']}")
    if details["type"] in ("too_short", "string_too_short"):
        field = _fields(parents).get(str(key_path[-1]))
        is_required = field is not None and field.is_required()
        hint = "fill it" if is_required else "fill it, or leave the key out"
        return Problem(key_path, f"{name} is empty", hint)
    limits = {key: int(x) if isinstance(x, float) and x.is_integer() else x for key, x in context.items()}
    phrase = _PHRASES.get(details["type"])
    hint = f"it must be {phrase.format_map(limits)}" if phrase else details["msg"]
    if details["type"] in ("int_type", "float_type") and isinstance(value, str) and _NUMBER.fullmatch(value):
        hint = f"{hint}, without quotes"
    if details["type"] == "tuple_type" and isinstance(value, str | int | float):
        hint = f"{hint}: [{shortened(str(value))}]"
    return Problem(key_path, f"{name} is {found(value)}", hint, at_key)


_NUMBER = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")
_PHRASES: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys and values",
    "model_type": "a mapping of keys and values",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
"""What would be right, for each error of pydantic that a file can cause."""


def _resolve(
    loc: Iterable[str | int], model: type[BaseModel]
) -> tuple[KeyPath, bool, tuple[Any, ...], tuple[Any, ...]]:
    """What pydantic's `loc` means: key path without tags of unions, is it a key, types there, types above."""
    path: list[str | int] = []
    parents: tuple[Any, ...] = ()
    types: tuple[Any, ...] = (model,)
    for step in loc:
        tagged = tuple(kind for kind in _members(types) if step in _tags(kind))
        if step == "[key]":
            return tuple(path), True, _inner(parents, 0), parents
        if tagged:
            types = tuple(get_args(kind)[0] for kind in tagged)
        else:
            path.append(step)
            parents, types = types, _below(types, step)
    return tuple(path), False, types, parents


def _members(types: Iterable[Any]) -> tuple[Any, ...]:
    """The types with unions opened."""
    opened: list[Any] = []
    for kind in types:
        origin = get_origin(kind)
        if origin in (Union, UnionType):
            opened.extend(_members(get_args(kind)))
        elif origin is Annotated and not _tags(kind):
            opened.extend(_members(get_args(kind)[:1]))
        else:
            opened.append(kind)
    return tuple(opened)


def _tags(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is not Annotated:
        return ()
    return tuple(mark.tag for mark in kind.__metadata__ if isinstance(mark, Tag))


def _bare(types: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in _members(types))


def _below(types: Iterable[Any], step: str | int) -> tuple[Any, ...]:
    below: list[Any] = []
    for kind in _bare(types):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields
            below.extend(fields[step].annotation for step in (step,) if step in fields)
        else:
            below.extend(get_args(kind)[-1:] if get_origin(kind) is dict else get_args(kind)[:1])
    return tuple(below)


def _inner(types: Iterable[Any], index: int) -> tuple[Any, ...]:
    return tuple(get_args(kind)[index] for kind in _bare(types) if get_args(kind))


def _fields(types: Iterable[Any]) -> dict[str, FieldInfo]:
    models = (kind for kind in _bare(types) if isinstance(kind, type) and issubclass(kind, BaseModel))
    return {name: field for kind in models for name, field in kind.model_fields.items()}


def _literals(types: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(value for kind in _bare(types) if get_origin(kind) is Literal for value in get_args(kind))
