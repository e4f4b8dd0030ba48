"""Barcodes: a bit for each rise or fall along a vector."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def barcodes(vectors: NDArray[Any]) -> NDArray[np.uint8]:
    """Signs of consecutive differences as packed bits: [n, d] → [n, ⌈(d − 1) / 8⌉] bytes.

    References
    ----------
    Tizhoosh et al., MinMax radon barcodes (2016).

    Examples
    --------
    >>> barcodes(np.array([[1.0, 3.0, 2.0, 2.0]])).tolist()  # up, down, level: 010
    [[64]]
    """
    return np.packbits(np.diff(vectors, axis=1) < 0, axis=1)
