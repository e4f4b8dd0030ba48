r"""Crop coherence: do parts of a tile belong together more than parts of different tiles.

Self-supervised training in the manner of DINO asks that a small crop of an image looks like a large
crop of the same image, as if both showed one object. Tissue has no such object. Crops are sampled as
DINOv2 samples them (:mod:`~pathfm_kedro.slides.crops`), without its flips and colours. With g the
global and l the local crops of tile i,

- ``own_cosine = mean cos(g_i, l_i)``, ``other_cosine = mean cos(g_i, l_j)`` over the other tiles j of
  the slide, ``coherence`` their difference: zero where a tile's own parts are no closer than any
  tissue of the slide;
- ``follows_composition``: partial Spearman correlation, over pairs of a tile's global and local crop,
  of cos(g, l) with similarity of tissue composition, given similarity of colour;
  ``follows_colour``: with similarity of colour, given composition. They say by what crops agree.

Composition is two shares of a crop's pixels
(:func:`~pathfm_kedro.slides.stain.tissue_composition`), colour the mean CIELAB colour; similarity is
the negative Euclidean distance of either. In the interval of both correlations ranks are those of the
whole pool.

Pitfalls
--------
- High coherence is neither good nor bad by itself: a tile of one tissue has parts that are alike.
- A tile that is alone on its slide in the pool cannot be compared; images cut beforehand have none.
- Two shares of pixels are a coarse notion of composition. Coverage was not simulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.base import Encoder, Vectors
from pathfm_kedro.slides.crops import global_and_local_crops
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.slides.stain import lab_statistics, tissue_composition
from pathfm_kedro.statistics.association import partial_correlation, rank_moments
from pathfm_kedro.statistics.bootstrap import patient_codes, percentile_interval, sum_by_patient
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mutual_knn import unit
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.perturbation import TileGroups
from pathfm_kedro.statistics.tables import Embeddings, stacked, to_schema, with_shards
from pathfm_kedro.views import (
    Tensors,
    View,
    ViewSet,
    embedded_views,
    tile_seed,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: What pairs of crops are ranked by; positions in rank_moments.
AGREEMENT, COMPOSITION, COLOUR = range(3)
_CONSTANT = (
    "the encoder gives all crops of a tile the same agreement: it does not look at what a crop shows",
    "all crops have the composition of their tile",
    "all crops have the colour of their tile",
)

#: One row per patient: sums over its n_tiles tiles that are not alone on their slide, and over all
#: pairs of global and local crop the [4, 4] sums of products of (1, ranks), row by row.
CROP_SCHEMA: dict[str, pl.DataType] = {
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "own_sum": pl.Float64(),
    "other_sum": pl.Float64(),
    "rank_moments": pl.List(pl.Float64()),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CropCoherence(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    n_global, n_local
        Crops of a tile.
    """

    n_global: Annotated[int, Field(ge=1)]
    n_local: Annotated[int, Field(ge=1)]


def crop_views(p: CropCoherence) -> ViewSet:
    """Global crops first; all come from one generator, and so from one view."""
    arguments = {"n_global": p.n_global, "n_local": p.n_local, "experiment_seed": p.seed}
    settings = (
        *({"crop": "global", "number": i} for i in range(p.n_global)),
        *({"crop": "local", "number": i} for i in range(p.n_local)),
    )
    return ViewSet((View("crop", global_and_local_crops, arguments, settings, random=True),))


def view_of_crops(tiles: pl.DataFrame, pixels: int, p: CropCoherence) -> ViewSet:
    """The crops of one slide's tiles."""
    return crop_views(p)


@dataclasses.dataclass(frozen=True)
class CropComposition:
    """Composition and colour of crops, the same as are embedded; no encoder takes part.

    Attributes
    ----------
    crops
        Makes them.
    """

    crops: ViewSet
    side: tuple[int, int] | None = None
    batch: int = 1
    units: str = "shares of pixels; CIELAB with L in 0 ... 100"

    @property
    def n_pictures(self) -> int:
        """Of a tile."""
        return self.crops.n_pictures

    def keeping(self) -> CropComposition:
        """The same work, whose crops are kept for the encoders."""
        return dataclasses.replace(self, crops=self.crops.keeping())

    def describe(self) -> Any:
        """What is measured of which crops."""
        return ["composition", self.crops.describe()]

    def compute(
        self,
        encoder: Encoder | None,
        pixels: Pixels,
        truth: Vectors | None,
        tile_ids: Sequence[str],
    ) -> Tensors:
        """``composition`` [n, crops, 2] and ``colour`` [n, crops, 3]."""
        composition, colour = [], []
        for tile, tile_id in zip(pixels, tile_ids, strict=True):
            crops = self.crops.make(tile, tile_seed(tile_id))
            composition.append(tissue_composition(tile, crops))
            colour.append(np.stack([lab_statistics(crop)[0] for crop in crops]))
        return {"composition": np.stack(composition), "colour": np.stack(colour)}


def composition_of_crops(tiles: pl.DataFrame, pixels: int, p: CropCoherence) -> CropComposition:
    """What is measured of the crops of one slide's tiles."""
    return CropComposition(crop_views(p))


def crop_coherence_statistics(
    views: Embeddings, composition: Embeddings, pool: pl.DataFrame, p: CropCoherence
) -> pl.DataFrame:
    """Reduce the crops' vectors to sums per patient.

    Parameters
    ----------
    views
        Vectors of :func:`crop_views`.
    composition
        Of the same crops, from :class:`CropComposition`.
    pool
        The tiles; slides without either shard are left out.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`CROP_SCHEMA`.
    """
    both = with_shards(pool, composition)
    found = embedded_views(views, both, crop_views(p).settings, "crop_coherence")
    if found.tiles.is_empty():
        return pl.DataFrame(schema=CROP_SCHEMA)
    measured = [stacked(found.tiles, composition, name) for name in ("composition", "colour")]
    vectors = unit(found.vectors.reshape(-1, found.vectors.shape[2])).reshape(found.vectors.shape)
    slides, _ = patient_codes(found.tiles["slide_id"].to_numpy())
    own, other, alone = own_and_other(vectors, slides, p.n_global)
    moments = rank_moments(_pairs_of_crops(vectors, measured, p.n_global))
    sums = TileGroups.of(found.tiles).sums(
        n_tiles=np.where(alone, 0.0, 1.0),
        own_sum=np.where(alone, 0.0, own),
        other_sum=np.where(alone, 0.0, other),
        rank_moments=moments.reshape(len(moments), -1),
    )
    return to_schema(sums, CROP_SCHEMA)


def own_and_other(
    vectors: Floats, slides: Ints, n_global: int
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Mean cosine of a tile's global crops with its own local crops and with its slide's other tiles.

    Parameters
    ----------
    vectors
        [n, views, d] rows of length 1, global crops first.
    slides
        [n] codes.
    n_global
        Global crops per tile.

    Returns
    -------
    tuple
        own [n], other [n] and whether the tile is alone on its slide [n]; other is 0 there.
    """
    wide, narrow = vectors[:, :n_global].mean(axis=1), vectors[:, n_global:].mean(axis=1)
    on_slide = np.bincount(slides)[slides]
    others = sum_by_patient(narrow, slides, int(slides.max()) + 1)[slides] - narrow
    own = np.einsum("ij,ij->i", wide, narrow)
    other = np.einsum("ij,ij->i", wide, others) / np.maximum(on_slide - 1, 1)
    return own, other, on_slide == 1


def _pairs_of_crops(
    vectors: Floats, measured: Sequence[NDArray[np.float32]], n_global: int
) -> Floats:
    """[3, n, pairs]: agreement, and similarity of composition and colour, of global and local crop."""
    agreement = np.einsum("igd,ild->igl", vectors[:, :n_global], vectors[:, n_global:])
    similarity = [
        -np.linalg.norm(
            part[:, :n_global, None].astype(np.float64) - part[:, None, n_global:], axis=-1
        )
        for part in measured
    ]
    # Equal vectors and equal pixels must tie in the ranks.
    return np.stack([np.round(q, 9).reshape(len(q), -1) for q in (agreement, *similarity)])


def crop_coherence_figures(statistics: pl.DataFrame, p: CropCoherence) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`crop_coherence_statistics`.
    p
        The parameters.
    """
    of = PatientStatistics(statistics, p)
    yield of.figure("coherence", coherence)
    yield of.figure("own_cosine", partial(mean_cosine, column="own_sum"))
    yield of.figure("other_cosine", partial(mean_cosine, column="other_sum"))
    yield of.figure("follows_composition", partial(follows, what=COMPOSITION, given=COLOUR))
    yield of.figure("follows_colour", partial(follows, what=COLOUR, given=COMPOSITION))


def coherence(patients: PatientStatistics) -> Value:
    """Cosine within tiles minus that between tiles of a slide; null 0."""
    _require_other_tiles(patients)
    difference = patients.sums("own_sum") - patients.sums("other_sum")
    return Value(patients.ratio(difference, patients.sums("n_tiles")), Null(0.0, 0.0))


def mean_cosine(patients: PatientStatistics, column: str) -> Estimate:
    """Mean over tiles of one of the two cosines."""
    _require_other_tiles(patients)
    return patients.ratio(patients.sums(column), patients.sums("n_tiles"))


def _require_other_tiles(patients: PatientStatistics) -> None:
    patients.require_interval()
    if not patients.n:
        raise Undefined(
            "every slide has one tile in the pool, so there is no other tile of the slide to compare "
            "with: raise tile_pool.max_tiles; images cut beforehand cannot support this figure"
        )


def follows(patients: PatientStatistics, what: int, given: int) -> Value:
    """Partial rank correlation of agreement with one quantity given another; null 0."""
    patients.require_interval()
    sums = np.array(patients.table.sort("patient_id")["rank_moments"].to_list())
    whole = sums.sum(axis=0).reshape(4, 4)
    constant = [
        why for why, square in zip(_CONSTANT, np.diag(whole)[1:], strict=True) if not square
    ]
    if constant:
        raise Undefined(f"{constant[0]}: no correlation is defined")
    value = float(partial_correlation(whole, AGREEMENT, what, given))
    if not np.isfinite(value):
        raise Undefined(
            "two of agreement, composition and colour rank all crops alike: they cannot be separated "
            "in this pool; raise tile_pool.max_tiles"
        )
    resampled = (patients.weights @ sums).reshape(-1, 4, 4)
    draws = partial_correlation(resampled, AGREEMENT, what, given)
    interval = percentile_interval(draws)
    n_pairs = int(whole[0, 0])
    return Value(Estimate(value, *interval, n_pairs, patients.n_patients, draws), Null(0.0, 0.0))
