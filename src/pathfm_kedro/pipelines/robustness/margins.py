r"""Margins: how much nearer a tile is to its own biology elsewhere than to other biology at home.

For a query let d_SO and d_OS be the mean distance (1 − cosine) to the m nearest tiles with its label
at other centers (SO) and with other labels at its center (OS).

- ``croma = median_i (d_OS − d_SO) / (d_OS + d_SO)`` (Grisi et al. 2026), from −1 to 1: above 0 most
  tiles are nearer to their biology. In ``paired_2x2`` the median over pairs of each pair's median.
- ``croma_lower_tail``: mean of the margins up to their 10% quantile, the tiles that fare worst;
  ``croma_mean``; ``confounder_dominant``, the share of margins ≤ 0; ``worst_patients``, the same tail
  of patients' mean margins; ``worst_decile_share``, which cells the lower tail comes from.
- ``mari = Σ_SO exp(−d/τ) / Σ_{SO,OS} exp(−d/τ)`` over the k nearest neighbours: the robustness index
  with near neighbours counting more. τ is the median distance of the SO and OS neighbours at the k
  that the encoder's own accuracy chooses, the same for every k.

Neither is neutral at a fixed figure: with more labels than centers OS tiles are more, hence nearer.
``*_minus_null`` is the difference from the mean over permutations of labels within centers.

The median and the tail are no function of sums per patient, so the table keeps each unit's margins.

The interval
------------
Patients are resampled as queries. A patient also counts as neighbour of others, which that leaves
out: the interval is widened by the ratio of the jackknife's spread to the bootstrap's. The jackknife
takes each patient out in both roles: as query from all margins, as neighbour from those of a sample
of queries. The sample's own error would add to the spread; it is cut in two halves whose errors are
independent, and the products of the two changes are summed in place of squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.designs import codes_of
from pathfm_kedro.pipelines.robustness.margin_tables import (
    MARGINS_SCHEMA,
    SUMMARIES,
    TAIL,
    count_neighbours_and_margins,
)
from pathfm_kedro.pipelines.robustness.neighbour_counts import OS, SO
from pathfm_kedro.pipelines.robustness.robustness_index import (
    Design,
    design_arrays,
    patient_matrix,
    permuted_indices,
)
from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    percentile_interval,
    ratio_estimate,
    sum_by_patient,
)
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.pair_bootstrap import pair_ratio, resampled_total
from pathfm_kedro.statistics.resampled_tail import Distribution, resampled_distribution

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

__all__ = ["MARGINS_SCHEMA", "count_neighbours_and_margins", "robustness_margins"]

EXPERIMENT = "robustness_margins"

#: Names of the summaries as metrics, and the smallest and largest value that each can have.
METRICS = {
    "median": ("croma", -1.0, 1.0),
    "mean": ("croma_mean", -1.0, 1.0),
    "tail": ("croma_lower_tail", -1.0, 1.0),
    "below": ("confounder_dominant", 0.0, 1.0),
}

#: Cells named as the source of the lower tail.
_WORST_CELLS = 4


@dataclass(frozen=True)
class _Margins:
    """Margins of one design and m; arrays of a scope are [n] and follow its margins."""

    design: str
    scopes: tuple[tuple[Floats, Ints, Ints], ...]
    cells: tuple[str, ...]
    cell_shares: Floats
    asked: Floats
    answered: Floats
    n: int

    @property
    def n_patients(self) -> int:
        return len(self.asked)

    @property
    def n_answered(self) -> int:
        """Patients with a margin: the others carry nothing of the figure."""
        return int((self.answered > 0).sum())


@dataclass(frozen=True)
class CromaDraws:
    """The median margin with what a comparison of encoders needs.

    Attributes
    ----------
    value
        The figure.
    draws
        [draws] in each resampled cohort.
    left_out
        [2, P] its change if each patient is taken out, from each half of the sampled queries.
    patients
        Names of the patients, in order.
    n
        Queries behind the figure.
    """

    value: float
    draws: Floats
    left_out: Floats
    patients: tuple[str, ...]
    n: int


def robustness_margins(
    margins: pl.DataFrame,
    chosen_k: Mapping[str, Any],
    parameters: Mapping[str, Any],
    margin_parameters: Mapping[str, Any],
    encoder: str,
) -> pl.DataFrame:
    """CRoMa, its lower tail and MaRI of one encoder, with intervals and nulls.

    Parameters
    ----------
    margins
        Margins of :func:`count_neighbours_and_margins`.
    chosen_k
        Output of ``choose_k``.
    parameters
        ``robustness_index``: designs, bootstrap_draws, n_permutations, seed.
    margin_parameters
        ``robustness_margins``: m, thresholds.
    encoder
        Name of the encoder.

    Returns
    -------
    DataFrame
        Measurements per design. Thresholds hold for the design ``all`` at the first m.
    """
    ks = {"cohort_k": chosen_k["k"], "encoder_k": chosen_k["per_encoder"].get(encoder)}
    rows: list[dict[str, Any]] = []
    for design in parameters["designs"]:
        own = margins.filter(pl.col("design") == design, pl.col("kind") != "unused")
        if own.is_empty():
            rows += _impossible(margins, design, margin_parameters, encoder)
            continue
        for m in margin_parameters["m"]:
            rows += _croma_rows(own, design, m, parameters, margin_parameters, encoder)
        rows += _mari_rows(own, design, ks, parameters, margin_parameters, encoder)
    return measurement_table(rows)


def croma_draws(
    margins: pl.DataFrame, design: str, m: int, parameters: Mapping[str, Any]
) -> CromaDraws | None:
    """Median margin of an encoder in every resampled cohort; None if it has none.

    Parameters
    ----------
    margins
        Margins of :func:`count_neighbours_and_margins`.
    design, m
        Which margins.
    parameters
        ``robustness_index``: bootstrap_draws, seed.
    """
    own = margins.filter(pl.col("design") == design, pl.col("kind") != "unused")
    if own.is_empty():
        return None
    held = _held(own, design, m)
    if not held.answered.sum():
        return None
    weights = bootstrap_weights(held.n_patients, parameters["bootstrap_draws"], parameters["seed"])
    drawn = _distribution(held, weights)
    names = own.filter(pl.col("kind") == "margins")["patient_id"].unique().sort()
    return CromaDraws(
        float(_distribution(held, np.ones((1, held.n_patients))).median[0]),
        drawn.median,
        _left_out(own, held, m, names.to_list())["median"],
        tuple(names),
        held.n,
    )


def _impossible(
    margins: pl.DataFrame, design: str, margin_parameters: Mapping[str, Any], encoder: str
) -> list[dict[str, Any]]:
    why = margins.filter(
        pl.col("design") == design, pl.col("kind") == "unused", pl.col("label").is_null()
    )["reason"]
    reason = why[0] if len(why) else f"design {design!r} was not measured: add it to designs"
    return [
        row
        for metric in ("croma", "croma_minus_null", "croma_lower_tail", "mari")
        for row in not_applicable(
            experiment=EXPERIMENT,
            encoder=encoder,
            metrics=[metric],
            reason=reason,
            setting={"design": design},
            **_threshold(metric, design, True, margin_parameters),
        )
    ]


def _threshold(
    metric: str, design: str, headline: bool, margin_parameters: Mapping[str, Any]
) -> dict[str, Any]:
    if design != "all" or not headline:
        return {}
    return dict(margin_parameters["thresholds"].get(metric) or {})


def _held(own: pl.DataFrame, design: str, m: int) -> _Margins:
    rows = own.filter(pl.col("kind") == "margins", pl.col("m") == m).sort("draw", "unit")
    cell = rows.select(pl.format("{} × {}", "label", "center").alias("cell"))["cell"]
    names = cell.unique().sort()
    sizes = rows["margins"].list.len().to_numpy()
    values = rows["margins"].explode().drop_nulls().to_numpy().astype(np.float64)
    patients, cells = codes_of(rows["patient_id"]), codes_of(cell)
    n_patients = rows["patient_id"].n_unique()
    of_row = (patients, cells, codes_of(rows["draw"]))
    owners, kinds, scope = (np.repeat(codes, sizes) for codes in of_row)
    scopes = rows["draw"].n_unique()
    asked = int(rows["n"].sum())
    return _Margins(
        design=design,
        scopes=tuple(
            (values[scope == i], owners[scope == i], kinds[scope == i]) for i in range(scopes)
        ),
        cells=tuple(names),
        cell_shares=np.bincount(kinds, minlength=len(names)) / max(len(kinds), 1),
        asked=sum_by_patient(rows["n"].to_numpy(), patients, n_patients),
        answered=sum_by_patient(sizes, patients, n_patients),
        n=asked // scopes if design == "all" else asked,
    )


def _distribution(held: _Margins, weights: Floats) -> Distribution:
    """Draws of design ``all`` averaged; pairs pooled, but for the median of the pairs' medians."""
    n_cells = len(held.cells)
    # Every cell stands in the table once, so that all scopes tell the shares of the same cells.
    each = [
        resampled_distribution(values, owners, weights, TAIL, cells, n_cells)
        for values, owners, cells in held.scopes
    ]
    if held.design == "all":
        told = (
            np.mean([getattr(one, name) for one in each], axis=0)
            for name in ("median", "mean", "tail", "below", "shares")
        )
        return Distribution(*told)
    values, owners, cells = (np.concatenate(parts) for parts in zip(*held.scopes, strict=True))
    pooled = resampled_distribution(values, owners, weights, TAIL, cells, n_cells)
    medians = _nan_median(np.array([one.median for one in each]))
    return Distribution(medians, pooled.mean, pooled.tail, pooled.below, pooled.shares)


def _nan_median(values: Floats) -> Floats:
    """Median over the first axis of what is not NaN; NaN where nothing is."""
    ordered: Floats = np.sort(values, axis=0)
    size = np.maximum(np.isfinite(values).sum(axis=0), 1)[None]
    low, high = (np.take_along_axis(ordered, i, axis=0)[0] for i in ((size - 1) // 2, size // 2))
    return np.asarray(0.5 * (low + high))


def _left_out(own: pl.DataFrame, held: _Margins, m: int, names: Sequence[str]) -> dict[str, Floats]:
    """[2, P] change of each summary without each patient, from each half of the sampled queries."""
    size = len(names)
    # The first draw is the cohort as it is, the others lack one patient's queries each.
    worlds = _distribution(held, np.vstack([np.ones(size), 1 - np.eye(size)]))
    rows = own.filter(pl.col("kind") == "without", pl.col("m") == m).sort("draw", "half")
    place = {name: i for i, name in enumerate(names)}
    scopes = rows.height // 2
    changes = {}
    for summary in SUMMARIES:
        as_query = getattr(worlds, summary)
        as_neighbour = np.zeros((scopes, 2, size))
        for i, (who, told) in enumerate(zip(rows["patients"], rows[summary], strict=True)):
            as_neighbour[i // 2, i % 2, [place[name] for name in who]] = told.to_numpy()
        both = np.nan_to_num(as_query[1:] - as_query[0]) + np.nan_to_num(as_neighbour).mean(axis=0)
        changes[summary] = both
    return changes


def jackknife_variance(changes: Floats) -> float:
    """(P − 1)/P · Σ a_p·b_p about their means, a and b being two measures of each change.

    Parameters
    ----------
    changes
        [2, P] change of a figure without each patient, measured twice with independent errors.

    Examples
    --------
    >>> values = np.array([1.0, 2.0, 3.0])
    >>> change = (values.sum() - values) / 2 - 2.0
    >>> round(jackknife_variance(np.stack([change, change])), 6)  # variance of the mean
    0.333333
    """
    size = changes.shape[1]
    centred = changes - changes.mean(axis=1, keepdims=True)
    return float((size - 1) / size * max(centred[0] @ centred[1], 0.0))


def widened_interval(
    value: float, draws: Floats, variance: float, least: float, most: float
) -> tuple[float | None, float | None]:
    """Percentile interval widened about the value where `variance` exceeds that of the draws."""
    low, high = percentile_interval(draws)
    if low is None or high is None:
        return None, None
    spread = float(np.var(draws[np.isfinite(draws)]))
    wide = max(np.sqrt(variance / spread), 1.0) if spread > 0 else 1.0
    return max(value + wide * (low - value), least), min(value + wide * (high - value), most)


def _nulls(own: pl.DataFrame, design: str, m: int) -> dict[str, Floats]:
    """[permutations] of each summary; empty if there were none."""
    rows = own.filter(pl.col("kind") == "null", pl.col("m") == m)
    worlds = {name: [told.to_numpy() for told in rows[name]] for name in SUMMARIES}
    return {
        name: (
            np.zeros(0)
            if not rows.height
            else _nan_median(np.array(told, dtype=np.float64))
            if design == "paired_2x2" and name == "median"
            else np.mean(np.array(told, dtype=np.float64), axis=0)
        )
        for name, told in worlds.items()
    }


def _croma_rows(
    own: pl.DataFrame,
    design: str,
    m: int,
    parameters: Mapping[str, Any],
    margin_parameters: Mapping[str, Any],
    encoder: str,
) -> list[dict[str, Any]]:
    """Rows of one m; of all but the first only the median."""
    held = _held(own, design, m)
    name: dict[str, Any] = {
        "experiment": EXPERIMENT,
        "encoder": encoder,
        "setting": {"design": design, "m": m},
    }
    headline = m == margin_parameters["m"][0]
    if not held.answered.sum():
        reason = (
            f"no tile has {m} neighbours of its label at another center and {m} of another label at "
            "its center, from other patients: add patients, or take a smaller m"
        )
        judged = _threshold("croma_minus_null", design, headline, margin_parameters)
        return [
            *not_applicable(**name, metrics=["croma"], reason=reason, n=held.n),
            *not_applicable(
                **name, metrics=["croma_minus_null"], reason=reason, n=held.n, **judged
            ),
        ]
    weights = bootstrap_weights(held.n_patients, parameters["bootstrap_draws"], parameters["seed"])
    point, drawn = (_distribution(held, w) for w in (np.ones((1, held.n_patients)), weights))
    names = own.filter(pl.col("kind") == "margins")["patient_id"].unique().sort().to_list()
    changes = _left_out(own, held, m, names)
    nulls = _nulls(own, design, m)
    told = SUMMARIES if headline else ("median",)
    rows = []
    for summary in told:
        metric, least, most = METRICS[summary]
        value = float(getattr(point, summary)[0])
        interval = widened_interval(
            value, getattr(drawn, summary), jackknife_variance(changes[summary]), least, most
        )
        estimate = Estimate(value, *interval, held.n, held.n_answered)
        rows.append(
            measurement(
                **name,
                metric=metric,
                estimate=estimate,
                null=_range(nulls[summary]),
                reason=_partly(held, m),
                **_threshold(metric, design, headline, margin_parameters),
            )
        )
        if summary == "median" and headline:
            rows.append(
                _minus_null(name, "croma_minus_null", estimate, nulls[summary], margin_parameters)
            )
    if headline:
        rows += _worst_rows(held, point, drawn, weights, changes["mean"], name)
    return rows


def _range(permuted: Floats) -> Null:
    return Null(*percentile_interval(permuted)) if len(permuted) else Null()


def _partly(held: _Margins, m: int) -> str | None:
    """What the figure does not speak of; None if every query has a margin."""
    share = float(held.answered.sum() / held.asked.sum())
    if share == 1:
        return None
    return (
        f"speaks of {share:.0%} of the tiles: the others lack {m} neighbours of their label at another "
        f"center, or {m} of another label at their center, from other patients"
    )


def _minus_null(
    name: Mapping[str, Any],
    metric: str,
    estimate: Estimate,
    permuted: Floats,
    margin_parameters: Mapping[str, Any],
    role: str = "cohort_k",
) -> dict[str, Any]:
    """A figure minus the mean of its permutations."""
    design = str(name["setting"]["design"])
    judged = _threshold(metric, design, role == "cohort_k", margin_parameters)
    known = permuted[np.isfinite(permuted)]
    if not len(known):
        reason = "no permutation to compare with: set n_permutations to 200"
        return not_applicable(**name, metrics=[metric], reason=reason, **judged)[0]
    chance = float(known.mean())
    value, ci_low, ci_high = (
        None if figure is None else figure - chance
        for figure in (estimate.value, estimate.ci_low, estimate.ci_high)
    )
    low, high = percentile_interval(permuted - chance)
    return measurement(
        **name,
        metric=metric,
        estimate=Estimate(value, ci_low, ci_high, estimate.n, estimate.n_patients),
        null=Null(low, high),
        **judged,
    )


def _worst_rows(
    held: _Margins,
    point: Distribution,
    drawn: Distribution,
    weights: Floats,
    changes: Floats,
    name: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Support, the worst patients, and the cells that the lower tail comes from."""
    values, owners, _ = (np.concatenate(parts) for parts in zip(*held.scopes, strict=True))
    sums = np.bincount(owners, values, minlength=held.n_patients)
    there = np.flatnonzero(held.answered)
    means = sums[there] / held.answered[there]
    figures = [
        resampled_distribution(means, there, each, TAIL).tail
        for each in (np.ones((1, held.n_patients)), weights)
    ]
    # How much wider than the bootstrap of queries: as for the mean margin.
    ratio = jackknife_variance(changes) / max(float(np.nanvar(drawn.mean)), np.finfo(float).tiny)
    worst = float(figures[0][0])
    interval = widened_interval(worst, figures[1], ratio * float(np.nanvar(figures[1])), -1.0, 1.0)
    rows = [
        measurement(
            **name,
            metric="worst_patients",
            estimate=Estimate(worst, *interval, held.n, len(there)),
        ),
        measurement(
            **name,
            metric="margin_support",
            estimate=ratio_estimate(held.answered, held.asked, weights, held.n),
        ),
    ]
    shares = point.shares[0]
    for i in np.argsort(-shares, kind="stable")[:_WORST_CELLS]:
        usual = float(held.cell_shares[i])
        rows.append(
            measurement(
                **name,
                metric="worst_decile_share",
                stratum=held.cells[i],
                estimate=Estimate(
                    float(shares[i]),
                    *percentile_interval(drawn.shares[:, i]),
                    held.n,
                    held.n_answered,
                ),
                null=Null(usual, usual),
            )
        )
    return rows


def _mari_rows(
    own: pl.DataFrame,
    design: str,
    ks: Mapping[str, Any],
    parameters: Mapping[str, Any],
    margin_parameters: Mapping[str, Any],
    encoder: str,
) -> list[dict[str, Any]]:
    """MaRI for the cohort's k, the encoder's own and every k of the grid."""
    evidence = own.filter(pl.col("kind") == "evidence")
    if evidence.is_empty():
        reason = (
            "no neighbour has the label and another center, or the center and another label, so "
            "there is no distance to set the temperature by: take larger k in k_grid"
        )
        return not_applicable(
            experiment=EXPERIMENT,
            encoder=encoder,
            metrics=["mari"],
            reason=reason,
            setting={"design": design, "k": ks["cohort_k"], "role": "cohort_k"},
        )
    arrays = design_arrays(evidence, design, {})
    estimates = _mari_estimates(arrays, parameters)
    nulls = [
        ri for ri, _ in permuted_indices(arrays, parameters["n_permutations"], parameters["seed"])
    ]
    figures = dict(zip(arrays.k_grid, zip(estimates, nulls, strict=True), strict=True))
    asked = [*ks.items(), *(("curve", k) for k in figures)]
    rows = []
    for role, k in ((role, k) for role, k in asked if k in figures):
        estimate, permuted = figures[k]
        name: dict[str, Any] = {
            "experiment": EXPERIMENT,
            "encoder": encoder,
            "setting": {"design": design, "k": k, "role": role},
        }
        judged = _threshold("mari", design, role == "cohort_k", margin_parameters)
        rows.append(
            measurement(
                **name,
                metric="mari",
                estimate=estimate,
                null=_range(permuted),
                reason=None if estimate.value is not None else _no_kind(k),
                **judged,
            )
        )
        if role == "cohort_k" and estimate.value is not None:
            rows.append(
                _minus_null(name, "mari_minus_null", estimate, permuted, margin_parameters, role)
            )
    tau = float(evidence["tau"][0])
    temperature = Estimate(tau, None, None, arrays.n, arrays.n_patients)
    setting = {"design": design, "k": ks["encoder_k"]}
    return [
        *rows,
        measurement(
            experiment=EXPERIMENT,
            encoder=encoder,
            metric="mari_temperature",
            estimate=temperature,
            setting=setting,
        ),
    ]


def _no_kind(k: int) -> str:
    return (
        f"among {k} neighbours none has the label and another center, or the center and another "
        "label: take a larger k"
    )


def _mari_estimates(design: Design, parameters: Mapping[str, Any]) -> list[Estimate]:
    """At each k of the grid; evidence is added band by band."""
    pairs, size = design.pairs, design.n_patients
    weights = bootstrap_weights(size, parameters["bootstrap_draws"], parameters["seed"])
    same_label = design.label[pairs.query] == design.label[pairs.neighbour]
    same_center = design.center[pairs.query] == design.center[pairs.neighbour]
    kind = 2 * ~same_label + ~same_center
    totals = [patient_matrix(pairs, kind < 0, design.patient, size)] * 2
    drawn = np.zeros((2, len(weights)))
    estimates = []
    for band in range(len(design.k_grid)):
        for i, which in enumerate((SO, OS)):
            chosen = (pairs.band == band) & (kind == which)
            added = patient_matrix(pairs, chosen, design.patient, size)
            totals[i] = totals[i] + added
            drawn[i] += resampled_total(added, weights)
        sums = np.stack([drawn[0], drawn[0] + drawn[1]])
        whole = totals[0] + totals[1]
        estimate = pair_ratio(totals[0], whole, sums, design.n, 1.0)
        # Patients that meet no neighbour of either kind carry nothing of the figure.
        carry = int((np.asarray(whole.sum(axis=1)) > 0).sum())
        estimates.append(replace(estimate, n_patients=carry))
    return estimates
