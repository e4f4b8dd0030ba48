"""Pixels that several steps need, kept in the memory of a process within a bound.

Encoders take turns on the same tiles: what one of them read and changed the next finds here. Only what
a whole step needs is kept, where all of it fits: of more, the beginning would be gone before the next
encoder comes to it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from numpy.typing import NDArray

Kept = TypeVar("Kept", bound=tuple[NDArray[Any] | None, ...])

#: Room for 1,700 tiles of 224 px, or 77 of them in 22 stains: an audit of quick size. It is a fraction
#: of what a worker takes with a network.
MOST_BYTES = 256 << 20


class KeptPixels:
    """Arrays by key; those that were not asked for longest go first.

    Attributes
    ----------
    most_bytes
        No more is kept.

    Examples
    --------
    >>> import numpy as np
    >>> kept, made = KeptPixels(100), []
    >>> def make():
    ...     made.append(1)
    ...     return (np.zeros(60, np.uint8),)
    >>> kept.get("a", make)[0].shape, kept.get("a", make)[0].shape, len(made)
    ((60,), (60,), 1)
    >>> kept.get("b", make)[0].shape, kept.get("a", make)[0].shape, len(made)
    ((60,), (60,), 3)
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._found: OrderedDict[Hashable, tuple[NDArray[Any] | None, ...]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def fits(self, n_bytes: int) -> bool:
        """Whether so much would be there still when it is asked for again."""
        return n_bytes <= self.most_bytes

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """Arrays of a key, read-only; made where they are not there."""
        with self._lock:
            found: Any = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
                return found  # type: ignore[no-any-return]
        # Outside the lock: nobody waits, and two threads that want the same at once both make it.
        made = make()
        for array in made:
            if array is not None:
                array.setflags(write=False)
        with self._lock:
            if key not in self._found:
                self._found[key] = made
                self._bytes += _size(made)
            while self._bytes > self.most_bytes:
                _, oldest = self._found.popitem(last=False)
                self._bytes -= _size(oldest)
        return made

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._found.clear()
            self._bytes = 0


def _size(arrays: tuple[NDArray[Any] | None, ...]) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


#: Of this process.
KEPT = KeptPixels()
