"""What of a network decides about its vectors: its content, and not the names it goes by."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Attributes of modules that say how a network is used, or where it came from.
_NOT_OF_THE_VECTORS = frozenset({"training", "name_or_path"})


def digest_of_weights(model: torch.nn.Module) -> str:
    """SHA-256 of names, shapes and values of a network's weights."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest_of_architecture(model: torch.nn.Module) -> str:
    """SHA-256 of a network's modules and their settings: numbers, words and functions that they hold.

    Weights of one shape may belong to networks that differ in their number of heads, in a stride or in
    an activation. A name of an architecture would say that too, and the same network has many names.

    Examples
    --------
    >>> from torch.nn import GELU, LayerNorm
    >>> digest_of_architecture(LayerNorm(4)) == digest_of_architecture(LayerNorm(4))
    True
    >>> digest_of_architecture(LayerNorm(4)) == digest_of_architecture(LayerNorm(4, eps=1e-6))
    False
    >>> digest_of_architecture(GELU()) == digest_of_architecture(GELU(approximate="tanh"))
    False
    """
    described = [
        [name, type(module).__qualname__, _settings(module)]
        for name, module in model.named_modules()
    ]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _settings(module: torch.nn.Module) -> dict[str, Any]:
    held = {
        key: _plain(value)
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in _NOT_OF_THE_VECTORS
    }
    return {key: value for key, value in held.items() if value is not None}


def _plain(value: Any) -> Any:
    """A setting as JSON holds it; None of what is no setting."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return None if None in parts else parts
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return None
