"""How many numbers of a vector fit into some bytes, and how they are coded.

A number is stored as ``float32``, ``float16``, ``binary`` (the sign of what it differs from the mean of
other patients) or ``codes`` (k-means codes: every eight numbers are one of 256 centres, learned on
other patients: product quantisation). Vectors are turned by a random rotation, the same for all, and
cut to the first numbers that fit. An encoder's own numbers come in no order, so that any of them would
do as well; turned, they stand for the whole vector (Johnson & Lindenstrauss).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.pipelines.retrieve.families.folds import other_patients
from pathfm_kedro.pipelines.retrieve.families.registry import FAMILIES, rounded
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats, Vectors
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.mutual_knn import unit

Code = Literal["float32", "float16", "binary", "codes"]

#: Numbers that one byte of a k-means code stands for, and its centres.
NUMBERS_A_CODE, CENTRES = 8, 256
#: Numbers that a byte holds.
_NUMBERS_A_BYTE: dict[Code, float] = {
    "float32": 1 / 4,
    "float16": 1 / 2,
    "binary": 8,
    "codes": NUMBERS_A_CODE,
}


def fitting(
    stored: Mosaic, code: Code, budget: int, beside: float = 0.0
) -> tuple[int, float] | None:
    """Numbers of each vector that fit into the bytes of a slide, and the bytes they take.

    Parameters
    ----------
    stored
        Vectors that are kept.
    code
        How a number is stored.
    budget
        Bytes per slide.
    beside
        Bytes of a slide that something else takes.

    Returns
    -------
    tuple
        Dimensions and mean bytes per slide; None where nothing fits.

    Examples
    --------
    >>> import polars as pl
    >>> one = Mosaic(pl.DataFrame({"slide_id": ["s"]}), np.zeros((2, 100), np.float32), np.array([0]))
    >>> fitting(one, "float16", 64), fitting(one, "float32", 4)
    ((16, 64.0), None)
    """
    vectors = len(stored.vectors) / len(stored.starts)
    bytes_a_vector = (budget - beside) / vectors
    numbers_a_byte = _NUMBERS_A_BYTE[code]
    # Bits and codes come in whole bytes.
    whole = np.floor(bytes_a_vector) if numbers_a_byte > 1 else bytes_a_vector
    dimensions = min(int(whole * numbers_a_byte), stored.vectors.shape[1])
    if dimensions < 1:
        return None
    return dimensions, float(np.ceil(dimensions / numbers_a_byte) * vectors + beside)


def rotated(vectors: Vectors, seed: int) -> NDArray[np.float32]:
    """Vectors [n, d] turned by a random rotation, which leaves all distances between them."""
    turned = vectors.astype(np.float64) @ _rotation(vectors.shape[1], seed)
    return turned.astype(np.float32)


@lru_cache(maxsize=1)
def _rotation(dimension: int, seed: int) -> Floats:
    """[d, d]; kept, since encoders of one dimension follow one another and it takes d³ operations."""
    normal = np.random.default_rng(seed).normal(size=(dimension, dimension))
    rotation, triangle = np.linalg.qr(normal)
    signed: Floats = rotation * np.sign(np.diag(triangle))
    signed.setflags(write=False)
    return signed


def compared(
    stored: Mosaic, families: Sequence[str], code: Code, dimensions: int, p: FamilySettings
) -> dict[str, Floats]:
    """Distances between slides whose stored vectors were cut and coded, by family: [n, n].

    What the code learns, it learns on patients outside the query's fold.
    """
    cut = stored.with_vectors(stored.vectors[:, :dimensions])
    if code in ("float32", "float16"):
        kept = cut.with_vectors(cut.vectors.astype(code).astype(np.float32))
        return {name: rounded(FAMILIES[name](kept, kept, p)) for name in families}
    scaled = cut.with_vectors(unit(cut.vectors).astype(np.float32))
    found = {name: np.zeros((len(cut.starts),) * 2) for name in families}
    for rows, outside in other_patients(scaled, scaled, p.folds, p.seed):
        seen = scaled.select(np.flatnonzero(outside)).vectors
        coded = scaled.with_vectors(_CODERS[code](scaled.vectors, seen, p.seed))
        queries = coded.select(rows)
        for name in families:
            found[name][rows] = FAMILIES[name](queries, coded, p)
    return {name: rounded(distances) for name, distances in found.items()}


def binary(vectors: np.ndarray, seen: np.ndarray, seed: int) -> np.ndarray:
    """Signs of what vectors differ from the mean of those that were seen, as 1 and −1.

    The cosine distance of such vectors is twice the share of signs that differ.
    """
    return np.where(vectors >= seen.mean(axis=0), np.float32(1), np.float32(-1))


def product_codes(vectors: np.ndarray, seen: np.ndarray, seed: int) -> np.ndarray:
    """Each group of eight numbers replaced by the nearest of 256 centres of those that were seen.

    References
    ----------
    Jégou, Douze & Schmid, Product quantization for nearest neighbor search, TPAMI 2011.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    coded = np.empty_like(vectors)
    with threadpool_limits(1):
        for start in range(0, vectors.shape[1], NUMBERS_A_CODE):
            part = slice(start, start + NUMBERS_A_CODE)
            rows = np.ascontiguousarray(seen[:, part])
            n = min(CENTRES, len(np.unique(rows, axis=0)))
            means = KMeans(n, n_init=1, max_iter=25, random_state=seed).fit(rows)
            nearest = means.predict(np.ascontiguousarray(vectors[:, part]))
            coded[:, part] = means.cluster_centers_[nearest]
    return coded


_CODERS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "binary": binary,
    "codes": product_codes,
}
