"""The command line that is running, to be typed again with a difference."""

from __future__ import annotations

import shlex

import click
from click.core import ParameterSource


def typed_command(context: click.Context, *without: str) -> str:
    """What was typed, fit for a shell, without the options of these names and without `--output`."""
    words = ["tritonc", context.info_name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        is_typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not is_typed or name not in context.params or name in without:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Option):
            for one in value if parameter.multiple else (value,):
                words += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], str(one)]
        else:
            words.append(str(value))
    return shlex.join(words)
