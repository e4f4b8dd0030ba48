"""A small network pretrained from scratch on labelled tiles, and the vectors it gives once frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.rivals import Pixels, linear_classifier, turned, untrained
from pathfm_kedro.encoders.runtimes import place
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.training import History, Recipe, fit, shuffled_batches
from pathfm_kedro.engine import FitCheckpoint
from pathfm_kedro.statistics.parameters import STRICT

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]

#: Tiles at once where nothing is learnt.
_AT_ONCE = 256


@dataclass(frozen=True, config=STRICT)
class PretrainingSettings:
    """How a network is pretrained: AdamW, the rate falling to nothing along a cosine.

    Attributes
    ----------
    epochs
        All of them are run: who pretrains on wrong labels has no right ones to tell when to stop.
    batch
        Tiles of a step.
    learning_rate, weight_decay
        Of AdamW.
    """

    epochs: Count
    batch: Count
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]


class Backbone:
    """A network of :func:`~pathfm_kedro.encoders.architectures.rival`, its weights drawn from a seed.

    Parameters
    ----------
    name
        ``small_cnn`` or ``small_vit``.
    side
        Of its input, px, a multiple of 16.
    seed
        Of the weights.
    """

    def __init__(self, name: str, side: int, seed: int) -> None:
        spec = EncoderSpec(name, f"trained:{name}", input_pixels=side, seed=seed)
        self.network, self.device, self.seed = untrained(spec), place(spec)[1], seed
        self.network.model.to(self.device)

    def prepared(self, pixels: Pixels) -> torch.Tensor:
        """[n, 3, side, side] on the device, normalised."""
        import torch

        return self.network.prepared(torch.from_numpy(pixels).to(self.device))

    def pretrain(
        self,
        pixels: Pixels,
        targets: Ints,
        n_labels: int,
        settings: PretrainingSettings,
        checkpoint: FitCheckpoint | None = None,
    ) -> tuple[torch.nn.Module, History]:
        """Fit the network, with a linear classifier behind it, to labels; it ends frozen.

        Tiles are seen in one of eight turns and mirror images. Two fits of a seed begin alike and see
        the same tiles in the same order, whatever their labels.

        Parameters
        ----------
        pixels, targets
            uint8 [n, side, side, 3] and [n] codes.
        n_labels
            Classes.
        settings
            How.
        checkpoint
            Where its state is left after each epoch.

        Returns
        -------
        tuple
            From prepared tiles to logits, and how the fit went.
        """
        import torch

        classifier = linear_classifier(self.network.model, n_labels, self.seed)
        model = torch.nn.Sequential(self.network.model, classifier).to(self.device)

        def batches(epoch: int) -> Iterator[tuple[Pixels, Ints]]:
            for rows, rng in shuffled_batches(len(targets), settings.batch, self.seed, epoch):
                yield turned(pixels[rows], rng), targets[rows]

        def loss(model: Any, batch: tuple[Pixels, Ints]) -> torch.Tensor:
            truth = torch.from_numpy(batch[1]).to(self.device)
            return torch.nn.functional.cross_entropy(model(self.prepared(batch[0])), truth)

        optimiser = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        recipe = Recipe(settings.epochs, self.seed, "cosine")
        return model, fit(model, optimiser, batches, loss, recipe, checkpoint=checkpoint)

    def vectors(self, pixels: Pixels) -> NDArray[np.float32]:
        """[n, d] of tiles uint8 [n, side, side, 3]."""
        return self._mapped(self.network.model, pixels)

    def classified(self, model: torch.nn.Module, pixels: Pixels) -> Ints:
        """[n] the most probable class of each tile."""
        return np.asarray(self.logits(model, pixels).argmax(axis=1), np.int64)

    def logits(self, model: torch.nn.Module, pixels: Pixels) -> NDArray[np.float32]:
        """[n, labels] of tiles, by a model from :meth:`pretrain`."""
        return self._mapped(model, pixels)

    def views(
        self, pixels: Pixels, view: Callable[[Pixels, np.random.Generator], Pixels], count: int
    ) -> NDArray[np.float32]:
        """[n, count, d] of drawn views of each tile."""
        rng = np.random.default_rng(self.seed)
        return np.stack([self.vectors(view(pixels, rng)) for _ in range(count)], axis=1)

    def _mapped(self, model: Any, pixels: Pixels) -> NDArray[np.float32]:
        import torch

        model.eval()
        with torch.no_grad():
            parts = [
                model(self.prepared(pixels[start : start + _AT_ONCE])).cpu().numpy()
                for start in range(0, len(pixels), _AT_ONCE)
            ]
        return np.concatenate(parts).astype(np.float32)
