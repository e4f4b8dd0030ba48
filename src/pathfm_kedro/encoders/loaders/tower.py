"""A network of another library behind the few names by which networks of timm are asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Patches:
    """What of a network's input is known: ``img_size`` is None where it takes any multiple."""

    patch_size: int
    img_size: int | None = None


@dataclass(frozen=True)
class Tokens:
    """Which tokens a network has.

    Attributes
    ----------
    prefix
        How many come before those of patches: the class token and registers.
    has_class_token
        Whether the first is a class token.
    """

    prefix: int
    has_class_token: bool


#: A network that gives vectors only.
NO_TOKENS = Tokens(0, False)


class Tower(torch.nn.Module):
    """A network that gives vectors when called, and tokens where it has any.

    Attributes
    ----------
    tower
        The network itself, with its weights.
    num_prefix_tokens, has_class_token
        Of :class:`Tokens`.
    patch_embed
        Side of patches and input.
    pretrained_cfg
        What the model declares: ``mean``, ``std`` and ``input_size``.
    settings
        Text that decides about vectors and is neither a weight nor a module, for the fingerprint.
    """

    num_classes = 0

    def __init__(
        self,
        tower: torch.nn.Module,
        tokens: Tokens,
        patches: Patches,
        declared: Mapping[str, Any],
        settings: str,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.num_prefix_tokens = tokens.prefix
        self.has_class_token = tokens.has_class_token
        self.patch_embed = patches
        self.pretrained_cfg = dict(declared)
        self.settings = settings

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Vectors [n, d]."""
        vectors: torch.Tensor = self.tower(batch)
        return vectors

    def forward_features(self, batch: torch.Tensor) -> torch.Tensor:
        """Tokens [n, t, d]; here the network has none, and its vectors say so by their shape."""
        return self.forward(batch)


def declared(side: int | None, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """What a model declares, as timm writes it."""
    return {
        "input_size": (3, side, side) if side else None,
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
    }


def as_settings(config: Mapping[str, Any]) -> str:
    """A configuration as text, the same whatever the order of its keys."""
    return json.dumps(dict(config), sort_keys=True, default=str)
