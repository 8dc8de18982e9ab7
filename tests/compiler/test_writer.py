"""The writer: what stands in the output folder afterwards, also when something goes wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.files import written
from tritonc.compiler.output import writer
from tritonc.compiler.output.difference import check_repository, require_own
from tritonc.compiler.output.writer import write_repository
from tritonc.compiler.repository import Content, Repository, Weights
from tritonc.schemas.errors import ModelFileError, OutputError

CONFIG = PurePosixPath("mlp/config.pbtxt")
WEIGHTS = PurePosixPath("mlp/1/model.onnx")


def repository(files: Mapping[str, Content]) -> Repository:
    return Repository.of(
        {PurePosixPath(path): content for path, content in files.items()},
        spec="test",
        spec_sha256="0" * 64,
        target="cpu",
    )


def weights_of(path: Path, content: bytes = b"weights") -> Weights:
    path.write_bytes(content)
    return Weights(path, hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture
def source(tmp_path: Path) -> Weights:
    return weights_of(tmp_path / "mlp.onnx")


@pytest.fixture
def mlp(source: Weights) -> Repository:
    return repository({str(CONFIG): b'name: "mlp"\n', str(WEIGHTS): source, "server.args": b"# none\n"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "build" / "cpu"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def differences(repo: Repository, out: Path, mode: str = "copy") -> list[tuple[str, str]]:
    return [(str(d.path), d.kind) for d in check_repository(repo, out, mode)]  # type: ignore[arg-type]


def test_everything_is_written_and_then_nothing_differs(mlp: Repository, out: Path) -> None:
    written = write_repository(mlp, out)
    assert {str(d.path) for d in written} == {
        "manifest.json",
        "mlp/1/model.onnx",
        "mlp/config.pbtxt",
        "server.args",
    }
    assert (out / WEIGHTS).read_bytes() == b"weights"
    assert check_repository(mlp, out) == ()
    assert names(out.parent) == ["cpu"]


def test_a_second_write_touches_nothing(mlp: Repository, out: Path) -> None:
    write_repository(mlp, out)
    before = {path: written(path) for path in (out, *out.rglob("*"))}
    assert write_repository(mlp, out) == ()
    assert {path: written(path) for path in before} == before


def test_a_changed_config_is_replaced_and_shown_as_a_diff(mlp: Repository, out: Path) -> None:
    write_repository(mlp, out)
    (out / CONFIG).write_text('name: "edited"\n')
    (difference,) = check_repository(mlp, out)
    assert difference.kind == "changed"
    assert '-name: "edited"\n+name: "mlp"\n' in difference.diff
    assert write_repository(mlp, out) == (difference,)
    assert (out / CONFIG).read_bytes() == b'name: "mlp"\n'


def test_weights_changed_on_disk_are_noticed_at_equal_size_and_time(mlp: Repository, out: Path) -> None:
    write_repository(mlp, out)
    status = (out / WEIGHTS).stat()
    (out / WEIGHTS).write_bytes(b"WEIGHTS")
    os.utime(out / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert differences(mlp, out) == [(str(WEIGHTS), "changed")]
    write_repository(mlp, out)
    assert (out / WEIGHTS).read_bytes() == b"weights"


def test_a_model_that_left_the_repository_leaves_the_folder(mlp: Repository, out: Path) -> None:
    write_repository(repository({**as_text(mlp), "old/config.pbtxt": b"", "old/1/m.bin": b"1"}), out)
    removed = write_repository(mlp, out)
    assert ("old/config.pbtxt", "extra") in [(str(d.path), d.kind) for d in removed]
    assert not (out / "old").exists()
    assert (out / CONFIG).exists()


def as_text(repo: Repository) -> dict[str, Content]:
    return {str(path): content for path, content in repo.files.items() if path.name != "manifest.json"}


@pytest.mark.parametrize("place", ["notes.txt", "mlp/notes.txt", "mlp/1/old.onnx", "another/file"])
def test_a_file_that_tritonc_did_not_write_stops_it(mlp: Repository, out: Path, place: str) -> None:
    write_repository(mlp, out)
    (out / place).parent.mkdir(exist_ok=True)
    (out / place).write_text("mine")
    (out / CONFIG).write_text("edited")
    before = tree(out)
    with pytest.raises(OutputError, match=f"did not write: {place}"):
        write_repository(mlp, out)
    assert tree(out) == before


def test_a_link_in_the_folder_is_not_followed(mlp: Repository, out: Path, tmp_path: Path) -> None:
    write_repository(mlp, out)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.pbtxt").write_text("mine")
    shutil.rmtree(out / "mlp")
    (out / "mlp").symlink_to(outside)
    with pytest.raises(OutputError, match="did not write: mlp"):
        write_repository(mlp, out)
    assert tree(outside) == {"config.pbtxt": b"mine"}


def test_a_link_in_the_place_of_a_file_is_a_change_that_only_a_person_can_undo(
    mlp: Repository, out: Path, source: Weights
) -> None:
    write_repository(mlp, out)
    (out / WEIGHTS).unlink()
    (out / WEIGHTS).symlink_to(source.path)
    assert differences(mlp, out) == [(str(WEIGHTS), "changed")]
    with pytest.raises(OutputError, match="did not write"):
        write_repository(mlp, out)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_an_output_folder_that_is_none_is_refused(
    mlp: Repository, out: Path, tmp_path: Path, kind: str
) -> None:
    out.parent.mkdir()
    if kind == "file":
        out.write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="not a folder"):
        write_repository(mlp, out)
    assert names(out.parent) == ["cpu"]


def test_a_clone_without_manifest_and_weights_is_taken_over(mlp: Repository, out: Path) -> None:
    write_repository(mlp, out)
    (out / "manifest.json").unlink()
    (out / WEIGHTS).unlink()
    require_own(mlp, out)
    write_repository(mlp, out)
    assert check_repository(mlp, out) == ()


def test_a_broken_manifest_owns_nothing(mlp: Repository, out: Path) -> None:
    write_repository(mlp, out)
    (out / "manifest.json").write_text('{"schema_version": 1, "files": []}')
    with pytest.raises(OutputError, match=r"manifest\.json"):
        write_repository(mlp, out)


def test_a_manifest_cannot_claim_files_outside_the_folder(mlp: Repository, out: Path, tmp_path: Path) -> None:
    write_repository(mlp, out)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    record = f'"../../victim": {{"sha256": "{"0" * 64}", "size_bytes": 4}},'
    manifest = (out / "manifest.json").read_text().replace('"files": {', f'"files": {{\n{record}')
    (out / "manifest.json").write_text(manifest)
    write_repository(mlp, out)
    assert victim.read_text() == "mine"


def test_an_empty_folder_is_extra_since_triton_would_take_it_for_a_model(mlp: Repository, out: Path) -> None:
    write_repository(mlp, out)
    (out / "empty").mkdir()
    assert differences(mlp, out) == [("empty", "extra")]
    write_repository(mlp, out)
    assert not (out / "empty").exists()


def test_a_mounted_volume_may_have_its_lost_and_found(mlp: Repository, out: Path) -> None:
    (out / "lost+found").mkdir(parents=True)
    assert ("lost+found", "extra") not in differences(mlp, out)


class TestWeightsModes:
    def test_a_copy_is_a_file_of_its_own(self, mlp: Repository, out: Path, source: Weights) -> None:
        write_repository(mlp, out, "copy")
        assert not (out / WEIGHTS).samefile(source.path)

    def test_a_link_is_the_same_file(self, mlp: Repository, out: Path, source: Weights) -> None:
        write_repository(mlp, out, "link")
        assert (out / WEIGHTS).samefile(source.path)
        assert not (out / WEIGHTS).is_symlink()
        assert write_repository(mlp, out, "link") == ()

    def test_links_become_copies_where_copies_are_asked(
        self, mlp: Repository, out: Path, source: Weights
    ) -> None:
        write_repository(mlp, out, "link")
        write_repository(mlp, out, "copy")
        assert not (out / WEIGHTS).samefile(source.path)
        assert source.path.read_bytes() == b"weights"

    def test_a_link_across_file_systems_is_a_copy(
        self, mlp: Repository, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        shm = Path("/dev/shm")
        if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path_factory.getbasetemp().stat().st_dev:
            pytest.skip("no second file system to write to")
        out = shm / f"tritonc-test-{os.getpid()}"
        try:
            write_repository(mlp, out, "link")
            assert (out / WEIGHTS).read_bytes() == b"weights"
            assert write_repository(mlp, out, "link") == ()
        finally:
            shutil.rmtree(out)

    def test_omitted_weights_are_listed_but_not_written(self, mlp: Repository, out: Path) -> None:
        write_repository(mlp, out, "omit")
        assert not (out / WEIGHTS).exists()
        assert str(WEIGHTS) in (out / "manifest.json").read_text()
        assert write_repository(mlp, out, "omit") == ()
        assert differences(mlp, out, "copy") == [(str(WEIGHTS), "missing")]

    def test_omit_leaves_right_weights_and_drops_wrong_ones(self, mlp: Repository, out: Path) -> None:
        write_repository(mlp, out, "copy")
        (out / CONFIG).write_text("edited")
        write_repository(mlp, out, "omit")
        assert (out / WEIGHTS).read_bytes() == b"weights"
        (out / WEIGHTS).write_bytes(b"others!")
        write_repository(mlp, out, "omit")
        assert not (out / WEIGHTS).exists()

    def test_rewriting_a_config_does_not_copy_unchanged_weights(self, mlp: Repository, out: Path) -> None:
        write_repository(mlp, out)
        inode = (out / WEIGHTS).stat().st_ino
        (out / CONFIG).write_text("edited")
        write_repository(mlp, out)
        assert (out / WEIGHTS).stat().st_ino == inode

    def test_weights_that_changed_since_they_were_hashed_are_an_error(
        self, mlp: Repository, out: Path, source: Weights
    ) -> None:
        source.path.write_bytes(b"longer than before")
        with pytest.raises(ModelFileError, match="changed while"):
            write_repository(mlp, out)
        source.path.unlink()
        with pytest.raises(ModelFileError, match="cannot be read"):
            write_repository(mlp, out)
        assert not out.parent.exists()


class TestInterrupted:
    """What a run that was killed leaves behind, and what the next one makes of it."""

    def test_between_the_two_renames_yesterdays_repository_comes_back(
        self, mlp: Repository, out: Path
    ) -> None:
        write_repository(mlp, out)
        out.rename(out.with_name(".cpu.tritonc-old"))
        shutil.copytree(out.with_name(".cpu.tritonc-old"), out.with_name(".cpu.tritonc-new"))
        assert write_repository(mlp, out) == ()
        assert names(out.parent) == ["cpu"]

    def test_after_the_swap_the_old_one_goes(self, mlp: Repository, out: Path) -> None:
        write_repository(mlp, out)
        shutil.copytree(out, out.with_name(".cpu.tritonc-new"))
        assert write_repository(mlp, out) == ()
        assert names(out.parent) == ["cpu"]

    def test_a_half_written_new_one_goes(self, mlp: Repository, out: Path) -> None:
        half = out.with_name(".cpu.tritonc-new")
        half.mkdir(parents=True)
        (half / "config.pbtxt").write_text("half")
        write_repository(mlp, out)
        assert names(out.parent) == ["cpu"]

    def test_inside_a_mounted_folder_each_model_comes_back(self, mlp: Repository, out: Path) -> None:
        write_repository(mlp, out)
        (out / "mlp").rename(out / ".mlp.tritonc-old")
        (out / ".mlp.tritonc-new").mkdir()
        assert write_repository(mlp, out) == ()
        assert check_repository(mlp, out) == ()
        assert names(out) == ["manifest.json", "mlp", "server.args"]

    @pytest.mark.parametrize(
        ("step", "exchange"),
        [
            ("staging", True),
            ("syncfs", True),
            ("renameat2", True),
            ("removal", True),
            ("first rename", False),
            ("second rename", False),
            ("removal", False),
        ],
    )
    def test_killed_at_any_step_it_loses_nothing(self, tmp_path: Path, step: str, exchange: bool) -> None:
        """A child that dies at the step; Python's audit events say where it is, nothing is patched."""
        out = tmp_path / "build" / "cpu"
        old, new = repository({"mlp/config.pbtxt": b"old"}), repository({"mlp/config.pbtxt": b"new"})
        write_repository(old, out)
        died = child(
            f"DIE_AT, EXCHANGE = {step!r}, {exchange}\n"
            "write_repository(repository({'mlp/config.pbtxt': b'new'}), OUT)",
            out,
        )
        assert died.returncode == -signal.SIGKILL
        last = out if out.exists() else out.with_name(".cpu.tritonc-old")
        assert (last / CONFIG).read_bytes() == (b"new" if step == "removal" else b"old")
        write_repository(new, out)
        assert check_repository(new, out) == ()
        assert names(out.parent) == ["cpu"]


CHILD = """
import os, resource, signal, sys
from pathlib import Path, PurePosixPath
from tritonc.compiler.repository import Repository
from tritonc.compiler.output.writer import write_repository
from tritonc.schemas.errors import TritoncError
OUT = Path({out!r})
DIE_AT, EXCHANGE, RENAMES = "", True, ["first rename", "second rename"]
def repository(files):
    files = {{PurePosixPath(path): content for path, content in files.items()}}
    return Repository.of(files, spec="test", spec_sha256="0" * 64, target="cpu")
def hook(event, args):
    step = ""
    if event == "open" and "tritonc-new" in str(args[0]):
        step = "staging"
    elif event == "ctypes.dlsym":
        step = args[1]
        if step == "renameat2" and not EXCHANGE:
            raise AttributeError("as on a system without it")
    elif event == "os.rename":
        step = RENAMES.pop(0) if RENAMES else ""
    elif event == "shutil.rmtree":
        step = "removal"
    if DIE_AT and step == DIE_AT:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
try:
{body}
except TritoncError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def child(body: str, out: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Runs `body` with the writer in a process of its own, with `prefix` (such as `setpriv …`) before it."""
    code = CHILD.format(out=str(out), body=textwrap.indent(body, "    "))
    return subprocess.run(
        [*prefix, sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


class TestDiskFull:
    def test_nothing_is_half_written(self, tmp_path: Path) -> None:
        out = tmp_path / "build" / "cpu"
        write_repository(repository({"mlp/config.pbtxt": b"old"}), out)
        result = child(
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "write_repository(repository({'a/config.pbtxt': b'a', 'b/config.pbtxt': b'b' * 10000}), OUT)",
            out,
        )
        assert result.returncode == 3, result.stderr
        assert "nothing was changed; free some disk space" in result.stdout
        assert names(out.parent) == ["cpu"]
        assert tree(out).keys() == {"mlp/config.pbtxt", "manifest.json"}

    def test_a_first_build_leaves_no_folder(self, tmp_path: Path) -> None:
        result = child(
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))\n"
            "write_repository(repository({'a/config.pbtxt': b'abc'}), OUT)",
            tmp_path / "deep" / "build" / "cpu",
        )
        assert result.returncode == 3, result.stderr
        assert names(tmp_path) == []


@pytest.fixture
def as_anyone() -> list[str]:
    """What to put before a command so that it may not read or write where modes forbid it."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0:
        return []
    if not setpriv:
        pytest.skip("root may read and write everywhere, and there is no setpriv to give that up")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]


def test_a_writable_folder_in_one_that_is_not_is_written(tmp_path: Path, as_anyone: list[str]) -> None:
    parent = tmp_path / "locked"
    (parent / "cpu").mkdir(parents=True)
    parent.chmod(0o555)
    result = child("write_repository(repository({'a/config.pbtxt': b'a'}), OUT)", parent / "cpu", *as_anyone)
    assert result.returncode == 0, result.stderr
    assert names(parent) == ["cpu"]
    assert tree(parent / "cpu").keys() == {"a/config.pbtxt", "manifest.json"}


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path, as_anyone: list[str]) -> None:
    parent = tmp_path / "locked"
    parent.mkdir(mode=0o555)
    result = child("write_repository(repository({'a/config.pbtxt': b'a'}), OUT)", parent / "cpu", *as_anyone)
    assert result.returncode == 2, result.stderr
    assert "is not writable" in result.stdout
    assert names(parent) == []


def test_a_file_that_is_not_readable_is_named(tmp_path: Path, as_anyone: list[str]) -> None:
    out = tmp_path / "cpu"
    write_repository(repository({"a/config.pbtxt": b"a"}), out)
    (out / "a/config.pbtxt").chmod(0)
    result = child("write_repository(repository({'a/config.pbtxt': b'a'}), OUT)", out, *as_anyone)
    assert result.returncode == 2, result.stderr
    assert f"is not readable ({out}/a/config.pbtxt: Permission denied); make it readable" in result.stdout


class TestMountPoint:
    def test_each_top_folder_and_file_is_replaced(self, mlp: Repository, out: Path) -> None:
        """The steps themselves, in a folder that could be renamed as well."""
        write_repository(repository({**as_text(mlp), "old/config.pbtxt": b"", "server.args": b"old"}), out)
        changed = {difference.path for difference in check_repository(mlp, out)}
        inode = out.stat().st_ino
        writer._swap_entries(mlp, out, "copy", changed, durable=True)
        assert check_repository(mlp, out) == ()
        assert out.stat().st_ino == inode
        assert names(out) == ["manifest.json", "mlp", "server.args"]

    def test_an_empty_repository_empties_the_folder(self, mlp: Repository, out: Path) -> None:
        write_repository(mlp, out)
        writer._swap_entries(Repository({}), out, "copy", set(mlp.files), durable=True)
        assert names(out) == []

    def test_weights_that_cannot_be_read_change_no_model(
        self, mlp: Repository, out: Path, source: Weights
    ) -> None:
        write_repository(repository({"mlp/config.pbtxt": b"old"}), out)
        source.path.unlink()
        changed = {difference.path for difference in check_repository(mlp, out)}
        with pytest.raises(ModelFileError):
            writer._swap_entries(mlp, out, "copy", changed, durable=True)
        assert tree(out).keys() == {"mlp/config.pbtxt", "manifest.json"}
        assert (out / CONFIG).read_bytes() == b"old"

    def test_models_are_swapped_one_by_one(self, tmp_path: Path) -> None:
        out = tmp_path / "cpu"
        out.mkdir()
        body = """
            first = repository({"a/config.pbtxt": b"a", "b/config.pbtxt": b"b", "server.args": b"x"})
            second = repository({"a/config.pbtxt": b"A", "c/config.pbtxt": b"c", "server.args": b"y"})
            assert len(write_repository(first, OUT)) == 4
            kept = os.stat(OUT).st_ino
            write_repository(second, OUT)
            assert os.stat(OUT).st_ino == kept
            assert write_repository(second, OUT) == ()
            print(sorted(os.listdir(OUT)), os.listdir(OUT.parent), (OUT / "a/config.pbtxt").read_text())
        """
        unshare, script = shutil.which("unshare"), 'mount --bind "$1" "$1" && shift && exec "$@"'
        if not unshare:
            pytest.skip("no unshare to mount a folder with")
        prefix = [unshare, "--mount", "--map-root-user", "sh", "-c", script, "sh", str(out)]
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine does not let a test mount a folder")
        result = child(textwrap.dedent(body), out, *prefix)
        assert result.returncode == 0, result.stderr
        assert result.stdout == "['a', 'c', 'manifest.json', 'server.args'] ['cpu'] A\n"


def test_two_builds_at_once_end_with_one_whole_repository(tmp_path: Path) -> None:
    out = tmp_path / "build" / "cpu"
    body = """
        for i in range(20):
            write_repository(repository({"a": b"%d" % i, "x/y": b"%d" % i}), OUT, durable=False)
    """
    code = CHILD.format(out=str(out), body=textwrap.indent(textwrap.dedent(body), "    "))
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert tree(out)["a"] == tree(out)["x/y"] == b"19"
    assert names(out.parent) == ["cpu"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    out = tmp_path / "build" / "cpu"
    source = weights_of(tmp_path / "source.onnx")
    source.path.chmod(0o600)
    before = os.umask(0o027)
    try:
        write_repository(repository({"m/config.pbtxt": b"", "m/1/model.onnx": source}), out)
    finally:
        os.umask(before)
    assert (out / "m/1/model.onnx").stat().st_mode & 0o777 == 0o640
    assert (out / "m/config.pbtxt").stat().st_mode & 0o777 == 0o640
    assert (out / "m").stat().st_mode & 0o777 == 0o750


NAMES = st.sampled_from(["a", "b", "a/1", "c.txt", "ü", "x/y/z"])
TREES = st.dictionaries(NAMES, st.binary(max_size=4), max_size=5)


@settings(deadline=None, max_examples=50)
@given(TREES, TREES)
def test_any_repository_replaces_any_other(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    import tempfile

    def writable(files: dict[str, bytes]) -> dict[str, Content]:
        return {path: content for path, content in files.items() if not (path == "a" and "a/1" in files)}

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        write_repository(repository(writable(before)), out, durable=False)
        write_repository(repository(writable(after)), out, durable=False)
        found = tree(out)
        found.pop("manifest.json")
        assert found == writable(after)
        assert names(out.parent) == ["out"]
