"""Networks that are fitted on the cohort itself. Importing this loads torch: do so where it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from pathfm_kedro.encoders.draws import drawn_from
from pathfm_kedro.encoders.runtimes import pooled

#: Of pixels on the scale 0 ... 1: tissue and glass are bright, so that inputs lie about zero.
_MEAN, _STD = (0.7, 0.6, 0.7), (0.2, 0.2, 0.2)
#: Channels of the convolutions, each of which halves the side.
_CHANNELS = (32, 64, 128, 128)
#: Channels that are normalised together: a group's statistics come from the tile alone, so that no
#: tile's vector depends on the batch that trained it.
_GROUPS = 8
#: Of the transformer: tokens along a side, width, blocks, heads.
_TOKENS, _WIDTH, _DEPTH, _HEADS = 8, 128, 4, 4


class AttentionClassifier(nn.Module):
    """Attention-based pooling of bags with a linear classifier of what was pooled (ABMIL).

    ``a = softmax_s(w·tanh(V u_s))``; attention starts at w = 0, which is the mean.

    Parameters
    ----------
    features
        Length of an instance's vector u.
    hidden
        Rows of V.
    labels
        Classes.
    seed
        Of V and the classifier.
    """

    def __init__(self, features: int, hidden: int, labels: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> nn.Parameter:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(values / shape[0] ** 0.5)

        self.hidden = drawn(features, hidden)
        self.score = nn.Parameter(torch.zeros(hidden, dtype=torch.float64))
        self.classifier = drawn(features, labels)
        self.bias = nn.Parameter(torch.zeros(labels, dtype=torch.float64))

    def attention(self, bags: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """[n, S] attention over the instances of bags [n, S, features], none to those not present."""
        scores = torch.tanh(bags @ self.hidden) @ self.score
        return torch.softmax(scores.masked_fill(~present, -torch.inf), dim=1)

    def forward(self, bags: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """[n, labels] logits."""
        pooled = (self.attention(bags, present)[..., None] * bags).sum(dim=1)
        return pooled @ self.classifier + self.bias


class ResidualClassifier(nn.Module):
    """A linear classifier of x + α·MLP(x), with a learnt α that begins at 1.

    Parameters
    ----------
    features
        Length of x.
    ratio
        Hidden units for each of them.
    labels
        Classes.
    seed
        Of the weights.
    """

    def __init__(self, features: int, ratio: int, labels: int, seed: int) -> None:
        super().__init__()
        hidden = ratio * features
        with drawn_from(seed):
            self.mlp = nn.Sequential(
                nn.Linear(features, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, features),
            )
            self.classifier = nn.Linear(features, labels)
        self.scale = nn.Parameter(torch.ones(1))

    def features(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, features] of as many."""
        return vectors + self.scale * cast(torch.Tensor, self.mlp(vectors))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, labels] logits."""
        return cast(torch.Tensor, self.classifier(self.features(vectors)))


class SmallCNN(nn.Module):
    """Four convolutions and the mean over places: 128 features of what is locally there."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in _CHANNELS:
            layers += [
                nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(_GROUPS, channels),
                nn.ReLU(),
            ]
            before = channels
        self.convolutions = nn.Sequential(*layers)
        self.num_features = before
        self.num_classes = 0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """[n, 128] of [n, 3, side, side]."""
        return cast(torch.Tensor, self.convolutions(batch)).mean(dim=(2, 3))


class Standardised(nn.Module):
    """Each feature minus its mean over its spread, both fixed beforehand.

    Parameters
    ----------
    vectors
        [n, features] that mean and spread are taken of; a feature without spread is only centred.
    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        spread = vectors.std(dim=0, correction=0)
        self.register_buffer("mean", vectors.mean(dim=0))
        self.register_buffer("spread", torch.where(spread > 0, spread, torch.ones_like(spread)))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, features]."""
        return (vectors - self.mean) / self.spread


class PooledNetwork(nn.Module):
    """A network of which one vector a tile comes, by a way of pooling."""

    def __init__(self, network: nn.Module, pooling: str) -> None:
        super().__init__()
        self.network, self.pooling = network, pooling

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """[n, features] of [n, 3, side, side]."""
        return pooled(self.network, self.pooling, batch).float()


class AdaptedNetwork(nn.Module):
    """A network with a classifier of its vectors.

    Parameters
    ----------
    backbone
        From tiles to vectors.
    classifier
        From vectors to logits.
    keeps_statistics
        Whether the backbone stays in evaluation mode while the rest is trained, so that what its
        normalisation layers know is not changed.
    """

    def __init__(
        self, backbone: nn.Module, classifier: nn.Module, keeps_statistics: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self._keeps_statistics = keeps_statistics

    def train(self, mode: bool = True) -> AdaptedNetwork:
        """Training or evaluation mode."""
        super().train(mode)
        if self._keeps_statistics:
            self.backbone.eval()
        return self

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """[n, labels] logits."""
        return cast(torch.Tensor, self.classifier(self.backbone(batch)))


def classifier(
    features: int,
    labels: int,
    seed: int,
    hidden: int = 0,
    scale: torch.Tensor | None = None,
) -> nn.Sequential:
    """A linear classifier of vectors, or one with a hidden layer.

    Parameters
    ----------
    features, labels
        Width of its input and output.
    seed
        Of its weights.
    hidden
        Units of the hidden layer; 0 for none.
    scale
        [n, features] by which vectors are standardised first; None for not at all.
    """
    with drawn_from(seed):
        layers: list[nn.Module] = [] if scale is None else [Standardised(scale)]
        if hidden:
            layers += [nn.Linear(features, hidden), nn.ReLU()]
        layers.append(nn.Linear(hidden or features, labels))
    return nn.Sequential(*layers)


def with_classifier(network: Any, labels: int, seed: int) -> nn.Sequential:
    """A network, and a linear classifier of its features whose weights are drawn from a seed."""
    return nn.Sequential(network, classifier(network.num_features, labels, seed))


def small_vit(side: int) -> nn.Module:
    """A vision transformer of four blocks on 8 x 8 patches of the tile, mean over patches.

    Parameters
    ----------
    side
        Of its input, px.
    """
    from timm.models.vision_transformer import VisionTransformer

    network: nn.Module = VisionTransformer(
        img_size=side,
        patch_size=side // _TOKENS,
        embed_dim=_WIDTH,
        depth=_DEPTH,
        num_heads=_HEADS,
        num_classes=0,
        global_pool="avg",
    )
    return network


def rival(name: str, side: int, seed: int) -> Any:
    """An untrained network by name, its weights drawn from a seed.

    Raises
    ------
    KeyError
        If there is none of the name.
    """
    builders: dict[str, Callable[[], Any]] = {
        "small_cnn": SmallCNN,
        "small_vit": lambda: small_vit(side),
    }
    with drawn_from(seed):
        network: Any = builders[name]()
    # What timm's models say of themselves, and what preprocessing is read from.
    network.pretrained_cfg = {"input_size": (3, side, side), "mean": _MEAN, "std": _STD}
    return network
