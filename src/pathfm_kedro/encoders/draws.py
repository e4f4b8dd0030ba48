"""PyTorch's draws from a seed, where several fits run in one process.

All threads draw from one generator. What is built while another thread sets or restores it would begin
with other weights at every run; so all of these wait for each other. Layers that draw while they are
trained, such as dropout, are repeatable only where one fit runs at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """What is drawn inside comes from the seed, and draws outside go on as if nothing had been."""
    import torch

    with _LOCK, torch.random.fork_rng([]):
        torch.manual_seed(seed)
        yield


@contextmanager
def kept_apart(devices: Sequence[int]) -> Iterator[None]:
    """Draws outside go on as if nothing had been; others may draw meanwhile.

    Parameters
    ----------
    devices
        GPUs whose draws are restored too.
    """
    import torch

    fork = torch.random.fork_rng(devices)
    with _LOCK:
        fork.__enter__()
    try:
        yield
    finally:
        with _LOCK:
            fork.__exit__(None, None, None)


def set_seed(seed: int, devices: Sequence[int] = ()) -> None:
    """Draw from a seed from now on, inside of :func:`kept_apart`.

    Parameters
    ----------
    seed
        Of the draws.
    devices
        GPUs that draw from it too.
    """
    import torch

    with _LOCK:
        # Of every device only where there is one: each call notes the stack for devices to come, which
        # takes as long as an epoch of a small model.
        (torch if devices else torch.default_generator).manual_seed(seed)
