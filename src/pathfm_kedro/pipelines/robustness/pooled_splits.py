"""Robustness index of an encoder that is trained on several splits of the patients, pooled over them.

Neighbours are sought within each split, with the vectors of its own model. No patient is in two splits,
so the neighbour counts of their units stand one below the other: the index is that of all of them, its
interval resamples all patients, and its null permutes labels over the units of all splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from pathfm_kedro.pipelines.robustness.robustness_index import (
    ROBUSTNESS_INDEX_SCHEMA,
    RobustnessIndex,
    counted,
    robustness_index_figures,
)
from pathfm_kedro.statistics.figures import Figure
from pathfm_kedro.statistics.tables import to_schema

#: Pairs of cells of one split are other pairs than those of the next.
_PAIRED = "paired_2x2"
_PERMUTED = ("permuted_label", "permuted_center")


def pooled_index_figures(
    splits: Sequence[pl.DataFrame], chosen_k: Mapping[str, Any], p: RobustnessIndex
) -> Iterator[Figure]:
    """Figures of the counts of several splits together.

    Parameters
    ----------
    splits
        From :func:`~pathfm_kedro.pipelines.robustness.robustness_index.robustness_index_statistics`, of
        each split.
    chosen_k
        The cohort's number of neighbours, in which trained encoders have no say.
    p
        The parameters.
    """
    yield from robustness_index_figures(pooled_index_statistics(splits), chosen_k, p)


def pooled_index_statistics(splits: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Statistics of disjoint patients as those of one cohort.

    A design that one split cannot measure is that of the others. Cells that are left out of a split are
    named in the rows of that split alone. Each split's permutations are rotated against the others',
    since all were drawn from one seed.

    Parameters
    ----------
    splits
        Of :data:`~pathfm_kedro.pipelines.robustness.robustness_index.ROBUSTNESS_INDEX_SCHEMA`.
    """
    measured = {
        design
        for table in splits
        for design in table["design"].unique()
        if counted(table, design).height
    }
    parts, units, scopes = [], 0, 0
    for number, table in enumerate(splits):
        own = pl.col("scope") + pl.when(pl.col("design") == _PAIRED).then(scopes).otherwise(0)
        rotated = [
            pl.col(name).list.eval(pl.element().slice(number).append(pl.element().head(number)))
            for name in _PERMUTED
        ]
        parts.append(
            table.filter(
                pl.col("label").is_null() | pl.col("n").is_not_null(),
                pl.col("reason").is_null() | ~pl.col("design").is_in(sorted(measured)),
            )
            .with_columns(
                unit=pl.col("unit") + units,
                neighbour_unit=pl.col("neighbour_unit").list.eval(pl.element() + units),
                scope=own,
            )
            .with_columns(rotated)
        )
        units += _next(table["unit"])
        scopes += _next(table.filter(design=_PAIRED)["scope"])
    found = pl.concat(to_schema(part, ROBUSTNESS_INDEX_SCHEMA) for part in parts)
    # Of a design that no split can measure one reason is enough.
    reasons = found.filter(pl.col("reason").is_not_null()).unique("design", maintain_order=True)
    return pl.concat([found.filter(pl.col("reason").is_null()), reasons])


def _next(codes: pl.Series) -> int:
    most: Any = codes.max()
    return 0 if most is None else int(most) + 1
