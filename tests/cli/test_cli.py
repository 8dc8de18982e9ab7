"""The group itself: help, errors, exit codes, JSON."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tests.conftest import ProjectFolder
from tests.models import mlp
from tritonc.cli import COMMANDS, LazyGroup, cli
from tritonc.output import Output, is_live
from tritonc.schemas.errors import (
    EngineError,
    InputErrors,
    Location,
    LockError,
    MissingExtraError,
    ModelFileError,
    SpecError,
    TritoncError,
)


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


def run_raising(error: BaseException, *args: str) -> Result:
    """A command line whose only command raises `error`."""

    class OneCommand(LazyGroup):
        def get_command(self, _ctx: click.Context, _name: str) -> click.Command:
            options: list[click.Parameter] = [click.Option(["--output"])]
            return click.Command("build", params=options, callback=lambda **_: raise_(error))

    @click.group(cls=OneCommand)
    @click.pass_context
    def group(ctx: click.Context) -> None:
        ctx.ensure_object(Output)

    return CliRunner().invoke(group, ["build", *args])


def raise_(error: BaseException) -> None:
    raise error


def spec_error(line: int, what: str) -> SpecError:
    return SpecError(Location("spec.yaml", line, 3), ("models", "m"), what, "write one")


def test_help_lists_every_command_in_order() -> None:
    result = run("--help")
    assert result.exit_code == 0
    places = [result.stdout.index(f"  {name} ") for name in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.stderr
    assert "Example: tritonc " in result.stdout
    assert "--output" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_an_unknown_command_names_the_near_one() -> None:
    result = run("biuld")
    assert result.exit_code == 2
    assert "no command 'biuld'; did you mean \"build\"?" in result.stderr


def test_an_unknown_option_points_to_the_help_of_its_command() -> None:
    result = run("schema", "--colour")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: No such option '--colour'; see `cli schema --help`"


def test_no_argument_shows_the_help_and_fails() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


def test_version_is_the_package_s() -> None:
    assert run("--version").stdout == "tritonc, version 0.1.0\n"


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (spec_error(4, "no source"), "error: spec.yaml:4:3: no source; write one", 2),
        (ModelFileError("a.onnx", "is a folder"), "error: a.onnx: is a folder", 2),
        (LockError("another version", "run tritonc tune"), "error: another version; run tritonc tune", 2),
        (EngineError("no server"), "error: no server", 3),
        (
            MissingExtraError("optuna", "tune"),
            "error: optuna is not installed; run: pip install 'tritonc[tune]'",
            3,
        ),
    ],
)
def test_an_error_a_person_can_act_on_is_one_line(error: TritoncError, line: str, code: int) -> None:
    result = run_raising(error)
    assert result.exit_code == code
    assert result.stderr == line + "\n"
    assert result.stdout == ""


def test_every_problem_of_an_input_is_a_line_sorted_by_place() -> None:
    result = run_raising(InputErrors([spec_error(9, "late"), spec_error(2, "early")]))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: spec.yaml:2:3: early; write one",
        "error: spec.yaml:9:3: late; write one",
    ]


def test_a_full_disk_is_the_environment_s_fault() -> None:
    result = run_raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "build/x"))
    assert result.exit_code == 3
    assert result.stderr.startswith("error: build/x: No space left on device; free some disk space")


def test_a_bug_shows_its_traceback_and_where_to_report_it() -> None:
    result = run_raising(KeyError("instance_count"))
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert "this is a bug in tritonc 0.1.0, not in your files" in result.stderr


def test_an_interrupt_exits_130() -> None:
    result = run_raising(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted"
    assert result.stdout == ""
    document = json.loads(run_raising(KeyboardInterrupt(), "--output", "json").stdout)
    assert document["error"]["exit_code"] == 130


def test_the_returned_number_is_the_exit_code() -> None:
    assert run_raising(SystemExit(1)).exit_code == 1


def test_with_json_an_error_is_a_document_too() -> None:
    for args in (["--output", "json", "biuld"], ["--output=json", "biuld"]):
        result = run(*args)
        assert result.exit_code == 2
        document = json.loads(result.stdout)
        assert document["schema_version"] == 1
        assert document["error"]["exit_code"] == 2
        assert "no command 'biuld'" in document["error"]["problems"][0]["what"]
        assert "error: no command" in result.stderr


def test_a_document_of_errors_has_every_place(tmp_path: Path) -> None:
    model = tmp_path / "no.onnx"
    result = run("init", str(model), "-o", str(tmp_path / "spec.yaml"), "--output", "json")
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["error"]["exit_code"] == 2
    (problem,) = document["error"]["problems"]
    assert set(problem) == {"what", "hint", "path", "line", "column", "key_path"}
    assert problem["path"] == str(model)


def run_process(*args: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with pipes where `streams` say nothing else."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([sys.executable, "-m", "tritonc", *args], text=True, check=False, **streams)


UNBUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"])


@UNBUFFERED
@pytest.mark.parametrize(
    "command", ["schema spec", "doctor", "--help", "build --help", "--version", "--output json build no.yaml"]
)
def test_a_reader_that_goes_away_is_not_an_error_message(command: str, unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = run_process(*command.split(), stdout=closed, env=environment)
    assert done.returncode == 141
    assert [line for line in done.stderr.splitlines() if not line.startswith("error: no.yaml: ")] == []


@UNBUFFERED
@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        ("--output json build no.yaml", 2, "error: no.yaml: there is no such file; "),
        ("--output json schema spec", 3, "error: No space left on device; "),
        ("--help", 3, "error: No space left on device; "),
    ],
)
def test_a_full_standard_output_leaves_the_error_and_its_exit_code(
    command: str, code: int, line: str, unbuffered: str
) -> None:
    with Path("/dev/full").open("w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = run_process(*command.split(), stdout=full, env=environment)
    assert done.returncode == code
    (said,) = done.stderr.splitlines()
    assert said.startswith(line)


def test_a_full_standard_error_leaves_the_exit_code_and_the_document() -> None:
    with Path("/dev/full").open("w") as full:
        done = run_process("--output", "json", "build", "no.yaml", stderr=full)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["exit_code"] == 2


@pytest.mark.parametrize("command", ["doctor", "init x.onnx"])
def test_a_current_folder_that_was_removed_is_the_environment_s_fault(tmp_path: Path, command: str) -> None:
    shell = f'mkdir gone && cd gone && rmdir ../gone && "$0" -m tritonc {command}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr == "error: the current folder was removed; change to one that is there\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "code"),
    [("schema spec", 0), ("doctor", 0), ("--output json doctor", 0), ("--output json build no.yaml", 2)],
)
def test_a_closed_stream_is_one_that_nobody_reads(command: str, code: int, closed: str) -> None:
    shell = f'"$0" -m tritonc {command} {closed}'
    done = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "is_terminal", "live"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "CI": "true"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({}, False, False),
    ],
)
def test_live_views_only_where_they_can_be_seen(
    environment: dict[str, str], is_terminal: bool, live: bool
) -> None:
    assert is_live(environment, is_terminal) is live


def test_no_colour_codes_without_a_terminal() -> None:
    assert "\x1b" not in run("doctor").stdout


@pytest.mark.parametrize("path", ["é.yaml", "\udcff.yaml"])
def test_json_is_json_whatever_standard_output_can_show(path: str) -> None:
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "tritonc", "--output", "json", "build", path],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert json.loads(done.stdout)["error"]["problems"][0]["what"] == f"{path}: there is no such file"


def test_what_standard_output_cannot_show_ends_no_command(project: Any) -> None:
    p: ProjectFolder = project({"é.onnx": mlp()})
    done = subprocess.run(
        [sys.executable, "-m", "tritonc", "init", "é.onnx"],
        cwd=p.folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\\xe9.onnx" in done.stdout
