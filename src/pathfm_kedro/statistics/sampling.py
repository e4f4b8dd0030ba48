"""Samples of tiles that are spread evenly over labels, centers, patients and slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl


def in_turns(rows: pl.DataFrame, levels: Sequence[Sequence[str]], seed: int) -> pl.DataFrame:
    """Rows in the order in which the groups of each level take turns, at random within a group.

    The first n of them are as balanced a sample of n as the groups allow.

    Parameters
    ----------
    rows
        In an order of their own, such as by id, so that the sample does not follow that of a file.
    levels
        Columns that form the groups of each level, innermost first.
    seed
        Of what is random.

    Examples
    --------
    >>> rows = pl.DataFrame({"tile": [0, 1, 2, 3], "slide": ["s", "s", "s", "t"]})
    >>> sorted(in_turns(rows, [["slide"]], seed=0)["slide"].head(2))
    ['s', 't']
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    turns = rows.with_columns(_random=pl.Series(order, dtype=pl.Int64), _turn=pl.lit(0, pl.Int64))
    for group in levels:
        turns = turns.sort("_turn", "_random").with_columns(
            _turn=pl.int_range(pl.len()).over(group)
        )
    return turns.sort("_turn", "_random").drop("_turn", "_random")
