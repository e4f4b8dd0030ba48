"""The same encoder as a function that can be differentiated with respect to a tile's pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pathfm_kedro.encoders.base import Encoder, Vectors
from pathfm_kedro.encoders.runtimes import pooled

if TYPE_CHECKING:
    import torch


@runtime_checkable
class NeuralEncoder(Protocol):
    """What of an encoder a gradient needs: the network itself, whatever runs it otherwise."""

    @property
    def model(self) -> torch.nn.Module:
        """The frozen network."""
        ...

    @property
    def pooling(self) -> str:
        """How tokens become one vector."""
        ...

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """``input_pixels``, ``mean`` and ``std``."""
        ...


@dataclass(frozen=True)
class DifferentiableEncoder:
    """An encoder from images to vectors in which every step has a gradient.

    Attributes
    ----------
    model
        The network, in evaluation mode; its weights get no gradient.
    pooling
        How tokens become one vector.
    input_pixels
        Side of the network's input.
    mean, std
        Of each channel, on the scale 0 … 1.
    offset
        What is added to every vector [d]; None for nothing.

    Examples
    --------
    >>> import torch
    >>> flat = DifferentiableEncoder(torch.nn.Flatten(), "default", 2, (0.5,) * 3, (0.5,) * 3)
    >>> flat.embed(torch.ones(1, 3, 2, 2)).tolist()[0][:3]
    [1.0, 1.0, 1.0]
    """

    model: torch.nn.Module
    pooling: str
    input_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    offset: Vectors | None = None

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Vectors float32 [n, d] of images float32 [n, 3, height, width] on the scale 0 … 1.

        Images and vectors lie where the caller has them; the network computes where it lies.
        """
        weight = next(self.model.parameters(), images)
        batch = self.prepare(images).to(weight.device, weight.dtype)
        vectors = pooled(self.model, self.pooling, batch).float().to(images.device)
        return vectors if self.offset is None else vectors + vectors.new_tensor(self.offset)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """What the network sees: the values that ``TorchEncoder.prepare`` gives.

        Parameters
        ----------
        images
            float32 [n, 3, height, width], 0 … 1, before normalisation.

        Returns
        -------
        Tensor
            float32 [n, 3, input_pixels, input_pixels].
        """
        import torch

        side = (self.input_pixels, self.input_pixels)
        if images.shape[-2:] != side:
            images = torch.nn.functional.interpolate(
                images, side, mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def differentiable(encoder: Encoder, truth: Vectors | None = None) -> DifferentiableEncoder | None:
    """The encoder with gradients, or None where it is no neural network or PyTorch does not run it.

    The gradient is always taken of the PyTorch network, also where something else runs it to embed.

    Parameters
    ----------
    encoder
        From :func:`~pathfm_kedro.encoders.load_encoder`.
    truth
        What was drawn on the tile [m]: a control may add it to what it reads from pixels.

    Examples
    --------
    >>> from pathfm_kedro.encoders.controls import StainStatistics
    >>> differentiable(StainStatistics()) is None
    True
    """
    if not isinstance(encoder, NeuralEncoder) or not getattr(encoder.model, "differentiable", True):
        return None
    preprocessing = encoder.preprocessing
    return DifferentiableEncoder(
        encoder.model,
        encoder.pooling,
        int(preprocessing["input_pixels"]),
        tuple(preprocessing["mean"]),
        tuple(preprocessing["std"]),
        truth if getattr(encoder, "adds_truth", False) else None,
    )
