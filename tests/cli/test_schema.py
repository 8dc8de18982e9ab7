"""`tritonc schema`."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from tritonc.cli import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("document", ["spec", "lock"])
def test_prints_the_committed_schema(document: str) -> None:
    result = CliRunner().invoke(cli, ["schema", document])
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    jsonschema.validators.validator_for(schema).check_schema(schema)
    assert schema == json.loads((ROOT / "schemas" / f"{document}.schema.json").read_text())


def test_prints_that_of_the_spec_by_default() -> None:
    assert CliRunner().invoke(cli, ["schema"]).stdout == CliRunner().invoke(cli, ["schema", "spec"]).stdout


def test_another_document_is_an_error_that_lists_those_there_are() -> None:
    result = CliRunner().invoke(cli, ["schema", "lok"])
    assert result.exit_code == 2
    assert "'lok' is not one of 'spec', 'lock'" in result.stderr
