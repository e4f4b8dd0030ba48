"""Centred kernel alignment: how alike two sets of vectors of the same rows are spread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.figures import Undefined, Value
from pathfm_kedro.statistics.jackknife import jackknife_interval
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.patient_statistics import PatientStatistics

Floats = NDArray[np.float64]


def debiased_cka(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> float:
    """Linear centred kernel alignment by unbiased estimates of the Hilbert-Schmidt criterion.

    ``HSIC(x, y) / √(HSIC(x, x) HSIC(y, y))`` of the Gram matrices. 1 where one is the other turned and
    scaled, about 0 where they have nothing in common; the biased estimate is near 1 there too as soon
    as there are more dimensions than rows.

    Parameters
    ----------
    x, y
        [n, d] and [n, e] vectors of the same rows, at least four.

    Returns
    -------
    float
        NaN where one of them does not vary.

    References
    ----------
    Song et al. 2012, "Feature Selection via Dependence Maximization", JMLR 13. Kornblith et al. 2019,
    "Similarity of Neural Network Representations Revisited", arXiv 1905.00414.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(40, 3))
    >>> round(debiased_cka(x, 2 * x[:, ::-1] + 1), 6)
    1.0
    """
    return next(aligned({"x": centred_gram(x), "y": centred_gram(y)}, [("x", "y")]))


def aligned(grams: Mapping[str, Floats], pairs: Iterable[tuple[str, str]]) -> Iterator[float]:
    """:func:`debiased_cka` of pairs of Gram matrices with an empty diagonal.

    NaN where one does not vary. Rows and columns may be taken out of all, which gives the alignment of
    the rows that are left.
    """
    own = {name: _unbiased(gram, gram) for name, gram in grams.items()}
    for first, second in pairs:
        scale = own[first] * own[second]
        cross = _unbiased(grams[first], grams[second])
        yield float(cross / np.sqrt(scale)) if scale > 0 else float("nan")


def aligned_value(rows: PatientStatistics, n_patients: int) -> Value:
    """An alignment with its interval from those without a group of patients; null 0.

    Parameters
    ----------
    rows
        group, cka and n_tiles: without each group of patients, and with all as group −1.
    n_patients
        How many there are.

    Raises
    ------
    Undefined
        If one of both does not vary.
    """
    table = rows.table.sort("group")
    parts = table["cka"].cast(pl.Float64).to_numpy()
    value, without_group = float(parts[0]), parts[1:]
    if not np.isfinite(value):
        raise Undefined("vectors of one of both do not vary: there is nothing to align")
    interval = jackknife_interval(value, without_group[np.isfinite(without_group)])
    return Value(Estimate(value, *interval, int(table["n_tiles"][0]), n_patients), Null(0.0, 0.0))


def centred_gram(values: NDArray[np.floating[Any]]) -> Floats:
    """Gram matrix without its diagonal; centring first changes nothing but the size of the numbers."""
    wide = np.asarray(values, np.float64)
    wide = wide - wide.mean(axis=0)
    gram = wide @ wide.T
    np.fill_diagonal(gram, 0.0)
    return np.asarray(gram)


def _unbiased(k: Floats, m: Floats) -> float:
    """Unbiased Hilbert-Schmidt criterion of two Gram matrices with an empty diagonal."""
    n = len(k)
    if n < 4:
        return float("nan")
    sums_k, sums_m = k.sum(axis=0), m.sum(axis=0)
    pairs = float((k * m).sum())
    whole = float(sums_k.sum() * sums_m.sum()) / ((n - 1) * (n - 2))
    mixed = 2 * float(sums_k @ sums_m) / (n - 2)
    return (pairs + whole - mixed) / (n * (n - 3))
