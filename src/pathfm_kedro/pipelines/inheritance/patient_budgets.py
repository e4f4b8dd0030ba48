"""Budgets of labelled patients: who is sampled, and what models of each budget say of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import patient_codes
from pathfm_kedro.statistics.cross_validation import widened_interval
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.votes import macro_f1

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def refuse_less_than_a_patient(
    patients: NDArray[Any], labels: NDArray[Any], budget: float, experiment: str
) -> None:
    """Refuse a budget that is less than one patient of a label.

    Raises
    ------
    Undefined
        Naming the label, its patients and the budget.

    Examples
    --------
    >>> refuse_less_than_a_patient(np.arange(9), np.repeat("x", 9), 0.1, "label_budget")
    Traceback (most recent call last):
    ...
    pathfm_kedro.statistics.figures.Undefined: 10% of the 9 patient(s) of x that can train is less ...
    """
    for label in np.unique(labels):
        n = len(np.unique(patients[labels == label]))
        if budget * n < 1 - 1e-9:
            raise Undefined(
                f"{budget:.0%} of the {n} patient(s) of {label} that can train is less than one: add "
                f"patients, or leave the budget out of {experiment}.budgets"
            )


def sampled_patients(
    patients: Ints, targets: Ints, budget: float, seed: np.random.SeedSequence
) -> Ints:
    """A share of each label's patients, at least one; those of a smaller share are among them.

    Parameters
    ----------
    patients, targets
        [n] codes; a patient of several labels is sampled with each.
    budget
        Share, 0 … 1.
    seed
        Of the order in which patients are taken.

    Examples
    --------
    >>> patients = np.arange(20)
    >>> chosen = sampled_patients(patients, patients % 2, 0.25, np.random.SeedSequence(0))
    >>> len(chosen), int((chosen % 2).sum())
    (6, 3)
    """
    generator = np.random.default_rng(seed)
    taken = []
    for target in np.unique(targets):
        own = generator.permutation(np.unique(patients[targets == target]))
        taken.append(own[: max(1, int(budget * len(own) + 0.5))])
    return np.unique(np.concatenate(taken))


def counted(
    logits: NDArray[np.floating[Any]],
    targets: Ints,
    tags: pl.DataFrame,
    more: Mapping[str, NDArray[Any]] | None = None,
) -> pl.DataFrame:
    """What one model says of its tested tiles, one row per patient and label.

    Parameters
    ----------
    logits
        [n, classes].
    targets
        [n] codes.
    tags
        ``patient_id`` of each tile.
    more
        Further columns [n, m], summed as lists.

    Returns
    -------
    DataFrame
        patient_id, target, n_tiles, n_correct, n_predicted (by class) and `more`.

    Examples
    --------
    >>> logits, tags = np.array([[1.0, 0.0], [1.0, 0.0]]), pl.DataFrame({"patient_id": ["p", "p"]})
    >>> counted(logits, np.array([0, 1]), tags)["n_predicted"].to_list()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    n_classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    lists = {"n_predicted": predicted[:, None] == np.arange(n_classes), **(more or {})}
    columns = {"n_tiles": np.ones(len(targets)), "n_correct": predicted == targets}
    columns |= {f"{name}_{k}": of[:, k] for name, of in lists.items() for k in range(of.shape[1])}
    frame = tags.select("patient_id").with_columns(
        target=pl.Series(targets),
        **{name: pl.Series(values, dtype=pl.Float64()) for name, values in columns.items()},
    )
    grouped = frame.group_by("patient_id", "target").agg(pl.all().sum())
    return grouped.sort("patient_id", "target").with_columns(
        pl.concat_list([f"{name}_{k}" for k in range(of.shape[1])]).alias(name)
        for name, of in lists.items()
    )


@dataclass(frozen=True, eq=False)
class ResampledSums:
    """Sums over tested patients [1 + draws, repeats, …]: of the patients themselves, then resampled.

    Attributes
    ----------
    of
        Their rows, with the number of the ``repeat``.
    """

    of: PatientStatistics

    @classmethod
    def read(cls, rows: PatientStatistics) -> ResampledSums:
        """Sums of one budget.

        Raises
        ------
        Undefined
            If nothing is tested, with the reason; or one patient is.
        """
        own = rows.where(pl.col("problem").is_null()).mean_over("repeat")
        problems = rows.table["problem"].drop_nulls()
        if own.table.is_empty():
            reason = str(problems[0]) if len(problems) else "no tile is tested: embed more slides"
            raise Undefined(reason, 0, 0)
        if own.n_patients < 2:
            raise Undefined("tiles of one patient are tested: an interval needs two; add patients")
        return cls(own)

    @cached_property
    def correct(self) -> Floats:
        """Correctly classified tiles by label."""
        return self._by_label("n_correct")

    @cached_property
    def tested(self) -> Floats:
        """Tiles by label."""
        return self._by_label("n_tiles")

    @cached_property
    def predicted(self) -> Floats:
        """Tiles by predicted label."""
        return self.lists("n_predicted")

    def lists(self, column: str) -> Floats:
        """Sums of a column of lists."""
        values = np.array(self.of.table[column].to_list())
        return self._summed(values, size=values.shape[1])

    @cached_property
    def macro_f1(self) -> Floats:
        """[1 + draws] mean over repeats of macro-F1."""
        counts = np.stack([self.correct, self.tested, self.predicted], axis=-2)
        return np.asarray(np.nanmean(macro_f1(counts), axis=1))

    def estimate(self, values: Floats, limits: tuple[float, float] = (0.0, 1.0)) -> Estimate:
        """A figure [1 + draws] of these patients, its interval widened for cross-validation."""
        clipped = np.clip(values, *limits)  # rounding may pass a limit
        interval = widened_interval(float(clipped[0]), clipped[1:], limits)
        return Estimate(float(clipped[0]), *interval, self.of.n, self.of.n_patients, clipped[1:])

    @property
    def training_patients(self) -> float:
        """How many train on average."""
        return float(self.of.table["n_training_patients"].mean())  # type: ignore[arg-type]

    def _by_label(self, column: str) -> Floats:
        table = self.of.table
        size = len(table["n_predicted"][0])
        return self._summed(table[column].to_numpy(), table["target"].to_numpy(), size=size)

    def _summed(self, values: NDArray[Any], *codes: Ints, size: int) -> Floats:
        table = self.of.table
        patients, n_patients = patient_codes(table["patient_id"].to_numpy())
        repeats = table["repeat"].to_numpy()
        out = np.zeros((n_patients, int(repeats.max()) + 1, size))
        np.add.at(out, (patients, repeats, *codes), values)
        weights = np.vstack([np.ones(n_patients), self.of.weights])
        return np.tensordot(weights, out, axes=1)
