"""Manifests of tissue that was scanned or stained again, from the names of files and folders."""

from __future__ import annotations

import pytest

from pathfm_kedro.manifests.folders import FolderError
from pathfm_kedro.manifests.rescans import list_plism, list_rescans
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from tests.slides.test_folders import fill

STAINS = ["GIV", "GIVH", "GM", "GMH", "GV", "GVH", "HR", "HRH", "KR", "KRH", "LM", "LMH", "MY"]
SCANNERS = ["AT2", "GT450", "P", "S210", "S360", "S60", "SQ"]


def test_plism_is_91_slides_of_one_tissue_registered_to_one(tmp_path):
    fill(tmp_path, *(f"{a}_{b}_to_GMH_S60.tif" for a in STAINS for b in SCANNERS))
    listing = list_plism(tmp_path, tmp_path, 0.5)
    table = check_manifest(listing.manifest)
    assert table.height == 91
    assert (table["status"] == "listed").all()
    assert table["stain"].n_unique() == 13
    assert table["scanner"].n_unique() == 7
    reference = table.filter(table["same_tissue_as"].is_null())
    assert reference["slide_id"].to_list() == ["GMH_S60"]
    assert reference["offset_x"][0] is None
    others = table.filter(table["same_tissue_as"].is_not_null())
    assert set(others["same_tissue_as"]) == {"GMH_S60"}
    assert others.select("offset_x", "offset_y", "rotation_deg").unique().rows() == [
        (0.0, 0.0, 0.0)
    ]
    assert "one patient" in listing.warnings[0]


def test_plism_without_registration_leaves_it_to_the_audit(tmp_path):
    fill(tmp_path, "GIV_AT2.tif", "GMH_S60.tif")
    table = check_manifest(list_plism(tmp_path, tmp_path).manifest)
    assert table["same_tissue_as"].to_list() == [None, "GIV_AT2"]
    assert table["offset_x"].null_count() == 2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.tif"], "a.tif"),
        ([], "no slide"),
        (["GM_S60_to_GMH_S60.tif"], "and the reference itself"),
        (["GM_P_to_GMH_P.tif", "GMH_P_to_GM_P.tif"], "one reference"),
        (["GM_P.tif", "x/GM_P.tif"], "two slides"),
    ],
)
def test_other_names_are_refused(tmp_path, names, said):
    fill(tmp_path, *names)
    with pytest.raises(FolderError, match=said):
        list_plism(tmp_path, tmp_path)


def test_five_scanners_of_each_case_name_one_reference(tmp_path):
    cases = [("benign", "p1"), ("benign", "p2"), ("cancer", "p3")]
    scanners = ["AT2", "DP200", "GT450", "S360", "SQ"]
    fill(tmp_path, *(f"H/{label}/{s}/{p}/{p}.svs" for label, p in cases for s in scanners))
    # One case was scanned on four: the scanner that has most is the reference.
    (tmp_path / "H/benign/AT2/p1/p1.svs").unlink()
    levels = ("center", "label", "scanner", "patient")
    table = check_manifest(list_rescans(tmp_path, levels, tmp_path, 0.25).manifest)
    assert table.height == 14
    assert (table["status"] == "listed").all()
    references = table.filter(table["same_tissue_as"].is_null())
    assert references["scanner"].to_list() == ["DP200"] * 3
    assert references["patient_id"].sort().to_list() == ["p1", "p2", "p3"]
    for row in table.drop_nulls("same_tissue_as").iter_rows(named=True):
        assert (
            row["same_tissue_as"]
            == f"H-{row['label']}-DP200-{row['patient_id']}-{row['patient_id']}"
        )


def test_rescans_without_patients_are_one_patient_a_tissue(tmp_path):
    fill(tmp_path, "H/x/A/1.svs", "H/x/B/1.svs", "H/x/A/2.svs")
    listing = list_rescans(tmp_path, ("center", "label", "scanner"), tmp_path)
    table = check_manifest(listing.manifest)
    assert table["patient_id"].to_list() == ["H-x-A-1", "H-x-A-2", "H-x-A-1"]
    assert (table["status"] == "listed").all()
    assert any("1 tissue(s) have one slide" in text for text in listing.warnings)


def test_folders_that_hold_nothing_twice_are_refused(tmp_path):
    fill(tmp_path, "H/x/A/1.svs", "H/x/B/2.svs")
    with pytest.raises(FolderError, match="name the scans of one tissue alike"):
        list_rescans(tmp_path, ("center", "label", "scanner"), tmp_path)
    with pytest.raises(FolderError, match="neither scanner nor stain"):
        list_rescans(tmp_path, ("center", "label"), tmp_path)
