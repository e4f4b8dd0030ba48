"""Doses: what is mixed, and that a check goes from pass to fail as nuisance takes over."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import yaml

from pathfm_kedro.pipelines.robustness.calibration import (
    BlindTiles,
    DosedEmbeddings,
    calibrate_robustness_index,
)
from tests.conftest import PROJECT

PARAMETERS = yaml.safe_load((PROJECT / "conf/base/parameters_robustness.yml").read_text())


class Stored:
    """One shard a slide."""

    def __init__(self, shards):
        self.shards = shards

    @property
    def slide_ids(self):
        return tuple(sorted(self.shards))

    def stack(self, slide_ids, name="embedding"):
        return np.concatenate([self.shards[slide][name] for slide in slide_ids])


def cohort():
    """Three labels at three centers, four patients in each cell, six tiles each."""
    cells = [(label, center, i) for label in "xyz" for center in "ABC" for i in range(4)]
    slides = pl.DataFrame(
        {
            "slide_id": [f"{a}{b}{i}" for a, b, i in cells],
            "patient_id": [f"p{a}{b}{i}" for a, b, i in cells],
            "center": [b for _, b, _ in cells],
            "label": [a for a, _, _ in cells],
            "organ": ["o"] * len(cells),
            "status": ["usable"] * len(cells),
        }
    )
    tiles = pl.DataFrame(
        {
            "tile_id": [f"{s}-{i}" for s in slides["slide_id"] for i in range(6)],
            "slide_id": [s for s in slides["slide_id"] for _ in range(6)],
        }
    )
    return slides, tiles


def known_by(slides, column, seed):
    """Vectors that tell one column and nothing else."""
    random = np.random.default_rng(seed)
    place = {name: random.normal(size=8) * 4 for name in sorted(set(slides[column]))}
    return Stored(
        {
            slide: {"embedding": (place[name] + random.normal(size=(6, 8))).astype(np.float32)}
            for slide, name in slides.select("slide_id", column).iter_rows()
        }
    )


@pytest.mark.parametrize("dose", [0.0, 0.3, 1.0])
def test_the_dose_is_the_share_of_the_squared_length(dose):
    slides, _ = cohort()
    truth, nuisance = known_by(slides, "label", 0), known_by(slides, "center", 1)
    for shard in nuisance.shards.values():
        shard["embedding"] *= 1000
    mixed = DosedEmbeddings(truth, nuisance, "embedding", dose).stack(truth.slide_ids)
    squares = (mixed**2).sum(axis=0)
    assert squares[8:].sum() / squares.sum() == pytest.approx(dose, abs=1e-5)


def test_views_are_scaled_as_the_clean_tile_is():
    random = np.random.default_rng(0)
    shards = {"s": {"views": random.normal(size=(30, 3, 4)).astype(np.float32)}}
    source = Stored(shards)
    mixed = DosedEmbeddings(source, source, "views", 0.5)
    views = mixed.stack(["s"], "views")
    assert views.shape == (30, 3, 8)
    assert (views[:, 0] ** 2).sum(axis=1).mean() == pytest.approx(1, abs=1e-5)
    before = shards["s"]["views"]
    ratio = (views[:, 1, :4] - views[:, 0, :4]) / (before[:, 1] - before[:, 0])
    assert np.ptp(ratio) < 1e-3


def test_the_robustness_index_goes_from_pass_to_fail():
    slides, tiles = cohort()
    told = PARAMETERS["robustness_index"] | {"n_permutations": 20, "bootstrap_draws": 300}
    table = calibrate_robustness_index(
        slides,
        tiles,
        known_by(slides, "label", 0),
        known_by(slides, "center", 1),
        {"k": 9, "per_encoder": {}},
        told,
        {"doses": [1.0, 0.0]},
        encoder="phantom_truth",
    )
    verdicts = {json.loads(s)["dose"]: json.loads(s)["verdict"] for s in table["setting"]}
    assert verdicts == {0.0: "pass", 1.0: "fail"}
    # What a dosed encoder does is no finding about the cohort.
    assert table["threshold"].null_count() == table.height
    assert table["value"].null_count() == 0


def test_only_tiles_are_blinded():
    random = np.random.default_rng(0)
    parts = random.normal(size=(40, 5, 6)).astype(np.float32)
    truth = Stored({"s": {"parts": parts, "cost": np.ones((40, 2), np.float32)}})
    seeing, blind = (BlindTiles(truth, (1,), dose).stack(["s"], "parts") for dose in (0.0, 1.0))
    np.testing.assert_array_equal(seeing[:, 1], blind[:, 1])
    correlation = np.corrcoef(seeing[:, 0].ravel(), blind[:, 0].ravel())[0, 1]
    assert abs(correlation) < 0.2
    np.testing.assert_array_equal(BlindTiles(truth, (1,), 1.0).stack(["s"], "cost"), 1)
