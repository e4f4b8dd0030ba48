"""An encoder that a change which nobody sees moves by a known dose: it calibrates attacks in pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pathfm_kedro.encoders.base import Pixels, Vectors

if TYPE_CHECKING:
    import torch

#: Raised with any change of what is computed.
_REVISION = "1"
#: Side at which pixels are looked at, and of the squares that a pattern consists of.
_SIDE, _SQUARE = 112, 2
#: What one grey level along a pattern adds at dose 1; the truth has a spread of 1 over tissues.
_REACH = 3.0
#: Numbers of a truth vector, and how many of them, the first, are quantities that differ in any cohort:
#: what is the same on all tiles would be stretched by a probe that standardises.
_NUMBERS, _QUANTITIES = 15, 9


@dataclass(frozen=True)
class PatternReader:
    """The truth, to which patterns of single pixels add: ``f_j = truth_j + 3 dose mean_i(P_ji x_i)``.

    j are the drawn quantities, ``P_j`` is a pattern of ±1, ``x`` are grey levels. Tissue and random
    noise hold next to nothing of it. An attack of ε grey levels moves each number by 3 dose ε at most:
    at dose 0 nothing turns the answer, at dose 1 two grey levels do.

    Attributes
    ----------
    dose
        0 to 1.

    Examples
    --------
    >>> tile, truth = np.full((1, 112, 112, 3), 128, np.uint8), np.zeros((1, 15), np.float32)
    >>> float(np.abs(PatternReader().embed(tile, truth)).max()) < 1e-3
    True
    """

    dose: float = 1.0
    batch_size: int = 8
    pooling: str = "default"
    adds_truth: bool = True

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """Grey levels as they are, at a side of 112."""
        one = (1 / 255,) * 3
        return {"input_pixels": _SIDE, "mean": (0.0,) * 3, "std": one, "dose": self.dose}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the control's name, dose and revision."""
        return hashlib.sha256(f"pattern_reader:{self.dose}:{_REVISION}".encode()).hexdigest()

    @cached_property
    def model(self) -> torch.nn.Module:
        """The patterns as a linear layer, 112 × 112 grey levels to 15 numbers."""
        import torch

        n = _SIDE // _SQUARE
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (_NUMBERS, 3, n, n))
        # Each square has two pixels of either sign: what is smooth cancels.
        patterns = np.kron(signs, np.array([[1.0, -1.0], [-1.0, 1.0]]))
        layer = torch.nn.Linear(3 * _SIDE**2, _NUMBERS, bias=False)
        weight = self.dose * _REACH * patterns.reshape(_NUMBERS, -1) / patterns[0].size
        weight[_QUANTITIES:] = 0
        layer.weight.data = torch.tensor(weight, dtype=torch.float32)
        return torch.nn.Sequential(torch.nn.Flatten(), layer).eval().requires_grad_(False)

    def embed(self, tiles: Pixels, truth: Vectors | None = None) -> Vectors:
        """[n, 15] float32.

        Raises
        ------
        ValueError
            If the slide is not a phantom.
        """
        import torch

        from pathfm_kedro.encoders.attacks import to_images
        from pathfm_kedro.encoders.gradients import differentiable

        if truth is None:
            raise ValueError("the reader of patterns needs slides drawn by the phantom")
        gradients = differentiable(self)
        assert gradients is not None
        with torch.no_grad():
            read: Vectors = gradients.embed(to_images(np.asarray(tiles))).numpy()
        return read + np.asarray(truth, np.float32)
