"""Sub-tiles pooled by attention that never saw the patient whose place it pools."""

from __future__ import annotations

from typing import Annotated, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.engine.threads import one_thread
from pathfm_kedro.statistics.bootstrap import patient_codes
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.parameters import STRICT

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class AttentionSettings:
    """Attention pooling (ABMIL) as it is fitted to training patients.

    Attributes
    ----------
    folds
        Groups of patients; each is pooled by attention fitted on the others.
    components
        Principal components of the sub-tiles' vectors that attention looks at.
    hidden
        Units of its one hidden layer.
    steps, learning_rate, weight_decay
        Of Adam, on all training bags at once; 0 steps leave the mean.
    """

    folds: Annotated[int, Field(ge=2)]
    components: Count
    hidden: Count
    steps: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]


def attention_neighbours(
    subs: NDArray[np.float32],
    labels: NDArray[Any],
    patients: NDArray[Any],
    k: int,
    settings: AttentionSettings,
    seed: int,
) -> Ints:
    """Neighbours of each place with its sub-tiles pooled by attention that never saw its patient.

    Attention-based pooling (ABMIL) over the sub-tiles s of a place,

        z = Σ_s a_s x_s,   a = softmax_s(w·tanh(V u_s)),

    u_s being the leading principal components of x_s. V and w are fitted with a linear classifier
    of the pooled u on the bags of the other folds' patients, starting from w = 0, which is the mean.
    Pooled and compared are the encoder's own vectors x, so that z has its dimension.

    Parameters
    ----------
    subs
        [n, S, d] vectors of the sub-tiles.
    labels, patients
        [n].
    k
        Neighbours of each place.
    settings
        How attention is fitted.
    seed
        Of folds and of the fit.

    Returns
    -------
    ndarray
        [n, k] neighbours of other patients, each by the attention of the asking place's fold.

    Raises
    ------
    Undefined
        If there are too few patients, labels or places to fit attention.

    References
    ----------
    Ilse, Tomczak & Welling 2018, "Attention-based Deep Multiple Instance Learning", arXiv 1802.04712.
    """
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    codes, n_patients = patient_codes(patients)
    targets = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    folds, places = settings.folds, int(np.bincount(targets).max())
    if n_patients < folds or places < folds or targets.max() == 0:
        raise Undefined(
            f"attention is fitted in {folds} folds of patients on two labels or more, one of them of "
            f"{folds} places or more; here are {n_patients} patients and {targets.max() + 1} label(s) "
            f"of {places} places at most: add patients or lower field_of_view.attention.folds"
        )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    neighbours = np.empty((len(subs), k), np.int64)
    with threadpool_limits(1):  # sums in one order: the same figures on any number of cores
        for train, test in splitter.split(codes, targets, codes):
            weights = _attention(subs, targets, train, settings, seed)
            pooled = np.einsum("ns,nsd->nd", weights, subs)
            neighbours[test] = nearest_indices(pooled, patients, k, queries=test)
    return neighbours


def _attention(
    subs: NDArray[np.float32], targets: Ints, train: Ints, settings: AttentionSettings, seed: int
) -> Floats:
    """[n, S] attention over each place's sub-tiles, fitted on the training places."""
    import torch

    reduced = torch.from_numpy(_components(subs, train, settings.components, seed))
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        values: torch.Tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        values /= shape[0] ** 0.5
        values.requires_grad = True
        return values

    labels = int(targets.max()) + 1
    hidden = random(reduced.shape[2], settings.hidden)
    classifier = random(reduced.shape[2], labels)
    score = torch.zeros(settings.hidden, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(labels, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam(
        [hidden, score, classifier, bias],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    truth, seen = torch.from_numpy(targets[train]), reduced[train]
    with one_thread():
        for _ in range(settings.steps):
            attention = torch.softmax(torch.tanh(seen @ hidden) @ score, dim=1)
            pooled = (attention[..., None] * seen).sum(dim=1)
            loss = torch.nn.functional.cross_entropy(pooled @ classifier + bias, truth)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    with torch.no_grad():
        fitted = torch.softmax(torch.tanh(reduced @ hidden) @ score, dim=1)
    return cast(Floats, fitted.numpy())


def _components(subs: NDArray[np.float32], train: Ints, components: int, seed: int) -> Floats:
    """[n, S, components] leading components of the training places' sub-tiles, of variance 1."""
    from sklearn.decomposition import PCA

    bags, instances, d = subs.shape
    seen = subs[train].reshape(-1, d)
    fewer = min(components, len(seen), d)
    reduce = PCA(fewer, svd_solver="randomized", random_state=seed).fit(seen)
    scale = float(np.sqrt(reduce.explained_variance_.mean())) or 1.0
    reduced = reduce.transform(subs.reshape(-1, d)) / scale
    return cast(Floats, reduced.reshape(bags, instances, fewer).astype(np.float64))
