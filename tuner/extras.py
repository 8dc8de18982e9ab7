"""Packages that the extras of tritonc bring: what measuring needs, beyond what compiling does."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from tritonc.schemas.errors import MissingExtraError

TUNE_PACKAGES = (
    "optuna",
    "mlflow",
    "scikit-learn",
    "scipy",
    "threadpoolctl",
    "psutil",
    "filelock",
    "platformdirs",
    "prometheus-client",
    "pip",
)
"""What the extra `tune` brings and every measurement needs."""


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of `packages` that are installed, without importing any."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def require_sampler_extra(sampler: str) -> None:
    """Returns if what a sampler needs beyond the extra `tune` is installed.

    Raises:
        MissingExtraError: it names what is not.
    """
    if sampler == "gp" and not installed_versions(("torch",)):
        raise MissingExtraError("torch", "gp")


def require_tune_extra() -> None:
    """Returns if everything that measuring needs is installed.

    Raises:
        MissingExtraError: it names what is not.
    """
    found = installed_versions(TUNE_PACKAGES)
    missing = [package for package in TUNE_PACKAGES if package not in found]
    if missing:
        raise MissingExtraError(", ".join(missing), "tune")
