"""Tables and embeddings joined row by row: what every experiment starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray


class Embeddings(Protocol):
    """Vectors of an encoder, one shard a slide, read when asked for."""

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides with a whole shard, sorted."""
        ...

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """Rows of these slides one below the other, each slide in the order of its tiles."""
        ...


def tile_rows(slides: pl.DataFrame, tiles: pl.DataFrame, slide_ids: Sequence[str]) -> pl.DataFrame:
    """One row per tile of the given slides with what its slide carries.

    Parameters
    ----------
    slides
        Slides table: slide_id, patient_id, center, organ, label, …
    tiles
        Tiles table: tile_id, slide_id, … in the order in which tiles were embedded.
    slide_ids
        Slides in the order in which their embeddings are stacked.

    Returns
    -------
    DataFrame
        The tiles' columns with patient_id, center, organ, label; row i belongs to row i of
        ``embeddings.stack(slide_ids)``.

    Examples
    --------
    >>> slides = pl.DataFrame({"slide_id": ["s", "t"], "patient_id": ["p", "q"],
    ...                        "center": ["A", "B"], "organ": ["o", "o"], "label": ["x", "y"]})
    >>> tiles = pl.DataFrame({"tile_id": ["t1", "s1"], "slide_id": ["t", "s"]})
    >>> tile_rows(slides, tiles, ["s", "t"])["tile_id"].to_list()
    ['s1', 't1']
    """
    order = pl.DataFrame(
        {"slide_id": list(slide_ids), "_order": range(len(slide_ids))},
        schema={"slide_id": pl.String(), "_order": pl.Int64()},
    )
    carried = slides.select("slide_id", "patient_id", "center", "organ", "label")
    return (
        tiles.with_row_index("_row")
        .join(order, on="slide_id", how="inner")
        .join(carried, on="slide_id", how="left")
        .sort("_order", "_row")
        .drop("_order", "_row")
    )
