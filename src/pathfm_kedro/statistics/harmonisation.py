r"""Take the center out of vectors: centring, whitening and ComBat, fitted without the patient at hand.

Each method is an affine map of a center's vectors,

    x′ = a + s ∘ (x − m) + ((x − m) Bᵀ ∘ g) B,

with m, a, s [d], an orthonormal basis B [r, d] and gains g [r]. A patient's vectors are mapped by what
patients of the center's *other* folds show (patients are split into folds), so that what is found on
the mapped vectors is not found because the map had seen them. No method looks at a label: where label
and center go together, taking out the center takes out the label too.

- ``centring``: m is the center's mean, a the mean over centers.
- ``whitening``: the center's mean becomes 0 and its covariance, shrunk towards a multiple of the
  identity (Ledoit and Wolf 2004), the identity.
- ``combat``: location and scale of each dimension, shrunk towards what the center's other dimensions
  show by empirical Bayes (Johnson, Li and Rabinovic 2007, parametric priors, no covariates).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METHODS = ("centring", "whitening", "combat")

#: Largest relative change at which ComBat's iteration counts as converged, as in the published code.
_CONVERGED = 1e-4
_MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class AffineMap:
    """One center's map; see the module.

    Attributes
    ----------
    mean, offset, scale
        [d].
    basis
        [r, d], orthonormal rows; r may be 0.
    gains
        [r].
    """

    mean: Floats
    offset: Floats
    scale: Floats
    basis: Floats
    gains: Floats

    def __call__(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """[…, d] float32."""
        mapped = self.offset + self.linear(vectors.astype(np.float64) - self.mean)
        return mapped.astype(np.float32)

    def linear(self, vectors: Floats) -> Floats:
        """The map's linear part, which is symmetric, of vectors [..., d]."""
        scaled = self.scale * vectors
        if len(self.gains):
            scaled += ((vectors @ self.basis.T) * self.gains) @ self.basis
        return scaled

    def digest(self) -> str:
        """SHA-256 of what the map does, to five digits, so that the order of sums does not show.

        The basis is known by its sign and order only up to chance; what it does to the map's mean and
        to a fixed vector is not.
        """
        fixed = np.cos(np.arange(len(self.mean), dtype=np.float64))
        spread = self.basis.T @ (self.gains * (self.basis @ fixed))
        whole = hashlib.sha256()
        for part in (self.mean, self.offset, self.scale, spread):
            size = float(np.abs(part).max(initial=0.0)) or 1.0
            digits = np.round(part / size, 5) + 0.0
            whole.update(digits.tobytes() + f"{size:.5g}".encode())
        return whole.hexdigest()


def fit_maps(
    parts: Iterator[tuple[str, NDArray[np.floating]]], method: str
) -> Mapping[str, AffineMap]:
    """A map for each center.

    Parameters
    ----------
    parts
        Center and vectors [n, d] of every slide that may be looked at.
    method
        One of :data:`METHODS`.

    Raises
    ------
    ValueError
        If the method is unknown or there are no vectors.

    Examples
    --------
    >>> a, b = np.array([[0.0, 0.0], [2.0, 2.0]]), np.array([[10.0, 0.0], [12.0, 2.0]])
    >>> maps = fit_maps(iter([("A", a), ("B", b)]), "centring")
    >>> bool(np.allclose(maps["A"](a), maps["B"](b)))
    True
    """
    if method not in METHODS:
        raise ValueError(f"mitigation is '{method}': give one of {', '.join(METHODS)}")
    by_center: dict[str, list[Floats]] = {}
    for center, vectors in parts:
        by_center.setdefault(center, []).append(np.asarray(vectors, np.float64))
    if not by_center:
        raise ValueError("no vectors to fit on: embed slides with a center first")
    stacked = {center: np.concatenate(by_center[center]) for center in sorted(by_center)}
    return {"centring": _centring, "whitening": _whitening, "combat": _combat}[method](stacked)


def _centring(stacked: Mapping[str, Floats]) -> dict[str, AffineMap]:
    means = {center: vectors.mean(axis=0) for center, vectors in stacked.items()}
    # The mean over centers and not over tiles, so that a large center does not rule.
    middle = np.mean(list(means.values()), axis=0)
    one, none = np.ones_like(middle), np.zeros((0, len(middle)))
    return {
        center: AffineMap(mean, middle, one, none, np.zeros(0)) for center, mean in means.items()
    }


def _whitening(stacked: Mapping[str, Floats]) -> dict[str, AffineMap]:
    return {center: _whiten(vectors) for center, vectors in stacked.items()}


def _whiten(vectors: Floats) -> AffineMap:
    """Σ^(−½) of Σ = (1 − λ)S + λμI: μ off the span of the vectors, exact on it."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = vectors.mean(axis=0)
    centred = vectors - mean
    n, d = centred.shape
    none = np.zeros((0, d))
    total = float(np.einsum("ij,ij->", centred, centred)) / n / d
    if total == 0:
        return AffineMap(mean, np.zeros(d), np.ones(d), none, np.zeros(0))
    shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True)) if n > 1 else 1.0
    _, singular, basis = np.linalg.svd(centred, full_matrices=False)
    kept = singular > singular[0] * max(n, d) * np.finfo(np.float64).eps
    # At no shrinkage what no vector shows has no scale: it is left as wide as the average.
    off = max(shrinkage, 1e-6) * total
    on = (1 - shrinkage) * singular[kept] ** 2 / n + off
    return AffineMap(mean, np.zeros(d), np.full(d, off**-0.5), basis[kept], on**-0.5 - off**-0.5)


def _combat(stacked: Mapping[str, Floats]) -> dict[str, AffineMap]:
    everything = np.concatenate(list(stacked.values()))
    middle = everything.mean(axis=0)
    residual = sum(((v - v.mean(axis=0)) ** 2).sum(axis=0) for v in stacked.values())
    pooled = np.sqrt(np.asarray(residual) / len(everything))
    # A dimension that never varies within a center has no scale to be compared.
    pooled = np.where(pooled > 0, pooled, 1.0)
    none = np.zeros((0, len(middle)))
    maps = {}
    for center, vectors in stacked.items():
        location, scale = _empirical_bayes((vectors - middle) / pooled)
        spread = np.sqrt(scale)
        maps[center] = AffineMap(middle + pooled * location, middle, 1 / spread, none, np.zeros(0))
    return maps


def _empirical_bayes(standardised: Floats) -> tuple[Floats, Floats]:
    """Posterior location γ* and variance δ*² of each dimension of one center, both [d]."""
    n, d = standardised.shape
    location = standardised.mean(axis=0)
    if n < 2 or d < 2:
        return location, np.ones(d)
    variance = standardised.var(axis=0, ddof=1)
    middle, between = location.mean(), location.var(ddof=1)
    mean, spread = variance.mean(), variance.var(ddof=1)
    if between == 0 or spread == 0:
        return location, np.where(variance > 0, variance, 1.0)
    shape, rate = (2 * spread + mean**2) / spread, (mean * spread + mean**3) / spread
    sums, squares = standardised.sum(axis=0), (standardised**2).sum(axis=0)
    new_location, new_variance = location, np.where(variance > 0, variance, mean)
    for _ in range(_MOST_ITERATIONS):
        last = new_location, new_variance
        new_location = (between * n * location + new_variance * middle) / (
            between * n + new_variance
        )
        about = squares - 2 * new_location * sums + n * new_location**2
        new_variance = (0.5 * about + rate) / (n / 2 + shape - 1)
        if max(_change(new_location, last[0]), _change(new_variance, last[1])) < _CONVERGED:
            break
    return new_location, new_variance


def _change(new: Floats, old: Floats) -> float:
    return float(np.max(np.abs(new - old) / np.maximum(np.abs(old), np.finfo(np.float64).tiny)))
