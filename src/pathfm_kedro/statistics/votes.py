"""Leave-patient-out votes: a query is classified by its nearest matches of other patients.

Everything reduces to three counts per label (correct, true, predicted), summed per patient; macro-F1,
accuracy, the bootstrap over patients and the permutations work on those.

A patient is counted as a query and votes as a neighbour: two patients who find each other are right or
wrong together, which resampling queries alone misses. Under permuted labels the true variance is known,
so the *design effect*

    Var over permutations of macro-F1 / mean over permutations of Σ_patients (influence)²

measures it for this very graph of neighbours, and the bootstrap's spread is widened by its square root.
In simulations of 60 to 100 patients, with and without signal, the plain percentile interval covered the
expected macro-F1 in 75 to 90% of cohorts, the widened one in about 88 to 97%.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import sum_by_patient
from pathfm_kedro.statistics.permutation import permuted_within
from pathfm_kedro.statistics.resampled_figure import ResampledFigure, widened

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Code of a label that is not there: a query that is not counted, or one that found nothing.
_NONE = -1
#: Entries of one batch of permuted votes.
_BATCH_ENTRIES = 1 << 22


@dataclass(frozen=True)
class LabelledQueries:
    """Queries with their labels, and where they search.

    Attributes
    ----------
    patient, label
        [n] codes.
    pool
        [n] code of the part of the cohort that a query searches; 0 for all.
    n_patients, n_labels
        Of the cohort, with or without queries.
    """

    patient: Ints
    label: Ints
    pool: Ints
    n_patients: int
    n_labels: int

    @property
    def support(self) -> Ints:
        """[n_pools, n_labels] patients that carry a label in a pool."""
        triples = np.unique(np.column_stack([self.pool, self.label, self.patient]), axis=0)
        support = np.zeros((int(self.pool.max()) + 1, self.n_labels), np.int64)
        np.add.at(support, (triples[:, 0], triples[:, 1]), 1)
        return support

    def permuted(self, n_permutations: int, seed: int) -> Ints:
        """Labels permuted among the patients of each pool.

        Under the null a label could be anybody's whom the search could have found. Permuted within
        organs while the search runs across them, an organ of one or two labels would keep nearly all
        of its votes, and an encoder that finds them would look as if it knew nothing.

        What moves is a patient's label in a pool, carried by all its queries there; a patient with
        several labels in a pool holds as many.

        Returns
        -------
        ndarray
            [n_permutations, n] label codes.
        """
        triples = np.column_stack([self.pool, self.patient, self.label])
        units, unit = np.unique(triples, axis=0, return_inverse=True)
        labels = permuted_within(units[:, 2], units[:, 0], n_permutations, seed)
        return cast(Ints, np.ascontiguousarray(labels[unit.reshape(-1)].T))


@dataclass(frozen=True)
class PatientVotes:
    """Counts of the votes, under the true labels per patient and under permuted ones.

    Attributes
    ----------
    matches
        [n, k] that voted.
    counts
        [n_patients, 3, n_labels] from :func:`label_counts`.
    permuted
        [n_permutations, 3, n_labels].
    influence
        [n_permutations, n_patients] first-order effect of each patient on macro-F1.
    weights
        [draws, n_patients] of the bootstrap.
    """

    matches: Ints
    counts: Floats
    permuted: Floats
    influence: Floats
    weights: Floats

    @property
    def n(self) -> int:
        """Queries that are counted."""
        return int(self.counts[:, 1].sum())

    @property
    def n_patients(self) -> int:
        """Patients of these."""
        return int((self.counts[:, 1].sum(axis=1) > 0).sum())

    @property
    def n_by_label(self) -> Ints:
        """[n_labels] queries of each label."""
        return cast(Ints, self.counts[:, 1].sum(axis=0).astype(np.int64))

    @property
    def n_patients_by_label(self) -> Ints:
        """[n_labels] patients of each label."""
        return cast(Ints, (self.counts[:, 1] > 0).sum(axis=0))

    @cached_property
    def design_effect(self) -> float:
        """How much more macro-F1 varies than patients taken as independent say."""
        return design_effect(macro_f1(self.permuted), self.influence)

    @cached_property
    def resampled(self) -> Floats:
        """[draws, 3, n_labels] counts of resampled patients."""
        return cast(Floats, np.tensordot(self.weights, self.counts, axes=1))

    @cached_property
    def macro_f1(self) -> ResampledFigure:
        """Mean of F1 over labels."""
        present = self.n_patients_by_label[self.n_patients_by_label > 0]
        # Patients in all that would estimate a mean over labels as well, were they spread evenly.
        alike = float(len(present) ** 2 / (1 / present).sum()) if len(present) else 0.0
        return self.figure(macro_f1, alike)

    @cached_property
    def never_found(self) -> ResampledFigure:
        """Share of labels whose F1 is 0."""
        return self.figure(never_found, int((self.n_by_label > 0).sum()))

    @cached_property
    def accuracy(self) -> ResampledFigure:
        """Share of correctly classified queries."""
        return self.figure(accuracy, self.n_patients)

    def f1(self, label: int) -> ResampledFigure:
        """F1 of one label."""
        of_label = int(self.n_patients_by_label[label])
        return self.figure(lambda counts: f1_by_label(counts[..., [label]])[..., 0], of_label)

    def figure(self, of: Callable[[Floats], Floats], n_patients: float) -> ResampledFigure:
        """A figure of the counts [..., 3, n_labels], resting on so many patients."""
        value = float(of(self.counts.sum(axis=0)))
        draws = widened(value, of(self.resampled), self.design_effect)
        return ResampledFigure(value, draws, of(self.permuted), n_patients)


def patient_votes(
    queries: LabelledQueries,
    matches: Ints,
    searchable: Bools,
    permuted: Ints,
    weights: Floats,
    keep: Bools | None = None,
) -> PatientVotes:
    """Let each query's matches vote.

    Parameters
    ----------
    queries
        All queries; their labels vote.
    matches
        [n, k] row of each match that votes, nearest first; −1 where fewer were found.
    searchable
        [n_pools, n_labels] which labels count in which pool. The others stay as wrong votes.
    permuted
        [n_permutations, n] from :meth:`LabelledQueries.permuted`.
    weights
        [draws, n_patients] from ``bootstrap_weights``.
    keep
        [n] queries that are counted; all if not given. The others still vote.
    """
    rows = np.arange(len(queries.label)) if keep is None else np.flatnonzero(keep)
    patient, n_labels = queries.patient[rows], queries.n_labels
    shape = (queries.n_patients, n_labels)
    truth, predicted = _predicted(queries, matches, rows, searchable, queries.label[None])
    counts = label_counts(truth[0], predicted[0], patient, shape)
    truth, predicted = _predicted(queries, matches, rows, searchable, permuted)
    permutation = np.broadcast_to(np.arange(len(permuted))[:, None], truth.shape)
    null = label_counts(truth, predicted, permutation, (len(permuted), n_labels))
    influence = sum_by_patient(macro_f1_influence(null, truth, predicted).T, patient, shape[0])
    return PatientVotes(matches, counts, null, influence.T, weights)


def _predicted(
    queries: LabelledQueries, matches: Ints, rows: Ints, searchable: Bools, labels: Ints
) -> tuple[Ints, Ints]:
    """Truth (−1: not counted) and vote of the given queries under each row of labels."""
    found = matches[rows]
    truth = labels[:, rows]
    truth = np.where(searchable[queries.pool[rows], truth], truth, _NONE)
    predicted = np.empty_like(truth)
    step = max(1, _BATCH_ENTRIES // max(1, found.size * found.shape[1]))
    for start in range(0, len(labels), step):
        batch = slice(start, start + step)
        predicted[batch] = majority_vote(np.where(found >= 0, labels[batch][:, found], _NONE))
    return truth, predicted


def design_effect(permuted: Floats, influence: Floats) -> float:
    """Variance of a figure under permuted labels over that of independent patients; at least 1.

    Parameters
    ----------
    permuted
        [n_permutations] the figure.
    influence
        [n_permutations, n_patients] first-order effect of each patient on it.

    Examples
    --------
    >>> design_effect(np.array([0.0, 0.4]), np.full((2, 4), 0.1)).__round__(6)
    2.0
    """
    independent = float((influence**2).sum(axis=1).mean())
    if len(permuted) < 2 or not independent > 0:
        return 1.0
    return max(1.0, float(np.nanvar(permuted, ddof=1)) / independent)


def macro_f1_influence(counts: Floats, truth: Ints, predicted: Ints) -> Floats:
    """First-order change of macro-F1 by each query: [n_permutations, n].

    For F = 2 r / D, one more query adds (2 dr − F dD) / D to the F1 of its own label and of the
    predicted one.

    Parameters
    ----------
    counts
        [n_permutations, 3, n_labels] of these queries.
    truth, predicted
        [n_permutations, n] codes; −1: not counted, and nothing found.
    """
    scores = np.nan_to_num(f1_by_label(counts))
    true = counts[:, 1] > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        share = 1 / (counts[:, 1] + counts[:, 2]) / true.sum(axis=1, keepdims=True)
    share = np.where(true, share, 0.0)
    rows = np.arange(len(truth))[:, None]
    own = (2.0 * (truth == predicted) - scores[rows, truth]) * share[rows, truth]
    voted = np.where(predicted >= 0, scores[rows, predicted] * share[rows, predicted], 0.0)
    return cast(Floats, np.where(truth >= 0, own - voted, 0.0))


def majority_vote(labels: Ints) -> Ints:
    """Most frequent label of each row; among equally frequent ones the nearest.

    Parameters
    ----------
    labels
        [..., k] label codes, nearest first; negative where there is no match.

    Returns
    -------
    ndarray
        [...] codes; −1 where a row holds no match.

    Examples
    --------
    >>> majority_vote(np.array([[2, 1, 1], [2, 1, 0], [3, -1, -1]])).tolist()
    [1, 2, 3]
    """
    if labels.shape[-1] == 0:
        return np.full(labels.shape[:-1], _NONE)
    votes = (labels[..., :, None] == labels[..., None, :]).sum(axis=-1)
    votes[labels < 0] = 0
    first = votes.argmax(axis=-1)  # the first maximum is the nearest
    return np.take_along_axis(labels, first[..., None], axis=-1)[..., 0]


def label_counts(truth: Ints, predicted: Ints, group: Ints, shape: tuple[int, int]) -> Floats:
    """Correct, true and predicted queries per group and label: all that F1 needs.

    Parameters
    ----------
    truth, predicted
        Label codes of equal shape; queries with truth −1 are not counted, a prediction −1 is
        counted as a miss.
    group
        Group of each query (patient, permutation), of the same shape.
    shape
        Number of groups, number of labels.

    Returns
    -------
    ndarray
        [n_groups, 3, n_labels] float64.

    Examples
    --------
    >>> label_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), np.zeros(3, int), (1, 2)).tolist()
    [[[1.0, 1.0], [2.0, 1.0], [1.0, 2.0]]]
    """
    counted = truth >= 0
    kept = (counted & (truth == predicted), counted, counted & (predicted >= 0))
    counts = [
        np.bincount((group * shape[1] + codes)[keep], minlength=shape[0] * shape[1])
        for codes, keep in zip((truth, truth, predicted), kept, strict=True)
    ]
    return np.stack([count.reshape(shape) for count in counts], axis=1).astype(np.float64)


def f1_by_label(counts: Floats) -> Floats:
    """F1 = 2 correct / (true + predicted) per label; NaN for a label without queries.

    Parameters
    ----------
    counts
        [..., 3, n_labels] from :func:`label_counts`.

    Examples
    --------
    >>> f1_by_label(np.array([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0]])).round(3).tolist()
    [0.667, 0.667]
    """
    correct, true, predicted = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(true > 0, 2 * correct / (true + predicted), np.nan)


def macro_f1(counts: Floats) -> Floats:
    """Mean of F1 over the labels that have queries; NaN where none has."""
    scores = f1_by_label(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return cast(Floats, np.nansum(scores, axis=-1) / np.isfinite(scores).sum(axis=-1))


def macro_f1_of_guesses(true: Floats) -> tuple[float, float]:
    """Least and largest macro-F1 of who knows nothing, by expected counts.

    Guessed is every label equally often (``F1_c = 2 n_c / (n + K n_c)``), each as often as it occurs
    (``F1_c = n_c / n``), or always the most frequent one (``2 n_m / (n + n_m)``, the others 0).

    Parameters
    ----------
    true
        [n_labels] rows of each label.

    Examples
    --------
    >>> [round(end, 3) for end in macro_f1_of_guesses(np.array([6.0, 2.0]))]
    [0.429, 0.5]
    """
    there = true[true > 0]
    n = there.sum()
    always = np.where(np.arange(len(there)) == there.argmax(), n, 0.0)
    guesses = (np.full(len(there), n / len(there)), there, always)
    reached = [macro_f1(np.stack([guess * there / n, there, guess])) for guess in guesses]
    return float(min(reached)), float(max(reached))


def never_found(counts: Floats) -> Floats:
    """Share of the labels that have queries whose F1 is 0; NaN where none has.

    Examples
    --------
    >>> float(never_found(np.array([[0.0, 1.0], [2.0, 1.0], [1.0, 2.0]])))
    0.5
    """
    scores = f1_by_label(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return cast(Floats, (scores == 0).sum(axis=-1) / np.isfinite(scores).sum(axis=-1))


def accuracy(counts: Floats) -> Floats:
    """Share of correctly classified queries; NaN without queries.

    Parameters
    ----------
    counts
        [..., 3, n_labels] from :func:`label_counts`.

    Examples
    --------
    >>> float(accuracy(np.array([[1.0, 1.0], [3.0, 1.0], [2.0, 2.0]])))
    0.5
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return cast(Floats, counts[..., 0, :].sum(axis=-1) / counts[..., 1, :].sum(axis=-1))
