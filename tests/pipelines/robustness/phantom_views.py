"""Tiles of a small phantom cohort, and their views as the encoders that serve as controls see them."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import numpy as np
import polars as pl

from pathfm_kedro.encoders.controls import Noise, PhantomTruth, StainStatistics, TileCorner
from pathfm_kedro.pipelines.robustness.appearance import Appearance, appearance_views
from pathfm_kedro.pipelines.robustness.tile_pool import POOL_COLUMNS
from pathfm_kedro.pipelines.robustness.tile_stains import StainMeasurement, tile_stains
from pathfm_kedro.slides.center_stains import center_references
from pathfm_kedro.slides.phantom import (
    PhantomDesign,
    PhantomSlide,
    draw_slide,
    phantom_manifest,
    tile_truth,
)
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.views import VIEWS

CONTROLS = {
    "stain_statistics": StainStatistics(),
    "noise": Noise(),
    "phantom_truth": PhantomTruth(),
    "tile_corner": TileCorner(),
}
#: Tiles of 112 px show as much as the figures need at a quarter of the time.
SIDE = 112


APPEARANCE = {
    "jitter": [0.02, 0.05, 0.1, 0.2],
    "jpeg": [90, 70, 50, 30],
    "blur": [0.5, 1.0, 2.0],
    "gamma": [0.64, 0.8, 1.25, 1.5625],
    "max_targets": 3,
    "min_reference_tiles": 5,
    "k": 10,
    "combined": {
        "stain": [{"change": "macenko"}],
        "scanner": [
            {"change": "jpeg", "quality": 70},
            {"change": "blur", "sigma_px": 1.0},
            {"change": "gamma", "exponent": 0.8},
        ],
    },
    "criteria": [
        {"metric": "stain_kept_neighbours", "above": 0.8},
        {"metric": "scanner_kept_neighbours", "above": 0.8},
    ],
    "draws": 300,
    "seed": 0,
}


@dataclass(frozen=True)
class Shards:
    """Stored tensors: one shard a slide."""

    shards: dict[str, dict[str, np.ndarray]]

    @property
    def slide_ids(self):
        return tuple(sorted(self.shards))

    def stack(self, slide_ids, name="embedding"):
        if not slide_ids:
            return np.zeros((0, 0), np.float32)
        return np.concatenate([self.shards[slide][name] for slide in slide_ids])


@dataclass(frozen=True)
class Cohort:
    """A pool of tiles with its pixels [n, s, s, 3] and what was drawn [n, m]."""

    pool: pl.DataFrame
    pixels: np.ndarray
    truth: np.ndarray


def make_pool(patients, labels, centers, slides=None) -> pl.DataFrame:
    """A pool of tiles by name, one row each."""
    n = len(patients)
    return pl.DataFrame(
        {
            "tile_id": [f"t{i:04d}" for i in range(n)],
            "slide_id": patients if slides is None else slides,
            "patient_id": patients,
            "center": centers,
            "organ": ["o"] * n,
            "label": labels,
            "field": ["wide"] * n,
            "x": [0] * n,
            "y": [0] * n,
            "field_um": [112.0] * n,
            "mpp": [0.5] * n,
        }
    ).select(POOL_COLUMNS)


def phantom_design(site_bias: float = 1.0) -> PhantomDesign:
    """4 labels, 3 centers, 2 patients in each cell."""
    return PhantomDesign(size_px=360, patients_per_cell=2, site_bias=site_bias)


@functools.cache
def drawn_slide(slide_id: str, site_bias: float = 1.0) -> PhantomSlide:
    """A slide of the cohort."""
    return draw_slide(phantom_design(site_bias), slide_id)


@functools.cache
def phantom_cohort(site_bias: float = 1.0) -> Cohort:
    """Three tiles of each patient of the design."""
    design = phantom_design(site_bias)
    rows, pixels, truth = [], [], []
    for slide in phantom_manifest(design).sort("slide_id").iter_rows(named=True):
        drawn = drawn_slide(slide["slide_id"], site_bias)
        for x, y in ((60, 120), (180, 120), (120, 210)):
            rows.append(slide)
            pixels.append(drawn.pixels[y : y + SIDE, x : x + SIDE])
            truth.append(tile_truth(drawn.description, x, y, SIDE))
    pool = make_pool(*([row[name] for row in rows] for name in ("patient_id", "label", "center")))
    return Cohort(pool, np.stack(pixels), np.stack(truth))


def shards_of(pool: pl.DataFrame, **tensors: np.ndarray) -> Shards:
    """Tensors [n, ...] of the pool's rows as one shard a slide."""
    slides = pool["slide_id"].to_numpy()
    return Shards(
        {
            slide: {name: values[slides == slide] for name, values in tensors.items()}
            for slide in np.unique(slides)
        }
    )


def measured_stains(pool: pl.DataFrame, pixels: np.ndarray) -> pl.DataFrame:
    """The stain table of tiles, as the per-slide jobs would measure it."""
    ids = pool["tile_id"].to_list()
    return tile_stains(shards_of(pool, **StainMeasurement().compute(None, pixels, None, ids)), pool)


@functools.cache
def phantom_stains() -> pl.DataFrame:
    """The stain table of the phantom cohort."""
    return measured_stains(phantom_cohort().pool, phantom_cohort().pixels)


@functools.cache
def phantom_references() -> pl.DataFrame:
    """The look of each center of the phantom cohort."""
    return center_references(phantom_stains(), APPEARANCE["min_reference_tiles"])


def appearance_with(**changes) -> Appearance:
    """The parameters of the appearance experiment, changed."""
    return read_parameters(Appearance, "appearance", APPEARANCE | changes)


@functools.cache
def appearance_of(control: str) -> Shards:
    """The appearance views of the phantom cohort as a control sees them."""
    p = appearance_with()
    return embedded(
        phantom_cohort(),
        lambda tile: appearance_views(phantom_references(), tile["center"][0], p),
        CONTROLS[control],
    )


def embedded(cohort: Cohort, work_of, encoder) -> Shards:
    """Views of every tile through an encoder; `work_of` gives the view set of a slide's tiles."""
    vectors = []
    for i, field, truth in zip(range(len(cohort.pixels)), cohort.pixels, cohort.truth, strict=True):
        tile = cohort.pool[i : i + 1]
        found = work_of(tile).compute(encoder, field[None], truth[None], tile["tile_id"].to_list())
        vectors.append(found[VIEWS])
    return shards_of(cohort.pool, views=np.concatenate(vectors))


def measured(
    experiment, parameters: dict, *inputs, encoder: str = "e", most: int = 60
) -> pl.DataFrame:
    """The measurements of an experiment, by the two steps that its nodes take."""
    statistics = experiment.statistics(*inputs, parameters)
    table = experiment.measurements(statistics, parameters, encoder=encoder)
    refuses_nan(table, most)
    return table


def pick(table: pl.DataFrame, metric: str, **setting) -> dict:
    """The one row of a metric and setting."""
    rows = [
        row
        for row in table.filter(metric=metric).iter_rows(named=True)
        if all(json.loads(row["setting"]).get(key) == value for key, value in setting.items())
    ]
    assert len(rows) == 1, f"{len(rows)} rows of {metric} {setting}"
    return rows[0]


def refuses_nan(table: pl.DataFrame, most: int = 60) -> None:
    """No figure is NaN, every undefined one says why, and rows are few."""
    numbers = ["value", "ci_low", "ci_high", "null_low", "null_high"]
    assert not table.select(pl.any_horizontal(pl.col(numbers).is_nan().any())).item()
    undefined = table.filter(pl.col("value").is_null())
    assert (undefined["reason"].str.len_chars() > 20).all()
    assert (undefined["verdict"] == "not_applicable").all()
    assert table.height <= most
