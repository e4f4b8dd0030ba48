"""Manifests of published cohorts, from small imitations of how they are published."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pathfm_kedro.manifests.folders import FolderError
from pathfm_kedro.manifests.layouts import LAYOUTS, layout_parameters
from pathfm_kedro.manifests.public_cohorts import ORGANS, list_camelyon17, list_tcga
from pathfm_kedro.manifests.tile_sets import list_pathorob
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from tests.conftest import PROJECT, files_of_base
from tests.slides.test_folders import fill

UUID = "70be2e6a-6b15-4f0b-a5a5-57e5e3bba0f0"


def usable(listing):
    table = check_manifest(listing.manifest)
    assert (table["status"] == "listed").all()
    return table


# --- CAMELYON17: images/patient_NNN_node_N.tif, stage_labels.csv

STAGES = """patient,stage
patient_004.zip,pN1
patient_004_node_4.tif,macro
patient_004_node_0.tif,negative
patient_081.zip,pN0(i+)
patient_081_node_1.tif,itc
"""


@pytest.fixture
def camelyon(tmp_path):
    fill(tmp_path, "images/patient_004_node_4.tif", "images/patient_004_node_0.tif")
    fill(tmp_path, "images/patient_081_node_1.tif", "masks/patient_004_node_4_mask.tif")
    fill(tmp_path, "annotations/patient_004_node_4.xml")
    (tmp_path / "stage_labels.csv").write_text(STAGES)
    return tmp_path


def test_camelyon17_has_its_five_centers_by_patient_and_its_stages(camelyon):
    table = usable(list_camelyon17(camelyon, camelyon))
    assert table.select("slide_id", "patient_id", "center", "label", "stage", "path").rows() == [
        ("patient_004_node_0", "patient_004", "center_0", "negative", "negative",
         "images/patient_004_node_0.tif"),
        ("patient_004_node_4", "patient_004", "center_0", "metastasis", "macro",
         "images/patient_004_node_4.tif"),
        ("patient_081_node_1", "patient_081", "center_4", "metastasis", "itc",
         "images/patient_081_node_1.tif"),
    ]  # fmt: skip
    assert set(table["organ"]) == {"lymph node"}


def test_camelyon17_leaves_out_what_has_no_stage_or_center_and_says_so(camelyon):
    fill(camelyon, "images/patient_150_node_0.tif", "training/center_2/patient_055_node_0.tif")
    with (camelyon / "stage_labels.csv").open("a") as file:
        file.write("patient_150_node_0.tif,macro\n")
    listing = list_camelyon17(camelyon, camelyon)
    assert listing.manifest.height == 3
    assert "left out: 1 slide(s) in no folder center_<n>" in listing.warnings
    assert "left out: 1 slide(s) without a stage in stage_labels.csv" in listing.warnings
    with (camelyon / "stage_labels.csv").open("a") as file:
        file.write("patient_055_node_0.tif,micro\n")
    assert "center_2" in list_camelyon17(camelyon, camelyon).manifest["center"].to_list()


def test_camelyon17_without_its_labels_or_with_other_slides_is_refused(camelyon):
    fill(camelyon, "images/tumor_001.tif")
    with pytest.raises(FolderError, match=r"images/tumor_001\.tif .*patient_<NNN>_node_<n>"):
        list_camelyon17(camelyon, camelyon)
    (camelyon / "images/tumor_001.tif").unlink()
    (camelyon / "stage_labels.csv").unlink()
    with pytest.raises(FolderError, match=r"no stage_labels\.csv"):
        list_camelyon17(camelyon, camelyon)


# --- TCGA: <file id>/<barcode>.<UUID>.svs, as gdc-client downloads them

KIRC = f"TCGA-CJ-4642-01Z-00-DX1.{UUID}"
LUAD = f"TCGA-05-4244-01A-01-TS1.{UUID}"
NORMAL = f"TCGA-CJ-4642-11A-01-TS1.{UUID}"


def test_tcga_takes_center_from_the_barcode_and_organ_from_the_project(tmp_path):
    fill(
        tmp_path, f"TCGA-KIRC/{UUID}/{KIRC}.svs", f"LUAD/a/{LUAD}.svs", f"TCGA-KIRC/b/{NORMAL}.svs"
    )
    listing = list_tcga(tmp_path, tmp_path)
    table = usable(listing)
    columns = ("slide_id", "patient_id", "center", "label", "organ", "preparation")
    assert table.select(columns).rows() == [
        (LUAD, "TCGA-05-4244", "05", "TCGA-LUAD", "lung", "frozen"),
        (KIRC, "TCGA-CJ-4642", "CJ", "TCGA-KIRC", "kidney", "FFPE"),
    ]
    assert "left out: 1 slide(s) of normal tissue" in listing.warnings
    assert any("tissueSourceSite.tsv" in text for text in listing.warnings)
    assert any("frozen" in text for text in listing.warnings)


def test_tcga_reads_gdcs_sample_sheet_and_its_table_of_sites(tmp_path):
    fill(tmp_path, f"{UUID}/{KIRC}.svs")
    (tmp_path / "gdc_sample_sheet.2026-01-01.tsv").write_text(
        f"File ID\tFile Name\tData Category\tProject ID\n{UUID}\t{KIRC}.svs\tBiospecimen\tTCGA-KIRC\n"
    )
    (tmp_path / "tissueSourceSite.tsv").write_text(
        "TSS Code\tSource Site\tStudy Name\tBCR\nCJ\tMD Anderson Cancer Center\tKidney\tNCH\n"
    )
    (row,) = usable(list_tcga(tmp_path, tmp_path)).to_dicts()
    assert (row["center"], row["label"]) == ("MD Anderson Cancer Center", "TCGA-KIRC")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([f"{UUID}/{KIRC}.svs"], "the project is not known"),
        (["TCGA-KIRC/slide.svs"], "a barcode"),
        ([f"TCGA-KIRC/{NORMAL}.svs"], "of normal tissue"),
        ([f"TCGA-KIRC/a/{KIRC}.svs", f"TCGA-KIRC/b/{KIRC}.svs"], "two slides"),
    ],
)
def test_tcga_that_cannot_be_listed_is_refused(tmp_path, names, said):
    fill(tmp_path, *names)
    with pytest.raises(FolderError, match=said):
        list_tcga(tmp_path, tmp_path)


def test_every_project_of_tcga_has_an_organ():
    assert len(ORGANS) == 33
    assert {ORGANS[name] for name in ("KICH", "KIRC", "KIRP")} == {"kidney"}


# --- PathoROB: Parquet files of a data set on the hub


def png(colour):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(file, "PNG")
    return file.getvalue()


def tile(slide, patch, label, center, image=None):
    content = png(len(slide)) if image is None else image
    return {"image": {"bytes": content, "path": None}, "subset": "ID", "slide_id": slide,
            "patch_id": patch, "biological_class": label, "medical_center": center}  # fmt: skip


def publish(folder, *tiles):
    pl.DataFrame(list(tiles)).write_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_pathorob_becomes_images_and_a_manifest(tmp_path):
    publish(
        tmp_path,
        tile("patient_004_node_4", "34317", "tumor", "CWZ"),
        tile("test_035", "37333", "normal", "RUMC"),
        tile("TCGA-E9-A1R5-01Z-00-DX1", "0_0_521", "Breast_invasive_carcinoma", "Asterand"),
        tile("case_030", "advent.100", "ADVENT", "VALSET2_WNS"),
    )
    table = usable(list_pathorob(tmp_path, tmp_path, 0.5))
    assert dict(table.select("slide_id", "patient_id").iter_rows()) == {
        "patient_004_node_4-34317": "patient_004",
        "test_035-37333": "test_035",
        "TCGA-E9-A1R5-01Z-00-DX1-0_0_521": "TCGA-E9-A1R5",
        "case_030-advent.100": "case_030",
    }
    for path in table["path"]:
        assert Image.open(tmp_path / path).size == (8, 8)
    assert set(table["mpp"]) == {0.5}
    assert "--mpp" in list_pathorob(tmp_path, tmp_path).warnings[0]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (tile("../../etc", "1", "x", "A"), "cannot name a file"),
        (tile("a", "../b", "x", "A"), "cannot name a file"),
        (tile("a", "1", "x", "A", b"GIF89a"), "holds no PNG"),
    ],
)
def test_a_tile_that_would_leave_the_folder_or_is_no_image_is_refused(tmp_path, bad, said):
    folder = tmp_path / "set"
    folder.mkdir()
    publish(folder, bad)
    with pytest.raises(FolderError, match=said):
        list_pathorob(folder, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    assert not list((folder / "images").iterdir())


def test_other_parquet_files_are_refused(tmp_path):
    with pytest.raises(FolderError, match="no Parquet file"):
        list_pathorob(tmp_path, tmp_path)
    pl.DataFrame({"image": ["x"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(FolderError, match="lacks the column subset"):
        list_pathorob(tmp_path, tmp_path)


# --- what cohorts of a layout change


def test_scenarios_change_parameters_that_there_are():
    folders = {path.name for path in (PROJECT / "conf/scenarios").iterdir() if path.is_dir()}
    assert folders <= set(LAYOUTS)
    for layout in folders:
        for name, content in layout_parameters(PROJECT / "conf", layout).items():
            base = files_of_base()[name]
            for section, values in content.items():
                assert set(values) <= set(base[section]), (layout, section)
    assert layout_parameters(PROJECT / "conf", "folders") == {}
