r"""Stain and scanner: how far a tile moves, and which neighbours it keeps, when its look changes.

Every tile of the pool is embedded as it is (clean) and after each change of
:mod:`~pathfm_kedro.pipelines.robustness.appearance_views`. Per change and dose,

- ``relative_shift = Σ_i d(x_i, v_i) / Σ_i b_i``: the cosine distance d of a tile to its view over the
  between-patient distance b_i, the median distance of tile i to the clean tiles of other patients
  with its label. 1 is where a view is as far as another patient's tissue of the same kind;
- ``kept_neighbours = mean_i |N_k(x_i) ∩ N_k(v_i)| / k``: both neighbourhoods among the clean tiles of
  other patients, as if a tile from elsewhere were searched for in this archive. (The mutual
  neighbours of the rotation experiment change the whole pool instead, and would not see a change
  that moves all tiles alike.) Chance is k over the number of candidates.

Verdicts rest on kept_neighbours: for an encoder that sees nothing but colour the between-patient
distance is itself one of colour, so that its relative shift is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.appearance_views import (
    CLEAN,
    DOSES,
    TRANSFERS,
    Change,
    n_targets,
    usable_references,
    view_changes,
)
from pathfm_kedro.pipelines.robustness.mutual_knn import (
    NO_SPREAD,
    candidate_counts,
    candidate_effects,
    cosine_distances,
    shared,
    unit,
    without_spread,
)
from pathfm_kedro.pipelines.robustness.views import stacked_views
from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    patient_codes,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.measurements import (
    Direction,
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERIMENT = "appearance"
SIGNATURES = ("stain", "scanner")
DIRECTION: Direction = "above"

#: Equal similarities must tie whatever the order in which a product adds up.
_DECIMALS = 12
#: Below this a distance is rounding.
_NO_DISTANCE = 1e-9

#: Sums per patient (and, where asked for, label): the view's tiles as queries and as candidates.
#:
#: - shift_sum, between_sum: over the n_shifted tiles that have a between-patient distance;
#: - kept_sum, candidate_sum, chance_sum: over all n_tiles; null where a tile of the pool has no more
#:   than k candidates;
#: - no_spread: whether all clean tiles have (nearly) the same vector.
VIEW_SUMS: dict[str, pl.DataType] = {
    "n_tiles": pl.Int64(),
    "n_shifted": pl.Int64(),
    "shift_sum": pl.Float64(),
    "between_sum": pl.Float64(),
    "kept_sum": pl.Float64(),
    "candidate_sum": pl.Float64(),
    "chance_sum": pl.Float64(),
    "fewest_candidates": pl.Int64(),
    "no_spread": pl.Boolean(),
}
#: Columns of the pool and not of a group: the same in all its rows.
_OF_POOL = ("fewest_candidates", "no_spread")

#: One row per change, dose and patient; a transfer to several centers counts each tile once for each.
SHIFT_SCHEMA: dict[str, pl.DataType] = {
    "kind": pl.String(),
    "dose": pl.Float64(),
    "patient_id": pl.String(),
    **VIEW_SUMS,
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


def nearest_clean(queries: Floats, clean: Floats, patients: Ints, k: int) -> NDArray[np.intp]:
    """K nearest clean tiles of other patients for each query, nearest first, ties by index.

    Parameters
    ----------
    queries
        [n, d] rows of length 1; query i stands for tile i, and so for its patient.
    clean
        [n, d] rows of length 1.
    patients
        [n] codes.
    k
        Neighbours per query.

    Examples
    --------
    >>> nearest_clean(np.eye(3), np.eye(3)[[0, 0, 1]], np.arange(3), 1).ravel().tolist()
    [1, 2, 0]
    """
    distance = -np.round(queries @ clean.T, _DECIMALS)
    distance[patients[:, None] == patients] = np.inf
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


@dataclass(frozen=True)
class CleanPool:
    """The clean tiles that views are held against.

    Attributes
    ----------
    vectors
        [n, d] rows of length 1.
    keys
        One row per group of tiles whose sums are kept: a patient, or a patient's tiles of one label.
    groups, patients
        [n] codes.
    between
        [n] from :func:`between_patient_distance`.
    home
        [n, k + 1] nearest clean tiles, or None where a tile has too few candidates.
    k
        Neighbours that count.
    """

    vectors: Floats
    keys: pl.DataFrame
    groups: Ints
    patients: Ints
    between: Floats
    home: NDArray[np.intp] | None
    k: int

    @classmethod
    def of(
        cls,
        clean: NDArray[np.floating[Any]],
        pool: pl.DataFrame,
        k: int,
        names: Sequence[str] = ("patient_id",),
    ) -> CleanPool:
        """Clean vectors [n, d] of the pool's tiles, grouped by the named columns."""
        keys = pool.select(names).unique().sort(names).with_row_index("_group")
        groups = pool.join(
            keys, on=list(names), how="left", maintain_order="left", nulls_equal=True
        )
        patients, _ = patient_codes(pool["patient_id"].to_numpy())
        # A tile without a label is like no other.
        labels = pool.select(
            pl.col("label").rank("dense").cast(pl.Int64).fill_null(-1 - pl.int_range(pl.len()))
        ).to_series()
        vectors = unit(clean)
        enough = k < int(candidate_counts(patients).min())
        return cls(
            vectors,
            keys.drop("_group"),
            groups["_group"].cast(pl.Int64).to_numpy(),
            patients,
            between_patient_distance(vectors, patients, labels.to_numpy()),
            nearest_clean(vectors, vectors, patients, k + 1) if enough else None,
            k,
        )

    def sums(self, view: NDArray[np.floating[Any]]) -> pl.DataFrame:
        """Sums of one view [n, d] per group: the keys and :data:`VIEW_SUMS`."""
        known = np.isfinite(self.between)
        shift = np.maximum(cosine_distances(self.vectors, view), 0.0)
        columns = {
            "n_tiles": np.ones(len(view)),
            "n_shifted": known.astype(np.float64),
            "shift_sum": np.where(known, shift, 0.0),
            "between_sum": np.where(known, self.between, 0.0),
            **self._neighbour_columns(unit(view)),
        }
        sums = [
            pl.Series(name, sum_by_patient(values, self.groups, self.keys.height))
            for name, values in columns.items()
        ]
        whole = self.keys.with_columns(
            *sums,
            fewest_candidates=pl.lit(int(candidate_counts(self.patients).min())),
            no_spread=pl.lit(without_spread(self.vectors, "cosine")),
        )
        missing = [name for name in VIEW_SUMS if name not in whole.columns]
        return whole.with_columns(pl.lit(None).alias(name) for name in missing).select(
            *self.keys.columns, *(pl.col(name).cast(kind) for name, kind in VIEW_SUMS.items())
        )

    def _neighbour_columns(self, view: Floats) -> dict[str, Floats]:
        if self.home is None:
            return {}
        away = nearest_clean(view, self.vectors, self.patients, self.k + 1)
        return {
            "kept_sum": shared(self.home[:, : self.k], away[:, : self.k]),
            "candidate_sum": candidate_effects(self.home, away, self.k),
            "chance_sum": self.k / candidate_counts(self.patients),
        }


def view_stack(
    views: Embeddings, pool: pl.DataFrame, names: Sequence[str], experiment: str
) -> tuple[pl.DataFrame, NDArray[np.float32]]:
    """Pool rows with embedded views, and the views [n, views, d].

    Raises
    ------
    ValueError
        If the stack does not hold the expected tiles and views.
    """
    present, stack = stacked_views(views, pool)
    if present.height and stack.shape[:2] != (present.height, len(names)):
        raise ValueError(
            f"the views of {experiment} have shape {list(stack.shape)}, expected {present.height} "
            f"tiles and {len(names)} views ({', '.join(names)}): embed the views again with these "
            "parameters"
        )
    return present, stack


def appearance_shifts(
    views: Embeddings, pool: pl.DataFrame, references: pl.DataFrame, parameters: Mapping[str, Any]
) -> pl.DataFrame:
    """Reduce the views' vectors to sums per change, dose and patient.

    Parameters
    ----------
    views
        What ``plan_appearance_views`` left.
    pool
        The tiles; slides without a shard are left out.
    references
        From ``center_references``; transfers count tiles of centers that have one.
    parameters
        ``appearance``: doses, max_targets, k.

    Returns
    -------
    DataFrame
        Columns :data:`SHIFT_SCHEMA`.
    """
    known = list(usable_references(references))
    changes = view_changes(parameters, n_targets(known, int(parameters["max_targets"])))
    present, stack = view_stack(views, pool, [change.name for change in changes], EXPERIMENT)
    if present.is_empty():
        return pl.DataFrame(schema=SHIFT_SCHEMA)
    k = int(parameters["k"])
    everywhere = CleanPool.of(stack[:, 0], present, k)
    stained = present["center"].is_in(known).fill_null(False).to_numpy()
    transferable = everywhere
    if not stained.all() and stained.any():
        transferable = CleanPool.of(stack[stained, 0], present.filter(stained), k)
    frames = [
        transferable.sums(stack[stained, i]).with_columns(*_keys(change))
        if change.kind in TRANSFERS
        else everywhere.sums(stack[:, i]).with_columns(*_keys(change))
        for i, change in enumerate(changes)
        if change.kind != CLEAN and (stained.any() or change.kind not in TRANSFERS)
    ]
    if not frames:
        return pl.DataFrame(schema=SHIFT_SCHEMA)
    return added_up(pl.concat(frames), ["kind", "dose", "patient_id"]).cast(pl.Schema(SHIFT_SCHEMA))


def _keys(change: Change) -> tuple[pl.Expr, pl.Expr]:
    return pl.lit(change.kind).alias("kind"), pl.lit(change.dose, pl.Float64).alias("dose")


def added_up(sums: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """:data:`VIEW_SUMS` added over rows with equal keys, sorted by them; null stays null."""
    added = [
        pl.when(pl.col(name).null_count() == 0).then(pl.col(name).sum()).alias(name)
        for name in VIEW_SUMS
        if name not in _OF_POOL
    ]
    of_pool = pl.col("fewest_candidates").min(), pl.col("no_spread").any()
    table = sums.group_by(by).agg(*added, *of_pool)
    return table.select(*by, *VIEW_SUMS).sort(by, nulls_last=False)


@dataclass(frozen=True)
class ViewFigures:
    """Figures of one view, from its sums per patient.

    Attributes
    ----------
    sums
        One row per patient, sorted: patient_id and :data:`VIEW_SUMS`.
    k
        Neighbours that count.
    weights
        [draws, patients]; the same draws for every view of the same patients.
    """

    sums: pl.DataFrame
    k: int
    weights: Floats

    @classmethod
    def of(cls, sums: pl.DataFrame, k: int, draws: int, seed: int) -> ViewFigures:
        """Add the sums up per patient and draw patients."""
        per_patient = added_up(sums, ["patient_id"])
        if per_patient.is_empty():
            return cls(per_patient, k, np.zeros((draws, 0)))
        return cls(per_patient, k, bootstrap_weights(per_patient.height, draws, seed))

    def column(self, name: str) -> Floats:
        """[patients] of one sum."""
        return self.sums[name].cast(pl.Float64).to_numpy()

    @property
    def n(self) -> int:
        """Tiles, each as often as it was changed."""
        return int(self.sums["n_tiles"].sum())

    @property
    def n_patients(self) -> int:
        """Patients."""
        return self.sums.height

    def no_figures(self) -> str | None:
        """Why no interval can be given; None where it can."""
        if self.n_patients < 2:
            return (
                f"the pool holds {self.n_patients} patient(s) with embedded views: an interval over "
                "patients needs two; add patients or raise tile_pool.max_tiles"
            )
        return None

    def no_shift(self) -> str | None:
        """Why the relative shift is undefined; None where it is defined."""
        if not self.sums["n_shifted"].sum():
            return (
                "no label has tiles of two patients, so there is no distance between patients to "
                "compare with; add patients or raise tile_pool.max_tiles"
            )
        if self.column("between_sum").sum() <= _NO_DISTANCE * self.column("n_shifted").sum():
            return (
                "tiles of different patients with one label have the same vector, so there is no "
                "distance between patients to compare with"
            )
        return self.no_figures()

    def no_neighbours(self) -> str | None:
        """Why neighbours are undefined; None where they are defined."""
        if self.sums["kept_sum"].null_count():
            fewest = int(self.column("fewest_candidates").min())
            return (
                f"k = {self.k} neighbours need more than {self.k} candidates, but a tile of the pool "
                f"has only {fewest} tiles of other patients; add patients, raise tile_pool.max_tiles "
                "or lower k"
            )
        if self.sums["no_spread"].any():
            return NO_SPREAD
        return self.no_figures()

    def relative_shift(self) -> Estimate:
        """Cosine shift over the between-patient distance."""
        return ratio_estimate(
            self.column("shift_sum"), self.column("between_sum"), self.weights, n=self.n
        )

    def kept_neighbours(self) -> Estimate:
        """Share of neighbours kept; patients are resampled as queries and as candidates."""
        return _within_unit(
            ratio_estimate(self.kept_values(), self.tiles(), self.weights, n=self.n)
        )

    def tiles(self) -> Floats:
        """[patients] tiles."""
        return self.column("n_tiles")

    def kept_values(self) -> Floats:
        """[patients] contributions that add up to the sum of kept shares over tiles."""
        effects, tiles = self.column("candidate_sum"), self.tiles()
        average = float(effects.sum() / tiles.sum())
        return self.column("kept_sum") + effects - average * tiles

    def chance(self) -> Null:
        """Share of neighbours kept by an encoder that knows nothing."""
        level = float(self.column("chance_sum").sum() / self.tiles().sum())
        return Null(level, level)


def _within_unit(estimate: Estimate) -> Estimate:
    """Cut an interval to 0 … 1: linear effects of candidates can overshoot near the ends."""
    if estimate.ci_low is None or estimate.ci_high is None:
        return estimate
    return replace(estimate, ci_low=max(estimate.ci_low, 0.0), ci_high=min(estimate.ci_high, 1.0))


def appearance_measurements(
    shifts: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """Turn sums per patient into the appearance rows of the measurements table.

    Per change and dose ``relative_shift`` (null 1: as far as another patient) and
    ``kept_neighbours`` (null: chance). Signatures: ``stain_kept_neighbours`` and
    ``scanner_kept_neighbours``, the mean of kept_neighbours over the changes that
    ``appearance.signatures`` lists for each.

    Parameters
    ----------
    shifts
        From :func:`appearance_shifts`.
    parameters
        ``appearance``: doses, k, signatures, thresholds, draws, seed.
    encoder
        Name for the table.

    Returns
    -------
    DataFrame
        Measurements table, experiment ``appearance``.
    """
    rows = _Rows(shifts, parameters, encoder)
    changes = dict.fromkeys(
        (change.kind, change.dose)
        for change in view_changes(parameters, targets=1)
        if change.kind != CLEAN
    )
    return measurement_table(
        [
            *(row for kind, dose in changes for row in rows.of_change(kind, dose)),
            *(rows.signature(which) for which in SIGNATURES),
        ]
    )


@dataclass(frozen=True)
class _Rows:
    """Rows of the measurements table for one encoder."""

    shifts: pl.DataFrame
    parameters: Mapping[str, Any]
    encoder: str

    @property
    def _name(self) -> dict[str, Any]:
        return {"experiment": EXPERIMENT, "encoder": self.encoder}

    @property
    def _k(self) -> int:
        return int(self.parameters["k"])

    def _figures(self, changes: Sequence[tuple[str, float | None]]) -> ViewFigures:
        matches = [
            (pl.col("kind") == kind) & pl.col("dose").eq_missing(pl.lit(dose, pl.Float64))
            for kind, dose in changes
        ]
        chosen = self.shifts.filter(pl.any_horizontal(matches))
        return ViewFigures.of(chosen, self._k, self.parameters["draws"], self.parameters["seed"])

    def of_change(self, kind: str, dose: float | None) -> Iterable[dict[str, Any]]:
        """Both figures of one change."""
        figures = self._figures([(kind, dose)])
        told: dict[str, Any] = {"change": kind}
        if dose is not None:
            told[DOSES[kind]] = int(dose) if dose.is_integer() else dose
        absent = None if figures.n else self._why_absent([kind])
        yield self._row(
            "relative_shift",
            told,
            figures,
            absent or figures.no_shift(),
            lambda: (figures.relative_shift(), Null(1.0, 1.0)),
        )
        yield self._row(
            "kept_neighbours",
            told | {"k": self._k},
            figures,
            absent or figures.no_neighbours(),
            lambda: (figures.kept_neighbours(), figures.chance()),
        )

    def signature(self, which: str) -> dict[str, Any]:
        """Kept neighbours over the changes that stand for stain, or for the scanner."""
        changes = _signature_changes(self.parameters, which)
        threshold = self.parameters["thresholds"][which]
        held: dict[str, Any] = (
            {} if threshold is None else {"threshold": threshold, "direction": DIRECTION}
        )
        found = set(self.shifts.select("kind", "dose").iter_rows())
        kinds = [kind for kind, dose in changes if (kind, dose) not in found]
        figures = self._figures(changes)
        problem = (self._why_absent(kinds) if kinds else None) or figures.no_neighbours()
        names = [_signature_name(kind, dose) for kind, dose in changes]
        metric, told = f"{which}_kept_neighbours", {"changes": names, "k": self._k}
        row = self._row(
            metric,
            told,
            figures,
            problem,
            lambda: (figures.kept_neighbours(), figures.chance()),
            held,
        )
        if held and (row["null_low"] or 0.0) >= threshold:
            reason = (
                f"the pool is too small: chance alone is {row['null_low']:.3g}, which reaches the "
                f"threshold {threshold:g}; raise tile_pool.max_tiles or lower appearance.k"
            )
            return row | {"verdict": "not_applicable", "reason": reason}
        return row

    def _row(
        self,
        metric: str,
        told: Mapping[str, Any],
        figures: ViewFigures,
        problem: str | None,
        figure: Callable[[], tuple[Estimate, Null]],
        held: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        common = {**self._name, "setting": told, **(held or {})}
        if problem:
            return not_applicable(
                **common,
                metrics=[metric],
                reason=problem,
                n=figures.n,
                n_patients=figures.n_patients,
            )[0]
        estimate, null = figure()
        return measurement(**common, metric=metric, estimate=estimate, null=null)

    def _why_absent(self, kinds: Sequence[str]) -> str:
        if self.shifts.is_empty():
            return "no tile was changed: no usable slide of the pool has embedded views"
        if set(kinds) <= set(TRANSFERS):
            return (
                "fewer than two centers have a stain to take: the cohort has one center, or too few "
                "tiles of the others show haematoxylin and eosin (the table stain_references says "
                "which), or this encoder has no slide of those that have one; add centers or raise "
                "tile_pool.max_tiles"
            )
        return (
            "the views of this change were not embedded: list its dose in appearance and embed the "
            "views again"
        )


def _signature_changes(parameters: Mapping[str, Any], which: str) -> list[tuple[str, float | None]]:
    """Changes of a signature, in the order given.

    Raises
    ------
    ValueError
        If a change is unknown or its dose is missing or not among those measured.
    """
    measured = {(c.kind, c.dose) for c in view_changes(parameters, targets=1)} - {(CLEAN, None)}
    chosen = []
    for entry in parameters["signatures"][which]:
        kind, dose = entry["change"], entry.get("dose")
        key = (kind, None if dose is None else float(dose))
        if key not in measured:
            raise ValueError(
                f"appearance.signatures.{which}: {dict(entry)} is not among the changes measured; "
                f"add its dose to appearance.{kind} or choose another"
            )
        chosen.append(key)
    return chosen


def _signature_name(kind: str, dose: float | None) -> str:
    return Change(kind, dose).name if dose is not None else kind
