"""How tiles are stained, and what stands for each center's look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.slides.stain import (
    PROBLEMS,
    StainBasis,
    StainReference,
    fit_macenko,
    lab_statistics,
    stain_moments,
)

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
class TileStains:
    """What was measured on the pixels of n tiles.

    Attributes
    ----------
    moments, lab, macenko, problem
        [n, 4], [n, 6], [n, 8] and [n]. Macenko's numbers are zeros where `problem`, a position in
        :data:`~pathfm_kedro.slides.stain.PROBLEMS`, is not 0.
    """

    moments: NDArray[np.float64]
    lab: NDArray[np.float64]
    macenko: NDArray[np.float64]
    problem: NDArray[np.float64]

    @classmethod
    def of(cls, pixels: Pixels) -> TileStains:
        """The stain of tiles uint8 [n, h, w, 3], one at least."""
        return cls(*map(np.stack, zip(*map(_stain_of_tile, pixels), strict=True)))

    def table(self, tiles: pl.DataFrame) -> pl.DataFrame:
        """Columns :data:`TILE_STAIN_SCHEMA`.

        Parameters
        ----------
        tiles
            tile_id, slide_id, patient_id, center, label of the n tiles.
        """
        codes = np.rint(self.problem).astype(np.int64)
        table = tiles.select("tile_id", "slide_id", "patient_id", "center", "label").with_columns(
            *(pl.Series(name, self.moments[:, i]) for i, name in enumerate(MOMENTS)),
            _lists("lab_mean", self.lab[:, :3]),
            _lists("lab_sd", self.lab[:, 3:]),
            _lists("haematoxylin", self.macenko[:, :3]),
            _lists("eosin", self.macenko[:, 3:6]),
            _lists("high", self.macenko[:, 6:]),
            pl.Series("reason", np.array(PROBLEMS)[codes].tolist(), pl.String()),
            pl.Series("_fitted", codes == 0),
        )
        own = ("haematoxylin", "eosin", "high")
        return (
            table.with_columns(pl.when("_fitted").then(pl.col(name)).alias(name) for name in own)
            .select(TILE_STAIN_SCHEMA.keys())
            .cast(pl.Schema(TILE_STAIN_SCHEMA))
        )


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


def _lists(name: str, values: NDArray[np.float64]) -> pl.Series:
    return pl.Series(name, values.tolist(), pl.List(pl.Float64()))


def center_references(stains: pl.DataFrame, min_tiles: int) -> pl.DataFrame:
    """Each center's look: medians over its tiles that have a stain of their own.

    Parameters
    ----------
    stains
        Columns :data:`TILE_STAIN_SCHEMA`.
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


def targets_at(centers: Sequence[str], place: int, max_targets: int) -> dict[str, str]:
    """Of each center the one at a place among those whose stain its tiles take.

    Examples
    --------
    >>> targets_at(["A", "B", "C"], 0, 1), targets_at(["A"], 0, 1)
    ({'A': 'B', 'B': 'C', 'C': 'A'}, {})
    """
    of_center = {center: target_centers(centers, center, max_targets) for center in centers}
    return {center: targets[place] for center, targets in of_center.items() if place < len(targets)}


def n_targets(centers: Sequence[str], max_targets: int) -> int:
    """How many other stains each tile takes."""
    return max(min(max_targets, len(centers) - 1), 0)
