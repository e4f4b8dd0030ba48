"""A linear classifier of vectors as the encoder gives them, for what needs its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.harmonisation import AffineMap

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """A linear classifier of raw vectors: logit_c = weight_c · f(x) + bias_c.

    Attributes
    ----------
    labels
        The classes.
    weight, bias
        float64 [classes, d] and [classes]; standardisation is part of them.

    Examples
    --------
    >>> probe = LinearClassifier(("a", "b"), np.array([[0.0], [2.0]]), np.array([0.0, -1.0]))
    >>> probe.margins(np.array([[1.0], [0.0]]), np.array([1, 1])).tolist()
    [1.0, -1.0]
    """

    labels: tuple[str, ...]
    weight: Floats
    bias: Floats

    def logits(self, vectors: NDArray[np.floating[Any]]) -> Floats:
        """[..., classes] of vectors [..., d]; their softmax is the probability of each class."""
        return np.asarray(vectors.astype(np.float64) @ self.weight.T + self.bias)

    def margins(self, vectors: NDArray[np.floating[Any]], targets: Ints) -> Floats:
        """Logit of the target minus the best other logit: correctly classified where above 0.

        Parameters
        ----------
        vectors
            [..., d].
        targets
            [...] classes.
        """
        logits = self.logits(vectors)
        own = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        others = np.where(np.arange(len(self.labels)) == targets[..., None], -np.inf, logits)
        margins: Floats = own - others.max(axis=-1)
        return margins

    def after(self, center_map: AffineMap) -> LinearClassifier:
        """The same classifier as one of the vectors that the map is applied to, which is linear too.

        Examples
        --------
        >>> double = AffineMap(np.ones(1), np.zeros(1), np.full(1, 2.0), np.zeros((0, 1)), np.zeros(0))
        >>> probe = LinearClassifier(("a", "b"), np.array([[0.0], [3.0]]), np.array([0.0, 1.0]))
        >>> probe.after(double).logits(np.array([[4.0]])) == probe.logits(double(np.array([[4.0]])))
        array([[ True,  True]])
        """
        weight = center_map.linear(self.weight)
        bias = self.bias + self.weight @ center_map.offset - weight @ center_map.mean
        return LinearClassifier(self.labels, weight, bias)

    def digest(self) -> str:
        """SHA-256 of classes and weights."""
        whole = hashlib.sha256(json.dumps(self.labels).encode())
        whole.update(np.ascontiguousarray(self.weight).tobytes())
        whole.update(np.ascontiguousarray(self.bias).tobytes())
        return whole.hexdigest()


def fit_linear_classifier(
    vectors: Floats,
    labels: NDArray[Any],
    C: float,
    max_iter: int,
    class_weight: Literal["balanced"] | None = "balanced",
) -> LinearClassifier:
    """Multinomial logistic regression on standardised vectors, written in terms of raw ones.

    Parameters
    ----------
    vectors
        [n, d].
    labels
        [n], at least two different.
    C
        Inverse strength of the L2 penalty.
    max_iter
        Iterations of the solver at most.
    class_weight
        ``balanced`` weights classes equally, which serves accuracy; None does not, which serves
        probabilities: weights move them towards rare classes.

    Examples
    --------
    >>> vectors, labels = np.array([[0.0], [1.0]]), np.array(["a", "b"])
    >>> fit_linear_classifier(vectors, labels, 1.0, 100).margins(vectors, np.array([0, 1])) > 0
    array([ True,  True])
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        scaler = StandardScaler().fit(vectors)
        model = LogisticRegression(C=C, max_iter=max_iter, class_weight=class_weight)
        model.fit(scaler.transform(vectors), labels)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # of two classes scikit-learn keeps the second one's logit alone
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight / scaler.scale_
    return LinearClassifier(tuple(map(str, model.classes_)), weight, bias - weight @ scaler.mean_)
