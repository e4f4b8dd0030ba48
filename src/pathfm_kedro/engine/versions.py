"""Versions of the packages that decide about an output: part of what it depends on."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import metadata

#: Read once in a process: it is asked for each slide, and takes longer than to read a tile's pixels.
version = cache(metadata.version)


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages, without the part that tells builds of one version apart.

    Examples
    --------
    >>> package_versions(["no-such-package"])
    {'no-such-package': 'not installed'}
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
