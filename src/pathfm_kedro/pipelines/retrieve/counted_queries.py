"""The queries of a search that count: whose label can be found, what they found, how they vote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.retrieve.ranked_lists import findable
from pathfm_kedro.pipelines.retrieve.search import (
    SCOPES,
    ScopeName,
    SearchSettings,
    allowed_pairs,
)
from pathfm_kedro.statistics.bootstrap import patient_codes
from pathfm_kedro.statistics.figures import Figure, undefined
from pathfm_kedro.statistics.votes import LabelledQueries, PatientVotes, patient_votes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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

    def strata_votes(self, k: int) -> dict[str, PatientVotes]:
        """Votes of all counted queries and of those of each organ, by stratum."""
        votes = {"all": self.votes(k)}
        for code, organ in enumerate(self.organs):
            keep = self.organ == code
            if self.counted[keep].any():
                votes[f"organ={organ}"] = self.votes(k, keep)
        return votes

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
            yield from no_figures(["f1"], setting, reason, f"label={label}", *self.support_of(own))

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


def search_of(
    matches: pl.DataFrame, slides: pl.DataFrame, scope: ScopeName, p: SearchSettings
) -> Search | None:
    """The search of one family and scope; None where no query is counted.

    Parameters
    ----------
    matches
        query_slide, rank, match_slide.
    slides
        Slides table.
    scope
        Name of the scope.
    p
        The parameters.
    """
    found = matches.drop_nulls("query_slide")
    if found.is_empty():
        return None
    search = Search.of(found, searched_slides(matches, slides), scope, p)
    return search if search.counted.any() else None


def search_votes(
    matches: pl.DataFrame, slides: pl.DataFrame, scope: ScopeName, k: int, p: SearchSettings
) -> PatientVotes | None:
    """Votes of the k nearest matches of a search; None where no query is counted."""
    search = search_of(matches, slides, scope, p)
    return None if search is None else search.votes(k)


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


def searched_slides(matches: pl.DataFrame, slides: pl.DataFrame) -> pl.DataFrame:
    """Slides that took part in a search, sorted."""
    searched = pl.concat([matches["query_slide"], matches["match_slide"]]).drop_nulls().unique()
    return slides.filter(pl.col("slide_id").is_in(searched.to_list())).sort("slide_id")


def no_figures(
    metrics: Sequence[str],
    setting: Mapping[str, Any],
    reason: str,
    stratum: str = "all",
    n: int = 0,
    n_patients: int = 0,
) -> Iterator[Figure]:
    """Figures that the cohort does not support, with the reason."""
    for metric in metrics:
        yield Figure(metric, undefined(reason), setting, stratum, n, n_patients)
