"""The same encoder with an input of another size."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any

from pathfm_kedro.encoders.base import Encoder

#: Why an encoder cannot be given an image at its native size, by the code that shards hold.
NATIVE_PROBLEMS = {
    1: "the encoder's position embeddings are of a fixed size and nothing interpolates them",
    2: "the encoder refuses an input of this size",
    3: "native size is tried on square images only",
    4: "the encoder offers no input of another size",
}


def native_encoder(encoder: Encoder, size: tuple[int, int]) -> tuple[Encoder | None, int]:
    """The encoder with an input of the images' own size.

    Convolutions take any size. A model of timm with ``set_input_size`` interpolates its position
    embeddings in a copy that shares all other weights; its input is the largest multiple of the
    patch that the image holds, so that nothing is enlarged by more than rounding.

    Parameters
    ----------
    encoder
        A loaded encoder.
    size
        Width and height of the images, px.

    Returns
    -------
    tuple
        The encoder, or None, and the reason as a key of :data:`NATIVE_PROBLEMS` (0: none).
    """
    if encoder.preprocessing.get("input_pixels") is None:
        return encoder, 0  # looks at every pixel as it is, whatever the size
    if size[0] != size[1]:
        return None, 3
    if hasattr(encoder, "base"):
        base, problem = native_encoder(encoder.base, size)
        wrapper: Any = encoder
        return (None if base is None else replace(wrapper, base=base)), problem
    network = getattr(encoder, "network", None)
    if network is None or getattr(network.model, "fixed_input", False):
        return None, 4
    model, side = network.model, size[0]
    if hasattr(model, "set_input_size"):
        side = side // patch_side(model) * patch_side(model)
        model = _resized(model, side)
        if model is None:
            return None, 2
    elif _has_fixed_positions(model):
        return None, 1
    return _with_input(encoder, model, side), 0


def _with_input(encoder: Any, model: Any, side: int) -> Encoder:
    """The encoder with another network and another side of its input, run by PyTorch.

    onnxruntime would need an export for each side, which takes longer than the pass itself.
    """
    from pathfm_kedro.encoders.runtimes import TorchForward

    preprocessing = {**encoder.preprocessing, "input_pixels": side}
    run = encoder.run
    if not isinstance(run, TorchForward):
        run = TorchForward(model, encoder.pooling, "channels_last", "cpu", "float32")
    fewer = max(1, encoder.batch_size * encoder.network.side**2 // side**2)
    native: Encoder = replace(
        encoder,
        network=replace(encoder.network, model=model, preprocessing=preprocessing),
        run=replace(run, model=model),
        batch_size=fewer,
    )
    return native


def patch_side(model: Any) -> int:
    """Side of a network's patches, px; 1 where it has none."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return int(patch if isinstance(patch, int) else patch[0])


def _resized(model: Any, side: int) -> Any | None:
    """A copy for another input size that shares all weights but the position embeddings."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copy = deepcopy(model, shared)
    try:
        copy.set_input_size(img_size=(side, side))
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return None
    return copy


def _has_fixed_positions(model: Any) -> bool:
    declared = getattr(model, "pretrained_cfg", None) or {}
    return bool(declared.get("fixed_input_size")) or any(
        "pos_embed" in name or "position" in name for name, _ in model.named_parameters()
    )
