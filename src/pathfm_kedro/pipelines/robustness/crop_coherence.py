r"""Crop coherence: do parts of a tile belong together more than parts of different tiles.

Self-supervised training in the manner of DINO asks that a small crop of an image looks like a large
crop of the same image, as if both showed one object. Tissue has no such object. Crops are drawn as
DINOv2 draws them (global: 0.32-1 of the area, at the tile's own side; local: 0.05-0.32, 96 px; sides
3:4 to 4:3), without its flips and colours. With g the global and l the local crops of tile i,

- ``own_cosine = mean cos(g_i, l_i)``, ``other_cosine = mean cos(g_i, l_j)`` over the other tiles j of
  the slide, ``coherence`` their difference: zero where a tile's own parts are no closer than any
  tissue of the slide;
- ``follows_composition``: partial Spearman correlation, over pairs of a tile's global and local crop,
  of cos(g, l) with likeness of tissue composition, given colour distance; ``follows_colour``: with
  likeness of colour, given composition. They say by what crops agree.

Composition is two shares of a crop's pixels: those with more haematoxylin, and those with more
eosin, than the tile's own threshold (Otsu), so that a stronger stain changes neither. Colour
distance is Euclidean between mean CIELAB colours. In the interval of both correlations ranks are
those of the whole pool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.robustness.appearance import view_stack
from pathfm_kedro.pipelines.robustness.appearance_views import pool_tiles
from pathfm_kedro.pipelines.robustness.mutual_knn import unit
from pathfm_kedro.pipelines.robustness.views import plan_views, tile_seed
from pathfm_kedro.slides.fields import TileFields, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.readers import Pixels, resize
from pathfm_kedro.slides.stain import COMMON_BASIS, lab_statistics, stain_amounts
from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    patient_codes,
    percentile_interval,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.measurements import (
    Direction,
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.tables import Embeddings, digests_by_slide

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERIMENT = "crop_coherence"
DIRECTION: Direction = "above"

_REVISION = "1"
#: DINOv2's crops: share of the area, ratio of sides, side in px of a local crop.
GLOBAL_SCALE = (0.32, 1.0)
LOCAL_SCALE = (0.05, 0.32)
RATIO = (3 / 4, 4 / 3)
LOCAL_PIXELS = 96
#: Tries until a crop fits into the tile, as in torchvision; after that the whole tile.
_TRIES = 10

#: Products of ranks (agreement a, composition likeness b, colour likeness c), added per patient.
_PRODUCTS = ("a", "b", "c", "aa", "bb", "cc", "ab", "ac", "bc")

#: One row per patient.
#:
#: - n_tiles, own_sum, other_sum: over tiles that are not alone on their slide; n_alone the others;
#: - n_pairs and sums of centred ranks and their products over all pairs of global and local crop;
#: - a_varies, b_varies, c_varies: whether the quantity differs at all between pairs of the pool.
AGREEMENT_SCHEMA: dict[str, pl.DataType] = {
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_alone": pl.Int64(),
    "own_sum": pl.Float64(),
    "other_sum": pl.Float64(),
    "n_pairs": pl.Int64(),
    **{name: pl.Float64() for name in _PRODUCTS},
    **{f"{name}_varies": pl.Boolean() for name in "abc"},
}


def crop_boxes(n: int, scale: tuple[float, float], side: int, rng: np.random.Generator) -> Ints:
    """Random crops of a square as torchvision's RandomResizedCrop draws them.

    Area is uniform in `scale`, the logarithm of width over height uniform in that of 3/4 … 4/3.

    Parameters
    ----------
    n
        How many.
    scale
        Smallest and largest share of the area.
    side
        Of the square, px.
    rng
        Source of the draws.

    Returns
    -------
    ndarray
        [n, 4]: left, top, width, height in px.

    Examples
    --------
    >>> boxes = crop_boxes(5, (0.05, 0.32), 224, np.random.default_rng(0))
    >>> bool((boxes[:, :2] + boxes[:, 2:] <= 224).all())
    True
    """
    area = rng.uniform(*scale, (n, _TRIES)) * side**2
    ratio = np.exp(rng.uniform(np.log(RATIO[0]), np.log(RATIO[1]), (n, _TRIES)))
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width <= side) & (height <= side) & (width >= 1) & (height >= 1)
    first = np.argmax(fits, axis=1)[:, None]
    size = np.stack([np.take_along_axis(sides, first, axis=1)[:, 0] for sides in (width, height)])
    size = np.where(fits.any(axis=1), size, side).astype(np.int64)
    corner = np.floor(rng.random((2, n)) * (side - size + 1)).astype(np.int64)
    return np.concatenate([corner, size]).T


@dataclass(frozen=True)
class CropMaker:
    """Makes global and local crops of a tile, all enlarged or reduced to the tile's side.

    A local crop first becomes 96 px, so that it holds what DINOv2's hold, and is then enlarged: views
    of one shard have one size, and an encoder would enlarge it itself.

    Attributes
    ----------
    n_global, n_local
        Crops per tile.
    seed
        Of the experiment.
    """

    n_global: int
    n_local: int
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Global crops first."""
        return (
            *(f"global {i}" for i in range(self.n_global)),
            *(f"local {i}" for i in range(self.n_local)),
        )

    def describe(self) -> Mapping[str, Any]:
        """Everything that decides the views' pixels."""
        return {
            "revision": _REVISION,
            "scales": [GLOBAL_SCALE, LOCAL_SCALE],
            "ratio": RATIO,
            "local_pixels": LOCAL_PIXELS,
            "seed": self.seed,
        }

    def make(self, field: Pixels, seed: int) -> Pixels:
        """Views uint8 [views, s, s, 3] of a tile [s, s, 3]."""
        side, rng = len(field), np.random.default_rng([self.seed, seed])
        wide = crop_boxes(self.n_global, GLOBAL_SCALE, side, rng)
        narrow = crop_boxes(self.n_local, LOCAL_SCALE, side, rng)
        cut = [field[y : y + h, x : x + w] for x, y, w, h in np.concatenate([wide, narrow])]
        small = [resize(crop, LOCAL_PIXELS, LOCAL_PIXELS) for crop in cut[self.n_global :]]
        return np.stack([resize(crop, side, side) for crop in (*cut[: self.n_global], *small)])


def crop_maker(parameters: Mapping[str, Any]) -> CropMaker:
    """Read and check the parameters.

    Raises
    ------
    ValueError
        If there is no global or no local crop.
    """
    maker = CropMaker(
        int(parameters["n_global"]), int(parameters["n_local"]), int(parameters["seed"])
    )
    if min(maker.n_global, maker.n_local) < 1:
        raise ValueError("crop_coherence.n_global and n_local must be 1 or more")
    return maker


def plan_crop_views(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    encoder: Mapping[str, Any],
    runtime: Mapping[str, Any],
    tile_parameters: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    name: str,
) -> ShardPlan:
    """One job per slide of the pool that embeds its tiles' crops.

    Parameters
    ----------
    slides, tiles
        The tables.
    pool
        From :func:`~pathfm_kedro.pipelines.robustness.tile_pool.choose_pool`.
    files
        The cohort's folder.
    encoder
        The entry of ``encoders``.
    runtime
        Its recorded runtime.
    tile_parameters
        ``pixels``: side of a tile.
    parameters
        ``crop_coherence``: n_global, n_local, seed.
    engine
        Where jobs run.
    name
        The encoder's name.
    """
    return plan_views(
        slides,
        pool_tiles(tiles, pool),
        files,
        crop_maker(parameters),
        EncoderSpec.from_parameters(name, encoder).with_runtime(runtime),
        int(tile_parameters["pixels"]),
        engine,
        f"cropping for {name}",
    )


@dataclass(frozen=True)
class MeasureCrops:
    """Composition and colour of the crops of one slide's tiles, the same crops as are embedded.

    Attributes
    ----------
    slide_id, slide_fingerprint
        Which slide, and its content.
    fields
        Where the tiles lie.
    tile_ids
        Their ids, in the order of the fields.
    tiles_digest
        Digest of the ids.
    maker
        Makes the crops.
    """

    slide_id: str
    slide_fingerprint: str
    fields: TileFields
    tile_ids: tuple[str, ...]
    tiles_digest: str
    maker: CropMaker

    def header(self) -> dict[str, str]:
        """What the shard depends on."""
        described = ["composition", list(self.maker.names), self.maker.describe()]
        return {
            "slide": self.slide_fingerprint,
            "fields": self.fields.digest(),
            "tile_ids": self.tiles_digest,
            "view": json.dumps(described, sort_keys=True),
            "units": "shares of pixels; CIELAB with L in 0 ... 100",
        }

    def compute(self) -> dict[str, NDArray[np.generic]]:
        """``composition`` [n, views, 2] and ``colour`` [n, views, 3]."""
        composition, colour = [], []
        for tile_id, (pixels, _) in zip(self.tile_ids, self.fields.batches(1), strict=True):
            crops = self.maker.make(pixels[0], tile_seed(tile_id))
            composition.append(tissue_composition(pixels[0], crops))
            colour.append(np.stack([lab_statistics(crop)[0] for crop in crops]))
        return {"composition": np.stack(composition), "colour": np.stack(colour)}


def tissue_composition(tile: Pixels, crops: Pixels) -> Floats:
    """Share of each crop's pixels with much haematoxylin, and with much eosin.

    Much is above Otsu's threshold of the whole tile.

    Parameters
    ----------
    tile
        uint8 [s, s, 3].
    crops
        uint8 [n, t, t, 3].

    Returns
    -------
    ndarray
        [n, 2] in 0 … 1.

    Examples
    --------
    >>> from pathfm_kedro.slides.stain import from_density
    >>> tile = np.zeros((8, 8, 3)) + 0.1 * COMMON_BASIS.matrix[1]
    >>> tile[:, :4] = COMMON_BASIS.matrix[0]
    >>> pixels = from_density(tile)
    >>> tissue_composition(pixels, pixels[None, :, :4])[0].tolist()
    [1.0, 0.0]
    """
    from skimage.filters import threshold_otsu

    amounts = stain_amounts(tile, COMMON_BASIS)[..., :2]
    # A tile of one colour has no threshold, and no pixel above its only value.
    otsu: Callable[[Floats], float] = threshold_otsu
    levels = [otsu(a) if np.ptp(a) > 0 else a.max() for a in np.moveaxis(amounts, -1, 0)]
    above = stain_amounts(crops, COMMON_BASIS)[..., :2] > np.array(levels)
    return cast(Floats, above.mean(axis=(1, 2)))


def plan_crop_composition(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    pool: pl.DataFrame,
    files: SlideFiles,
    tile_parameters: Mapping[str, Any],
    parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> ShardPlan:
    """One job per slide of the pool that measures its tiles' crops; no encoder takes part.

    Parameters
    ----------
    slides, tiles, pool, files, tile_parameters, parameters, engine
        As for :func:`plan_crop_views`.
    """
    chosen, maker = pool_tiles(tiles, pool), crop_maker(parameters)
    digests = digests_by_slide(chosen)
    ids = dict(chosen.group_by("slide_id", maintain_order=True).agg("tile_id").iter_rows())
    jobs = [
        MeasureCrops(
            slide["slide_id"],
            slide["fingerprint"],
            fields,
            tuple(ids[slide["slide_id"]]),
            digests[slide["slide_id"]],
            maker,
        )
        for slide, fields in slide_fields(slides, chosen, files, int(tile_parameters["pixels"]))
    ]
    return ShardPlan(jobs, EngineSettings(**engine), "measuring crops")


def crop_agreements(
    views: Embeddings,
    composition: Embeddings,
    pool: pl.DataFrame,
    parameters: Mapping[str, Any],
) -> pl.DataFrame:
    """Reduce the crops' vectors to sums per patient.

    Parameters
    ----------
    views
        What :func:`plan_crop_views` left.
    composition
        What :func:`plan_crop_composition` left.
    pool
        The tiles; slides without either shard are left out.
    parameters
        ``crop_coherence``: n_global, n_local, seed.

    Returns
    -------
    DataFrame
        Columns :data:`AGREEMENT_SCHEMA`.
    """
    maker = crop_maker(parameters)
    both = pool.filter(pl.col("slide_id").is_in(composition.slide_ids))
    present, stack = view_stack(views, both, maker.names, EXPERIMENT)
    if present.is_empty():
        return pl.DataFrame(schema=AGREEMENT_SCHEMA)
    order = present["slide_id"].unique(maintain_order=True).to_list()
    measured = [composition.stack(order, name) for name in ("composition", "colour")]
    patients, n_patients = patient_codes(present["patient_id"].to_numpy())
    slides, _ = patient_codes(present["slide_id"].to_numpy())
    vectors = unit(stack.reshape(-1, stack.shape[2])).reshape(stack.shape)
    own, other, alone = own_and_other(vectors, slides, maker.n_global)
    pairs = _pair_quantities(vectors, measured, maker.n_global)
    columns = {
        "n_tiles": ~alone,
        "n_alone": alone,
        "own_sum": np.where(alone, 0.0, own),
        "other_sum": np.where(alone, 0.0, other),
        "n_pairs": np.full(len(stack), pairs.shape[2]),
        **_rank_products(pairs),
    }
    differing = dict(zip("abc", map(_varies, pairs), strict=True))
    return pl.DataFrame(
        {
            "patient_id": present["patient_id"].unique().sort(),
            **{name: sum_by_patient(v, patients, n_patients) for name, v in columns.items()},
            **{f"{name}_varies": [varies] * n_patients for name, varies in differing.items()},
        }
    ).select(pl.col(name).cast(kind) for name, kind in AGREEMENT_SCHEMA.items())


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


def _pair_quantities(vectors: Floats, measured: list[NDArray[np.float32]], n_global: int) -> Floats:
    """[3, n, pairs]: agreement, composition likeness and colour likeness of global and local crop."""
    agreement = np.einsum("igd,ild->igl", vectors[:, :n_global], vectors[:, n_global:])
    likeness = [
        -np.linalg.norm(
            part[:, :n_global, None].astype(np.float64) - part[:, None, n_global:], axis=-1
        )
        for part in measured
    ]
    # Equal vectors and equal pixels must tie in the ranks.
    return np.stack([np.round(q, 9).reshape(len(q), -1) for q in (agreement, *likeness)])


def _rank_products(pairs: Floats) -> dict[str, Floats]:
    """[n] sums over a tile's pairs of centred ranks and of their products."""
    from scipy.stats import rankdata

    ranks = rankdata(pairs.reshape(3, -1), axis=1).reshape(pairs.shape)
    # Ranks scaled to unit size lose no digits when squared and added.
    a, b, c = (ranks - ranks.mean(axis=(1, 2), keepdims=True)) / ranks[0].size
    values = {"a": a, "b": b, "c": c, "aa": a * a, "bb": b * b, "cc": c * c}
    values |= {"ab": a * b, "ac": a * c, "bc": b * c}
    return {name: value.sum(axis=1) for name, value in values.items()}


def _varies(quantity: Floats) -> bool:
    return bool(np.ptp(quantity) > 0)


def crop_coherence_measurements(
    agreements: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """Turn the sums into the crop rows of the measurements table.

    Parameters
    ----------
    agreements
        From :func:`crop_agreements`.
    parameters
        ``crop_coherence``: thresholds (coherence: null for none), draws, seed.
    encoder
        Name for the table.

    Returns
    -------
    DataFrame
        Measurements table, experiment ``crop_coherence``.
    """
    weights = bootstrap_weights(max(agreements.height, 1), parameters["draws"], parameters["seed"])
    threshold = parameters["thresholds"]["coherence"]
    held: dict[str, Any] = (
        {} if threshold is None else {"threshold": threshold, "direction": DIRECTION}
    )
    name: dict[str, Any] = {"experiment": EXPERIMENT, "encoder": encoder}
    return measurement_table(
        [
            *_coherence_rows(agreements, weights, name, held),
            *_correlation_rows(agreements, weights, name),
        ]
    )


def _coherence_rows(
    agreements: pl.DataFrame, weights: Floats, name: Mapping[str, Any], held: Mapping[str, Any]
) -> Iterable[dict[str, Any]]:
    problem = _no_patients(agreements) or _no_neighbour_tiles(agreements)
    if problem:
        common = {**name, "reason": problem, "n_patients": agreements.height}
        yield from not_applicable(**common, metrics=["coherence"], **held)
        yield from not_applicable(**common, metrics=["own_cosine", "other_cosine"])
        return
    own, other, tiles = (
        agreements[column].cast(pl.Float64).to_numpy()
        for column in ("own_sum", "other_sum", "n_tiles")
    )
    yield measurement(
        **name,
        metric="coherence",
        estimate=ratio_estimate(own - other, tiles, weights),
        null=Null(0.0, 0.0),
        **held,
    )
    yield measurement(**name, metric="own_cosine", estimate=ratio_estimate(own, tiles, weights))
    yield measurement(**name, metric="other_cosine", estimate=ratio_estimate(other, tiles, weights))


def _correlation_rows(
    agreements: pl.DataFrame, weights: Floats, name: Mapping[str, Any]
) -> Iterable[dict[str, Any]]:
    for metric, of, given in (
        ("follows_composition", "b", "c"),
        ("follows_colour", "c", "b"),
    ):
        problem = _no_patients(agreements) or _no_correlation(agreements)
        estimate = None if problem else partial_correlation(agreements, of, given, weights)
        if estimate is None or estimate.value is None:
            yield from not_applicable(
                **name,
                metrics=[metric],
                reason=problem
                or "two of agreement, composition and colour rank all crops alike: they cannot be "
                "told apart in this pool; raise tile_pool.max_tiles",
                n_patients=agreements.height,
            )
            continue
        yield measurement(**name, metric=metric, estimate=estimate, null=Null(0.0, 0.0))


def partial_correlation(agreements: pl.DataFrame, of: str, given: str, weights: Floats) -> Estimate:
    """Partial correlation of agreement with a second quantity given a third, from sums per patient.

    r_ab·c = (r_ab − r_ac r_bc) / √((1 − r_ac²)(1 − r_bc²)); on ranks this is Spearman's.

    Parameters
    ----------
    agreements
        Sums of centred ranks and their products, one row per patient.
    of, given
        ``b`` and ``c``: composition and colour, or the other way round.
    weights
        [draws, patients].
    """
    columns = ["n_pairs", *_PRODUCTS]
    sums = agreements.select(pl.col(columns).cast(pl.Float64)).to_numpy()
    everyone = np.ones((1, len(sums)))
    value, draws = (
        _partial(dict(zip(columns, (w @ sums).T, strict=True)), of, given)
        for w in (everyone, weights)
    )
    low, high = percentile_interval(draws)
    defined = float(value[0]) if np.isfinite(value[0]) else None
    n = int(agreements["n_pairs"].sum())
    return Estimate(defined, low, high, n, agreements.height)


def _partial(sums: Mapping[str, Floats], of: str, given: str) -> Floats:
    def covariance(first: str, second: str) -> Floats:
        product = "".join(sorted(first + second))
        n = sums["n_pairs"]
        return sums[product] / n - sums[first] / n * (sums[second] / n)

    with np.errstate(invalid="ignore", divide="ignore"):
        size = {name: np.sqrt(np.maximum(covariance(name, name), 0)) for name in ("a", of, given)}
        xy, xz, yz = (
            covariance(first, second) / (size[first] * size[second])
            for first, second in (("a", of), ("a", given), (of, given))
        )
        return cast(Floats, (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))


def _no_patients(agreements: pl.DataFrame) -> str | None:
    if agreements.height >= 2:
        return None
    return (
        f"{agreements.height} patient(s) of the pool have embedded crops: an interval over patients "
        "needs two; add patients or raise tile_pool.max_tiles"
    )


def _no_neighbour_tiles(agreements: pl.DataFrame) -> str | None:
    if agreements["n_tiles"].sum():
        return None
    return (
        "every slide has one tile in the pool, so there is no other tile of the slide to compare "
        "with: raise tile_pool.max_tiles; images cut beforehand cannot support this figure"
    )


def _no_correlation(agreements: pl.DataFrame) -> str | None:
    constant = {
        "a_varies": "the encoder gives all crops of a tile the same agreement: it does not look at "
        "what a crop shows",
        "b_varies": "all crops have the composition of their tile",
        "c_varies": "all crops have the colour of their tile",
    }
    found = [reason for name, reason in constant.items() if not agreements[name][0]]
    return found[0] + ": no correlation is defined" if found else None
