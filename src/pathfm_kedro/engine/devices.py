"""Worker processes of this machine, one for each CUDA device."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import LocalCluster


def visible_devices() -> list[str]:
    """CUDA devices that PyTorch finds, as ``CUDA_VISIBLE_DEVICES`` names them.

    None where PyTorch was not loaded: before there is an encoder, as while slides are tiled, nothing
    runs on a GPU, and a process for each slide is the better use of the machine.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def one_worker_per_device(
    devices: Sequence[str], threads: int, options: dict[str, Any]
) -> LocalCluster:
    """A cluster whose workers each see one device, in turn where there are more workers.

    A process that sees several puts every network on the first.

    Parameters
    ----------
    devices
        From :func:`visible_devices`.
    threads
        Slides read at once in all; those of a worker take turns on its device.
    options
        Of :class:`distributed.LocalCluster`.
    """
    from distributed import LocalCluster

    class ClusterOfDevices(LocalCluster):
        def new_worker_spec(self) -> dict[int, Any]:
            named = super().new_worker_spec()
            return {
                name: _seeing(spec, devices[name % len(devices)]) for name, spec in named.items()
            }

    workers = options.get("n_workers") or len(devices)
    shared = {"threads_per_worker": max(1, threads // workers)} | options | {"n_workers": 0}
    cluster = ClusterOfDevices(**shared)
    cluster.scale(workers)
    cluster.wait_for_workers(workers)
    return cluster


def _seeing(spec: dict[str, Any], device: str) -> dict[str, Any]:
    """A worker's description, with one device in its environment."""
    options = spec["options"]
    environment = {**(options.get("env") or {}), "CUDA_VISIBLE_DEVICES": device}
    return {**spec, "options": {**options, "env": environment}}
