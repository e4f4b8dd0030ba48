"""From the vectors of a bag to one vector: mean, maximum, or attention fitted on other patients.

A bag is a slide with its tiles, or a place with its sub-tiles. Attention-based pooling (ABMIL) over
the instances s of a bag is

    z = Σ_s a_s x_s,   a = softmax_s(w·tanh(V u_s)),

u_s being the leading principal components of x_s. V and w are fitted with a linear classifier of the
pooled u on the bags of the other folds' patients, starting from w = 0, which is the mean. Pooled and
compared are the encoder's own vectors x, so that z has their dimension.

Attention of another fold is another model, and vectors of two models do not compare. Where bags are
compared, the model that never saw the asking bag's patient embeds all of them.

References
----------
Ilse, Tomczak & Welling 2018, "Attention-based Deep Multiple Instance Learning", arXiv 1802.04712.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.training import Recipe, fit
from pathfm_kedro.statistics.bootstrap import patient_codes
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.parameters import STRICT

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]
Bags = Sequence[NDArray[np.floating[Any]]] | NDArray[np.floating[Any]]
Pooling = Literal["mean", "max", "attention"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AttentionTraining:
    """How attention pooling (ABMIL) is fitted to the bags that train.

    Attributes
    ----------
    components
        Principal components of the instances' vectors that attention looks at.
    hidden
        Units of its one hidden layer.
    steps, learning_rate, weight_decay
        Of Adam, on all training bags at once; 0 steps leave the mean.
    """

    components: Count
    hidden: Count
    steps: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AttentionSettings(AttentionTraining):
    """Attention pooling of bags by models that never saw their patient.

    Attributes
    ----------
    folds
        Groups of patients; each is pooled by attention fitted on the others.
    """

    folds: Annotated[int, Field(ge=2)]


@plain_dataclass(frozen=True)
class PooledBags:
    """Bags as vectors, by every model that pools.

    Attributes
    ----------
    models
        One for each fitted model, which gives all bags as vectors [n, d] when asked; only vectors of
        one model compare.
    asked_by
        [n] the model that never saw a bag's patient.
    """

    models: tuple[Callable[[], Floats], ...]
    asked_by: Ints

    def by_model(self) -> Iterator[tuple[Ints, Floats]]:
        """Bags that ask, and all bags as vectors [n, d] of the model that never saw the asking.

        Every bag asks once.

        Examples
        --------
        >>> pooled = pool_bags("mean", [np.eye(2), np.ones((1, 2))])
        >>> [(asking.tolist(), vectors.tolist()) for asking, vectors in pooled.by_model()]
        [([0, 1], [[0.5, 0.5], [1.0, 1.0]])]
        """
        for number, vectors in enumerate(self.models):
            yield np.flatnonzero(self.asked_by == number), vectors()


def pool_bags(
    kind: Pooling,
    bags: Bags,
    labels: NDArray[Any] | None = None,
    patients: NDArray[Any] | None = None,
    settings: AttentionSettings | None = None,
    seed: int = 0,
    where: str = "attention",
) -> PooledBags:
    """Bags as vectors, by the mean, the maximum, or attention that never saw the asking patient.

    Parameters
    ----------
    kind
        ``mean``, ``max`` or ``attention``.
    bags
        n arrays [instances, d], as slides with their tiles.
    labels, patients
        [n]; only attention needs them.
    settings
        How attention is fitted.
    seed
        Of folds and of the fit.
    where
        The settings' key in the parameters, for errors.

    Returns
    -------
    PooledBags
        Search it model by model::

            for asking, vectors in pooled.by_model():
                nearest[asking] = ...  # of the rows `asking` among all rows of `vectors`

    Raises
    ------
    Undefined
        If there are too few patients, labels or bags to fit attention.
    ValueError
        If attention is asked for without labels, patients or settings.
    """
    if kind == "attention":
        if labels is None or patients is None or settings is None:
            raise ValueError("attention is fitted: give labels, patients and its settings")
        return _by_attention(bags, labels, patients, settings, seed, where)
    wide = [np.asarray(bag, np.float64) for bag in bags]
    vectors = np.stack([bag.mean(axis=0) if kind == "mean" else bag.max(axis=0) for bag in wide])
    return PooledBags((lambda: vectors,), np.zeros(len(bags), np.int64))


def _by_attention(
    bags: Bags,
    labels: NDArray[Any],
    patients: NDArray[Any],
    settings: AttentionSettings,
    seed: int,
    where: str,
) -> PooledBags:
    from sklearn.model_selection import StratifiedGroupKFold

    codes, n_patients = patient_codes(patients)
    targets = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    folds, of_one_label = settings.folds, int(np.bincount(targets).max())
    if n_patients < folds or of_one_label < folds or targets.max() == 0:
        raise Undefined(
            f"attention is fitted in {folds} folds of patients on two labels or more, one of them of "
            f"{folds} places or more; here are {n_patients} patients and {targets.max() + 1} label(s) "
            f"of {of_one_label} places at most: add patients or lower {where}.folds"
        )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    fitted: list[AttentionModel] = []
    asked_by = np.empty(len(bags), np.int64)
    for train, test in splitter.split(codes, targets, codes):
        asked_by[test] = len(fitted)
        fitted.append(AttentionModel(bags, targets, train, settings, seed))
    return PooledBags(tuple(model.vectors for model in fitted), asked_by)


@plain_dataclass(frozen=True)
class AttentionModel:
    """Attention fitted on some of the bags, when it is first asked for.

    Attributes
    ----------
    bags
        n arrays [instances, d].
    targets
        [n] codes of their labels.
    train
        Bags that it is fitted on.
    settings, seed
        How.
    """

    bags: Bags
    targets: Ints
    train: Ints
    settings: AttentionTraining
    seed: int

    @cached_property
    def weights(self) -> list[Floats]:
        """Attention over the instances of each bag; they sum to 1."""
        import torch
        from threadpoolctl import threadpool_limits

        from pathfm_kedro.encoders.architectures import AttentionClassifier

        with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
            whole = _components(self.bags, self.train, self.settings.components, self.seed)
        padded, present = (torch.from_numpy(array) for array in _padded(whole))
        labels = int(self.targets.max()) + 1
        model = AttentionClassifier(padded.shape[2], self.settings.hidden, labels, self.seed)
        optimiser = torch.optim.Adam(
            model.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )
        truth = torch.from_numpy(self.targets[self.train])
        batch = padded[self.train], present[self.train]

        def loss(model: Any, batch: Any) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(model(*batch), truth)

        fit(model, optimiser, lambda _: [batch], loss, Recipe(self.settings.steps, self.seed))
        with torch.no_grad():
            attention = model.attention(padded, present).numpy()
        return [row[: len(bag)] for row, bag in zip(attention, self.bags, strict=True)]

    def vectors(self) -> Floats:
        """[n, d] of all bags."""
        pairs = zip(self.weights, self.bags, strict=True)
        return np.stack([np.einsum("s,sd->d", attention, bag) for attention, bag in pairs])


def _padded(bags: Sequence[Floats]) -> tuple[Floats, NDArray[np.bool_]]:
    """[n, S, d] with zeros behind the instances of each bag, and [n, S] which are instances."""
    longest = max(len(bag) for bag in bags)
    padded = np.zeros((len(bags), longest, bags[0].shape[1]))
    present = np.zeros((len(bags), longest), np.bool_)
    for row, bag in enumerate(bags):
        padded[row, : len(bag)], present[row, : len(bag)] = bag, True
    return padded, present


def _components(bags: Bags, train: Ints, components: int, seed: int) -> list[Floats]:
    """Leading components of each bag's instances, of variance 1 over the training bags' instances."""
    from sklearn.decomposition import PCA

    seen = np.concatenate([bags[row] for row in train])
    fewer = min(components, *seen.shape)
    reduce = PCA(fewer, svd_solver="randomized", random_state=seed).fit(seen)
    scale = float(np.sqrt(reduce.explained_variance_.mean())) or 1.0
    ends = np.cumsum([len(bag) for bag in bags])[:-1]
    reduced = reduce.transform(np.concatenate(list(bags))) / scale
    return cast(list[Floats], np.split(reduced.astype(np.float64), ends))
