"""Audits of real tiles, from the manifest to the report, against what is known of the two sets."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from tests.journeys.conftest import (
    SMALL_INHERITANCE,
    SMALL_RETRIEVE,
    SMALL_ROBUSTNESS,
    fresh_clone,
    kedro,
    newest,
    read_table,
    write_parameters,
)

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.journey,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

CONTROLS = {"stain_statistics", "noise"}
INHERITANCE = SMALL_INHERITANCE | {
    "geometry": {"n_tiles": 128, "null_samples": 5, "draws": 200},
    "linear_probe": {"draws": 500},
}


def audit(clone, name, manifest, tile, encoders=None):
    """Take a cohort in and run all of its pipelines, as a person does."""
    kedro(clone, "cohort", "new", name, "--manifest", manifest, "--size", "quick")
    write_parameters(clone, name, "tile", tile=tile)
    write_parameters(clone, name, "robustness", **SMALL_ROBUSTNESS)
    write_parameters(clone, name, "retrieve", **SMALL_RETRIEVE)
    write_parameters(clone, name, "inheritance", **INHERITANCE)
    if encoders:
        write_parameters(clone, name, "encoders", encoders=encoders)
    kedro(clone, "run", "--env", name)
    return clone


def measured(clone, cohort, experiment, figure, /, **setting):
    """Rows of one metric of all encoders, by encoder."""
    rows = read_table(clone, cohort, "08_reporting/measurements.parquet").filter(
        experiment=experiment, metric=figure, stratum="all"
    )
    found = [
        row for row in rows.to_dicts() if setting.items() <= json.loads(row["setting"]).items()
    ]
    assert found, (experiment, figure, setting)
    return {row["encoder"]: row for row in found}


def check_report(clone, cohort, encoders):
    """What holds of every report: each encoder judged, nothing undefined without a reason."""
    page = newest(clone, cohort, "08_reporting/report.html").read_text(encoding="utf-8")
    findings = read_table(clone, cohort, "08_reporting/findings.parquet")
    figures = read_table(clone, cohort, "08_reporting/measurements.parquet")
    verdicts = read_table(clone, cohort, "08_reporting/verdicts.parquet")
    assert set(findings["encoder"]) == encoders == set(verdicts["encoder"])
    assert all(encoder in page for encoder in encoders)
    assert "nan" not in newest(clone, cohort, "08_reporting/summary.md").read_text().lower().split()
    silent = figures.filter(pl.col("value").is_null() & (pl.col("reason").fill_null("") == ""))
    assert silent.is_empty()
    assert not figures.select(pl.col("value").is_nan().any()).item()
    undecided = findings.filter(pl.col("verdict").is_in(["inconclusive", "not_applicable"]))
    assert (undecided["reason"].str.len_chars() > 20).all()
    metrics = newest(clone, cohort, "08_reporting/findings").glob("*.json")
    assert encoders == {path.stem for path in metrics}


# amibr: one organ, two classes that hardly differ, three scanners that do.

AMIBR_ENCODERS = CONTROLS | {"efficientnet_lite0", "vits14"}
REAL_ENCODERS = ("efficientnet_lite0", "vits14")


@pytest.fixture(scope="module")
def vits14(real_data):
    """A second real encoder, as a person names it: an architecture of timm and its weights."""
    return {
        "model": "timm:vit_small_patch14_dinov2",
        "checkpoint": str(real_data / "weights/vits14_imgfocus_depth8_fp16.safetensors"),
        "model_kwargs": {
            "img_size": 518,
            "dynamic_img_size": True,
            "depth": 8,
            "final_norm": False,
        },
        "pooling": "class_token",
        "input_pixels": 112,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


@pytest.fixture(scope="module")
def amibr(real_data, vits14, tmp_path_factory):
    """The audit of 288 breast tiles of 128 px; somebody cut them out of tissue: all are kept."""
    tile = {"pixels": 128, "mpp": 0.25, "min_tissue_fraction": 0.0}
    clone = fresh_clone(tmp_path_factory)
    return audit(clone, "amibr", real_data / "amibr.csv", tile, {"vits14": vits14})


def test_every_image_is_one_tile_and_has_a_vector(amibr):
    tiles = read_table(amibr, "amibr", "03_primary/tiles.parquet")
    assert tiles.height == tiles["slide_id"].n_unique() == 288
    assert set(tiles.select("x", "y").unique().rows()) == {(0, 0)}
    assert tiles["in_mosaic"].all()
    for encoder in AMIBR_ENCODERS:
        folder = newest(amibr, "amibr", f"04_feature/embeddings/*/{encoder}")
        assert len(list(folder.glob("*.safetensors"))) == 288


def test_the_report_of_amibr_judges_every_encoder(amibr):
    check_report(amibr, "amibr", AMIBR_ENCODERS)


def test_the_scanner_is_easy_and_the_class_is_hard(amibr):
    """What is published of this set: the domain is read from a tile, the class hardly."""
    center = measured(amibr, "amibr", "linear_probe", "balanced_accuracy", target="center")
    label = measured(amibr, "amibr", "linear_probe", "balanced_accuracy", target="label")
    for encoder in (*REAL_ENCODERS, "stain_statistics"):
        assert center[encoder]["value"] > 0.85, encoder
        assert center[encoder]["ci_low"] > 0.6 > center[encoder]["null_high"], encoder
        assert 0.4 < label[encoder]["value"] < 0.68, encoder
    for table, chance in ((center, 1 / 3), (label, 1 / 2)):
        knows_nothing = table["noise"]
        assert knows_nothing["ci_low"] < chance < knows_nothing["ci_high"]


def test_encoders_that_follow_the_scanner_fail_the_robustness_index(amibr):
    setting = {"design": "all", "role": "cohort_k"}
    below = measured(amibr, "amibr", "robustness_index", "ri_minus_null", **setting)
    for encoder in (*REAL_ENCODERS, "stain_statistics"):
        assert below[encoder]["verdict"] == "fail", encoder
        assert below[encoder]["ci_high"] < -0.3, encoder
    assert below["noise"]["verdict"] == "inconclusive"
    index = measured(amibr, "amibr", "robustness_index", "ri", **setting)
    design_null = (3 - 1) / (2 + 3 - 2)
    assert index["noise"]["ci_low"] < design_null < index["noise"]["ci_high"]
    findings = read_table(amibr, "amibr", "08_reporting/findings.parquet")
    final = findings.filter(metric="ri_minus_null", role="encoder")
    # Measured it is a fail; but no encoder reads the label of this set, and so nobody is judged by it.
    assert final["measured_verdict"].to_list() == ["fail", "fail"]
    assert final["verdict"].to_list() == ["inconclusive", "inconclusive"]
    assert final["reason"].str.contains("the label cannot be read here").all()


def test_the_controls_vouch_for_the_audit_of_amibr(amibr):
    controls = read_table(amibr, "amibr", "08_reporting/controls.parquet")
    assert controls.filter(pl.col("blocks")).is_empty()
    told = controls.filter(pl.col("behaves").is_not_null())
    assert told["behaves"].all()
    assert {"robustness_index", "rotation", "linear_probe"} <= set(told["experiment"])


def test_retrieval_of_a_class_that_is_hard_is_no_better_than_chance(amibr):
    setting = {"family": "median_min", "vote": "mv5", "scope": "within_organ"}
    macro_f1 = measured(amibr, "amibr", "retrieval", "macro_f1", **setting)
    for encoder in AMIBR_ENCODERS:
        assert 0.4 < macro_f1[encoder]["value"] < 0.6, encoder
    spread = measured(amibr, "amibr", "retrieval", "f1_range_over_organs", **setting)
    assert {row["verdict"] for row in spread.values()} == {"not_applicable"}
    assert "fewer than two organs" in spread["vits14"]["reason"]


def test_a_lossless_quarter_turn_leaves_colour_as_it_is(amibr):
    """Pre-cut tiles are turned within their inner square; no corner of it is invented."""
    pool = read_table(amibr, "amibr", "03_primary/tile_pool.parquet")
    assert pool.height == 24
    assert set(pool["field"]) == {"inscribed"}
    setting = {"angle": 90, "k": 10, "distance": "euclidean", "view": "rotated"}
    kept = measured(amibr, "amibr", "rotation", "mknn", **setting)
    assert kept["stain_statistics"]["value"] == 1.0
    chance = kept["noise"]["null_low"]
    assert kept["noise"]["ci_low"] < chance < kept["noise"]["ci_high"]
    for encoder in REAL_ENCODERS:
        assert chance < kept[encoder]["ci_low"]
        assert kept[encoder]["value"] < 0.95


def _vectors(clone, cohort, encoder, slide_ids):
    folder = newest(clone, cohort, f"04_feature/embeddings/*/{encoder}")
    index = json.loads((folder / "_index.json").read_text())["slides"]
    assert {entry["status"] for entry in index.values()} == {"done"}
    return np.concatenate(
        [load_file(folder / f"{name}.safetensors")["embedding"] for name in slide_ids]
    )


@pytest.mark.parametrize("encoder", sorted(AMIBR_ENCODERS))
def test_the_robustness_index_on_real_vectors_equals_brute_force(amibr, encoder):
    """Every query, every tile of another patient, sorted: SO / (SO + OS) among the k nearest."""
    slides = read_table(amibr, "amibr", "02_intermediate/slides.parquet").sort("slide_id")
    vectors = _vectors(amibr, "amibr", encoder, slides["slide_id"]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    label, center, patient = (slides[c].to_numpy() for c in ("label", "center", "patient_id"))
    similarity = vectors @ vectors.T
    similarity[patient[:, None] == patient[None, :]] = -np.inf
    nearest = np.argsort(-similarity, axis=1, kind="stable")
    for k in (1, 5, 21):
        found = nearest[:, :k]
        same_label = label[found] == label[:, None]
        same_center = center[found] == center[:, None]
        so, os = (same_label & ~same_center).sum(), (~same_label & same_center).sum()
        rows = measured(amibr, "amibr", "robustness_index", "ri", design="all", k=k)
        assert rows[encoder]["value"] == pytest.approx(so / (so + os), abs=1e-9)


def test_weights_from_a_file_give_the_vectors_that_timm_gives(amibr, real_data, vits14):
    """Loaded, resized and normalised without the project."""
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file as load_weights
    from torchvision.transforms import v2

    model = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, **vits14["model_kwargs"]
    ).eval()
    weights = load_weights(vits14["checkpoint"])
    model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    prepare = v2.Compose(
        [
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize((112, 112), v2.InterpolationMode.BICUBIC, antialias=True),
            v2.Normalize(vits14["mean"], vits14["std"]),
        ]
    )
    slides = read_table(amibr, "amibr", "02_intermediate/slides.parquet").head(4)
    images = [Image.open(real_data / path).convert("RGB") for path in slides["path"]]
    with torch.inference_mode():
        tokens = model.forward_features(torch.stack([prepare(image) for image in images]))
    stored = _vectors(amibr, "amibr", "vits14", slides["slide_id"])
    assert stored.shape == (4, 384)
    np.testing.assert_allclose(stored, tokens[:, 0].numpy(), atol=2e-2, rtol=2e-2)


# monuseg: eight organs from 23 centers, most of which sent one organ only.


@pytest.fixture(scope="module")
def monuseg(real_data, tmp_path_factory):
    """The audit of 44 images of 1000 px as slides of up to four tiles."""
    clone = fresh_clone(tmp_path_factory)
    return audit(clone, "monuseg", real_data / "monuseg.csv", {"max_tiles_per_slide": 4})


def test_the_report_of_monuseg_judges_every_encoder(monuseg):
    check_report(monuseg, "monuseg", CONTROLS | {"efficientnet_lite0"})


def test_the_design_warns_that_class_and_center_are_one(monuseg):
    summary = json.loads(
        newest(monuseg, "monuseg", "02_intermediate/design_summary.json").read_text()
    )
    assert summary["n_slides"] == summary["n_patients"] == 44
    assert summary["cramers_v"] > 0.8
    assert any("class and center are confounded" in text for text in summary["warnings"])
    page = newest(monuseg, "monuseg", "08_reporting/report.html").read_text(encoding="utf-8")
    assert "class and center are confounded" in page


def test_what_this_design_cannot_show_is_not_applicable_with_a_reason(monuseg):
    paired = measured(monuseg, "monuseg", "robustness_index", "ri", design="paired_2x2")
    for row in paired.values():
        assert row["value"] is None
        assert row["verdict"] == "not_applicable"
        assert "at the same two centers" in row["reason"]
    figures = read_table(monuseg, "monuseg", "08_reporting/measurements.parquet")
    left_out = figures.filter(pl.col("setting").str.contains("left_out"))
    assert left_out.height > 20


def test_no_real_encoder_is_failed_or_passed_for_its_centers_here(monuseg):
    findings = read_table(monuseg, "monuseg", "08_reporting/findings.parquet")
    center = findings.filter(experiment="robustness_index", role="encoder")
    assert center.height
    assert set(center["verdict"]) <= {"inconclusive", "not_applicable"}


def test_a_real_encoder_knows_more_of_tissue_than_colour_does(monuseg):
    setting = {"family": "mean", "vote": "top1", "scope": "across_organs"}
    found = measured(monuseg, "monuseg", "retrieval", "accuracy", **setting)
    order = ("noise", "stain_statistics", "efficientnet_lite0")
    values = [found[encoder]["value"] for encoder in order]
    assert values == sorted(values)
    assert values[-1] > 2 * values[0]
    probe = measured(monuseg, "monuseg", "linear_probe", "balanced_accuracy", target="label")
    assert probe["efficientnet_lite0"]["value"] > probe["noise"]["value"]
    assert probe["efficientnet_lite0"]["value"] > probe["efficientnet_lite0"]["null_high"]


def test_every_field_of_real_tissue_gives_tiles(monuseg):
    tiling = read_table(monuseg, "monuseg", "03_primary/tiling.parquet")
    assert tiling.filter(status="unusable").select("slide_id", "reason").rows() == []


def test_an_encoder_that_knows_nothing_passes_no_retrieval_check(monuseg):
    findings = read_table(monuseg, "monuseg", "08_reporting/findings.parquet")
    own = findings.filter(encoder="noise", experiment="retrieval")
    assert own.height
    assert "pass" not in set(own["verdict"])
