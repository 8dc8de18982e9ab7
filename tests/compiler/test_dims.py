from __future__ import annotations

import pytest

from tritonc.compiler.models.dims import Dims, dims_problems, pinned
from tritonc.compiler.signature import Signature, Tensor

X = Tensor("x", "TYPE_FP32", (3, 48, -1))
Y = Tensor("y", "TYPE_FP32", (-1, 6625))
SIGNATURE = Signature((X,), (Y,), has_batch_axis=True)


def problems(dims: dict[str, Dims] | None = None, shapes: dict[str, Dims] | None = None) -> list[str]:
    return [
        f"{'/'.join(map(str, p.key_path))}: {p.what}; {p.hint}"
        for p in dims_problems(SIGNATURE, dims or {}, shapes or {})
    ]


def test_pinned_sets_open_dimensions_only() -> None:
    signature = pinned(SIGNATURE, {"x": (3, 48, 320), "y": (-1, 1)})
    assert [t.dims for t in (*signature.inputs, *signature.outputs)] == [(3, 48, 320), (-1, 6625)]
    assert pinned(SIGNATURE, {"x": (1,)}) == SIGNATURE
    assert pinned(SIGNATURE, {}) == SIGNATURE


def test_what_agrees_is_accepted() -> None:
    assert problems({"x": (3, 48, 320), "y": (40, 6625)}, {"x": (3, 48, 320)}) == []
    assert problems({"x": (3, 48, -1)}, {"x": (3, 48, 7)}) == []


@pytest.mark.parametrize(
    ("dims", "shapes", "expected"),
    [
        (
            {"z": (1,)},
            {},
            'dims/z: dims: the model has no input or output "z"; one of: x, y',
        ),
        (
            {},
            {"y": (40, 6625)},
            'shapes/y: shapes: the model has no input "y"; one of: x',
        ),
        (
            {},
            {"x": (3, 32, 320)},
            "shapes/x/1: shapes: dimension 1 of x is 32, but the file fixes it at 48; write 48",
        ),
        (
            {"y": (40, -1)},
            {},
            "dims/y/1: dims: dimension 1 of y is -1, but the file fixes it at 6625; write 6625",
        ),
        (
            {"x": (3, 48, 320)},
            {"x": (3, 48, 640)},
            "shapes/x/2: shapes: dimension 2 of x is 640, but dims pins it at 320; write 320",
        ),
        (
            {},
            {"x": (8, 3, 48, 320)},
            "shapes/x: shapes: x is [8, 3, 48, 320], but [3, 48, -1] in the file, without the batch axis; "
            "leave out the batch axis",
        ),
        (
            {"x": (48,)},
            {},
            "dims/x: dims: x is [48], but [3, 48, -1] in the file, without the batch axis; "
            "give one size for each",
        ),
    ],
)
def test_what_contradicts_the_file_is_a_problem(
    dims: dict[str, Dims], shapes: dict[str, Dims], expected: str
) -> None:
    assert problems(dims, shapes) == [expected]


def test_every_problem_is_found() -> None:
    assert len(problems({"z": (1,), "x": (1, 2, 3)}, {"x": (4, 5, 6), "q": ()})) == 7


def test_a_model_without_inputs_has_nothing_to_suggest() -> None:
    signature = Signature((), (Y,), has_batch_axis=False)
    assert [p.hint for p in dims_problems(signature, {}, {"x": (1,)})] == ["it has none"]
