"""An audit of feature files without a slide, from the command that makes the cohort to the report."""

from __future__ import annotations

import h5py
import numpy as np
import polars as pl
import pytest

from pathfm_kedro.commands.supported_checks import ON_PIXELS
from tests.journeys.conftest import fresh_clone, kedro, newest, read_table, write_parameters

pytestmark = [pytest.mark.journey, pytest.mark.slow]

COHORT = "brought"
LABELS, CENTERS, PATIENTS, TILES, DIMENSION = ("adeno", "squam"), ("north", "south"), 5, 24, 16


def write_features(folder):
    """Two encoders' files in TRIDENT's layout and a manifest without paths; one file is missing."""
    generator = np.random.default_rng(0)
    of_label = {name: generator.normal(size=DIMENSION) for name in LABELS}
    of_center = {name: generator.normal(0, 0.7, DIMENSION) for name in CENTERS}
    corners = np.stack(np.meshgrid(np.arange(6), np.arange(4)), axis=-1).reshape(-1, 2) * 1024
    rows = ["slide_id,path,patient_id,center,label"]
    for name in ("uni", "titan"):
        (folder / f"features_{name}").mkdir(parents=True)
    for label, center, number in np.ndindex(len(LABELS), len(CENTERS), PATIENTS):
        slide = f"s{label}{center}{number}"
        rows.append(f"{slide},,p{slide},{CENTERS[center]},{LABELS[label]}")
        middle = of_label[LABELS[label]] + of_center[CENTERS[center]]
        with h5py.File(folder / "features_titan" / f"{slide}.h5", "w") as file:
            vector = middle + generator.normal(0, 0.2, DIMENSION)
            file.create_dataset("features", data=vector.astype("f4")).attrs["encoder"] = "titan"
        if slide == "s000":
            continue
        with h5py.File(folder / "features_uni" / f"{slide}.h5", "w") as file:
            vectors = middle + generator.normal(size=(TILES, DIMENSION))
            file.create_dataset("features", data=vectors.astype("f4")).attrs["encoder"] = "uni_v1"
            coords = file.create_dataset("coords", data=corners)
            coords.attrs.update({"patch_size": 256, "patch_size_level0": 1024, "name": slide})
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = fresh_clone(tmp_path_factory)
    job = folder.parent / "job"
    write_features(job)
    stated = kedro(
        folder, "cohort", "new", COHORT, "--manifest", job / "slides.csv",
        f"--features=uni={job / 'features_uni'}", f"--features=titan={job / 'features_titan'}",
        "--size=quick",
    )  # fmt: skip
    assert "uni: 19 of 20 slides have a file; layout trident" in stated.stdout
    write_parameters(folder, COHORT, "robustness", rotation={"angle_step": 90, "k": [10]})
    return folder, kedro(folder, "run", "--env", COHORT)


def test_what_needs_pixels_is_not_applicable_and_the_rest_is_measured(audited):
    folder, _ = audited
    rows = read_table(folder, COHORT, "08_reporting/measurements.parquet")
    measured = rows.filter(encoder="uni").drop_nulls("value")["experiment"].unique()
    assert {
        "robustness_index", "robustness_margins", "comparison", "clustering_score",
        "performance_drop", "center_auc", "retrieval", "linear_probe", "geometry",
    } <= set(measured)  # fmt: skip
    pixels = ["rotation", "appearance", "cue_conflict", "texture", "crop_coherence", "field_of_view",
              "adversarial", "stain_probe"]  # fmt: skip
    for name in pixels:
        own = rows.filter(experiment=name)
        assert own.height
        assert set(own["verdict"]) == {"not_applicable"}, name
        assert own["reason"].str.starts_with("needs pixels").all(), name
    on_pixels = rows.filter(pl.col("experiment").is_in(ON_PIXELS), encoder="uni")
    assert set(on_pixels["verdict"]) == {"not_applicable"}


def test_a_slide_without_a_file_has_a_reason_for_that_encoder_alone(audited):
    folder, _ = audited
    tiling = read_table(folder, COHORT, "03_primary/tiling.parquet")
    assert "no file of features" in tiling.filter(slide_id="s000")["reason"][0]
    brought = newest(folder, COHORT, "03_primary/feature_tiles/*/tiling.titan.parquet")
    assert brought.is_file()


def test_the_report_says_what_it_rests_on(audited):
    folder, run = audited
    assert "left out, since they need pixels" in run.stdout + run.stderr
    report = newest(folder, COHORT, "08_reporting/report.html").read_text()
    assert "Nothing that needs pixels: the cohort has features and no slides" in report
    assert "titan: the tiles of its files" in report


def test_noise_lies_at_its_null_and_colour_is_not_asked(audited):
    folder, _ = audited
    controls = read_table(folder, COHORT, "08_reporting/controls.parquet")
    index = {r["control"]: r for r in controls.filter(experiment="robustness_index").to_dicts()}
    assert index["noise"]["behaves"]
    assert index["stain_statistics"]["behaves"] is None
    assert not index["stain_statistics"]["blocks"]
