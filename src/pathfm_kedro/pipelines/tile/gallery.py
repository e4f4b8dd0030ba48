"""A picture of the cohort: tiles of every class and center beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.readers import resize
from pathfm_kedro.slides.thumbnails import read_tile

_GAP = 4


def draw_gallery(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
) -> NDArray[np.uint8]:
    """One row per label, one column per center, one tile in each cell; white where there is none.

    Parameters
    ----------
    slides, tiles
        The tables.
    files
        The cohort's folder.
    parameters
        ``pixels`` of a tile as it is read and ``gallery``: ``cell_pixels``, ``max_labels``,
        ``max_centers``.

    Returns
    -------
    ndarray
        uint8 [height, width, 3].
    """
    cell = int(parameters["gallery"]["cell_pixels"])
    chosen = _most_tissue(slides, tiles)
    labels = sorted(chosen["label"].unique())[: int(parameters["gallery"]["max_labels"])]
    centers = sorted(chosen["center"].unique())[: int(parameters["gallery"]["max_centers"])]
    step = cell + _GAP
    image = np.full(
        (max(1, len(labels)) * step + _GAP, max(1, len(centers)) * step + _GAP, 3), 255, np.uint8
    )
    for row in chosen.to_dicts():
        if row["label"] in labels and row["center"] in centers:
            top = _GAP + labels.index(row["label"]) * step
            left = _GAP + centers.index(row["center"]) * step
            slide = {"path": row["path"], "mpp": row["slide_mpp"]}
            tile = read_tile(files, slide, row, int(parameters["pixels"]))
            image[top : top + cell, left : left + cell] = resize(tile, cell, cell)
    return image


def no_gallery(parameters: Mapping[str, Any]) -> NDArray[np.uint8]:
    """An empty cell, for a cohort of features without slides."""
    cell = int(parameters["gallery"]["cell_pixels"])
    return np.full((cell, cell, 3), 255, np.uint8)


def _most_tissue(slides: pl.DataFrame, tiles: pl.DataFrame) -> pl.DataFrame:
    """For every label and center the tile with most tissue, the first of equals."""
    carried = slides.select("slide_id", "path", "label", "center", pl.col("mpp").alias("slide_mpp"))
    return (
        tiles.join(carried, on="slide_id")
        .sort("tissue_fraction", "tile_id", descending=[True, False])
        .unique(["label", "center"], keep="first", maintain_order=True)
        .sort("label", "center")
    )
