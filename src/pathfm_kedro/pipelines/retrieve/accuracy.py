"""How often the nearest slides carry the query's label.

Votes of the nearest slides of other patients (:mod:`~pathfm_kedro.statistics.votes`), per family of
distances, scope of the search and vote:

- ``macro_f1`` and ``accuracy``, of all queries and of each organ's; ``f1`` of each label;
- ``f1_range_over_organs``, largest minus smallest macro-F1, its interval from the contrasts between
  organs (:func:`~pathfm_kedro.statistics.resampled_figure.range_interval`); ``f1_sd_over_organs``,
  their standard deviation; ``f1_tau_over_organs``, the same less what the sampling of patients adds.

Counted are queries whose label has at least ``min_patients`` patients where the query searches; labels
and organs that have not are listed with the reason. The others stay in the search as wrong votes.
Interval: bootstrap over patients, centred and widened by the design effect of the neighbour graph, or
the exact one where resampling shows no spread. Null: labels permuted over the patients that the search
is restricted to, those of the organ or all.

Below the null nothing passes: a macro-F1 above its threshold that is not above its null gets no
verdict, and so does then the range over organs, since equally bad in every organ is not a pass. Nor
does a figure that any labels would give.

Pitfalls
--------
- One organ that is searched well lifts the macro-F1 of all above its null, so that a small range says
  little of the others: read ``macro_f1`` of each organ beside it.
- Across organs, knowing the organ or its stain alone lies above the null. What is known beyond the
  organ shows within it.
- With two organs and few patients the range is mostly noise; its null shows how much. Where every
  answer is right, the interval rests on the number of patients alone.
- With signal the interval may hold the truth in as few as 85 of 100 cohorts.
- One mosaic per slide, sampled once: its own chance is not in the interval.
- Barcodes, late interaction, visual words and search time are not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import NoReturn

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.retrieve.search import SCOPES, VOTES, Retrieval, ScopeName
from pathfm_kedro.statistics.bootstrap import patient_codes, percentile_interval
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.resampled_figure import (
    ResampledFigure,
    deviation_bounds,
    range_interval,
    without_null_spread,
)
from pathfm_kedro.statistics.votes import LabelledQueries, PatientVotes, patient_votes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RANGE, DEVIATION, TAU = "f1_range_over_organs", "f1_sd_over_organs", "f1_tau_over_organs"


def retrieval_figures(
    matches: pl.DataFrame, slides: pl.DataFrame, p: Retrieval
) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    matches
        From :func:`~pathfm_kedro.pipelines.retrieve.search.search_slides`.
    slides
        Slides table.
    p
        The parameters.
    """
    searched = pl.concat([matches["query_slide"], matches["match_slide"]]).unique()
    cohort = slides.filter(pl.col("slide_id").is_in(searched.to_list())).sort("slide_id")
    for family, scope in product(p.families, p.scopes):
        found = matches.filter(family=family, scope=scope)
        search = None if found.is_empty() else Search.of(found, cohort, scope, p)
        for vote in p.votes:
            setting = {"family": family, "vote": vote, "scope": scope}
            if search is None:
                yield from _undefined(["macro_f1", "accuracy"], setting, _no_match(scope))
                yield from _undefined([RANGE, DEVIATION, TAU], setting, _no_match(scope))
            else:
                yield from _of_vote(search, VOTES[vote], setting, p)


def _of_vote(search: Search, k: int, setting: Mapping[str, str], p: Retrieval) -> Iterator[Figure]:
    whole = search.votes(k) if search.counted.any() else None
    if whole is None:
        yield from _undefined(["macro_f1", "accuracy"], setting, search.nothing_counts)
    else:
        threshold = _threshold(p, setting)
        yield Figure("macro_f1", partial(judged_macro_f1, whole, threshold), setting)
        yield Figure("accuracy", partial(share, whole.accuracy, whole.n, whole.n_patients), setting)
        for label in np.flatnonzero(whole.n_by_label):
            n, n_patients = int(whole.n_by_label[label]), int(whole.n_patients_by_label[label])
            compute = partial(share, whole.f1(int(label)), n, n_patients)
            yield Figure("f1", compute, setting, f"label={search.labels[label]}")
    yield from search.left_out_labels(setting)
    organs = []
    for code, organ in enumerate(search.organs):
        keep, stratum = search.organ == code, f"organ={organ}"
        if not search.counted[keep].any():
            rest = search.support_of(keep)
            yield from _undefined(
                ["macro_f1", "accuracy"], setting, search.organ_left_out, stratum, *rest
            )
            continue
        votes = search.votes(k, keep)
        organs.append(votes)
        for metric, figure in (("macro_f1", votes.macro_f1), ("accuracy", votes.accuracy)):
            yield Figure(
                metric, partial(share, figure, votes.n, votes.n_patients), setting, stratum
            )
    if whole is None or len(organs) < 2:
        reason = "fewer than two organs can be measured: a spread over organs needs two"
        yield from _undefined([RANGE, DEVIATION, TAU], setting, reason)
        return
    spread = OrganSpread(organs, whole.macro_f1)
    yield Figure(RANGE, spread.range, setting)
    yield Figure(DEVIATION, spread.deviation, setting)
    yield Figure(TAU, spread.between, setting)


@dataclass(frozen=True)
class Search:
    """The queries of one family and scope with what they found.

    Attributes
    ----------
    queries
        Patient, label and pool (its organ, or all) of each slide.
    organ
        [n] codes.
    matches
        [n, k] row of each match, nearest first; −1 where fewer were found.
    organs, labels
        Names behind the codes.
    searchable
        [n_pools, n_labels] from :func:`searchable_labels`.
    permuted, weights
        Permuted labels and the bootstrap's weights of patients.
    within
        Whether a query searches its own organ alone.
    min_patients
        Patients that a label needs.
    """

    queries: LabelledQueries
    organ: Ints
    matches: Ints
    organs: tuple[str, ...]
    labels: tuple[str, ...]
    searchable: Bools
    permuted: Ints
    weights: Floats
    within: bool
    min_patients: int

    @classmethod
    def of(
        cls, matches: pl.DataFrame, cohort: pl.DataFrame, scope: ScopeName, p: Retrieval
    ) -> Search:
        """Read the matches of one family and scope.

        Parameters
        ----------
        matches
            query_slide, rank, match_slide.
        cohort
            Slides that took part in the search, sorted by slide_id.
        scope
            Name of the scope.
        p
            The parameters.
        """
        row = pl.DataFrame({"slide": cohort["slide_id"], "row": np.arange(len(cohort))})
        placed = matches.join(row, left_on="query_slide", right_on="slide").join(
            row, left_on="match_slide", right_on="slide", suffix="_match"
        )
        found = np.full((len(cohort), int(matches["rank"].max())), -1)  # type: ignore[arg-type]
        at = placed["row"].to_numpy(), placed["rank"].to_numpy() - 1
        found[at] = placed["row_match"].to_numpy()
        patient, n_patients = patient_codes(cohort["patient_id"].to_numpy())
        organs, organ = np.unique(cohort["organ"].to_numpy(), return_inverse=True)
        labels, label = np.unique(cohort["label"].to_numpy(), return_inverse=True)
        within = "organ" in SCOPES[scope].same
        pool = organ if within else np.zeros_like(organ)
        queries = LabelledQueries(patient, label, pool, n_patients, len(labels))
        return cls(
            queries=queries,
            organ=organ,
            matches=found,
            organs=tuple(organs),
            labels=tuple(labels),
            searchable=searchable_labels(queries, p.min_patients, within),
            permuted=queries.permuted(p.n_permutations, p.seed),
            weights=p.weights(n_patients),
            within=within,
            min_patients=p.min_patients,
        )

    @property
    def counted(self) -> Bools:
        """[n] queries whose label can be searched for."""
        return np.asarray(self.searchable[self.queries.pool, self.queries.label])

    def votes(self, k: int, keep: Bools | None = None) -> PatientVotes:
        """What the k nearest matches vote for the kept queries."""
        near = self.matches[:, :k]
        return patient_votes(self.queries, near, self.searchable, self.permuted, self.weights, keep)

    def support_of(self, rows: Bools) -> tuple[int, int]:
        """Slides and patients of some rows."""
        return int(rows.sum()), len(np.unique(self.queries.patient[rows]))

    def left_out_labels(self, setting: Mapping[str, str]) -> Iterator[Figure]:
        """F1 of the labels that are not counted, with the reason."""
        support = self.queries.support
        for code, label in enumerate(self.labels):
            own = self.queries.label == code
            if self.counted[own].any():
                continue
            patients = int(support[:, code].max())
            reason = (
                f"{patients} patient(s) carry this label{' in one organ' if self.within else ''}, "
                f"{self.min_patients} are needed: add patients"
                if patients < self.min_patients
                else "no second label of its organ has enough patients, so that every vote within "
                "the organ is correct: search across organs"
            )
            yield from _undefined(["f1"], setting, reason, f"label={label}", *self.support_of(own))

    @property
    def nothing_counts(self) -> str:
        """Why no query is counted."""
        if self.within:
            return (
                f"no organ holds two labels with {self.min_patients} patients each: add patients, or "
                "search across organs"
            )
        return f"no label has {self.min_patients} patients: add patients"

    @property
    def organ_left_out(self) -> str:
        """Why no query of an organ is counted."""
        if self.within:
            return (
                f"fewer than two labels of this organ have {self.min_patients} patients, so that a "
                "search within it is trivial: search across organs, or add patients"
            )
        return f"no label of this organ has {self.min_patients} patients: add patients"


def searchable_labels(queries: LabelledQueries, min_patients: int, within_organ: bool) -> Bools:
    """Which labels can be searched for in which pool.

    A label needs `min_patients` patients in the pool, else no query can find it. Within an organ
    at least two such labels are needed, else every vote is correct by construction.

    Returns
    -------
    ndarray
        [n_pools, n_labels].
    """
    searchable: Bools = queries.support >= min_patients
    if within_organ:
        searchable &= searchable.sum(axis=1, keepdims=True) >= 2
    return searchable


def share(figure: ResampledFigure, n: int, n_patients: int) -> Value:
    """A share with its interval and its null."""
    return Value(
        Estimate(figure.value, *figure.interval(), n, n_patients, figure.draws), figure.null
    )


def judged_macro_f1(votes: PatientVotes, threshold: float | None) -> Value:
    """Macro-F1; where chance reaches it as well, no threshold below it is passed."""
    figure = votes.macro_f1
    value = share(figure, votes.n, votes.n_patients)
    low, caveat = value.estimate.ci_low, ""
    if without_null_spread(figure.value, figure.null):
        caveat = _any_encoder(figure.value)
    elif threshold is not None and low is not None and low > threshold and not figure.above_null():
        caveat = (
            f"above the threshold, but {_not_above_null(figure)}: an encoder that knows nothing may "
            "reach the threshold; raise it or add patients"
        )
    return Value(value.estimate, value.null, caveat=caveat)


@dataclass(frozen=True)
class OrganSpread:
    """How macro-F1 differs between organs.

    Attributes
    ----------
    organs
        Votes of the queries of each, at least two.
    pooled
        Macro-F1 of all queries.
    """

    organs: Sequence[PatientVotes]
    pooled: ResampledFigure

    def range(self) -> Value:
        """Largest minus smallest; no verdict where the search finds no labels."""
        caveat = (
            "organs may be equally bad, or differ by chance alone, and neither is a verdict: "
            f"{_not_above_null(self.pooled)}"
        )
        bounds = (None if end is None else min(1.0, max(0.0, end)) for end in self._bounds)
        draws = np.ptp([organ.macro_f1.draws for organ in self.organs], axis=0)
        estimate = replace(self._estimate(self._range, *bounds), draws=draws)
        return Value(estimate, self._null, caveat="" if self.pooled.above_null() else caveat)

    def deviation(self) -> Value:
        """Standard deviation."""
        estimate = self._estimate(self._deviation, *self._deviation_bounds)
        return Value(estimate, Null(*percentile_interval(self._permuted.std(axis=1, ddof=1))))

    def between(self) -> Estimate:
        """Standard deviation less what the sampling of patients adds: √(sd² − mean variance).

        Both estimate the spread of the expected figures, so both have its interval.
        """
        noise = float(np.mean([organ.macro_f1.sampling_variance() for organ in self.organs]))
        value = float(np.sqrt(max(0.0, self._deviation**2 - noise)))
        return self._estimate(value, *self._deviation_bounds)

    @property
    def _values(self) -> Floats:
        return np.array([organ.macro_f1.value for organ in self.organs])

    @property
    def _permuted(self) -> Floats:
        return np.stack([organ.macro_f1.permuted for organ in self.organs], axis=1)

    @property
    def _range(self) -> float:
        return float(np.ptp(self._values))

    @property
    def _deviation(self) -> float:
        return float(self._values.std(ddof=1))

    @property
    def _null(self) -> Null:
        return Null(*percentile_interval(np.ptp(self._permuted, axis=1)))

    @property
    def _bounds(self) -> tuple[float | None, float | None]:
        return range_interval([organ.macro_f1 for organ in self.organs])

    @property
    def _deviation_bounds(self) -> tuple[float | None, float | None]:
        return deviation_bounds(*self._bounds, len(self.organs))

    def _estimate(self, value: float, low: float | None, high: float | None) -> Estimate:
        n = sum(organ.n for organ in self.organs)
        n_patients = sum(organ.n_patients for organ in self.organs)
        if without_null_spread(self._range, self._null):
            raise Undefined(_any_encoder(self._range), n, n_patients)
        return Estimate(value, low, high, n, n_patients)


def _threshold(p: Retrieval, setting: Mapping[str, str]) -> float | None:
    """What macro-F1 of all queries must exceed at this setting."""
    asked = Figure("macro_f1", partial(_refuse, ""), setting)
    return next((c.threshold for c in p.criteria if c.asks(asked) and c.direction == "above"), None)


def _undefined(
    metrics: Sequence[str],
    setting: Mapping[str, str],
    reason: str,
    stratum: str = "all",
    n: int = 0,
    n_patients: int = 0,
) -> Iterator[Figure]:
    for metric in metrics:
        yield Figure(metric, partial(_refuse, reason), setting, stratum, n, n_patients)


def _refuse(reason: str) -> NoReturn:
    raise Undefined(reason)


def _not_above_null(pooled: ResampledFigure) -> str:
    bounds, chance = pooled.interval(), pooled.null
    return (
        f"macro-F1 is not above its null ({_span(*bounds)} against {_span(chance.low, chance.high)}"
        " from permuted labels)"
    )


def _span(low: float | None, high: float | None) -> str:
    return "n/a" if low is None or high is None else f"{low:.3g} to {high:.3g}"


def _any_encoder(value: float) -> str:
    return (
        f"any encoder gives this figure here ({value:.3g}): the vote is the same however labels are "
        "permuted; use a smaller vote or add patients"
    )


def _no_match(scope: ScopeName) -> str:
    rule = SCOPES[scope]
    place = "".join(
        [f", of one {column}" for column in rule.same]
        + [f", of two {column}s" for column in rule.other]
    )
    return (
        "no slide found a slide of another patient: the search needs slides of two patients"
        f"{place}, with embeddings and mosaic tiles"
    )
