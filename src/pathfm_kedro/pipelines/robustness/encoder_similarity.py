"""Similarity of encoders: whether two find the same tissue alike, tile by tile and slide by slide.

Of every two encoders, on the slides that all have, for tiles of the mosaics and for slides (the mean of
the mosaic, or the one vector that was brought):

- ``mknn = mean_i |N_k(a_i) ∩ N_k(b_i)| / k``: the share of the k nearest of other patients that is the
  same in both (cosine). Null: k over the number of candidates;
- ``cka``: linear centred kernel alignment, debiased
  (:func:`~pathfm_kedro.statistics.kernel_alignment.debiased_cka`): 1 where one is the other turned and
  scaled, about 0 where they have nothing in common.

Neighbours look near, alignment at the whole cloud, which few directions of large spread may decide. Two
encoders may find the same tissue alike at one level and not at the other: the mean over a slide leaves
out what varies within it.

Intervals: for ``mknn`` patients are resampled as queries and as candidates
(:mod:`~pathfm_kedro.statistics.perturbation`); for ``cka`` a jackknife over groups of patients.

Pitfalls
--------
- Alike is not good: encoders that all follow the stain are alike. Read the similarity to the control
  that knows colour alone beside it.
- k counts tiles at one level and slides at the other: compare each with its own null.
- Tiles of encoders with tiles of their own are not the same tissue; their slides are.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass as record
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.figures import Figure, measure, undefined
from pathfm_kedro.statistics.jackknife import patient_groups
from pathfm_kedro.statistics.kernel_alignment import aligned, aligned_value, centred_gram
from pathfm_kedro.statistics.measurements import combine_measurements
from pathfm_kedro.statistics.mosaic import Mosaic, read_mosaic
from pathfm_kedro.statistics.mutual_knn import nearest, without_spread
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters, read_parameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.perturbation import TileGroups, kept_columns, kept_neighbours
from pathfm_kedro.statistics.tables import Embeddings, to_schema
from pathfm_kedro.statistics.typed_distances import sampled_queries

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
EXPERIMENT = "encoder_similarity"

#: Rows of two encoders at a level. Of part neighbours: sums per patient, as of perturbed tiles; of part
#: alignment: cka of all rows (group −1) and without each group of patients.
SIMILARITY_SCHEMA: dict[str, pl.DataType] = {
    "encoder": pl.String(),
    "compared_with": pl.String(),
    "level": pl.String(),
    "part": pl.String(),
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "k": pl.Int64(),
    "kept_sum": pl.Float64(),
    "candidate_sum": pl.Float64(),
    "chance_sum": pl.Float64(),
    "fewest_candidates": pl.Int64(),
    "no_spread": pl.Boolean(),
    "group": pl.Int64(),
    "cka": pl.Float64(),
}
_OTHER_TILES = "the two have vectors of different tiles: compare their slides"
_NO_COMMON_SLIDE = "no slide with a patient has vectors of all encoders: see encoder_runtimes"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class EncoderSimilarity(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    k_tiles, k_slides
        Neighbours of a tile, and of a slide.
    max_tiles
        Tiles compared at most, slides taking turns.
    groups
        Groups of patients of the jackknife.
    """

    k_tiles: Annotated[int, Field(ge=1)]
    k_slides: Annotated[int, Field(ge=1)]
    max_tiles: Annotated[int, Field(ge=4)]
    groups: Annotated[int, Field(ge=2)]


@record(frozen=True)
class Level:
    """Vectors of the same rows by several encoders.

    Attributes
    ----------
    name
        ``tile`` or ``slide``.
    k
        Neighbours that count.
    patients
        [n] patient of each row.
    vectors
        [n, d] by encoder.
    """

    name: str
    k: int
    patients: pl.DataFrame
    vectors: Mapping[str, Floats32]


def measured_similarity(
    slides: pl.DataFrame,
    parameters: Mapping[str, Any],
    *tables: Any,
    encoders: Sequence[str],
    controls: Collection[str] = (),
    grids: Sequence[str] = (),
) -> pl.DataFrame:
    """Measurements of every two encoders that are not both controls.

    Parameters
    ----------
    slides
        The slides table.
    parameters
        The block ``encoder_similarity``.
    tables
        Tiles and vectors of each encoder, in turn.
    encoders, controls
        Their names, and which of them are controls.
    grids
        Which tiles each has vectors of; the same for all where not given.
    """
    p = read_parameters(EncoderSimilarity, EXPERIMENT, parameters)
    data = dict(zip(encoders, zip(tables[::2], tables[1::2], strict=True), strict=True))
    pairs = [
        pair
        for pair in itertools.combinations(sorted(encoders), 2)
        if not set(pair) <= set(controls)
    ]
    known = dict(zip(encoders, grids or [""] * len(encoders), strict=True))
    statistics = similarity_statistics(slides, data, known, pairs, p)
    measured = []
    for encoder, own in itertools.groupby(pairs, key=lambda pair: pair[0]):
        figures = similarity_figures(statistics, encoder, [other for _, other in own], p)
        measured.append(measure(figures, EXPERIMENT, encoder, p.criteria))
    return combine_measurements(*measured)


def similarity_statistics(
    slides: pl.DataFrame,
    data: Mapping[str, tuple[pl.DataFrame, Embeddings]],
    grids: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    p: EncoderSimilarity,
) -> pl.DataFrame:
    """Shared neighbours and alignment of pairs of encoders.

    Parameters
    ----------
    slides
        The slides table.
    data
        Tiles and vectors of each encoder.
    grids
        Which tiles each has vectors of.
    pairs
        Whom to compare; at tile level those of one grid.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`SIMILARITY_SCHEMA`.
    """
    frames = [pl.DataFrame(schema=SIMILARITY_SCHEMA)]
    for level in _levels(slides, data, grids, p):
        own = [pair for pair in pairs if set(pair) <= set(level.vectors)]
        frames += list(_of_level(level, own, p))
    return pl.concat(frames)


def _levels(
    slides: pl.DataFrame,
    data: Mapping[str, tuple[pl.DataFrame, Embeddings]],
    grids: Mapping[str, str],
    p: EncoderSimilarity,
) -> Iterator[Level]:
    """Tiles of each grid, and slides, on the slides that all encoders have."""
    mosaics = {e: read_mosaic(slides, *tables) for e, tables in data.items()}
    present = [set(m.slides.drop_nulls("patient")["slide_id"]) for m in mosaics.values()]
    common = sorted(set.intersection(*present)) if present else []
    if not common:
        return
    chosen = {e: _of_slides(mosaic, common) for e, mosaic in mosaics.items()}
    for grid in sorted(set(grids.values())):
        own = {e: mosaic for e, mosaic in chosen.items() if grids[e] == grid}
        first = next(iter(own.values()))
        rows = sampled_queries(first.slide_of_patch, p.max_tiles, p.seed)
        vectors = {e: mosaic.vectors[rows] for e, mosaic in own.items()}
        yield Level("tile", p.k_tiles, _patients(first)[first.slide_of_patch[rows]], vectors)
    means = {e: mosaic.mean().astype(np.float32) for e, mosaic in chosen.items()}
    yield Level("slide", p.k_slides, _patients(next(iter(chosen.values()))), means)


def _of_slides(mosaic: Mosaic, slide_ids: Sequence[str]) -> Mosaic:
    return mosaic.select(np.flatnonzero(mosaic.slides["slide_id"].is_in(slide_ids).to_numpy()))


def _patients(mosaic: Mosaic) -> pl.DataFrame:
    return mosaic.slides.select(patient_id="patient")


def _of_level(
    level: Level, pairs: Sequence[tuple[str, str]], p: EncoderSimilarity
) -> Iterator[pl.DataFrame]:
    """Statistics of each pair; what belongs to one encoder is computed once."""
    groups = TileGroups.of(level.patients)
    fewest = int(groups.candidates.min())
    own = sorted({e for pair in pairs for e in pair})
    grams = {e: centred_gram(level.vectors[e]) for e in own}
    alike = {e: without_spread(level.vectors[e], "cosine") for e in own}
    # One more than count: the one that moves up where a candidate is missing.
    searched = own if level.k < fewest else []
    near = {e: nearest(level.vectors[e], groups.patients, level.k + 1, "cosine") for e in searched}
    alignments = _without_groups(grams, pairs, patient_groups(groups.patients, p.groups))
    for first, second in pairs:
        kept = kept_columns(near[first], near[second], groups.patients, level.k) if searched else {}
        neighbours = groups.sums(**kept).with_columns(
            part=pl.lit("neighbours"),
            k=pl.lit(level.k),
            fewest_candidates=pl.lit(fewest),
            no_spread=pl.lit(alike[first] or alike[second]),
        )
        yield pl.concat(
            to_schema(
                rows.with_columns(
                    encoder=pl.lit(first), compared_with=pl.lit(second), level=pl.lit(level.name)
                ),
                SIMILARITY_SCHEMA,
            )
            for rows in (neighbours, alignments[first, second])
        )


def _without_groups(
    grams: Mapping[str, Floats], pairs: Sequence[tuple[str, str]], groups: Ints
) -> dict[tuple[str, str], pl.DataFrame]:
    """CKA of each pair, of all rows (group −1) and without each group of patients."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in pairs}
    for left_out in range(-1, int(groups.max()) + 1):
        kept = np.flatnonzero(groups != left_out)
        inside = {encoder: gram[np.ix_(kept, kept)] for encoder, gram in grams.items()}
        row = {"group": left_out, "n_tiles": len(kept), "part": "alignment"}
        for pair, cka in zip(pairs, aligned(inside, pairs), strict=True):
            rows[pair].append({**row, "cka": cka})
    return {pair: pl.DataFrame(own) for pair, own in rows.items()}


def similarity_figures(
    statistics: pl.DataFrame, encoder: str, others: Sequence[str], p: EncoderSimilarity
) -> Iterator[Figure]:
    """``mknn`` and ``cka`` of an encoder with others, at both levels.

    Parameters
    ----------
    statistics
        From :func:`similarity_statistics`.
    encoder, others
        Whose similarity.
    p
        The parameters.
    """
    of = PatientStatistics(statistics.filter(encoder=encoder), p)
    for level, k in (("slide", p.k_slides), ("tile", p.k_tiles)):
        for other in others:
            pair = of.at(level=level, compared_with=other)
            if pair.table.is_empty():
                reason = _NO_COMMON_SLIDE if statistics.is_empty() else _OTHER_TILES
                for metric in ("mknn", "cka"):
                    yield Figure(metric, undefined(reason), pair.setting)
                continue
            near = pair.where(pl.col("part") == "neighbours")
            yield near.figure("mknn", kept_neighbours, k=k)
            whole = pair.where(pl.col("part") == "alignment")
            yield whole.figure("cka", partial(aligned_value, n_patients=near.n_patients))
