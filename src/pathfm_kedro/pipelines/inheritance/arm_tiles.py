"""Labelled tiles that the arms of an experiment are trained and probed on, and who has which role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.harmonised import Shards
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.slides.fields import slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.training_tiles import ReadTiles
from pathfm_kedro.statistics.cross_validation import patient_folds
from pathfm_kedro.statistics.sampling import shuffled_turns

Ints = NDArray[np.int64]

#: What a patient's tiles are for: to pretrain on, to adapt and probe on, and to test on as tiles of a
#: center that nothing was trained on.
PRETRAIN, DOWNSTREAM, HELD_OUT = "pretrain", "downstream", "held_out_center"

ARM_POOL_SCHEMA: dict[str, pl.DataType] = {
    "tile_id": pl.String(),
    "slide_id": pl.String(),
    "patient_id": pl.String(),
    "center": pl.String(),
    "organ": pl.String(),
    "label": pl.String(),
    "role": pl.String(),
    "place": pl.Int64(),
}


def choose_arm_pool(
    slides: pl.DataFrame, tiles: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Choose labelled tiles, and split their patients.

    The center that is held out is ``held_out_center``, or of those with slides of every label the one
    with the fewest patients; where there is none, no tile has that role. The patients of the other
    centers are halved, evenly in every label: half to pretrain, half downstream. A patient with slides
    in the held-out center and in others keeps the former only, so that no patient has two roles.

    Parameters
    ----------
    slides
        Slides table: slide_id, patient_id, center, organ, label, status.
    tiles
        Tiles table: tile_id, slide_id.
    parameters
        ``arms``: tiles_per_slide, held_out_center, seed.

    Returns
    -------
    DataFrame
        Columns :data:`ARM_POOL_SCHEMA`, ordered by slide, then in the order of the tiles; ``place`` is
        the tile's number among its slide's tiles.

    Raises
    ------
    ValueError
        If the center that is to be held out is not in the cohort.
    """
    labelled = slides.filter(pl.col("status") == "usable", pl.col("label").is_not_null())
    labelled = labelled.with_columns(pl.col("patient_id").cast(pl.String())).sort("slide_id")
    center = _held_out_center(labelled, parameters.get("held_out_center"))
    seed = int(parameters["seed"])
    roles = _roles(labelled, center, seed)
    rows = (
        tiles.with_columns(place=pl.int_range(pl.len()).over("slide_id"))
        .join(roles, on="slide_id", how="inner")
        .sort("slide_id", "place")
    )
    turns = shuffled_turns(rows.sort("tile_id"), [["slide_id"]], seed)
    most = int(parameters["tiles_per_slide"])
    chosen = turns.filter(pl.int_range(pl.len()).over("slide_id") < most)
    return chosen.sort("slide_id", "place").select(
        pl.col(name).cast(kind) for name, kind in ARM_POOL_SCHEMA.items()
    )


def _held_out_center(slides: pl.DataFrame, wanted: str | None) -> str | None:
    centers = slides.drop_nulls("center")
    if wanted is not None:
        known = sorted(centers["center"].unique())
        if wanted not in known:
            raise ValueError(
                f"arms.held_out_center is '{wanted}', and the cohort's labelled slides are of "
                f"{', '.join(known) or 'no center'}: give one of them, or null"
            )
        return wanted
    counted = (
        centers.group_by("center")
        .agg(pl.col("label").n_unique(), pl.col("patient_id").n_unique())
        .filter(pl.col("label") == slides["label"].n_unique())
        .sort("patient_id", "center")
    )
    return counted["center"][0] if centers["center"].n_unique() > 1 and counted.height else None


def _roles(slides: pl.DataFrame, center: str | None, seed: int) -> pl.DataFrame:
    held = pl.lit(False) if center is None else (pl.col("center") == center).fill_null(False)
    marked = slides.with_columns(_held=held).with_columns(
        _held_patient=pl.col("_held").any().over("patient_id")
    )
    marked = marked.filter(pl.col("_held") | ~pl.col("_held_patient"))
    others = marked.filter(~pl.col("_held"))
    fold = (
        patient_folds(others["patient_id"].to_numpy(), 2, seed, others["label"].to_numpy())
        if others.height
        else np.zeros(0, np.int64)
    )
    parts = [
        others.with_columns(
            role=pl.Series(np.where(fold == 0, PRETRAIN, DOWNSTREAM), dtype=pl.String)
        ),
        marked.filter(pl.col("_held")).with_columns(role=pl.lit(HELD_OUT)),
    ]
    columns = ["slide_id", "patient_id", "center", "organ", "label", "role"]
    return pl.concat([part.select(columns) for part in parts])


def plan_arm_tiles(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    parameters: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> ShardPlan:
    """One job per slide of the pool: its tiles at the side of the arms' input, read once.

    Parameters
    ----------
    slides, tiles, pool
        The tables; the pool from :func:`choose_arm_pool`.
    files
        The cohort's folder.
    parameters
        ``arms``: side, px.
    tile_parameters
        ``pixels``: side of a tile as read.
    engine
        Where jobs run.
    """
    chosen = tiles.filter(pl.col("tile_id").is_in(pool["tile_id"].to_list()))
    found = slide_fields(slides, chosen, files, int(tile_parameters["pixels"]))
    side = int(parameters["side"])
    jobs = [
        ReadTiles(slide["slide_id"], slide["fingerprint"], fields, side) for slide, fields in found
    ]
    return ShardPlan(jobs, EngineSettings(**engine), "reading tiles that arms are trained on")


def readable_tiles(pool: pl.DataFrame, shards: Shards, *roles: str) -> pl.DataFrame:
    """Rows of the pool whose slides could be read, of some roles or of all, in the order of pixels.

    Parameters
    ----------
    pool
        From :func:`choose_arm_pool`.
    shards
        Its pixels.
    roles
        All where none is named.
    """
    known = pl.col("slide_id").is_in(list(shards.slide_ids))
    asked = pl.col("role").is_in(roles) if roles else pl.lit(True)
    return pool.filter(known, asked).sort("slide_id", "place")


def can_pretrain(pool: pl.DataFrame, shards: Shards) -> bool:
    """Whether there are tiles to learn from: two, since a batch of one has nothing to compare.

    Parameters
    ----------
    pool, shards
        As of :func:`readable_tiles`.
    """
    return readable_tiles(pool, shards, PRETRAIN).height > 1


@dataclass(frozen=True)
class ArmTiles:
    """Tiles in memory, one row of the table each.

    Attributes
    ----------
    table
        Rows of the pool whose slides could be read.
    pixels
        uint8 [n, side, side, 3].
    """

    table: pl.DataFrame
    pixels: NDArray[np.uint8]

    @classmethod
    def read(cls, pool: pl.DataFrame, shards: Shards, *roles: str) -> ArmTiles:
        """The tiles of some roles, all where none is named, in the order of the pool."""
        own = readable_tiles(pool, shards, *roles)
        parts = [
            shards.load_slide(slide, "pixels")
            for slide in own["slide_id"].unique(maintain_order=True)
        ]
        return cls(own, np.concatenate(parts) if parts else np.zeros((0, 1, 1, 3), np.uint8))


@dataclass(frozen=True, eq=False)
class FoldedTiles:
    """Tiles that something is trained and tested on, and who is tested by whom.

    Attributes
    ----------
    table
        Rows of the pool, of the roles that train and of the held-out center, whose label can be
        probed.
    labels
        Their names, sorted.
    fold
        [n] fold of patients of each tile that can train; -1 in the held-out center.
    problem
        Why nothing can be trained; empty where it can.
    """

    table: pl.DataFrame
    labels: tuple[str, ...]
    fold: Ints
    problem: str = ""

    @classmethod
    def of(
        cls,
        pool: pl.DataFrame,
        shards: Shards,
        roles: Sequence[str],
        folds: int,
        seed: int,
        experiment: str,
    ) -> FoldedTiles:
        """Tiles that could be read, of labels with as many patients that can train as there are folds.

        Parameters
        ----------
        pool, shards
            The arms' tiles and their pixels.
        roles
            Of the tiles that can train.
        folds, seed
            Groups of their patients.
        experiment
            Whose ``probe.folds`` the reason names.
        """
        own = readable_tiles(pool, shards, *roles, HELD_OUT)
        trains = own.filter(pl.col("role") != HELD_OUT)
        counted = trains.group_by("label").agg(pl.col("patient_id").n_unique())
        enough = counted.filter(pl.col("patient_id") >= folds)["label"].sort().to_list()
        own = own.filter(pl.col("label").is_in(enough))
        inside = (own["role"] != HELD_OUT).to_numpy()
        patients, labels = (own[name].to_numpy()[inside] for name in ("patient_id", "label"))
        fold = np.full(len(inside), -1)
        fold[inside] = patient_folds(patients, folds, seed, labels)
        problem = (
            f"{len(enough)} label(s) have {folds} patients that can train, two are needed to train and "
            f"test a probe: add patients or lower {experiment}.probe.folds"
            if len(enough) < 2
            else ""
        )
        return cls(own, tuple(enough), fold, problem)

    @property
    def targets(self) -> Ints:
        """[n] codes of the labels."""
        codes = np.searchsorted(self.labels, self.table["label"].to_numpy())
        return np.asarray(codes, np.int64)

    def splits(self) -> Iterator[tuple[Ints, Ints]]:
        """Rows that train and that are tested: fold by fold, then all for the held-out center."""
        inside = self.fold >= 0
        for fold in range(int(self.fold.max()) + 1):
            yield np.flatnonzero(inside & (self.fold != fold)), np.flatnonzero(self.fold == fold)
        if (~inside).any():
            yield np.flatnonzero(inside), np.flatnonzero(~inside)


def embedded_vectors(
    table: pl.DataFrame, tiles: pl.DataFrame, embeddings: Shards
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which rows of the pool an encoder has vectors of, and these.

    Parameters
    ----------
    table
        Rows of the pool, slide by slide.
    tiles
        The encoder's, in the order of its vectors.
    embeddings
        Its vectors.

    Returns
    -------
    tuple
        [n] bool, and float64 [m, d] of the m rows that it has.
    """
    numbered = tiles.select("tile_id", _row=pl.int_range(pl.len()).over("slide_id"))
    rows = table.join(numbered, on="tile_id", how="left", maintain_order="left")
    embedded = pl.col("slide_id").is_in(list(embeddings.slide_ids))
    known = rows.select(embedded & pl.col("_row").is_not_null()).to_series().to_numpy()
    parts = [
        embeddings.load_slide(own["slide_id"][0])[own["_row"].to_numpy()]
        for own in rows.filter(known).partition_by("slide_id", maintain_order=True)
    ]
    return known, np.concatenate(parts).astype(np.float64) if parts else np.zeros((0, 1))


def arm_data_digest(pool: pl.DataFrame, shards: Shards) -> str:
    """A digest of everything an arm can learn from: tiles, roles, labels, centers, pixels' headers."""
    import hashlib
    import json

    headers = [dict(shards.slide_header(slide)) for slide in sorted(shards.slide_ids)]
    described = json.dumps([readable_tiles(pool, shards).rows(), headers], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()
