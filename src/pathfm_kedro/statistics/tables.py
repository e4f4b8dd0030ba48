"""Tables and embeddings joined row by row: what every experiment starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray

#: The tiles table: where each tile lies in level-0 px, its side in micrometres and its µm per px as it
#: is embedded.
TILES_SCHEMA: dict[str, pl.DataType] = {
    "tile_id": pl.String(),
    "slide_id": pl.String(),
    "x": pl.Int64(),
    "y": pl.Int64(),
    "field_um": pl.Float64(),
    "mpp": pl.Float64(),
    "tissue_fraction": pl.Float64(),
    "in_mosaic": pl.Boolean(),
    "colour_cluster": pl.Int64(),
}


class Embeddings(Protocol):
    """Vectors of an encoder, one shard a slide, read when asked for."""

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides with a whole shard, sorted."""
        ...

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """Rows of these slides one below the other, each slide in the order of its tiles."""
        ...


@dataclass(frozen=True)
class KeptEmbeddings:
    """Embeddings that are read once and kept in memory, for work that asks for them many times.

    Attributes
    ----------
    source
        Where they are read.
    """

    source: Embeddings
    _kept: dict[tuple[str, str], NDArray[np.float32]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides with a whole shard, sorted."""
        return self.source.slide_ids

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """Rows of these slides one below the other, each slide in the order of its tiles."""
        if not slide_ids:
            return self.source.stack(slide_ids, name)
        for slide_id in slide_ids:
            if (slide_id, name) not in self._kept:
                self._kept[slide_id, name] = self.source.stack([slide_id], name)
        return np.concatenate([self._kept[slide_id, name] for slide_id in slide_ids])


@runtime_checkable
class TracedEmbeddings(Protocol):
    """Embeddings that know what they were made from."""

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides with a whole shard, sorted."""
        ...

    def slide_header(self, slide_id: str) -> Mapping[str, str]:
        """What a slide's vectors depend on.

        ``tile_ids`` is a digest as :func:`digests_by_slide` gives it, ``slide`` the fingerprint of the
        slide's file, ``encoder`` that of the encoder.
        """
        ...


class OtherTilesError(ValueError):
    """Vectors that stand for other tiles than the table at hand."""


class OtherSlidesError(ValueError):
    """Vectors of files that were replaced since."""


#: What decides about a tile's pixels beside its slide; a table without them is known by ids alone.
_OF_A_TILE = ("x", "y", "field_um", "mpp")


def digest_of_tiles(tile_ids: Iterable[str]) -> str:
    """SHA-256 of the ids of a slide's tiles in their order.

    Examples
    --------
    >>> digest_of_tiles(["a", "b"]) == digest_of_tiles(["b", "a"])
    False
    """
    return hashlib.sha256("\n".join(tile_ids).encode()).hexdigest()


def digests_by_slide(tiles: pl.DataFrame) -> dict[str, str]:
    """Digest of every slide's tiles, in the order of the table: ids, places and resolution.

    Tiles cut anew at another resolution keep their places and ids where the field is as wide: their
    pixels differ all the same.

    Examples
    --------
    >>> tiles = pl.DataFrame({"slide_id": ["s"], "tile_id": ["s-0"], "x": [0], "y": [0],
    ...                       "field_um": [112.0], "mpp": [0.5]})
    >>> digests_by_slide(tiles) == digests_by_slide(tiles.with_columns(mpp=1.0))
    False
    """
    known = [
        # What a file of features does not say is not known.
        pl.col(name).cast(pl.Float64).round(6).fill_null(-1.0)
        for name in _OF_A_TILE
        if name in tiles.columns
    ]
    described = [pl.concat_str("tile_id", *known, separator="\t", ignore_nulls=False)]
    if not known:
        described = [pl.col("tile_id")]
    listed = tiles.select("slide_id", *(d.alias("tile") for d in described))
    grouped = listed.group_by("slide_id", maintain_order=True).agg("tile")
    return {slide: digest_of_tiles(lines) for slide, lines in grouped.iter_rows()}


def refuse_other_tiles(
    tables: pl.DataFrame | Mapping[str, pl.DataFrame],
    embeddings: TracedEmbeddings,
    family: str = "embeddings",
    mend: str = "run the embed pipeline again",
) -> None:
    """Check that row i of every slide's vectors stands for row i of the slide's tiles.

    Parameters
    ----------
    tables
        slide_id and tile_id, in the order in which tiles were embedded, and where there are, their
        places and resolution. Of several, by name, one must be the vectors' table: whole, or its rows
        that a Boolean column marks. Tables about other slides are passed over.
    embeddings
        What was embedded.
    family
        What the vectors are called.
    mend
        What to do where they do not fit.

    Raises
    ------
    OtherTilesError
        If tiles were cut anew since, naming the slides and the mend.
    """
    named = {"tiles": tables} if isinstance(tables, pl.DataFrame) else dict(tables)
    actual = {
        slide: embeddings.slide_header(slide).get("tile_ids") for slide in embeddings.slide_ids
    }
    traced = {slide for slide, digest in actual.items() if digest}
    fewest: tuple[list[str], str] | None = None
    for name, table in named.items():
        if traced.isdisjoint(table["slide_id"].to_list()):
            continue
        for part in _parts(table):
            expected = digests_by_slide(part)
            other = sorted(s for s in traced if actual[s] != expected.get(s))
            if not other:
                return
            if fewest is None or len(other) < len(fewest[0]):
                fewest = (other, name)
    if fewest is not None:
        other, name = fewest
        raise OtherTilesError(
            f"{family}: the vectors of {counted(other)} were made from other tiles than the table "
            f"'{name}' holds (other ones, or at another place or resolution): {mend}"
        )


def counted(slides: Sequence[str]) -> str:
    """How many slides, and which one to look at first.

    Examples
    --------
    >>> counted(["S-1"]), counted(["S-1", "S-2"])
    ('slide S-1', '2 slides, S-1 first,')
    """
    return f"slide {slides[0]}" if len(slides) == 1 else f"{len(slides)} slides, {slides[0]} first,"


def _parts(table: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """A table, then its rows that each Boolean column marks."""
    yield table
    for name, kind in table.schema.items():
        if kind == pl.Boolean:
            yield table.filter(name)


def refuse_other_slides(
    slides: pl.DataFrame, embeddings: TracedEmbeddings, family: str, mend: str
) -> None:
    """Check that every slide's vectors were read from the file that the table describes.

    Parameters
    ----------
    slides
        slide_id and fingerprint.
    embeddings
        Vectors of slides; those of slides that the table does not list are passed over.
    family
        What the vectors are called.
    mend
        What to do where they do not fit.

    Raises
    ------
    OtherSlidesError
        If a slide's file was replaced since, naming the slides and the mend.
    """
    known = dict(slides.select("slide_id", "fingerprint").iter_rows())
    made = {slide: embeddings.slide_header(slide).get("slide") for slide in embeddings.slide_ids}
    other = sorted(s for s, by in made.items() if by and s in known and by != known[s])
    if other:
        raise OtherSlidesError(
            f"{family}: the vectors of {counted(other)} were made from another file than the slides "
            f"table describes, which was replaced since: {mend}"
        )


class OtherCentersError(ValueError):
    """Vectors from which a center was taken out that their slide is no longer of."""


def center_digest(patient: str, center: str) -> str:
    """Of whom and where a slide is, without naming either.

    Examples
    --------
    >>> center_digest("p1", "north") == center_digest("p1", "south")
    False
    """
    return hashlib.sha256(f"{patient}\0{center}".encode()).hexdigest()


def refuse_other_centers(
    slides: pl.DataFrame, embeddings: TracedEmbeddings, family: str, mend: str
) -> None:
    """Check that vectors without their center were made with the centers that the table has.

    Parameters
    ----------
    slides
        slide_id, patient_id and center.
    embeddings
        Vectors whose header may hold the :func:`center_digest` that they were made with.
    family
        What the vectors are called.
    mend
        What to do where they do not fit.

    Raises
    ------
    OtherCentersError
        If a slide's center or patient was corrected since, naming the slides and the mend.
    """
    made = {slide: embeddings.slide_header(slide).get("center") for slide in embeddings.slide_ids}
    without = [slide for slide, digest in made.items() if digest]
    if not without:
        return
    rows = slides.filter(pl.col("slide_id").is_in(without))
    now = rows.select("slide_id", "patient_id", "center").iter_rows()
    other = sorted(slide for slide, *who in now if center_digest(*who) != made[slide])
    if other:
        raise OtherCentersError(
            f"{family}: the center was taken out of the vectors of {counted(other)} as of another "
            f"center or patient than the slides table has, which was corrected since: {mend}"
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


def chosen_vectors(
    tiles: pl.DataFrame, chosen: NDArray[np.integer], embeddings: Embeddings
) -> NDArray[np.float64]:
    """Vectors of some of the embedded tiles, read slide by slide.

    Parameters
    ----------
    tiles
        From :func:`tile_rows`: all tiles of each slide, in the order of its embeddings.
    chosen
        [m] rows, those of a slide next to each other.
    embeddings
        Vectors of one encoder.

    Returns
    -------
    ndarray
        [m, d] float64.
    """
    place = pl.int_range(pl.len()).over("slide_id").alias("place")
    rows = tiles.select("slide_id", place)[chosen]
    parts = [
        embeddings.stack([str(slide)])[of_slide["place"].to_numpy()]
        for (slide,), of_slide in rows.group_by("slide_id", maintain_order=True)
    ]
    return (np.concatenate(parts) if parts else np.zeros((0, 1))).astype(np.float64)


def with_shards(rows: pl.DataFrame, shards: Embeddings) -> pl.DataFrame:
    """Rows whose slide has a shard, in their order."""
    return rows.filter(pl.col("slide_id").is_in(list(shards.slide_ids)))


def stacked(
    tiles: pl.DataFrame, shards: Embeddings, name: str = "embedding"
) -> NDArray[np.float32]:
    """A tensor of tiles, row by row.

    Parameters
    ----------
    tiles
        One tile at least; those of a slide next to each other, and as many as its shard has.
    shards
        One for each of their slides.
    name
        Of the tensor.
    """
    return shards.stack(tiles["slide_id"].unique(maintain_order=True).to_list(), name)


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
