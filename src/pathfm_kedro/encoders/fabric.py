"""Where networks are fitted, and in which precision: Lightning Fabric, set up once for each device."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Literal

from pathfm_kedro.encoders.runtimes import has_bfloat16, place
from pathfm_kedro.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def training_device(network: EncoderSpec | str) -> str:
    """``cpu`` or ``cuda``: as a network's entry says, a GPU where there is one if it says nothing.

    Parameters
    ----------
    network
        An entry, or the name of one of :func:`~pathfm_kedro.encoders.architectures.rival`.

    Examples
    --------
    >>> training_device(EncoderSpec("uni", "timm:resnet18", device="cpu"))
    'cpu'
    """
    if isinstance(network, str):
        network = EncoderSpec(network, f"trained:{network}")
    # What trains is PyTorch, whatever runs the network otherwise.
    return place(replace(network, runtime="channels_last"))[1]


def training_precision(device: str) -> Literal["32-true", "bf16-mixed"]:
    """Of Fabric: weights float32 always, operations in bfloat16 on a GPU that has it.

    Examples
    --------
    >>> training_precision("cpu")
    '32-true'
    """
    return "bf16-mixed" if has_bfloat16(device) else "32-true"


@cache
def fabric_on(device: str) -> Fabric:
    """Fabric on one CPU or one GPU.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    # Left to itself Fabric refuses to begin in a job of SLURM with several tasks.
    return Fabric(
        accelerator=device,
        devices=1,
        precision=training_precision(device),
        plugins=LightningEnvironment(),
    )


def fitted_on(network: EncoderSpec | str) -> dict[str, str]:
    """What the header of a fit says of device and precision; nothing on a CPU.

    Parameters
    ----------
    network
        As of :func:`training_device`.

    Examples
    --------
    >>> fitted_on(EncoderSpec("uni", "timm:resnet18", device="cpu"))
    {}
    """
    device = training_device(network)
    return {} if device == "cpu" else {"fitted_on": f"{device}, {training_precision(device)}"}
