"""JSON Schemas of the spec and the lock, for editors and other programs; generated from the models.

Run `python -m tritonc.schemas.json_schema` to rewrite the committed copies.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tritonc.schemas.lock import Lock
from tritonc.schemas.spec import Spec

SchemaName = Literal["spec", "lock"]

_MODELS: Mapping[SchemaName, type[BaseModel]] = {"spec": Spec, "lock": Lock}
_DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest dialect that every common editor knows."""


def json_schema(name: SchemaName) -> dict[str, Any]:
    """The JSON Schema (draft 7) of a file format; descriptions are the models' docstrings."""
    model = _MODELS[name]
    schema = model.model_json_schema(ref_template="#/definitions/{model}")
    classes = {kind.__name__: kind for kind in _models_below(BaseModel)}
    for title, definition in [(model.__name__, schema), *schema.get("$defs", {}).items()]:
        _describe(definition, classes.get(title))
    schema["definitions"] = dict(sorted(schema.pop("$defs", {}).items()))
    schema["title"] = f"tritonc {name}"
    return {"$schema": _DIALECT, **_draft_7(schema, is_root=True)}


def json_schema_text(name: SchemaName) -> str:
    """The text of the committed copy `<name>.schema.json`."""
    return json.dumps(json_schema(name), indent=2, ensure_ascii=False) + "\n"


def committed_copy(name: SchemaName) -> Path:
    """Where the committed copy of a schema is."""
    return Path(__file__).with_name(f"{name}.schema.json")


def _models_below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for kind in model.__subclasses__():
        if kind.__module__.startswith("tritonc.schemas."):
            yield kind
        yield from _models_below(kind)


def _describe(definition: dict[str, Any], model: type[BaseModel] | None) -> None:
    """Gives each property the docstring that stands below its field in the source."""
    texts: dict[str, str] = {}
    for kind in reversed(model.__mro__ if model else ()):
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            texts |= _field_docstrings(kind)
    for name, schema in definition.get("properties", {}).items():
        if name in texts:
            schema["description"] = texts[name]


def _field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    (definition,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for pair in pairwise(definition.body):
        match pair:
            case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text)))):
                texts[name] = inspect.cleandoc(text)
    return texts


def _draft_7(schema: Any, *, is_root: bool = False) -> Any:
    """The same schema in draft 7's words."""
    if isinstance(schema, list):
        return [_draft_7(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _draft_7(value) for key, value in schema.items() if key != "discriminator"}
    if not is_root and isinstance(schema.get("title"), str):
        del schema["title"]
    if "prefixItems" in schema:
        schema["items"] = schema.pop("prefixItems")
    if isinstance(schema.get("patternProperties"), dict):
        schema.setdefault("additionalProperties", False)
    if "$ref" in schema and len(schema) > 1:  # draft 7 ignores what stands beside a $ref
        schema["allOf"] = [{"$ref": schema.pop("$ref")}]
    return schema


if __name__ == "__main__":
    for schema_name in _MODELS:
        committed_copy(schema_name).write_text(json_schema_text(schema_name), encoding="utf-8")
