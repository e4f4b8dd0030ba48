"""Slides that show tissue again: what the manifest may say, and that each tissue counts once."""

from __future__ import annotations

import polars as pl
import pytest

from pathfm_kedro.pipelines.ingest.description import list_slides
from pathfm_kedro.pipelines.ingest.design import summarise_design
from pathfm_kedro.pipelines.ingest.duplicates import find_duplicates
from pathfm_kedro.pipelines.ingest.manifest import ManifestError, check_manifest


def row(slide_id, again="", **more):
    usual = {"path": f"{slide_id}.svs", "patient_id": "p1", "center": "A", "label": "x"}
    return {"slide_id": slide_id, **usual, "same_tissue_as": again, **more}


def checked(*rows):
    return check_manifest(pl.DataFrame(list(rows), schema_overrides={}))


def reasons(*rows):
    table = checked(row("ref"), row("other", patient_id="p2", label="y"), *rows)
    assert table.filter(pl.col("slide_id").is_in(["ref", "other"]))["reason"].to_list() == ["", ""]
    return dict(table.select("slide_id", "reason").iter_rows())


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row("s", "s"), "row 4: same_tissue_as 's' is the slide itself"),
        (row("s", "nowhere"), "row 4: same_tissue_as 'nowhere' is no slide_id of this manifest"),
        (row("s", "other"), "the patient 'p2' and this row 'p1'"),
        (row("s", "other", patient_id="p2"), "the label 'y' and this row 'x'"),
    ],
)
def test_a_row_that_cannot_be_is_named_and_the_rest_goes_on(bad, said):
    found = reasons(bad, row("fine", "ref"))
    assert said in found["s"]
    assert found["fine"] == ""


def test_a_chain_names_the_reference_to_write():
    found = reasons(row("one", "ref"), row("two", "one"), row("three", "two"))
    assert found["one"] == ""
    assert "shows the tissue of 'ref' itself" in found["two"]
    assert "write 'ref'" in found["two"]
    assert "write 'ref'" in found["three"]


def test_references_that_go_round_have_no_reference():
    found = reasons(row("one", "two"), row("two", "three"), row("three", "two"))
    assert all("no slide is the reference" in found[name] for name in ("one", "two", "three"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"offset_x": "1"}, "offset_x without offset_y is no whole registration"),
        ({"rotation_deg": "3"}, "rotation_deg without offset_x and offset_y"),
        ({"offset_x": "1", "offset_y": "a lot"}, "offset_y 'a lot' is not a number"),
        ({"offset_x": "1", "offset_y": "nan"}, "offset_y 'nan' is not a number"),
        ({"offset_x": "1", "offset_y": "2", "scale": "-1"}, "scale '-1' is not a positive number"),
        ({"offset_x": "1", "offset_y": "2", "flip": "maybe"}, "flip 'maybe' is neither"),
    ],
)
def test_half_a_registration_is_named(given, said):
    empty = dict.fromkeys(("offset_x", "offset_y", "rotation_deg", "scale", "flip"), "")
    table = checked(row("ref", **empty), row("s", "ref", **empty | given))
    if said.startswith("offset_y 'nan'"):  # a word for nothing
        said = "offset_x without offset_y"
    assert said in table.filter(slide_id="s")["reason"][0]


def test_a_registration_is_read():
    given = {"offset_x": "10.5", "offset_y": "-2", "rotation_deg": "90", "flip": "yes", "scale": ""}
    table = checked(row("ref", **dict.fromkeys(given, "")), row("s", "ref", **given))
    found = table.filter(slide_id="s").row(0, named=True)
    assert [found[name] for name in given] == [10.5, -2.0, 90.0, True, None]
    assert table.filter(slide_id="ref")["same_tissue_as"].to_list() == [None]


def test_a_misspelt_column_is_refused():
    renamed = [{"same_tisue_as": "", **row("s")}]
    del renamed[0]["same_tissue_as"]
    with pytest.raises(ManifestError, match="rename 'same_tisue_as' to 'same_tissue_as'"):
        check_manifest(pl.DataFrame(renamed))


def test_a_tissue_counts_once_and_is_no_duplicate():
    listed = checked(row("ref"), row("again", "ref"), row("b", patient_id="p2", label="y"))
    slides = list_slides(listed).with_columns(
        path=pl.lit("one file"), fingerprint=pl.lit("f"), tissue_digest=pl.lit("ff" * 128)
    )
    assert dict(slides.select("slide_id", "status").iter_rows()) == {
        "ref": "usable", "b": "usable", "again": "repeat",
    }  # fmt: skip
    usable = slides.filter(status="usable")
    assert find_duplicates(usable)[0].slide_ids == ("b", "ref")
    design, summary = summarise_design(slides, {"cramers_v_warning": 0.5})
    assert design["n_slides"].sum() == summary["n_slides"] == 2
    assert summary["n_unusable"] == 0
    assert any("1 slide(s) show the tissue of another again" in w for w in summary["warnings"])
    assert all("again" not in group for group in summary["duplicates"])
