r"""Combinations of tissue: whether one vector finds a document that shows two tissues.

The question of LIMIT (Weller et al. 2025, arXiv 2508.21038), asked of the cohort's own tiles. A
document is a bag of tiles that shows some attributes, here labels: ``tiles_per_attribute`` tiles of
each. A query is a bag that shows two; relevant are the documents that show both, whatever else they
show. Patterns say which documents there are:

- ``dense``: every pair of attributes, ``copies`` documents of each;
- ``cycle``: each attribute with the next, as many copies;
- ``random``: as many documents as the dense pattern has, each of ``attributes`` attributes at random.

Patients are split: those of one half give the tiles of documents, those of the other the queries, and
visual words are learned on the queries' half. Figures per pattern and search:

- ``recall``: share of the relevant documents among the first R, R as many as are relevant, mean over
  queries; the null is what a random order gives, R/N;
- ``recall_gain``: the same less that of ``mean``, on the same documents.

Searches: ``mean`` (one vector), ``maxsim`` (a vector per tile), ``maxsim_equal_bytes`` (a vector per
tile, turned at random and cut to so few numbers that a document takes the bytes of one vector),
``bm25`` on visual words (fewer bytes: one a tile), ``hybrid`` of bm25 and a mean that is cut by the
bytes of the words. So all but ``maxsim`` take the bytes of one vector or fewer.

Value: mean over splits. Interval: patients are resampled, within label and half, in every draw, and
documents and queries are put together anew, so that it holds the chance of the tiles too.

Pitfalls
--------
- Labels are coarse attributes. With few of them there are few pairs, and a vector that is the mean of
  two tissues lies between them, which is easy where each tissue is compact.
- Documents are put together, no slide looks like that. What is found says what a vector can hold,
  not what slides ask of it.
- A label needs patients in both halves: two each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Annotated, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.retrieve.families.hybrid import hybrid
from pathfm_kedro.pipelines.retrieve.families.maxsim import maxsim
from pathfm_kedro.pipelines.retrieve.families.mean import mean
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings
from pathfm_kedro.pipelines.retrieve.families.visual_words import (
    bm25_scores,
    learned_words,
    word_counts,
)
from pathfm_kedro.pipelines.retrieve.stored_codes import rotated
from pathfm_kedro.statistics.bootstrap import percentile_interval
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.sampling import capped_tiles
from pathfm_kedro.statistics.tables import Embeddings, chosen_vectors, tile_rows, to_schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pattern = Literal["dense", "cycle", "random"]
Count = Annotated[int, Field(ge=1)]

#: Patients that an attribute needs, two on either side, and attributes whose pairs can be told apart.
MIN_PATIENTS, FEWEST_ATTRIBUTES = 4, 3
TOO_FEW_ATTRIBUTES = (
    f"fewer than three labels have {MIN_PATIENTS} patients, so that there are no pairs to tell apart: "
    "add patients or labels"
)
#: The search that others are held against.
_BASE = "mean"
#: As :func:`_distances` names them.
SEARCHES = (_BASE, "maxsim", "maxsim_equal_bytes", "bm25", "hybrid")

#: One row per pattern, search and draw; draw −1 … −splits are splits of the patients as they are.
LIMIT_SCHEMA: dict[str, pl.DataType] = {
    "pattern": pl.String(),
    "search": pl.String(),
    "draw": pl.Int64(),
    "recall": pl.Float64(),
    "chance": pl.Float64(),
    "n_documents": pl.Int64(),
    "n_patients": pl.Int64(),
    "n_attributes": pl.Int64(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TissueLimit(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    patterns
        Of documents.
    attributes
        That a document of the random pattern shows.
    copies
        Documents of each pair.
    tiles_per_attribute
        In a document and in a query.
    tiles_per_slide
        From which they are taken.
    words
        Visual words.
    splits
        Of the patients, for the value.
    resamples
        Of the patients, for the interval.
    """

    patterns: tuple[Pattern, ...]
    attributes: Annotated[int, Field(ge=2)]
    copies: Count
    tiles_per_attribute: Count
    tiles_per_slide: Count
    words: Annotated[int, Field(ge=2)]
    splits: Count
    resamples: Annotated[int, Field(ge=20)]


@plain(frozen=True)
class TissueBank:
    """Tiles by attribute and patient.

    Attributes
    ----------
    vectors
        [n, d] float32, turned at random: no distance changes, and the first numbers stand for all.
    rows
        Of each attribute, the rows of each of its patients.
    """

    vectors: NDArray[np.float32]
    rows: tuple[tuple[Ints, ...], ...]

    @property
    def n_patients(self) -> int:
        """Patients with an attribute; one with two counts for each."""
        return sum(map(len, self.rows))


def tissue_bank(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: TissueLimit
) -> TissueBank:
    """Tiles by label and patient, without labels of few patients."""
    all_tiles = tile_rows(slides, tiles, embeddings.slide_ids)
    chosen = capped_tiles(all_tiles, p.tiles_per_slide, p.seed)
    vectors = rotated(chosen_vectors(all_tiles, chosen, embeddings), p.seed)
    kept = all_tiles[chosen].select("label", "patient_id").with_row_index("row")
    found = []
    for _, own in sorted(kept.group_by("label"), key=lambda group: str(group[0])):
        by_patient = sorted(own.group_by("patient_id"), key=lambda group: str(group[0]))
        if len(by_patient) >= MIN_PATIENTS:
            found.append(tuple(part["row"].to_numpy().astype(np.int64) for _, part in by_patient))
    return TissueBank(vectors, tuple(found))


def tissue_limit_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: TissueLimit
) -> pl.DataFrame:
    """Accumulate: recall of every search in every split and draw.

    Returns
    -------
    DataFrame
        Columns :data:`LIMIT_SCHEMA`; none where fewer than three labels have four patients.
    """
    bank = tissue_bank(slides, tiles, embeddings, p)
    m = len(bank.rows)
    rows = []
    for pattern in p.patterns if m >= FEWEST_ATTRIBUTES else ():
        draws = [(-1 - i, False) for i in range(p.splits)]
        draws += [(i, True) for i in range(p.resamples)]
        for draw, resampled in draws:
            generator = np.random.default_rng([p.seed, draw + p.splits])
            documents = documents_of(pattern, m, p, generator)
            recalls, chance = recall_of_draw(bank, documents, resampled, p, generator)
            rows += [
                {
                    "pattern": pattern,
                    "search": search,
                    "draw": draw,
                    "recall": recall,
                    "chance": chance,
                    "n_documents": len(documents),
                    "n_patients": bank.n_patients,
                    "n_attributes": m,
                }
                for search, recall in recalls.items()
            ]
    return to_schema(rows, LIMIT_SCHEMA)


def documents_of(
    pattern: Pattern, m: int, p: TissueLimit, generator: np.random.Generator
) -> list[tuple[int, ...]]:
    """Attributes of each document.

    Parameters
    ----------
    pattern
        Which documents there are.
    m
        Attributes.
    p
        ``copies`` and ``attributes``.
    generator
        Of the random pattern.
    """
    pairs: list[tuple[int, ...]] = list(combinations(range(m), 2))
    if pattern == "dense":
        return pairs * p.copies
    if pattern == "cycle":
        neighbours: set[tuple[int, ...]] = {
            (min(i, (i + 1) % m), max(i, (i + 1) % m)) for i in range(m)
        }
        return sorted(neighbours) * p.copies
    size = min(p.attributes, m - 1)
    return [
        tuple(sorted(generator.choice(m, size, replace=False).tolist()))
        for _ in range(len(pairs) * p.copies)
    ]


def recall_of_draw(
    bank: TissueBank,
    documents: Sequence[tuple[int, ...]],
    resampled: bool,
    p: TissueLimit,
    generator: np.random.Generator,
) -> tuple[dict[str, float], float]:
    """Recall of every search on one split of the patients, and that of a random order."""
    halves = [_halves(patients, resampled, generator) for patients in bank.rows]
    queries = [
        pair
        for pair in combinations(range(len(bank.rows)), 2)
        if any(set(pair) <= set(document) for document in documents)
    ]
    archive = _bags(bank, documents, [half[0] for half in halves], p, generator)
    asked = _bags(bank, queries, [half[1] for half in halves], p, generator)
    relevant = np.array([[set(q) <= set(d) for d in documents] for q in queries])
    others = bank.vectors[np.concatenate([rows for _, side in halves for rows in side])]
    found = _distances(asked, archive, others, p)
    recalls = {name: recall_at_r(found[name], relevant) for name in SEARCHES}
    return recalls, float(relevant.mean(axis=1).mean())


def recall_at_r(distances: Floats, relevant: NDArray[np.bool_]) -> float:
    """Mean over queries of the share of relevant documents among the nearest R; ties count in parts.

    Parameters
    ----------
    distances, relevant
        [queries, documents]; every query has a relevant document.

    Examples
    --------
    >>> recall_at_r(np.array([[0.1, 0.2, 0.3]]), np.array([[True, False, True]]))
    0.5
    """
    rounded = np.round(distances, 12)
    found = []
    for row, wanted in zip(rounded, relevant, strict=True):
        r = int(wanted.sum())
        last = np.sort(row)[r - 1]
        sure, tied = row < last, row == last
        share = (r - int(sure.sum())) / int(tied.sum())
        found.append((int((sure & wanted).sum()) + share * int((tied & wanted).sum())) / r)
    return float(np.mean(found))


def _halves(
    patients: Sequence[Ints], resampled: bool, generator: np.random.Generator
) -> tuple[list[Ints], list[Ints]]:
    """Patients of an attribute for documents and for queries; in a draw each half is resampled."""
    order = generator.permutation(len(patients))
    sides = np.array_split(order, 2)
    if resampled:
        sides = [generator.choice(side, len(side)) for side in sides]
    left, right = ([patients[i] for i in side] for side in sides)
    return left, right


def _bags(
    bank: TissueBank,
    bags: Sequence[tuple[int, ...]],
    patients: Sequence[Sequence[Ints]],
    p: TissueLimit,
    generator: np.random.Generator,
) -> Mosaic:
    """Bags of tiles, each tile of a patient at random."""
    rows, sizes = [], []
    for attributes in bags:
        sizes.append(len(attributes) * p.tiles_per_attribute)
        for attribute in attributes:
            own = patients[attribute]
            for patient in generator.integers(len(own), size=p.tiles_per_attribute):
                rows.append(int(generator.choice(own[patient])))
    names = pl.DataFrame({"slide_id": [f"{i}" for i in range(len(bags))]})
    return Mosaic(names, bank.vectors[rows], np.cumsum(sizes) - np.array(sizes))


def _distances(
    asked: Mosaic, archive: Mosaic, others: NDArray[np.float32], p: TissueLimit
) -> dict[str, Floats]:
    """Distances [queries, documents] of every search; `others` are vectors of the queries' patients."""
    settings, (d, largest) = FamilySettings(), (others.shape[1], int(archive.sizes.max()))
    # Numbers of four bytes: so many of each tile, or all but those whose bytes the words take.
    of_tiles = _cut(asked, d // largest), _cut(archive, d // largest)
    rest = d - -(-largest // 4)
    of_mean = _cut(asked, rest), _cut(archive, rest)
    fused = {"mean": mean(*of_mean, settings), "bm25": _bm25(asked, archive, others, p)}
    every = np.ones(fused["mean"].shape, bool)
    return {
        "mean": mean(asked, archive, settings),
        "maxsim": maxsim(asked, archive, settings),
        "maxsim_equal_bytes": maxsim(*of_tiles, settings),
        "bm25": fused["bm25"],
        "hybrid": hybrid(fused.__getitem__, every, asked, archive, settings),
    }


def _cut(mosaic: Mosaic, numbers: int) -> Mosaic:
    return mosaic.with_vectors(mosaic.vectors[:, : max(1, numbers)])


def _bm25(asked: Mosaic, archive: Mosaic, others: NDArray[np.float32], p: TissueLimit) -> Floats:
    words = learned_words(others.astype(np.float64), p.words, p.seed)
    counts = word_counts(archive, words)
    scores = bm25_scores(word_counts(asked, words), counts, counts)
    most: Floats = scores.max() - scores
    return most


def tissue_limit_figures(statistics: pl.DataFrame, p: TissueLimit) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`tissue_limit_statistics`.
    p
        The parameters.
    """
    for pattern in p.patterns:
        own = statistics.filter(pattern=pattern)
        for search in SEARCHES:
            at = {"pattern": pattern, "search": search}
            yield Figure("recall", partial(_recall, own, search), at)
        for search in SEARCHES:
            if search != _BASE:
                at = {"pattern": pattern, "search": search}
                yield Figure("recall_gain", partial(_gain, own, search), at)


def _recall(own: pl.DataFrame, search: str) -> Value:
    value, resampled = _parts(own, search)
    chance = float(own["chance"].mean())  # type: ignore[arg-type]
    found = _estimate(own, value, resampled)
    low, high = (min(1.0, max(0.0, end)) for end in (found.ci_low or 0.0, found.ci_high or 0.0))
    return Value(replace(found, ci_low=low, ci_high=high), Null(chance, chance))


def _gain(own: pl.DataFrame, search: str) -> Value:
    (value, resampled), (base, base_resampled) = (_parts(own, name) for name in (search, _BASE))
    return Value(_estimate(own, value - base, resampled - base_resampled), Null(0.0, 0.0))


def _parts(own: pl.DataFrame, search: str) -> tuple[float, Floats]:
    """Mean over splits, and the draws in their order."""
    rows = own.filter(search=search).sort("draw")
    if rows.is_empty():
        raise Undefined(TOO_FEW_ATTRIBUTES)
    splits, resampled = rows.filter(pl.col("draw") < 0), rows.filter(pl.col("draw") >= 0)
    return float(splits["recall"].mean()), resampled["recall"].to_numpy()  # type: ignore[arg-type]


def _estimate(own: pl.DataFrame, value: float, resampled: Floats) -> Estimate:
    """The interval of the draws, moved so that its middle is the value.

    Resampled patients come twice, which makes documents poorer: the draws lie a little off.
    """
    low, high = percentile_interval(resampled - np.median(resampled) + value)
    return Estimate(value, low, high, int(own["n_documents"][0]), int(own["n_patients"][0]))
