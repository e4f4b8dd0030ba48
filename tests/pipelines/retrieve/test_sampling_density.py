"""Mosaics at several densities."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.retrieve.sampling_density import (
    SPREAD,
    SamplingDensity,
    chosen_tiles,
    density_figures,
    density_matches,
)
from pathfm_kedro.slides.mosaic import choose_mosaic
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory
from tests.pipelines.retrieve.planted import slides_of

DENSITY = Experiment("sampling_density", SamplingDensity, density_matches, density_figures, [])
PARAMETERS = {
    "families": ["mean", "maxsim"],
    "scopes": ["within_organ"],
    "votes": ["top1"],
    "densities": [0.1, 0.5, 1.0],
    "mosaics": 3,
    "exclude": "patient",
    "k": 5,
    "min_patients": 2,
    "draws": 100,
    "n_permutations": 20,
    "seed": 0,
}


def cohort(n=18, per_slide=24, noise=2.0):
    generator = np.random.default_rng(0)
    label = np.arange(n) % 3
    slides = slides_of(label)
    names = np.repeat(slides["slide_id"].to_numpy(), per_slide)
    tiles = pl.DataFrame(
        {
            "slide_id": names,
            "tile_id": [f"{name}@{i:03}" for i, name in enumerate(names)],
            "x": generator.integers(0, 9000, len(names)),
            "y": generator.integers(0, 9000, len(names)),
            "colour_cluster": generator.integers(0, 3, len(names)),
            "in_mosaic": [False] * len(names),
        }
    )
    shards = {
        name: (np.eye(3)[one] + noise * generator.normal(size=(per_slide, 3))).astype(np.float32)
        for name, one in zip(slides["slide_id"], label, strict=True)
    }
    return slides, tiles, InMemory(shards)


def test_the_spread_mosaic_is_that_of_the_tile_pipeline_and_random_ones_are_as_large():
    _, tiles, _ = cohort()
    spread = tiles.with_columns(chosen=chosen_tiles(tiles, 0.3, SPREAD, seed=4))
    drawn = tiles.with_columns(chosen=chosen_tiles(tiles, 0.3, 2, seed=4))
    for (slide,), own in spread.group_by("slide_id"):
        positions = own.select("x", "y").to_numpy()
        expected = choose_mosaic(own["colour_cluster"].to_numpy(), positions, 0.3, 4)
        assert own["chosen"].to_list() == expected.tolist()
        other = drawn.filter(slide_id=slide)
        sizes = [t.filter("chosen")["colour_cluster"].value_counts(sort=True) for t in (own, other)]
        assert sorted(sizes[0].rows()) == sorted(sizes[1].rows())
    assert drawn["chosen"].to_list() != spread["chosen"].to_list()
    assert chosen_tiles(tiles, 1.0, SPREAD, seed=4).all()


def test_more_tiles_find_more_and_one_choice_differs_from_another():
    slides, tiles, embeddings = cohort()
    matches = DENSITY.statistics(slides, tiles, embeddings, PARAMETERS)
    table = DENSITY.measurements(matches, slides, PARAMETERS, encoder="e")

    def rows(metric, density):
        setting = {"family": "mean", "scope": "within_organ", "vote": "top1", "density": density}
        return table.filter(metric=metric, setting=json.dumps(setting, sort_keys=True)).row(
            0, named=True
        )

    few, all_of_them = rows("macro_f1", 0.1)["value"], rows("macro_f1", 1.0)["value"]
    assert few < all_of_them
    spread = rows("f1_sd_over_mosaics", 0.1)
    assert spread["ci_low"] < spread["value"] < spread["ci_high"]
    of_all = rows("f1_sd_over_mosaics", 1.0)
    assert of_all["verdict"] == "not_applicable"
    assert "every tile is taken" in of_all["reason"]
    # By hand: the mean over random mosaics is that of separate searches.
    values = []
    for number in (1, 2, 3):
        chosen = tiles.with_columns(in_mosaic=chosen_tiles(tiles, 0.1, number, 0))
        own = matches.filter(density=0.1, mosaic=number, family="mean", rank=1)
        means = {
            name: embeddings.shards[name][chosen.filter(slide_id=name)["in_mosaic"].to_numpy()]
            .astype(float).mean(axis=0)
            for name in slides["slide_id"]
        }  # fmt: skip
        unit = np.stack([v / np.linalg.norm(v) for v in means.values()])
        similar = unit @ unit.T - 9 * np.eye(len(unit))
        nearest = dict(own.select("query_slide", "match_slide").iter_rows())
        assert list(nearest.values()) == [
            slides["slide_id"][int(i)] for i in similar.argmax(axis=1)
        ]
        from sklearn.metrics import f1_score

        label = dict(slides.select("slide_id", "label").iter_rows())
        values.append(
            f1_score(
                [label[q] for q in nearest], [label[m] for m in nearest.values()], average="macro"
            )
        )
    assert rows("f1_mean_over_mosaics", 0.1)["value"] == pytest.approx(np.mean(values))
    assert spread["value"] == pytest.approx(np.std(values, ddof=1))
