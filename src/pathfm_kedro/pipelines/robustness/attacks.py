"""Images changed by a few grey levels so as to lead an encoder astray, and the same amount of noise.

Images are float32 [n, 3, height, width] on the scale 0 … 1, as before normalisation. ε is given on
the same scale. Every image that an attack is scored on is one that a file can hold: its values are
whole multiples of 1/255.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    Embed = Callable[[torch.Tensor], torch.Tensor]

Pixels = NDArray[np.uint8]

#: Largest grey level of an 8-bit image.
LEVELS = 255
#: Length of all steps together over ε: enough to cross the ball from any start (Madry et al. 2018,
#: section 5.2, take 2.5 ε / steps).
_REACH = 2.5
#: Margin above which logits are scaled down: 1 − softmax is 5e-5 there, far from underflow.
_SUREST = 10.0


@dataclass(frozen=True)
class Judged:
    """How far images are led astray.

    Attributes
    ----------
    loss
        [n], what the attack climbs: cross-entropy of the true label.
    harm
        [n], what counts: the best other logit minus the true label's; wrong where above 0.
    """

    loss: torch.Tensor
    harm: torch.Tensor


class Victim(Protocol):
    """A classifier under attack, with the true labels of its images."""

    def __call__(self, images: torch.Tensor) -> Judged:
        """Judge images [n, 3, height, width]."""
        ...


@dataclass(frozen=True)
class ProbeVictim:
    """A linear probe on an encoder.

    The loss is the cross-entropy of the logits; where the margin is above 10 they are first divided
    so that it is 10. The softmax of a surer probe is 1 to the last digit and its gradient 0, which
    would look like robustness (Carlini et al. 2019, arXiv 1902.06705).

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
    >>> victim = ProbeVictim(pixels, torch.eye(2, 3).double(), torch.zeros(2).double(),
    ...                      torch.tensor([0]))
    >>> victim(torch.tensor([0.9, 0.5, 0.0]).view(1, 3, 1, 1)).harm.round(decimals=3).tolist()
    [-0.4]
    """

    embed: Embed
    weight: torch.Tensor
    bias: torch.Tensor
    target: torch.Tensor

    def __call__(self, images: torch.Tensor) -> Judged:
        """Cross-entropy and negative margin of the true class."""
        import torch

        logits = self.embed(images).double() @ self.weight.T + self.bias
        target = self.target.expand(len(images))
        own = torch.nn.functional.one_hot(target, len(self.bias)).bool()
        other = logits.masked_fill(own, -torch.inf).amax(dim=1)
        harm = other - logits[own]
        calm = logits / (-harm.detach() / _SUREST).clamp(min=1)[:, None]
        loss = torch.nn.functional.cross_entropy(calm, target, reduction="none")
        return Judged(loss, harm)


@dataclass(frozen=True)
class Attempt:
    """Images and the harm [n] that they do as files."""

    images: torch.Tensor
    harm: torch.Tensor

    def or_better(self, other: Attempt) -> Attempt:
        """The more harmful of the two, image by image; this one where they are equal."""
        import torch

        better = other.harm > self.harm
        images = torch.where(better.view(-1, 1, 1, 1), other.images, self.images)
        return Attempt(images, torch.maximum(other.harm, self.harm))


def fgsm(victim: Victim, tiles: torch.Tensor, epsilon: torch.Tensor) -> Attempt:
    """One step of size ε along the sign of the gradient: x + ε sign ∇ loss(x).

    Parameters
    ----------
    victim
        Who is attacked.
    tiles
        [n, 3, height, width].
    epsilon
        [n, 1, 1, 1] or a scalar tensor; many sizes for one tile give one image each.

    References
    ----------
    Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples", arXiv 1412.6572.
    """
    _, gradient = _climb(victim, tiles)
    return judged(victim, into_ball(tiles + epsilon * gradient.sign(), tiles, epsilon))


def pgd(
    victim: Victim,
    tiles: torch.Tensor,
    epsilon: torch.Tensor,
    steps: int,
    start: torch.Tensor,
    incumbent: Attempt | None = None,
) -> Attempt:
    """Projected gradient ascent from a random start: the most harmful image met on the way.

    ``x ← Π(x + (2.5 ε / steps) sign ∇ loss(x))``, Π onto the ε-ball around the tile within 0 … 1.
    The way is taken in real numbers; loss and gradient are those of the image rounded to 8 bits.

    Parameters
    ----------
    victim
        Who is attacked.
    tiles
        [n, 3, height, width].
    epsilon
        [n, 1, 1, 1] or a scalar tensor; many sizes for one tile give one image each.
    steps
        How many.
    start
        [n, 3, height, width] in −1 … 1: where in the ball the way begins.
    incumbent
        What a weaker attack found, which the result is never less harmful than; the tiles
        themselves if not given.

    References
    ----------
    Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv
    1706.06083.
    """
    best = incumbent if incumbent is not None else judged(victim, tiles)
    images = into_ball(tiles + epsilon * start, tiles, epsilon)
    for _ in range(steps):
        here, gradient = _climb(victim, images)
        best = best.or_better(Attempt(images, here.harm))
        images = into_ball(images + _REACH / steps * epsilon * gradient.sign(), tiles, epsilon)
    return best.or_better(judged(victim, images))


def judged(victim: Victim, images: torch.Tensor) -> Attempt:
    """Images with the harm that they do as files."""
    import torch

    with torch.no_grad():
        return Attempt(images, victim(as_file(images)).harm)


def never_weaker_in_larger_ball(attempt: Attempt) -> Attempt:
    """Attempts on one tile at rising ε, each replaced by a more harmful one of a smaller ball.

    Parameters
    ----------
    attempt
        One image per ε of the same tile, ε rising.
    """
    harm, source = attempt.harm.cummax(dim=0)
    return Attempt(attempt.images[source], harm)


def universal_perturbation(
    embed: Embed,
    tiles: torch.Tensor,
    epsilon: float,
    steps: int,
    start: torch.Tensor,
    batch: int,
) -> NDArray[np.int8]:
    """One δ for all tiles that minimises the mean cosine between f(x) and f(x + δ), |δ| ≤ ε.

    Sign steps of 2.5 ε / steps; the best δ met on the way. At δ = 0 the cosine is at its maximum
    and the gradient zero, so the way must begin elsewhere.

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
        Tiles held in memory with their gradients at once.

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
        delta = (delta - _REACH / steps * epsilon * gradient.sign()).clamp(-epsilon, epsilon)
    best = delta if mean_cosine(embed, pairs, delta) < least else best
    return (best * LEVELS).round().to(torch.int8).permute(1, 2, 0).numpy()


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


def as_file(images: torch.Tensor) -> torch.Tensor:
    """Images rounded to 8 bits, exactly; gradients pass as if nothing were rounded.

    Examples
    --------
    >>> import torch
    >>> float(as_file(torch.tensor(0.501)) * 255)
    128.0
    """
    rounded = (images.detach() * LEVELS).round() / LEVELS
    return rounded + (images - images.detach())


def into_ball(
    images: torch.Tensor, tiles: torch.Tensor, epsilon: torch.Tensor | float
) -> torch.Tensor:
    """Images moved to the nearest within ε of their tiles in every pixel, and within 0 … 1."""
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

    Single values move further than ε: this noise is not held to the ball.

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


def add_levels(tile: Pixels, delta: NDArray[np.int8]) -> Pixels:
    """A tile with a perturbation in grey levels added, within 0 … 255."""
    return _to_pixels(tile.astype(np.int16) + delta)


def to_images(tiles: Pixels) -> torch.Tensor:
    """uint8 [n, height, width, 3] as images float32 [n, 3, height, width], 0 … 1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float() / LEVELS


def to_tiles(images: torch.Tensor) -> Pixels:
    """Images as uint8 [n, height, width, 3], rounded."""
    import torch

    levels: Pixels = (images * LEVELS).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows_together: Pixels = np.ascontiguousarray(levels)
    return rows_together


def _to_pixels(values: NDArray[Any]) -> Pixels:
    clipped: Pixels = np.clip(values, 0, LEVELS).astype(np.uint8)
    return clipped


def _climb(victim: Victim, images: torch.Tensor) -> tuple[Judged, torch.Tensor]:
    """What the victim says of images, and the gradient of its loss."""
    import torch

    free = images.detach().requires_grad_(True)
    found = victim(as_file(free))
    (gradient,) = torch.autograd.grad(found.loss.sum(), free)
    _refuse_nan(gradient)
    return Judged(found.loss.detach(), found.harm.detach()), gradient


def _vectors(embed: Embed, tiles: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return embed(tiles)


def _cosines(
    embed: Embed, tiles: torch.Tensor, clean: torch.Tensor, delta: torch.Tensor
) -> torch.Tensor:
    import torch

    moved = embed(as_file((tiles + delta).clamp(0, 1)))
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
