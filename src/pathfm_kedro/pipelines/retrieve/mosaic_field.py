"""Mosaics of wider fields: whether a search finds more where each patch shows more tissue.

The patches of a slide's mosaic are read anew as wider fields around the same centres, each resized as a
whole to the encoder's input, as Yottixel does with its patches of 1000 px. Per field and way to compare
slides, over the slides whose mosaic has room for it:

- ``macro_f1`` of three mosaics: the tiles themselves (``tile``), the wider fields (``wide``), and,
  where ``same_tissue`` names the field, all the tiles that cover these fields (``covering``);
- ``gain_at_equal_compute``: wide less tile: as many passes through the encoder and as many vectors, but
  more tissue;
- ``gain_at_equal_tissue``: wide less covering: the same tissue, but fewer passes and vectors;
- ``passes_per_slide`` through the encoder, and ``megapixels_per_slide`` of tissue, of each mosaic.

Gains are paired: by the same queries and draws
(:func:`~pathfm_kedro.statistics.vote_gain.macro_f1_gain`). A mosaic of 1000-px patches with its own
grid and clusters, Yottixel as published, is an encoder's entry with ``patch: 1000``, which goes through
``retrieval`` twice, on the cohort's tiles and on those of 1000 px.

Pitfalls
--------
- Centres are those of the tiles' mosaic: wide fields of neighbouring places may overlap, and their
  megapixels then count tissue twice.
- Slides without room take no part, which may be the small specimens; images cut beforehand have none.
- At most ``places`` of a mosaic are read, so that macro-F1 is not that of ``retrieval``.
- A wide field is resized: more tissue and less detail change together. At equal tissue the covering
  tiles have more vectors: the family ``mean`` stores one vector of a slide of either.
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
    search_votes,
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
MOSAICS = (TILE, WIDE, COVERING)
#: What a gain of the wide mosaic is over.
GAINS = {"gain_at_equal_compute": TILE, "gain_at_equal_tissue": COVERING}
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
    places
        Of each slide's mosaic that are read; 0 for none.
    """

    fields: Annotated[tuple[_FieldSize, ...], AfterValidator(require_nested)]
    same_tissue: tuple[_FieldSize, ...]
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
    layout, field, tile = Layout.of(fields, p.same_tissue), fields[-1], fields[0]
    parts_of = {TILE: layout.wholes[:1], WIDE: layout.wholes[-1:], COVERING: layout.subs[-1]}
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


def _at_setting(
    own: pl.DataFrame, slides: pl.DataFrame, at: Mapping[str, Any], p: MosaicField
) -> Iterator[Figure]:
    votes: dict[str, PatientVotes] = {}
    missing: dict[str, str] = {}
    for mosaic in MOSAICS:
        rows, setting = own.filter(mosaic=mosaic), {**at, "mosaic": mosaic}
        found = search_votes(rows, slides, at["scope"], VOTES[at["vote"]], p)
        if found is None:
            missing[mosaic] = _why_not(rows, at["field"], mosaic, p)
            yield from no_figures(["macro_f1"], setting, missing[mosaic])
            continue
        votes[mosaic] = found
        yield Figure("macro_f1", partial(share, found.macro_f1, found.n, found.n_patients), setting)
    for metric, over in GAINS.items():
        if WIDE in votes and over in votes:
            yield Figure(metric, partial(gain_over, votes[WIDE], votes[over]), at)
        else:
            yield from no_figures([metric], at, missing.get(WIDE) or missing[over])


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
    if mosaic == COVERING and field not in map(name_of, p.same_tissue):
        return "this field was not covered with tiles: name it in mosaic_field.same_tissue"
    return (
        f"no mosaic has tiles with room for a field of {field} px around them on their slides, or no "
        "second patient has: choose smaller mosaic_field.fields, larger than the tile and even where "
        "its side is"
    )
