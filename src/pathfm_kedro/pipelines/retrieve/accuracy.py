"""How often the nearest slides carry the query's label.

Votes of the nearest slides of other patients (:mod:`~pathfm_kedro.statistics.votes`), per family of
distances, scope of the search and vote:

- ``macro_f1`` and ``accuracy``, of all queries and of each organ's; ``f1`` of each label;
  ``never_found``, the share of labels whose F1 is 0;
- ``gain_over_mean``, macro-F1 less that of one mean vector per slide, by the same queries and draws
  (:func:`~pathfm_kedro.statistics.vote_gain.macro_f1_gain`): what several vectors, words or fused
  lists know of a slide that its mean does not;
- ``f1_mean_over_organs``; ``f1_range_over_organs``, largest minus smallest macro-F1, its interval from
  the contrasts between organs (:func:`~pathfm_kedro.statistics.resampled_figure.range_interval`);
  ``f1_sd_over_organs``, their standard deviation; ``f1_tau_over_organs``, the same less what the
  sampling of patients adds;
- of the list itself ``map_at_5`` and ``same_center``
  (:mod:`~pathfm_kedro.pipelines.retrieve.ranked_lists`).

Single labels and organs are reported of the families in ``detailed``. Counted are queries whose label
has at least ``min_patients`` patients where the query searches; labels and organs that have not are
listed with the reason. The others stay in the search as wrong votes.
Interval: bootstrap over patients, centred and widened by the design effect of the neighbour graph, or
the exact one where resampling shows no spread. Null: labels permuted over the patients that the search
is restricted to, those of the organ or all.

Below the null nothing passes: a macro-F1 above its threshold that is not above its null gets no
verdict, and so does then the range over organs, since equally bad in every organ is not a pass. Nor
does a figure that any labels would give, nor a gain where neither search lies above its null.

Pitfalls
--------
- One organ that is searched well lifts the macro-F1 of all above its null, so that a small range says
  little of the others: read ``macro_f1`` of each organ beside it.
- Across organs, knowing the organ or its stain alone lies above the null. What is known beyond the
  organ shows within it.
- With two organs and few patients the range is mostly noise; its null shows how much. Where every
  answer is right, the interval rests on the number of patients alone.
- With signal the interval may hold the truth in as few as 85 of 100 cohorts.
- One mosaic per slide, sampled once: its own chance is not in the interval
  (:mod:`~pathfm_kedro.pipelines.retrieve.sampling_density` shows it).
- A family that gains here also stores more: compared at equal bytes, see
  :mod:`~pathfm_kedro.pipelines.retrieve.index_bytes`.
- ``reranked`` has seen labels of other patients; the rest have not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from typing import Any, NoReturn

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.retrieve.ranked_lists import (
    findable,
    mean_average_precision,
    same_center,
)
from pathfm_kedro.pipelines.retrieve.search import (
    SCOPES,
    VOTES,
    Retrieval,
    ScopeName,
    SearchSettings,
    allowed_pairs,
)
from pathfm_kedro.statistics.bootstrap import patient_codes, percentile_interval
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.resampled_figure import (
    ResampledFigure,
    deviation_bounds,
    range_interval,
    without_null_spread,
)
from pathfm_kedro.statistics.vote_gain import macro_f1_gain
from pathfm_kedro.statistics.votes import LabelledQueries, PatientVotes, patient_votes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RANGE, DEVIATION, TAU = "f1_range_over_organs", "f1_sd_over_organs", "f1_tau_over_organs"
OVER_ORGANS = ("f1_mean_over_organs", RANGE, DEVIATION, TAU)
OF_ALL = ("macro_f1", "accuracy", "never_found")
GAIN, BASE = "gain_over_mean", "mean"
OF_LIST = ("map_at_5", "same_center")
#: Gains within these bounds count as none: half of the signature's five points.
_MARGIN = 0.025


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
    cohort = _cohort(matches, slides)
    for scope in p.scopes:
        reach = Reach.of(cohort, scope, p)
        base: dict[str, PatientVotes] = {}
        # The mean first: the others are held against it.
        for family in sorted(p.families, key=lambda name: name != BASE):
            setting = {"family": family, "scope": scope}
            own = matches.filter(family=family, scope=scope)
            found = own.drop_nulls("query_slide")
            search = None if found.is_empty() else Search.of(found, cohort, scope, p)
            reason = next(iter(own["reason"].drop_nulls().to_list()), _no_match(scope))
            yield from _of_list(search, reach, setting, reason)
            for vote in p.votes:
                at = {**setting, "vote": vote}
                if search is None:
                    yield from undefined([*OF_ALL, *OVER_ORGANS], at, reason)
                    yield from undefined([GAIN] if _has_base(family, p) else [], at, reason)
                    continue
                k = VOTES[vote]
                whole = search.votes(k) if search.counted.any() else None
                if family == BASE and whole is not None:
                    base[vote] = whole
                yield from _of_vote(search, whole, k, at, p)
                if _has_base(family, p):
                    yield _gain(search, whole, base.get(vote), at)


def _cohort(matches: pl.DataFrame, slides: pl.DataFrame) -> pl.DataFrame:
    """Slides that took part in a search, sorted."""
    searched = pl.concat([matches["query_slide"], matches["match_slide"]]).drop_nulls().unique()
    return slides.filter(pl.col("slide_id").is_in(searched.to_list())).sort("slide_id")


def _has_base(family: str, p: Retrieval) -> bool:
    return BASE in p.families and family != BASE


def _of_list(
    search: Search | None, reach: Reach, setting: Mapping[str, str], reason: str
) -> Iterator[Figure]:
    if search is None:
        yield from undefined(OF_LIST, setting, reason)
        return
    q, matches, weights = search.queries, search.matches, search.weights
    labels = np.vstack([q.label[None], search.permuted])
    precision = partial(
        mean_average_precision, q, matches, search.counted, labels, reach.relevant(labels), weights
    )
    yield Figure("map_at_5", precision, setting)
    if "center" in SCOPES[search.scope].other:
        yield from undefined(["same_center"], setting, "matches of the query's center are excluded")
        return
    shape = len(search.permuted), search.seed
    yield Figure(
        "same_center", partial(same_center, q, search.center, matches, weights, shape), setting
    )


def _gain(
    search: Search, votes: PatientVotes | None, base: PatientVotes | None, at: Mapping[str, str]
) -> Figure:
    if votes is None or base is None:
        return next(undefined([GAIN], at, search.nothing_counts))
    return Figure(GAIN, partial(gain_over, votes, base), at)


def gain_over(votes: PatientVotes, base: PatientVotes) -> Value:
    """Macro-F1 less that of the base; without a verdict where neither knows anything."""
    gain = macro_f1_gain(votes, base, _MARGIN)
    caveat = (
        "neither search finds the label more often than permuted labels do: nothing is gained over "
        "nothing; add patients, or see whether the encoder knows the label at all"
    )
    return Value(gain.estimate, gain.null, caveat="" if gain.informed else caveat)


def _of_vote(
    search: Search,
    whole: PatientVotes | None,
    k: int,
    setting: Mapping[str, str],
    p: Retrieval,
) -> Iterator[Figure]:
    detailed = p.reports_all_of(setting["family"])
    if whole is None:
        yield from undefined(OF_ALL, setting, search.nothing_counts)
    else:
        threshold = _threshold(p, setting)
        yield Figure("macro_f1", partial(judged_macro_f1, whole, threshold), setting)
        yield Figure("accuracy", partial(share, whole.accuracy, whole.n, whole.n_patients), setting)
        never = partial(share, whole.never_found, whole.n, whole.n_patients)
        yield Figure("never_found", never, setting)
        for label in np.flatnonzero(whole.n_by_label) if detailed else []:
            n, n_patients = int(whole.n_by_label[label]), int(whole.n_patients_by_label[label])
            compute = partial(share, whole.f1(int(label)), n, n_patients)
            yield Figure("f1", compute, setting, f"label={search.labels[label]}")
    if detailed:
        yield from search.left_out_labels(setting)
    organs = []
    for code, organ in enumerate(search.organs):
        keep, stratum = search.organ == code, f"organ={organ}"
        if not search.counted[keep].any():
            rest = search.support_of(keep)
            if detailed:
                yield from undefined(
                    ["macro_f1", "accuracy"], setting, search.organ_left_out, stratum, *rest
                )
            continue
        votes = search.votes(k, keep)
        organs.append(votes)
        for metric, figure in (("macro_f1", votes.macro_f1), ("accuracy", votes.accuracy)):
            if detailed:
                yield Figure(
                    metric, partial(share, figure, votes.n, votes.n_patients), setting, stratum
                )
    if whole is None or len(organs) < 2:
        reason = "fewer than two organs can be measured: a spread over organs needs two"
        yield from undefined(OVER_ORGANS, setting, reason)
        return
    spread = OrganSpread(organs, whole.macro_f1)
    yield Figure(OVER_ORGANS[0], spread.mean, setting)
    yield Figure(RANGE, spread.range, setting)
    yield Figure(DEVIATION, spread.deviation, setting)
    yield Figure(TAU, spread.between, setting)


@dataclass(frozen=True)
class Reach:
    """Which slides a query of one scope may find.

    Attributes
    ----------
    allowed
        [n, n].
    n_labels
        Of the cohort.
    """

    allowed: Bools
    n_labels: int

    @classmethod
    def of(cls, cohort: pl.DataFrame, scope: ScopeName, p: SearchSettings) -> Reach:
        """Read it from the slides of the cohort."""
        named = cohort.with_columns(patient=pl.col("patient_id"))
        allowed = allowed_pairs(named, SCOPES[scope], p.exclude)
        return cls(allowed, cohort["label"].n_unique())

    @cached_property
    def _known(self) -> dict[bytes, Ints]:
        return {}

    def relevant(self, labels: Ints) -> Ints:
        """[m, n] slides that each query may find and that have its label; once for all families."""
        key = sha256(labels.tobytes()).digest()
        if key not in self._known:
            self._known[key] = findable(self.allowed, labels, self.n_labels)
        return self._known[key]


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
    center
        [n] codes.
    scope
        Name of the scope.
    seed
        Of what is permuted.
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
    center: Ints
    scope: ScopeName
    seed: int

    @classmethod
    def of(
        cls, matches: pl.DataFrame, cohort: pl.DataFrame, scope: ScopeName, p: SearchSettings
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
            center=np.unique(cohort["center"].to_numpy(), return_inverse=True)[1],
            scope=scope,
            seed=p.seed,
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
            yield from undefined(["f1"], setting, reason, f"label={label}", *self.support_of(own))

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


def search_votes(
    matches: pl.DataFrame, slides: pl.DataFrame, scope: ScopeName, k: int, p: SearchSettings
) -> PatientVotes | None:
    """Votes of the k nearest matches of one family and scope; None where no query is counted.

    Parameters
    ----------
    matches
        query_slide, rank, match_slide.
    slides
        Slides table.
    scope
        Name of the scope.
    k
        Matches that vote.
    p
        The parameters.
    """
    found = matches.drop_nulls("query_slide")
    if found.is_empty():
        return None
    search = Search.of(found, _cohort(matches, slides), scope, p)
    return search.votes(k) if search.counted.any() else None


def why_no_votes(matches: pl.DataFrame) -> str:
    """Why :func:`search_votes` counts no query."""
    otherwise = (
        "no label has enough patients where it is searched: add patients, or search across organs"
    )
    reason: str = next(iter(matches["reason"].drop_nulls().to_list()), otherwise)
    return reason


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

    def mean(self) -> Value:
        """Mean, with the bootstrap of the same resampled cohorts."""
        figures = [organ.macro_f1 for organ in self.organs]
        figure = ResampledFigure(
            float(self._values.mean()),
            np.mean([f.draws for f in figures], axis=0),
            self._permuted.mean(axis=1),
            sum(f.n_patients for f in figures),
        )
        n = sum(organ.n for organ in self.organs)
        return share(figure, n, sum(organ.n_patients for organ in self.organs))

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


def undefined(
    metrics: Sequence[str],
    setting: Mapping[str, Any],
    reason: str,
    stratum: str = "all",
    n: int = 0,
    n_patients: int = 0,
) -> Iterator[Figure]:
    """Figures that the cohort does not support, with the reason."""
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
