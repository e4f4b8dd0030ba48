r"""Margins: how much nearer a tile is to its own biology elsewhere than to other biology at home.

For a query let d_SO and d_OS be the mean distance (1 − cosine) to the m nearest tiles with its label
at other centers (SO) and with other labels at its center (OS).

- ``croma = median_i (d_OS − d_SO) / (d_OS + d_SO)`` (Grisi et al. 2026), from −1 to 1: above 0 most
  tiles are nearer to their biology. In ``paired_2x2`` the median over pairs of each pair's median.
- ``croma_lower_tail``: mean of the margins up to their 10% quantile, the tiles that fare worst;
  ``croma_mean``; ``confounder_dominant``, the share of margins ≤ 0; ``worst_patients``, the same tail
  of patients' mean margins; ``worst_decile_share``, which cells the lower tail comes from;
  ``margin_support``, the share of tiles that have a margin.
- ``mari = Σ_SO exp(−d/τ) / Σ_{SO,OS} exp(−d/τ)`` over the k nearest neighbours: the robustness index
  with near neighbours counting more. τ is the median distance of the SO and OS neighbours at the k
  that the encoder's own accuracy chooses, the same for every k.

Neither is neutral at a fixed figure: with more labels than centers OS tiles are more, hence nearer.
``*_minus_null`` is the difference from the mean over permutations of label and center together: an
encoder that follows the center lies where labels permuted *within* centers put it, whatever they are.
To pass, the figure must lie above that null as well: vectors whose centers were pushed apart exceed
the first one without knowing a label.

The median and the tail are no function of sums per patient, so the table keeps each unit's margins.

The interval
------------
Patients are resampled as queries. A patient also counts as neighbour of others, which that leaves
out: the interval is widened by the ratio of the jackknife's spread to the bootstrap's. The jackknife
takes each patient out in both roles: as query from all margins, as neighbour from those of a sample
of queries. The sample's own error would add to the spread; it is cut in two halves whose errors are
independent, and the products of the two changes are summed in place of squares.

Pitfalls
--------
- Above 0 is a low bar. Read the lower tail: a median hides tiles that follow the center. The tail rests
  on a tenth of the tiles.
- A tile without m neighbours of both kinds has no margin; ``margin_support`` says of what share of the
  tiles the figures speak.
- τ is each encoder's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as record
from dataclasses import replace
from functools import cached_property, partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.robustness.robustness_index import design_problem
from pathfm_kedro.statistics.balanced_designs import DesignName, codes_of, remark_on_size
from pathfm_kedro.statistics.bootstrap import (
    percentile_interval,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.figures import Figure, Undefined, Value, undefined
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.pair_bootstrap import (
    jackknife_variance,
    pair_ratio,
    resampled_total,
    scaled_interval,
)
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.permutation import (
    added_by_choice,
    chosen_anew,
    minus_null,
    null_range,
)
from pathfm_kedro.statistics.resampled_tail import (
    SUMMARIES,
    Distribution,
    resampled_distribution,
)
from pathfm_kedro.statistics.unit_neighbours import OS, SO, UnitNeighbours

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Count = Annotated[int, Field(ge=1)]

#: Share of the queries that makes the lower tail, as in Grisi et al. 2026.
TAIL = 0.10

#: Cells named as the source of the lower tail.
_WORST_CELLS = 4

#: One row of a *kind* for each design and scope (subsample or pair) and
#:
#: - margins: unit and m. `margins` of its queries, ascending, of those that have one; n: queries;
#: - without_patient: m, half. How the summaries of half of the sampled margins change if each of
#:   `patients` is no neighbour any more (it still asks);
#: - permuted_together, permuted_labels: m. The summaries of the sample's margins in each permutation of
#:   (label, center) over the units, and of labels over the units of each center;
#: - weighted_neighbours: unit and k. Units met at ranks above the previous k and ≤ k, and the sum of
#:   exp(−distance / tau) over those neighbours; own_k: the k at which tau was set;
#: - unused: why a design, or a cell of it, is not used; or a remark on the size of its cells.
ROBUSTNESS_MARGINS_SCHEMA: dict[str, pl.DataType] = {
    "kind": pl.String(),
    "design": pl.String(),
    "scope": pl.Int32(),
    "m": pl.Int32(),
    "half": pl.Int32(),
    "k": pl.Int32(),
    "tau": pl.Float64(),
    "own_k": pl.Int32(),
    "unit": pl.Int32(),
    "patient_id": pl.String(),
    "label": pl.String(),
    "center": pl.String(),
    "n": pl.Int64(),
    "margins": pl.List(pl.Float64()),
    "neighbour_unit": pl.List(pl.Int32()),
    "neighbours": pl.List(pl.Float64()),
    "patients": pl.List(pl.String()),
    **{name: pl.List(pl.Float64()) for name in SUMMARIES},
    "reason": pl.String(),
    "remark": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RobustnessMargins(ExperimentParameters):
    """Parameters of the experiment; tiles and distances are those of the robustness index.

    Attributes
    ----------
    m
        Nearest tiles of each type; the first is the headline's, of the others only ``croma`` is
        shown.
    sampled_queries
        Queries from which the null and the patients' part as neighbours are estimated, per design.
    n_permutations
        Of label and center together, and of labels within centers.
    designs
        Those of the index in which margins are measured; None for all of them.
    """

    m: Annotated[tuple[Count, ...], Field(min_length=1)]
    sampled_queries: Count
    n_permutations: Annotated[int, Field(ge=0)] = 200
    designs: tuple[DesignName, ...] | None = None

    def measures(self, design: str) -> bool:
        """Whether margins are measured in a design of the index."""
        return self.designs is None or design in self.designs


def robustness_margins_figures(
    statistics: pl.DataFrame, chosen_k: Mapping[str, Any], p: RobustnessMargins
) -> Iterator[Figure]:
    """Figures of the experiment, for every design.

    Parameters
    ----------
    statistics
        Margins of ``index_and_margin_statistics``.
    chosen_k
        From ``choose_k``.
    p
        The parameters.
    """
    for design in statistics["design"].unique(maintain_order=True):
        yield from _croma_figures(statistics, design, p)
        yield from _mari_figures(statistics, design, chosen_k, p)


def _croma_figures(statistics: pl.DataFrame, design: str, p: RobustnessMargins) -> Iterator[Figure]:
    problem = design_problem(statistics, design)
    if problem:
        for metric in ("croma", "croma_minus_null", "croma_lower_tail"):
            yield Figure(metric, undefined(problem), {"design": design, "m": p.m[0]})
        return
    for m in p.m:
        margins = MeasuredMargins(statistics, design, m, p)
        figure = partial(Figure, setting={"design": design, "m": m}, n=margins.n)
        yield figure("croma", partial(croma, margins, "median"))
        if m != p.m[0]:
            continue
        yield figure("croma_minus_null", partial(croma_minus_null, margins))
        yield figure("croma_mean", partial(croma, margins, "mean"))
        yield figure("croma_lower_tail", partial(croma, margins, "tail"))
        yield figure("confounder_dominant", partial(croma, margins, "below"))
        yield figure("worst_patients", partial(worst_patients, margins))
        yield figure("margin_support", partial(margin_support, margins))
        for i in margins.worst_cells:
            share = partial(worst_decile_share, margins, i)
            yield figure("worst_decile_share", share, stratum=margins.cells[i])


def _mari_figures(
    statistics: pl.DataFrame, design: str, chosen_k: Mapping[str, Any], p: RobustnessMargins
) -> Iterator[Figure]:
    """MaRI for every k of the grid, the cohort's first."""
    cohort_k = chosen_k["k"]
    rows = statistics.filter(pl.col("design") == design, pl.col("kind") == "weighted_neighbours")
    at_cohort_k = {"design": design, "k": cohort_k, "role": "cohort_k"}
    if rows.is_empty() or cohort_k is None:
        problem = design_problem(statistics, design) or (
            "no neighbour has the label and another center, or the center and another label, so "
            "there is no distance to set the temperature by: take larger k in k_grid"
        )
        yield from (Figure(m, undefined(problem), at_cohort_k) for m in ("mari", "mari_minus_null"))
        return
    weighted = WeightedIndex(UnitNeighbours.of(rows, design), p)
    k_grid, n = weighted.neighbours.k_grid, weighted.neighbours.n
    for k in sorted(k_grid, key=lambda k: (k != cohort_k, k)):
        setting = at_cohort_k if k == cohort_k else {"design": design, "k": k}
        yield Figure("mari", partial(mari, weighted, k), setting, n=n)
        if k == cohort_k:
            chosen = chosen_k.get("permuted_k", ())
            minus = partial(mari_minus_null, weighted, k, chosen)
            yield Figure("mari_minus_null", minus, setting, n=n)
    tau = Estimate(float(rows["tau"][0]), None, None, n, weighted.neighbours.n_patients)
    yield Figure("mari_temperature", lambda: tau, {"design": design, "k": int(rows["own_k"][0])})


@record(frozen=True)
class MeasuredMargins:
    """Margins of one design and m."""

    statistics: pl.DataFrame
    design: str
    m: int
    p: RobustnessMargins

    def _rows(self, kind: str) -> pl.DataFrame:
        return self.statistics.filter(
            pl.col("design") == self.design, pl.col("kind") == kind, pl.col("m") == self.m
        ).sort("scope", "half", "unit")

    @property
    def remark(self) -> str:
        """What decides the design's size, where it is one cell."""
        return remark_on_size(self.statistics.filter(design=self.design))

    @cached_property
    def _margins(self) -> pl.DataFrame:
        cell = pl.format("{} × {}", "label", "center").alias("cell")
        return self._rows("margins").with_columns(cell, answered=pl.col("margins").list.len())

    @cached_property
    def patients(self) -> list[str]:
        """Names of the patients, sorted."""
        return self._margins["patient_id"].unique().sort().to_list()

    @cached_property
    def cells(self) -> list[str]:
        """Names of the cells of label and center, sorted."""
        return self._margins["cell"].unique().sort().to_list()

    @cached_property
    def scopes(self) -> list[tuple[Floats, Ints, Ints]]:
        """Margins [n] of each scope, with their patients and cells [n]."""
        rows = self._margins
        values = rows["margins"].explode().drop_nulls().to_numpy().astype(np.float64)
        owners, cells, scope = (
            np.repeat(codes_of(rows[name]), rows["answered"].to_numpy())
            for name in ("patient_id", "cell", "scope")
        )
        return [
            (values[scope == i], owners[scope == i], cells[scope == i])
            for i in range(rows["scope"].n_unique())
        ]

    def _by_patient(self, column: str) -> Floats:
        codes = codes_of(self._margins["patient_id"])
        return sum_by_patient(self._margins[column].to_numpy(), codes, len(self.patients))

    @cached_property
    def asked(self) -> Floats:
        """[patients] queries."""
        return self._by_patient("n")

    @cached_property
    def answered(self) -> Floats:
        """[patients] queries that have a margin."""
        return self._by_patient("answered")

    @cached_property
    def n(self) -> int:
        """Queries: of one subsample, or of all pairs."""
        total = int(self._margins["n"].sum())
        return total // self._margins["scope"].n_unique() if self.design == "all" else total

    @cached_property
    def n_patients(self) -> int:
        """Patients with a margin: the others carry nothing of the figure."""
        return int((self.answered > 0).sum())

    def require_margins(self) -> None:
        """Refuse where no query has a margin."""
        if not self.answered.sum():
            raise Undefined(
                f"no tile has {self.m} neighbours of its label at another center and {self.m} of "
                "another label at its center, from other patients: add patients, or take a smaller m"
            )

    @cached_property
    def weights(self) -> Floats:
        """[draws, patients] of the bootstrap."""
        return self.p.weights(len(self.patients))

    @cached_property
    def point(self) -> Distribution:
        """Of the margins as measured."""
        return self._distribution(np.ones((1, len(self.patients))))

    @cached_property
    def resampled(self) -> Distribution:
        """Of the margins in every bootstrap draw."""
        return self._distribution(self.weights)

    def _distribution(self, weights: Floats) -> Distribution:
        """Subsamples of ``all`` averaged; pairs pooled, but for the median of the pairs' medians."""
        n_cells = len(self.cells)
        # Every cell stands in the table once, so that all scopes have the shares of the same cells.
        each = [
            resampled_distribution(values, owners, weights, TAIL, cells, n_cells)
            for values, owners, cells in self.scopes
        ]
        if self.design == "all":
            names = ("median", "mean", "tail", "below", "shares")
            return Distribution(
                *(np.mean([getattr(one, name) for one in each], axis=0) for name in names)
            )
        values, owners, cells = (np.concatenate(parts) for parts in zip(*self.scopes, strict=True))
        pooled = resampled_distribution(values, owners, weights, TAIL, cells, n_cells)
        return replace(pooled, median=_median(np.array([one.median for one in each])))

    @cached_property
    def changes(self) -> dict[str, Floats]:
        """[2, P] change of each summary without each patient, from each half of the sample."""
        size = len(self.patients)
        # The first row is the cohort as it is, the others lack one patient's queries each.
        lacking = self._distribution(np.vstack([np.ones(size), 1 - np.eye(size)]))
        rows = self._rows("without_patient")
        place = {name: i for i, name in enumerate(self.patients)}
        changes = {}
        for summary in SUMMARIES:
            as_query = getattr(lacking, summary)
            as_neighbour = np.zeros((rows.height // 2, 2, size))
            for i, (who, found) in enumerate(zip(rows["patients"], rows[summary], strict=True)):
                as_neighbour[i // 2, i % 2, [place[name] for name in who]] = found.to_numpy()
            changes[summary] = np.nan_to_num(as_query[1:] - as_query[0]) + np.nan_to_num(
                as_neighbour
            ).mean(axis=0)
        return changes

    @cached_property
    def permuted(self) -> dict[str, Floats]:
        """[permutations] of each summary, label and center permuted together; empty without any."""
        return self._permuted("permuted_together")

    @cached_property
    def permuted_labels(self) -> dict[str, Floats]:
        """[permutations] of each summary, labels permuted within centers."""
        return self._permuted("permuted_labels")

    def _permuted(self, kind: str) -> dict[str, Floats]:
        rows, out = self._rows(kind), {}
        for summary in SUMMARIES:
            found = [values.to_numpy() for values in rows[summary]] or [np.zeros(0)]
            scopes = np.array(found, dtype=np.float64)
            medians = self.design == "paired_2x2" and summary == "median"
            out[summary] = _median(scopes) if medians else np.mean(scopes, axis=0)
        return out

    @cached_property
    def worst_cells(self) -> list[int]:
        """Cells that most of the lower tail comes from; none where there is no margin."""
        if not self.answered.sum():
            return []
        ordered = np.argsort(-self.point.shares[0], kind="stable")
        return [int(cell) for cell in ordered[:_WORST_CELLS]]


def _median(values: Floats) -> Floats:
    """Median over the first axis of what is not NaN; NaN where nothing is."""
    ordered: Floats = np.sort(values, axis=0)
    size = np.maximum(np.isfinite(values).sum(axis=0), 1)[None]
    low, high = (np.take_along_axis(ordered, i, axis=0)[0] for i in ((size - 1) // 2, size // 2))
    return np.asarray(0.5 * (low + high))


def _widened(
    value: float, draws: Floats, variance: float, least: float = -1.0
) -> tuple[float | None, float | None]:
    """Interval of the draws, widened about the value where `variance` exceeds theirs."""
    spread = float(np.var(draws[np.isfinite(draws)]))
    return scaled_interval(value, draws, max(variance, spread), least, 1.0)


def croma(margins: MeasuredMargins, summary: str) -> Value:
    """Median, mean, lower tail or share ≤ 0 of the margins; null: permuted (label, center)."""
    margins.require_margins()
    value = float(getattr(margins.point, summary)[0])
    draws, variance = getattr(margins.resampled, summary), margins.changes[summary]
    least = 0.0 if summary == "below" else -1.0
    interval = _widened(value, draws, jackknife_variance(variance), least)
    return Value(
        Estimate(value, *interval, margins.n, margins.n_patients, draws),
        null_range(margins.permuted[summary]),
        # Of the share of margins ≤ 0 less is better: no null stands in the way of passing.
        label_null=None if summary == "below" else null_range(margins.permuted_labels[summary]),
        remark="; ".join(filter(None, [_partly(margins), margins.remark])),
        permuted=margins.permuted_labels[summary],
    )


def _partly(margins: MeasuredMargins) -> str:
    """What the figure does not speak of; empty if every query has a margin."""
    share = float(margins.answered.sum() / margins.asked.sum())
    if share == 1:
        return ""
    return (
        f"speaks of {share:.0%} of the tiles: the others lack {margins.m} neighbours of their label "
        f"at another center, or {margins.m} of another label at their center, from other patients"
    )


def croma_minus_null(margins: MeasuredMargins) -> Value:
    """The median margin minus the mean of its permutations."""
    return minus_null(croma(margins, "median"), margins.permuted["median"])


def worst_patients(margins: MeasuredMargins) -> Value:
    """Mean of patients' mean margins up to their 10% quantile."""
    margins.require_margins()
    values, owners, _ = (np.concatenate(parts) for parts in zip(*margins.scopes, strict=True))
    sums = np.bincount(owners, values, minlength=len(margins.patients))
    there = np.flatnonzero(margins.answered)
    means = sums[there] / margins.answered[there]
    point, draws = (
        resampled_distribution(means, there, each, TAIL).tail
        for each in (np.ones((1, len(margins.patients))), margins.weights)
    )
    # How much wider than the bootstrap of queries: as for the mean margin.
    spread = max(float(np.nanvar(margins.resampled.mean)), np.finfo(float).tiny)
    variance = jackknife_variance(margins.changes["mean"]) / spread * float(np.nanvar(draws))
    value = float(point[0])
    return Value(Estimate(value, *_widened(value, draws, variance), margins.n, len(there)))


def margin_support(margins: MeasuredMargins) -> Value:
    """Share of tiles that have a margin."""
    return Value(ratio_estimate(margins.answered, margins.asked, margins.weights, margins.n))


def worst_decile_share(margins: MeasuredMargins, cell: int) -> Value:
    """Share of the lower tail that a cell holds; null: its share of all margins."""
    value = float(margins.point.shares[0, cell])
    interval = percentile_interval(margins.resampled.shares[:, cell])
    kinds = np.concatenate([cells for _, _, cells in margins.scopes])
    usual = float((kinds == cell).sum() / max(len(kinds), 1))
    return Value(Estimate(value, *interval, margins.n, margins.n_patients), Null(usual, usual))


@record(frozen=True)
class WeightedIndex:
    """The index of one design with near neighbours counting more."""

    neighbours: UnitNeighbours
    p: RobustnessMargins

    @cached_property
    def estimates(self) -> dict[int, Estimate]:
        """At each k of the grid."""
        found, weights = self.neighbours, self.p.weights(self.neighbours.n_patients)
        so, os = (found.matrix(np.zeros(len(found.band), dtype=np.bool_)) for _ in range(2))
        resampled = np.zeros(len(weights))
        out = {}
        for k, more in zip(found.k_grid, found.by_band(SO, OS), strict=True):
            so, os = so + more[0], os + more[1]
            resampled = resampled + sum(resampled_total(added, weights) for added in more)
            # Patients that meet no neighbour of either kind carry nothing of the figure.
            carry = int((np.asarray((so + os).sum(axis=1)) > 0).sum())
            out[k] = replace(
                pair_ratio(so, so + os, resampled, weights, found.n, 1.0), n_patients=carry
            )
        return out

    @cached_property
    def permuted(self) -> dict[int, Floats]:
        """[permutations] at each k of the grid, label and center permuted together."""
        found = self.neighbours.permuted_together(self.p.n_permutations, self.p.seed)
        return dict(zip(self.neighbours.k_grid, found, strict=True))

    @cached_property
    def permuted_labels(self) -> dict[int, Floats]:
        """[permutations] at each k of the grid, labels permuted within centers."""
        found = self.neighbours.permuted_labels(self.p.n_permutations, self.p.seed)
        return {k: ri for k, (ri, _) in zip(self.neighbours.k_grid, found, strict=True)}


def mari(weighted: WeightedIndex, k: int) -> Value:
    """The weighted index of the k nearest; null: permuted (label, center)."""
    estimate = weighted.estimates[k]
    if estimate.value is None:
        raise Undefined(
            f"among {k} neighbours none has the label and another center, or the center and another "
            "label: take a larger k",
            estimate.n,
            estimate.n_patients,
        )
    null, label_null = (null_range(of[k]) for of in (weighted.permuted, weighted.permuted_labels))
    return Value(estimate, null, label_null=label_null, permuted=weighted.permuted_labels[k])


def mari_minus_null(weighted: WeightedIndex, k: int, chosen: Sequence[int] = ()) -> Value:
    """The weighted index minus the mean of its permutations, and minus what choosing k adds.

    Parameters
    ----------
    weighted, k
        The index, and the k that is read.
    chosen
        The k that each permutation of labels within centers chooses; empty where k is given.
    """
    value, labels = mari(weighted, k), weighted.permuted_labels
    anew = chosen_anew(labels, k, chosen)
    if len(anew):
        value = replace(value, label_null=null_range(anew), permuted=anew)
    return minus_null(value, weighted.permuted[k] + added_by_choice(labels, k, chosen))
