import pytest

from tritonc.compiler.release import SERVER_VERSIONS, Release, release_of_server


def test_releases_are_ordered_by_year_and_month() -> None:
    texts = ["25.01", "24.10", "24.09", "31.12", "19.01"]
    assert [str(r) for r in sorted(map(Release.parse, texts))] == [
        "19.01",
        "24.09",
        "24.10",
        "25.01",
        "31.12",
    ]


@pytest.mark.parametrize("text", ["24.1", "24.13", "24.00", "2024.10", "latest", ""])
def test_what_is_no_release_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match=r'is no Triton release; one looks like "24\.10"'):
        Release.parse(text)


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("2.7.0", "21.02"),
        ("2.17.0", "21.12"),
        ("2.29.0", "22.12"),
        ("2.41.0", "23.12"),
        ("2.51.0", "24.10"),
        ("2.56.0", "25.03"),
        ("2.59.0", "25.06"),
        ("2.59.1", "25.07"),
        ("2.60.0", "25.08"),
        ("2.68.0", "26.04"),
        ("2.69.0", "26.05"),
    ],
)
def test_a_server_version_belongs_to_its_release(version: str, release: str) -> None:
    assert str(release_of_server(version)) == release
    assert SERVER_VERSIONS[Release.parse(release)] == version


def test_an_unknown_server_version_has_no_release() -> None:
    assert release_of_server("3.0.0") is None
