"""Ways to make an encoder tell labels apart, from a probe to training all of it, on one budget.

An arm starts from a network (the encoder, its architecture with random weights, a small CNN) and trains
a part of it: a classifier of its vectors, low-rank changes of its weights (LoRA, Hu et al. 2022, arXiv
2106.09685), or everything. Every arm gets as many trials at the same random points of its ranges of
learning rate and weight decay; the trial with the best score on inner patients is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.encoders.operations import LEARNT_PASS
from pathfm_kedro.statistics.parameters import STRICT

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Count = Annotated[int, Field(ge=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


@plain_dataclass(frozen=True)
class Arm:
    """One way to adapt.

    Attributes
    ----------
    start
        ``encoder``, ``random`` (its architecture, weights drawn) or ``small_cnn``.
    trains
        ``head``: a classifier of frozen vectors; ``lora``: low-rank changes too; ``network``: all.
    hidden
        Whether the classifier has a hidden layer, as wide as a quarter of its input.
    rank
        Of LoRA; α is the rank, so that changes are not scaled.
    probe_first
        Whether the classifier is fitted to frozen vectors before all is trained (Kumar et al. 2022,
        arXiv 2202.10054).
    """

    start: Literal["encoder", "random", "small_cnn"]
    trains: Literal["head", "lora", "network"]
    hidden: bool = False
    rank: int = 0
    probe_first: bool = False

    @property
    def changes_encoder(self) -> bool:
        """Whether the encoder's own weights end up different."""
        return self.start == "encoder" and self.trains != "head"

    @property
    def passes_of_step(self) -> int:
        """Forward passes that a tile of a step counts as; LoRA needs no gradient of frozen weights."""
        return {"head": 0, "lora": 2, "network": LEARNT_PASS}[self.trains]


ARMS: Mapping[str, Arm] = {
    "linear": Arm("encoder", "head"),
    "mlp": Arm("encoder", "head", hidden=True),
    "lp_ft": Arm("encoder", "network", probe_first=True),
    "lora_16": Arm("encoder", "lora", rank=16),
    "lora_8": Arm("encoder", "lora", rank=8),
    "full": Arm("encoder", "network"),
    "scratch": Arm("random", "network"),
    "random_frozen": Arm("random", "head"),
    "small_cnn": Arm("small_cnn", "network"),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Search:
    """What every arm may spend, and where it may look.

    Attributes
    ----------
    trials
        Of each arm, the first in the middle of the ranges, the others at random points of them, the
        same for all arms, folds and seeds.
    epochs, head_epochs
        At most, of what trains a network and of what trains a classifier of frozen vectors.
    patience
        Epochs without a better score on inner patients after which a trial ends.
    batch
        Tiles of a step.
    learning_rates, head_learning_rates, weight_decays
        Ranges, log-uniform: of the network, of the classifier, and of both.
    """

    trials: Count
    epochs: Count
    head_epochs: Count
    patience: Count
    batch: Annotated[int, Field(ge=2)]
    learning_rates: Range
    head_learning_rates: Range
    weight_decays: Range

    def points(self, seed: int) -> Floats:
        """[trials, 2] points of the unit square: of the learning rates, and of the weight decay."""
        drawn = np.random.default_rng(seed).random((self.trials, 2))
        drawn[0] = 0.5
        return drawn


@plain_dataclass(frozen=True)
class Trial:
    """One trial and how it went.

    Attributes
    ----------
    rate, head_rate, decay
        Learning rates of network and classifier, and weight decay.
    score, accuracy
        Minus the cross-entropy of the inner patients' tiles, classes weighted equally, and their
        balanced accuracy; at the best epoch. None where the trial diverged.
    epochs
        That were run, 0 where the trial diverged.
    passes
        Forward passes of a tile that it took, a training step counted as three (two with LoRA, which
        needs no gradient of the frozen weights).
    """

    rate: float
    head_rate: float
    decay: float
    score: float | None = None
    accuracy: float | None = None
    epochs: int = 0
    passes: int = 0

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return self.score is None


def between(limits: Range, point: float) -> float:
    """The value at a point of a range, on a log scale.

    Examples
    --------
    >>> round(between((1e-4, 1e-2), 0.5), 6)
    0.001
    """
    low, high = np.log(limits)
    return float(np.exp(low + point * (high - low)))


@plain_dataclass(frozen=True, eq=False)
class Task:
    """Tiles with labels, and which of them do what.

    Attributes
    ----------
    pixels
        uint8 [n, s, s, 3].
    targets
        [n] classes; of the rows that train or select.
    train, inner
        Rows that train, and rows that tell which epoch and trial to keep; no patient is in both.
    n_labels
        Classes.
    """

    pixels: Pixels
    targets: Ints
    train: Ints
    inner: Ints
    n_labels: int
