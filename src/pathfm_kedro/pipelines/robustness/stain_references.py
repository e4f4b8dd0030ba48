"""How the pool's tiles are stained, and what stands for each center's look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.base import Encoder, Vectors
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.slides.stain import (
    PROBLEMS,
    StainBasis,
    StainReference,
    fit_macenko,
    lab_statistics,
    stain_moments,
)
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.views import Tensors

#: Raised with any change of what is measured on a tile's pixels.
_REVISION = "1"

#: Decimals of a center's reference, which is part of every view's header: the last bits of a median
#: differ between processors.
_DECIMALS = 6

MOMENTS = ("haematoxylin_mean", "haematoxylin_sd", "eosin_mean", "eosin_sd")

#: One row per tile of the pool.
#:
#: - the moments: amounts of stain in one basis common to all tiles, natural optical density;
#: - lab_mean, lab_sd: CIELAB over all pixels;
#: - haematoxylin, eosin, high: the tile's own stain vectors and 99th percentiles of amounts; null
#:   where it has none, and reason says why.
TILE_STAIN_SCHEMA: dict[str, pl.DataType] = {
    "tile_id": pl.String(),
    "slide_id": pl.String(),
    "patient_id": pl.String(),
    "center": pl.String(),
    "label": pl.String(),
    **{name: pl.Float64() for name in MOMENTS},
    "lab_mean": pl.List(pl.Float64()),
    "lab_sd": pl.List(pl.Float64()),
    "haematoxylin": pl.List(pl.Float64()),
    "eosin": pl.List(pl.Float64()),
    "high": pl.List(pl.Float64()),
    "reason": pl.String(),
}

#: One row per center: medians over its tiles that have a stain of their own, or why there are none.
REFERENCE_SCHEMA: dict[str, pl.DataType] = {
    "center": pl.String(),
    "n_tiles": pl.Int64(),
    "n_fitted": pl.Int64(),
    "haematoxylin": pl.List(pl.Float64()),
    "eosin": pl.List(pl.Float64()),
    "high": pl.List(pl.Float64()),
    "lab_mean": pl.List(pl.Float64()),
    "lab_sd": pl.List(pl.Float64()),
    "reason": pl.String(),
}
_LENGTHS = {"haematoxylin": 3, "eosin": 3, "high": 2, "lab_mean": 3, "lab_sd": 3}


@dataclass(frozen=True)
class StainMeasurement:
    """The stain of a slide's tiles: work on pixels alone."""

    side: tuple[int, int] | None = None
    batch: int = 1
    units: str = "natural optical density; CIELAB with L in 0 ... 100"

    def describe(self) -> Any:
        """What beside the pixels decides the result."""
        return ["stain", _REVISION]

    def compute(
        self,
        encoder: Encoder | None,
        pixels: Pixels,
        truth: Vectors | None,
        tile_ids: Sequence[str],
    ) -> Tensors:
        """``moments`` [n, 4], ``lab`` [n, 6], ``macenko`` [n, 8] and ``problem`` [n].

        Macenko's numbers are zeros where `problem`, a position in
        :data:`~pathfm_kedro.slides.stain.PROBLEMS`, is not 0.
        """
        rows = [_stain_of_tile(tile) for tile in pixels]
        names = ("moments", "lab", "macenko", "problem")
        return {
            name: np.stack(part) for name, part in zip(names, zip(*rows, strict=True), strict=True)
        }


def stain_of_tiles(tiles: pl.DataFrame, pixels: int, p: Any) -> StainMeasurement:
    """What is measured on one slide's tiles: the same for all, whatever the parameters."""
    return StainMeasurement()


def _stain_of_tile(tile: Pixels) -> tuple[NDArray[np.float64], ...]:
    fit = fit_macenko(tile)
    macenko = np.zeros(8)
    if fit.basis is not None and fit.high is not None:
        macenko = np.array([*fit.basis.haematoxylin, *fit.basis.eosin, *fit.high])
    return (
        stain_moments(tile),
        np.concatenate(lab_statistics(tile)),
        macenko,
        np.array(fit.problem, np.float64),
    )


def tile_stains(stains: Embeddings, pool: pl.DataFrame) -> pl.DataFrame:
    """Turn what was measured on pixels into a table, one row per tile.

    Parameters
    ----------
    stains
        What :class:`StainMeasurement` left.
    pool
        The tiles; slides without a shard are left out.

    Returns
    -------
    DataFrame
        Columns :data:`TILE_STAIN_SCHEMA`.
    """
    present = pool.filter(pl.col("slide_id").is_in(stains.slide_ids))
    if present.is_empty():
        return pl.DataFrame(schema=TILE_STAIN_SCHEMA)
    order = present["slide_id"].unique(maintain_order=True).to_list()
    moments, lab, macenko, problem = (
        stains.stack(order, name).astype(np.float64)
        for name in ("moments", "lab", "macenko", "problem")
    )
    codes = np.rint(problem).astype(np.int64)
    fitted = pl.Series("_fitted", codes == 0)
    table = present.select("tile_id", "slide_id", "patient_id", "center", "label").with_columns(
        *(pl.Series(name, moments[:, i]) for i, name in enumerate(MOMENTS)),
        _lists("lab_mean", lab[:, :3]),
        _lists("lab_sd", lab[:, 3:]),
        _lists("haematoxylin", macenko[:, :3]),
        _lists("eosin", macenko[:, 3:6]),
        _lists("high", macenko[:, 6:]),
        pl.Series("reason", np.array(PROBLEMS)[codes].tolist(), pl.String()),
        fitted,
    )
    own = ("haematoxylin", "eosin", "high")
    return (
        table.with_columns(pl.when("_fitted").then(pl.col(name)).alias(name) for name in own)
        .select(TILE_STAIN_SCHEMA.keys())
        .cast(pl.Schema(TILE_STAIN_SCHEMA))
    )


def _lists(name: str, values: NDArray[np.float64]) -> pl.Series:
    return pl.Series(name, values.tolist(), pl.List(pl.Float64()))


def center_references(stains: pl.DataFrame, min_tiles: int) -> pl.DataFrame:
    """Each center's look: medians over its tiles that have a stain of their own.

    Parameters
    ----------
    stains
        From :func:`tile_stains`.
    min_tiles
        ``appearance.min_reference_tiles``: fewer tiles give no reference.

    Returns
    -------
    DataFrame
        Columns :data:`REFERENCE_SCHEMA`, centers sorted; a center with too few tiles has nulls and
        the reason.
    """
    fitted = pl.col("high").is_not_null()
    known = stains.filter(pl.col("center").is_not_null())
    medians = (
        pl.concat_list(pl.col(name).list.get(i).filter(fitted).median() for i in range(length))
        .list.eval(pl.element().round(_DECIMALS))
        .alias(name)
        for name, length in _LENGTHS.items()
    )
    table = (
        known.group_by("center")
        .agg(
            pl.len().cast(pl.Int64).alias("n_tiles"), fitted.sum().cast(pl.Int64).alias("n_fitted")
        )
        .join(known.group_by("center").agg(medians), on="center")
        .sort("center")
    )
    enough = pl.col("n_fitted") >= min_tiles
    reason = pl.format(
        "{} of {} tiles of the pool show haematoxylin and eosin, {} are needed: raise "
        "tile_pool.max_tiles or lower appearance.min_reference_tiles",
        "n_fitted",
        "n_tiles",
        pl.lit(min_tiles),
    )
    return table.with_columns(
        *(pl.when(enough).then(pl.col(name)).alias(name) for name in _LENGTHS),
        reason=pl.when(enough).then(pl.lit("")).otherwise(reason),
    ).select(pl.col(name).cast(kind) for name, kind in REFERENCE_SCHEMA.items())


def usable_references(references: pl.DataFrame) -> dict[str, StainReference]:
    """Centers with a reference, sorted by name."""
    rows = references.filter(pl.col("reason") == "").sort("center").iter_rows(named=True)
    return {
        row["center"]: StainReference(
            row["center"],
            StainBasis(tuple(row["haematoxylin"]), tuple(row["eosin"])),
            tuple(row["high"]),
            tuple(row["lab_mean"]),
            tuple(row["lab_sd"]),
        )
        for row in rows
    }


def target_centers(centers: Sequence[str], center: str | None, max_targets: int) -> list[str]:
    """Centers whose stain a center's tiles take: the next ones in the order of names, in a ring.

    So every center is a target equally often, and its own never.

    Examples
    --------
    >>> target_centers(["A", "B", "C"], "B", 2)
    ['C', 'A']
    >>> target_centers(["A", "B", "C"], "elsewhere", 2)
    []
    """
    if center is None or center not in centers:
        return []
    place = list(centers).index(center)
    return [
        centers[(place + step) % len(centers)]
        for step in range(1, n_targets(centers, max_targets) + 1)
    ]


def n_targets(centers: Sequence[str], max_targets: int) -> int:
    """How many other stains each tile takes."""
    return max(min(max_targets, len(centers) - 1), 0)
