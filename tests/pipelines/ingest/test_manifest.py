"""A manifest is checked as a whole and row by row, and every message says how to mend it."""

from __future__ import annotations

import polars as pl
import pytest

from pathfm_kedro.pipelines.ingest.manifest import ManifestError, check_manifest
from tests.conftest import manifest, manifest_row


def test_a_good_manifest_gets_its_defaults():
    table = check_manifest(manifest(manifest_row("b"), manifest_row("a", mpp="0.25")))
    assert table["slide_id"].to_list() == ["a", "b"]
    assert table["organ"].to_list() == ["unspecified"] * 2
    assert table["mpp"].to_list() == [0.25, None]
    assert table["status"].to_list() == ["listed"] * 2


def test_further_columns_are_kept_and_reserved_ones_renamed():
    table = check_manifest(manifest(manifest_row("a", stage="II", status="done", width="7")))
    assert table["stage"].to_list() == ["II"]
    assert table["manifest_status"].to_list() == ["done"]
    assert table["manifest_width"].to_list() == ["7"]


@pytest.mark.parametrize("column", ["slide_id", "path", "patient_id", "center", "label"])
def test_a_missing_column_is_named(column):
    with pytest.raises(ManifestError, match=f"has no column {column}"):
        check_manifest(manifest(manifest_row("a")).drop(column))


def test_no_rows():
    with pytest.raises(ManifestError, match="has no rows"):
        check_manifest(manifest(manifest_row("a")).clear())


def test_a_slide_given_twice_names_the_rows():
    with pytest.raises(ManifestError, match="slide_id 'a' is in rows 2, 4"):
        check_manifest(manifest(manifest_row("a"), manifest_row("b"), manifest_row("a")))


def test_an_empty_slide_id_names_the_row():
    with pytest.raises(ManifestError, match="slide_id is empty in row 3"):
        check_manifest(manifest(manifest_row("a"), manifest_row("")))


@pytest.mark.parametrize("column", ["path", "patient_id", "center", "label"])
def test_an_empty_cell_costs_its_row_only(column):
    table = check_manifest(manifest(manifest_row("a"), manifest_row("b") | {column: ""}))
    bad = table.filter(pl.col("slide_id") == "b").row(0, named=True)
    assert bad["status"] == "unusable"
    assert bad["reason"] == f"row 3: '{column}' is empty: fill it in"
    assert table.filter(pl.col("slide_id") == "a")["status"].item() == "listed"


@pytest.mark.parametrize("mpp", ["0.25um", "-1", "0", "nan", "inf", "1e999"])
def test_an_mpp_that_is_no_resolution_costs_its_row_only(mpp):
    table = check_manifest(manifest(manifest_row("a", mpp=mpp), manifest_row("b", mpp="0.5")))
    assert "is not a positive number" in table["reason"][0]
    assert table["status"].to_list() == ["unusable", "listed"]
