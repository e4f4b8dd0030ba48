"""Check a manifest: what is wrong with the whole is an error, what is wrong with a row its reason."""

from __future__ import annotations

import polars as pl

#: Columns that every manifest has.
REQUIRED_COLUMNS = ("slide_id", "path", "patient_id", "center", "label")
#: Columns that get a value where the manifest has none.
OPTIONAL_COLUMNS = {"organ": "unspecified", "scanner": "unspecified"}
#: Columns that ingest writes; a manifest's own column of that name is kept under ``manifest_<name>``.
RESERVED_COLUMNS = (
    "vendor", "width", "height", "levels", "fingerprint", "status", "reason",
)  # fmt: skip
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
        If a column is missing, there are no rows, or a slide_id is given twice.

    Examples
    --------
    >>> row = {"slide_id": "s1", "path": "s1.svs", "patient_id": "p", "center": "A", "label": ""}
    >>> check_manifest(pl.DataFrame([row]))["reason"].to_list()
    ["row 2: 'label' is empty: fill it in"]
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in manifest.columns]
    if missing:
        raise ManifestError(
            f"the manifest has no column {', '.join(missing)}: it needs "
            f"{', '.join(REQUIRED_COLUMNS)}; it has {', '.join(manifest.columns)}"
        )
    if manifest.is_empty():
        raise ManifestError("the manifest has no rows: list one slide per row")
    kept = manifest.rename(
        {name: f"manifest_{name}" for name in RESERVED_COLUMNS if name in manifest.columns}
    )
    # Row 1 is the header, as a spreadsheet counts.
    numbered = kept.with_row_index("_row", offset=2)
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
        text.alias("_mpp_text"), text.cast(pl.Float64, strict=False).alias("mpp")
    )
    return (
        numbered.with_columns(_row_reason().alias("reason"))
        .with_columns(
            pl.when(pl.col("reason") == "")
            .then(pl.lit("listed"))
            .otherwise(pl.lit("unusable"))
            .alias("status")
        )
        .drop("_row", "_mpp_text")
        .sort("slide_id")
    )


def _refuse_duplicates(numbered: pl.DataFrame) -> None:
    given = numbered.filter(pl.col("slide_id").is_not_null() & (pl.col("slide_id") != ""))
    twice = given.filter(pl.col("slide_id").is_duplicated()).sort("slide_id", "_row")
    if twice.is_empty():
        if given.height < numbered.height:
            rows = numbered.filter(~pl.col("_row").is_in(given["_row"].implode()))["_row"].to_list()
            raise ManifestError(
                f"slide_id is empty in row {_listed(rows)}: give every slide its own"
            )
        return
    first = twice["slide_id"][0]
    rows = twice.filter(pl.col("slide_id") == first)["_row"].to_list()
    raise ManifestError(
        f"slide_id '{first}' is in rows {_listed(rows)}; {twice['slide_id'].n_unique()} ids are given "
        "more than once: every slide needs an id of its own"
    )


def _row_reason() -> pl.Expr:
    """The first thing wrong with a row, or an empty text."""
    where = pl.format("row {}: ", pl.col("_row"))
    reason = pl.lit("")
    bad_mpp = (pl.col("_mpp_text").fill_null("") != "") & (
        pl.col("mpp").is_null() | ~pl.col("mpp").is_finite() | (pl.col("mpp") <= 0)
    )
    reason = pl.when(bad_mpp).then(
        pl.concat_str(
            where, pl.lit("mpp '"), pl.col("_mpp_text").fill_null(""),
            pl.lit("' is not a positive number: give micrometres per pixel, or leave it empty"),
        )
    ).otherwise(reason)  # fmt: skip
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
