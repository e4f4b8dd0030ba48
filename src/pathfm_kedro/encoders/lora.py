"""Low-rank changes of a network's weights (LoRA, Hu et al. 2022, arXiv 2106.09685), by peft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathfm_kedro.encoders.draws import drawn_from

if TYPE_CHECKING:
    import torch

#: Name of what peft adds to a network.
_ADAPTER = "arm"


def lora_targets(model: torch.nn.Module) -> list[str]:
    """Modules that LoRA changes: all linear layers, or where there is none all convolutions.

    A convolution of separate groups (depthwise) is left as it is: its weights have no low rank to
    speak of.

    Examples
    --------
    >>> import torch
    >>> lora_targets(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(4, 2)))
    ['1']
    """
    from torch import nn

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear or [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    ]


def add_lora(model: torch.nn.Module, rank: int, seed: int) -> None:
    """Add low-rank changes to a network in place; nothing else of it can be trained then.

    Raises
    ------
    ValueError
        If peft is not installed, or the network has no layer that LoRA changes.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            'LoRA needs peft: pip install "pathfm-kedro[adaptation]", or leave lora_16 and lora_8 out '
            "of adaptation.arms"
        ) from error
    targets = lora_targets(model)
    if not targets:
        raise ValueError("the network has no linear layer and no convolution: leave LoRA out")
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets)
    with drawn_from(seed):
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)


def merge_lora(model: torch.nn.Module) -> None:
    """Add the low-rank changes to the weights that they change, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in list(model.modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
