r"""Cue conflict: with one center's morphology in another's stain, which do neighbours follow.

Tiles of the pool take other centers' stain by the transfers of the appearance experiment.
``follows_morphology`` of their neighbours and its null are those of
:mod:`~pathfm_kedro.statistics.cue_conflict`.
``follows_morphology_minus_null`` is what criteria rest on. ``morphology_loss`` is the same figure of
the tile before the transfer (view ``clean``) minus this one: how much the stain pulled. Before, both
cues point home, so that the clean figure is high for whoever knows either.

Pitfalls
--------
- Above 0 is a low bar: more tissue than chance, not more tissue than stain.
- It needs two centers with measurable stain and several labels.
- The coverage of ``follows_morphology_minus_null`` was simulated; that of ``morphology_loss`` was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.robustness.appearance import (
    CLEAN,
    TRANSFERS,
    Appearance,
    appearance_views,
)
from pathfm_kedro.slides.center_stains import targets_at, usable_references
from pathfm_kedro.statistics.cue_conflict import (
    CUE_COUNTS,
    VIEWS,
    CueCounts,
    CueTiles,
    follows_morphology,
    follows_morphology_minus_null,
    morphology_loss,
)
from pathfm_kedro.statistics.figures import Figure
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters, read_parameters
from pathfm_kedro.statistics.tables import Embeddings, to_schema
from pathfm_kedro.views import embedded_views

#: Whose morphology counts: any center's but the target's, or the tile's own center's.
SCOPES = ("any", "origin")

#: By change (the transfer) the counts of cues.
CUE_CONFLICT_SCHEMA: dict[str, pl.DataType] = {"change": pl.String(), **CUE_COUNTS}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CueConflict(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    k
        Neighbours that are looked at.
    """

    k: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1),
        AfterValidator(lambda ks: tuple(sorted(set(ks)))),
    ]


def cue_conflict_statistics(
    views: Embeddings,
    pool: pl.DataFrame,
    references: pl.DataFrame,
    appearance: Mapping[str, Any],
    p: CueConflict,
) -> pl.DataFrame:
    """Count neighbours that share the morphology or the stain of a transferred tile.

    Parameters
    ----------
    views
        Vectors of the appearance views.
    pool
        The tiles; those without label or center are left out.
    references
        From :func:`~pathfm_kedro.slides.center_stains.center_references`.
    appearance
        Block of parameters of the views.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`CUE_CONFLICT_SCHEMA`; empty where no tile of the pool has a conflict.
    """
    seen = read_parameters(Appearance, "appearance", appearance)
    settings = appearance_views(references, None, seen).settings
    found = embedded_views(views, pool, settings, "cue_conflict")
    complete = pl.all_horizontal(pl.col("label", "center").is_not_null())
    found = found.part(found.tiles.select(complete).to_series().to_numpy().astype(np.bool_))
    known = list(usable_references(references))
    if found.tiles.is_empty() or len(known) < 2:
        return pl.DataFrame(schema=CUE_CONFLICT_SCHEMA)
    tiles = CueTiles.of(found.tiles, found.at(CLEAN))
    frames = [pl.DataFrame(schema=CUE_CONFLICT_SCHEMA)]
    for transfer in TRANSFERS:
        transferred = [
            (targets_at(known, setting["target"], seen.max_targets), vectors)
            for setting, vectors in found.of(transfer)
        ]
        counts = tiles.counts(transferred, p.k)
        frames.append(to_schema(counts.with_columns(change=pl.lit(transfer)), CUE_CONFLICT_SCHEMA))
    return pl.concat(frames)


def cue_conflict_figures(statistics: pl.DataFrame, p: CueConflict) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`cue_conflict_statistics`.
    p
        The parameters.
    """
    for transfer, k in product(TRANSFERS, p.k):
        of = statistics.filter(change=transfer, k=k)
        counts = CueCounts(of, p, k, "cue_conflict.k", "tile_pool.max_tiles")
        setting = {"change": transfer, "k": k}
        figure = partial(Figure, n=counts.n, n_patients=counts.n_patients)
        for view, scope in product(VIEWS, SCOPES):
            follows = partial(follows_morphology, counts, view, scope)
            at = {**setting, "view": view, "scope": scope}
            yield figure("follows_morphology", follows, at)
        minus_null = partial(follows_morphology_minus_null, counts)
        yield figure("follows_morphology_minus_null", minus_null, setting)
        yield figure("morphology_loss", partial(morphology_loss, counts), setting)
