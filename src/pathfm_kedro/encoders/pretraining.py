"""A small network pretrained from scratch on labelled tiles, and the vectors it gives once frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.batches import Pixels, outputs, turned
from pathfm_kedro.encoders.fabric import training_device
from pathfm_kedro.encoders.rivals import untrained
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.training import AdamWSettings, History, classification_loss
from pathfm_kedro.engine import FitCheckpoint

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]


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
        self.network, self.device, self.seed = untrained(spec), training_device(spec), seed
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
        settings: AdamWSettings,
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
        from pathfm_kedro.encoders.architectures import with_classifier

        model = with_classifier(self.network.model, n_labels, self.seed).to(self.device)
        loss = classification_loss(
            lambda rows, rng: self.prepared(turned(pixels[rows], rng)), targets
        )
        return model, settings.fit(model, len(targets), loss, self.seed, checkpoint)

    def vectors(self, pixels: Pixels) -> NDArray[np.float32]:
        """[n, d] of tiles uint8 [n, side, side, 3]."""
        return self.network.vectors(pixels, self.device)

    def logits(self, model: torch.nn.Module, pixels: Pixels) -> NDArray[np.float32]:
        """[n, labels] of tiles, by a model from :meth:`pretrain`."""
        return outputs(model, lambda rows: self.prepared(pixels[rows]), len(pixels))

    def classified(self, model: torch.nn.Module, pixels: Pixels) -> Ints:
        """[n] the most probable class of each tile."""
        return np.asarray(self.logits(model, pixels).argmax(axis=1), np.int64)

    def views(
        self, pixels: Pixels, view: Callable[[Pixels, np.random.Generator], Pixels], count: int
    ) -> NDArray[np.float32]:
        """[n, count, d] of drawn views of each tile."""
        rng = np.random.default_rng(self.seed)
        return np.stack([self.vectors(view(pixels, rng)) for _ in range(count)], axis=1)
