"""`tritonc schema`: the JSON Schemas, for editors and other tools."""

from __future__ import annotations

from typing import Literal

import click

from tritonc.output import Output, print_json


@click.command(epilog="Example: tritonc schema spec > spec.schema.json")
@click.argument("document", type=click.Choice(["spec", "lock"]), default="spec")
@click.pass_obj
def command(_output: Output, document: Literal["spec", "lock"]) -> None:
    """Print the JSON Schema of the spec (default) or of the lock.

    To have an editor complete and check a spec, save it and put this on the spec's first line:

        # yaml-language-server: $schema=spec.schema.json

    It does not know the names of backends, accelerators, precisions and knobs: `tritonc build` checks those.
    """
    from tritonc.schemas.json_schema import json_schema

    print_json(json_schema(document))
