"""The committed JSON Schemas: current, draft 7, and they accept what the models accept."""

import json
from typing import get_args

import pytest
from jsonschema import Draft7Validator

from tritonc.schemas.json_schema import SchemaName, committed_copy, json_schema, json_schema_text

NAMES = get_args(SchemaName)


@pytest.mark.parametrize("name", NAMES)
def test_committed_copy_is_current(name: SchemaName) -> None:
    text = committed_copy(name).read_text(encoding="utf-8")
    assert text == json_schema_text(name), "run: python -m tritonc.schemas.json_schema"


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_draft_7(name: SchemaName) -> None:
    schema = json_schema(name)
    Draft7Validator.check_schema(schema)
    text = json.dumps(schema)
    for newer in ("$defs", "prefixItems", "discriminator", "unevaluated", "dependentRequired"):
        assert f'"{newer}' not in text


def test_editors_show_what_a_key_is_for() -> None:
    schema = json_schema("spec")
    model = schema["definitions"]["ModelSpec"]
    assert model["properties"]["source"]["description"] == "The model file, relative to the spec's folder."
    assert model["description"].startswith("One model: ")
    assert model["additionalProperties"] is False


def test_wrong_specs_are_wrong_for_editors_too() -> None:
    validator = Draft7Validator(json_schema("spec"))
    spec = {
        "apiVersion": "tritonc/v1",
        "name": "x",
        "models": {"m": {"source": "m.onnx", "data": {"x": {"range": [0, 1]}}}},
        "targets": {"cpu": {"device": "cpu", "memory": "8GiB", "backends": {"onnxruntime": {}}}},
    }
    assert validator.is_valid(spec)
    for wrong in (
        {**spec, "models": {"../m": {"source": "m.onnx"}}},
        {**spec, "models": {"m": {"source": "m.onnx", "sorce": 1}}},
        {**spec, "models": {"m": {"source": "m.onnx", "data": {"x": {"range": [0, 1, 2]}}}}},
        {**spec, "targets": {"cpu": {"device": "cpu", "memory": "8 gigs", "backends": {"onnxruntime": {}}}}},
        {**spec, "targets": {"cpu": {"device": "cpu", "triton": 24.1, "backends": {"onnxruntime": {}}}}},
        {**spec, "search": {"instance_count": []}},
    ):
        assert not validator.is_valid(wrong), wrong
