r"""How many documents single vectors can tell apart, and whether dimension is what is in the way.

The paper under audit says that vectors of few dimensions cannot encode combinations. Measured are
free vectors (:mod:`~pathfm_kedro.statistics.free_embedding`), which no encoder can outdo:

- ``critical_n``: documents of which all pairs are found by fitted vectors of a dimension, median over
  seeds, with the range over seeds in place of an interval; ``critical_n_published``, the source's cubic
  fit; ``margin`` of the fitted vectors there, computed in float16, float32 and float64, beside that of
  a moment curve of 4 dimensions for as many documents, and ``margin_ceiling``, the largest that any
  vectors can have (centroids of a simplex's corners have it, in n − 1 dimensions); ``solved_share`` of
  the seeds whose solution holds in a precision.
- ``largest_n``: documents of which a construction in 4 dimensions finds all pairs when products are
  computed in float16, float32 and float64. In exact arithmetic it finds them for **any** number.
- ``sign_rank_lower`` and ``sign_rank_upper`` (:mod:`~pathfm_kedro.statistics.sign_rank`): between which
  numbers of dimensions the least lies that can hold this cohort's relevance: same label, all pairs of
  as many slides, and the pairs of tissues that ``tissue_limit`` asks for: of documents that show two
  (dense, of which cycle is a part), and of all that show as many as those of its random pattern.
- ``dimension_order``: k log₂(n/k) for the cohort's slides, the order of dimensions that suffice at a
  margin that does not vanish with n.

Pitfalls
--------
- A critical n is what this optimisation reaches in its steps: a lower bound on what vectors can do, and
  no limit. The constructions solve more in fewer dimensions; what they lack is margin.
- Relevance by label has a sign rank of at most 3, and so have pairs of tissues where a document shows
  one pair. A macro-F1 of 0.4 on labels is never explained by the dimension of the vectors alone.
- The cubic is fitted to few dimensions; beyond ten times the largest it is a guess, and marked.
- Rebuttals to read beside the source: arXiv 2601.20844 and 2603.29519.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.retrieve.tissue_limit import (
    FEWEST_ATTRIBUTES,
    MIN_PATIENTS,
    TOO_FEW_ATTRIBUTES,
)
from pathfm_kedro.statistics import free_embedding, sign_rank
from pathfm_kedro.statistics.figures import Figure, Undefined, Value, undefined
from pathfm_kedro.statistics.free_embedding import Fit, Optimiser
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters

#: Name under which the rows stand: no encoder takes part.
ARM = "free_vectors"
#: Documents of a query, as published.
K = 2
#: What the constructions are computed in.
PRECISIONS: dict[str, type[np.floating[Any]]] = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
}
#: Bounds of the sign rank, where sets are asked for.
OF_SUBSETS: dict[str, Callable[[int, int, int], float]] = {
    "sign_rank_lower": sign_rank.forster_bound_of_subsets,
    "sign_rank_upper": sign_rank.subset_bound,
}
#: How far beyond the largest measured dimension an extrapolation is worth showing.
_BEYOND = 10
#: The published numbers of steps; fewer are said beside the figure.
_PUBLISHED_STEPS = 100_000

#: One row per dimension and seed: the critical n, and the least margin of the vectors found there,
#: computed in each precision.
CAPACITY_SCHEMA: dict[str, pl.DataType] = {
    "dimension": pl.Int64(),
    "seed": pl.Int64(),
    "critical_n": pl.Int64(),
    **{f"margin_{precision}": pl.Float64() for precision in PRECISIONS},
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Capacity(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    dimensions
        Of the free vectors.
    starts
        Starts of each.
    max_steps
        Of one optimisation.
    encoder_dimensions
        At which the fit is extrapolated.
    largest_n
        Documents up to which the construction is tried.
    """

    dimensions: tuple[Annotated[int, Field(ge=3)], ...]
    starts: Annotated[int, Field(ge=1)]
    max_steps: Annotated[int, Field(ge=50)]
    encoder_dimensions: tuple[Annotated[int, Field(ge=1)], ...]
    largest_n: Annotated[int, Field(ge=8)]


def capacity_statistics(p: Capacity) -> pl.DataFrame:
    """Accumulate: the critical n of every dimension and seed.

    Returns
    -------
    DataFrame
        Columns :data:`CAPACITY_SCHEMA`.
    """
    how = Optimiser(steps=p.max_steps)
    rows = [
        _search(d, p.seed + offset, how)
        for d in sorted(set(p.dimensions))
        for offset in range(p.starts)
    ]
    return pl.DataFrame(rows, schema=CAPACITY_SCHEMA)


def _search(d: int, seed: int, how: Optimiser) -> dict[str, Any]:
    from threadpoolctl import threadpool_limits

    fits: dict[int, Fit] = {}

    def solves(n: int) -> bool:
        fits[n] = free_embedding.fit(n, d, K, how, seed)
        return fits[n].solved

    # The products are too small for a second thread to help.
    with threadpool_limits(1):
        n = free_embedding.critical_n(solves, d + 1)
        best = fits[n] if n in fits else free_embedding.fit(n, d, K, how, seed)
    wanted = free_embedding.relevance(free_embedding.all_subsets(n, K), n)
    found: dict[str, Any] = {"dimension": d, "seed": seed, "critical_n": n}
    for name, precision in PRECISIONS.items():
        queries, documents = (x.astype(precision) for x in (best.queries, best.documents))
        found[f"margin_{name}"] = float(free_embedding.margins(queries, documents, wanted).min())
    return found


def capacity_figures(
    statistics: pl.DataFrame, slides: pl.DataFrame, attributes: int, p: Capacity
) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`capacity_statistics`.
    slides
        Slides table: its labels are the cohort's relevance.
    attributes
        Of ``tissue_limit``: tissues that a document of its random pattern shows.
    p
        The parameters.
    """
    for d in sorted(set(p.dimensions)):
        rows = statistics.filter(dimension=d)
        at: dict[str, Any] = {"dimension": d}
        yield Figure("critical_n", partial(_critical_n, rows, p), at)
        yield Figure(
            "critical_n_published", partial(_exact, free_embedding.published_critical_n(d)), at
        )
        yield from _margins(rows, at)
    for n in sorted({_middle_n(rows) for _, rows in statistics.group_by("dimension")}):
        curve = partial(_exact, free_embedding.circle_curve_margin(n, np.float64), n)
        yield Figure("margin", curve, {"by": "moment_curve", "documents": n})
    for d in sorted(set(p.encoder_dimensions)):
        yield Figure(
            "critical_n", partial(_extrapolated, statistics, d), {"dimension": d, "by": "fit"}
        )
        published = partial(_exact, free_embedding.published_critical_n(d))
        yield Figure("critical_n_published", published, {"dimension": d, "by": "fit"})
    for name, precision in PRECISIONS.items():
        at = {"dimension": 2 * K, "precision": name}
        yield Figure("largest_n", partial(_largest_n, precision, p.largest_n), at)
    usable = slides.filter(pl.col("status") == "usable")
    counts = usable["label"].value_counts()["count"].to_numpy().astype(np.int64)
    yield from _sign_ranks(counts)
    patients = usable.group_by("label").agg(pl.col("patient_id").n_unique())["patient_id"]
    yield from _sign_ranks_of_attributes(int((patients >= MIN_PATIENTS).sum()), attributes)


def _exact(value: float, n: int = 0) -> Estimate:
    """A closed form, which has no interval."""
    return Estimate(float(value), None, None, n, 0)


def _critical_n(rows: pl.DataFrame, p: Capacity) -> Value:
    found = rows["critical_n"].to_list()
    middle = float(np.median(found))
    capped = (
        f"; at most {p.max_steps:,} steps in place of {_PUBLISHED_STEPS:,}: more may be solved"
        if p.max_steps < _PUBLISHED_STEPS
        else ""
    )
    seeds = (
        f"{len(found)} seed(s): no range" if len(found) < 3 else f"range over {len(found)} seeds"
    )
    estimate = Estimate(middle, *_ends(found), int(middle), 0)
    return Value(estimate, remark=f"{seeds} in place of an interval{capped}")


def _margins(rows: pl.DataFrame, at: Mapping[str, Any]) -> Iterator[Figure]:
    """Margins at the critical n: of the fitted vectors, and the largest."""
    n = _middle_n(rows)
    for name in PRECISIONS:
        column, setting = rows[f"margin_{name}"].to_numpy(), {**at, "precision": name}
        middle = Estimate(float(np.median(column)), *_ends(column.tolist()), n, 0)
        yield Figure("margin", partial(Value, middle), setting)
        yield Figure("solved_share", partial(_exact, (column > 0).mean(), n), setting)
    ceiling = partial(_exact, free_embedding.margin_ceiling(n, K), n)
    yield Figure("margin_ceiling", ceiling, at)


def _middle_n(rows: pl.DataFrame) -> int:
    """Median critical n over seeds."""
    return int(np.median(rows["critical_n"].to_numpy()))


def _extrapolated(statistics: pl.DataFrame, d: int) -> Value:
    """A cubic through the measured critical n, as the source does it."""
    known = sorted(statistics["dimension"].unique())
    if len(known) < 5:
        raise Undefined(
            f"a cubic needs five dimensions and {len(known)} were measured: add some to "
            "capacity.dimensions"
        )
    largest = known[-1]
    values = [
        float(np.polynomial.Polynomial.fit(rows["dimension"], rows["critical_n"], 3)(d))
        for _, rows in statistics.group_by("seed", maintain_order=True)
    ]
    how_far = f"fitted to {known[0]} to {largest} dimensions"
    if d > _BEYOND * largest:
        how_far += f", {d / largest:.0f} times beyond: a guess, no measurement"
    estimate = Estimate(float(np.median(values)), *_ends(values), len(values), 0)
    return Value(estimate, remark=how_far)


def _ends(found: Sequence[float]) -> tuple[float | None, float | None]:
    """Range over seeds in place of an interval; none of fewer than three."""
    return (min(found), max(found)) if len(found) >= 3 else (None, None)


def _largest_n(precision: type[np.floating[Any]], most: int) -> Value:
    def solves(n: int) -> bool:
        return free_embedding.circle_curve_margin(n, precision) > 0

    found = free_embedding.critical_n(solves, 2 * K + 1, most=most)
    remark = "the largest that was tried" if found >= most else ""
    return Value(Estimate(float(found), None, None, found, 0), remark=remark)


def _sign_ranks(counts: NDArray[np.int64]) -> Iterator[Figure]:
    n, labels, pairs = int(counts.sum()), {"relevance": "same_label"}, {"relevance": "all_pairs"}
    if len(counts) < 2:
        reason = "fewer than two labels: every slide is relevant to every other"
        for metric in OF_SUBSETS:
            yield Figure(metric, undefined(reason), labels, n=n)
    else:
        lower = sign_rank.forster_bound_of_labels(counts)
        upper = sign_rank.sign_change_bound_of_labels(len(counts))
        yield Figure("sign_rank_lower", partial(_exact, lower, n), labels)
        yield Figure("sign_rank_upper", partial(_exact, upper, n), labels)
    if n > K:
        for metric, bound in OF_SUBSETS.items():
            yield Figure(metric, partial(_exact, bound(n, 1, K), n), pairs)
        order = free_embedding.dimension_bound(n, K)
        yield Figure("dimension_order", partial(_exact, order, n), pairs)


def _sign_ranks_of_attributes(m: int, attributes: int) -> Iterator[Figure]:
    """Of pairs of m tissues against documents that show two, or as many as the random pattern."""
    shown = {"tissue_pairs": K, "tissue_pairs_of_more": max(K, min(attributes, m - 1))}
    for name, a in shown.items():
        for metric, bound in OF_SUBSETS.items():
            yield Figure(metric, partial(_of_attributes, bound, m, a), {"relevance": name}, n=m)


def _of_attributes(bound: Callable[[int, int, int], float], m: int, a: int) -> Estimate:
    if m < FEWEST_ATTRIBUTES:
        raise Undefined(TOO_FEW_ATTRIBUTES)
    return _exact(bound(m, K, a), m)
