r"""Robustness index: whether neighbours share biology rather than the center.

Each neighbour of a query is typed by biology × center: SS (same label, same center), SO (same
label, other center), OS (other label, same center), OO. Over all queries and ranks ≤ k,

- ``ri = SO / (SO + OS)`` (Kömen et al. 2025, PathoROB),
- ``ri_ratio = (SS + SO) / (SS + OS)`` (de Jong et al. 2025).

The work is split in two. :func:`count_neighbours` reads the embeddings once and leaves counts per
query unit and neighbour unit, a *unit* being the tiles of one patient with one label from one
center (usually: a patient). :func:`choose_k` and :func:`robustness_index` work on these counts.

The interval
------------
A patient counts as query and as neighbour: patients are resampled in both roles, and the second-
order excess of that is taken off, see :mod:`pathfm_kedro.statistics.pair_bootstrap`. Tiles of the
same patient neighbour each other only with ``exclude: slide`` or ``none``.

It is the interval for another cohort of such patients, from whichever centers they come. Labels
permuted within fixed centers spread less, so that the interval is wider than that null's.

The null of a vote
------------------
The query's own patient is no candidate, so that its label is a little rarer among the candidates
than the others, and a majority of many neighbours makes more of a small difference. Chance is hence
not 1 / number of classes: without knowledge, 4 labels at 3 centers with 4 patients each give a
majority of 31 about 0.19. :func:`count_neighbours` lets the neighbours vote again with labels
permuted over the units of each center (centers: over those of each label).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.designs import codes_of
from pathfm_kedro.pipelines.robustness.neighbour_counts import (
    COUNTS_SCHEMA,
    OS,
    SO,
    SS,
    TYPES,
    count_neighbours,
)
from pathfm_kedro.statistics.bootstrap import bootstrap_weights, percentile_interval
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio, resampled_total
from pathfm_kedro.statistics.permutation import permuted_within

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

__all__ = [
    "COUNTS_SCHEMA",
    "TYPES",
    "choose_k",
    "count_neighbours",
    "robustness_index",
]

EXPERIMENT = "robustness_index"

#: Figures measured at every design and k.
METRICS = (
    "ri",
    "ri_ratio",
    "ri_minus_null",
    "ri_design_null",
    "support",
    "knn_accuracy_label",
    "knn_accuracy_center",
)

#: Beyond this many patients a dense patient × patient matrix costs more than it saves.
_DENSE_PATIENTS = 2000

#: Pairs of units compared at once under all permutations: they stay in the processor's cache.
_PERMUTED_PAIRS = 256


@dataclass(frozen=True)
class Pairs:
    """Who is whose neighbour how often, in one design; arrays are [m] unless said otherwise."""

    band: Ints
    query: Ints
    neighbour: Ints
    count: Floats


@dataclass(frozen=True)
class Design:
    """Counts of one design as arrays.

    A *node* is a unit in one scope within which labels may be exchanged: a unit, and in
    ``paired_2x2`` a unit in one pair. unit … center are codes per node; pairs are of nodes.
    """

    rows: pl.DataFrame
    k_grid: tuple[int, ...]
    n: int
    n_patients: int
    unit: Ints
    scope: Ints
    patient: Ints
    label: Ints
    center: Ints
    pairs: Pairs
    vote_nulls: Mapping[tuple[str, int], Null]


@dataclass(frozen=True)
class _Figure:
    estimate: Estimate
    null: Null
    reason: str | None = None


def choose_k(
    parameters: Mapping[str, Any],
    *,
    controls: Sequence[str] = (),
    **counts_by_encoder: pl.DataFrame,
) -> dict[str, Any]:
    """Number of neighbours whose vote names the label best, per encoder and for the cohort.

    Per encoder the first maximum of balanced accuracy over the grid, in the design named by
    ``k_design``; for the cohort the lower median over encoders, so that it is on the grid.

    Parameters
    ----------
    parameters
        ``robustness_index``: k_design.
    controls
        Encoders that have no say in the cohort's k, unless there are no others.
    counts_by_encoder
        Output of :func:`count_neighbours` per encoder.

    Returns
    -------
    dict
        ``{"k": int or None, "per_encoder": {encoder: int}}``; encoders whose design cannot be
        measured are missing.
    """
    per_encoder: dict[str, int] = {}
    for encoder in sorted(counts_by_encoder):
        rows = used_rows(counts_by_encoder[encoder], parameters["k_design"])
        if rows.height:
            accuracy = _accuracies(rows, "label", np.ones((1, rows["patient_id"].n_unique())))
            per_encoder[encoder] = int(rows["k"].unique().sort()[int(accuracy[:, 0].argmax())])
    voters = [k for name, k in per_encoder.items() if name not in controls]
    voters = voters or list(per_encoder.values())
    return {"k": median_low(voters) if voters else None, "per_encoder": per_encoder}


def robustness_index(
    counts: pl.DataFrame,
    chosen_k: Mapping[str, Any],
    parameters: Mapping[str, Any],
    encoder: str,
) -> pl.DataFrame:
    """Robustness index of one encoder with interval, design null and permutation null.

    Parameters
    ----------
    counts
        Output of :func:`count_neighbours`.
    chosen_k
        Output of :func:`choose_k`.
    parameters
        ``robustness_index``: designs, bootstrap_draws, n_permutations, seed, thresholds.
    encoder
        Name of the encoder.

    Returns
    -------
    DataFrame
        Measurements of :data:`METRICS` per design for the cohort's k (role ``cohort_k``), the
        encoder's own (``encoder_k``) and every k of the grid (``curve``). Only ``cohort_k`` in the
        design ``all`` is held against thresholds. Null of ri, ri_ratio and ri_minus_null: 95% of
        label permutations over units within centers; of the accuracies: 95% of the same
        permutations, for the center of permutations of centers over units within labels.
    """
    ks = {"cohort_k": chosen_k["k"], "encoder_k": chosen_k["per_encoder"].get(encoder)}
    rows: list[dict[str, Any]] = []
    for design in parameters["designs"]:
        used = used_rows(counts, design)
        rows += _left_out(counts, design, encoder)
        if used.is_empty():
            rows += _impossible(counts, design, parameters, encoder)
            continue
        figures = _figures(design_arrays(used, design, _vote_nulls(counts, design)), parameters)
        rows += [
            _row(figure, encoder, metric, design, k, role, parameters)
            for role, k in [*ks.items(), *(("curve", k) for k in figures)]
            if k in figures
            for metric, figure in figures[k].items()
        ]
    return measurement_table(rows)


def used_rows(counts: pl.DataFrame, design: str) -> pl.DataFrame:
    return counts.filter(pl.col("design") == design, pl.col("n").is_not_null())


def _vote_nulls(counts: pl.DataFrame, design: str) -> dict[tuple[str, int], Null]:
    """95% of the permutations of each accuracy at each k, averaged over draws or pairs."""
    rows = counts.filter(pl.col("design") == design, pl.col("null_label").is_not_null())
    return {
        (target, k): Null(*percentile_interval(np.mean(drawn, axis=0)))
        for target in ("label", "center")
        for k, drawn in rows.group_by("k", maintain_order=True).agg(f"null_{target}").iter_rows()
    }


def _row(
    figure: _Figure,
    encoder: str,
    metric: str,
    design: str,
    k: int,
    role: str,
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    return measurement(
        experiment=EXPERIMENT,
        encoder=encoder,
        metric=metric,
        estimate=figure.estimate,
        setting={"design": design, "k": k, "role": role},
        null=figure.null,
        reason=figure.reason,
        **_threshold(metric, design, role, parameters),
    )


def _threshold(
    metric: str, design: str, role: str, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Threshold and direction of a failure signature; nothing for a figure that is none."""
    if design != "all" or role != "cohort_k":
        return {}
    return dict(parameters["thresholds"].get(metric) or {})


def _left_out(counts: pl.DataFrame, design: str, encoder: str) -> list[dict[str, Any]]:
    """One row per cell with too few patients or tiles: what the figures do not speak of."""
    cells = counts.filter(
        pl.col("design") == design, pl.col("draw").is_null(), pl.col("label").is_not_null()
    )
    return [
        row
        for label, center, reason in cells.select("label", "center", "reason").iter_rows()
        for row in not_applicable(
            experiment=EXPERIMENT,
            encoder=encoder,
            metrics=["ri"],
            reason=reason,
            stratum=f"{label} × {center}",
            setting={"design": design, "role": "left_out"},
        )
    ]


def _impossible(
    counts: pl.DataFrame, design: str, parameters: Mapping[str, Any], encoder: str
) -> list[dict[str, Any]]:
    why = counts.filter(pl.col("design") == design, pl.col("label").is_null())["reason"]
    reason = why[0] if len(why) else f"design {design!r} was not counted: add it to designs"
    return [
        row
        for metric in METRICS
        for row in not_applicable(
            experiment=EXPERIMENT,
            encoder=encoder,
            metrics=[metric],
            reason=reason,
            setting={"design": design, "k": None, "role": "cohort_k"},
            **_threshold(metric, design, "cohort_k", parameters),
        )
    ]


def design_arrays(
    rows: pl.DataFrame, design: str, vote_nulls: Mapping[tuple[str, int], Null]
) -> Design:
    """Counts of one design with nodes numbered from 0; draws of design ``all`` are pooled."""
    scope = pl.col("draw") if design == "paired_2x2" else pl.lit(0, pl.Int32())
    rows = rows.with_columns(scope.alias("scope"))
    nodes = (
        rows.select("scope", "unit", "patient_id", "label", "center")
        .unique()
        .sort("scope", "unit")
        .with_row_index("node")
    )
    k_grid = tuple(rows["k"].unique().sort())
    queries = int(rows.filter(pl.col("k") == k_grid[0])["n"].sum())
    return Design(
        rows=rows,
        k_grid=k_grid,
        n=queries // rows["draw"].n_unique() if design == "all" else queries,
        n_patients=rows["patient_id"].n_unique(),
        unit=codes_of(nodes["unit"]),
        scope=codes_of(nodes["scope"]),
        patient=codes_of(nodes["patient_id"]),
        label=codes_of(nodes["label"]),
        center=codes_of(nodes["center"]),
        pairs=pooled_pairs(rows, nodes, k_grid),
        vote_nulls=vote_nulls,
    )


def pooled_pairs(rows: pl.DataFrame, nodes: pl.DataFrame, k_grid: Sequence[int]) -> Pairs:
    """Pairs of nodes in each band of ranks, summed over the draws of a scope; sorted."""
    met = rows.filter(pl.col("neighbours").is_not_null())
    sizes = met["neighbours"].list.len().to_numpy()
    unit = nodes["unit"].to_numpy()
    base = int(unit.max(initial=0)) + 1
    keys = nodes["scope"].cast(pl.Int64).to_numpy() * base + unit
    scope = met["scope"].cast(pl.Int64).to_numpy() * base
    query = np.searchsorted(keys, scope + met["unit"].to_numpy())
    neighbour = np.searchsorted(
        keys, np.repeat(scope, sizes) + met["neighbour_unit"].explode().to_numpy()
    )
    band = np.searchsorted(k_grid, met["k"].to_numpy())
    code = np.repeat((band * len(keys) + query) * len(keys), sizes) + neighbour
    codes, where = np.unique(code, return_inverse=True)
    rest, neighbour = np.divmod(codes, len(keys))
    band, query = np.divmod(rest, len(keys))
    count = np.bincount(where, met["neighbours"].explode().to_numpy()).astype(np.float64)
    return Pairs(band, query, neighbour, count)


def _figures(design: Design, parameters: Mapping[str, Any]) -> dict[int, dict[str, _Figure]]:
    """Every metric at every k of the grid."""
    weights = bootstrap_weights(
        design.n_patients, parameters["bootstrap_draws"], parameters["seed"]
    )
    nulls = _permutation_nulls(design, parameters["n_permutations"], parameters["seed"])
    votes = _vote_figures(design, weights)
    return {
        k: _index_figures(design, k, estimates, null) | votes[k]
        for k, estimates, null in zip(
            design.k_grid, _index_estimates(design, weights), nulls, strict=True
        )
    }


def _index_figures(
    design: Design,
    k: int,
    estimates: Mapping[str, Estimate],
    null: Mapping[str, Null],
) -> dict[str, _Figure]:
    expected = design.rows.filter(pl.col("k") == k).select(pl.col("^expected_.*$").sum()).row(0)
    chance = expected[SO] / (expected[SO] + expected[OS])
    ri = estimates["ri"]
    reasons = {name: _undefined(estimate, k) for name, estimate in estimates.items()}
    return {
        "ri": _Figure(ri, null["ri"], reasons["ri"]),
        "ri_ratio": _Figure(estimates["ri_ratio"], null["ri_ratio"], reasons["ri_ratio"]),
        "ri_minus_null": _Figure(
            Estimate(
                _minus(ri.value, chance),
                _minus(ri.ci_low, chance),
                _minus(ri.ci_high, chance),
                ri.n,
                ri.n_patients,
            ),
            Null(_minus(null["ri"].low, chance), _minus(null["ri"].high, chance)),
            reasons["ri"],
        ),
        "ri_design_null": _Figure(
            Estimate(chance, chance, chance, design.n, design.n_patients), Null(chance, chance)
        ),
    }


def _undefined(estimate: Estimate, k: int) -> str | None:
    """Why an index has no value or no interval, with the mend; None if it has both."""
    if estimate.value is None:
        return f"among {k} neighbours none is of a kind that this index counts: take a larger k"
    if estimate.ci_low is None:
        return (
            "no interval: in more than 5% of the resampled cohorts no neighbour is of a kind that "
            f"this index counts, among {k}: add patients, or take a larger k"
        )
    return None


def _minus(value: float | None, chance: float) -> float | None:
    return None if value is None else value - chance


def _vote_figures(design: Design, weights: Floats) -> dict[int, dict[str, _Figure]]:
    """Support and kNN accuracy at each k; patients are resampled as queries."""
    n, size = design.n, design.n_patients
    ones = np.ones((1, size))
    figures: dict[int, dict[str, _Figure]] = {}
    points, drawn = (_supports(design, each) for each in (ones, weights))
    for k, point, draws in zip(design.k_grid, points[:, 0], drawn, strict=True):
        estimate = Estimate(float(point), *percentile_interval(draws), n, size)
        figures[k] = {"support": _Figure(estimate, Null())}
    for target in ("label", "center"):
        draws = _accuracies(design.rows, target, weights)
        points = _accuracies(design.rows, target, ones)[:, 0]
        for k, point, drawn in zip(design.k_grid, points, draws, strict=True):
            figures[k][f"knn_accuracy_{target}"] = _Figure(
                Estimate(float(point), *percentile_interval(drawn), n, size),
                design.vote_nulls[target, k],
            )
    return figures


def _supports(design: Design, weights: Floats) -> Floats:
    """[k, draws] share of queries with SO or OS among their k neighbours."""
    rows, shape = design.rows, (design.n_patients, len(design.k_grid))
    cell = np.ravel_multi_index((codes_of(rows["patient_id"]), codes_of(rows["k"])), shape)
    supported, asked = (
        weights @ np.bincount(cell, rows[name], int(np.prod(shape))).reshape(shape)
        for name in ("supported", "n")
    )
    with np.errstate(invalid="ignore"):
        return (supported / asked).T


def _accuracies(rows: pl.DataFrame, target: str, weights: Floats) -> Floats:
    """[k, draws] balanced accuracy of the vote: mean over classes of recall, then over scopes."""
    names = ("patient_id", "k", "draw", target)
    codes = [codes_of(rows[name]) for name in names]
    shape = (weights.shape[1], *(int(code.max()) + 1 for code in codes[1:]))
    cell = np.ravel_multi_index(codes, shape)
    hits, asked = (
        (weights @ np.bincount(cell, rows[name], int(np.prod(shape))).reshape(shape[0], -1))
        for name in (f"hits_{target}", "n")
    )
    recalls = np.where(asked > 0, hits / np.maximum(asked, 1), 0.0).reshape(-1, *shape[1:])
    present = (asked > 0).reshape(recalls.shape).sum(axis=3)
    by_scope = recalls.sum(axis=3) / np.maximum(present, 1)
    filled = (present > 0).sum(axis=2)
    mean = by_scope.sum(axis=2) / np.maximum(filled, 1)
    return np.where(filled > 0, mean, np.nan).T


def _index_estimates(design: Design, weights: Floats) -> Iterator[dict[str, Estimate]]:
    """Estimates of ri and ri_ratio at each k of the grid, from counts added band by band."""
    pairs, size, node_patient = design.pairs, design.n_patients, design.patient
    same_label = design.label[pairs.query] == design.label[pairs.neighbour]
    same_center = design.center[pairs.query] == design.center[pairs.neighbour]
    kind = 2 * ~same_label + ~same_center
    drawn = _resampled_counts(design, weights)
    counts = [patient_matrix(pairs, kind < 0, node_patient, size)] * 3
    for band in range(len(design.k_grid)):
        for i in (SS, SO, OS):
            added = patient_matrix(pairs, (pairs.band == band) & (kind == i), node_patient, size)
            counts[i] = counts[i] + added
        ss, so, os = drawn[band]
        yield {
            "ri": pair_ratio(
                counts[SO], counts[SO] + counts[OS], np.stack([so, so + os]), design.n, 1.0
            ),
            "ri_ratio": pair_ratio(
                counts[SS] + counts[SO],
                counts[SS] + counts[OS],
                np.stack([ss + so, ss + os]),
                design.n,
            ),
        }


@dataclass(frozen=True)
class IndexDraws:
    """The index at one k with what a comparison of encoders needs.

    Attributes
    ----------
    value
        The index.
    draws
        [draws] in each resampled cohort, patients in both roles.
    influence, weight
        [P, P] (SO − ri·(SO + OS)) and SO + OS of each two patients, over the sum of SO + OS.
    patients
        Names of the patients, in order.
    n
        Queries behind the index.
    """

    value: float
    draws: Floats
    influence: Any
    weight: Any
    patients: tuple[str, ...]
    n: int


def index_draws(
    counts: pl.DataFrame, design: str, k: int, parameters: Mapping[str, Any]
) -> IndexDraws | None:
    """Index of an encoder at one k in every resampled cohort; None if it is undefined.

    Parameters
    ----------
    counts
        Output of :func:`count_neighbours`.
    design, k
        Which index.
    parameters
        ``robustness_index``: bootstrap_draws, seed.
    """
    rows = used_rows(counts, design)
    if rows.is_empty() or k not in rows["k"]:
        return None
    arrays = design_arrays(rows, design, {})
    pairs, size = arrays.pairs, arrays.n_patients
    same_label = arrays.label[pairs.query] == arrays.label[pairs.neighbour]
    same_center = arrays.center[pairs.query] == arrays.center[pairs.neighbour]
    near = pairs.band <= arrays.k_grid.index(k)
    matching, typed = (
        patient_matrix(pairs, near & chosen, arrays.patient, size)
        for chosen in (same_label & ~same_center, same_label ^ same_center)
    )
    below = float(typed.sum())
    if below == 0:
        return None
    weights = bootstrap_weights(size, parameters["bootstrap_draws"], parameters["seed"])
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = resampled_total(matching, weights) / resampled_total(typed, weights)
    value = float(matching.sum()) / below
    return IndexDraws(
        value,
        draws,
        (matching - value * typed) / below,
        typed / below,
        tuple(rows["patient_id"].unique().sort()),
        arrays.n,
    )


def _resampled_counts(design: Design, weights: Floats) -> Floats:
    """[k, 3, draws] SS, SO and OS among the k neighbours in each bootstrap draw.

    Neighbours with the same label are counted within each label, and so on: small matrices of the
    patients concerned take less time than three of all patients.
    """
    cell = design.label * (int(design.center.max()) + 1) + design.center
    drawn = weights.astype(np.float32)
    label, center, both = (
        _resampled_within(design, key, drawn) for key in (design.label, design.center, cell)
    )
    # Sums of integers: the differences are exact.
    return np.stack([both, label - both, center - both], axis=1).cumsum(axis=0)


def _resampled_within(design: Design, key: Ints, weights: NDArray[np.float32]) -> Floats:
    """[bands, draws] resampled number of neighbours with the query's key."""
    pairs, patient = design.pairs, design.patient
    total = np.zeros((len(design.k_grid), len(weights)))
    met = np.where(key[pairs.query] == key[pairs.neighbour], key[pairs.query], -1)
    for code in np.unique(key):
        members = np.unique(patient[key == code])
        place = np.searchsorted(members, patient)
        here = np.ascontiguousarray(weights[:, members])
        for band in range(len(total)):
            chosen = np.flatnonzero((met == code) & (pairs.band == band))
            total[band] += resampled_total(patient_matrix(pairs, chosen, place, len(members)), here)
    return total


def patient_matrix(pairs: Pairs, chosen: NDArray[Any], patient: Ints, size: int) -> Any:
    """Patient × patient counts of the chosen pairs; sparse for many patients."""
    rows, columns = patient[pairs.query[chosen]], patient[pairs.neighbour[chosen]]
    if size > _DENSE_PATIENTS:
        from scipy.sparse import csr_array

        return csr_array((pairs.count[chosen], (rows, columns)), shape=(size, size))
    cells = np.bincount(rows * size + columns, pairs.count[chosen], minlength=size * size)
    return cells.reshape(size, size).astype(np.float64, copy=False)


def _permutation_nulls(design: Design, draws: int, seed: int) -> list[dict[str, Null]]:
    """95% range of ri and ri_ratio at each k when labels are permuted within centers."""
    return [
        {"ri": Null(*percentile_interval(ri)), "ri_ratio": Null(*percentile_interval(ratio))}
        for ri, ratio in permuted_indices(design, draws, seed)
    ]


def permuted_indices(design: Design, draws: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """[draws] ri and ri_ratio at each k when labels are permuted over units within centers."""
    strata = design.scope * (int(design.center.max()) + 1) + design.center
    labels = permuted_within(design.label, strata, draws, seed, design.unit)
    pairs = design.pairs
    same_center = design.center[pairs.query] == design.center[pairs.neighbour]
    ss, so, near = np.zeros(draws), np.zeros(draws), 0.0
    for band in range(len(design.k_grid)):
        ss = ss + agreeing(pairs, (pairs.band == band) & same_center, labels)
        so = so + agreeing(pairs, (pairs.band == band) & ~same_center, labels)
        near += float(pairs.count[(pairs.band == band) & same_center].sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            yield so / (so + near - ss), (ss + so) / near


def agreeing(pairs: Pairs, chosen: NDArray[np.bool_], labels: Ints) -> Floats:
    """[draws] how many of the chosen neighbours have the query's label in each permutation."""
    few = labels.astype(np.min_scalar_type(int(labels.max(initial=0))))
    total = np.zeros(labels.shape[1])
    index = np.flatnonzero(chosen)
    for start in range(0, len(index), _PERMUTED_PAIRS):
        part = index[start : start + _PERMUTED_PAIRS]
        agree = few[pairs.query[part]] == few[pairs.neighbour[part]]
        total += pairs.count[part].astype(np.float32) @ agree.astype(np.float32)
    return total
