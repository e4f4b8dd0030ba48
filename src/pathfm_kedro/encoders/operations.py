"""Floating-point operations of one tile, counted by PyTorch while it computes.

A multiplication and an addition are two: ``2 · in · out`` for a linear layer, ``2 · in · out · k² · h
· w`` for a convolution. Many papers print multiply-adds, half of it: ViT-S/16's published 4.6 G are
9.2 G here. Matrix products and convolutions are counted; normalisation and activations, some percent,
are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathfm_kedro.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import torch

#: Passes of the network for one tile, where a mitigation takes more than one.
_PASSES = {"rotation_average": 4}
#: A forward pass that is learnt from: itself, and back at twice the cost.
LEARNT_PASS = 3
#: Forward passes of a tile in an epoch of a pretext task; of the others one, which is learnt from.
_PASSES_OF_TASK = {"simclr": 2 * LEARNT_PASS, "dino": 4 * LEARNT_PASS + 2, "random": 0}


def passes_of_task(task: str) -> int:
    """Forward passes of one tile in one epoch of pretraining, one that is learnt from as three.

    Examples
    --------
    >>> passes_of_task("supervised"), passes_of_task("dino")  # four views learn, two teach
    (3, 14)
    """
    return _PASSES_OF_TASK.get(task, LEARNT_PASS)


def count_operations(model: torch.nn.Module, batch: torch.Tensor) -> int:
    """Floating-point operations of one forward pass.

    Attention is computed by plain products meanwhile: the fused kernels of a CPU are counted as
    nothing.

    Examples
    --------
    >>> import torch
    >>> count_operations(torch.nn.Linear(3, 5), torch.zeros(1, 3))
    30
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(batch)
    return int(counter.get_total_flops())


def operations_per_tile(spec: EncoderSpec) -> int:
    """Floating-point operations of a network on one tile, whatever runs it.

    Raises
    ------
    ValueError
        If the model or its weights cannot be had, or PyTorch does not run it.
    """
    import torch

    from pathfm_kedro.encoders.torch_encoder import give_back, take_network

    network = take_network(spec)
    try:
        if not getattr(network.model, "differentiable", True):
            raise ValueError("PyTorch counts them, and onnxruntime runs this file")
        batch = torch.zeros(1, 3, network.side, network.side)
        counted = count_operations(network.model.to("cpu").float(), batch)
    finally:
        give_back(spec, network)
    return counted * _PASSES.get(spec.mitigation or "", 1)
