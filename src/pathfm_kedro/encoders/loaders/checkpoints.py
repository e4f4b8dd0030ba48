"""Checkpoints as DINO, iBOT and DINOv2 publish them, under timm's names.

Training code nests weights (``teacher``, ``student``, ``model``), wraps networks in others
(``module.``, ``backbone.``, ``encoder.``) and splits blocks into chunks (``blocks.0.3.`` is
``blocks.3.``). DINOv2's own code names some tensors otherwise than timm. What of a file is not the
network is sorted into what is known (heads of the pretext task) and what is not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathfm_kedro.encoders.loaders.files import some_of

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

#: Under these keys training code stores weights beside optimiser states and epochs. The teacher comes
#: first: it is what DINO, iBOT and DINOv2 evaluate.
_NESTED = ("teacher", "state_dict", "model", "student", "model_state_dict", "module", "ema")
#: Names of networks within networks, the teacher before the student.
_PREFIXES = (
    "_orig_mod.",
    "module.",
    "teacher.",
    "student.",
    "model.",
    "backbone.",
    "encoder.",
    "visual.",
)
#: Parts of a training that an encoder does not have: dropped, and named.
_HEADS = (
    "dino_head.",
    "ibot_head.",
    "head.",
    "head2.",
    "projector.",
    "predictor.",
    "decoder.",
    "fc.",
    "classifier.",
)
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")


@dataclass(frozen=True)
class Checkpoint:
    """Weights under timm's names.

    Attributes
    ----------
    tensors
        By name, float32.
    dropped
        Names in the file of what belongs to a head or to another network: not loaded.
    """

    tensors: Tensors
    dropped: tuple[str, ...]


def converted(loaded: Mapping[str, Any], model: torch.nn.Module) -> Checkpoint:
    """Weights of a file for a network of timm.

    Parameters
    ----------
    loaded
        From :func:`~pathfm_kedro.encoders.loaders.files.read_tensors`.
    model
        The network, without a classifier.

    Raises
    ------
    ValueError
        If the file holds no tensors by name, or several sets of them.
    """
    target = set(model.state_dict())
    own, others = _without_prefixes(_unnested(loaded), target)
    own = {_CHUNKED.sub(r"blocks.\1.", name): tensor for name, tensor in own.items()}
    heads = {name for name in own if name not in target and name.startswith(_heads_of(model))}
    others |= heads
    tensors = _timm_names({k: v for k, v in own.items() if k not in heads}, model)
    return Checkpoint({k: v.float() for k, v in tensors.items()}, tuple(sorted(others)))


def _unnested(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The one level of a nested file that holds the tensors."""
    import torch

    nested = [key for key in _NESTED if isinstance(loaded.get(key), Mapping)]
    if nested:
        unlike = set(nested) - {"teacher", "student"}
        if len(nested) > 1 and unlike:
            raise ValueError(
                f"it holds several networks, under {' and '.join(map(repr, nested))}: save the one "
                "that is meant alone to a file"
            )
        return _unnested(loaded[nested[0]])
    strange = [str(k) for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if strange:
        raise ValueError(f"these of its entries are no tensors: {some_of(strange)}")
    return dict(loaded)


def _without_prefixes(tensors: Tensors, target: Collection[str]) -> tuple[dict[str, Any], set[str]]:
    """Tensors with the names of networks around theirs taken off, and names of other networks.

    A prefix is taken off as long as it brings the network's names nearer, so that a network that has
    a part called ``encoder`` keeps it.
    """
    own, prefix, others = dict(tensors), "", set()
    while not _fit(own, target):
        found = [p for p in _PREFIXES if any(name.startswith(p) for name in own)]
        if not found:
            break
        inside = {name[len(found[0]) :]: v for name, v in own.items() if name.startswith(found[0])}
        others |= {prefix + name for name in own if not name.startswith(found[0])}
        own, prefix = inside, prefix + found[0]
    unknown = {n for n in others if not n.removeprefix(prefix).startswith((*_HEADS, *_PREFIXES))}
    # What lies beside the network and is no known part of a training is left to be refused by name.
    return own | {name: tensors[name] for name in unknown}, others - unknown


def _fit(tensors: Tensors, target: Collection[str]) -> bool:
    """Whether names are the network's, chunks of blocks aside."""
    return any(_CHUNKED.sub(r"blocks.\1.", name) in target for name in tensors)


def _heads_of(model: Any) -> tuple[str, ...]:
    """Beginnings of the names of weights of heads, which are not built."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    return (*_HEADS, *(f"{name}." for name in names))


def _timm_names(tensors: dict[str, Any], model: Any) -> dict[str, Any]:
    """Names of DINOv2's own code in timm's words; others stay as they are."""
    target = model.state_dict()
    renamed = {}
    for name, tensor in tensors.items():
        if name in ("mask_token", "masked_embed") and name not in target:
            continue  # stands for patches that are hidden in training
        # SwiGLU: gate and value in one matrix, under other names.
        new = name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        renamed[name if name in target else new] = tensor
    registers = renamed.pop("register_tokens", None)
    if registers is not None:
        renamed["reg_token"] = registers
    return _positions(renamed, target)


def _positions(tensors: dict[str, Any], target: Tensors) -> dict[str, Any]:
    """The class token's position added to it where the network keeps positions of patches only."""
    position, own = tensors.get("pos_embed"), target.get("pos_embed")
    if position is None or own is None or "cls_token" not in tensors:
        return tensors
    if position.ndim == own.ndim == 3 and position.shape[1] == own.shape[1] + 1:
        tensors["cls_token"] = tensors["cls_token"] + position[:, :1]
        tensors["pos_embed"] = position[:, 1:]
    return tensors
