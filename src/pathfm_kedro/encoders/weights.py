"""Networks with their weights, whatever form they are published in."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pathfm_kedro.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import torch

#: The module of `loaders` that reads what a prefix of ``model`` names.
_LOADERS = {
    "package": "package",
    "timm": "timm",
    "hf-hub": "timm",
    "local-dir": "timm",
    "transformers": "transformers",
    "open_clip": "open_clip",
    "torchscript": "torchscript",
    "onnx": "onnx",
}


def build_network(spec: EncoderSpec) -> torch.nn.Module:
    """The network of an entry with its weights, every one of them loaded.

    Whatever library it comes from it answers as a network of timm does: vectors when called, tokens
    from ``forward_features`` where it has any, and what it declares in ``pretrained_cfg``.

    Raises
    ------
    ValueError
        If the model or its weights cannot be had or do not fit, naming the entry and the mend.
    """
    loader = import_module(f"{__package__}.loaders.{_LOADERS[spec.model.partition(':')[0]]}")
    network: torch.nn.Module = loader.load(spec)
    return network
