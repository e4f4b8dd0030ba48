"""Baselines: what a search finds that looks at no tissue.

Each is searched and voted on as an encoder is (``macro_f1``, ``accuracy``, by scope and vote):

- ``class_prior``: the labels that most slides of other patients carry come first;
- ``center_only``: slides of the query's center come first, in a random order;
- ``colour_histogram``: distance of the slides' histograms of hue, saturation and brightness (8 bins
  each, over the mosaic's tiles; ``1 − Σ min(p, q)``): what stain and scanner alone give away;
- ``random``: a random order.

An encoder that does not lie above these has found stain, center or the commonest label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.engine import EngineSettings, map_in_order
from pathfm_kedro.pipelines.retrieve.counted_queries import no_figures, search_votes
from pathfm_kedro.pipelines.retrieve.families.settings import Bools, Floats
from pathfm_kedro.pipelines.retrieve.search import (
    MATCHES_SCHEMA,
    SCOPES,
    VOTES,
    SearchSettings,
    allowed_pairs,
    matches_table,
)
from pathfm_kedro.pipelines.retrieve.voted_figures import share
from pathfm_kedro.slides.fields import TileFields, kept_for_others, slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.figures import Figure
from pathfm_kedro.statistics.parameters import STRICT

#: The arms of the experiment.
BASELINES = ("class_prior", "center_only", "colour_histogram", "random")
#: Stands where an encoder's name does.
NO_ENCODER = "no_encoder"
#: Bins of hue, of saturation and of brightness.
_BINS = 8
#: Tiles read at once.
_BATCH = 16
_COLOUR_SCHEMA = {"slide_id": pl.String(), "histogram": pl.Array(pl.Float64(), 3 * _BINS)}


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"'{name}' is no baseline: name some of {list(BASELINES)}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Baselines(SearchSettings):
    """Parameters of the experiment: those of every search; `families` are the baselines.

    Attributes
    ----------
    families
        Names in :data:`BASELINES`.
    """

    families: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_known)]


def colour_histograms(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    files: SlideFiles,
    tile_parameters: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> pl.DataFrame:
    """Histogram of hue, saturation and brightness over the tiles of each slide's mosaic.

    A slide whose pixels cannot be read has none.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    files
        The cohort's folder.
    tile_parameters
        ``pixels``: side of a tile as read.
    engine
        Where jobs run.

    Returns
    -------
    DataFrame
        slide_id, histogram (24 shares: 8 of each, each 8 summing to 1).
    """
    mosaic = tiles.filter("in_mosaic")
    jobs = kept_for_others(slide_fields(slides, mosaic, files, int(tile_parameters["pixels"])))
    outcomes = map_in_order(
        lambda job: _histogram(job[1]), jobs, EngineSettings(**engine), "reading colours"
    )
    rows = [
        {"slide_id": outcome.item[0]["slide_id"], "histogram": outcome.result}
        for outcome in outcomes
        if outcome.reason is None
    ]
    return pl.DataFrame(rows, schema=_COLOUR_SCHEMA)


def no_colours(engine: Mapping[str, Any]) -> pl.DataFrame:
    """No histogram, for a cohort of features without slides."""
    return pl.DataFrame(schema=_COLOUR_SCHEMA)


def _histogram(fields: TileFields) -> list[float]:
    from skimage.color import rgb2hsv

    counts = np.zeros((3, _BINS), np.int64)
    for pixels, _ in fields.batches(_BATCH):
        bins = np.minimum((rgb2hsv(pixels) * _BINS).astype(np.int64), _BINS - 1)
        for channel in range(3):
            counts[channel] += np.bincount(bins[..., channel].ravel(), minlength=_BINS)
    shares: list[float] = (counts / counts.sum(axis=1, keepdims=True)).ravel().tolist()
    return shares


def baseline_matches(
    slides: pl.DataFrame, tiles: pl.DataFrame, colours: pl.DataFrame, p: Baselines
) -> pl.DataFrame:
    """Matches of every baseline and scope, in the columns of a search.

    Parameters
    ----------
    slides, tiles
        The cohort's tables; slides with a mosaic are searched.
    colours
        From :func:`colour_histograms`.
    p
        The parameters.
    """
    with_mosaic = tiles.filter("in_mosaic")["slide_id"].unique().to_list()
    searched = (
        slides.filter(pl.col("slide_id").is_in(with_mosaic))
        .sort("slide_id")
        .with_columns(patient=pl.col("patient_id"))
    )
    found = [pl.DataFrame(schema=MATCHES_SCHEMA)]
    for name in p.families if len(searched) else []:
        own = searched
        if name == "colour_histogram":
            own = searched.join(colours, on="slide_id", how="inner", maintain_order="left")
        for scope in p.scopes if len(own) else []:
            allowed = allowed_pairs(own, SCOPES[scope], p.exclude)
            distances = _DISTANCES[name](own, allowed, p.seed)
            found.append(matches_table(name, scope, own, distances, allowed, p.k))
    return pl.concat(found)


def _class_prior(slides: pl.DataFrame, allowed: Bools, seed: int) -> Floats:
    """Less the more of the slides that a query may find have a slide's label."""
    label = np.unique(slides["label"].to_numpy(), return_inverse=True)[1]
    frequency = (allowed @ np.eye(int(label.max()) + 1)[label])[:, label]
    return np.asarray(frequency.max() - frequency, np.float64)


def _center_only(slides: pl.DataFrame, allowed: Bools, seed: int) -> Floats:
    center = slides["center"].to_numpy()
    order: Floats = _random(slides, allowed, seed) + (center[:, None] != center)
    return order


def _colour_histogram(slides: pl.DataFrame, allowed: Bools, seed: int) -> Floats:
    shares = slides["histogram"].to_numpy()
    return np.stack([1 - np.minimum(shares, row).sum(axis=1) / 3 for row in shares])


def _random(slides: pl.DataFrame, allowed: Bools, seed: int) -> Floats:
    return np.random.default_rng(seed).random(allowed.shape)


_DISTANCES: dict[str, Callable[[pl.DataFrame, Bools, int], Floats]] = {
    "class_prior": _class_prior,
    "center_only": _center_only,
    "colour_histogram": _colour_histogram,
    "random": _random,
}


def baseline_figures(matches: pl.DataFrame, slides: pl.DataFrame, p: Baselines) -> Iterator[Figure]:
    """Figures of the experiment, in reading order."""
    for baseline, scope in product(p.families, p.scopes):
        found = matches.filter(family=baseline, scope=scope)
        for vote in p.votes:
            setting = {"baseline": baseline, "scope": scope, "vote": vote}
            votes = None
            if not found.is_empty():
                votes = search_votes(found, slides, scope, VOTES[vote], p)
            if votes is None:
                reason = (
                    "nothing can be found: no label has enough patients where it is searched, or no "
                    "slide's pixels could be read"
                )
                yield from no_figures(["macro_f1", "accuracy"], setting, reason)
                continue
            for metric, figure in (("macro_f1", votes.macro_f1), ("accuracy", votes.accuracy)):
                yield Figure(metric, partial(share, figure, votes.n, votes.n_patients), setting)
