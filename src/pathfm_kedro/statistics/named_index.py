"""An exact FAISS index whose rows have names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class NamedIndex:
    """A FAISS index whose rows have names.

    Attributes
    ----------
    index
        ``faiss.Index``.
    names
        Name of every row, in order.
    """

    index: Any
    names: tuple[str, ...]

    def search(
        self, queries: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        """Similarity [n, k] and names of the k nearest rows of each query, nearest first.

        Parameters
        ----------
        queries
            [n, d], scaled as the rows of the index are.
        k
            Rows wanted; fewer where the index holds fewer.
        """
        similarity, rows = self.index.search(
            np.ascontiguousarray(queries, np.float32), min(k, len(self.names))
        )
        return similarity, [[self.names[row] for row in found] for found in rows]


def cosine_index(vectors: NDArray[np.float32], names: Sequence[str]) -> NamedIndex:
    """Exact index for cosine similarity (inner product of unit vectors).

    Parameters
    ----------
    vectors
        [n, d] float32.
    names
        One per row.

    Raises
    ------
    ValueError
        If numbers of rows and names differ.

    Examples
    --------
    >>> index = cosine_index(np.array([[2, 0], [0, 3]], np.float32), ["east", "north"])
    >>> index.search(np.array([[1, 0.1]], np.float32), k=1)[1]
    [['east']]
    """
    import faiss

    if len(vectors) != len(names):
        raise ValueError(f"{len(vectors)} vectors and {len(names)} names: give one name per vector")
    unit = np.array(vectors, np.float32, order="C")
    faiss.normalize_L2(unit)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    return NamedIndex(index, tuple(names))
