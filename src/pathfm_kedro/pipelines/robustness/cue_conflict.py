r"""Cue conflict: with one center's morphology in another's stain, which do neighbours follow.

A tile with label L from center A takes the stain of center B (the transfers of the appearance
experiment). Its k nearest neighbours are sought among the clean tiles of other patients, and each is
one of

- morphology: label L, from a center other than B (``any``) or from A itself (``origin``);
- stain: from center B, with another label;
- neither cue or both at once (label L from B), which tells nothing.

``follows_morphology = morphology / (morphology + stain)``, pooled over tiles, targets and the k
neighbours. If all candidates were equally likely it would be the ratio of the expected counts, its
null: (C − 1)/(C + L − 2) with C centers and L labels in equal numbers, as for the robustness index.
``morphology_loss`` is the same figure of the tile before the transfer (view ``clean``) minus this one:
how much the stain pulled. Before, both cues point home, so that the clean figure is high for whoever
knows either. Pairs of tile and target count only where both kinds of neighbour exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.appearance import nearest_clean, view_stack
from pathfm_kedro.pipelines.robustness.appearance_views import (
    CLEAN,
    TRANSFERS,
    Change,
    n_targets,
    target_centers,
    usable_references,
    view_changes,
)
from pathfm_kedro.pipelines.robustness.mutual_knn import candidate_counts, unit
from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    patient_codes,
    percentile_interval,
)
from pathfm_kedro.statistics.measurements import (
    Direction,
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio, resampled_total
from pathfm_kedro.statistics.tables import Embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

EXPERIMENT = "cue_conflict"
METRIC = "follows_morphology"
SIGNATURE = "follows_morphology_minus_null"
DIRECTION: Direction = "above"

#: Seen in another center's stain, and as it is.
TRANSFERRED = "transferred"
VIEWS = (TRANSFERRED, CLEAN)
#: Whose morphology counts: any center's but the target's, or the tile's own center's.
SCOPES = ("any", "origin")

#: Two kinds of rows, by transfer, view and k:
#:
#: - with neighbour_patient: how often patient_id's tiles met that patient's tiles as morphology (in
#:   each scope) and as stain;
#: - without: patient_id's tiles asked (n_queries, once for each target) and the counts expected if
#:   every candidate were equally likely.
COUNTS_SCHEMA: dict[str, pl.DataType] = {
    "change": pl.String(),
    "view": pl.String(),
    "k": pl.Int64(),
    "patient_id": pl.String(),
    "neighbour_patient": pl.String(),
    "n_queries": pl.Int64(),
    "morphology_any": pl.Float64(),
    "morphology_origin": pl.Float64(),
    "stain": pl.Float64(),
}
_CUES = ("morphology_any", "morphology_origin", "stain")


@dataclass(frozen=True)
class _Pool:
    """Clean tiles as candidates, as codes [n]; names of patients in their order."""

    vectors: Floats
    patients: Ints
    labels: Ints
    centers: Ints
    names: list[str]

    def cues(self, rows: Ints, targets: Ints) -> Flags:
        """[3, q, n] whether candidate j is morphology (any, origin) or stain for query and target."""
        same = self.labels[rows, None] == self.labels
        in_target = targets[:, None] == self.centers
        at_home = self.centers[rows, None] == self.centers
        other = self.patients[rows, None] != self.patients
        cues: Flags = np.stack([same & ~in_target, same & at_home, ~same & in_target]) & other
        return cues


def cue_conflict_counts(
    views: Embeddings,
    pool: pl.DataFrame,
    references: pl.DataFrame,
    appearance: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> pl.DataFrame:
    """Count neighbours that share the morphology or the stain of a transferred tile.

    Parameters
    ----------
    views
        What ``plan_appearance_views`` left.
    pool
        The tiles; those without label or center are left out.
    references
        From ``center_references``.
    appearance
        The parameters of the views.
    parameters
        ``cue_conflict``: k (list).

    Returns
    -------
    DataFrame
        Columns :data:`COUNTS_SCHEMA`; empty where no tile of the pool has a conflict.
    """
    known, most = list(usable_references(references)), int(appearance["max_targets"])
    changes = view_changes(appearance, n_targets(known, most))
    present, stack = view_stack(views, pool, [change.name for change in changes], "appearance")
    whole = present.select(pl.all_horizontal(pl.col("label", "center").is_not_null()))
    complete = whole.to_series().to_numpy().astype(np.bool_)
    present, stack = present.filter(complete), stack[complete]
    if present.is_empty() or len(known) < 2:
        return pl.DataFrame(schema=COUNTS_SCHEMA)
    tiles = _pool_of(present, stack[:, 0])
    targets = _target_codes(present, known, most)
    frames = [
        frame
        for kind in TRANSFERS
        for frame in _counts_of_transfer(kind, changes, stack, tiles, targets, parameters["k"])
    ]
    return pl.concat([pl.DataFrame(schema=COUNTS_SCHEMA), *frames])


def _pool_of(present: pl.DataFrame, clean: NDArray[np.float32]) -> _Pool:
    patients, _ = patient_codes(present["patient_id"].to_numpy())
    labels = np.unique(present["label"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    return _Pool(
        unit(clean),
        patients,
        labels,
        _center_codes(present, present["center"]),
        present["patient_id"].unique().sort().to_list(),
    )


def _center_codes(present: pl.DataFrame, names: pl.Series) -> Ints:
    """Centers as codes in sorted order; −1 where there is none."""
    centers = present["center"].unique().sort().to_list()
    codes = names.replace_strict(
        centers, list(range(len(centers))), default=-1, return_dtype=pl.Int64
    )
    return codes.fill_null(-1).to_numpy()


def _target_codes(present: pl.DataFrame, known: list[str], most: int) -> Ints:
    """[n, targets] code of each tile's target centers, −1 where it has none."""
    width = n_targets(known, most)
    of_center = {
        center: target_centers(known, center, most) for center in present["center"].unique()
    }
    columns = [
        present["center"].replace_strict(
            list(of_center),
            [found[place] if place < len(found) else None for found in of_center.values()],
            return_dtype=pl.String,
        )
        for place in range(width)
    ]
    return np.stack([_center_codes(present, column) for column in columns], axis=1)


def _counts_of_transfer(
    kind: str,
    changes: tuple[Change, ...],
    stack: NDArray[np.float32],
    tiles: _Pool,
    targets: Ints,
    ks: Iterable[int],
) -> Iterable[pl.DataFrame]:
    """Frames of counts of one transfer, one for each view and k."""
    places = [(i, change.target) for i, change in enumerate(changes) if change.kind == kind]
    fewest = int(candidate_counts(tiles.patients).min())
    supported = sorted({int(k) for k in ks if k <= fewest})
    parts = [
        _Queries.of(tiles, targets[:, target], unit(stack[:, place]), supported)
        for place, target in places
    ]
    for k in supported:
        for view in VIEWS:
            told = {"change": pl.lit(kind), "view": pl.lit(view), "k": pl.lit(k, pl.Int64)}
            for frame in (_met(tiles, parts, view, k), _expected(tiles, parts, k)):
                yield frame.with_columns(**told).select(
                    pl.col(name).cast(dtype) for name, dtype in COUNTS_SCHEMA.items()
                )


@dataclass(frozen=True)
class _Queries:
    """Tiles with a conflict under one target: rows [q], cues [3, q, n], neighbours [q, k]."""

    rows: Ints
    cues: Flags
    neighbours: Mapping[str, NDArray[np.intp]]

    @classmethod
    def of(cls, tiles: _Pool, targets: Ints, view: Floats, ks: list[int]) -> _Queries:
        rows = np.flatnonzero(targets >= 0)
        cues = tiles.cues(rows, targets[rows])
        conflict = cues[0].any(axis=1) & cues[2].any(axis=1)
        rows, cues = rows[conflict], cues[:, conflict]
        depth = max(ks, default=1)
        near = {
            name: nearest_clean(vectors, tiles.vectors, tiles.patients, depth)[rows]
            for name, vectors in ((TRANSFERRED, view), (CLEAN, tiles.vectors))
        }
        return cls(rows, cues, near)

    def found(self, view: str, k: int) -> tuple[NDArray[np.intp], Flags]:
        """Neighbours [q, k] and whether each is morphology (any, origin) or stain [3, q, k]."""
        near = self.neighbours[view][:, :k]
        return near, np.take_along_axis(self.cues, np.stack([near] * len(self.cues)), axis=2)


def _met(tiles: _Pool, parts: list[_Queries], view: str, k: int) -> pl.DataFrame:
    """Cues met by pair of patients."""
    size = len(tiles.names)
    counts = np.zeros((len(_CUES), size * size))
    for part in parts:
        near, cues = part.found(view, k)
        pair = tiles.patients[part.rows, None] * size + tiles.patients[near]
        for cue, flags in enumerate(cues):
            counts[cue] += np.bincount(pair[flags], minlength=size * size)
    where = np.flatnonzero(counts.any(axis=0))
    names = np.array(tiles.names, dtype=object)
    return pl.DataFrame(
        {
            "patient_id": pl.Series(names[where // size].tolist(), dtype=pl.String),
            "neighbour_patient": pl.Series(names[where % size].tolist(), dtype=pl.String),
            "n_queries": pl.Series([0] * len(where), dtype=pl.Int64),
            **dict(zip(_CUES, counts[:, where], strict=True)),
        }
    )


def _expected(tiles: _Pool, parts: list[_Queries], k: int) -> pl.DataFrame:
    """Queries of each patient and the cues that equally likely candidates would give."""
    size = len(tiles.names)
    queries, sums = np.zeros(size, np.int64), np.zeros((len(_CUES), size))
    candidates = candidate_counts(tiles.patients)
    for part in parts:
        owners = tiles.patients[part.rows]
        queries += np.bincount(owners, minlength=size)
        share = part.cues.sum(axis=2) * k / candidates[part.rows]
        sums += np.stack([np.bincount(owners, weights=row, minlength=size) for row in share])
    return pl.DataFrame(
        {
            "patient_id": tiles.names,
            "neighbour_patient": pl.Series([None] * size, dtype=pl.String),
            "n_queries": queries,
            **dict(zip(_CUES, sums, strict=True)),
        }
    )


def cue_conflict_measurements(
    counts: pl.DataFrame, parameters: Mapping[str, Any], encoder: str
) -> pl.DataFrame:
    """Turn the counts into the rows of the measurements table.

    Per transfer and k: ``follows_morphology`` (views transferred and clean, scopes any and origin),
    ``follows_morphology_minus_null`` and ``morphology_loss``. Patients are resampled as queries and
    as neighbours. The signature is follows_morphology_minus_null at ``signature``.

    Parameters
    ----------
    counts
        From :func:`cue_conflict_counts`.
    parameters
        ``cue_conflict``: k, signature (change, k), thresholds (morphology), draws, seed.
    encoder
        Name for the table.

    Raises
    ------
    ValueError
        If the signature is not among what is measured.
    """
    signature = parameters["signature"]
    if signature["change"] not in TRANSFERS or signature["k"] not in parameters["k"]:
        raise ValueError(
            f"cue_conflict.signature {dict(signature)} is not measured: take one of {TRANSFERS} and "
            f"one of cue_conflict.k ({parameters['k']})"
        )
    return measurement_table(
        row
        for change in TRANSFERS
        for k in sorted(set(parameters["k"]))
        for row in _rows(counts.filter(change=change, k=k), change, k, parameters, encoder)
    )


@dataclass(frozen=True)
class _Ratio:
    """Morphology and conflict counts [P, P] of one view and scope, its null, who asked."""

    numerator: Floats
    denominator: Floats
    null: float | None
    n: int
    n_patients: int
    weights: Floats

    def drawn(self) -> Floats:
        """[2, draws] both sums in every draw."""
        return np.stack(
            [resampled_total(m, self.weights) for m in (self.numerator, self.denominator)]
        )

    def estimate(self) -> Estimate:
        whole = pair_ratio(self.numerator, self.denominator, self.drawn(), self.n, most=1.0)
        return replace(whole, n_patients=self.n_patients)


def _ratio(counts: pl.DataFrame, view: str, scope: str, weights: Floats) -> _Ratio:
    part = counts.filter(view=view)
    asked = part.filter(pl.col("neighbour_patient").is_null())
    names = asked["patient_id"].unique().sort().to_list()
    met = part.filter(pl.col("neighbour_patient").is_not_null())
    morphology, stain = (_matrix(met, names, column) for column in (f"morphology_{scope}", "stain"))
    expected = asked[f"morphology_{scope}"].sum(), asked["stain"].sum()
    total = float(sum(expected))
    null = float(expected[0]) / total if total else None
    n, n_patients = int(asked["n_queries"].sum()), _asking(asked)
    return _Ratio(morphology, morphology + stain, null, n, n_patients, weights)


def _asking(asked: pl.DataFrame) -> int:
    """Patients with a tile that has a conflict; the others are candidates only."""
    return asked.filter(pl.col("n_queries") > 0)["patient_id"].n_unique()


def _matrix(met: pl.DataFrame, names: list[str], column: str) -> Floats:
    """[P, P] counts by the patient that asks and the one met."""
    place = dict(zip(names, range(len(names)), strict=True))
    matrix = np.zeros((len(names), len(names)))
    rows, columns = (
        met[name].replace_strict(place, return_dtype=pl.Int64).to_numpy()
        for name in ("patient_id", "neighbour_patient")
    )
    matrix[rows, columns] = met[column].to_numpy()
    return matrix


def _rows(
    counts: pl.DataFrame, change: str, k: int, parameters: Mapping[str, Any], encoder: str
) -> Iterable[dict[str, Any]]:
    told = {"change": change, "k": k}
    name: dict[str, Any] = {"experiment": EXPERIMENT, "encoder": encoder}
    held = _held(parameters, change, k)
    problem = _problem(counts, k)
    if problem:
        asked = counts.filter(pl.col("neighbour_patient").is_null(), view=TRANSFERRED)
        common = {
            "reason": problem,
            "n": int(asked["n_queries"].sum()),
            "n_patients": _asking(asked),
            **name,
        }
        metric = told | {"view": TRANSFERRED, "scope": "any"}
        yield from not_applicable(**common, metrics=[METRIC], setting=metric)
        yield from not_applicable(**common, metrics=[SIGNATURE], setting=told, **held)
        yield from not_applicable(**common, metrics=["morphology_loss"], setting=told)
        return
    n_patients = counts["patient_id"].n_unique()
    weights = bootstrap_weights(n_patients, parameters["draws"], parameters["seed"])
    ratios = {
        (view, scope): _ratio(counts, view, scope, weights) for view in VIEWS for scope in SCOPES
    }
    for (view, scope), ratio in ratios.items():
        setting = told | {"view": view, "scope": scope}
        yield _ratio_row(ratio, setting, name)
    moved, clean = ratios[TRANSFERRED, "any"], ratios[CLEAN, "any"]
    yield _minus_null_row(moved, told, name, held)
    yield _loss_row(moved, clean, told, name)


def _ratio_row(
    ratio: _Ratio, setting: Mapping[str, Any], name: Mapping[str, Any]
) -> dict[str, Any]:
    if not ratio.denominator.sum():
        return _no_cue(METRIC, ratio, setting, name, {})
    null = Null(ratio.null, ratio.null)
    return measurement(**name, metric=METRIC, setting=setting, estimate=ratio.estimate(), null=null)


def _minus_null_row(
    ratio: _Ratio, told: Mapping[str, Any], name: Mapping[str, Any], held: Mapping[str, Any]
) -> dict[str, Any]:
    if not ratio.denominator.sum() or ratio.null is None:
        return _no_cue(SIGNATURE, ratio, told, name, held)
    estimate = _moved_by(ratio.estimate(), -ratio.null)
    return measurement(
        **name, metric=SIGNATURE, setting=told, estimate=estimate, null=Null(0.0, 0.0), **held
    )


def _loss_row(
    moved: _Ratio, clean: _Ratio, told: Mapping[str, Any], name: Mapping[str, Any]
) -> dict[str, Any]:
    """Difference of the two views over the same draws."""
    if not moved.denominator.sum() or not clean.denominator.sum():
        return _no_cue("morphology_loss", moved, told, name, {})
    with np.errstate(invalid="ignore", divide="ignore"):
        before, after = (np.divide(*ratio.drawn()) for ratio in (clean, moved))
    value = (
        clean.numerator.sum() / clean.denominator.sum()
        - moved.numerator.sum() / moved.denominator.sum()
    )
    low, high = percentile_interval(before - after)
    estimate = Estimate(float(value), low, high, moved.n, moved.n_patients)
    return measurement(
        **name,
        metric="morphology_loss",
        setting=told,
        estimate=estimate,
        null=Null(0.0, 0.0),
    )


def _no_cue(
    metric: str,
    ratio: _Ratio,
    setting: Mapping[str, Any],
    name: Mapping[str, Any],
    held: Mapping[str, Any],
) -> dict[str, Any]:
    return not_applicable(
        **name,
        metrics=[metric],
        setting=setting,
        n=ratio.n,
        n_patients=ratio.n_patients,
        reason="no neighbour shares the morphology alone or the stain alone: raise cue_conflict.k",
        **held,
    )[0]


def _moved_by(estimate: Estimate, shift: float) -> Estimate:
    def moved(number: float | None) -> float | None:
        return None if number is None else number + shift

    return replace(
        estimate,
        value=moved(estimate.value),
        ci_low=moved(estimate.ci_low),
        ci_high=moved(estimate.ci_high),
    )


def _held(parameters: Mapping[str, Any], change: str, k: int) -> dict[str, Any]:
    """Threshold and direction of the signature, at its transfer and k."""
    threshold = parameters["thresholds"]["morphology"]
    signature = parameters["signature"]
    if threshold is None or (change, k) != (signature["change"], signature["k"]):
        return {}
    return {"threshold": threshold, "direction": DIRECTION}


def _problem(counts: pl.DataFrame, k: int) -> str | None:
    """Why no figure can be given; None where it can."""
    if counts.is_empty():
        return (
            "no tile could take another center's stain: the cohort needs two centers whose tiles show "
            f"haematoxylin and eosin, and at least {k} tiles of other patients for every tile; add "
            "centers, raise tile_pool.max_tiles or lower cue_conflict.k"
        )
    if not counts["n_queries"].sum():
        return (
            "no tile meets both a tile of its label outside the target center and one of another "
            "label in it: add labels, or patients of each label at each center"
        )
    if counts["patient_id"].n_unique() < 2:
        return "the pool holds one patient: an interval over patients needs two; add patients"
    return None
