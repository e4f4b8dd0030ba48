"""Check a manifest: what is wrong with the whole is an error, what is wrong with a row its reason."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence

import polars as pl

from pathfm_kedro.pipelines.ingest.repeats import REPEAT_COLUMNS, checked_repeats
from pathfm_kedro.pipelines.ingest.spelling import (
    Spellings,
    listed,
    look_alikes,
    names_nothing,
    plain_name,
    several_spellings,
    visible,
)

#: Columns that every manifest has.
REQUIRED_COLUMNS = ("slide_id", "path", "patient_id", "center", "label")
#: Columns that get a value where the manifest has none.
OPTIONAL_COLUMNS = {"organ": "unspecified", "scanner": "unspecified", "stain": "unspecified"}
#: Columns that ingest writes; a manifest's own column of that name is kept under ``manifest_<name>``.
RESERVED_COLUMNS = (
    "vendor", "width", "height", "levels", "fingerprint", "tissue_digest", "tissue_share",
    "status", "reason", "warning",
)  # fmt: skip
#: Columns whose name, misspelt, would leave a setting out without a word.
_KNOWN = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, "mpp", REPEAT_COLUMNS[0])
#: Columns of names that are compared, and what a name in two spellings would become.
_NAMES = {
    "center": "two centers", "label": "two classes", "organ": "two organs",
    "scanner": "two scanners", "stain": "two stains",
    "patient_id": "two patients, and one patient's slides would be compared with each other",
}  # fmt: skip
#: Names of working columns. Names are read without blanks at their ends, so no manifest has these.
_ROW, _MPP_TEXT, _ALIKE, _REPEAT = " row", " mpp", " alike", " repeat"
#: Names listed in a message before the rest is counted.
_NAMED = 5


class ManifestError(ValueError):
    """A manifest that cannot be used as a whole."""


def check_features_manifest(manifest: pl.DataFrame, subgroups: Sequence[str] = ()) -> pl.DataFrame:
    """As :func:`check_manifest`, of a cohort that has features and no slides: no path is needed.

    Examples
    --------
    >>> row = {"slide_id": "s1", "patient_id": "p", "center": "A", "label": "x"}
    >>> check_features_manifest(pl.DataFrame([row]))["status"].to_list()
    ['listed']
    """
    if "path" not in manifest.columns:
        manifest = manifest.with_columns(path=pl.lit(None, pl.String))
    filled_in = tuple(name for name in REQUIRED_COLUMNS if name != "path")
    return _checked(manifest, filled_in, subgroups)


def check_manifest(manifest: pl.DataFrame, subgroups: Sequence[str] = ()) -> pl.DataFrame:
    """Bring a manifest into the form that ingest works on.

    Parameters
    ----------
    manifest
        Every cell as text: slide_id, path, patient_id, center, label; optional organ, scanner, stain,
        mpp, same_tissue_as and the registration's columns
        (:mod:`~pathfm_kedro.pipelines.ingest.repeats`); further columns are kept.
    subgroups
        Further columns whose values are compared as subgroups of patients.

    Returns
    -------
    DataFrame
        The required columns, organ, scanner, stain, mpp (float, micrometres per level-0 pixel, null
        where not given), further columns, status ("listed" or "unusable") and reason; sorted by
        slide_id.

    Raises
    ------
    ManifestError
        If a column is missing or misspelt, there are no rows, a slide_id is empty or not the only
        one of its kind, or a center, label, organ, scanner, patient_id or subgroup is spelt in several
        ways.

    Examples
    --------
    >>> row = {"slide_id": "s1", "path": "s1.svs", "patient_id": "p", "center": "A", "label": ""}
    >>> check_manifest(pl.DataFrame([row]))["reason"].to_list()
    ["row 2: 'label' is empty: fill it in"]
    """
    return _checked(manifest, REQUIRED_COLUMNS, subgroups)


def _checked(
    manifest: pl.DataFrame, filled_in: Sequence[str], subgroups: Sequence[str]
) -> pl.DataFrame:
    """The manifest in the form that ingest works on; rows need a value in the columns `filled_in`."""
    _refuse_other_columns(manifest.columns)
    manifest = _without_reserved(manifest)
    _refuse_lacking_subgroups(manifest.columns, subgroups)
    # Row 1 is the header, as a spreadsheet counts.
    numbered = manifest.with_row_index(_ROW, offset=2)
    # Spreadsheets write rows that somebody once touched and emptied.
    filled = pl.any_horizontal(pl.exclude(_ROW).fill_null("") != "")
    numbered = numbered.filter(filled)
    if numbered.is_empty():
        raise ManifestError("the manifest has no rows: list one slide per row")
    _refuse_empty_ids(numbered)
    _refuse_duplicates(numbered)
    _refuse_several_spellings(numbered, _NAMES | dict.fromkeys(subgroups, "two subgroups"))
    numbered = numbered.with_columns(
        # An empty cell is no subgroup.
        pl.when(~_is_nothing(pl.col(name))).then(pl.col(name)).alias(name)
        for name in subgroups
        if name not in OPTIONAL_COLUMNS
    )
    for name, default in OPTIONAL_COLUMNS.items():
        given = pl.col(name) if name in numbered.columns else pl.lit(None, pl.String)
        numbered = numbered.with_columns(
            pl.when(_is_nothing(given)).then(pl.lit(default)).otherwise(given).alias(name)
        )
    text = pl.col("mpp") if "mpp" in numbered.columns else pl.lit(None, pl.String)
    text = pl.when(~_is_nothing(text)).then(text)
    numbered = numbered.with_columns(
        text.alias(_MPP_TEXT), text.cast(pl.Float64, strict=False).alias("mpp")
    )
    numbered = checked_repeats(numbered, _ROW, _REPEAT)
    return (
        numbered.with_columns(_row_reason(filled_in).alias("reason"))
        .with_columns(
            pl.when(pl.col("reason") == "").then(_REPEAT).otherwise("reason").alias("reason")
        )
        .with_columns(
            pl.when(pl.col("reason") == "")
            .then(pl.lit("listed"))
            .otherwise(pl.lit("unusable"))
            .alias("status")
        )
        # A number that is no resolution is in the reason; no later step shall compute with it.
        .with_columns(pl.when(~_is_bad_mpp()).then(pl.col("mpp")))
        .drop(_ROW, _MPP_TEXT, _REPEAT)
        .sort("slide_id")
    )


def _refuse_other_columns(columns: Sequence[str]) -> None:
    """Needed columns that are missing, and columns that look like a known one misspelt."""
    unknown = [name for name in columns if name not in _KNOWN]
    likely = {
        name: next((given for given in unknown if _alike(given, name)), None)
        for name in _KNOWN
        if name not in columns
    }
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    hints = [
        f"rename '{visible(given, look_alikes(given))}' to '{name}'"
        for name, given in likely.items()
        if given
    ]
    if missing:
        advice = f"; {', '.join(hints)}" if hints else ""
        header = (
            "; its first row must name the columns" if len(missing) == len(REQUIRED_COLUMNS) else ""
        )
        raise ManifestError(
            f"the manifest has no column {', '.join(missing)}: it needs "
            f"{', '.join(REQUIRED_COLUMNS)}; it has {', '.join(columns)}{header}{advice}"
        )
    if hints:
        given = [given for given in likely.values() if given]
        raise ManifestError(
            f"the manifest's column '{given[0]}' looks like a known one misspelt and would not be "
            f"used: {', '.join(hints)}, or give it a name less alike"
        )


def _refuse_lacking_subgroups(columns: Sequence[str], subgroups: Sequence[str]) -> None:
    missing = [name for name in subgroups if name not in (*columns, *OPTIONAL_COLUMNS)]
    if missing and f"manifest_{missing[0]}" in columns:
        raise ManifestError(
            f"cohort.subgroups names '{missing[0]}', a column that ingest writes: the manifest's own "
            f"is kept as 'manifest_{missing[0]}', name that"
        )
    if missing:
        near = difflib.get_close_matches(missing[0], columns, 1)
        meant = f"did you mean '{near[0]}'? It" if near else "it"
        raise ManifestError(
            f"cohort.subgroups names '{missing[0]}', and the manifest has no such column: {meant} has "
            f"{', '.join(columns)}"
        )


def _alike(given: str, name: str) -> bool:
    """Equal but for case and separators, or one letter apart."""

    def plain(text: str) -> str:
        return "".join(letter for letter in text.casefold() if letter.isalnum())

    def without_one(text: str) -> set[str]:
        return {text} | {text[:place] + text[place + 1 :] for place in range(len(text))}

    return not without_one(plain(given)).isdisjoint(without_one(plain(name)))


def _without_reserved(manifest: pl.DataFrame) -> pl.DataFrame:
    renamed = {name: f"manifest_{name}" for name in RESERVED_COLUMNS if name in manifest.columns}
    taken = [name for name in renamed if renamed[name] in manifest.columns]
    if taken:
        raise ManifestError(
            f"the manifest has the columns '{taken[0]}' and '{renamed[taken[0]]}', and the first would "
            "be kept under the second's name: rename one"
        )
    return manifest.rename(renamed)


def _refuse_empty_ids(numbered: pl.DataFrame) -> None:
    # An id stands for itself, so one that is called NA or missing does no harm.
    seen = pl.col("slide_id").fill_null("").map_elements(plain_name, return_dtype=pl.String)
    rows = numbered.filter(seen == "")[_ROW].to_list()
    if rows:
        raise ManifestError(f"slide_id is empty in row {listed(rows)}: give every slide its own")


def _refuse_duplicates(numbered: pl.DataFrame) -> None:
    """Ids that are equal, or would be one file name on disks that do not tell case or form apart."""
    alike = pl.col(_ALIKE)
    twice = (
        numbered.with_columns(
            pl.col("slide_id").map_elements(_file_name, return_dtype=pl.String).alias(_ALIKE)
        )
        .filter(alike.is_duplicated())
        .sort(alike, _ROW)
    )
    if twice.is_empty():
        return
    first = twice["slide_id"][0]
    same = twice.filter(alike == _file_name(first))
    rows = listed(same[_ROW].to_list())
    if same["slide_id"].n_unique() > 1:
        spelt = ", ".join(visible(text) for text in same["slide_id"].unique(maintain_order=True))
        raise ManifestError(
            f"the slide_ids {spelt} in rows {rows} differ in case only, or in Unicode form, and some "
            "disks take them for one: every slide needs an id of its own"
        )
    raise ManifestError(
        f"slide_id '{first}' is in rows {rows}; {twice['slide_id'].n_unique()} ids are given more than "
        "once: every slide needs an id of its own"
    )


def _file_name(slide_id: str) -> str:
    """An id as a disk compares names that does not tell case and Unicode form apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", slide_id).casefold())


def _refuse_several_spellings(numbered: pl.DataFrame, names: Mapping[str, str]) -> None:
    """A name in two spellings would count as two centers, classes or patients without a word."""
    for column, becomes in names.items():
        if column not in numbered.columns:
            continue
        filled = numbered.filter(~_is_nothing(pl.col(column))).select(_ROW, column)
        several = several_spellings(filled.iter_rows(), patients=column == "patient_id")
        if several:
            raise ManifestError(_message(column, becomes, several))


def _message(column: str, becomes: str, several: Sequence[Spellings]) -> str:
    names = [
        " and ".join(
            f"{one.written(text)} ({'row' if len(rows) == 1 else 'rows'} {listed(rows)})"
            for text, rows in one.rows.items()
        )
        for one in several[:_NAMED]
    ]
    more = f"; and {len(several) - _NAMED} more" if len(several) > _NAMED else ""
    differ = (
        "case, blanks, separators, letters that look alike, invisible characters or Unicode form"
    )
    if column == "patient_id":
        differ = f"zeros before a number, {differ}"
    return (
        f"column '{column}': {'; '.join(names)}{more} differ in {differ} only and would be {becomes}: "
        "write one spelling in all these rows; where two are meant, give them names that differ in more"
    )


def _is_nothing(cell: pl.Expr) -> pl.Expr:
    """Whether a cell is empty or holds a word for nothing, see :func:`names_nothing`."""
    return cell.fill_null("").map_elements(names_nothing, return_dtype=pl.Boolean)


def _is_bad_mpp() -> pl.Expr:
    return (pl.col(_MPP_TEXT).fill_null("") != "") & (
        pl.col("mpp").is_null() | ~pl.col("mpp").is_finite() | (pl.col("mpp") <= 0)
    )


def _row_reason(filled_in: Sequence[str]) -> pl.Expr:
    """The first thing wrong with a row, or an empty text."""
    where = pl.format("row {}: ", pl.col(_ROW))
    text = pl.col(_MPP_TEXT).fill_null("")
    comma = (
        pl.when(text.str.contains(","))
        .then(pl.lit(", with a point and no comma"))
        .otherwise(pl.lit(""))
    )
    reason = pl.when(_is_bad_mpp()).then(
        pl.concat_str(
            where, pl.lit("mpp '"), text,
            pl.lit("' is not a positive number: give micrometres per pixel"), comma,
            pl.lit(", or leave it empty"),
        )
    ).otherwise(pl.lit(""))  # fmt: skip
    for name in reversed(filled_in):
        cell = pl.col(name).fill_null("")
        empty = pl.concat_str(where, pl.lit(f"'{name}' is empty: fill it in"))
        word = pl.concat_str(
            where, pl.lit(f"'{name}' is '"), cell,
            pl.lit(
                "', which stands for an empty cell: fill it in, or spell out what is meant where it is "
                "a name"
            ),
        )  # fmt: skip
        is_word = pl.lit(False) if name == "slide_id" else _is_nothing(cell)
        reason = pl.when(cell == "").then(empty).when(is_word).then(word).otherwise(reason)
    return reason
