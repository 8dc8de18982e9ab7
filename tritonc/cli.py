"""The command line: the group `cli`, its lazily imported commands, and the one place that prints errors.

A command lives in `tritonc/commands/<name>.py` as a click command called `command` and has a line in
`COMMANDS`. The module is imported only when that command runs or prints its help, so it may import what it
needs at its top, except the heavy packages (optuna, mlflow, onnxruntime …), which stay inside the functions
that use them:

    @click.command(epilog="Example: tritonc build --check")
    @click.argument("spec", type=click.Path(path_type=Path), default="spec.yaml")
    @click.option("--check", is_flag=True, help="Write nothing; exit 1 if the tree on disk differs.")
    @click.pass_obj
    def command(output: Output, spec: Path, check: bool) -> int | None:
        \"\"\"Compile the spec (and its lock) to a model repository.\"\"\"
        changes = check_repository(...)
        output.result({"changes": changes}, render_changes(changes))
        return 1 if changes else 0

- What it returns is the exit code; None is 0. (`ctx.exit(1)` does the same.)
- What a person can act on is raised as a `TritoncError` and printed here, one line a problem, as
  `error: file:line:col: what; hint`. An OSError that means "full disk" and the like exits 3. Any other
  exception is a bug of tritonc: it is printed with its traceback, exit code 70.
- `output.result(document, text)` prints the result to standard output, as JSON or for a person;
  `output.note(line)` and `output.console` (rich) print to standard error; `output.is_live` says whether a
  live view may be drawn.
- `--output text|json` is understood before and after the command's name; the command gets it in `ctx.obj`.
  With `--output json` an error is a JSON document on standard output too, with null for what is not known
  (the lines for people still go to standard error):
  `{"schema_version": 1, "error": {"exit_code": 2, "problems": [{"what", "hint", "path", "line", "column",
  "key_path"}]}}`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import io
import itertools
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from tritonc import __version__
from tritonc.output import SCHEMA_VERSION, Output, print_json
from tritonc.schemas.errors import InputErrors, TritoncError, did_you_mean

COMMANDS = {
    "init": "Write a commented starter spec from model files.",
    "build": "Compile a spec (and its lock) to a model repository.",
    "candidates": "Compile candidate repositories, one folder each.",
    "tune": "Measure candidates on a real Triton, choose, lock and build.",
    "doctor": "Show what this machine can build and measure.",
    "schema": "Print the JSON Schema of the spec or the lock.",
}
"""Name and short help of every command, in the order in which a new user meets them."""

EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h."""
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""What a shell reports of a program whose reader went away (128 + SIGPIPE)."""

_ENVIRONMENT_ERRNOS = {
    errno.ENOSPC: "free some disk space, or point the output, TMPDIR or XDG_CACHE_HOME to another disk",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the system's table of open files is full",
    errno.EIO: "the disk reports errors",
    errno.EFBIG: "the limit of a file's size is reached: raise it (ulimit -f)",
    errno.EACCES: "change its permissions, or run as a user who may",
    errno.EPERM: "change its permissions, or run as a user who may",
}


def _set_format(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value:
        ctx.ensure_object(Output).format = "json" if value == "json" else "text"


def _output_option() -> click.Option:
    return click.Option(
        ["--output"],
        type=click.Choice(["text", "json"]),
        expose_value=False,
        is_eager=True,
        callback=_set_format,
        help="text (default) or one JSON document on standard output.",
    )


class LazyGroup(click.Group):
    """Imports a command's module when that command is used, and turns every exception into an exit code."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, with `--output` added; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tritonc.commands.{cmd_name}")
        command: click.Command = module.command
        command.name = cmd_name
        command.short_help = COMMANDS[cmd_name]
        if not any("--output" in parameter.opts for parameter in command.params):
            command.params.append(_output_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names.

        Raises:
            UsageError: there is none of that name; the message guesses the one that was meant.
        """
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"no command {name!r}; {did_you_mean(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parses the arguments, which prints where they are `--help` or `--version`."""
        try:
            return super().make_context(*args, **extra)
        except BrokenPipeError:  # click would make it exit code 1, which means something else here
            sys.exit(EXIT_BROKEN_PIPE)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command and returns its exit code (or None)."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # as in `make_context`
            sys.exit(EXIT_BROKEN_PIPE)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Runs the command line and exits with the code of its outcome (`docs/cli.md`)."""
        arguments = sys.argv[1:] if args is None else list(args)
        extra["standalone_mode"] = False
        try:
            code = super().main(arguments, *rest, **extra)
            sys.stdout.flush()
        except BaseException as error:  # noqa: BLE001  (the one place where everything ends)
            code = _report(error, as_json=_wants_json(arguments))
        _drop_unwritable()
        sys.exit(code or 0)


def _drop_unwritable() -> None:
    """Lets what cannot be written go nowhere: the interpreter flushes once more on its way out."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_broken_pipe(error: BaseException) -> bool:
    """Whether it is one, or the SystemExit(1) that rich makes of one."""
    return isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for JSON; they may be wrong in other ways, so they are not parsed."""
    return "--output=json" in arguments or ("--output", "json") in itertools.pairwise(arguments)


def _report(error: BaseException, *, as_json: bool) -> int:
    """Prints `error` and says the exit code, which stands also where `error` cannot be printed."""
    if _is_broken_pipe(error):
        return EXIT_BROKEN_PIPE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    problems, code = _problems(error)
    with contextlib.suppress(OSError):
        _print_for_people(error, problems, code)
    if as_json and not isinstance(error, click.exceptions.NoArgsIsHelpError):
        try:
            print_json(_error_document(code, [_problem_document(problem) for problem in problems]))
            sys.stdout.flush()
        except BrokenPipeError:
            return EXIT_BROKEN_PIPE
        except OSError:
            pass  # the lines for people say what is wrong
    return code


def _print_for_people(error: BaseException, problems: Sequence[TritoncError], code: int) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
    elif code == EXIT_INTERRUPTED:
        click.echo("interrupted", err=True)
    elif code == EXIT_BUG:
        _print_bug(error)
    else:
        if isinstance(error, click.UsageError) and error.ctx:
            click.echo(error.ctx.get_usage(), err=True)
        for problem in problems:
            click.echo(f"error: {problem}", err=True)


def _error_document(code: int, problems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "error": {"exit_code": code, "problems": list(problems)}}


def _problems(error: BaseException) -> tuple[list[TritoncError], int]:
    """The problems that `error` stands for, and the exit code."""
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return [TritoncError("interrupted", "run the same command again")], EXIT_INTERRUPTED
    if isinstance(error, InputErrors):
        return list(error), error.exit_code
    if isinstance(error, TritoncError):
        return [error], error.exit_code
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f"see `{context.command_path} --help`" if context else ""
        return [TritoncError(error.format_message().rstrip("."), hint)], error.exit_code
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT_ERRNOS:
        place = f"{error.filename}: " if error.filename else ""
        return [TritoncError(f"{place}{error.strerror}", _ENVIRONMENT_ERRNOS[error.errno])], 3
    if isinstance(error, FileNotFoundError) and error.filename is None:  # only getcwd() names no file
        return [TritoncError("the current folder was removed", "change to one that is there")], 3
    return [TritoncError(f"{type(error).__name__}: {error}", "this is a bug in tritonc")], EXIT_BUG


def _print_bug(error: BaseException) -> None:
    import traceback

    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.echo(
        f"error: this is a bug in tritonc {__version__}, not in your files; please open an issue in "
        "tritonc's repository with the lines above and the output of `tritonc doctor`",
        err=True,
    )


def _problem_document(problem: TritoncError) -> dict[str, Any]:
    location = getattr(problem, "location", None)
    key_path = getattr(problem, "key_path", None)
    return {
        "what": problem.what,
        "hint": problem.hint or None,
        "path": location.path if location else getattr(problem, "path", None),
        "line": location.line if location else None,
        "column": location.column if location else None,
        "key_path": list(key_path) if key_path is not None else None,
    }


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[_output_option()],
    epilog="Start with: tritonc init model.onnx; put the shapes, workload and slo of your clients into "
    "spec.yaml; tritonc tune. Exit codes: 0 done; 1 done, and the answer is no; 2 the input is wrong; 3 the "
    "environment is wrong; 130 interrupted.",
)
@click.version_option(__version__, "--version", prog_name="tritonc")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Compile a declarative spec to an NVIDIA Triton model repository, and tune it by measuring.

    A spec declares models, targets and SLOs. `build` compiles it, `tune` finds the best configuration on a
    real tritonserver and records it, with the evidence, in the lock beside the spec.
    """
    ctx.ensure_object(Output)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace")


def _interrupted(*_: object) -> NoReturn:
    """Ends the command in order, which may take a few seconds; Ctrl-C once more hurries and breaks nothing.

    Ignored, as the interpreter takes every other handler away before it is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


_COLLECT_EVERY = 100_000
"""Objects that are made before Python looks for cycles among the young ones; by default that is some
hundreds. Importing MLflow makes 300,000 that stay, and is a quarter quicker so."""


def main() -> NoReturn:
    """Entry point of the console script."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    # None is what Python makes of a stream that the caller has closed.
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal cannot show, as in the locale C, must not end a command whose work is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    gc.set_threshold(_COLLECT_EVERY)
    try:
        cli.main(prog_name="tritonc")
    finally:
        gc.freeze()  # or the interpreter looks through all of that again on its way out: a second
    raise AssertionError("unreachable: main exits")
