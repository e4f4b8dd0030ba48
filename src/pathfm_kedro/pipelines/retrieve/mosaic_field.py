"""Mosaics of wider fields: which patching finds most, by field, resolution and organ.

The patches of a slide's mosaic are read anew as wider fields around the same centres, each resized as a
whole to the encoder's input, as Yottixel does with its patches of 1000 px. Per field and way to compare
slides, over the slides whose mosaic has room for it, of all and of each organ:

- ``macro_f1`` of five mosaics: the tiles themselves (``tile``), the wider fields (``wide``), both
  (``two_scales``), and, where ``same_tissue`` names the field, all the tiles that cover these fields,
  at the tiles' resolution (``covering``) and ``coarser`` times as coarse (``covering_coarser``);
- ``gain_at_equal_compute``: wide less tile: as many passes through the encoder and as many vectors,
  but more tissue;
- ``gain_at_equal_tissue``: wide less covering: the same tissue, but fewer passes and vectors;
- ``gain_over_tile`` of the other three: what more passes buy. With the family ``attention``
  ``two_scales`` is attention (ABMIL) over patches of both scales;
- ``passes_per_slide`` through the encoder, and ``megapixels_per_slide`` of tissue, of each mosaic;
- ``cost_exponent`` of the covering mosaic: slope of log passes against log side of the field, least
  squares over tile and fields. FLOPs are passes times those of one pass, so the slope is theirs; fields
  that are resized as a whole have 0.

Gains are paired: by the same queries and draws
(:func:`~pathfm_kedro.statistics.vote_gain.macro_f1_gain`). A mosaic of 1000-px patches with its own
grid and clusters, Yottixel as published, is an encoder's entry with ``patch: 1000``, which goes through
``retrieval`` twice, on the cohort's tiles and on those of 1000 px.

Pitfalls
--------
- Centres are those of the tiles' mosaic: wide fields of neighbouring places may overlap, and their
  megapixels then count tissue twice.
- Slides without room take no part, which may be the small specimens; images cut beforehand have none.
  Each field has its own slides: compare cells of one field, and fields by their gains.
- At most ``places`` of a mosaic are read, so that macro-F1 is not that of ``retrieval``.
- A wide field is resized: more tissue and less detail change together; ``covering_coarser`` changes
  detail alone. At equal tissue the covering tiles have more vectors: ``mean`` and ``attention`` store
  one vector of a slide of either.
- Which patching is best for an organ is said of this cohort and encoder: the best of many cells is
  flattered by chance, so that only gains whose interval excludes 0 count, and an encoder trained at
  another resolution may rank them otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.retrieve.accuracy import gain_over
from pathfm_kedro.pipelines.retrieve.counted_queries import (
    no_figures,
    search_of,
    why_no_votes,
)
from pathfm_kedro.pipelines.retrieve.search import (
    MATCHES_SCHEMA,
    VOTES,
    SearchSettings,
    search_mosaic,
)
from pathfm_kedro.pipelines.retrieve.voted_figures import share
from pathfm_kedro.slides.fields import side_of_tiles
from pathfm_kedro.slides.nested_fields import (
    Layout,
    Size,
    fields_around,
    name_of,
    places_with_room,
    require_nested,
    size_of,
)
from pathfm_kedro.statistics.figures import Figure
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.parameters import STRICT
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.statistics.votes import PatientVotes

#: Tensor of a shard: [places, parts, d].
PARTS = "parts"
TILE, WIDE, COVERING = "tile", "wide", "covering"
COARSE, BOTH = "covering_coarser", "two_scales"
MOSAICS = (TILE, WIDE, COVERING, COARSE, BOTH)
#: What a gain of the wide mosaic is over.
GAINS = {"gain_at_equal_compute": TILE, "gain_at_equal_tissue": COVERING}
#: Mosaics of more passes than the tiles.
DEARER = (COVERING, COARSE, BOTH)
COSTS = ("passes_per_slide", "megapixels_per_slide")
_COLUMNS: dict[str, pl.DataType] = {
    "field": pl.String(),
    "mosaic": pl.String(),
    **dict.fromkeys(COSTS, pl.Float64()),
    **MATCHES_SCHEMA,
}
_FieldSize = Annotated[Size, BeforeValidator(size_of)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MosaicField(SearchSettings):
    """Parameters of the experiment; see ``parameters_retrieve.yml`` for the reasons.

    Attributes
    ----------
    fields
        Width and height in px at the tiles' mpp, each inside the next; the first is the tile.
    same_tissue
        Fields that are also covered with tiles.
    coarser
        How many times the tiles' micrometres per px the covering tiles have once more; null for not at
        all.
    places
        Of each slide's mosaic that are read; 0 for none.
    """

    fields: Annotated[tuple[_FieldSize, ...], AfterValidator(require_nested)]
    same_tissue: tuple[_FieldSize, ...]
    coarser: Annotated[int, Field(ge=2)] | None = None
    places: Annotated[int, Field(ge=0)]

    def fields_around(self, side: int | None) -> tuple[Size, ...]:
        """The fields, with the tile that is audited as the first, as of ``field_of_view``."""
        return fields_around(self.fields, side)


def mosaic_field_matches(views: Embeddings, places: pl.DataFrame, p: MosaicField) -> pl.DataFrame:
    """Matches of every mosaic: field, mosaic, what it costs, and the columns of a search.

    Parameters
    ----------
    views
        Shards with ``parts`` [n, parts, d] as
        :class:`~pathfm_kedro.slides.nested_fields.Layout` orders them.
    places
        From :func:`~pathfm_kedro.pipelines.retrieve.mosaic_views.choose_mosaic_places`. Slides
        without a shard are left out.
    p
        The parameters.
    """
    fields = p.fields_around(side_of_tiles(places))
    tables = [pl.DataFrame(schema=_COLUMNS)]
    for nested, rows in places_with_room(fields, places, views.slide_ids):
        tables += _of_field(views, rows, nested, p)
    return pl.concat(tables)


def _of_field(
    views: Embeddings, rows: pl.DataFrame, fields: tuple[Size, ...], p: MosaicField
) -> Iterator[pl.DataFrame]:
    layout, field, tile = Layout.of(fields, p.same_tissue, p.coarser), fields[-1], fields[0]
    parts_of = {
        TILE: layout.wholes[:1],
        WIDE: layout.wholes[-1:],
        COVERING: layout.subs[-1],
        COARSE: layout.coarse[-1],
        BOTH: (layout.wholes[0], layout.wholes[-1]),
    }
    for kind, parts in parts_of.items():
        if not parts:
            continue
        mosaic = _mosaic(views, rows, list(parts))
        width, height = tile if kind == TILE else field
        tissue = rows.height / len(mosaic.starts) * width * height / 1e6
        beside = (name_of(field), kind, float(mosaic.sizes.mean()), tissue)
        columns = [
            pl.lit(value).cast(_COLUMNS[name]).alias(name)
            for name, value in zip(_COLUMNS, beside, strict=False)
        ]
        yield search_mosaic(mosaic, p).with_columns(columns).select(list(_COLUMNS))


def _mosaic(views: Embeddings, rows: pl.DataFrame, parts: list[int]) -> Mosaic:
    """Some parts of every place, as the patches of its slide."""
    slides = rows.select(
        "slide_id", pl.col("patient_id").alias("patient"), "center", "organ", "label"
    ).unique("slide_id", maintain_order=True)
    # A slide with room for larger fields holds more parts, after these.
    own = [views.stack([name], PARTS)[:, parts] for name in slides["slide_id"]]
    sizes = np.array([vectors.shape[0] * len(parts) for vectors in own])
    stacked = np.concatenate([vectors.reshape(-1, vectors.shape[-1]) for vectors in own])
    return Mosaic(slides, stacked, np.cumsum(sizes) - sizes)


def mosaic_field_figures(
    matches: pl.DataFrame, slides: pl.DataFrame, p: MosaicField
) -> Iterator[Figure]:
    """Figures of the experiment, in reading order."""
    for field in map(name_of, p.fields[1:]):
        for family in p.families:
            for scope in p.scopes:
                own = matches.filter(field=field, family=family, scope=scope)
                for vote in p.votes:
                    at = {"field": field, "family": family, "scope": scope, "vote": vote}
                    yield from _at_setting(own, slides, at, p)
        for mosaic in MOSAICS:
            yield from _costs(matches.filter(field=field, mosaic=mosaic), field, mosaic, p)
    covering, setting = matches.filter(mosaic=COVERING), {"mosaic": COVERING}
    if covering.is_empty():
        widest = name_of(p.fields[-1])
        yield from no_figures(["cost_exponent"], setting, _why_not(covering, widest, COVERING, p))
    else:
        yield Figure("cost_exponent", partial(cost_exponent, matches), setting)


def _at_setting(
    own: pl.DataFrame, slides: pl.DataFrame, at: Mapping[str, Any], p: MosaicField
) -> Iterator[Figure]:
    votes: dict[str, dict[str, PatientVotes]] = {}
    missing: dict[str, str] = {}
    for mosaic in MOSAICS:
        rows, setting = own.filter(mosaic=mosaic), {**at, "mosaic": mosaic}
        search = search_of(rows, slides, at["scope"], p)
        if search is None:
            missing[mosaic] = _why_not(rows, at["field"], mosaic, p)
            yield from no_figures(["macro_f1"], setting, missing[mosaic])
            continue
        votes[mosaic] = search.strata_votes(VOTES[at["vote"]])
        for stratum, found in votes[mosaic].items():
            compute = partial(share, found.macro_f1, found.n, found.n_patients)
            yield Figure("macro_f1", compute, setting, stratum)
    for metric, over in GAINS.items():
        yield from _gains(metric, WIDE, over, at, votes, missing)
    for mosaic in DEARER:
        setting = {**at, "mosaic": mosaic}
        yield from _gains("gain_over_tile", mosaic, TILE, setting, votes, missing)


def _gains(
    metric: str,
    mosaic: str,
    over: str,
    setting: Mapping[str, Any],
    votes: Mapping[str, Mapping[str, PatientVotes]],
    missing: Mapping[str, str],
) -> Iterator[Figure]:
    """Gains of one mosaic over another, of all queries and of each organ's."""
    if mosaic in missing or over in missing:
        yield from no_figures([metric], setting, missing.get(mosaic) or missing[over])
        return
    for stratum, found in votes[mosaic].items():
        yield Figure(metric, partial(gain_over, found, votes[over][stratum]), setting, stratum)


def cost_exponent(matches: pl.DataFrame) -> Estimate:
    """Slope of log passes of a place against log side of its field, from the tile on."""
    covering = matches.filter(mosaic=COVERING)
    sides, passes = [1.0], [1.0]
    for field in covering["field"].unique(maintain_order=True):
        own, tiles = (matches.filter(field=field, mosaic=kind) for kind in (COVERING, TILE))
        # Of each place one tile, so that its passes are places and its megapixels the tile's area.
        more, larger = (own[column][0] / tiles[column][0] for column in COSTS)
        passes.append(more)
        sides.append(larger**0.5)
    slope = float(np.polyfit(np.log(sides), np.log(passes), 1)[0])
    n, n_patients = (covering[column].n_unique() for column in ("query_slide", "query_patient"))
    return Estimate(slope, slope, slope, n, n_patients)


def _costs(own: pl.DataFrame, field: str, mosaic: str, p: MosaicField) -> Iterator[Figure]:
    setting = {"field": field, "mosaic": mosaic}
    if own.is_empty():
        yield from no_figures(COSTS, setting, _why_not(own, field, mosaic, p))
        return
    n, n_patients = (own[column].n_unique() for column in ("query_slide", "query_patient"))
    for metric in COSTS:
        value = float(own[metric][0])
        yield Figure(metric, partial(Estimate, value, value, value, n, n_patients), setting)


def _why_not(rows: pl.DataFrame, field: str, mosaic: str, p: MosaicField) -> str:
    """Why a mosaic of a field has no figure."""
    if p.places == 0:
        return "no wider fields are read in an audit of this size: set mosaic_field.places"
    if not rows.is_empty():
        return why_no_votes(rows)
    if mosaic in (COVERING, COARSE) and field not in map(name_of, p.same_tissue):
        return "this field was not covered with tiles: name it in mosaic_field.same_tissue"
    if mosaic == COARSE and p.coarser is None:
        return "no coarser tiles were read: set mosaic_field.coarser"
    return (
        f"no mosaic has tiles with room for a field of {field} px around them on their slides, or no "
        "second patient has: choose smaller mosaic_field.fields, larger than the tile and even where "
        "its side is"
    )
