"""Adversarial attacks on an encoder (FGSM, PGD, universal perturbation) and noise of the same size.

Images are float32 [n, 3, height, width] on the scale 0 … 1, as before normalisation; ε, the radius of
the L∞ ball, is on the same scale. Losses are always those of the image rounded to 8 bits, which is
what a file can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.base import Pixels

if TYPE_CHECKING:
    import torch

    Embed = Callable[[torch.Tensor], torch.Tensor]

#: Largest grey level of an 8-bit image.
MAX_GREY_LEVEL = 255
#: Length of all steps together over ε: from any start every point of the ball can be reached (Madry et
#: al. 2018, section 5.2, take steps of 2.5 ε / steps).
_PATH_LENGTH = 2.5
#: Margin above which logits are scaled down: 1 − softmax is 5e-5 there, far from underflow.
_MAX_MARGIN = 10.0


@dataclass(frozen=True)
class AttackLoss:
    """Losses of images under attack.

    Attributes
    ----------
    loss
        [n], whose gradient the attack follows: cross-entropy of the true label.
    margin_loss
        [n], by which attacks are compared: the largest other logit minus the true label's; the image
        is misclassified where it is above 0 (Carlini and Wagner 2017, arXiv 1608.04644).
    """

    loss: torch.Tensor
    margin_loss: torch.Tensor


class AttackObjective(Protocol):
    """What an attack maximises: the losses of a classifier with the true labels of its images."""

    def __call__(self, images: torch.Tensor) -> AttackLoss:
        """Losses of images [n, 3, height, width]."""
        ...


@dataclass(frozen=True)
class ProbeObjective:
    """Losses of a linear probe on an encoder.

    Logits whose margin is above 10 are first divided so that it is 10: beyond, the softmax is 1 to
    the last digit and its gradient 0, which would look like robustness (Carlini et al. 2019, arXiv
    1902.06705).

    Attributes
    ----------
    embed
        Images to vectors [n, d].
    weight, bias
        float64 [classes, d] and [classes].
    target
        int64 [n], the true class of each image, or [1] for many images of one class.

    Examples
    --------
    >>> import torch
    >>> pixels = lambda images: images.flatten(1)
    >>> objective = ProbeObjective(pixels, torch.eye(2, 3).double(), torch.zeros(2).double(),
    ...                      torch.tensor([0]))
    >>> losses = objective(torch.tensor([0.9, 0.5, 0.0]).view(1, 3, 1, 1))
    >>> losses.margin_loss.round(decimals=3).tolist()
    [-0.4]
    """

    embed: Embed
    weight: torch.Tensor
    bias: torch.Tensor
    target: torch.Tensor

    def __call__(self, images: torch.Tensor) -> AttackLoss:
        """Cross-entropy and margin loss of the true class."""
        import torch

        logits = self.embed(images).double() @ self.weight.T + self.bias
        target = self.target.expand(len(images))
        own = torch.nn.functional.one_hot(target, len(self.bias)).bool()
        other = logits.masked_fill(own, -torch.inf).amax(dim=1)
        margin_loss = other - logits[own]
        scaled = logits / (-margin_loss.detach() / _MAX_MARGIN).clamp(min=1)[:, None]
        loss = torch.nn.functional.cross_entropy(scaled, target, reduction="none")
        return AttackLoss(loss, margin_loss)


@dataclass(frozen=True)
class AdversarialImages:
    """Images [n, 3, height, width] and their margin loss [n], rounded to 8 bits."""

    images: torch.Tensor
    margin_loss: torch.Tensor

    def stronger_of(self, other: AdversarialImages) -> AdversarialImages:
        """Image by image the one of larger margin loss; this one where they are equal."""
        import torch

        better = other.margin_loss > self.margin_loss
        images = torch.where(better.view(-1, 1, 1, 1), other.images, self.images)
        return AdversarialImages(images, torch.maximum(other.margin_loss, self.margin_loss))


def fgsm(
    objective: AttackObjective, tiles: torch.Tensor, epsilon: torch.Tensor
) -> AdversarialImages:
    """Fast gradient sign method: x + ε sign ∇ loss(x).

    Parameters
    ----------
    objective
        The losses.
    tiles
        [n, 3, height, width].
    epsilon
        [n, 1, 1, 1] or a scalar tensor; many sizes for one tile give one image each.

    References
    ----------
    Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples", arXiv 1412.6572.
    """
    _, gradient = _loss_and_gradient(objective, tiles)
    return evaluate(objective, project(tiles + epsilon * gradient.sign(), tiles, epsilon))


def pgd(
    objective: AttackObjective,
    tiles: torch.Tensor,
    epsilon: torch.Tensor,
    steps: int,
    start: torch.Tensor,
    previous: AdversarialImages | None = None,
) -> AdversarialImages:
    """Projected gradient descent from a random start: the iterate of the largest margin loss.

    ``x ← Π(x + (2.5 ε / steps) sign ∇ loss(x))``, Π onto the ε-ball around the tile within 0 … 1.
    Iterates are real numbers; loss and gradient are those of the image rounded to 8 bits.

    Parameters
    ----------
    objective
        The losses.
    tiles
        [n, 3, height, width].
    epsilon
        [n, 1, 1, 1] or a scalar tensor; many sizes for one tile give one image each.
    steps
        How many.
    start
        [n, 3, height, width] in −1 … 1: the random start, in units of ε.
    previous
        What a weaker attack found, kept where it is stronger; the tiles themselves if not given.

    References
    ----------
    Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv
    1706.06083.
    """
    best = previous if previous is not None else evaluate(objective, tiles)
    images = project(tiles + epsilon * start, tiles, epsilon)
    for _ in range(steps):
        here, gradient = _loss_and_gradient(objective, images)
        best = best.stronger_of(AdversarialImages(images, here.margin_loss))
        images = project(images + _PATH_LENGTH / steps * epsilon * gradient.sign(), tiles, epsilon)
    return best.stronger_of(evaluate(objective, images))


def pgd_unrounded(
    objective: AttackObjective, tiles: torch.Tensor, epsilon: float, step: float, steps: int
) -> torch.Tensor:
    """Projected gradient descent on images of real numbers, from the tiles: its last iterate.

    What benchmarks print whose ε no image of 8 bits can hold.

    Parameters
    ----------
    objective
        The losses.
    tiles
        [n, 3, height, width].
    epsilon, step
        Radius of the ball and length of a step, on the scale 0 … 1.
    steps
        How many.
    """
    images = tiles
    for _ in range(steps):
        _, gradient = _loss_and_gradient(objective, images, lambda as_they_are: as_they_are)
        images = project(images + step * gradient.sign(), tiles, epsilon)
    return images


def attack_series(
    objective: AttackObjective,
    tile: torch.Tensor,
    epsilons: Sequence[int],
    pgd_steps: Sequence[int],
    seed: int,
) -> list[AdversarialImages]:
    """FGSM, then PGD of ever more steps on one tile, each at every ε at once.

    None is weaker than the one before it, nor than itself within a smaller ε.

    Parameters
    ----------
    objective
        The losses.
    tile
        [1, 3, side, side].
    epsilons
        Rising, in grey levels.
    pgd_steps
        Rising.
    seed
        Of PGD's random start.

    Returns
    -------
    list
        FGSM and one entry for each of ``pgd_steps``; images [epsilons, 3, side, side].
    """
    import torch

    epsilon = torch.tensor(epsilons).view(-1, 1, 1, 1) / MAX_GREY_LEVEL
    series = [fgsm(objective, tile, epsilon)]
    start = random_start(tile.shape[-1], seed)
    previous = evaluate(objective, tile).stronger_of(series[0])
    for steps in pgd_steps:
        previous = strongest_up_to_epsilon(pgd(objective, tile, epsilon, steps, start, previous))
        series.append(previous)
    return series


def random_start(side: int, seed: int) -> torch.Tensor:
    """Where an attack starts, in units of ε: uniform in −1 … 1, float32 [3, side, side].

    Examples
    --------
    >>> bool(random_start(4, seed=1).abs().max() <= 1)
    True
    """
    import torch

    start = np.random.default_rng(seed).random((3, side, side), np.float32)
    return torch.from_numpy(2 * start - 1)


def evaluate(objective: AttackObjective, images: torch.Tensor) -> AdversarialImages:
    """Images with the margin loss that they have when rounded to 8 bits."""
    import torch

    with torch.no_grad():
        return AdversarialImages(images, objective(quantise(images)).margin_loss)


def strongest_up_to_epsilon(found: AdversarialImages) -> AdversarialImages:
    """Attacks on one tile at rising ε, each replaced by a stronger one within a smaller ε.

    Parameters
    ----------
    found
        One image per ε of the same tile, ε rising.
    """
    margin_loss, source = found.margin_loss.cummax(dim=0)
    return AdversarialImages(found.images[source], margin_loss)


def universal_perturbation(
    embed: Embed,
    tiles: torch.Tensor,
    epsilon: float,
    steps: int,
    start: torch.Tensor,
    batch: int,
) -> NDArray[np.int8]:
    """One δ for all tiles that minimises the mean cosine between f(x) and f(x + δ), |δ| ≤ ε.

    Sign steps of 2.5 ε / steps; the best iterate. At δ = 0 the cosine is at its maximum and the
    gradient zero, so the start must lie elsewhere.

    Parameters
    ----------
    embed
        Images to vectors [n, d].
    tiles
        [n, 3, height, width] that it is fitted on.
    epsilon
        Size.
    steps
        How many.
    start
        [3, height, width] in −1 … 1.
    batch
        Tiles in memory with their gradients at once.

    Returns
    -------
    ndarray
        int8 [height, width, 3], in grey levels.

    References
    ----------
    Moosavi-Dezfooli et al. 2017, "Universal adversarial perturbations", arXiv 1610.08401, for the
    notion; the objective needs no labels.
    """
    import torch

    pairs = [(part, _vectors(embed, part)) for part in torch.split(tiles, batch)]
    delta = epsilon * start
    best, least = delta, torch.inf
    for _ in range(steps):
        cosine, gradient = _cosine_slope(embed, pairs, delta)
        best, least = (delta, cosine) if cosine < least else (best, least)
        delta = (delta - _PATH_LENGTH / steps * epsilon * gradient.sign()).clamp(-epsilon, epsilon)
    best = delta if mean_cosine(embed, pairs, delta) < least else best
    return (best * MAX_GREY_LEVEL).round().to(torch.int8).permute(1, 2, 0).numpy()


def mean_cosine(
    embed: Embed, pairs: list[tuple[torch.Tensor, torch.Tensor]], delta: torch.Tensor
) -> float:
    """Mean cosine between the vectors of tiles and of the tiles with δ added, as files.

    Parameters
    ----------
    embed
        Images to vectors.
    pairs
        Tiles [n, 3, height, width] and their vectors [n, d], batch by batch.
    delta
        [3, height, width].
    """
    import torch

    with torch.no_grad():
        cosines = [_cosines(embed, tiles, clean, delta) for tiles, clean in pairs]
    return float(torch.cat(cosines).mean())


def quantise(images: torch.Tensor) -> torch.Tensor:
    """Images rounded to 8 bits; gradients pass straight through (Bengio et al. 2013, arXiv 1308.3432).

    Examples
    --------
    >>> import torch
    >>> float(quantise(torch.tensor(0.501)) * 255)
    128.0
    """
    rounded = (images.detach() * MAX_GREY_LEVEL).round() / MAX_GREY_LEVEL
    return rounded + (images - images.detach())


def project(
    images: torch.Tensor, tiles: torch.Tensor, epsilon: torch.Tensor | float
) -> torch.Tensor:
    """Images projected onto the L∞ ball of radius ε around their tiles, and onto 0 … 1."""
    import torch

    nearest = torch.minimum(torch.maximum(images, tiles - epsilon), tiles + epsilon)
    return nearest.clamp(0, 1)


def sign_noise(tile: Pixels, epsilon: int, seed: int) -> Pixels:
    """A tile with ε grey levels added to or taken from each value by the toss of a coin.

    Parameters
    ----------
    tile
        uint8 [height, width, 3].
    epsilon
        Grey levels.
    seed
        Of the coin.

    Examples
    --------
    >>> set(np.unique(sign_noise(np.full((8, 8, 3), 100, np.uint8), 2, seed=0)).tolist())
    {98, 102}
    """
    coin = np.random.default_rng(seed).integers(0, 2, tile.shape, dtype=np.int16)
    return _to_pixels(tile + np.int16(epsilon) * (2 * coin - 1))


def gaussian_noise(tile: Pixels, epsilon: int, seed: int) -> Pixels:
    """A tile with Gaussian noise of standard deviation ε grey levels, so of sign noise's energy.

    Single values move further than ε: this noise may leave the ball.

    Parameters
    ----------
    tile
        uint8 [height, width, 3].
    epsilon
        Grey levels.
    seed
        Of the noise.

    Examples
    --------
    >>> noisy = gaussian_noise(np.full((64, 64, 3), 100, np.uint8), 8, seed=0)
    >>> round(float(noisy.std()))
    8
    """
    noise = np.random.default_rng(seed).standard_normal(tile.shape, np.float32)
    return _to_pixels(np.rint(tile + np.float32(epsilon) * noise))


def add_perturbation(tile: Pixels, delta: NDArray[np.int8]) -> Pixels:
    """A tile with a perturbation in grey levels added, within 0 … 255."""
    return _to_pixels(tile.astype(np.int16) + delta)


def to_images(tiles: Pixels) -> torch.Tensor:
    """uint8 [n, height, width, 3] as images float32 [n, 3, height, width], 0 … 1."""
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2)
    return planes.float() / MAX_GREY_LEVEL


def to_tiles(images: torch.Tensor) -> Pixels:
    """Images as uint8 [n, height, width, 3], rounded."""
    import torch

    levels: Pixels = (images * MAX_GREY_LEVEL).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows_together: Pixels = np.ascontiguousarray(levels)
    return rows_together


def _to_pixels(values: NDArray[Any]) -> Pixels:
    clipped: Pixels = np.clip(values, 0, MAX_GREY_LEVEL).astype(np.uint8)
    return clipped


def _loss_and_gradient(
    objective: AttackObjective,
    images: torch.Tensor,
    stored: Callable[[torch.Tensor], torch.Tensor] = quantise,
) -> tuple[AttackLoss, torch.Tensor]:
    """Losses of images as they are stored, and the gradient of the loss with respect to them."""
    import torch

    free = images.detach().requires_grad_(True)
    found = objective(stored(free))
    (gradient,) = torch.autograd.grad(found.loss.sum(), free)
    _refuse_nan(gradient)
    return AttackLoss(found.loss.detach(), found.margin_loss.detach()), gradient


def _vectors(embed: Embed, tiles: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return embed(tiles)


def _cosines(
    embed: Embed, tiles: torch.Tensor, clean: torch.Tensor, delta: torch.Tensor
) -> torch.Tensor:
    import torch

    moved = embed(quantise((tiles + delta).clamp(0, 1)))
    return torch.nn.functional.cosine_similarity(moved, clean, dim=1)


def _cosine_slope(
    embed: Embed, pairs: list[tuple[torch.Tensor, torch.Tensor]], delta: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Mean cosine at δ and the gradient of the cosines' sum."""
    parts = list(_slopes(embed, pairs, delta))
    n = sum(len(tiles) for tiles, _ in pairs)
    gradient = sum(slope for _, slope in parts[1:]) + parts[0][1]
    _refuse_nan(gradient)
    return sum(total for total, _ in parts) / n, gradient


def _slopes(
    embed: Embed, pairs: list[tuple[torch.Tensor, torch.Tensor]], delta: torch.Tensor
) -> Iterator[tuple[float, torch.Tensor]]:
    import torch

    for tiles, clean in pairs:
        free = delta.detach().requires_grad_(True)
        total = _cosines(embed, tiles, clean, free).sum()
        (slope,) = torch.autograd.grad(total, free)
        yield float(total.detach()), slope


def _refuse_nan(gradient: torch.Tensor) -> None:
    if not gradient.isfinite().all():
        raise ValueError(
            "the encoder's gradient is NaN or infinite, so no attack can be built on it: check the "
            "model's dtype and its layers for operations without a gradient"
        )
