"""Every slide is opened; what cannot be used stays with its reason and the rest go on."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pathfm_kedro.engine.failures import TooManyFailedError
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.design import summarise_design
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.slides.files import SlideFiles
from tests.conftest import manifest, manifest_row, write_tiff

PARAMETERS = {"mpp_bounds": [0.05, 10.0], "cramers_v_warning": 0.5}
ENGINE = {"workers": 1, "max_failed_share": 1.0}


def described(folder, *rows) -> dict[str, dict]:
    listed = check_manifest(manifest(*rows))
    table = describe_slides(listed, SlideFiles(folder), PARAMETERS, ENGINE)
    return {row["slide_id"]: row for row in table.to_dicts()}


def test_a_slide_is_described(tmp_path, pink_slide):
    write_tiff(tmp_path / "a.tiff", pink_slide)
    row = described(tmp_path, manifest_row("a"))["a"]
    assert (row["width"], row["height"], row["levels"]) == (1024, 1024, 2)
    assert row["vendor"] == "generic-tiff"
    assert row["mpp"] == pytest.approx(0.5)
    assert len(row["fingerprint"]) == 64
    assert row["status"] == "usable"


def test_the_manifests_mpp_comes_first(tmp_path, pink_slide):
    write_tiff(tmp_path / "a.tiff", pink_slide)
    assert described(tmp_path, manifest_row("a", mpp="0.25"))["a"]["mpp"] == 0.25


def test_bad_slides_get_their_reason_and_good_ones_go_on(tmp_path, pink_slide):
    write_tiff(tmp_path / "good.tiff", pink_slide)
    write_tiff(tmp_path / "no_mpp.tiff", pink_slide, mpp=None)
    write_tiff(tmp_path / "absurd.tiff", pink_slide, mpp=300)
    whole = (tmp_path / "good.tiff").read_bytes()
    (tmp_path / "truncated.tiff").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "text.tiff").write_text("not a slide")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(pink_slide).save(tmp_path / "plain.png")
    (tmp_path / "folder.tiff").mkdir()
    rows = described(
        tmp_path,
        manifest_row("good"),
        manifest_row("no_mpp"),
        manifest_row("absurd"),
        manifest_row("truncated"),
        manifest_row("text"),
        manifest_row("empty", path="empty.png"),
        manifest_row("plain", path="plain.png", mpp="0.5"),
        manifest_row("folder"),
        manifest_row("missing"),
        manifest_row("climbing", path="../secret.svs"),
        manifest_row("absolute", path="/etc/passwd"),
        manifest_row("unlabelled", label=""),
    )
    usable = {name for name, row in rows.items() if row["status"] == "usable"}
    assert usable == {"good", "plain"}
    reasons = {name: row["reason"] for name, row in rows.items()}
    assert "give 'mpp' in the manifest" in reasons["no_mpp"]
    assert "300 micrometres per pixel is not credible" in reasons["absurd"]
    assert "no reader knows this format" in reasons["text"]
    assert "the file is empty" in reasons["empty"]
    assert "without DICOM files" in reasons["folder"]
    assert "no file at 'missing.tiff'" in reasons["missing"]
    assert "leads out of the manifest's folder" in reasons["climbing"]
    assert "leads out of the manifest's folder" in reasons["absolute"]
    assert "'label' is empty" in reasons["unlabelled"]
    assert reasons["truncated"]


def test_threads_do_not_change_the_table(tmp_path, pink_slide):
    for name in "abcd":
        write_tiff(tmp_path / f"{name}.tiff", pink_slide)
    listed = check_manifest(manifest(*(manifest_row(name) for name in "abcd")))
    one, two = (
        describe_slides(listed, SlideFiles(tmp_path), PARAMETERS, ENGINE | {"workers": n})
        for n in (1, 2)
    )
    assert one.equals(two)


def slides(*rows: tuple[str, str, str]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"slide_id": str(i), "patient_id": p, "center": c, "label": y, "organ": "o"}
            | {"status": "usable", "fingerprint": str(i), "path": f"{i}.svs", "warning": ""}
            for i, (p, c, y) in enumerate(rows)
        ]
    ).with_columns(tissue_digest=pl.lit(None, pl.String))


def test_a_confounded_design_is_warned_of():
    table = slides(("p1", "A", "x"), ("p2", "A", "x"), ("p3", "B", "y"), ("p4", "B", "y"))
    design, summary = summarise_design(table, PARAMETERS)
    assert summary["cramers_v"] == 1.0
    assert any("confounded" in warning for warning in summary["warnings"])
    assert (
        design.filter((pl.col("label") == "x") & (pl.col("center") == "B"))["n_slides"].item() == 0
    )


def test_one_center_and_one_patient_labels_are_warned_of():
    _, summary = summarise_design(slides(("p1", "A", "x"), ("p2", "A", "y")), PARAMETERS)
    assert summary["cramers_v"] is None
    assert any("one center only" in warning for warning in summary["warnings"])
    assert any("2 label(s) with one patient" in warning for warning in summary["warnings"])


def test_the_same_file_under_two_patients_is_warned_of():
    table = slides(("p1", "A", "x"), ("p2", "B", "x")).with_columns(fingerprint=pl.lit("same"))
    warnings = summarise_design(table, PARAMETERS)[1]["warnings"]
    assert (
        "slides 0, 1 of different patients are the same file: leakage, the same tissue would be its "
        "own neighbour; keep one of them"
    ) in warnings


def test_nothing_usable_is_said():
    table = slides(("p", "A", "x")).with_columns(status=pl.lit("unusable"))
    design, summary = summarise_design(table, PARAMETERS)
    assert design.is_empty()
    assert "no slide is usable" in summary["warnings"][0]


def test_patients_count_not_slides():
    table = slides(*[("p1", "A", "x")] * 50, ("p2", "B", "x"), ("p3", "A", "y"), ("p4", "B", "y"))
    assert summarise_design(table, PARAMETERS)[1]["cramers_v"] == 0.0
    assert np.isclose(summarise_design(table, PARAMETERS)[0]["n_slides"].sum(), 53)


def test_more_unusable_slides_than_allowed_end_the_run(tmp_path, pink_slide):
    write_tiff(tmp_path / "a.tiff", pink_slide)
    listed = check_manifest(manifest(*(manifest_row(name) for name in "abc")))
    strict = ENGINE | {"max_failed_share": 0.5}
    with pytest.raises(TooManyFailedError, match=r"2 of 3 slides failed.*b: no file at 'b\.tiff'"):
        describe_slides(listed, SlideFiles(tmp_path), PARAMETERS, strict)
