"""Commands that tritonc says to type next, made from those that were typed."""

from __future__ import annotations

from typing import Any

import click

from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.cli import cli
from tritonc.typed import typed_command

SPEC = """\
apiVersion: tritonc/v1
name: test
models: {mlp: {source: mlp.onnx}}
targets: {cpu: {device: cpu, cores: 2, backends: {onnxruntime: {accelerators: [none]}}}}
"""


def test_an_interrupted_run_goes_on_with_all_that_was_typed_but_fresh():
    typed = ["my spec.yaml", "--engine", "local", "--allow-outside", "--fresh", "--timeout", "15m"]
    typed += ["--target", "a", "--target", "b", "--output", "json"]
    command = cli.get_command(click.Context(cli), "tune")
    assert command is not None
    with command.make_context("tune", typed) as context:
        assert typed_command(context, "fresh") == (
            "tritonc tune 'my spec.yaml' --timeout 900.0 --target a --target b --engine local --allow-outside"
        )


def test_what_was_checked_is_what_is_built_next(project: Any):
    p: ProjectFolder = project({"spec.yaml": SPEC, "mlp.onnx": mlp()})
    spec, out = p.path("spec.yaml"), p.path("there")
    checked = p.run("build", spec, "--check", "-o", out, "--target", "cpu", "--weights", "omit")
    assert checked.exit_code == 1
    assert checked.stdout.endswith(f"next: tritonc build {spec} -o {out} --target cpu --weights omit\n")
