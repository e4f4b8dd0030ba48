"""Searches that look at no tissue, against counting."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.retrieve.baselines import (
    BASELINES,
    Baselines,
    baseline_figures,
    baseline_matches,
    colour_histograms,
)
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.wiring import Experiment
from tests.pipelines.retrieve.planted import slides_of

EXPERIMENT = Experiment(
    "retrieval_baselines", Baselines, baseline_matches, baseline_figures, [], subject="cohort"
)
PARAMETERS = {
    "families": list(BASELINES),
    "scopes": ["within_organ", "across_organs"],
    "votes": ["top1", "mv5"],
    "exclude": "patient",
    "k": 5,
    "min_patients": 2,
    "draws": 50,
    "n_permutations": 20,
    "seed": 0,
}


def cohort():
    label = np.array([0] * 14 + [1] * 8 + [2] * 8)
    slides = slides_of(label)
    tiles = slides.select("slide_id", in_mosaic=pl.lit(True))
    histogram = np.zeros((len(label), 24))
    histogram[np.arange(len(label)), label] = histogram[:, 8] = histogram[:, 16] = 1
    kind = pl.Array(pl.Float64(), 24)
    return (
        slides,
        tiles,
        slides.select("slide_id").with_columns(histogram=pl.Series(histogram, dtype=kind)),
    )


def test_baselines_equal_counting():
    from sklearn.metrics import f1_score

    slides, tiles, colours = cohort()
    matches = EXPERIMENT.statistics(slides, tiles, colours, PARAMETERS)
    table = EXPERIMENT.measurements(matches, slides, PARAMETERS, encoder="no_encoder")
    label = slides["label"].to_list()

    def value(baseline, vote):
        setting = {"baseline": baseline, "scope": "across_organs", "vote": vote}
        row = table.filter(metric="macro_f1", setting=json.dumps(setting, sort_keys=True))
        return row["value"][0]

    prior = [Counter(label[:i] + label[i + 1 :]).most_common(1)[0][0] for i in range(len(label))]
    for vote in PARAMETERS["votes"]:
        assert value("class_prior", vote) == pytest.approx(f1_score(label, prior, average="macro"))
        assert value("colour_histogram", vote) == 1  # the histograms are the labels
    assert value("random", "top1") < 0.7
    center = dict(slides.select("slide_id", "center").iter_rows())
    own = matches.filter(family="center_only")
    assert all(center[q] == center[m] for q, m in own.select("query_slide", "match_slide").rows())
    assert set(table["subject"]) == {"cohort"}


def test_a_slide_without_pixels_has_no_colours(tmp_path):
    from PIL import Image

    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[..., 0] = 255  # red: hue 0, saturation 1, brightness 1
    Image.fromarray(pixels).save(tmp_path / "a.png")
    slides = pl.DataFrame(
        {"slide_id": ["a", "b"], "path": ["a.png", "b.png"], "mpp": [0.5, 0.5],
         "fingerprint": ["1", "2"]}
    )  # fmt: skip
    tiles = pl.DataFrame(
        {
            "slide_id": ["a", "b"], "x": [0, 0], "y": [0, 0], "field_um": [16.0, 16.0],
            "in_mosaic": [True, True], "mpp": [0.5, 0.5],
        }
    )  # fmt: skip
    engine = {"workers": 1, "max_failed_share": 1.0}
    found = colour_histograms(slides, tiles, SlideFiles(tmp_path), {"pixels": 32}, engine)
    assert found["slide_id"].to_list() == ["a"]
    shares = found["histogram"].to_numpy()[0].reshape(3, 8)
    assert shares[:, [0, 7, 7]][[0, 1, 2], [0, 1, 2]].tolist() == [1, 1, 1]
