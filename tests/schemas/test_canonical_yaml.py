"""The fast reader of our own YAML agrees with the YAML parser wherever it does not give up."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tritonc.schemas.canonical_yaml import canonical_yaml, parse_canonical_yaml
from tritonc.schemas.errors import InputErrors
from tritonc.schemas.yaml_source import parse_yaml

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
)
KEYS = st.text(max_size=6) | st.sampled_from(["value", "low", "high", "null", "y", "a.b", "a b"])


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    texts = st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple)
    numbers = st.lists(st.integers() | st.floats(-9, 9), max_size=3).map(tuple)
    mappings = st.dictionaries(KEYS, inner, min_size=1, max_size=4)
    return numbers | texts | mappings | st.lists(mappings, min_size=1, max_size=2).map(tuple)


DOCUMENTS = st.dictionaries(KEYS, st.recursive(SCALARS, nested, max_leaves=12), min_size=1, max_size=4)


def slow(text: str) -> Any:
    return parse_yaml(text.encode(), Path("x.yaml")).data


def is_writable(value: Any) -> bool:
    """Intervals hold numbers; `canonical_yaml` is for records that know that."""
    if isinstance(value, dict):
        if value.keys() <= {"value", "low", "high"}:
            return all(
                isinstance(item, int | float) and not isinstance(item, bool) for item in value.values()
            )
        return all(map(is_writable, value.values()))
    return all(map(is_writable, value)) if isinstance(value, tuple) else True


@given(DOCUMENTS.filter(is_writable))
def test_what_is_written_is_read_by_yaml(data: dict[str, Any]) -> None:
    text = canonical_yaml(data)
    assert repr(slow(text)) == repr(data)
    fast = parse_canonical_yaml(text)
    assert fast is None or repr(fast) == repr(data)


def test_what_is_written_is_read_fast() -> None:
    data = {
        "a": 1,
        "b": {"c": (1, 2.5), "d": ({"e": "x: y", "f": {"g": None}}, {"e": ""}), "h": ("i", "j")},
        "k": (),
    }
    text = canonical_yaml(data)
    assert parse_canonical_yaml(f"# comment\n{text}") == data


TEXT = """\
a: 1
b: {value: 1.5, low: 1.0e-07}
c:
  d:
    - e: x y
      f: "say \\"x\\""
    - g: [1, 2]
  h:
    - "i"
k: true
"""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "a: 1\na: 2\n",
        "a: &x 1\n",
        "a: 'x'\n",
        "a:  1\n",
        "a: 1 \n",
        "a: 2026-11-20\n",
        "null: 1\n",
        '"null": 1\n',
        "a: 0x1F\n",
        "a: [1, x]\n",
        "a: {value: x}\n",
        "a: {other: 1}\n",
        "a: {value: 1, value: 2}\n",
        'a: "\\ud83d\\ude00"\n',
        'a: "x" y\n',
        "a:\n- b: 1\n",
        "a:\n",
        "a:\n    b: 1\n",
        "- x: 1\n",
        "a: b\n  c\n",
        "a:\tb\n",
        "a: \u2028\n",
        "a:\n  - 1\n",
        f"{' ' * 400}a: 1\n",
        '"a"\n',
    ],
)
def test_any_other_layout_is_left_to_the_parser(text: str) -> None:
    assert parse_canonical_yaml(text) is None


@given(st.integers(0, len(TEXT)), st.integers(0, 6), st.text('ab1.: "-{}[],\n#\\&*~', max_size=4))
@example(0, 0, "---\n")
def test_an_edited_text_is_read_as_yaml_reads_it(start: int, length: int, text: str) -> None:
    edited = TEXT[:start] + text + TEXT[start + length :]
    fast = parse_canonical_yaml(edited)
    if fast is not None:
        assert repr(fast) == repr(slow(edited))


def test_the_parser_refuses_what_the_fast_reader_must_not_read() -> None:
    with pytest.raises(InputErrors):
        slow("a: b\n  c: 1\n")
    assert parse_canonical_yaml("a: b\n  c: 1\n") is None
