"""`tritonc init`: a starter spec from model files."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import click

from tritonc.compiler.starter import StarterModel, StarterTarget, model_names, spec_name, starter_spec
from tritonc.output import Output
from tritonc.schemas.errors import InputErrors, ModelFileError, OutputError, TritoncError


@click.command(epilog="Example: tritonc init models/resnet.onnx models/detector.onnx")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "out",
    type=click.Path(path_type=Path, allow_dash=True),
    default="spec.yaml",
    show_default=True,
    help="The spec to write; its folder becomes the project and must contain the models. - prints it.",
)
@click.option("--force", is_flag=True, help="Replace a spec that is already there.")
@click.pass_obj
def command(output: Output, models: tuple[Path, ...], out: Path, force: bool) -> None:
    """Write a commented starter spec from ONNX model files.

    It states what the files say (inputs, outputs, batch axis), targets this machine, and has a comment
    wherever you have to decide. It builds as it is; before `tritonc tune`, put in what your clients send
    (shapes, workload) and the limits to keep (slo).
    """
    to_stdout = str(out) == "-"
    folder = Path() if to_stdout else out.parent
    if not to_stdout:
        _require_place(out, force)
    starters = _read_models(models, folder)
    text = starter_spec(spec_name(folder.resolve().name), starters, _this_machine())
    if to_stdout:
        output.result({"spec": text}, text)
        return
    _write(out, text)
    names = {starter.name: starter.source for starter in starters}
    lines = [f"{out}: {name} ({source})" for name, source in names.items()]
    at = "" if out == Path("spec.yaml") else f" {out}"
    output.result({"path": str(out), "models": names}, "\n".join([*lines, f"next: tritonc build{at}"]))


def _require_place(out: Path, force: bool) -> None:
    try:
        is_folder = out.is_dir()
    except OSError as err:
        raise _unwritable(out, err) from err
    if is_folder:
        raise OutputError(f"{out} is a folder", f"name the file too: -o {out / 'spec.yaml'}")
    if not force and os.path.lexists(out):
        raise OutputError(
            f"{out} is already there", "choose another name with -o, or replace it with --force"
        )
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is not a folder", "make it first, or choose another with -o")


def _read_models(paths: tuple[Path, ...], folder: Path) -> list[StarterModel]:
    """What each file says; every file that cannot be read is reported."""
    from tritonc.compiler.signature import signature_from_onnx

    starters: list[StarterModel] = []
    errors: list[TritoncError] = []
    for path, name in zip(paths, model_names([path.absolute() for path in paths]), strict=True):
        try:
            signature = signature_from_onnx(path)
            starters.append(StarterModel(name, _source(path, folder), signature))
        except TritoncError as error:
            errors += list(error) if isinstance(error, InputErrors) else [error]
    if errors:
        raise InputErrors(errors)
    return starters


def _source(path: Path, folder: Path) -> str:
    try:
        source = path.resolve().relative_to(folder.resolve()).as_posix()
        source.encode()
    except UnicodeEncodeError:
        raise ModelFileError(
            ascii(str(path)), "its name is not UTF-8, so that no spec can hold it", "rename the file"
        ) from None
    except ValueError:
        raise ModelFileError(
            path,
            f"lies outside the spec's folder {folder.resolve()}",
            "put the spec above the models (-o FOLDER/spec.yaml), or the model below the spec",
        ) from None
    return source


def _this_machine() -> StarterTarget:
    from tritonc.tuner.doctor import installed_backends
    from tritonc.tuner.hardware import this_machine

    machine = this_machine()
    memory_gib = max(1, machine.memory_bytes // 2**30)
    return StarterTarget(machine.usable_cores, memory_gib, installed_backends())


def _write(out: Path, text: str) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    except OSError as err:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(err, PermissionError) or err.errno == errno.ENAMETOOLONG:
            raise _unwritable(out, err) from err
        raise


def _unwritable(out: Path, err: OSError) -> OutputError:
    return OutputError(f"{out} cannot be written: {err.strerror}", "choose another place with -o")
