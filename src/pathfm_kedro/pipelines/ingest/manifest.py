"""Check a manifest: what is wrong with the whole is an error, what is wrong with a row its reason."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

#: Columns that every manifest has.
REQUIRED_COLUMNS = ("slide_id", "path", "patient_id", "center", "label")
#: Columns that get a value where the manifest has none.
OPTIONAL_COLUMNS = {"organ": "unspecified", "scanner": "unspecified"}
#: Columns that ingest writes; a manifest's own column of that name is kept under ``manifest_<name>``.
RESERVED_COLUMNS = (
    "vendor", "width", "height", "levels", "fingerprint", "tissue_digest", "status", "reason",
    "warning",
)  # fmt: skip
#: Columns whose name, misspelt, would leave a setting out without a word.
_KNOWN = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, "mpp")
#: Names of working columns. Names are read without blanks at their ends, so no manifest has these.
_ROW, _MPP_TEXT = " row", " mpp"
#: Rows named in a message before the rest is counted.
_NAMED_ROWS = 5


class ManifestError(ValueError):
    """A manifest that cannot be used as a whole."""


def check_manifest(manifest: pl.DataFrame) -> pl.DataFrame:
    """Bring a manifest into the form that ingest works on.

    Parameters
    ----------
    manifest
        Every cell as text: slide_id, path, patient_id, center, label; optional organ, scanner, mpp;
        further columns are kept.

    Returns
    -------
    DataFrame
        The required columns, organ, scanner, mpp (float, micrometres per level-0 pixel, null where
        not given), further columns, status ("listed" or "unusable") and reason; sorted by slide_id.

    Raises
    ------
    ManifestError
        If a column is missing or misspelt, there are no rows, or a slide_id is empty or not the only
        one of its kind.

    Examples
    --------
    >>> row = {"slide_id": "s1", "path": "s1.svs", "patient_id": "p", "center": "A", "label": ""}
    >>> check_manifest(pl.DataFrame([row]))["reason"].to_list()
    ["row 2: 'label' is empty: fill it in"]
    """
    _refuse_other_columns(manifest.columns)
    # Row 1 is the header, as a spreadsheet counts.
    numbered = _without_reserved(manifest).with_row_index(_ROW, offset=2)
    # Spreadsheets write rows that somebody once touched and emptied.
    filled = pl.any_horizontal(pl.exclude(_ROW).fill_null("") != "")
    numbered = numbered.filter(filled)
    if numbered.is_empty():
        raise ManifestError("the manifest has no rows: list one slide per row")
    _refuse_empty_ids(numbered)
    _refuse_duplicates(numbered)
    for name, default in OPTIONAL_COLUMNS.items():
        given = pl.col(name) if name in numbered.columns else pl.lit(None, pl.String)
        numbered = numbered.with_columns(
            pl.when(given.is_null() | (given == ""))
            .then(pl.lit(default))
            .otherwise(given)
            .alias(name)
        )
    text = pl.col("mpp") if "mpp" in numbered.columns else pl.lit(None, pl.String)
    numbered = numbered.with_columns(
        text.alias(_MPP_TEXT), text.cast(pl.Float64, strict=False).alias("mpp")
    )
    return (
        numbered.with_columns(_row_reason().alias("reason"))
        .with_columns(
            pl.when(pl.col("reason") == "")
            .then(pl.lit("listed"))
            .otherwise(pl.lit("unusable"))
            .alias("status")
        )
        # A number that is no resolution is in the reason; no later step shall compute with it.
        .with_columns(pl.when(~_is_bad_mpp()).then(pl.col("mpp")))
        .drop(_ROW, _MPP_TEXT)
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
    hints = [f"rename '{given}' to '{name}'" for name, given in likely.items() if given]
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
    rows = numbered.filter(pl.col("slide_id").fill_null("") == "")[_ROW].to_list()
    if rows:
        raise ManifestError(f"slide_id is empty in row {_listed(rows)}: give every slide its own")


def _refuse_duplicates(numbered: pl.DataFrame) -> None:
    """Ids that are equal, or would be one file name on disks that do not tell case apart."""
    alike = pl.col("slide_id").str.to_lowercase()
    twice = numbered.filter(alike.is_duplicated()).sort(alike, _ROW)
    if twice.is_empty():
        return
    first = twice["slide_id"][0]
    same = twice.filter(alike == first.lower())
    rows = _listed(same[_ROW].to_list())
    if same["slide_id"].n_unique() > 1:
        raise ManifestError(
            f"the slide_ids {', '.join(same['slide_id'].unique(maintain_order=True))} in rows {rows} "
            "differ in case only, and some disks take them for one: every slide needs an id of its own"
        )
    raise ManifestError(
        f"slide_id '{first}' is in rows {rows}; {twice['slide_id'].n_unique()} ids are given more than "
        "once: every slide needs an id of its own"
    )


def _is_bad_mpp() -> pl.Expr:
    return (pl.col(_MPP_TEXT).fill_null("") != "") & (
        pl.col("mpp").is_null() | ~pl.col("mpp").is_finite() | (pl.col("mpp") <= 0)
    )


def _row_reason() -> pl.Expr:
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
    for name in reversed(REQUIRED_COLUMNS):
        empty = pl.col(name).fill_null("") == ""
        reason = (
            pl.when(empty)
            .then(pl.concat_str(where, pl.lit(f"'{name}' is empty: fill it in")))
            .otherwise(reason)
        )
    return reason


def _listed(rows: list[int]) -> str:
    named = ", ".join(str(row) for row in rows[:_NAMED_ROWS])
    return named if len(rows) <= _NAMED_ROWS else f"{named} and {len(rows) - _NAMED_ROWS} more"
