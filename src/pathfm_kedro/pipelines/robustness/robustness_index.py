r"""Robustness index: whether neighbours share biology rather than the center.

Each neighbour of a query is typed by biology × center: SS (same label, same center), SO (same
label, other center), OS (other label, same center), OO. Over all queries and ranks ≤ k,

- ``ri = SO / (SO + OS)`` (Kömen et al. 2025, PathoROB),
- ``ri_ratio = (SS + SO) / (SS + OS)`` (de Jong et al. 2025),
- ``ri_design_null``, ``ri_ratio_design_null``: both if every eligible tile were equally likely to be
  a neighbour, counted over the queries (the query's own patient is not eligible, so that the ratio
  lies below C / B for B labels and C centers); ``ri_minus_null``: what the encoder adds;
- ``support``: share of queries with SO or OS among their neighbours;
- ``knn_accuracy_label``, ``knn_accuracy_center``: balanced accuracy of the neighbours' vote. The
  first k at which the label is voted best is the encoder's own (``own_k``, and the index there);
  :func:`choose_k` takes the lower median over encoders for the cohort (role ``cohort_k``). That moves
  when an encoder joins, unless the parameter ``k`` keeps it.

The interval
------------
A patient counts as query and as neighbour: patients are resampled in both roles, and the second-
order excess of that is taken off, see :mod:`pathfm_kedro.statistics.pair_bootstrap`. The interval of
``ri`` is symmetric in the logarithm of SO / OS, that of ``ri_ratio``, which has no largest value, in
its own, so that both stay within their range; an index of 0 or 1 has the exact binomial interval of so
many patients. Tiles of the same patient
neighbour each other only with ``exclude: slide`` or ``none``.

It is the interval for another cohort of such patients, from whichever centers they come. Labels
permuted within fixed centers spread less, so that the interval is wider than that null's.

Two nulls
---------
The design null is what ``ri_minus_null`` subtracts. A verdict must clear the encoder's own null too:
the index of the same neighbours with labels permuted within centers. Vectors whose centers were
pushed apart, as centring them does, exceed the design null without knowing a label.

k is chosen on the tiles that are judged, which favours the label by chance. The votes on permuted
labels choose anew in each permutation; what that adds to the mean is subtracted as well, and the error
that so many permutations leave in it is in the interval.

The null of a vote
------------------
The query's own patient is no candidate, so that its label is a little rarer among the candidates
than the others, and a majority of many neighbours makes more of a small difference. Chance is hence
not 1 / number of classes: without knowledge, 4 labels at 3 centers with 4 patients each give a
majority of 31 about 0.19. The neighbours vote again with labels permuted over the units of each
center (centers: over those of each label).

Pitfalls
--------
- Above its null means "follows the tissue more than an encoder that knows nothing would": a low bar.
  Read the index itself.
- The two nulls answer different questions. An encoder whose neighbours all come from one center has a
  permutation null far below the design null: it may lie above the first and fail against the second.
  That is meant: it follows the center.
- With two patients in a cell the intervals of both indices hold their means in as few as 91 of 100
  cohorts.
- k is chosen on the same tiles. In small cohorts the largest k of the grid may exceed what a cell
  holds.
- Label and center must be crossed; where they are confounded nothing can be said.
- Tiles weigh equally; a label has as many as its cell gives, whatever its share in practice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass as record
from functools import cached_property, partial
from statistics import median_low
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.balanced_designs import (
    Cohort,
    DesignName,
    PermutedTags,
    Scope,
    Subsampling,
    balanced_subsamples,
    each_searched,
    left_out_cells,
    permuted_tags,
    remark_on_size,
)
from pathfm_kedro.statistics.bootstrap import (
    exact_without_spread,
    percentile_interval,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value, undefined
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.neighbour_votes import permuted_accuracies, vote_accuracy, votes_at
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters, read_parameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.permutation import (
    added_by_choice,
    chosen_anew,
    less_chance,
    null_range,
    with_error_of_mean,
)
from pathfm_kedro.statistics.tables import Embeddings, to_schema
from pathfm_kedro.statistics.unit_neighbours import (
    OS,
    SO,
    SS,
    TYPES,
    UnitNeighbours,
    expected_types,
    neighbour_lists,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: One row per design, scope, k and unit.
#:
#: - scope: number of the subsample (design ``all``) or of the 2 × 2 pair (``paired_2x2``);
#: - unit: code of (patient_id, label, center), the same in every design and scope;
#: - n: queries (tiles) of the unit; n_supported: those with SO or OS among ranks ≤ k;
#: - n_correct_label, n_correct_center: queries whose k neighbours vote for the right label, center;
#: - expected_ss … expected_oo: neighbours of each type at ranks ≤ k if every eligible tile were
#:   equally likely to be one: the design null;
#: - neighbour_unit, neighbours: units met at ranks above the previous k of the grid and ≤ k, and
#:   how often (summing the rows up to k gives the counts at k);
#: - permuted_label, permuted_center: balanced accuracy of the vote in each permutation; in one row
#:   for each design, scope and k, whose unit is null;
#: - reason: why a design (unit, scope null) or a cell of it (label and center given) is not used;
#: - remark: which cell decides how many tiles the others give.
ROBUSTNESS_INDEX_SCHEMA: dict[str, pl.DataType] = {
    "design": pl.String(),
    "scope": pl.Int32(),
    "k": pl.Int32(),
    "unit": pl.Int32(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "n": pl.Int64(),
    "n_supported": pl.Int64(),
    "n_correct_label": pl.Int64(),
    "n_correct_center": pl.Int64(),
    **{f"expected_{kind}": pl.Float64() for kind in TYPES},
    "neighbour_unit": pl.List(pl.Int32()),
    "neighbours": pl.List(pl.Int64()),
    "permuted_label": pl.List(pl.Float64()),
    "permuted_center": pl.List(pl.Float64()),
    "reason": pl.String(),
    "remark": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RobustnessIndex(Subsampling, ExperimentParameters):
    """Parameters of the experiment, beside those of its subsamples.

    Attributes
    ----------
    k_grid
        Numbers of neighbours.
    k_design
        The design whose accuracy chooses k.
    k
        The cohort's number of neighbours, on the grid; None to choose it.
    distance
        By which tiles are near.
    n_permutations
        Of labels within centers, and of centers within labels.
    """

    k_grid: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1),
        AfterValidator(lambda grid: tuple(sorted(set(grid)))),
    ]
    k_design: DesignName = "all"
    k: int | None = None
    distance: Literal["cosine", "euclidean"] = "cosine"
    n_permutations: Annotated[int, Field(ge=0)] = 200

    def __post_init__(self) -> None:
        """Refuse a k that is not measured."""
        if self.k is not None and self.k not in self.k_grid:
            raise ValueError(
                f"k is {self.k}: give one of k_grid, {', '.join(map(str, self.k_grid))}"
            )


def robustness_index_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: RobustnessIndex
) -> pl.DataFrame:
    """Neighbours of each unit (patient, label, center) by unit and k, in every design.

    Parameters
    ----------
    slides, tiles
        The slides and tiles tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`ROBUSTNESS_INDEX_SCHEMA`. Neighbours are exact.
    """
    sampled = balanced_subsamples(slides, tiles, embeddings, p, p.seed)

    def search(scope: Scope) -> Ints:
        groups = sampled.cohort.groups[scope.rows]
        return nearest_indices(sampled.vectors_of(scope), groups, max(p.k_grid), p.distance)

    tags = permuted_tags(sampled.cohort, sampled.scopes, p.n_permutations, p.seed)
    frames = [
        scope_statistics(sampled.cohort, scope, found, own, p.k_grid)
        for (scope, found), own in zip(each_searched(sampled.scopes, search), tags, strict=True)
    ]
    return pl.concat([*frames, to_schema(sampled.unused, ROBUSTNESS_INDEX_SCHEMA)])


def scope_statistics(
    cohort: Cohort, scope: Scope, found: Ints, tags: PermutedTags, k_grid: Sequence[int]
) -> pl.DataFrame:
    """Rows of one scope, from [n, k] neighbours as positions within it."""
    grid, units = np.array(k_grid), cohort.units[scope.rows]
    labels, centers = cohort.labels[scope.rows], cohort.centers[scope.rows]
    there = found >= 0
    typed = there & ((labels[found] == labels[:, None]) ^ (centers[found] == centers[:, None]))
    per_query = {
        "n_supported": np.logical_or.accumulate(typed, axis=1)[:, grid - 1],
        "n_correct_label": votes_at(labels, found, grid) == labels[:, None],
        "n_correct_center": votes_at(centers, found, grid) == centers[:, None],
    }
    present, where = np.unique(units, return_inverse=True)
    sums: dict[str, NDArray[Any]] = {
        name: sum_by_patient(values, where, len(present)).astype(np.int64).T.ravel()
        for name, values in per_query.items()
    }
    expected = sum_by_patient(expected_types(cohort, scope, grid), where, len(present))
    sums |= {f"expected_{kind}": expected[:, :, i].T.ravel() for i, kind in enumerate(TYPES)}
    counts = (
        neighbour_lists(units, found, grid)
        .with_columns(**{name: pl.Series(values) for name, values in sums.items()})
        .join(cohort.unit_table, on="unit", how="left", maintain_order="left")
    )
    own = np.searchsorted(tags.units, units)
    permuted = pl.DataFrame(
        {
            "k": grid,
            "permuted_label": permuted_accuracies(own, found, grid, tags.label).tolist(),
            "permuted_center": permuted_accuracies(own, found, grid, tags.center).tolist(),
        }
    )
    place = {"design": pl.lit(scope.design), "scope": pl.lit(scope.number)}
    return pl.concat(
        to_schema(frame.with_columns(**place), ROBUSTNESS_INDEX_SCHEMA)
        for frame in (counts, permuted)
    )


def choose_k(
    parameters: Mapping[str, Any], *, controls: Sequence[str] = (), **statistics: pl.DataFrame
) -> dict[str, Any]:
    """Number of neighbours whose vote names the label best, per encoder and for the cohort.

    The cohort's is the lower median over encoders, so that it is on the grid; or the parameter ``k``,
    with which an encoder that joins does not move the figures of the others.

    Parameters
    ----------
    parameters
        The block ``robustness_index``.
    controls
        Encoders that have no say in the cohort's k, unless there are no others.
    statistics
        Of :func:`robustness_index_statistics`, for each encoder.

    Returns
    -------
    dict
        ``k`` (int or None) with its ``origin`` in words; ``per_encoder`` {encoder: int}, without
        those whose design cannot be measured; ``permuted_k``, the cohort's k chosen anew in each
        permutation of labels within centers, empty where it is not chosen.
    """
    p = read_parameters(RobustnessIndex, "robustness_index", parameters)
    own = {name: best_k(statistics[name], p.k_design) for name in sorted(statistics)}
    per_encoder = {name: k for name, k in own.items() if k is not None}
    voters = [name for name in per_encoder if name not in controls] or list(per_encoder)
    found: dict[str, Any] = {"per_encoder": per_encoder, "permuted_k": []}
    if not voters:
        return found | {"k": None, "origin": f"no encoder was measured in the design {p.k_design}"}
    if p.k is not None:
        return found | {"k": p.k, "origin": "set in robustness_index.k"}
    again = [permuted_best_k(statistics[name], p.k_design) for name in voters]
    found["permuted_k"] = [median_low(each) for each in zip(*again, strict=False)]
    return found | {
        "k": median_low(per_encoder[name] for name in voters),
        "origin": "lower median of the numbers at which the label is found best by "
        + ", ".join(f"{name} ({per_encoder[name]})" for name in voters),
    }


def best_k(statistics: pl.DataFrame, design: str) -> int | None:
    """First k at which the vote names the label best; None if the design cannot be measured."""
    rows = by_k(counted(statistics, design))
    accuracy = {
        k: vote_accuracy(each, "label", np.ones((1, each["patient_id"].n_unique())))[0]
        for k, each in rows.items()
    }
    return max(accuracy, key=lambda k: accuracy[k], default=None)


def permuted_best_k(statistics: pl.DataFrame, design: str) -> list[int]:
    """First k at which the vote on permuted labels names them best, in each permutation."""
    accuracy = permuted_votes(statistics, design, "label")
    k_grid = sorted(accuracy)
    stacked = np.array([accuracy[k] for k in k_grid]).reshape(len(k_grid), -1)
    return np.array(k_grid)[stacked.argmax(axis=0)].tolist() if stacked.size else []


def permuted_votes(statistics: pl.DataFrame, design: str, target: str) -> dict[int, Floats]:
    """[permutations] accuracy of the vote on label or center at each k, over scopes."""
    rows = statistics.filter(
        pl.col("design") == design, pl.col(f"permuted_{target}").is_not_null()
    ).group_by("k", maintain_order=True)
    return {
        k: np.mean(permuted, axis=0) for k, permuted in rows.agg(f"permuted_{target}").iter_rows()
    }


def counted(statistics: pl.DataFrame, design: str) -> pl.DataFrame:
    """Rows of a design's units."""
    return statistics.filter(pl.col("design") == design, pl.col("n").is_not_null())


def by_k(rows: pl.DataFrame) -> dict[int, pl.DataFrame]:
    """Rows at each k, ascending, without their lists of neighbours."""
    light = rows.select(pl.exclude(pl.List)).sort("k", maintain_order=True)
    return {part["k"][0]: part for part in light.partition_by("k", maintain_order=True)}


@record(frozen=True)
class MeasuredDesign:
    """The statistics of one design, with what all its figures are made from."""

    statistics: pl.DataFrame
    design: str
    p: RobustnessIndex
    chosen_k: Mapping[str, Any]

    def chosen(self, k: int) -> Sequence[int]:
        """The k of each permutation; empty for a k that was not chosen."""
        return self.chosen_k.get("permuted_k", ()) if k == self.chosen_k["k"] else ()

    @property
    def remark(self) -> str:
        """What decides the design's size, where it is one cell."""
        return remark_on_size(self.statistics.filter(design=self.design))

    @cached_property
    def neighbours(self) -> UnitNeighbours:
        """Who is whose neighbour how often."""
        return UnitNeighbours.of(counted(self.statistics, self.design), self.design)

    @cached_property
    def at(self) -> dict[int, pl.DataFrame]:
        """Rows of the units at each k."""
        return by_k(self.neighbours.rows)

    @property
    def k_grid(self) -> tuple[int, ...]:
        """Numbers of neighbours."""
        return self.neighbours.k_grid

    @cached_property
    def weights(self) -> Floats:
        """[draws, patients] of the bootstrap."""
        return self.p.weights(self.neighbours.n_patients)

    @cached_property
    def indices(self) -> dict[int, dict[str, Estimate]]:
        """Estimates of ri and ri_ratio at each k."""
        found, n, weights = self.neighbours, self.neighbours.n, self.weights
        resampled = found.resampled(weights)
        ss, so, os = (found.matrix(np.zeros(len(found.band), dtype=np.bool_)) for _ in range(3))
        out = {}
        bands = zip(self.k_grid, found.by_band(SS, SO, OS), resampled, strict=True)
        for k, more, (ss_drawn, so_drawn, os_drawn) in bands:
            ss, so, os = ss + more[0], so + more[1], os + more[2]
            out[k] = {
                "ri": pair_ratio(so, so + os, so_drawn + os_drawn, weights, n, 1.0),
                "ri_ratio": pair_ratio(ss + so, ss + os, ss_drawn + os_drawn, weights, n),
            }
        return out

    @cached_property
    def permuted(self) -> dict[str, dict[int, Floats]]:
        """[permutations] of ri and ri_ratio at each k, labels permuted over units within centers."""
        found = list(self.neighbours.permuted_labels(self.p.n_permutations, self.p.seed))
        both = zip(*found, strict=True)
        return {
            metric: dict(zip(self.k_grid, permuted, strict=True))
            for metric, permuted in zip(("ri", "ri_ratio"), both, strict=True)
        }

    @cached_property
    def design_null(self) -> dict[int, dict[str, float]]:
        """Both indices at each k if every eligible tile were equally likely to be a neighbour."""
        kinds = pl.col("expected_ss", "expected_so", "expected_os").sum()
        sums = {k: rows.select(kinds).row(0) for k, rows in self.at.items()}
        return {
            k: {"ri": so / (so + os), "ri_ratio": (ss + so) / (ss + os)}
            for k, (ss, so, os) in sums.items()
        }

    @cached_property
    def permuted_votes(self) -> dict[str, dict[int, Floats]]:
        """[permutations] accuracy of the vote on label and center at each k, over scopes."""
        return {
            target: permuted_votes(self.statistics, self.design, target)
            for target in ("label", "center")
        }


def ri(measured: MeasuredDesign, k: int, metric: str = "ri") -> Value:
    """An index at k; null: labels permuted over units within centers.

    Raises
    ------
    Undefined
        If no neighbour is of a kind that the index counts.
    """
    return _index(measured, k, metric, measured.chosen(k))


def _index(measured: MeasuredDesign, k: int, metric: str, chosen: Sequence[int]) -> Value:
    """An index at k, where each permutation chose its own k, or none did."""
    estimate = measured.indices[k][metric]
    if estimate.value is None:
        raise Undefined(
            f"among {k} neighbours none is of a kind that this index counts: take a larger k"
        )
    reason = None
    if estimate.ci_low is None:
        reason = (
            "no interval: in more than 5% of the resampled cohorts no neighbour is of a kind that "
            f"this index counts, among {k}: add patients, or take a larger k"
        )
    permuted = chosen_anew(measured.permuted[metric], k, chosen)
    null = null_range(permuted)
    return Value(
        estimate,
        null,
        label_null=null,
        reason=reason,
        remark=measured.remark,
        permuted=permuted,
    )


def ri_minus_null(measured: MeasuredDesign, k: int) -> Value:
    """The index less the design's own null and what choosing k adds, neutral at 0 in any design."""
    return _index_minus_null(measured, k, measured.chosen(k))


def _index_minus_null(measured: MeasuredDesign, k: int, chosen: Sequence[int]) -> Value:
    permuted = measured.permuted["ri"]
    added = added_by_choice(permuted, k, chosen)
    anew = chosen_anew(permuted, k, chosen)
    # k may have been chosen in fewer permutations than there are.
    error = anew - permuted[k][: len(anew)]
    index = with_error_of_mean(_index(measured, k, "ri", chosen), error)
    return less_chance(index, measured.design_null[k]["ri"] + added)


def ri_design_null(measured: MeasuredDesign, k: int, metric: str = "ri") -> Value:
    """An index if every eligible tile were equally likely to be a neighbour."""
    chance, found = measured.design_null[k][metric], measured.neighbours
    return Value(Estimate(chance, chance, chance, found.n, found.n_patients), Null(chance, chance))


def support(measured: MeasuredDesign, k: int) -> Value:
    """Share of queries with SO or OS among their k neighbours."""
    queries = PatientStatistics(measured.at[k], measured.p)
    supported, asked = queries.sums("n_supported"), queries.sums("n")
    return Value(ratio_estimate(supported, asked, measured.weights, measured.neighbours.n))


def knn_accuracy(measured: MeasuredDesign, k: int, target: str) -> Value:
    """Balanced accuracy of the vote of k neighbours; null: permuted labels, or centers.

    Where no resampled cohort differs the interval is the exact one of so many patients.
    """
    found = measured.neighbours
    cohort = np.ones((1, found.n_patients))
    point, *draws = vote_accuracy(measured.at[k], target, np.vstack([cohort, measured.weights]))
    resampled = np.array(draws)
    interval = percentile_interval(resampled)
    estimate = Estimate(float(point), *interval, found.n, found.n_patients, resampled)
    return Value(
        exact_without_spread(estimate),
        null_range(chosen_anew(measured.permuted_votes[target], k, measured.chosen(k))),
    )


#: Figures at every design and k.
ESTIMATORS: dict[str, Callable[[MeasuredDesign, int], Value]] = {
    "ri": ri,
    "ri_ratio": partial(ri, metric="ri_ratio"),
    "ri_minus_null": ri_minus_null,
    "ri_design_null": ri_design_null,
    "ri_ratio_design_null": partial(ri_design_null, metric="ri_ratio"),
    "support": support,
    "knn_accuracy_label": partial(knn_accuracy, target="label"),
    "knn_accuracy_center": partial(knn_accuracy, target="center"),
}


def robustness_index_figures(
    statistics: pl.DataFrame, chosen_k: Mapping[str, Any], p: RobustnessIndex
) -> Iterator[Figure]:
    """Figures of the experiment, for every design and k; the cohort's k has role ``cohort_k``.

    Parameters
    ----------
    statistics
        From :func:`robustness_index_statistics`.
    chosen_k
        From :func:`choose_k`.
    p
        The parameters.
    """
    cohort_k = chosen_k["k"]
    for design in p.designs:
        yield from _left_out(statistics, design)
        measured = MeasuredDesign(statistics, design, p, chosen_k)
        at_cohort_k = {"design": design, "k": cohort_k, "role": "cohort_k"}
        problem = design_problem(statistics, design) or no_k(cohort_k, p)
        if problem:
            yield from (Figure(metric, undefined(problem), at_cohort_k) for metric in ESTIMATORS)
        if counted(statistics, design).is_empty():
            continue
        found = measured.neighbours
        for k in sorted(measured.k_grid, key=lambda k: (k != cohort_k, k)):
            setting = at_cohort_k if k == cohort_k else {"design": design, "k": k}
            for metric, estimator in ESTIMATORS.items():
                compute = partial(estimator, measured, k)
                yield Figure(metric, compute, setting, n=found.n, n_patients=found.n_patients)
        own = best_k(statistics, design) if design == p.k_design else None
        if own is not None:
            yield from _about_k(measured, own)


def _about_k(measured: MeasuredDesign, own: int) -> Iterator[Figure]:
    """Where the cohort's k comes from, the encoder's own, and the index there."""
    found, design, cohort_k = measured.neighbours, measured.design, measured.chosen_k["k"]

    def given(k: int, remark: str = "") -> Callable[[], Value]:
        return lambda: Value(Estimate(k, None, None, found.n, found.n_patients), remark=remark)

    if cohort_k is not None:
        origin = measured.chosen_k.get("origin", "")
        yield Figure("cohort_k", given(cohort_k, origin), {"design": design, "origin": origin})
    yield Figure("own_k", given(own), {"design": design})
    minus = partial(_index_minus_null, measured, own, ())
    yield Figure("ri_minus_null_at_own_k", minus, {"design": design, "k": own})


def design_problem(statistics: pl.DataFrame, design: str) -> str:
    """Why a design could not be measured, with the mend; empty if it was."""
    why = statistics.filter(
        pl.col("design") == design, pl.col("reason").is_not_null(), pl.col("label").is_null()
    )["reason"]
    return str(why[0]) if len(why) else ""


def no_k(cohort_k: int | None, p: RobustnessIndex) -> str:
    """Why there is no number of neighbours to read the figures at; empty if there is."""
    if cohort_k is not None:
        return ""
    return (
        f"the design {p.k_design}, whose votes choose the number of neighbours, was measured for no "
        "encoder: name a design in robustness_index.k_design that is"
    )


def _left_out(statistics: pl.DataFrame, design: str) -> Iterator[Figure]:
    """One for each cell with too few patients or tiles: what the figures do not speak of."""
    setting = {"design": design, "role": "left_out"}
    for cell, reason in left_out_cells(statistics.filter(design=design)):
        yield Figure("ri", undefined(reason), setting, cell)
