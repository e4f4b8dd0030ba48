"""Vectors of many batches: the next one is read and prepared while the network works on this one.

On a CPU this takes a core that no other slide is worked on by: two threads on one core cost more than
they give, measured as a twentieth of the processor's time of a small network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from pathfm_kedro.encoders.base import Encoder, Pixels, Vectors
from pathfm_kedro.engine.settings import available_cores

Item = TypeVar("Item")
_END: Any = object()


class _AtWork:
    """How many slides threads of this process embed at the moment."""

    def __init__(self) -> None:
        self._lock, self._n = threading.Lock(), 0

    @contextmanager
    def one_more(self) -> Iterator[int]:
        """How many they are with the one inside."""
        with self._lock:
            self._n += 1
            slides = self._n
        try:
            yield slides
        finally:
            with self._lock:
                self._n -= 1


_AT_WORK = _AtWork()


@runtime_checkable
class StagedEncoder(Protocol):
    """An encoder whose preprocessing can run ahead of its network."""

    def stage(self, tiles: Pixels) -> Any:
        """What the network needs of these tiles."""
        ...

    def forward(self, staged: Any) -> Vectors:
        """Vectors of what was staged."""
        ...


def embed_batches(encoder: Encoder, batches: Iterable[tuple[Pixels, Vectors | None]]) -> Vectors:
    """Vectors of all batches, one below the other.

    Parameters
    ----------
    encoder
        From :func:`~pathfm_kedro.encoders.load_encoder`.
    batches
        Tiles uint8 [n, s, s, 3] of at most ``encoder.batch_size``, and what was drawn on them or None;
        made one ahead, in a thread of its own, where a core is free for it.

    Returns
    -------
    ndarray
        float32 [sum of n, d].

    Examples
    --------
    >>> from pathfm_kedro.encoders.controls import StainStatistics
    >>> tile = np.full((1, 8, 8, 3), 128, np.uint8)
    >>> embed_batches(StainStatistics(), [(tile, None), (tile, None)]).shape
    (2, 12)
    """
    with _AT_WORK.one_more() as slides:
        free = slides < available_cores() or getattr(encoder, "device", "cpu") != "cpu"
        taken: Callable[[Iterable[Any]], Iterator[Any]] = one_ahead if free else iter
        if isinstance(encoder, StagedEncoder):
            staged = (encoder.stage(tiles) for tiles, _ in batches)
            return np.concatenate([encoder.forward(part) for part in taken(staged)])
        return np.concatenate([encoder.embed(tiles, truth) for tiles, truth in taken(batches)])


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in their order, each made while the one before is used.

    Libraries that decode, resize and multiply let other threads run meanwhile.

    Examples
    --------
    >>> list(one_ahead(i * i for i in range(4)))
    [0, 1, 4, 9]
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="one-ahead") as reader:
        coming = reader.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = reader.submit(next, source, _END)
            yield item
