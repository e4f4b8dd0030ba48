"""Simulated slides that are searched: retrieval, wider fields."""

from __future__ import annotations

import numpy as np
import polars as pl
from simulated_cohorts import (
    LABELS,
    TILES,
    Asked,
    D,
    Generator,
    Stored,
    asked,
    block,
    codes,
    effects_of,
    one_shard_each,
    patients_table,
    read,
    tiles_of,
)

from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.mosaic_field import (
    MosaicField,
    mosaic_field_figures,
    mosaic_field_matches,
)
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.pipelines.robustness.field_of_view import (
    FieldOfView,
    field_of_view_figures,
    field_of_view_statistics,
)
from pathfm_kedro.slides.nested_fields import Layout
from pathfm_kedro.statistics.parameters import read_parameters


def widened(
    patients: int, generator: Generator, tile: float = 0.0, wide: float = 0.0, alike: float = 0.9
) -> list[Asked]:
    """Field of view: how much of the label a tile and a wide field hold.

    Parameters
    ----------
    patients, generator
        How many, and their source.
    tile, wide
        Standard deviation of the label's effect in the vector of either.
    alike
        Share of the rest that both have in common.
    """
    p = read(FieldOfView, "field_of_view")
    slides = patients_table(patients)
    layout = Layout.of(p.fields)
    shown = effects_of(LABELS, 1.0, 0)[codes(slides["label"])]
    shared = generator.standard_normal((patients, 1, D))
    own = generator.standard_normal((patients, len(layout.parts), D))
    rest = np.sqrt(alike) * shared + np.sqrt(1 - alike) * own
    strength = np.full(len(layout.parts), tile)
    strength[list(layout.wholes[1:])] = wide
    parts = (strength[:, None] * shown[:, None] + rest).astype(np.float32)
    tensors = {
        "parts": parts,
        "native": parts[:, [layout.wholes[-1]]],
        "native_problem": np.ones((patients, 1), np.float32),
        "cost": np.ones((patients, 2, 3, 2), np.float32),
    }
    rows = {
        name: {s: v[[i]] for i, s in enumerate(slides["slide_id"])} for name, v in tensors.items()
    }
    pool = slides.with_columns(
        tile_id="slide_id", field=pl.lit("512"), field_um=pl.lit(112.0), mpp=pl.lit(0.5)
    )
    found = field_of_view_statistics(Stored(**rows), pool, p)
    room = pl.DataFrame(
        {"field": ["512"], "n_slides": patients, "n_slides_with_room": patients, "reason": ""}
    )
    return [asked(field_of_view_figures(found, room, p), "field_of_view", p)]


def retrieved(
    patients: int, generator: Generator, first: float = 0.0, second: float = 0.0
) -> list[Asked]:
    """Retrieval in two organs of two labels, of which the vectors hold more or less."""
    p = read(Retrieval, "retrieval")
    slides = patients_table(patients, organs=2)
    organ, label = codes(slides["organ"]), codes(slides["label"])
    strength = np.where(organ == 0, first, second)
    mean = strength[:, None] * effects_of(LABELS, 1.0, 0)[label] + effects_of(2, 1.0, 2)[organ]
    mean = mean + 0.5 * generator.standard_normal((patients, D))
    vectors = mean[:, None] + generator.standard_normal((patients, 4, D))
    found = search_slides(slides, tiles_of(slides, 4), one_shard_each(slides, vectors), p)
    return [asked(retrieval_figures(found, slides, p), "retrieval", p, ["macro_f1"])]


def of_several_vectors(
    patients: int,
    generator: Generator,
    every: float = 0.0,
    some: float = 0.0,
    hidden: float = 0.0,
) -> list[Asked]:
    """Retrieval by several vectors, words or fused lists against one mean vector.

    Parameters
    ----------
    patients, generator
        How many, and their source.
    every, some
        Standard deviation of the label's effect in all tiles, and in one of eight alone.
    hidden
        The same in one of eight, where the others take it out of the mean.
    """
    families = ["mean", "maxsim", "bm25", "hybrid"]
    p = read_parameters(Retrieval, "retrieval", block("retrieval") | {"families": families})
    slides = patients_table(patients)
    shown = effects_of(LABELS, 1.0, 0)[codes(slides["label"])]
    mean = every * shown + 0.5 * generator.standard_normal((patients, D))
    vectors = mean[:, None] + generator.standard_normal((patients, TILES, D))
    vectors[:, 0] += (some + hidden) * shown
    vectors[:, 1:] -= hidden * shown[:, None] / (TILES - 1)
    found = search_slides(slides, tiles_of(slides, TILES), one_shard_each(slides, vectors), p)
    return [asked(retrieval_figures(found, slides, p), "retrieval", p)]


def of_wider_mosaics(
    patients: int, generator: Generator, tile: float = 0.0, wide: float = 0.0
) -> list[Asked]:
    """Mosaics of wider fields: how much of the label a tile and a wide field hold."""
    p = read(MosaicField, "mosaic_field")
    slides = patients_table(patients)
    layout = Layout.of(p.fields, p.same_tissue)
    shown = effects_of(LABELS, 1.0, 0)[codes(slides["label"])][:, None, None]
    strength = np.full((len(layout.parts), 1), tile)
    strength[list(layout.wholes[1:])] = wide
    shape = patients, 4, len(layout.parts), D
    place = 0.5 * generator.standard_normal((patients, 1, 1, D))
    place = place + generator.standard_normal((patients, 4, 1, D))
    parts = strength * shown + place + 0.3 * generator.standard_normal(shape)
    places = (
        tiles_of(slides, 4)
        .join(slides, on="slide_id")
        .with_columns(field=pl.lit("512"), field_um=pl.lit(112.0), mpp=pl.lit(0.5))
    )
    views = Stored(parts=one_shard_each(slides, parts).tensors["embedding"])
    found = mosaic_field_matches(views, places, p)
    return [asked(mosaic_field_figures(found, slides, p), "mosaic_field", p)]
