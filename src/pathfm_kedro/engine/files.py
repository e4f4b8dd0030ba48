"""Deferred writing of files: a node says what, the dataset writes where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pathfm_kedro.engine.settings import EngineSettings


class FileJob(Protocol):
    """One file to write."""

    @property
    def path(self) -> str:
        """Where, relative to the dataset's folder, with forward slashes."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal content."""
        ...

    def write(self, target: Path) -> None:
        """Write the file atomically."""
        ...


@dataclass(frozen=True)
class FilePlan:
    """Files to be written by the dataset that stores them."""

    jobs: Sequence[FileJob]
    engine: EngineSettings = field(default_factory=EngineSettings)
    title: str = "files"
