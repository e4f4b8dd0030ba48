"""Parameters of the families of distances."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.heads import AttentionSettings
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Vectors = NDArray[Any]
Count = Annotated[int, Field(ge=1)]
Distance = Literal["cosine", "euclidean"]
Precision = Literal["float64", "float32"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FamilySettings(ExperimentParameters):
    """Parameters of the families; see ``parameters_retrieve.yml`` for the reasons.

    Attributes
    ----------
    distance
        ``cosine`` or ``euclidean``: between two vectors, for families that do not fix it.
    precision
        Of the products between patches. ``float32`` takes half the time; distances closer than 1e-5 are
        then tied.
    words
        Visual words, at most as many as a third of the patches they are learned on.
    folds
        Of patients: what a family learns, it learns on the patients of the other folds.
    vlad_words
        Of the VLAD: a slide is so many vectors of residuals.
    tokens
        Vectors that are left of a slide where its patches are pooled.
    fused
        Families whose ranks the hybrid search adds up.
    candidates
        Slides that the first search hands to the reranker.
    attention
        How attention pooling is fitted (:class:`~pathfm_kedro.encoders.heads.AttentionSettings`).
    """

    distance: Distance = "cosine"
    precision: Precision = "float64"
    words: Count = 64
    vlad_words: Count = 8
    folds: Annotated[int, Field(ge=2)] = 5
    tokens: Count = 4
    fused: tuple[str, ...] = ("mean", "bm25")
    candidates: Annotated[int, Field(ge=2)] = 100
    attention: AttentionSettings = AttentionSettings(
        folds=5, components=32, hidden=16, steps=100, learning_rate=0.01, weight_decay=0.01
    )
