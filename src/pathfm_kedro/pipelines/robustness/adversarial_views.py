"""Attack the tiles of the adversarial pool, slide by slide.

Each tile is attacked under the probe of its patient's fold, at every size at once
(:func:`~pathfm_kedro.encoders.attacks.attack_series`); noise needs no gradient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.encoders.attacks import (
    ProbeObjective,
    add_perturbation,
    attack_series,
    gaussian_noise,
    pgd_unrounded,
    sign_noise,
    to_images,
    to_tiles,
)
from pathfm_kedro.encoders.base import Encoder, Vectors
from pathfm_kedro.encoders.gradients import DifferentiableEncoder, differentiable
from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    GAUSSIAN_NOISE,
    SIGN_NOISE,
    Adversarial,
    Variant,
)
from pathfm_kedro.pipelines.robustness.adversarial_universal import name_of_half
from pathfm_kedro.pipelines.robustness.probed_tiles import ProbedTiles, ProbedWork
from pathfm_kedro.slides.perturbations import ssim_to_first
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.statistics.linear_classifier import LinearClassifier
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.views import Tensors, kept_pictures, tile_seed

if TYPE_CHECKING:
    import torch

#: Raised with any change of what an attack makes of the same tile.
_REVISION = "1"

_NOISES: Mapping[str, Callable[[Pixels, int, int], Pixels]] = {
    SIGN_NOISE: sign_noise,
    GAUSSIAN_NOISE: gaussian_noise,
}


@dataclass(frozen=True, eq=False)
class AttackTiles:
    """Every attack on the tiles of one slide.

    Attributes
    ----------
    probed
        The tiles' probe.
    universal
        int8 [sizes, height, width, 3], fitted on other patients.
    p
        The experiment's parameters.
    kept
        Whether noisy tiles are kept for other encoders.
    """

    probed: ProbedTiles
    universal: NDArray[np.int8]
    p: Adversarial
    side: None = None
    batch: int = 1
    units: str = "tile x variant; margins in logits, vectors as the encoder gives them"
    kept: bool = False

    @property
    def n_pictures(self) -> int:
        """Noisy tiles, the same for every encoder."""
        return len(self.p.noises)

    def keeping(self) -> AttackTiles:
        """The same work, whose noisy tiles are kept for other encoders."""
        return replace(self, kept=True)

    def describe(self) -> Any:
        """Everything that decides the attacks."""
        p = self.p
        return [
            _REVISION,
            [p.epsilons, p.pgd_steps, p.transfer_epsilon, p.drop_epsilon, p.seed],
            *self.probed.describe(),
            hashlib.sha256(self.universal.tobytes()).hexdigest(),
            *([] if p.published is None else [asdict(p.published)]),
        ]

    def compute(
        self,
        encoder: Encoder | None,
        pixels: Pixels,
        truth: Vectors | None,
        tile_ids: Sequence[str],
    ) -> Tensors:
        """Every variant of every tile; A variants, U of them also read before rounding.

        - ``embedding`` float32 [n, A, d], ``margin`` float64 [n, A] (true logit minus the best
          other) and ``ssim`` float64 [n, A], of images rounded to 8 bits and embedded as any tile;
        - ``margin_unrounded`` float64 [n, U], on the path with gradients;
        - ``attacked`` uint8 [n, 1, height, width, 3], by the strongest attack, for other encoders, and
          ``change`` int8 of the same shape, what it adds to the tile at the size that the drop is read
          at; [n, 0, …] where there is no gradient.

        Raises
        ------
        ValueError
            If the encoder gives a number that is not finite.
        """
        assert encoder is not None
        rows = [
            self._of_tile(encoder, tile, None if truth is None else truth[i], tile_id)
            for i, (tile, tile_id) in enumerate(zip(pixels, tile_ids, strict=True))
        ]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _of_tile(
        self,
        encoder: Encoder,
        tile: Pixels,
        truth: Vectors | None,
        tile_id: str,
    ) -> Tensors:
        """All variants of one tile, every ε at once: one batch, whatever else the slide holds."""
        seed, target = tile_seed(f"{self.p.seed}:{tile_id}"), self.probed.targets[tile_id]
        images, similarity = self._noisy(tile, seed)
        unrounded, for_others = np.zeros(0), np.zeros((0, *tile.shape), np.uint8)
        change, gradients = for_others.astype(np.int8), differentiable(encoder, truth)
        if gradients is not None:
            attacked, unrounded = self._attack(gradients, tile, target, seed)
            for_others = attacked[[self._strongest_at(self.p.transfer_epsilon)]]
            misleading = attacked[[self._strongest_at(self.p.drop_epsilon)]]
            change = (misleading.astype(np.int16) - tile).astype(np.int8)
            images = np.concatenate([images, attacked])
            similarity = np.append(similarity, ssim_to_first(np.stack([tile, *attacked]))[1:])
        vectors = self.probed.embed(encoder, images, truth, tile_id)
        return {
            "embedding": vectors,
            "margin": self.probed.margins(vectors, tile_id),
            "margin_unrounded": unrounded,
            "ssim": similarity,
            "attacked": for_others,
            "change": change,
        }

    def _noisy(self, tile: Pixels, seed: int) -> tuple[Pixels, NDArray[np.float64]]:
        """The tile and its noisy copies, and how similar they are."""

        def make() -> tuple[Pixels, NDArray[np.float64]]:
            images = np.stack([_with_noise(tile, variant, seed) for variant in self.p.noises])
            return images, ssim_to_first(images)

        return kept_pictures(tile, ("noise", self.p.noises, seed), make) if self.kept else make()

    def _strongest_at(self, epsilon: int) -> int:
        """Which attacked image is by the strongest attack of a size."""
        return self.p.white_box.index(Variant(self.p.strongest, epsilon))

    def _attack(
        self, gradients: DifferentiableEncoder, tile: Pixels, target: int, seed: int
    ) -> tuple[Pixels, NDArray[np.float64]]:
        """Images of the white-box variants, and margins of what is read unrounded."""
        p, probe = self.p, self.probed.of_network
        sizes = 0 if p.universal is None else len(p.universal.epsilons)
        if sizes and self.universal.shape != (sizes, *tile.shape):
            raise ValueError(
                "there is no universal perturbation for this slide's half of the folds: see why its "
                "fit failed, or set adversarial.universal to null"
            )
        clean = to_images(tile[None])
        objective = _objective(gradients, probe, target)
        series = [
            found.images for found in attack_series(objective, clean, p.epsilons, p.pgd_steps, seed)
        ]
        moved = [add_perturbation(tile, delta)[None] for delta in self.universal[:sizes]]
        images = np.concatenate([*map(to_tiles, series), *moved])
        unrounded = [clean, *series[1:]]
        if p.published is not None:
            published = p.published
            unrounded.append(
                pgd_unrounded(objective, clean, published.epsilon, published.step, published.steps)
            )
        return images, _margins(gradients, probe, target, unrounded)


def _objective(
    gradients: DifferentiableEncoder, probe: LinearClassifier, target: int
) -> ProbeObjective:
    import torch

    weight, bias = torch.tensor(probe.weight), torch.tensor(probe.bias)
    return ProbeObjective(gradients.embed, weight, bias, torch.tensor([target]))


def _margins(
    gradients: DifferentiableEncoder,
    probe: LinearClassifier,
    target: int,
    images: list[torch.Tensor],
) -> NDArray[np.float64]:
    """Margins of images as they are, batch by batch."""
    import torch

    with torch.no_grad():
        vectors = np.concatenate([gradients.embed(batch).numpy() for batch in images])
    return probe.margins(vectors, np.full(len(vectors), target))


def _with_noise(tile: Pixels, variant: Variant, seed: int) -> Pixels:
    noise = _NOISES.get(variant.attack)
    return tile if noise is None else noise(tile, variant.epsilon, seed)


def attack_work(universal: Embeddings, p: Adversarial) -> ProbedWork:
    """Every attack on a slide's tiles.

    Parameters
    ----------
    universal
        Shards of :func:`~.adversarial_universal.plan_universal_perturbation`.
    p
        The parameters.
    """
    deltas = {h: universal.stack([h], "universal").astype(np.int8) for h in universal.slide_ids}
    nothing = np.zeros((0, 0, 0, 3), np.int8)

    def work(tiles: pl.DataFrame, probed: ProbedTiles) -> AttackTiles:
        return AttackTiles(probed, deltas.get(name_of_half(tiles["fold"][0]), nothing), p)

    return work
