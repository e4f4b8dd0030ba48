"""Which tiles are sampled: cells of a design, their patients and their slides take turns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def generator_of(name: str) -> np.random.Generator:
    """A generator that is seeded by a name, so that no order of work changes what it gives.

    Examples
    --------
    >>> bool(generator_of("s-1").random() == generator_of("s-1").random())
    True
    """
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def tiles_of_slide(n: int, limit: int | None, slide_id: str, seed: int) -> Ints:
    """Rows of at most `limit` of a slide's n tiles, sampled with a seed of its own, in their order.

    Examples
    --------
    >>> tiles_of_slide(3, None, "s-1", 0).tolist(), len(tiles_of_slide(9, 4, "s-1", 0))
    ([0, 1, 2], 4)
    """
    if limit is None or n <= limit:
        return np.arange(n)
    return np.sort(generator_of(f"{seed}:{slide_id}").choice(n, limit, replace=False))


def in_turns(
    rows: pl.DataFrame, levels: Sequence[Sequence[str]], random_key: NDArray[np.generic]
) -> pl.DataFrame:
    """Rows in the order in which the groups of each level, inner to outer, take turns.

    The first n rows are a sample of n in which the groups of the last level have equally many, in
    each of these the groups of the level before, and so on, as far as they have rows.

    Parameters
    ----------
    rows
        What is sampled from. Sort it first by what names a row: only then does the sample not depend
        on the order of the table.
    levels
        Columns whose values make a group; each level's are among those of the level before.
    random_key
        [n] numbers, no two the same, that decide within a group.

    Returns
    -------
    DataFrame
        The rows with ``turn``: how many rows of their group of the last level come before.

    Examples
    --------
    >>> rows = pl.DataFrame({"slide_id": ["s", "s", "s", "t"], "tile_id": list("abcd")})
    >>> in_turns(rows, [["slide_id"]], np.array([2, 0, 1, 3])).select("tile_id", "turn").rows()
    [('b', 0), ('d', 0), ('c', 1), ('a', 2)]
    """
    ordered = rows.with_columns(_random=pl.Series(random_key), turn=pl.lit(0, pl.Int64))
    for group in levels:
        ordered = ordered.sort("turn", "_random").with_columns(
            turn=pl.int_range(pl.len()).over(group)
        )
    return ordered.sort("turn", "_random").drop("_random")


def shuffled_turns(rows: pl.DataFrame, levels: Sequence[Sequence[str]], seed: int) -> pl.DataFrame:
    """:func:`in_turns` with a random key of the seed, without the column ``turn``.

    Examples
    --------
    >>> rows = pl.DataFrame({"tile_id": list("abcd"), "slide_id": ["s", "s", "s", "t"]})
    >>> sorted(shuffled_turns(rows, [["slide_id"]], seed=0)["slide_id"].head(2))
    ['s', 't']
    """
    key = np.random.default_rng(seed).permutation(rows.height)
    return in_turns(rows, levels, key).drop("turn")


def balanced_over_cells(candidates: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Tiles in an order in which cells of label and center, in each patients, then slides take turns.

    Parameters
    ----------
    candidates
        label, center, patient_id and slide_id, sorted by tile_id.
    seed
        Of the choice within a slide.
    """
    cell = ["label", "center"]
    levels = [[*cell, "patient_id", "slide_id"], [*cell, "patient_id"], cell]
    return shuffled_turns(candidates, levels, seed)


def balanced_tiles(tiles: pl.DataFrame, n_tiles: int, seed: int) -> Ints:
    """Choose tiles so that slides give equally many, as far as they have them.

    Parameters
    ----------
    tiles
        slide_id and tile_id; the choice does not depend on the order of rows.
    n_tiles
        Tiles to choose; all where there are fewer.
    seed
        Seed of the choice.

    Returns
    -------
    ndarray
        Rows of the chosen tiles, ordered by slide and tile.

    Examples
    --------
    >>> tiles = pl.DataFrame({"slide_id": ["s"] * 9 + ["t"], "tile_id": list("abcdefghij")})
    >>> chosen = balanced_tiles(tiles, 4, seed=0)
    >>> tiles[chosen]["slide_id"].to_list()
    ['s', 's', 's', 't']
    """
    return _rows_of(_slides_in_turns(tiles, seed).head(n_tiles))


def capped_tiles(tiles: pl.DataFrame, n_per_slide: int, seed: int) -> Ints:
    """Choose at most `n_per_slide` tiles of each slide; else as :func:`balanced_tiles`.

    Examples
    --------
    >>> tiles = pl.DataFrame({"slide_id": ["s"] * 9 + ["t"], "tile_id": list("abcdefghij")})
    >>> tiles[capped_tiles(tiles, 2, seed=0)]["slide_id"].to_list()
    ['s', 's', 't']
    """
    return _rows_of(_slides_in_turns(tiles, seed).filter(pl.col("turn") < n_per_slide))


def _slides_in_turns(tiles: pl.DataFrame, seed: int) -> pl.DataFrame:
    named = tiles.select("slide_id", "tile_id").with_row_index("row").sort("slide_id", "tile_id")
    return in_turns(named, [["slide_id"]], np.random.default_rng(seed).random(len(tiles)))


def _rows_of(chosen: pl.DataFrame) -> Ints:
    return chosen.sort("slide_id", "tile_id")["row"].to_numpy().astype(np.int64)
