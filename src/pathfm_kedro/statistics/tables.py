"""Tables and embeddings joined row by row: what every experiment starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray


class Embeddings(Protocol):
    """Vectors of an encoder, one shard a slide, read when asked for."""

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides with a whole shard, sorted."""
        ...

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """Rows of these slides one below the other, each slide in the order of its tiles."""
        ...


@runtime_checkable
class TracedEmbeddings(Protocol):
    """Embeddings that know which tiles they were made from."""

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides with a whole shard, sorted."""
        ...

    def tiles_digest(self, slide_id: str) -> str:
        """Digest of the ids of a slide's tiles, as :func:`digest_of_tiles` gives it."""
        ...


class OtherTilesError(ValueError):
    """Vectors that stand for other tiles than the table at hand."""


def digest_of_tiles(tile_ids: Iterable[str]) -> str:
    """SHA-256 of the ids of a slide's tiles in their order.

    Examples
    --------
    >>> digest_of_tiles(["a", "b"]) == digest_of_tiles(["b", "a"])
    False
    """
    return hashlib.sha256("\n".join(tile_ids).encode()).hexdigest()


def digests_by_slide(tiles: pl.DataFrame) -> dict[str, str]:
    """Digest of every slide's tiles, in the order of the table."""
    listed = tiles.group_by("slide_id", maintain_order=True).agg("tile_id")
    return {slide: digest_of_tiles(ids) for slide, ids in listed.iter_rows()}


def refuse_other_tiles(tiles: pl.DataFrame, embeddings: TracedEmbeddings) -> None:
    """Check that row i of every slide's vectors stands for row i of the slide's tiles.

    Parameters
    ----------
    tiles
        slide_id and tile_id, in the order in which tiles were embedded.
    embeddings
        What was embedded.

    Raises
    ------
    OtherTilesError
        If tiles were cut anew since, naming the slides and the mend.
    """
    expected = digests_by_slide(tiles)
    other = [s for s in embeddings.slide_ids if embeddings.tiles_digest(s) != expected.get(s)]
    if other:
        raise OtherTilesError(
            f"the vectors of {len(other)} slides, {other[0]} first, were made from other tiles than "
            "the table holds: run the embed pipeline again"
        )


def tile_rows(slides: pl.DataFrame, tiles: pl.DataFrame, slide_ids: Sequence[str]) -> pl.DataFrame:
    """One row per tile of the given slides with what its slide carries.

    Parameters
    ----------
    slides
        Slides table: slide_id, patient_id, center, organ, label, …
    tiles
        Tiles table: tile_id, slide_id, … in the order in which tiles were embedded.
    slide_ids
        Slides in the order in which their embeddings are stacked.

    Returns
    -------
    DataFrame
        The tiles' columns with patient_id, center, organ, label; row i belongs to row i of
        ``embeddings.stack(slide_ids)``.

    Examples
    --------
    >>> slides = pl.DataFrame({"slide_id": ["s", "t"], "patient_id": ["p", "q"],
    ...                        "center": ["A", "B"], "organ": ["o", "o"], "label": ["x", "y"]})
    >>> tiles = pl.DataFrame({"tile_id": ["t1", "s1"], "slide_id": ["t", "s"]})
    >>> tile_rows(slides, tiles, ["s", "t"])["tile_id"].to_list()
    ['s1', 't1']
    """
    order = pl.DataFrame(
        {"slide_id": list(slide_ids), "_order": range(len(slide_ids))},
        schema={"slide_id": pl.String(), "_order": pl.Int64()},
    )
    carried = slides.select("slide_id", "patient_id", "center", "organ", "label")
    return (
        tiles.with_row_index("_row")
        .join(order, on="slide_id", how="inner")
        .join(carried, on="slide_id", how="left")
        .sort("_order", "_row")
        .drop("_order", "_row")
    )


def to_schema(
    rows: pl.DataFrame | Sequence[Mapping[str, Any]], schema: Mapping[str, pl.DataType]
) -> pl.DataFrame:
    """Rows in the order and types of a schema; columns that are not given are null.

    Examples
    --------
    >>> to_schema([{"n": 1}], {"n": pl.Int32(), "reason": pl.String()}).row(0)
    (1, None)
    """
    if not isinstance(rows, pl.DataFrame):
        return pl.DataFrame(list(rows), schema=dict(schema))
    absent = [pl.lit(None).alias(name) for name in schema if name not in rows.columns]
    return rows.with_columns(absent).select(
        pl.col(name).cast(kind) for name, kind in schema.items()
    )
