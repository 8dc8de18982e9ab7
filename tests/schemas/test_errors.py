import pytest

from tritonc.schemas.errors import (
    InputErrors,
    Location,
    MissingExtraError,
    ModelFileError,
    SpecError,
    TritoncError,
    did_you_mean,
    found,
    shortened,
)


def test_errors_are_sorted_by_place_and_print_one_a_line() -> None:
    errors = InputErrors(
        [
            SpecError(Location("s.yaml", 10, 1), (), "b", "do b"),
            SpecError(Location("s.yaml", 9, 3), (), "a"),
            ModelFileError("m.onnx", "is no model", "export it again"),
        ]
    )
    assert str(errors) == "m.onnx: is no model; export it again\ns.yaml:9:3: a\ns.yaml:10:1: b; do b"
    assert len(list(errors)) == 3
    assert errors.exit_code == 2


def test_no_errors_are_no_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        InputErrors([])


def test_missing_extra_says_how_to_install_it() -> None:
    error = MissingExtraError("optuna", "tune")
    assert str(error) == "optuna is not installed; run: pip install 'tritonc[tune]'"
    assert error.exit_code == 3


def test_a_guess_needs_a_near_word() -> None:
    assert did_you_mean("xyz", ["b", "a"]) == "one of: a, b"
    assert did_you_mean("tensort", ["none", "tensorrt"]) == 'did you mean "tensorrt"? (none, tensorrt)'


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "empty"),
        (True, "true"),
        (False, "false"),
        (24.1, "the number 24.1"),
        ("8\n", 'the text "8\\n"'),
        ((), "a list"),
        ({}, "a mapping"),
        (object, "no plain value"),
    ],
)
def test_found_in_words(value: object, words: str) -> None:
    assert found(value) == words


def test_long_texts_are_cut() -> None:
    assert shortened("x" * 61) == "x" * 60 + "…"
    assert str(TritoncError("what")) == "what"
