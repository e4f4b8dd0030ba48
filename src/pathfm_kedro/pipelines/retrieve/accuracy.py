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
does a figure that any labels would give, nor a gain where neither search lies above its null. A gain is
not applicable where both searches find the same slides in the same order for every query.

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

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import polars as pl

from pathfm_kedro.pipelines.retrieve.counted_queries import (
    Reach,
    Search,
    no_figures,
    searched_slides,
)
from pathfm_kedro.pipelines.retrieve.ranked_lists import mean_average_precision, same_center
from pathfm_kedro.pipelines.retrieve.search import SCOPES, VOTES, Retrieval, ScopeName
from pathfm_kedro.pipelines.retrieve.voted_figures import OrganSpread, judged_macro_f1, share
from pathfm_kedro.statistics.figures import Figure, Undefined, Value, undefined
from pathfm_kedro.statistics.vote_gain import macro_f1_gain
from pathfm_kedro.statistics.votes import PatientVotes

RANGE, DEVIATION, TAU = "f1_range_over_organs", "f1_sd_over_organs", "f1_tau_over_organs"
OVER_ORGANS = ("f1_mean_over_organs", RANGE, DEVIATION, TAU)
OF_ALL = ("macro_f1", "accuracy", "never_found")
GAIN, BASE = "gain_over_mean", "mean"
OF_LIST = ("map_at_5", "same_center")
#: Gains within these bounds count as none: half of the signature's five points.
_MARGIN = 0.025
_THE_SAME_SEARCH = (
    "finds the same slides in the same order as one mean vector for every query, as where the mosaic "
    "of each slide is a single tile or vector: there is nothing to gain"
)


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
    cohort = searched_slides(matches, slides)
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
                    yield from no_figures([*OF_ALL, *OVER_ORGANS], at, reason)
                    yield from no_figures([GAIN] if _has_base(family, p) else [], at, reason)
                    continue
                k = VOTES[vote]
                whole = search.votes(k) if search.counted.any() else None
                if family == BASE and whole is not None:
                    base[vote] = whole
                yield from _of_vote(search, whole, k, at, p)
                if _has_base(family, p):
                    yield _gain(search, whole, base.get(vote), at)


def _has_base(family: str, p: Retrieval) -> bool:
    return BASE in p.families and family != BASE


def _of_list(
    search: Search | None, reach: Reach, setting: Mapping[str, str], reason: str
) -> Iterator[Figure]:
    if search is None:
        yield from no_figures(OF_LIST, setting, reason)
        return
    q, matches, weights = search.queries, search.matches, search.weights
    labels = np.vstack([q.label[None], search.permuted])
    precision = partial(
        mean_average_precision, q, matches, search.counted, labels, reach.relevant(labels), weights
    )
    yield Figure("map_at_5", precision, setting)
    if "center" in SCOPES[search.scope].other:
        yield from no_figures(
            ["same_center"], setting, "matches of the query's center are excluded"
        )
        return
    shape = len(search.permuted), search.seed
    yield Figure(
        "same_center", partial(same_center, q, search.center, matches, weights, shape), setting
    )


def _gain(
    search: Search, votes: PatientVotes | None, base: PatientVotes | None, at: Mapping[str, str]
) -> Figure:
    if votes is None or base is None:
        return next(no_figures([GAIN], at, search.nothing_counts))
    return Figure(GAIN, partial(_gain_over_mean, votes, base), at)


def _gain_over_mean(votes: PatientVotes, mean: PatientVotes) -> Value:
    if np.array_equal(votes.matches, mean.matches):
        raise Undefined(_THE_SAME_SEARCH)
    return gain_over(votes, mean)


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
        yield from no_figures(OF_ALL, setting, search.nothing_counts)
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
                yield from no_figures(
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
        yield from no_figures(OVER_ORGANS, setting, reason)
        return
    spread = OrganSpread(organs, whole.macro_f1)
    yield Figure(OVER_ORGANS[0], spread.mean, setting)
    yield Figure(RANGE, spread.range, setting)
    yield Figure(DEVIATION, spread.deviation, setting)
    yield Figure(TAU, spread.between, setting)


def _threshold(p: Retrieval, setting: Mapping[str, str]) -> float | None:
    """What macro-F1 of all queries must exceed at this setting."""
    asked = Figure("macro_f1", undefined(""), setting)
    return next((c.threshold for c in p.criteria if c.asks(asked) and c.direction == "above"), None)


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
