"""The software that a run uses, as a dataset: nodes themselves look at nothing outside."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from kedro.io.core import AbstractDataset, DatasetError


class PackageVersionsDataset(AbstractDataset[NoReturn, dict[str, str]]):
    """Versions of the named packages in this environment."""

    def __init__(self, *, packages: list[str], metadata: dict[str, Any] | None = None) -> None:
        self._packages = packages
        self.metadata = metadata

    def load(self) -> dict[str, str]:
        """Version of every package; "not installed" where it is absent."""
        return {name: _version(name) for name in self._packages}

    def save(self, data: NoReturn) -> None:
        """Refuse: versions are read only."""
        raise DatasetError("package versions cannot be saved")

    def _describe(self) -> dict[str, Any]:
        return {"packages": self._packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
