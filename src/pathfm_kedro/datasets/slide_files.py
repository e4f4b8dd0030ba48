"""The cohort's folder of slides, and its manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from kedro.io.core import AbstractDataset, DatasetError
from kedro_datasets._typing import TablePreview

from pathfm_kedro.datasets.parquet import table_preview
from pathfm_kedro.datasets.paths import atomic_path
from pathfm_kedro.engine import FileJob, FilePlan, run_each
from pathfm_kedro.slides.files import SlideFiles

#: Lists what the project itself drew into the folder; a folder that holds files without it is never
#: written to.
_INDEX_NAME = "_drawn.json"


class SlideFilesDataset(AbstractDataset[FilePlan, SlideFiles]):
    """A folder of slides.

    Loading gives a handle that opens slides by the paths of the manifest. Saving draws the phantom's
    slides: files drawn before from the same parameters stay, files of others are refused.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._root = Path(filepath)
        self.metadata = metadata

    def load(self) -> SlideFiles:
        """Open the folder."""
        if not self._root.is_dir():
            raise DatasetError(
                f"the slides' folder {self._root} does not exist: correct 'slides_root' in this "
                "cohort's globals.yml"
            )
        return SlideFiles(self._root)

    def save(self, data: FilePlan) -> None:
        """Write the plan's files that are not there yet."""
        known = self._drawn()
        wanted = {job.path: job.fingerprint for job in data.jobs}
        for path in sorted(set(known) - set(wanted)):
            (self._root / path).unlink(missing_ok=True)
        missing = [
            job
            for job in data.jobs
            if known.get(job.path) != job.fingerprint or not (self._root / job.path).is_file()
        ]
        done = {path: digest for path, digest in known.items() if wanted.get(path) == digest}
        for outcome in run_each(_Write(self._root.absolute()), missing, data.engine, data.title):
            if outcome.reason is not None:
                raise DatasetError(f"{outcome.item.path} could not be written: {outcome.reason}")
            done[outcome.item.path] = outcome.item.fingerprint
            self._remember(done)
        self._remember(done)

    def _drawn(self) -> dict[str, str]:
        index = self._root / _INDEX_NAME
        if index.is_file():
            known: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))
            return known
        if self._root.is_dir() and any(self._root.iterdir()):
            raise DatasetError(
                f"{self._root} holds files that the phantom did not draw: give the phantom cohort "
                "another 'slides_root', or set 'cohort.source: manifest' to audit these slides"
            )
        return {}

    def _remember(self, done: dict[str, str]) -> None:
        with atomic_path(self._root / _INDEX_NAME) as temporary:
            temporary.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")

    def _exists(self) -> bool:
        return self._root.is_dir() and any(self._root.iterdir())

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._root)}


@dataclass(frozen=True)
class _Write:
    """Write a job's file below the root, wherever the worker is."""

    root: Path

    def __call__(self, job: FileJob) -> None:
        target = self.root / job.path
        target.parent.mkdir(parents=True, exist_ok=True)
        job.write(target)


class ManifestDataset(AbstractDataset[pl.DataFrame, pl.DataFrame]):
    """A cohort's manifest, CSV or Parquet, every cell as text; what it means is checked by ingest."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._path = Path(filepath)
        self.metadata = metadata

    def load(self) -> pl.DataFrame:
        """Read the manifest."""
        try:
            return read_manifest_file(self._path)
        except (OSError, ValueError) as error:
            raise DatasetError(str(error)) from error

    def save(self, data: pl.DataFrame) -> None:
        """Write the phantom's manifest as CSV; never over one that a person made."""
        if self._path.exists() and not (self._path.parent / _INDEX_NAME).is_file():
            raise DatasetError(
                f"{self._path} was not written by the phantom and is not replaced: set "
                "'cohort.source: manifest' to audit its slides"
            )
        with atomic_path(self._path) as temporary:
            data.write_csv(temporary)

    def preview(self, nrows: int = 8) -> TablePreview:
        """First rows, for kedro-viz."""
        return table_preview(self.load(), nrows)

    def _exists(self) -> bool:
        return self._path.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}


def read_manifest_file(path: Path) -> pl.DataFrame:
    """A manifest from CSV or Parquet, every column as text, blanks around cells removed.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is neither CSV nor Parquet, or empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"manifest {path} does not exist")
    try:
        if path.suffix.lower() == ".parquet":
            table = pl.read_parquet(path)
        else:
            table = pl.read_csv(path, infer_schema=False, encoding="utf8")
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise ValueError(f"manifest {path} cannot be read as a table: {error}") from error
    table = table.rename({name: name.strip().removeprefix("\ufeff") for name in table.columns})
    return table.with_columns(pl.all().cast(pl.String).str.strip_chars())
