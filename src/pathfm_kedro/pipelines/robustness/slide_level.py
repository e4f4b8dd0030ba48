"""Slide level: robustness index and margins of one vector per slide, beside those of its tiles.

A slide is one vector: the mean of its mosaic, or attention fitted without the asking slide's patient
(:mod:`~pathfm_kedro.encoders.heads`). Features that were brought as one vector per slide are taken as
they are. On these vectors, in the design ``all`` of the robustness index:

- ``ri``, ``ri_minus_null``, ``knn_accuracy_label``, ``knn_accuracy_center``: as in
  :mod:`~pathfm_kedro.pipelines.robustness.robustness_index`, at the k of this experiment;
- ``croma``, ``croma_minus_null``, ``mari``, ``mari_minus_null``: as in
  :mod:`~pathfm_kedro.pipelines.robustness.margins`. Not of attention: vectors of several fitted models
  have no common distance.

Figures at level ``tile`` are those of the two experiments, repeated to stand beside.

What each level can tell: tiles show whether a search among tiles follows tissue or center; slides show
what a search among slides, or a model of whole slides, starts from. The mean leaves out what varies
within a slide, and keeps what all its tiles share: the label, and stain and scanner too, so that either
level may follow the tissue more. Slides of a patient are no neighbours of each other, and patients are
the samples: intervals are wider than those of tiles, and cells with few patients are left out.

Pitfalls
--------
- k at slide level counts slides, at tile level tiles: compare each with its own null, not their k.
- The index rests on slides that have SO or OS among their neighbours; with few slides those are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass as record
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.heads import AttentionSettings, pool_bags
from pathfm_kedro.pipelines.robustness.margin_statistics import searched_statistics
from pathfm_kedro.pipelines.robustness.margins import (
    ROBUSTNESS_MARGINS_SCHEMA,
    RobustnessMargins,
    robustness_margins_figures,
)
from pathfm_kedro.pipelines.robustness.robustness_index import (
    ROBUSTNESS_INDEX_SCHEMA,
    RobustnessIndex,
    robustness_index_figures,
    scope_statistics,
)
from pathfm_kedro.statistics.balanced_designs import (
    Scope,
    balanced_subsamples,
    permuted_tags,
    unused_row,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value, undefined
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mosaic import Mosaic, read_mosaic
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.parameters import STRICT
from pathfm_kedro.statistics.tables import Embeddings, to_schema

Ints = NDArray[np.int64]
Pooling = Literal["mean", "attention"]

OF_INDEX = ("ri", "ri_minus_null", "knn_accuracy_label", "knn_accuracy_center")
OF_MARGINS = ("croma", "croma_minus_null", "mari", "mari_minus_null")
_SEVERAL_MODELS = (
    "attention is fitted anew for each group of patients, and vectors of several models have no common "
    "distance"
)

#: Rows of both experiments' statistics, by ``pooling`` and ``table`` (index or margins).
SLIDE_LEVEL_SCHEMA: dict[str, pl.DataType] = {
    "pooling": pl.String(),
    "table": pl.String(),
    **ROBUSTNESS_INDEX_SCHEMA,
    **ROBUSTNESS_MARGINS_SCHEMA,
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SlideLevel(RobustnessIndex):
    """Parameters of the experiment: those of the robustness index, whose "tiles" are slides here.

    Attributes
    ----------
    poolings
        How tiles become one vector.
    attention
        How it is fitted.
    m
        Nearest slides of each type in a margin.
    sampled_queries
        As of the margins.
    """

    poolings: Annotated[tuple[Pooling, ...], Field(min_length=1)] = ("mean",)
    attention: AttentionSettings
    m: Annotated[int, Field(ge=1)]
    sampled_queries: Annotated[int, Field(ge=1)] = 1000

    def __post_init__(self) -> None:
        """Refuse what is no slide level, and a k that is not given."""
        super().__post_init__()
        if self.k is None or tuple(self.designs) != ("all",):
            raise ValueError("give k, one of k_grid, and designs: [all]")

    @property
    def margins(self) -> RobustnessMargins:
        """Parameters of the margins."""
        return RobustnessMargins(
            m=(self.m,),
            sampled_queries=self.sampled_queries,
            n_permutations=self.n_permutations,
            draws=self.draws,
            seed=self.seed,
        )


@record(frozen=True)
class SlideVectors:
    """Embeddings of one vector per slide: each slide is its own only tile."""

    slide_ids: tuple[str, ...]
    vectors: NDArray[np.float32]

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """Vectors of these slides, one below the other."""
        place = {slide_id: i for i, slide_id in enumerate(self.slide_ids)}
        return self.vectors[[place[slide_id] for slide_id in slide_ids]]

    @property
    def tiles(self) -> pl.DataFrame:
        """Their table of tiles."""
        return pl.DataFrame(
            {"tile_id": self.slide_ids, "slide_id": self.slide_ids},
            schema={"tile_id": pl.String(), "slide_id": pl.String()},
        )


def slide_level_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: SlideLevel
) -> pl.DataFrame:
    """Statistics of index and margins of slides pooled in each way.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`SLIDE_LEVEL_SCHEMA`.
    """
    mosaic = read_mosaic(slides, tiles, embeddings)
    names = tuple(mosaic.slides["slide_id"])
    pooled = mosaic.mean() if names else mosaic.vectors
    vectors = SlideVectors(names, pooled.astype(np.float32))
    found = []
    for pooling in p.poolings:
        tables: list[pl.DataFrame] = []
        if pooling == "mean":
            tables += searched_statistics(slides, vectors.tiles, vectors, p, p.margins)
        else:
            tables.append(_by_attention(slides, vectors, mosaic, p))
        for table, rows in zip(("index", "margins"), tables, strict=False):
            tagged = rows.with_columns(pooling=pl.lit(pooling), table=pl.lit(table))
            found.append(to_schema(tagged, SLIDE_LEVEL_SCHEMA))
    return pl.concat(found)


def _by_attention(
    slides: pl.DataFrame, vectors: SlideVectors, mosaic: Mosaic, p: SlideLevel
) -> pl.DataFrame:
    """Statistics of the index, each slide asking in the model that never saw its patient."""
    sampled = balanced_subsamples(slides, vectors.tiles, vectors, p, p.seed)
    cohort = sampled.cohort
    unused = to_schema(sampled.unused, ROBUSTNESS_INDEX_SCHEMA)
    if not sampled.scopes:
        return unused
    whole = mosaic.slides.with_row_index("row").drop_nulls(["patient", "label", "center"])
    every = np.split(mosaic.vectors, mosaic.starts[1:])
    bags = [every[row] for row in whole["row"]]
    try:
        pooled = pool_bags(
            "attention",
            bags,
            cohort.labels,
            cohort.patients,
            p.attention,
            p.seed,
            "slide_level.attention",
        )
    except Undefined as problem:
        return to_schema([unused_row("all", str(problem))], ROBUSTNESS_INDEX_SCHEMA)
    models = list(pooled.by_model())

    def search(scope: Scope) -> Ints:
        near = np.full((len(scope.rows), max(p.k_grid)), -1, dtype=np.int64)
        for asking, seen in models:
            queries = np.flatnonzero(np.isin(scope.rows, asking))
            if len(queries):
                own, groups = seen[scope.rows], cohort.groups[scope.rows]
                near[queries] = nearest_indices(
                    own, groups, max(p.k_grid), p.distance, queries=queries
                )
        return near

    tags = permuted_tags(cohort, sampled.scopes, p.n_permutations, p.seed)
    frames = [
        scope_statistics(cohort, scope, search(scope), own, p.k_grid)
        for scope, own in zip(sampled.scopes, tags, strict=True)
    ]
    return pl.concat([*frames, unused])


def slide_level_figures(
    statistics: pl.DataFrame, index: pl.DataFrame, margins: pl.DataFrame, p: SlideLevel
) -> Iterator[Figure]:
    """Figures of slides pooled in each way, and those of tiles beside them.

    Parameters
    ----------
    statistics
        From :func:`slide_level_statistics`.
    index, margins
        Measurements of the robustness index and the margins of tiles.
    p
        The parameters.
    """
    chosen = {"k": p.k}
    for pooling in p.poolings:
        at = {"level": "slide", "pooling": pooling}
        rows = statistics.filter(pooling=pooling)
        of_index = to_schema(rows.filter(table="index"), ROBUSTNESS_INDEX_SCHEMA)
        yield from _chosen(robustness_index_figures(of_index, chosen, p), OF_INDEX, at, p)
        if pooling == "attention":
            yield from (Figure(name, undefined(_SEVERAL_MODELS), at) for name in OF_MARGINS)
            continue
        of_margins = to_schema(rows.filter(table="margins"), ROBUSTNESS_MARGINS_SCHEMA)
        figures = robustness_margins_figures(of_margins, chosen, p.margins)
        yield from _chosen(figures, OF_MARGINS, at, p)
    for names, table in ((OF_INDEX, index), (OF_MARGINS, margins)):
        for name in names:
            yield Figure(name, _repeated(table, name), {"level": "tile"})


def _chosen(
    figures: Iterator[Figure], names: Sequence[str], at: Mapping[str, Any], p: SlideLevel
) -> Iterator[Figure]:
    """Those of the figures at the experiment's k, with the setting of slides."""
    for figure in figures:
        if (
            figure.metric in names
            and figure.stratum == "all"
            and figure.setting.get("k", p.k) == p.k
        ):
            setting = {**at, **({"k": p.k} if "k" in figure.setting else {})}
            yield Figure(figure.metric, figure.compute, setting, "all", figure.n, figure.n_patients)


def _repeated(table: pl.DataFrame, metric: str) -> Callable[[], Value]:
    """A figure of tiles as it was measured: at the cohort's k where it has one, else at the first m."""
    rows = table.filter(metric=metric, stratum="all")
    setting = pl.col("setting").str
    usual = rows.filter(setting.json_path_match("$.design") == "all")
    at_k = usual.filter(setting.json_path_match("$.role") == "cohort_k")
    row = next((r.row(0, named=True) for r in (at_k, usual) if r.height), None)
    if row is None:
        return undefined("not measured of tiles in the design 'all'")

    def give() -> Value:
        if row["value"] is None:
            raise Undefined(row["reason"], row["n"], row["n_patients"])
        ends = row["value"], row["ci_low"], row["ci_high"]
        null = Null(row["null_low"], row["null_high"])
        return Value(Estimate(*ends, row["n"], row["n_patients"]), null, caveat=row["caveat"])

    return give
