r"""NMTune: a light head on frozen features that is to undo what noise in pretraining did to them.

A residual MLP g on features f of a frozen network, with a linear classifier h, is fitted on a weak view
w and a strong view s of every tile; G holds the rows g(f(w)) and g(f(s)) of a batch:

    CE(h(G), y) + 1.0·MSE(ĝ(f(s)), f̂(w)) + 0.04·Σ_{i≠j} cov(G)_ij² / D − 0.001·mean of 5 largest σ/Σσ

with hats for unit length, σ the singular values of G, not centred, and cov of the centred G. AdamW,
learning rate 1e-3 and weight decay 1e-4, batches of 64, 30 epochs, cosine schedule.

The source draws views anew in each epoch and lowers the rate in each step; here views are drawn from a
few that were embedded beforehand, and the rate falls by epochs. Its strong view is RandAugment, which
is made for photographs; here see :func:`strong_view`.

References
----------
Chen et al., Understanding and mitigating the label noise in pre-training on downstream tasks (ICLR
2024); losses and their weights as in its code (Hhhhhhao/Noisy-Model-Learning, models/nml_tune.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.batches import Pixels, turned
from pathfm_kedro.encoders.training import AdamWSettings, Batch
from pathfm_kedro.statistics.parameters import STRICT

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0)]

#: Largest singular values whose share is raised.
_LARGEST = 5
#: Strong views: gain of each color channel, and side of the square that is erased.
_GAIN, _ERASED = 0.4, 0.3


@dataclass(frozen=True, config=STRICT)
class NMTuneSettings(AdamWSettings):
    """How the head is fitted; defaults are the source's.

    Attributes
    ----------
    batch
        Tiles of a step, each with two views.
    ratio
        Hidden units of the MLP for each of its inputs.
    consistency, covariance, dominance
        Weights of MSE, covariance and singular values.
    views
        Weak and strong views of each tile that are drawn from.
    """

    epochs: Count = 30
    batch: Count = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Share = 1e-4
    ratio: Count = 4
    consistency: Share = 1.0
    covariance: Share = 0.04
    dominance: Share = 0.001
    views: Count = 4


def strong_view(tiles: Pixels, rng: np.random.Generator) -> Pixels:
    """Each tile turned, its color channels multiplied by up to 0.6 to 1.4, and a square of it erased.

    Parameters
    ----------
    tiles
        uint8 [n, s, s, 3].
    rng
        Of the draws.
    """
    made = turned(tiles, rng)
    gain = rng.uniform(1 - _GAIN, 1 + _GAIN, (len(tiles), 1, 1, 3))
    made = np.clip(made * gain, 0, 255).astype(np.uint8)
    side = max(1, round(_ERASED * tiles.shape[1]))
    for tile, (row, column) in zip(
        made, rng.integers(0, tiles.shape[1] - side + 1, (len(tiles), 2)), strict=True
    ):
        tile[row : row + side, column : column + side] = tile.mean(axis=(0, 1))
    return made


def nmtune_losses(tuned: torch.Tensor, weak: torch.Tensor) -> dict[str, torch.Tensor]:
    """The three terms beside the cross-entropy, without their weights.

    Parameters
    ----------
    tuned
        [2 n, d] MLP features: of n weak views, then of the strong views of the same tiles.
    weak
        [n, d] frozen features of the weak views.
    """
    import torch
    from torch.nn import functional

    strong = tuned[len(weak) :]
    unit_strong, unit_weak = functional.normalize(strong), functional.normalize(weak)
    values = torch.linalg.svdvals(tuned)
    centred = tuned - tuned.mean(dim=0)
    covariance = centred.T @ centred / (len(tuned) - 1)
    off = covariance - torch.diag(torch.diagonal(covariance))
    return {
        "consistency": functional.mse_loss(unit_strong, unit_weak),
        "covariance": off.square().sum() / tuned.shape[1],
        "dominance": -(values / values.sum())[:_LARGEST].mean(),
    }


def tuned_classifier(
    weak: Floats, strong: Floats, labels: Ints, n_labels: int, settings: NMTuneSettings, seed: int
) -> Any:
    """A fitted head: from features [n, d] to logits [n, n_labels].

    Parameters
    ----------
    weak, strong
        [n, views, d] frozen features of views of the training tiles.
    labels
        [n] codes.
    n_labels
        Classes.
    settings, seed
        How.

    Returns
    -------
    torch.nn.Module
        In evaluation mode.
    """
    import torch

    from pathfm_kedro.encoders.architectures import ResidualClassifier

    model = ResidualClassifier(weak.shape[2], settings.ratio, n_labels, seed)
    weights = {name: getattr(settings, name) for name in ("consistency", "covariance", "dominance")}

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        rows, rng = batch
        views = [rng.integers(each.shape[1], size=len(rows)) for each in (weak, strong)]
        frozen, other = (
            torch.from_numpy(each[rows, view]).float()
            for each, view in zip((weak, strong), views, strict=True)
        )
        tuned = model.features(torch.cat([frozen, other]))
        truth = torch.from_numpy(labels[rows]).repeat(2)
        found = torch.nn.functional.cross_entropy(model.classifier(tuned), truth)
        for name, term in nmtune_losses(tuned, frozen).items():
            found = found + weights[name] * term
        return found

    # Of one row batch normalisation knows no spread.
    settings.fit(model, len(labels), loss, seed, least=2)
    return model


def predicted(model: Any, features: Floats) -> Ints:
    """[n] the most probable class of frozen features [n, d]."""
    import torch

    with torch.no_grad():
        logits = model(torch.from_numpy(np.asarray(features, np.float32)))
    return np.asarray(logits.argmax(dim=1).numpy(), np.int64)
