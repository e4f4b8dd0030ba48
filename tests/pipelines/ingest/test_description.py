"""Every slide is opened; what cannot be used stays with its reason and the rest go on."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pathfm_kedro.engine.failures import TooManyFailedError
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.design import summarise_design
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.interface import SlideDescription
from tests.conftest import base_parameters, manifest, manifest_row, write_tiff

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
        "1 group(s) of slides of different patients, 2 slides, are the same file: leakage, the same "
        "tissue would be its own neighbour; keep one of each, see 'duplicates' in the design summary"
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


MANY = [
    (f"MRN-{i:04d}", *kind)
    for i in range(12)
    for kind in (("A", "x"), ("B", "x"), ("A", "y"))[: 1 + i % 3]
]


def test_warnings_count_patients_and_slides_and_name_none():
    table = slides(*MANY).with_columns(
        pl.format("slide-{}", "slide_id").alias("slide_id"),
        warning=pl.lit("the pixels are not square"),
        fingerprint=pl.col("slide_id").cast(pl.Int64) // 3,
    )
    table = table.with_columns(pl.col("fingerprint").cast(pl.String))
    summary = summarise_design(table, PARAMETERS)[1]
    text = "\n".join(summary["warnings"])
    for column in ("patient_id", "slide_id"):
        named = [one for one in table[column] if re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text)]
        assert named == []
    assert "8 patient(s) have slides of more than one center (8 of A, B)" in text
    assert "4 patient(s) have slides of more than one label (4 of x, y)" in text
    assert f"{table.height} slide(s) (A " in text
    assert "of different patients" in text


def test_ids_stay_beside_the_warnings():
    summary = summarise_design(
        slides(("p", "A", "x"), ("p", "B", "x"), ("q", "B", "y")), PARAMETERS
    )[1]
    assert summary["patients_of_several"] == {"center": {"p": ["A", "B"]}, "label": {}}


@pytest.mark.parametrize(
    ("patient", "path", "shown"),
    [
        ("MRN17", "MRN17/a.svs", "<patient_id>/a.svs"),
        ("MRN17", "north/mrn17_b.svs", "north/<patient_id>_b.svs"),
        ("1", "north/p11/1.svs", "north/p11/<patient_id>.svs"),
        ("a", "slides/lung.svs", "slides/lung.svs"),
    ],
)
def test_no_reason_names_the_patient_by_the_path(tmp_path, patient, path, shown):
    row = described(tmp_path, manifest_row("s", path=path, patient_id=patient))["s"]
    assert row["reason"].startswith(f"no file at '{shown}' below")


def test_slides_without_an_organ_beside_others_are_warned_of():
    table = slides(("p1", "A", "x"), ("p2", "B", "y")).with_columns(
        organ=pl.Series(["lung", "unspecified"])
    )
    warnings = summarise_design(table, PARAMETERS)[1]["warnings"]
    assert any(text.startswith("1 of 2 slides have no organ") for text in warnings)


def write_with_glass(path, glass, tissue_side=350, side=1200):
    generator = np.random.default_rng(0)
    pixels = np.empty((side, side, 3))
    pixels[:] = glass
    at = slice((side - tissue_side) // 2, (side + tissue_side) // 2)
    coarse = generator.normal(0, 25, (tissue_side // 10, tissue_side // 10, 1)).repeat(10, 0)
    pixels[at, at] = np.array([200, 110, 165]) + coarse.repeat(10, 1)
    pixels += generator.normal(0, 2, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)


def test_the_share_of_tissue_is_basis_center(tmp_path):
    write_with_glass(tmp_path / "a.png", (244, 243, 244))
    write_with_glass(tmp_path / "b.png", (240, 230, 205))
    write_with_glass(tmp_path / "c.png", (244, 243, 244), tissue_side=1200)
    rows = [
        manifest_row(name, path=f"{name}.png", mpp="1.0", center=center)
        for name, center in zip("abc", "NSW", strict=True)
    ]
    listed = check_manifest(manifest(*rows))
    table = describe_slides(listed, SlideFiles(tmp_path), PARAMETERS, ENGINE)
    summary = summarise_design(table, PARAMETERS)[1]
    true = (350 / 1200) ** 2
    assert summary["tissue_share"] == pytest.approx({"N": true, "S": true, "W": 1}, abs=0.02)
    assert table["warning"].to_list()[:2] == ["", ""]
    assert table["warning"][2].startswith("98% or more of the slide counts as tissue")
    full = [text for text in summary["warnings"] if "counts as tissue" in text]
    assert full == [f"1 slide(s) (W 1): {table['warning'][2]}"]


def test_an_image_cut_from_tissue_may_be_full_of_it(tmp_path):
    write_with_glass(tmp_path / "a.png", (244, 243, 244), tissue_side=1000, side=1000)
    row = described(tmp_path, manifest_row("a", path="a.png", mpp="0.25"))["a"]
    assert (row["tissue_share"], row["warning"]) == (1.0, "")


@pytest.mark.parametrize("mpp", [0.05, 0.08])
def test_pixels_finer_than_any_objective_resolves_are_a_mistake(tmp_path, pink_slide, mpp):
    bounds = base_parameters()["ingest"]
    write_tiff(tmp_path / "a.tiff", pink_slide, mpp=mpp)
    listed = check_manifest(
        manifest(manifest_row("a"), manifest_row("b", path="a.tiff", mpp=str(mpp)))
    )
    table = describe_slides(listed, SlideFiles(tmp_path), bounds, ENGINE)
    said, given = table.sort("slide_id")["reason"].to_list()
    assert said.startswith(
        f"{mpp:g} micrometres per pixel is not credible (outside 0.1 to 10): correct"
    )
    assert "the file's tag XResolution and ResolutionUnit, or give the right 'mpp'" in said
    assert given.endswith(
        "is not credible (outside 0.1 to 10): give the right 'mpp' in the manifest"
    )


class Shown:
    """A reader of a file that says these things of itself."""

    def __init__(self, pixels: np.ndarray, **said):
        height, width = pixels.shape[:2]
        self.pixels = pixels
        self.description = SlideDescription("aperio", width, height, (1.0,), **said)

    def read(self, x, y, level, width, height):
        return self.pixels[y : y + height, x : x + width]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    ("mpp", "power", "fits"),
    [
        (0.25, 40, True), (0.23, 20, True), (0.5, 20, True), (0.2, 60, True), (1.0, 10, True),
        (0.5, 40, False), (0.12, 20, False), (2.5, 40, False), (0.25, 5, False), (0.25, None, True),
    ],
)  # fmt: skip
def test_pixels_that_do_not_fit_the_objective_are_warned_of(
    tmp_path, pink_slide, monkeypatch, mpp, power, fits
):
    (tmp_path / "a.svs").write_bytes(b"x")
    shown = Shown(pink_slide, mpp=mpp, magnification=power)
    monkeypatch.setattr("pathfm_kedro.slides.files.open_slide", lambda path: shown)
    row = described(tmp_path, manifest_row("a", path="a.svs"))["a"]
    assert row["status"] == "usable"
    if fits:
        assert row["warning"] == ""
        return
    assert f"{mpp:g} micrometres per pixel do not fit the objective of {power:g}x" in row["warning"]
    assert f"({power:g}x is about {10 / power:.2g})" in row["warning"]
    assert "correct the file's tag MPP in ImageDescription" in row["warning"]


def test_a_blank_slide_is_not_called_grey(tmp_path):
    pixels = np.full((400, 400, 3), 243, np.uint8)
    pixels[:, :90] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (
        described(tmp_path, manifest_row("a", path="a.png", mpp="0.5"))["a"]["status"] == "usable"
    )
