r"""What a change of a tile's pixels does to its vector: the shift, and the neighbours it keeps.

- ``relative_shift = Σ_i d(x_i, v_i) / Σ_i b_i``: the cosine distance d of a tile to its view over the
  between-patient distance b_i, the median distance of tile i to the reference tiles of other patients
  with its label. 1 is where a view is as far as another patient's tissue of the same kind;
- ``kept_neighbours = mean_i |N_k(x_i) ∩ N_k(v_i)| / k``: both neighbourhoods among the reference tiles
  of other patients, as if a tile from elsewhere were searched for in this archive. (Mutual neighbours,
  :func:`~pathfm_kedro.statistics.mutual_knn.mknn`, change the whole pool instead, and would not see a
  change that moves all tiles alike.) Chance is k over the number of candidates.

Patients are resampled as queries and, for neighbours, as candidates
(:func:`~pathfm_kedro.statistics.mutual_knn.candidate_effects`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import patient_codes, sum_by_patient
from pathfm_kedro.statistics.figures import Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mutual_knn import (
    NO_SPREAD,
    candidate_counts,
    candidate_effects,
    cosine_distances,
    shared,
    too_few_candidates,
    unit,
    without_spread,
)
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.tables import to_schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Equal similarities must tie whatever the order in which a product adds up.
_DECIMALS = 12
#: Below this a distance is rounding.
_NO_DISTANCE = 1e-9

#: Sums of one view per patient and, where asked for, label.
#:
#: - shift_sum, between_sum: over the n_shifted tiles that have a between-patient distance;
#: - kept_sum, candidate_sum, chance_sum: over all n_tiles, at k neighbours; null where a tile of the
#:   pool has no more than k candidates;
#: - no_spread: whether all reference tiles have (nearly) the same vector.
PERTURBATION_SUMS: dict[str, pl.DataType] = {
    "n_tiles": pl.Int64(),
    "n_shifted": pl.Int64(),
    "shift_sum": pl.Float64(),
    "between_sum": pl.Float64(),
    "k": pl.Int64(),
    "kept_sum": pl.Float64(),
    "candidate_sum": pl.Float64(),
    "chance_sum": pl.Float64(),
    "fewest_candidates": pl.Int64(),
    "no_spread": pl.Boolean(),
}


def between_patient_distance(vectors: Floats, patients: Ints, labels: NDArray[Any]) -> Floats:
    """Median cosine distance of each tile to tiles of other patients with its label.

    Parameters
    ----------
    vectors
        [n, d] rows of length 1.
    patients, labels
        [n] codes.

    Returns
    -------
    ndarray
        [n]; NaN where no other patient has the label.

    Examples
    --------
    >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> between_patient_distance(rows, np.arange(3), np.zeros(3)).tolist()
    [0.5, 1.0, 0.5]
    """
    alike = (labels[:, None] == labels) & (patients[:, None] != patients)
    distance = np.where(alike, 1 - vectors @ vectors.T, np.inf)
    # Others are infinite, so they stand behind in the sorted row and the median of m is at m / 2.
    ordered, count = np.sort(distance, axis=1), alike.sum(axis=1)
    low = np.take_along_axis(ordered, (np.maximum(count - 1, 0) // 2)[:, None], axis=1)[:, 0]
    high = np.take_along_axis(ordered, (count // 2).clip(max=len(ordered) - 1)[:, None], axis=1)
    return np.where(count > 0, (low + np.where(count > 0, high[:, 0], 0)) / 2, np.nan)


def nearest_references(
    queries: Floats, references: Floats, patients: Ints, k: int
) -> NDArray[np.intp]:
    """K nearest reference tiles of other patients for each query, nearest first, ties by index.

    Parameters
    ----------
    queries
        [n, d] rows of length 1; query i stands for tile i, and so for its patient.
    references
        [n, d] rows of length 1.
    patients
        [n] codes.
    k
        Neighbours per query.

    Examples
    --------
    >>> nearest_references(np.eye(3), np.eye(3)[[0, 0, 1]], np.arange(3), 1).ravel().tolist()
    [1, 2, 0]
    """
    distance = -np.round(queries @ references.T, _DECIMALS)
    distance[patients[:, None] == patients] = np.inf
    # A view would keep the order of all references alive.
    return np.ascontiguousarray(np.argsort(distance, axis=1, kind="stable")[:, :k])


@dataclass(frozen=True)
class TileGroups:
    """Groups of tiles whose sums are kept.

    Attributes
    ----------
    keys
        One row per group: a patient, or a patient's tiles of one label.
    codes, patients
        [n] group and patient of each tile.
    """

    keys: pl.DataFrame
    codes: Ints
    patients: Ints

    @classmethod
    def of(cls, tiles: pl.DataFrame, by: Sequence[str] = ("patient_id",)) -> TileGroups:
        """Tiles with patient_id, grouped by the named columns."""
        keys = tiles.select(by).unique().sort(by).with_row_index("_group")
        codes = tiles.join(keys, on=list(by), how="left", maintain_order="left", nulls_equal=True)
        return cls(
            keys.drop("_group"),
            codes["_group"].cast(pl.Int64).to_numpy(),
            patient_codes(tiles["patient_id"].to_numpy())[0],
        )

    @property
    def candidates(self) -> Ints:
        """[n] tiles of other patients, for each tile."""
        return candidate_counts(self.patients)

    def sums(self, **columns: Floats) -> pl.DataFrame:
        """The keys, ``n_tiles`` and sums of values [n] per group."""
        counted = {"n_tiles": np.ones(len(self.codes)), **columns}
        return self.keys.with_columns(
            pl.Series(name, sum_by_patient(values, self.codes, self.keys.height))
            for name, values in counted.items()
        )


@dataclass(frozen=True)
class ReferenceTiles:
    """The unchanged tiles that views are compared with.

    Attributes
    ----------
    vectors
        [n, d] rows of length 1.
    groups
        Of the n tiles.
    between
        [n] from :func:`between_patient_distance`.
    neighbours
        [n, k + 1] nearest reference tiles, or None where a tile has too few candidates.
    k
        Neighbours that count.
    """

    vectors: Floats
    groups: TileGroups
    between: Floats
    neighbours: NDArray[np.intp] | None
    k: int

    @classmethod
    def of(
        cls,
        reference: NDArray[np.floating[Any]],
        tiles: pl.DataFrame,
        k: int,
        by: Sequence[str] = ("patient_id",),
    ) -> ReferenceTiles:
        """Reference vectors [n, d] of tiles with patient_id and label, grouped by the named columns."""
        groups = TileGroups.of(tiles, by)
        patients = groups.patients
        # A tile without a label is like no other.
        labels = tiles.select(
            pl.col("label").rank("dense").cast(pl.Int64).fill_null(-1 - pl.int_range(pl.len()))
        ).to_series()
        vectors = unit(reference)
        enough = k < int(groups.candidates.min())
        return cls(
            vectors,
            groups,
            between_patient_distance(vectors, patients, labels.to_numpy()),
            nearest_references(vectors, vectors, patients, k + 1) if enough else None,
            k,
        )

    def statistics(self, vectors: NDArray[np.floating[Any]], /, **keys: Any) -> pl.DataFrame:
        """Sums of one view per group.

        Parameters
        ----------
        vectors
            [n, d] of the same tiles, changed.
        keys
            Columns that say which view it is; None is a missing value.

        Returns
        -------
        DataFrame
            `keys`, the groups' columns and :data:`PERTURBATION_SUMS`.
        """
        known = np.isfinite(self.between)
        shift = np.maximum(cosine_distances(self.vectors, vectors), 0.0)
        sums = self.groups.sums(
            n_shifted=known.astype(np.float64),
            shift_sum=np.where(known, shift, 0.0),
            between_sum=np.where(known, self.between, 0.0),
            **self._neighbour_columns(unit(vectors)),
        ).with_columns(
            *(pl.lit(value).alias(name) for name, value in keys.items()),
            k=pl.lit(self.k),
            fewest_candidates=pl.lit(int(self.groups.candidates.min())),
            no_spread=pl.lit(without_spread(self.vectors, "cosine")),
        )
        named = [*keys, *self.groups.keys.columns]
        return to_schema(sums, {name: sums.schema[name] for name in named} | PERTURBATION_SUMS)

    def _neighbour_columns(self, view: Floats) -> dict[str, Floats]:
        if self.neighbours is None:
            return {}
        found = nearest_references(view, self.vectors, self.groups.patients, self.k + 1)
        return kept_columns(self.neighbours, found, self.groups.patients, self.k)


def kept_columns(
    reference: NDArray[np.intp], view: NDArray[np.intp], patients: Ints, k: int
) -> dict[str, Floats]:
    """Per tile [n]: neighbours kept, effects as a candidate, and chance, as named in the sums.

    Parameters
    ----------
    reference, view
        [n, > k] nearest neighbours of the tiles and of their views, nearest first.
    patients
        [n] codes.
    k
        Neighbours that count.
    """
    return {
        "kept_sum": shared(reference[:, :k], view[:, :k]),
        "candidate_sum": candidate_effects(reference, view, k),
        "chance_sum": k / candidate_counts(patients),
    }


def relative_shift(view: PatientStatistics) -> Value:
    """Cosine shift over the between-patient distance; null 1, as far as another patient."""
    require_distance(view)
    return Value(view.ratio(view.sums("shift_sum"), view.sums("between_sum")), Null(1.0, 1.0))


def kept_neighbours(view: PatientStatistics) -> Value:
    """Share of neighbours kept; patients are resampled as queries and as candidates."""
    require_neighbours(view)
    estimate = view.ratio(kept_values(view), view.sums("n_tiles"))
    level = float(view.sums("chance_sum").sum() / view.sums("n_tiles").sum())
    return Value(within_unit(estimate), Null(level, level))


def kept_values(view: PatientStatistics) -> Floats:
    """[patients] contributions that add up to the sum of kept shares over tiles."""
    effects, tiles = view.sums("candidate_sum"), view.sums("n_tiles")
    average = float(effects.sum() / tiles.sum())
    return view.sums("kept_sum") + effects - average * tiles


def excess_shift(view: PatientStatistics, control: PatientStatistics) -> Value:
    """Relative shift of a view minus that of its control, over the same patients; null 0."""
    require_distance(view)
    difference = view.sums("shift_sum") - control.sums("shift_sum")
    return Value(view.ratio(difference, view.sums("between_sum")), Null(0.0, 0.0))


def excess_drop(view: PatientStatistics, control: PatientStatistics) -> Value:
    """Neighbours kept by the control minus those kept by the view, over the same patients; null 0."""
    require_neighbours(view)
    difference = kept_values(control) - kept_values(view)
    return Value(view.ratio(difference, view.sums("n_tiles")), Null(0.0, 0.0))


def require_distance(view: PatientStatistics) -> None:
    """Refuse where there is no distance between patients to compare a shift with.

    Raises
    ------
    Undefined
        With the reason.
    """
    if view.table.is_empty():
        view.require_interval()
    if not view.table["n_shifted"].sum():
        raise Undefined(
            "no label has tiles of two patients, so there is no distance between patients to "
            "compare with; add patients or raise tile_pool.max_tiles"
        )
    if view.sums("between_sum").sum() <= _NO_DISTANCE * view.sums("n_shifted").sum():
        raise Undefined(
            "tiles of different patients with one label have the same vector, so there is no "
            "distance between patients to compare with"
        )
    view.require_interval()


def require_neighbours(view: PatientStatistics) -> None:
    """Refuse where neighbours are not defined.

    Raises
    ------
    Undefined
        With the reason: too few candidates, vectors without spread, or one patient.
    """
    if view.table.is_empty():
        view.require_interval()
    if view.table["kept_sum"].null_count():
        table = view.table
        raise Undefined(
            too_few_candidates(int(table["k"].min()), int(table["fewest_candidates"].min()))  # type: ignore[arg-type]
        )
    if view.table["no_spread"].any():
        raise Undefined(NO_SPREAD)
    view.require_interval()


def within_unit(estimate: Estimate) -> Estimate:
    """Cut an interval to 0 … 1: linear effects of candidates can overshoot near the ends."""
    if estimate.ci_low is None or estimate.ci_high is None:
        return estimate
    return replace(estimate, ci_low=max(estimate.ci_low, 0.0), ci_high=min(estimate.ci_high, 1.0))
