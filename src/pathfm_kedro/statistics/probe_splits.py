"""Probes of the label: who trains, who sets the temperature, who tests; always different patients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.cross_validation import ProbeSettings, patient_folds
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.linear_classifier import fit_linear_classifier
from pathfm_kedro.statistics.sampling import capped_tiles
from pathfm_kedro.statistics.tables import Embeddings, chosen_vectors, tile_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Names = NDArray[Any]

#: Tested by a model of other patients of all centers, or by one of other centers alone.
IN_DOMAIN, HELD_OUT_CENTER = "in_domain", "held_out_center"
TESTED = (IN_DOMAIN, HELD_OUT_CENTER)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one model.

    Attributes
    ----------
    train, aside, test
        Rows that train, rows of other patients that are kept for what must not be fitted on training
        rows, such as a temperature, and rows of further patients that test.
    center
        The center that is held out; empty where none is.
    problem
        Why there is no model; empty where there is.
    """

    train: Ints
    aside: Ints
    test: Ints
    center: str = ""
    problem: str = ""


def in_domain_splits(
    patients: Names, targets: Ints, centers: Names, folds: int, seed: int
) -> Iterator[Split]:
    """Each fold of patients tests once; the next one is kept aside, the others train.

    Folds are even in labels at each center: where a label is by chance more frequent at a center in
    training, it is less so among those that test, and a vector that follows the center alone would be
    read worse than chance.

    Parameters
    ----------
    patients, targets, centers
        [n].
    folds
        At least three.
    seed
        Of the folds.

    Examples
    --------
    >>> patients = np.arange(6)
    >>> splits = in_domain_splits(patients, patients % 2, 0 * patients, 3, 0)
    >>> [(len(s.train), len(s.aside), len(s.test)) for s in splits]
    [(2, 2, 2), (2, 2, 2), (2, 2, 2)]
    """
    fold = patient_folds(patients, folds, seed, _cells(targets, centers))
    for tested in range(folds):
        kept_aside = (tested + 1) % folds
        train, aside, test = (
            np.flatnonzero(rows)
            for rows in (
                ~np.isin(fold, (tested, kept_aside)),
                fold == kept_aside,
                fold == tested,
            )
        )
        yield Split(train, aside, test)


def _cells(targets: Ints, centers: Names) -> Ints:
    """[n] codes of label and center together."""
    names, codes = np.unique(centers, return_inverse=True)
    return np.asarray(targets * len(names) + codes)


def held_out_center_splits(
    patients: Names, targets: Ints, centers: Names, folds: int, seed: int
) -> Iterator[Split]:
    """Each center tests once; of other centers' patients one fold is kept aside, the others train.

    A patient of the center that tests trains nothing, wherever else it has slides. Rows of targets
    that do not train are not tested; rows of no known center neither train nor test, since they may
    be of any.

    Parameters
    ----------
    patients, targets, centers
        [n]; a center that is not known is empty.
    folds
        Of which one is kept aside.
    seed
        Of the folds.

    Raises
    ------
    Undefined
        If there is one center.

    Examples
    --------
    >>> patients, centers = np.arange(8), np.array(list("aaaabbbb"))
    >>> splits = held_out_center_splits(patients, patients % 2, centers, 2, 0)
    >>> [(s.center, s.test.tolist()) for s in splits]
    [('a', [0, 1, 2, 3]), ('b', [4, 5, 6, 7])]
    """
    known_center = centers != ""
    names = np.unique(centers[known_center])
    if len(names) < 2:
        raise Undefined(
            f"{len(names)} center(s): to hold one out needs two; add slides of another center"
        )
    for name in names:
        own = centers == name
        others = np.flatnonzero(known_center & ~np.isin(patients, patients[own]))
        if not len(others):
            reason = "all patients of other centers have slides here too: add patients elsewhere"
            yield Split(others, others, np.flatnonzero(own), str(name), reason)
            continue
        cells = _cells(targets[others], centers[others])
        fold = patient_folds(patients[others], folds, seed, cells)
        train, aside = others[fold != 0], others[fold == 0]
        known = np.unique(targets[train])
        test = np.flatnonzero(own & np.isin(targets, known))
        problem = ""
        if len(known) < 2:
            problem = "other centers hold fewer than two labels that train: add patients of them"
        elif not len(test):
            problem = (
                "no label of this center is found at another: add patients of its labels there"
            )
        yield Split(train, aside, test, str(name), problem)


def probed_labels(rows: pl.DataFrame, folds: int, parameter: str) -> tuple[Ints, Ints]:
    """Rows whose label has as many patients as there are folds, and their labels as codes.

    Raises
    ------
    Undefined
        If there are fewer than two such labels.

    Examples
    --------
    >>> rows = pl.DataFrame({"label": list("xxyyz"), "patient_id": list("abcde")})
    >>> [found.tolist() for found in probed_labels(rows, 2, "folds")]
    [[0, 1, 2, 3], [0, 0, 1, 1]]
    """
    counted = rows.drop_nulls("label").group_by("label").agg(pl.col("patient_id").n_unique())
    names = counted.filter(pl.col("patient_id") >= folds)["label"].sort().to_list()
    if len(names) < 2:
        raise Undefined(
            f"{len(names)} label(s) have {folds} patients, two are needed to train and test a probe: "
            f"add patients or lower {parameter}"
        )
    kept = np.flatnonzero(rows["label"].is_in(names).fill_null(False).to_numpy())
    codes = rows["label"][kept].replace_strict(names, range(len(names)), return_dtype=pl.Int64())
    return kept, codes.to_numpy()


@dataclass(frozen=True, eq=False)
class ProbedTiles:
    """Tiles of a cohort whose label can be probed.

    Attributes
    ----------
    tags
        Their rows: patient_id, center, label and more.
    vectors
        [n, d].
    targets
        [n] codes of the labels.
    """

    tags: pl.DataFrame
    vectors: Floats
    targets: Ints

    @classmethod
    def of(
        cls,
        slides: pl.DataFrame,
        tiles: pl.DataFrame,
        embeddings: Embeddings,
        max_tiles_per_slide: int,
        folds: int,
        seed: int,
        experiment: str,
    ) -> ProbedTiles:
        """A capped number of tiles per slide, of labels with as many patients as there are folds.

        Parameters
        ----------
        slides, tiles
            The cohort's tables.
        embeddings
            Vectors of one encoder.
        max_tiles_per_slide, seed
            How many are sampled, and by which seed.
        folds
            Of patients.
        experiment
            Whose ``probe.folds`` the message names.

        Raises
        ------
        Undefined
            If there are fewer than two such labels.
        """
        rows = tile_rows(slides, tiles, embeddings.slide_ids)
        chosen = capped_tiles(rows, max_tiles_per_slide, seed)
        vectors = chosen_vectors(rows, chosen, embeddings)
        kept, targets = probed_labels(rows[chosen], folds, f"{experiment}.probe.folds")
        return cls(rows[chosen][kept], vectors[kept], targets)

    def splits(self, tested: str, folds: int, seed: int) -> list[Split]:
        """Who trains and who tests, :data:`IN_DOMAIN` or at each :data:`HELD_OUT_CENTER` in turn.

        Raises
        ------
        Undefined
            If a center is to be held out and there is one.
        """
        patients = self.tags["patient_id"].to_numpy()
        centers = self.tags["center"].fill_null("").to_numpy()
        split = in_domain_splits if tested == IN_DOMAIN else held_out_center_splits
        return list(split(patients, self.targets, centers, folds, seed))


def probe_logits(
    vectors: Floats, targets: Ints, train: Ints, n_classes: int, probe: ProbeSettings
) -> Floats:
    """[n, classes] logits of all rows by a model of some rows; −∞ for classes not among these."""
    model = fit_linear_classifier(
        vectors[train], targets[train], probe.C, probe.max_iter, class_weight=None
    )
    logits = np.full((len(vectors), n_classes), -np.inf)
    logits[:, [int(label) for label in model.labels]] = model.logits(vectors)
    return logits
