"""Tokens of a tile's patches beside its vector: what a network sees where, for late interaction.

A transformer's tokens of patches, or the last map of a network of convolutions, lie in a square grid.
It is averaged to a smaller one, ``tokens`` squares of equal area, so that what is stored does not grow
with the network's input; the mean of these is the mean over all patches.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pathfm_kedro.encoders.base import Pixels, Vectors
from pathfm_kedro.encoders.features import measured_loss
from pathfm_kedro.encoders.registry import load_encoder
from pathfm_kedro.encoders.runtimes import (
    ExportError,
    PoolingError,
    place,
    pooled,
    pooled_tokens,
    prefix_tokens,
)
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.stream import embed_batches
from pathfm_kedro.encoders.torch_encoder import Network, TorchEncoder
from pathfm_kedro.encoders.trial import synthetic_tiles


class WithTokens(torch.nn.Module):
    """A network whose vectors have the tokens of the patches behind them: [n, d + tokens × width].

    Attributes
    ----------
    model, pooling
        The network, and how its tokens become the vector.
    tokens
        Of a tile: a square number.
    """

    def __init__(self, model: torch.nn.Module, pooling: str, tokens: int) -> None:
        super().__init__()
        self.model: Any = model
        self.pooling = pooling
        self.tokens = tokens

    @property
    def dynamic_img_size(self) -> bool:
        """Whether positions follow the input; an export fixes them."""
        return bool(getattr(self.model, "dynamic_img_size", False))

    def set_input_size(self, img_size: Any) -> None:
        """Fix the size of the input."""
        self.model.set_input_size(img_size=img_size)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Vectors and tokens, from one pass where the network's head can be had by itself."""
        features = self.model.forward_features(batch)
        if self.pooling != "default":
            vectors = pooled_tokens(self.model, self.pooling, features)
        elif hasattr(self.model, "forward_head"):
            vectors = self.model.forward_head(features)
        else:
            vectors = pooled(self.model, self.pooling, batch)
        tokens = averaged(patch_grid(self.model, features), math.isqrt(self.tokens))
        return torch.cat([vectors, tokens.flatten(1)], dim=1)


def patch_grid(model: Any, features: torch.Tensor) -> torch.Tensor:
    """Tokens of the patches where they lie: [n, width, side, side].

    Parameters
    ----------
    model
        The network.
    features
        What its ``forward_features`` gives.

    Raises
    ------
    PoolingError
        If there is no square grid of them.
    """
    ndim = getattr(features, "ndim", 0)
    if ndim == 4:
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        grid = features.permute(0, 3, 1, 2) if last else features
    elif ndim == 3:
        patches = features[:, prefix_tokens(model) :]
        side = math.isqrt(int(patches.shape[1]))
        if side == 0 or side**2 != patches.shape[1]:
            raise PoolingError(f"its {patches.shape[1]} tokens of patches are no square")
        grid = patches.transpose(1, 2).reshape(-1, patches.shape[2], side, side)
    else:
        raise PoolingError("the network gives no tokens and no map")
    if grid.shape[-1] != grid.shape[-2]:
        raise PoolingError(f"its map of {grid.shape[-2]} x {grid.shape[-1]} is no square")
    return grid


def averaged(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Means over side × side squares of equal area, row by row.

    As products of matrices, which every runtime has for any two sizes.

    Parameters
    ----------
    grid
        [n, width, patches, patches].
    side
        Of the smaller grid.

    Returns
    -------
    Tensor
        [n, side², width].

    Examples
    --------
    >>> averaged(torch.arange(9.0).reshape(1, 1, 3, 3), 1).tolist()
    [[[4.0]]]
    """
    weights = torch.from_numpy(shares(int(grid.shape[-1]), side)).to(grid)
    return (weights @ grid @ weights.T).flatten(2).transpose(1, 2)


def shares(patches: int, side: int) -> NDArray[np.float32]:
    """What each of `patches` in a row gives to each of `side` parts of equal length: [side, patches].

    Examples
    --------
    >>> (3 * shares(3, 2)).round(6).tolist()
    [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    """
    ends = np.arange(1, side + 1)[:, None] * patches / side
    starts = ends - patches / side
    place = np.arange(patches)
    overlap = np.minimum(ends, place + 1) - np.maximum(starts, place)
    weights: NDArray[np.float32] = (np.clip(overlap, 0, None) * side / patches).astype(np.float32)
    return weights


@dataclass(frozen=True)
class TokenEncoder:
    """An encoder that also gives tokens of patches.

    Attributes
    ----------
    encoder
        Gives vectors and tokens in one row.
    tokens, width
        Tokens of a tile, and numbers of a token.
    """

    encoder: TorchEncoder
    tokens: int
    width: int

    def embed_batches(
        self, batches: Iterable[tuple[Pixels, Vectors | None]]
    ) -> tuple[Vectors, Vectors]:
        """Vectors [n, d] and tokens [n, tokens, width] of all batches, float32."""
        rows = embed_batches(self.encoder, batches)
        dimension = rows.shape[1] - self.tokens * self.width
        tokens = rows[:, dimension:].reshape(len(rows), self.tokens, self.width)
        return np.ascontiguousarray(rows[:, :dimension]), tokens


_lock = threading.Lock()
#: One at a time: pipelines embed one encoder after the other.
_made: dict[str, TokenEncoder] = {}


def token_encoder(spec: EncoderSpec) -> TokenEncoder:
    """The encoder of a spec with ``patch_tokens``, set up once per process.

    Raises
    ------
    ValueError
        If the network has no such tokens, or its runtime cannot give them; it names the entry.
    """
    with _lock:
        key = spec.key()
        if key not in _made:
            _made.clear()
            _made[key] = _token_encoder(spec)
        return _made[key]


def _token_encoder(spec: EncoderSpec) -> TokenEncoder:
    where, tokens = f"encoders.{spec.name}.patch_tokens is {spec.patch_tokens}", spec.patch_tokens
    encoder = load_encoder(spec)
    assert isinstance(encoder, TorchEncoder)
    assert tokens is not None
    network = encoder.network
    try:
        grid = _grid_of_a_tile(network, encoder.device)
    except PoolingError as error:
        raise ValueError(f"{where}, and '{spec.model}': {error}; leave it out") from error
    if grid.shape[-1] ** 2 < tokens:
        raise ValueError(
            f"{where}, and '{spec.model}' has {grid.shape[-1] ** 2} patches of a tile: give a smaller "
            "square number"
        )
    both = replace(
        network, model=WithTokens(network.model, network.pooling, tokens), pooling="default"
    )
    try:
        run = both.forward_by(*place(spec))
    except ExportError as error:
        raise ValueError(
            f"{where}, and onnxruntime cannot give them ({error}): set encoders.{spec.name}.runtime to "
            "channels_last"
        ) from error
    return TokenEncoder(replace(encoder, network=both, run=run), tokens, grid.shape[1])


def _grid_of_a_tile(network: Network, device: str) -> torch.Tensor:
    model: Any = network.model
    if not hasattr(model, "forward_features"):
        raise PoolingError("the network gives no tokens and no map")
    tile = torch.from_numpy(synthetic_tiles(1, network.side)).to(device)
    with torch.inference_mode():
        return patch_grid(model, model.forward_features(network.prepared(tile)))


def as_float16(tokens: Vectors, where: str) -> tuple[NDArray[np.float16], Vectors]:
    """Tokens as they are stored, and of each tile the largest relative error of a token: [n].

    Parameters
    ----------
    tokens
        float32 [n, tokens, width].
    where
        How an error names them.

    Raises
    ------
    ValueError
        If float16 cannot hold them.
    """
    with np.errstate(over="ignore", under="ignore"):
        half = tokens.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(
            f"float16 cannot hold the patch tokens of {where} (largest number "
            f"{np.abs(tokens).max():.3g}): leave patch_tokens out"
        )
    losses = [measured_loss(exact, kept) for exact, kept in zip(tokens, half, strict=True)]
    return half, np.array(losses, np.float32)
