"""How the pool's tiles are stained, and the same tiles in another stain or from another scanner."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.robustness.views import plan_views
from pathfm_kedro.slides.fields import TileFields, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.perturbations import blurred, compressed, with_gamma
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.slides.stain import (
    COMMON_BASIS,
    PROBLEMS,
    StainBasis,
    StainReference,
    fit_macenko,
    jitter_draw,
    jittered,
    lab_statistics,
    macenko_transfer,
    reinhard_transfer,
    stain_moments,
)
from pathfm_kedro.statistics.tables import Embeddings, digests_by_slide

#: Raised with any change of what is measured on a tile's pixels, and of how views are made.
_STAIN_REVISION = "1"
_VIEW_REVISION = "1"

#: Decimals of a center's reference, which is part of every view's header: the last bits of a median
#: differ between processors.
_DECIMALS = 6

CLEAN, JITTER, REINHARD, MACENKO, JPEG, BLUR, GAMMA = (
    "clean",
    "jitter",
    "reinhard",
    "macenko",
    "jpeg",
    "blur",
    "gamma",
)
TRANSFERS = (REINHARD, MACENKO)

#: What the dose of a change is called in a measurement's setting; a transfer has none.
DOSES = {JITTER: "sigma", JPEG: "quality", BLUR: "sigma_px", GAMMA: "exponent"}
_DOSE_LISTS = {JITTER: "jitter", JPEG: "jpeg", BLUR: "blur", GAMMA: "gamma"}

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
class MeasureStain:
    """The stain of one slide's tiles.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        Where the tiles lie.
    tiles_digest
        Digest of the tiles' ids.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    tiles_digest: str

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        return {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "tile_ids": self.tiles_digest,
            "view": json.dumps(["stain", _STAIN_REVISION]),
            "units": "natural optical density; CIELAB with L in 0 ... 100",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``moments`` [n, 4], ``lab`` [n, 6], ``macenko`` [n, 8] and ``problem`` [n].

        Macenko's numbers are zeros where `problem`, a position in
        :data:`~pathfm_kedro.slides.stain.PROBLEMS`, is not 0.
        """
        rows = [_stain_of_tile(pixels[0]) for pixels, _ in self.fields.batches(1)]
        moments, lab, macenko, problem = (np.stack(part) for part in zip(*rows, strict=True))
        return {"moments": moments, "lab": lab, "macenko": macenko, "problem": problem}


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


def plan_tile_stains(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    tile_parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> ShardPlan:
    """One job per slide of the pool that measures its tiles' stain.

    Parameters
    ----------
    slides, tiles
        The tables.
    pool
        From :func:`~pathfm_kedro.pipelines.robustness.tile_pool.choose_pool`.
    files
        The cohort's folder.
    tile_parameters
        ``pixels``: side of a tile.
    engine
        Where jobs run.
    """
    chosen = pool_tiles(tiles, pool)
    digests = digests_by_slide(chosen)
    jobs = [
        MeasureStain(slide["slide_id"], slide["fingerprint"], fields, digests[slide["slide_id"]])
        for slide, fields in slide_fields(slides, chosen, files, int(tile_parameters["pixels"]))
    ]
    return ShardPlan(jobs, EngineSettings(**engine), "measuring stain")


def pool_tiles(tiles: pl.DataFrame, pool: pl.DataFrame) -> pl.DataFrame:
    """Rows of the tiles table that are in the pool, in the tiles' order."""
    return tiles.join(pool.select("tile_id"), on="tile_id", how="semi", maintain_order="left")


def tile_stains(stains: Embeddings, pool: pl.DataFrame) -> pl.DataFrame:
    """Turn what was measured on pixels into a table, one row per tile.

    Parameters
    ----------
    stains
        What :class:`MeasureStain` left.
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


def center_references(stains: pl.DataFrame, parameters: Mapping[str, Any]) -> pl.DataFrame:
    """Each center's look: medians over its tiles that have a stain of their own.

    Parameters
    ----------
    stains
        From :func:`tile_stains`.
    parameters
        ``appearance``: min_reference_tiles.

    Returns
    -------
    DataFrame
        Columns :data:`REFERENCE_SCHEMA`, centers sorted; a center with too few tiles has nulls and
        the reason.
    """
    least = int(parameters["min_reference_tiles"])
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
    enough = pl.col("n_fitted") >= least
    reason = pl.format(
        "{} of {} tiles of the pool show haematoxylin and eosin, {} are needed: raise "
        "tile_pool.max_tiles or lower appearance.min_reference_tiles",
        "n_fitted",
        "n_tiles",
        pl.lit(least),
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


@dataclass(frozen=True)
class Change:
    """What is done to a tile.

    Attributes
    ----------
    kind
        clean, jitter, reinhard, macenko, jpeg, blur or gamma.
    dose
        How much; None where the kind has no dose.
    target
        For a transfer the position among the tile's target centers, else 0.
    """

    kind: str
    dose: float | None = None
    target: int = 0

    @property
    def name(self) -> str:
        """What the view is called."""
        if self.kind in TRANSFERS:
            return f"{self.kind} {self.target}"
        return self.kind if self.dose is None else f"{self.kind} {self.dose:g}"


def view_changes(parameters: Mapping[str, Any], targets: int) -> tuple[Change, ...]:
    """The views of every tile in their order, the clean tile first.

    Parameters
    ----------
    parameters
        ``appearance``: jitter, jpeg, blur, gamma (lists of doses).
    targets
        Number of other centers whose stain each tile takes.

    Examples
    --------
    >>> told = {"jitter": [0.1], "jpeg": [70], "blur": [], "gamma": []}
    >>> [change.name for change in view_changes(told, 1)]
    ['clean', 'jitter 0.1', 'reinhard 0', 'macenko 0', 'jpeg 70']
    """
    dosed = {
        kind: tuple(Change(kind, float(dose)) for dose in sorted(set(parameters[name])))
        for kind, name in _DOSE_LISTS.items()
    }
    transfers = tuple(Change(kind, None, i) for kind in TRANSFERS for i in range(targets))
    return (Change(CLEAN), *dosed[JITTER], *transfers, *dosed[JPEG], *dosed[BLUR], *dosed[GAMMA])


@dataclass(frozen=True)
class AppearanceMaker:
    """Makes the views of one center's tiles.

    Attributes
    ----------
    changes
        The views in their order.
    source
        The center's own look; None where it has none. Then jitter works in the common basis, and
        transfers leave the tile as it is (they are not counted).
    targets
        Looks of other centers; none without a source.
    seed
        Of the experiment.
    """

    changes: tuple[Change, ...]
    source: StainReference | None
    targets: tuple[StainReference, ...]
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """One name per view."""
        return tuple(change.name for change in self.changes)

    def describe(self) -> Mapping[str, Any]:
        """Everything that decides the views' pixels."""
        return {
            "revision": _VIEW_REVISION,
            "source": None if self.source is None else self.source.describe(),
            "targets": [target.describe() for target in self.targets],
            "seed": self.seed,
        }

    def make(self, field: Pixels, seed: int) -> Pixels:
        """Views uint8 [views, s, s, 3] of a tile [s, s, 3]."""
        draw = jitter_draw([self.seed, seed])
        return np.stack([self._changed(field, change, draw) for change in self.changes])

    def _changed(self, field: Pixels, change: Change, draw: NDArray[np.float64]) -> Pixels:
        if change.kind in TRANSFERS:
            return self._transferred(field, change)
        if change.dose is None:
            return field
        if change.kind == JITTER:
            basis = COMMON_BASIS if self.source is None else self.source.basis
            return jittered(field, basis, change.dose, draw)
        if change.kind == JPEG:
            return compressed(field, int(change.dose))
        if change.kind == BLUR:
            return blurred(field, change.dose)
        return with_gamma(field, change.dose)

    def _transferred(self, field: Pixels, change: Change) -> Pixels:
        if self.source is None or change.target >= len(self.targets):
            return field
        transfer = reinhard_transfer if change.kind == REINHARD else macenko_transfer
        return transfer(field, self.source, self.targets[change.target])


def plan_appearance_views(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    references: pl.DataFrame,
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per slide of the pool; tiles of one center share a maker.

    Parameters
    ----------
    slides, tiles
        The tables.
    pool
        From :func:`~pathfm_kedro.pipelines.robustness.tile_pool.choose_pool`.
    files
        The cohort's folder.
    references
        From :func:`center_references`.
    encoder
        The entry of ``encoders``.
    runtime
        Its recorded runtime.
    tile_parameters
        ``pixels``: side of a tile.
    parameters
        ``appearance``: doses, max_targets, seed.
    engine
        Where jobs run.
    name
        The encoder's name.
    """
    spec = EncoderSpec.from_parameters(name, encoder).with_runtime(runtime)
    title = f"changing stain and scanner for {name}"
    chosen = pool_tiles(tiles, pool)
    jobs = [
        job
        for center in pool["center"].unique(maintain_order=True).to_list()
        for job in plan_views(
            slides,
            pool_tiles(chosen, pool.filter(pl.col("center").eq_missing(pl.lit(center)))),
            files,
            center_maker(references, center, parameters),
            spec,
            int(tile_parameters["pixels"]),
            engine,
            title,
        ).jobs
    ]
    jobs.sort(key=lambda job: job.slide_id)
    return ShardPlan(jobs, EngineSettings(**engine), title, lambda: load_encoder(spec))


def center_maker(
    references: pl.DataFrame, center: str | None, parameters: Mapping[str, Any]
) -> AppearanceMaker:
    """Who makes the views of one center's tiles; the names of views are the same for all centers.

    Parameters
    ----------
    references
        From :func:`center_references`.
    center
        The tiles' center.
    parameters
        ``appearance``.
    """
    known = usable_references(references)
    most = int(parameters["max_targets"])
    return AppearanceMaker(
        view_changes(parameters, n_targets(list(known), most)),
        known.get(center) if center is not None else None,
        tuple(known[other] for other in target_centers(list(known), center, most)),
        int(parameters["seed"]),
    )
