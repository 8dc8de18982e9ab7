"""YAML reading: what data comes out, where it stands, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonc.schemas.errors import InputErrors, TritoncError
from tritonc.schemas.yaml_source import MAX_BYTES, YamlSource, parse_yaml, read_yaml

FILE = Path("s.yaml")


def parse(text: str) -> YamlSource:
    return parse_yaml(text.encode(), FILE)


def refusal(content: bytes) -> str:
    with pytest.raises(InputErrors) as caught:
        parse_yaml(content, FILE)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: ~", {"a": None}),
        ("a:", {"a": None}),
        ("a: [true, False, yes, on]", {"a": (True, False, "yes", "on")}),
        ("a: [1, -2, +3, 0o17, 0x1F, 017, 1_000]", {"a": (1, -2, 3, 15, 31, 17, "1_000")}),
        ("a: [1.5, 1e3, 1.0e-2, .5, -.inf, 1.2.3]", {"a": (1.5, 1000.0, 0.01, 0.5, float("-inf"), "1.2.3")}),
        ("a: 2026-11-20", {"a": "2026-11-20"}),
        ("a: '1'", {"a": "1"}),
        ("a: !!str 24.10", {"a": "24.10"}),
        ("a: !!int '3'\nb: !!float 3\nc: !!null ~\nd: !!bool true", {"a": 3, "b": 3.0, "c": None, "d": True}),
        ("a: ! 24.10", {"a": "24.10"}),
        ("a: !!map {b: !!seq [1]}", {"a": {"b": (1,)}}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x 5\nc: *x", {"a": 5, "c": 5}),
        ("- 1\n- [2]\n", (1, (2,))),
        ("%YAML 1.2\n---\na: 1\n...\n", {"a": 1}),
        ("x: &x {a: 1, b: 2}\ny:\n  b: 3\n  <<: *x\n", {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}}),
        ("x: &x {a: 1}\ny:\n  <<: [*x, {a: 2, c: 4}]\n", {"x": {"a": 1}, "y": {"a": 1, "c": 4}}),
        ("'<<': 1", {"<<": 1}),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    source = parse(text)
    assert repr(source.data) == repr(value) or source.data == value
    assert source.problems == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"a:\n\tb: 1\n",
            "2:1: this is not valid YAML: a tab stands where YAML allows none; indent with spaces",
        ),
        (
            b"a: b: c",
            '1:5: this is not valid YAML: a second ": " stands in this line; quote a value that contains one',
        ),
        (b"a: 1\nfoo\nb: 2\n", '2:1: this is not valid YAML: this line has no ":"; write "key: value"'),
        (
            b"a: 1\n<<<<<<< HEAD\nb: 2\n=======\nb: 3\n>>>>>>> main\n",
            "2:1: a merge conflict is not resolved; keep what is right, and remove git's marks",
        ),
        (b'x: 1\na: "abc\n', "2:4: this is not valid YAML: this quoted text never ends; close the quote"),
        (
            b"a:\n  b: 1\n c: 2\n",
            "3:2: this is not valid YAML: the indentation does not fit the lines above; "
            "align it with its neighbours",
        ),
        (
            b"a: [1, 2\nb: 3\n",
            "2:2: this is not valid YAML: a bracket is not closed, or a comma is missing; "
            "look at this line and those above it",
        ),
        (
            b"a: @x",
            "1:4: this is not valid YAML: a value begins with a character that YAML reserves; "
            "quote the value",
        ),
        (
            b'a: "\\q"',
            "1:6: this is not valid YAML: found unknown escape character 'q'; "
            "look at this line and those above it",
        ),
        (b'a: "\\ud800"', "1:4: an escape stands for half a character; write the character itself"),
        (b"a: \x00b", "1:4: character U+0000 is not allowed in YAML; remove it"),
        (b"a: 1\nb: \x07b", "2:4: character U+0007 is not allowed in YAML; remove it"),
        (b"a: 1\nb: caf\xe9\n", "2:7: byte 0xe9 at offset 11 is not UTF-8; save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "1:1: byte 0xff at offset 0 is not UTF-8; save the file as UTF-8"),
        (b"a: 1\n---\nb: 2\n", "2:1: a second YAML document begins here; keep one document in a file"),
        (b"a: !x 1", "1:4: the tag !x is not allowed here; remove it, and quote the value if it is text"),
        (b"a: !x [1]", "1:4: the tag !x is not allowed here; remove it, and quote the value if it is text"),
        (
            b"a: !!python/name:os.system ''",
            "1:4: the tag !!python/name:os.system is not allowed here; "
            "remove it, and quote the value if it is text",
        ),
        (
            b"a: !!int x",
            "1:4: the tag !!int is not allowed here; remove it, and quote the value if it is text",
        ),
        (b"a: *x", "1:4: *x has no anchor; write &x before the first use"),
        (b"a: &a [*a]", "1:8: *a is used inside of itself; write the value out"),
        (b"[" * 5000, "1:65: nested more than 64 levels deep; write it flatter"),
        (
            b"a: &a " + b"[" * 40 + b"]" * 40 + b"\nb: " + b"[" * 40 + b"*a" + b"]" * 40,
            "2:44: nested more than 64 levels deep; write it flatter",
        ),
        (
            b"".join(b" " * i + b"a:\n" for i in range(99)),
            "65:65: nested more than 64 levels deep; write it flatter",
        ),
        (b"? [a]\n: 1", "1:3: a key is a list, a mapping or an alias; a key must be text"),
        (b"x: &x 1\n? *x\n: 1", "2:3: a key is a list, a mapping or an alias; a key must be text"),
        (b"<<: 4", "1:1: << merges the number 4; it must be an alias of a mapping"),
        (b"<<: [4]", "1:1: << merges the number 4; it must be an alias of a mapping"),
        (b"a: " + b"9" * 5000, "1:4: a number of 5000 digits; quote it if it is text"),
    ],
)
def test_refused_with_place_and_reason(content: bytes, message: str) -> None:
    assert refusal(content) == f"s.yaml:{message}"


def test_overflowing_escape_is_no_traceback() -> None:
    assert refusal(b'a: "\\UFFFFFFFF"').startswith("s.yaml:1:1: this is not valid YAML: ")


def test_alias_bomb_is_refused_before_it_grows() -> None:
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 30)]
    message = refusal(b"\n".join(lines))
    assert message.endswith(": aliases add up to more than 500,000 values; write fewer or smaller ones")
    assert message.startswith("s.yaml:6:")


def test_every_duplicate_and_every_key_that_is_no_text_is_reported() -> None:
    source = parse_yaml(
        b"models:\n  a: 1\n  a: 2\n  a: 3\n1: x\n: y\nb: {c: 1, c: 2}", FILE, nouns={"models": "model"}
    )
    assert [str(problem) for problem in source.problems] == [
        's.yaml:3:3: duplicate model "a"; the first is in line 2: remove one',
        's.yaml:4:3: duplicate model "a"; the first is in line 2: remove one',
        's.yaml:5:1: the key 1 is the number 1; quote it: "1"',
        "s.yaml:6:1: a key is missing here; write one, then a colon",
        's.yaml:7:11: duplicate key "c"; the first is in line 7: remove one',
    ]
    assert source.problems[0].key_path == ("models", "a")
    assert source.data == {"models": {"a": 1}, "1": "x", "b": {"c": 1}}


def test_problems_found_before_a_syntax_error_are_kept() -> None:
    assert refusal(b"a: 1\na: 2\nb: *x").splitlines() == [
        's.yaml:2:1: duplicate key "a"; the first is in line 1: remove one',
        "s.yaml:3:4: *x has no anchor; write &x before the first use",
    ]


def test_places_of_keys_and_values() -> None:
    source = parse("a: 1\nb:\n  c: [10, 20]\n  d:\n    - e: 5\n")
    places = {
        (): "1:1",
        ("a",): "1:4",
        ("b",): "2:1",
        ("b", "c"): "3:6",
        ("b", "c", 1): "3:11",
        ("b", "d"): "4:3",
        ("b", "d", 0, "e"): "5:10",
        ("b", "missing", "deeper"): "2:1",
        ("b", "c", 7): "3:6",
        ("a", "below a scalar"): "1:4",
    }
    for path, place in places.items():
        assert str(source.location(path)) == f"s.yaml:{place}"
    assert str(source.key_location(("b", "c"))) == "s.yaml:3:3"
    assert str(source.key_location(("b", "c", 1))) == "s.yaml:3:11"
    assert str(source.key_location(())) == "s.yaml:1:1"


def test_merged_keys_have_the_place_they_were_written_at() -> None:
    source = parse("x: &x\n  a: 1\ny:\n  <<: *x\n")
    assert str(source.location(("y", "a"))) == "s.yaml:2:6"


def test_missing_folder_nul_and_too_large_files(tmp_path: Path) -> None:
    with pytest.raises(TritoncError, match=r"x\.yaml: no such file or directory"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(TritoncError, match="is not a file"):
        read_yaml(tmp_path)
    with pytest.raises(TritoncError, match="is not a path"):
        read_yaml(Path("a\0b"))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"a: 1\n" + b"#" * MAX_BYTES)
    with pytest.raises(
        InputErrors, match=r"large\.yaml:1:1: the file is larger than 8 MiB; split it, or shorten it"
    ):
        read_yaml(large)


@given(st.binary(max_size=60) | st.text("ab01:-[]{},&*!|>'\"%#? \n\t<~.\\xUu", max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused_with_a_line(content: bytes) -> None:
    try:
        parse_yaml(content, FILE)
    except InputErrors as errors:
        for error in errors:
            assert error.location.line >= 1  # type: ignore[attr-defined]
