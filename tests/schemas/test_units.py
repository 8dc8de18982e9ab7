import pytest

from tritonc.schemas.units import parse_size_bytes


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        (5, 5),
        ("5", 5),
        ("8GiB", 8 * 2**30),
        ("512 MB", 512 * 10**6),
        ("1.5KiB", 1536),
        ("1kB", 1000),
        ("3B", 3),
    ],
)
def test_sizes_with_units(value: object, size_bytes: int) -> None:
    assert parse_size_bytes(value) == size_bytes


@pytest.mark.parametrize("value", ["", "8 gigs", "-1GiB", "GiB", 1.5, None, True, "9" * 400, "1e3", "8GiB\n"])
def test_no_sizes(value: object) -> None:
    with pytest.raises(ValueError, match="must be a size such as"):
        parse_size_bytes(value)
