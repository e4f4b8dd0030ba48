r"""Whether vectors of two sets of patients are of one distribution: maximum mean discrepancy.

Every patient counts the same. With the mean kernel M_pq between the tiles of patients p and q, and
weights a = 1/n of the patients of the first set and −1/m of those of the second,

    MMD² = aᵀ M a,   k(x, y) = exp(−‖x − y‖² / (2 σ²)),

σ² the median squared distance of tiles of different patients. The null permutes whole patients between
the sets; where both sets are the same patients, seen twice, it swaps the two views of each instead.

Source: Gretton et al., A kernel two-sample test (JMLR 2012).

Pitfalls
--------
- The statistic is that with the patients' own kernel in it (V-statistic): above 0 also where nothing
  drifts, which is why it is read beside its null and not alone.
- It says that distributions differ, not that the encoder got worse.
- Few patients have few permutations: with 5 seen twice, or 3 against 3, no drift can be shown at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Rows of the kernel at a time.
_BLOCK = 1024
#: Vectors differ below this p-value.
_ALPHA = 0.05
#: Kernels are of the order of 1: less is rounding.
_ROUNDING = 1e-12
#: Pairs that σ is read from.
_PAIRS = 20_000


@dataclass(frozen=True)
class Drift:
    """Discrepancy of two sets of vectors.

    Attributes
    ----------
    mmd2
        Squared maximum mean discrepancy.
    null_high
        Its 95% quantile where patients are permuted.
    p_value
        Of "one distribution"; the smallest possible is 1 / (permutations + 1).
    smallest_p
        The smallest that so few patients allow, were all permutations tried.
    n_patients
        Of either set.
    paired
        Whether both sets are the same patients.
    """

    mmd2: float
    null_high: float
    p_value: float
    smallest_p: float
    n_patients: tuple[int, int]
    paired: bool

    @property
    def is_shown(self) -> bool:
        """Whether the vectors differ by more than chance."""
        return self.can_be_shown and self.p_value < _ALPHA

    @property
    def can_be_shown(self) -> bool:
        """Whether there are patients enough for any drift to be more than chance."""
        return self.smallest_p < _ALPHA


def drift(
    first: Floats,
    second: Floats,
    patients: tuple[NDArray[np.str_], NDArray[np.str_]],
    n_permutations: int = 1000,
    seed: int = 0,
) -> Drift:
    """Compare two sets of vectors.

    Parameters
    ----------
    first, second
        [n, d] and [m, d].
    patients
        [n] and [m] names. If both sets are of the same patients they are taken as seen twice.
    n_permutations
        Of the null.
    seed
        Of the permutations, and of the pairs that the kernel's width is read from.

    Raises
    ------
    ValueError
        If the sets share some patients and not all, or one has fewer than two.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> names = np.repeat([f"p{i}" for i in range(12)], 5), np.repeat([f"q{i}" for i in range(12)], 5)
    >>> x, y = rng.normal(size=(2, 60, 3))
    >>> drift(x, y + 3, names, 200).p_value < 0.01 < drift(x, y, names, 200).p_value
    True
    """
    own, other = (np.unique(names) for names in patients)
    shared = np.intersect1d(own, other)
    paired = len(shared) == len(own) == len(other)
    if len(shared) and not paired:
        raise ValueError(
            f"{len(shared)} of {len(own)} and {len(other)} patients are in both sets: compare sets of "
            "the same patients, or of none in common"
        )
    if min(len(own), len(other)) < 2:
        raise ValueError("a set has fewer than two patients: nothing can be permuted")
    codes = np.concatenate(
        [np.searchsorted(own, patients[0]), len(own) + np.searchsorted(other, patients[1])]
    )
    kernel = patient_kernel(np.concatenate([first, second]).astype(np.float64), codes, seed)
    weights = np.concatenate(
        [np.full(len(own), 1 / len(own)), np.full(len(other), -1 / len(other))]
    )
    rng = np.random.default_rng(seed)
    if paired:
        swaps = rng.choice([-1.0, 1.0], (n_permutations, len(own)))
        permuted = np.concatenate([swaps, swaps], axis=1) * weights
    else:
        permuted = np.stack([rng.permutation(weights) for _ in range(n_permutations)])
    found = float(weights @ kernel @ weights)
    null = np.einsum("rp,pq,rq->r", permuted, kernel, permuted, optimize=True)
    reached = int((null >= found - _ROUNDING).sum())
    return Drift(
        _rounded(found),
        _rounded(float(np.quantile(null, 0.95))),
        (1 + reached) / (1 + n_permutations),
        smallest_p_value(len(own), len(other), paired),
        (len(own), len(other)),
        paired,
    )


def _rounded(mmd2: float) -> float:
    return mmd2 if mmd2 > _ROUNDING else 0.0


def smallest_p_value(n: int, m: int, paired: bool) -> float:
    """The smallest p-value of all permutations of so many patients.

    Sets that change places as a whole have the same discrepancy: where they are equally large, and
    where they are swapped one by one, each permutation has a twin.

    Examples
    --------
    >>> smallest_p_value(3, 3, paired=False), smallest_p_value(5, 5, paired=True)
    (0.1, 0.0625)
    """
    every = 2**n if paired else comb(n + m, n)
    return (2 if n == m else 1) / every


def patient_kernel(vectors: Floats, patients: Ints, seed: int = 0) -> Floats:
    """[P, P] mean Gaussian kernel between the tiles of patients, in blocks of rows.

    Parameters
    ----------
    vectors
        [n, d].
    patients
        [n] codes 0 … P − 1.
    seed
        Of the pairs whose median distance is the kernel's width.
    """
    n = len(vectors)
    squares = (vectors**2).sum(axis=1)
    rng = np.random.default_rng(seed)
    a, b = rng.integers(n, size=(2, _PAIRS))
    apart = patients[a] != patients[b]
    distances = ((vectors[a[apart]] - vectors[b[apart]]) ** 2).sum(axis=1)
    width = float(np.median(distances)) if len(distances) else 1.0
    width = width or 1.0
    counts = np.bincount(patients)
    member = np.zeros((n, len(counts)))
    member[np.arange(n), patients] = 1 / counts[patients]
    kernel = np.zeros((len(counts), len(counts)))
    for start in range(0, n, _BLOCK):
        part = slice(start, start + _BLOCK)
        squared = squares[part, None] + squares[None] - 2 * vectors[part] @ vectors.T
        kernel += member[part].T @ (np.exp(-np.maximum(squared, 0) / (2 * width)) @ member)
    return kernel
