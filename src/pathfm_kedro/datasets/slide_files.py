"""The cohort's folder of slides, and its manifest."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from kedro.io.core import AbstractDataset, DatasetError
from kedro_datasets._typing import TablePreview

from pathfm_kedro.datasets.parquet import table_preview
from pathfm_kedro.datasets.paths import atomic_path
from pathfm_kedro.engine import FileJob, FilePlan, run_each
from pathfm_kedro.slides.files import LFS_POINTER, SlideFiles

#: Lists what the project itself drew into the folder; a folder that holds files without it is never
#: written to.
_INDEX_NAME = "_drawn.json"
#: What a spreadsheet puts between cells depends on the country: where a comma is the decimal sign it
#: writes semicolons and still calls the file CSV.
_SEPARATORS = (",", ";", "\t", "|")
#: The line by which Excel reads the separator; Excel itself shows it to nobody.
_SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?[,;\t|]*", re.IGNORECASE)
_SAVE = "save it as 'CSV UTF-8'"
#: How files begin that are taken for CSV, and the mend.
_NO_CSV = {
    b"PK\x03\x04": f"an Excel workbook: {_SAVE}",
    b"\xd0\xcf\x11\xe0": f"an Excel workbook: {_SAVE}",
    b"\xff\xfe": f"UTF-16 text: {_SAVE}",
    b"\xfe\xff": f"UTF-16 text: {_SAVE}",
    b"PAR1": f"a Parquet file without its suffix: {_SAVE}",
    b"\x1f\x8b": "packed by gzip: unpack it",
    LFS_POINTER: "a pointer of Git LFS in place of the file: run 'git lfs pull'",
    b"<": f"a web page or XML: download the table itself, or {_SAVE}",
    b"{": f"JSON: {_SAVE}",
    b"[": f"JSON: {_SAVE}",
}


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
            try:
                known: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DatasetError(
                    f"{index} lists what the phantom drew and is damaged ({error}): remove the folder "
                    f"{self._root} and run again, and the slides are drawn anew"
                ) from error
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

    A CSV may be separated by commas, semicolons, tabs or upright strokes, begin with a byte order mark,
    blank lines or Excel's ``sep=;``, and end its lines in any way. Rows are counted from the one that
    names the columns, which is row 1.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is neither CSV nor Parquet, or empty; the message names the row where there is one.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"manifest {path} does not exist: correct the path, 'manifest' in the cohort's globals.yml"
        )
    try:
        if path.suffix.lower() == ".parquet":
            return _as_text(_parse_parquet(path))
        return _as_text(_parse_csv(path.read_bytes()))
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ValueError(f"manifest {path} cannot be read as a table: {error}") from error


def _as_text(table: pl.DataFrame) -> pl.DataFrame:
    table = table.rename({name: name.strip() for name in table.columns})
    nested = [name for name, kind in table.schema.items() if kind.is_nested() or kind == pl.Binary]
    if nested:
        raise ValueError(f"column '{nested[0]}' holds lists or bytes: give text or numbers")
    return table.with_columns(pl.all().cast(pl.String).str.strip_chars().replace("", None))


def _parse_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except pl.exceptions.ComputeError as error:
        raise ValueError(
            f"it is no whole Parquet file ({error}): write it again, or call it .csv where it is one"
        ) from error


def _parse_csv(content: bytes) -> pl.DataFrame:
    for magic, kind in _NO_CSV.items():
        if content.startswith(magic):
            raise ValueError(f"it is {kind}")
    # Latin letters in UTF-16 without a byte order mark: every other byte is zero.
    if b"\0" in content[:2]:
        raise ValueError(f"it is UTF-16 text: {_SAVE}")
    text = _decoded(content)
    if not text.strip():
        raise ValueError(
            "the file is empty: its first row names the columns, then one slide per row"
        )
    text, separator = _after_preamble(text)
    lines = io.StringIO(text, newline="")
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"row {len(rows) + 1} cannot be split into cells ({error}): look for a quotation mark that "
            "is not closed"
        ) from error
    header, *cells = rows
    return _table(header, cells)


def _after_preamble(text: str) -> tuple[str, str]:
    """The text from its header on, and what separates its cells."""
    separator = None
    while True:
        first, end, rest = _first_line(text)
        named = _SEPARATOR_LINE.fullmatch(first.strip())
        if (first.strip(" ,;\t|") and not named) or not end:
            break
        separator = named[1] if named else separator
        text = rest
    # What stands in quotation marks separates nothing.
    header = re.sub(r'"[^"]*"', "", first)
    return text, separator or max(_SEPARATORS, key=header.count)


def _first_line(text: str) -> tuple[str, str, str]:
    """The first line, how it ends, and what follows."""
    found = re.match(r"([^\r\n]*)(\r\n|\r|\n|\Z)", text)
    assert found is not None
    return found[1], found[2], text[found.end() :]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> pl.DataFrame:
    names = [name.strip() for name in header]
    width = max((place + 1 for place, name in enumerate(names) if name), default=0)
    twice = [name for name, count in Counter(names[:width]).items() if count > 1]
    if twice:
        raise ValueError(
            f"its first row has '{twice[0]}' more than once: give every column a name of its own"
        )
    for number, row in enumerate(rows, start=2):
        if any(cell.strip() for cell in row[width:]):
            raise ValueError(
                f"row {number} has {len(row)} cells and the first row names {width} columns: put a "
                "cell that holds a separator in quotation marks"
            )
    padded = [[*row[:width], *[None] * (width - len(row))] for row in rows]
    return pl.DataFrame(padded, schema=dict.fromkeys(names[:width], pl.String()), orient="row")


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"row {row} is not UTF-8 text (byte {content[error.start]:#04x}): save it as 'CSV UTF-8'"
        ) from error
