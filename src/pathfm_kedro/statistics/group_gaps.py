r"""Largest gap of a figure between subgroups of patients, with its interval and its null.

With F_g the figure over the patients of subgroup g, ``gap = max_g F_g − min_g F_g``. Patients are
resampled for the interval (:func:`~pathfm_kedro.statistics.resampled_figure.range_interval`). A gap is
never below 0, so chance alone makes one: its null is the gap with subgroups permuted over patients,
within those of the same label and center, so that what centers and labels differ in is in the null too.
With several columns of subgroups, p-values and intervals allow for their number (Bonferroni).

Pitfalls
--------
- Where a subgroup stands at one center alone, no permutation changes anything and nothing is found:
  :func:`counterparts` says how many patients a comparison rests on.
- A gap between few patients is large by chance; its null says how large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.cross_validation import balanced_accuracy
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.pair_bootstrap import pair_variance, resampled_total
from pathfm_kedro.statistics.permutation import permuted_within
from pathfm_kedro.statistics.resampled_figure import (
    Bounds,
    ResampledFigure,
    range_interval,
    widened,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class PatientFigure(Protocol):
    """A figure that can be read of some of the patients."""

    @property
    def n(self) -> Ints:
        """[P] what each patient brings: tiles or slides."""
        ...

    def of(self, members: Flags) -> Floats:
        """[…] the figure of each set of patients, [… , P]; NaN where a set has none."""
        ...

    def resampled(self, members: Flags, weights: Floats) -> Floats:
        """[draws] the figure of a set [P] in resampled cohorts, spread as its interval is wide."""
        ...


@dataclass(frozen=True)
class PairShare:
    """Σ numerator / Σ denominator over pairs of patients whose first is a member.

    Attributes
    ----------
    numerator, denominator
        [P, P] counts by the patient that asks and the one met, dense or sparse.
    n
        [P] queries.
    """

    numerator: Any
    denominator: Any
    n: Ints

    def of(self, members: Flags) -> Floats:
        """[…] the share of each set of patients, [… , P]."""
        above, below = (
            members @ np.asarray(counts.sum(axis=1)).ravel()
            for counts in (self.numerator, self.denominator)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(above / below)

    def resampled(self, members: Flags, weights: Floats) -> Floats:
        """[draws] with patients resampled as members and as those met."""
        asked = [
            counts * members[:, None] if isinstance(counts, np.ndarray) else _rows(counts, members)
            for counts in (self.numerator, self.denominator)
        ]
        above, below = (resampled_total(counts, weights) for counts in asked)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = np.asarray(above / below)
        spread = float(np.var(draws[np.isfinite(draws)])) if np.isfinite(draws).any() else 0.0
        effect = pair_variance(*asked) / spread if spread > 0 else 1.0
        return widened(float(self.of(members)), draws, effect)


def _rows(counts: Any, members: Flags) -> Any:
    from scipy.sparse import diags_array

    return diags_array(members.astype(np.float64)) @ counts


@dataclass(frozen=True)
class MeanRecall:
    """Balanced accuracy: the mean over labels of the share of correctly classified.

    Attributes
    ----------
    correct, tested
        [P, labels] counts.
    effect
        Variance of the figure over that of the bootstrap.
    """

    correct: Floats
    tested: Floats
    effect: float = 1.0

    @property
    def n(self) -> Ints:
        """[P] tested."""
        return np.asarray(self.tested.sum(axis=1).astype(np.int64))

    def of(self, members: Flags) -> Floats:
        """[…] balanced accuracy of each set of patients, [… , P]; NaN where a label is missing."""
        tested = members @ self.tested
        accuracy = balanced_accuracy(members @ self.correct, tested)
        return np.where((tested > 0).all(axis=-1), accuracy, np.nan)

    def resampled(self, members: Flags, weights: Floats) -> Floats:
        """[draws] with members resampled; labels that a draw lacks are left out of its mean."""
        own = weights * members
        draws = balanced_accuracy(own @ self.correct, own @ self.tested)
        return widened(float(self.of(members)), draws, self.effect)

    def with_labels(self, kept: Flags) -> MeanRecall:
        """The same over some of the labels."""
        return MeanRecall(self.correct[:, kept], self.tested[:, kept], self.effect)

    def shared_labels(self, members: Flags, least: int) -> Flags:
        """[labels] which of them `least` patients of every set [sets, P] have."""
        return np.asarray((members.astype(np.int64) @ (self.tested > 0) >= least).all(axis=0))


def permuted_groups(group: Ints, strata: Ints, n_permutations: int, seed: int) -> Ints:
    """[permutations, P] subgroups exchanged among patients of a stratum.

    Parameters
    ----------
    group
        [P] code of each patient's subgroup.
    strata
        [P] code of its label and center.
    n_permutations, seed
        Of the permutations.

    Examples
    --------
    >>> permuted_groups(np.array([0, 1, 1]), np.array([0, 0, 1]), 2, seed=1)[:, 2].tolist()
    [1, 1]
    """
    return np.ascontiguousarray(permuted_within(group, strata, n_permutations, seed).T)


def counterparts(group: Ints, strata: Ints) -> Flags:
    """[P] who shares a stratum with a patient of another subgroup.

    Examples
    --------
    >>> counterparts(np.array([0, 1, 1]), np.array([0, 0, 1])).tolist()
    [True, True, False]
    """
    pairs = np.unique(np.stack([strata, group]), axis=1)[0]
    several, sizes = np.unique(pairs, return_counts=True)
    return np.isin(strata, several[sizes > 1])


@dataclass(frozen=True)
class GroupGap:
    """A figure of each subgroup, and the largest gap between two of them.

    Attributes
    ----------
    figure
        What is read of each subgroup.
    group
        [P] code 0 … G − 1 of each patient's subgroup; −1 for patients of none, who are met by others
        and do not ask.
    permuted
        [permutations, P] the same, permuted.
    weights
        [draws, P] of the bootstrap.
    """

    figure: PatientFigure
    group: Ints
    permuted: Ints
    weights: Floats

    @cached_property
    def figures(self) -> tuple[ResampledFigure, ...]:
        """Of each subgroup."""
        permuted = self._permuted
        return tuple(
            ResampledFigure(
                float(self.figure.of(members)),
                self.figure.resampled(members, self.weights),
                permuted[:, code],
                float(members.sum()),
            )
            for code, members in enumerate(self.members)
        )

    @property
    def members(self) -> Flags:
        """[G, P] who belongs to each subgroup."""
        return np.asarray(self.group == np.arange(int(self.group.max(initial=-1)) + 1)[:, None])

    @cached_property
    def _permuted(self) -> Floats:
        """[permutations, G] the figure of each subgroup with subgroups permuted."""
        codes = np.arange(len(self.members))
        found = [self.figure.of(self.permuted == code) for code in codes]
        return np.stack(found, axis=1) if found else np.zeros((len(self.permuted), 0))

    @property
    def value(self) -> float:
        """The largest gap."""
        values = [figure.value for figure in self.figures]
        return max(values) - min(values)

    @property
    def is_exchangeable(self) -> bool:
        """Whether any patient could be of another subgroup: else there is no null."""
        return bool((self.permuted != self.group).any())

    @property
    def permuted_gaps(self) -> Floats:
        """[permutations] the largest gap with subgroups permuted."""
        gaps = np.ptp(self._permuted, axis=1)
        return np.asarray(gaps[np.isfinite(gaps)])

    def estimate_of(self, code: int) -> Estimate:
        """The figure of one subgroup."""
        figure, members = self.figures[code], self.members[code]
        low, high = figure.sampling_interval()
        if low is not None and high is not None:
            low, high = max(low, 0.0), min(high, 1.0)
        n = int(self.figure.n[members].sum())
        return Estimate(figure.value, low, high, n, int(members.sum()), figure.draws)

    def interval(self, columns: int = 1) -> Bounds:
        """95% interval of the largest gap, for all columns of subgroups together."""
        return range_interval(self.figures, columns)

    def p_value(self, columns: int = 1) -> float:
        """Of "subgroups do not differ", allowing for the number of columns.

        The cohort itself is one of the permutations.
        """
        gaps = self.permuted_gaps
        reached = int((gaps >= self.value - 1e-12).sum())
        return min(1.0, columns * (1 + reached) / (1 + len(gaps)))

    def named(self, names: Sequence[str]) -> str:
        """Which subgroups the gap lies between."""
        values = [figure.value for figure in self.figures]
        if max(values) == min(values):
            return "no gap"
        return f"{names[int(np.argmax(values))]} above {names[int(np.argmin(values))]}"
