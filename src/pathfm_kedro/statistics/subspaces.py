"""Principal axes of a cloud of vectors, and the angles between what two clouds span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """Centre, principal axes and spread along them of some vectors.

    Attributes
    ----------
    centre
        [d].
    axes
        [r, d] orthonormal, by falling spread; those without spread are left out.
    spread
        [r] standard deviation along each.

    Examples
    --------
    >>> axes = PrincipalAxes.fit(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 6.0], [2.0, 6.0]]))
    >>> np.abs(axes.top(np.array([[1.0, 4.0]]), 1)).tolist()
    [[1.0]]
    """

    centre: Floats
    axes: Floats
    spread: Floats

    @classmethod
    def fit(cls, vectors: Floats) -> PrincipalAxes:
        """Of the rows of [m, d]."""
        centre = vectors.mean(axis=0)
        _, values, axes = np.linalg.svd(vectors - centre, full_matrices=False)
        kept = values > values[:1] * max(vectors.shape) * np.finfo(np.float32).eps
        return cls(centre, axes[kept], values[kept] / np.sqrt(len(vectors)))

    def whitened(self, vectors: Floats) -> Floats:
        """[n, r] coordinates along all axes, each divided by its spread: variance 1 everywhere."""
        return (vectors - self.centre) @ self.axes.T / self.spread

    def top(self, vectors: Floats, components: int) -> Floats:
        """[n, min(components, r)] coordinates along the first axes."""
        return (vectors - self.centre) @ self.axes[:components].T


def principal_angles(first: Floats, second: Floats, components: int) -> Floats:
    """Angles between what the leading components of two clouds of the same rows span, degrees.

    Spanned are spaces of functions of the rows (left singular vectors of the centred vectors), so that
    a rotation of either space of vectors, or its number of dimensions, changes nothing: two networks
    share their rows, not their axes.

    Parameters
    ----------
    first, second
        [m, d] and [m, e], the same rows.
    components
        Leading components; fewer where a cloud has fewer.

    Returns
    -------
    ndarray
        [k] rising, 0 to 90.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(9, 3))
    >>> bool((principal_angles(x, x[:, ::-1] * 2, 2) < 1e-5).all())
    True
    """
    from scipy.linalg import subspace_angles

    spans = [_leading(vectors, components) for vectors in (first, second)]
    if not all(span.shape[1] for span in spans):
        return np.zeros(0)
    return np.asarray(np.degrees(subspace_angles(*spans))[::-1], np.float64)


def _leading(vectors: Floats, components: int) -> Floats:
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    rank = int((values > values[:1] * max(vectors.shape) * np.finfo(np.float32).eps).sum())
    return cast(Floats, left[:, : min(components, rank)])
