"""FAISS indexes whose rows have names: exact, of bits, in cells, as a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.barcodes import barcodes

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Types of index, the exact one first.
INDEX_TYPES = ("flat", "binary", "ivf", "hnsw")
#: Passes of the k-means that finds an index's cells, as FAISS sets it.
_PASSES = 10


@dataclass(frozen=True)
class NamedIndex:
    """A FAISS index of unit vectors, or of their barcodes, whose rows have names.

    Attributes
    ----------
    index
        ``faiss.Index`` by inner product, or ``faiss.IndexBinary``.
    names
        Name of every row, in order.
    """

    index: Any
    names: tuple[str, ...]

    @property
    def of_bits(self) -> bool:
        """Whether rows are barcodes."""
        import faiss

        return isinstance(self.index, faiss.IndexBinary)

    def search(self, queries: Vectors, k: int) -> tuple[NDArray[np.float32], list[list[str]]]:
        """Similarity [n, k] and names of the k nearest rows of each query, nearest first.

        Parameters
        ----------
        queries
            [n, d] vectors, of any length.
        k
            Rows wanted; fewer where the index holds or finds fewer.
        """
        similarity, rows = self.nearest(queries, k)
        return similarity, [[self.names[row] for row in found if row >= 0] for found in rows]

    def nearest(self, queries: Vectors, k: int) -> tuple[NDArray[np.float32], Rows]:
        """Similarity and rows [n, k], nearest first; row −1 where an approximate search found fewer.

        Similarity is the cosine, or the share of a barcode's bits that are equal.
        """
        wanted = min(k, len(self.names))
        if self.of_bits:
            differing, rows = self.index.search(barcodes(queries), wanted)
            n_bits = max(1, queries.shape[1] - 1)
            return (1 - differing / n_bits).astype(np.float32), rows
        return self.index.search(_unit(queries), wanted)  # type: ignore[no-any-return]

    def serialized(self) -> bytes:
        """FAISS's own bytes: vectors, and what the index keeps beside them."""
        import faiss

        serialize = faiss.serialize_index_binary if self.of_bits else faiss.serialize_index
        return bytes(serialize(self.index).tobytes())

    @classmethod
    def deserialized(cls, content: bytes, names: Sequence[str]) -> NamedIndex:
        """The index of :meth:`serialized`.

        Raises
        ------
        ValueError
            If the content is cut, or is of another number of rows.
        """
        import faiss

        of_bits = content[:2] == b"IB"
        read = faiss.deserialize_index_binary if of_bits else faiss.deserialize_index
        try:
            index = read(np.frombuffer(content, np.uint8))
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        if index.ntotal != len(names):
            raise ValueError(f"{index.ntotal} rows and {len(names)} names")
        return cls(index, tuple(names))


def cosine_index(vectors: Vectors, names: Sequence[str]) -> NamedIndex:
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

    return _filled(faiss.IndexFlatIP(vectors.shape[1]), _unit(vectors), names)


def barcode_index(vectors: Vectors, names: Sequence[str]) -> NamedIndex:
    """Exact index of barcodes by Hamming distance: a thirty-second of float32.

    Parameters
    ----------
    vectors, names
        As of :func:`cosine_index`.
    """
    import faiss

    codes = barcodes(vectors)
    return _filled(faiss.IndexBinaryFlat(8 * codes.shape[1]), codes, names)


def cell_index(vectors: Vectors, names: Sequence[str], probed: float, seed: int) -> NamedIndex:
    """Inverted file (IVF): vectors lie in √n cells, of which a search looks at the nearest.

    Parameters
    ----------
    vectors, names
        As of :func:`cosine_index`.
    probed
        Share of the cells that a search looks at, at least one.
    seed
        Of the k-means that finds the cells.

    References
    ----------
    Sivic & Zisserman, Video Google, ICCV 2003.
    """
    import faiss

    unit = _unit(vectors)
    cells = max(1, round(len(unit) ** 0.5))
    kind = faiss.METRIC_INNER_PRODUCT
    coarse = faiss.IndexFlatIP(unit.shape[1])
    index = faiss.IndexIVFFlat(coarse, unit.shape[1], cells, kind)
    index.cp.seed, index.cp.niter = seed, _PASSES
    # Cells of few vectors are asked for: FAISS would warn of each.
    index.cp.min_points_per_centroid = 1
    index.nprobe = max(1, round(probed * cells))
    with one_search_thread():
        if len(unit):
            index.train(unit)
        return _filled(index, unit, names)


def graph_index(
    vectors: Vectors, names: Sequence[str], links: int, built: int, searched: int
) -> NamedIndex:
    """Hierarchical navigable small world (HNSW): a search follows links to ever nearer vectors.

    Parameters
    ----------
    vectors, names
        As of :func:`cosine_index`.
    links
        Of each vector, to near ones.
    built, searched
        Candidates that are kept while the graph is built, and while it is searched.

    References
    ----------
    Malkov & Yashunin, TPAMI 2020.
    """
    import faiss

    index = faiss.IndexHNSWFlat(vectors.shape[1], links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = built, searched
    with one_search_thread():
        return _filled(index, _unit(vectors), names)


def _filled(index: Any, rows: NDArray[Any], names: Sequence[str]) -> NamedIndex:
    if len(rows) != len(names):
        raise ValueError(f"{len(rows)} vectors and {len(names)} names: give one name per vector")
    if len(rows):
        index.add(rows)
    return NamedIndex(index, tuple(names))


def _unit(vectors: Vectors) -> Vectors:
    import faiss

    unit = np.array(vectors, np.float32, order="C")
    faiss.normalize_L2(unit)
    return unit


@contextmanager
def one_search_thread() -> Iterator[None]:
    """One thread of FAISS and BLAS: several would build an index in an order that chance decides."""
    import faiss
    from threadpoolctl import threadpool_limits

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        faiss.omp_set_num_threads(before)
