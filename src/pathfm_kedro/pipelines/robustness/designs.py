"""Former names of :mod:`pathfm_kedro.statistics.balanced_designs`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import polars as pl

from pathfm_kedro.statistics.balanced_designs import (
    Cohort,
    PermutedTags,
    Scope,
    Subsamples,
    Subsampling,
    balanced_subsamples,
    codes_of,
    permuted_tags,
    read_rows,
    tagged_rows,
)
from pathfm_kedro.statistics.tables import Embeddings

__all__ = [
    "Cohort",
    "Dealt",
    "Scope",
    "Subsamples",
    "codes_of",
    "deal_tags",
    "draw_subsamples",
    "read_rows",
    "tagged_rows",
]

Dealt, deal_tags = PermutedTags, permuted_tags
Scope.draw = property(lambda self: self.number)  # type: ignore[attr-defined]


def draw_subsamples(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    parameters: Mapping[str, Any],
) -> Subsamples:
    """As :func:`balanced_subsamples`, from a mapping."""
    named = {**parameters, "subsamples": parameters.get("draws", 1)}
    asked = {f.name: named[f.name] for f in fields(Subsampling) if f.name in named}
    return balanced_subsamples(slides, tiles, embeddings, Subsampling(**asked), named["seed"])
