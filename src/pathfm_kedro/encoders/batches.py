"""Rows in batches: shuffled and turned to be learnt from, in order to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.engine.threads import one_thread

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]

#: Rows of a pass where nothing is learnt.
_AT_ONCE = 64


def shuffled_batches(
    n: int, size: int, seed: int, epoch: int, least: int = 1
) -> Iterator[tuple[NDArray[np.int64], np.random.Generator]]:
    """Rows of each batch of an epoch, and the generator that its augmentation draws from.

    Parameters
    ----------
    n, size
        Rows in all, and of a batch.
    seed, epoch
        What the order comes from.
    least
        A last batch of fewer is left out, as where one row has no spread to normalise by.

    Examples
    --------
    >>> batches = [rows for rows, _ in shuffled_batches(5, 2, 0, 0)]
    >>> [len(rows) for rows in batches], sorted(int(row) for rows in batches for row in rows)
    ([2, 2, 1], [0, 1, 2, 3, 4])
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(n)
    for start in range(0, n - least + 1, size):
        yield order[start : start + size], rng


def turned(tiles: Pixels, rng: np.random.Generator) -> Pixels:
    """Each tile in one of its eight quarter turns and mirror images, which move pixels without loss.

    Parameters
    ----------
    tiles
        uint8 [n, s, s, 3].
    rng
        Of the choice.
    """
    choice = rng.integers(8, size=len(tiles))
    made = np.empty_like(tiles)
    for each in range(8):
        mine = choice == each
        view = np.rot90(tiles[mine], each % 4, axes=(1, 2))
        made[mine] = view[:, ::-1] if each >= 4 else view
    return made


def outputs(
    model: torch.nn.Module, inputs: Callable[[slice], torch.Tensor], n: int
) -> NDArray[np.float32]:
    """[n, d] of what a model gives in evaluation mode, on one thread and without gradients.

    Parameters
    ----------
    model
        On its device.
    inputs
        From rows to what the model takes, on its device.
    n
        Rows.
    """
    import torch

    model.eval()
    with one_thread(), torch.no_grad():
        parts = [
            model(inputs(slice(start, start + _AT_ONCE))).float().cpu().numpy()
            for start in range(0, n, _AT_ONCE)
        ]
    return np.concatenate(parts)
