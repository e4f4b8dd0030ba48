"""Sampling density: how many tiles of a slide a search needs, and what chance of the choice adds.

The mosaic is chosen anew at each density, the share of every colour cluster's tiles (at least one):

- ``macro_f1`` by the tiles that are spread over the tissue
  (:func:`~pathfm_kedro.slides.mosaic.choose_mosaic`), as Yottixel chooses them;
- ``f1_mean_over_mosaics`` and ``f1_sd_over_mosaics`` over mosaics of as many tiles drawn at random from
  the same clusters: what the choice alone adds to a figure from one mosaic. The mean has the bootstrap
  interval over patients, the same draws in every mosaic.

Pitfalls
--------
- Clusters are those of the tile pipeline, not drawn anew.
- Of a slide with few tiles each cluster gives one at 2% as at 10%: densities then differ in name only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.retrieve.counted_queries import (
    no_figures,
    search_votes,
    why_no_votes,
)
from pathfm_kedro.pipelines.retrieve.families.settings import Bools, Count, Ints
from pathfm_kedro.pipelines.retrieve.search import (
    MATCHES_SCHEMA,
    VOTES,
    SearchSettings,
    search_mosaic,
)
from pathfm_kedro.pipelines.retrieve.voted_figures import share
from pathfm_kedro.slides.mosaic import choose_mosaic
from pathfm_kedro.statistics.figures import Figure
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.mosaic import read_mosaic
from pathfm_kedro.statistics.parameters import STRICT
from pathfm_kedro.statistics.sampling import generator_of
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.statistics.votes import PatientVotes

#: The mosaic whose tiles are spread over the tissue; those sampled at random are numbered from 1.
SPREAD = 0
OVER_MOSAICS = ("f1_mean_over_mosaics", "f1_sd_over_mosaics")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SamplingDensity(SearchSettings):
    """Parameters of the experiment; see ``parameters_retrieve.yml`` for the reasons.

    Attributes
    ----------
    densities
        Shares of each colour cluster's tiles; 1 for all.
    mosaics
        Mosaics sampled at random at each density below 1.
    """

    densities: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
    mosaics: Count


def density_matches(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: SamplingDensity
) -> pl.DataFrame:
    """Matches of every mosaic: density, mosaic, tiles per slide, and the columns of a search.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.
    """
    carried = {"density": pl.Float64(), "mosaic": pl.Int64(), "tiles_per_slide": pl.Float64()}
    found = [pl.DataFrame(schema={**carried, **MATCHES_SCHEMA})]
    for density in p.densities:
        for number in range(1 + (p.mosaics if density < 1 else 0)):
            chosen = tiles.with_columns(in_mosaic=chosen_tiles(tiles, density, number, p.seed))
            mosaic = read_mosaic(slides, chosen, embeddings)
            per_slide = float(mosaic.sizes.mean()) if len(mosaic.starts) else 0.0
            beside = [
                pl.lit(value).cast(kind).alias(name)
                for (name, kind), value in zip(
                    carried.items(), (density, number, per_slide), strict=True
                )
            ]
            matches = search_mosaic(mosaic, p)
            found.append(matches.select(*beside, *MATCHES_SCHEMA))
    return pl.concat(found)


def chosen_tiles(tiles: pl.DataFrame, density: float, number: int, seed: int) -> pl.Series:
    """Which rows of the tiles table are in a mosaic.

    Parameters
    ----------
    tiles
        slide_id, x, y, colour_cluster.
    density
        Share of each cluster's tiles.
    number
        :data:`SPREAD`, or the number of a random mosaic.
    seed
        Of all of them.
    """
    chosen = np.zeros(len(tiles), bool)
    rows = tiles.with_row_index("_row").group_by("slide_id", maintain_order=True)
    for (slide,), own in rows:
        clusters = own["colour_cluster"].to_numpy()
        if number == SPREAD:
            positions = own.select("x", "y").to_numpy()
            inside = choose_mosaic(clusters, positions, density, seed)
        else:
            inside = random_mosaic(clusters, density, f"{seed}:{number}:{slide}")
        chosen[own["_row"].to_numpy()] = inside
    return pl.Series(chosen)


def random_mosaic(clusters: Ints, density: float, name: str) -> Bools:
    """As many tiles of each cluster as a spread mosaic has, sampled at random.

    Examples
    --------
    >>> random_mosaic(np.array([0, 0, 0, 1]), 0.7, "s").sum().item()
    3
    """
    generator = generator_of(name)
    chosen = np.zeros(len(clusters), bool)
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        wanted = max(1, round(density * len(members)))
        chosen[generator.choice(members, wanted, replace=False)] = True
    return chosen


def density_figures(
    matches: pl.DataFrame, slides: pl.DataFrame, p: SamplingDensity
) -> Iterator[Figure]:
    """Figures of the experiment, in reading order."""
    for family in p.families:
        for scope in p.scopes:
            for vote in p.votes:
                for density in p.densities:
                    setting = {"family": family, "scope": scope, "vote": vote, "density": density}
                    own = matches.filter(family=family, scope=scope, density=density)
                    votes = [
                        search_votes(rows, slides, scope, VOTES[vote], p)
                        for _, rows in own.group_by("mosaic", maintain_order=True)
                    ]
                    counted = [one for one in votes if one is not None]
                    if votes and len(counted) == len(votes):
                        yield from _of_density(counted, setting)
                        continue
                    yield from no_figures(["macro_f1", *OVER_MOSAICS], setting, why_no_votes(own))


def _of_density(votes: list[PatientVotes], setting: Mapping[str, Any]) -> Iterator[Figure]:
    spread, *sampled = votes
    yield Figure("macro_f1", partial(share, spread.macro_f1, spread.n, spread.n_patients), setting)
    if len(sampled) < 2:
        reason = "every tile is taken: there is one such mosaic"
        if setting["density"] != 1:
            reason = "a spread over mosaics needs two: raise sampling_density.mosaics"
        yield from no_figures(OVER_MOSAICS, setting, reason)
        return
    figures = [one.macro_f1 for one in sampled]
    values = np.array([figure.value for figure in figures])
    mean = replace(
        figures[0],
        value=float(values.mean()),
        draws=np.mean([figure.draws for figure in figures], axis=0),
        permuted=np.mean([figure.permuted for figure in figures], axis=0),
    )
    yield Figure(OVER_MOSAICS[0], partial(share, mean, spread.n, spread.n_patients), setting)
    deviation = partial(_deviation, values, spread)
    yield Figure(OVER_MOSAICS[1], deviation, setting)


def _deviation(values: np.ndarray, of: PatientVotes) -> Estimate:
    """Standard deviation over mosaics with its χ² interval."""
    from scipy.stats import chi2

    freedom, value = len(values) - 1, float(values.std(ddof=1))
    low, high = (value * float(np.sqrt(freedom / chi2.ppf(q, freedom))) for q in (0.975, 0.025))
    return Estimate(value, low, high, of.n, of.n_patients)
