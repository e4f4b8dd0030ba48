"""The few tiles that stand for a slide, and one vector per slide from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.tables import Embeddings, TracedEmbeddings, tile_rows

#: Tensors of a shard: the vector of each tile, tokens of its patches where the encoder's entry asks for
#: them, and what storing these as float16 costs.
EMBEDDING, PATCH_TOKENS, PATCH_TOKENS_LOSS = "embedding", "patch_tokens", "patch_tokens_loss"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Slides read at once: a mosaic keeps few tiles of each, so the whole cohort is never in memory.
_SLIDES_AT_ONCE = 32


@dataclass(frozen=True)
class Mosaic:
    """The patches that stand for each slide.

    Attributes
    ----------
    slides
        One row per slide, sorted by slide_id: slide_id, patient, center, organ, label.
    vectors
        [n_patches, d] float32, one slide below the other.
    starts
        [n_slides] first patch of each slide; every slide has at least one.
    tokens
        The same slides by the tokens of their tiles, several of each tile; None where none were read.
    """

    slides: pl.DataFrame
    vectors: NDArray[np.float32]
    starts: Ints
    tokens: Mosaic | None = None

    @property
    def sizes(self) -> Ints:
        """[n_slides] patches of each slide."""
        return np.diff(np.append(self.starts, len(self.vectors)))

    def mean(self) -> Floats:
        """[n_slides, d] mean over the patches of each slide.

        Examples
        --------
        >>> patches = np.array([[0.0, 2.0], [4.0, 0.0], [1.0, 1.0]], dtype=np.float32)
        >>> mosaic = Mosaic(pl.DataFrame({"slide_id": ["s", "t"]}), patches, np.array([0, 2]))
        >>> mosaic.mean().tolist(), mosaic.maximum().tolist()
        ([[2.0, 1.0], [1.0, 1.0]], [[4.0, 2.0], [1.0, 1.0]])
        """
        patches = self.vectors.astype(np.float64)
        return np.asarray(np.add.reduceat(patches, self.starts, axis=0) / self.sizes[:, None])

    def maximum(self) -> Floats:
        """[n_slides, d] maximum over the patches of each slide, per dimension."""
        return np.asarray(np.maximum.reduceat(self.vectors.astype(np.float64), self.starts, axis=0))

    @property
    def slide_of_patch(self) -> Ints:
        """[n_patches] row of each patch's slide."""
        return np.repeat(np.arange(len(self.starts)), self.sizes)

    def select(self, rows: Ints) -> Mosaic:
        """Some slides with their patches, in the given order.

        Examples
        --------
        >>> patches = np.array([[0.0], [4.0], [1.0]], dtype=np.float32)
        >>> mosaic = Mosaic(pl.DataFrame({"slide_id": ["s", "t"]}), patches, np.array([0, 2]))
        >>> mosaic.select(np.array([1, 0])).vectors.ravel().tolist()
        [1.0, 0.0, 4.0]
        """
        sizes = self.sizes[rows]
        starts = np.cumsum(sizes) - sizes
        patches = np.repeat(self.starts[rows] - starts, sizes) + np.arange(int(sizes.sum()))
        tokens = None if self.tokens is None else self.tokens.select(rows)
        return Mosaic(self.slides[rows], self.vectors[patches], starts, tokens)

    def with_vectors(self, vectors: NDArray[np.float32]) -> Mosaic:
        """The same patches with other vectors."""
        return replace(self, vectors=vectors)


def read_mosaic(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, tensor: str = EMBEDDING
) -> Mosaic:
    """Embeddings of the mosaic tiles, ordered by slide and tile.

    Slides without embeddings or without a mosaic tile are left out.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    tensor
        What is read of a tile: its vector, or its patch tokens, which then follow each other.

    Raises
    ------
    ValueError
        If a vector holds NaN or infinity; the message names the slides.
    """
    parts = list(_mosaic_parts(slides, tiles, embeddings, tensor))
    if not parts:
        return Mosaic(_searched(slides, []), np.zeros((0, 1), np.float32), np.zeros(0, np.int64))
    rows = pl.concat([part for part, _ in parts]).with_row_index("_row")
    # The order of rows in a table must not matter, not even to the last bit of a mean.
    rows = rows.sort("slide_id", "tile_id")
    vectors = np.concatenate([part for _, part in parts])[rows["_row"].to_numpy()]
    broken = ~np.isfinite(vectors.reshape(len(vectors), -1)).all(axis=1)
    if broken.any():
        slide_ids = rows.filter(pl.Series(broken))["slide_id"].unique().sort().to_list()
        raise ValueError(f"embeddings hold NaN or infinity on {slide_ids[:5]}: embed them anew")
    names, starts = np.unique(rows["slide_id"].to_numpy(), return_index=True)
    each = 1 if vectors.ndim == 2 else vectors.shape[1]
    flat = vectors.reshape(-1, vectors.shape[-1])
    return Mosaic(_searched(slides, names.tolist()), flat, each * starts.astype(np.int64))


def read_mosaic_with_tokens(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings
) -> Mosaic:
    """As :func:`read_mosaic`, with patch tokens where they were stored beside the vectors."""
    mosaic = read_mosaic(slides, tiles, embeddings)
    if not isinstance(embeddings, TracedEmbeddings):
        return mosaic
    headers = [embeddings.slide_header(slide) for slide in mosaic.slides["slide_id"]]
    if not headers or not all(PATCH_TOKENS in header for header in headers):
        return mosaic
    return replace(mosaic, tokens=read_mosaic(slides, tiles, embeddings, PATCH_TOKENS))


def pool_slides(slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings) -> pl.DataFrame:
    """Mean and maximum over the tiles of a slide's mosaic.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.

    Returns
    -------
    DataFrame
        slide_id, n_tiles, mean and max (float32 arrays [d]); one row per embedded slide.
    """
    mosaic = read_mosaic(slides, tiles, embeddings)
    pooled = [mosaic.mean(), mosaic.maximum()] if len(mosaic.starts) else [mosaic.vectors] * 2
    array = pl.Array(pl.Float32(), mosaic.vectors.shape[1])
    mean, largest = (pl.Series(v.astype(np.float32), dtype=array) for v in pooled)
    return mosaic.slides.select("slide_id").with_columns(
        n_tiles=pl.Series(mosaic.sizes, dtype=pl.Int64), mean=mean, max=largest
    )


def _mosaic_parts(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, tensor: str
) -> Iterator[tuple[pl.DataFrame, NDArray[np.float32]]]:
    names = embeddings.slide_ids
    for start in range(0, len(names), _SLIDES_AT_ONCE):
        chunk = names[start : start + _SLIDES_AT_ONCE]
        rows = tile_rows(slides, tiles, chunk)
        keep = rows["in_mosaic"].to_numpy().astype(bool)
        yield rows.filter(keep).select("slide_id", "tile_id"), embeddings.stack(chunk, tensor)[keep]


def _searched(slides: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    carried = slides.select(
        "slide_id", pl.col("patient_id").alias("patient"), "center", "organ", "label"
    )
    return carried.filter(pl.col("slide_id").is_in(list(names))).sort("slide_id")
