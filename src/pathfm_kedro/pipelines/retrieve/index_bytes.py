"""Equal bytes: whether a search gains by several vectors, or by the bytes that they take.

Every family is given the same bytes per slide, and what it stores is made to fit:

- what is stored: the mean (``mean``) or the maximum (``max``), all patches (``median_min`` and its
  symmetric form, ``maxsim``, ``chamfer``), or patches pooled to ``tokens`` vectors (``maxsim_pooled``);
  ``bovw`` and ``bm25`` store one byte a patch, its visual word, ``hybrid`` that and the mean;
  ``barcode`` stores the first bits of its barcodes, so that it stands at ``binary`` alone;
- how a number is stored, and how many are (:mod:`~pathfm_kedro.pipelines.retrieve.stored_codes`).

``macro_f1`` at each size, and ``gain_over_mean``: less the mean's at the same bytes and code, by the
same queries and draws. ``dimensions`` says what was left of a vector.

Pitfalls
--------
- Bytes are of the vectors alone, without names, centres and pointers, and the mean over slides: a slide
  of a larger mosaic takes more.
- What is learned (means, centres, words) is stored once for all slides and not counted.
- Queries are stored in the same way as what they search.
- ``attention``, ``vlad`` and ``reranked`` learn their vectors anew for each fold of patients and are
  not cut: what they store stands in :mod:`~pathfm_kedro.pipelines.retrieve.search_cost`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.retrieve.accuracy import gain_over
from pathfm_kedro.pipelines.retrieve.counted_queries import (
    no_figures,
    search_votes,
    why_no_votes,
)
from pathfm_kedro.pipelines.retrieve.families.hybrid import hybrid
from pathfm_kedro.pipelines.retrieve.families.maxsim import pooled_patches
from pathfm_kedro.pipelines.retrieve.families.registry import FAMILIES, rounded
from pathfm_kedro.pipelines.retrieve.families.settings import Bools, Count, FamilySettings, Floats
from pathfm_kedro.pipelines.retrieve.search import (
    MATCHES_SCHEMA,
    SCOPES,
    VOTES,
    SearchSettings,
    allowed_pairs,
    matches_table,
)
from pathfm_kedro.pipelines.retrieve.stored_codes import Code, compared, fitting, rotated
from pathfm_kedro.pipelines.retrieve.voted_figures import share
from pathfm_kedro.statistics.figures import Figure, Value
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.mosaic import Mosaic, read_mosaic
from pathfm_kedro.statistics.parameters import STRICT
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.statistics.votes import PatientVotes

_COLUMNS: dict[str, pl.DataType] = {
    "code": pl.String(),
    "budget": pl.Int64(),
    "dimensions": pl.Int64(),
    "bytes_per_slide": pl.Float64(),
    **MATCHES_SCHEMA,
}


def _mean(mosaic: Mosaic, p: FamilySettings) -> Mosaic:
    return _one_each(mosaic, mosaic.mean(), p)


def _largest(mosaic: Mosaic, p: FamilySettings) -> Mosaic:
    return _one_each(mosaic, mosaic.maximum(), p)


def _one_each(mosaic: Mosaic, vectors: Floats, p: FamilySettings) -> Mosaic:
    return Mosaic(mosaic.slides, rotated(vectors, p.seed), np.arange(len(vectors)))


def _all_patches(mosaic: Mosaic, p: FamilySettings) -> Mosaic:
    return mosaic.with_vectors(rotated(mosaic.vectors, p.seed))


def _tokens(mosaic: Mosaic, p: FamilySettings) -> Mosaic:
    return _all_patches(pooled_patches(mosaic, p.tokens), p)


Store = Callable[[Mosaic, FamilySettings], Mosaic]
#: What a family stores of a slide, and the family that compares it.
STORED: dict[str, tuple[Store, str]] = {
    "mean": (_mean, "mean"),
    # The maximum is taken before: of one vector it is the vector.
    "max": (_largest, "mean"),
    "median_min": (_all_patches, "median_min"),
    "median_min_symmetric": (_all_patches, "median_min_symmetric"),
    "maxsim": (_all_patches, "maxsim"),
    "maxsim_pooled": (_tokens, "maxsim"),
    "chamfer": (_all_patches, "chamfer"),
}
#: The sparse search, one that stores its words and the mean, and one that stores bits.
_SPARSE, _FUSED, _BITS = "bm25", "hybrid", "barcode"
#: Families that store a word for each patch.
_WORDS = ("bovw", _SPARSE)
#: Family, code, bytes allowed, dimensions and bytes taken, and distances by what a query may find.
_Search = tuple[str, Code, int, tuple[int, float], Callable[[Bools], Floats]]


def _stored_families(names: tuple[str, ...]) -> tuple[str, ...]:
    known = [*STORED, *_WORDS, _FUSED, _BITS]
    for name in names:
        if name not in known:
            raise ValueError(f"'{name}' cannot be cut to a size: name some of {known}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class IndexBytes(SearchSettings):
    """Parameters of the experiment; see ``parameters_retrieve.yml`` for the reasons.

    Attributes
    ----------
    families
        Names in :data:`STORED`, ``bovw``, ``bm25``, ``hybrid`` and ``barcode``; ``mean``, for the
        others to be held against.
    words
        Visual words, of which a byte can name 256.
    budgets
        Bytes per slide.
    codes
        How numbers are stored.
    """

    families: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_stored_families)]
    words: Annotated[int, Field(ge=1, le=256)] = 64
    budgets: Annotated[tuple[Count, ...], Field(min_length=1)]
    codes: Annotated[tuple[Code, ...], Field(min_length=1)]


def matches_by_bytes(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: IndexBytes
) -> pl.DataFrame:
    """Matches at every size: code, budget, dimensions, bytes per slide, and those of a search.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.
    """
    mosaic = read_mosaic(slides, tiles, embeddings)
    return pl.concat([pl.DataFrame(schema=_COLUMNS), *_matches(mosaic, p)])


def _matches(mosaic: Mosaic, p: IndexBytes) -> Iterator[pl.DataFrame]:
    if not len(mosaic.starts):
        return
    allowed = {scope: allowed_pairs(mosaic.slides, SCOPES[scope], p.exclude) for scope in p.scopes}
    for family, code, budget, size, distances in _searched(mosaic, p):
        for scope in p.scopes:
            found = distances(allowed[scope])
            table = matches_table(family, scope, mosaic.slides, found, allowed[scope], p.k)
            beside = zip(_COLUMNS, (code, budget, *size), strict=False)
            columns = [pl.lit(v).cast(_COLUMNS[name]).alias(name) for name, v in beside]
            yield table.with_columns(columns).select(list(_COLUMNS))


def _searched(mosaic: Mosaic, p: IndexBytes) -> Iterator[_Search]:
    """Every search that fits into its bytes."""
    yield from _by_vectors(mosaic, p)
    yield from _by_words(mosaic, p)
    if _BITS in p.families and "binary" in p.codes:
        for budget in p.budgets:
            size = fitting(mosaic, "binary", budget)
            if size is not None:
                # One number more than bits; they come in the encoder's own order, as published.
                kept = mosaic.with_vectors(mosaic.vectors[:, : size[0] + 1])
                yield _BITS, "binary", budget, size, _alike(_distances(_BITS, kept, p))


def _by_vectors(mosaic: Mosaic, p: IndexBytes) -> Iterator[_Search]:
    """Families that compare vectors; those that store the same vectors share their codes."""
    by_store: dict[Store, list[str]] = {}
    for family in p.families:
        if family in STORED:
            by_store.setdefault(STORED[family][0], []).append(family)
    for store, families in by_store.items():
        stored, compare = store(mosaic, p), [STORED[family][1] for family in families]
        for code, budget in product(p.codes, p.budgets):
            size = fitting(stored, code, budget)
            if size is not None:
                found = compared(stored, compare, code, size[0], p)
                for family, name in zip(families, compare, strict=True):
                    yield family, code, budget, size, _alike(found[name])


def _by_words(mosaic: Mosaic, p: IndexBytes) -> Iterator[_Search]:
    """Families that store words, alone or beside the mean."""
    families = [family for family in p.families if family in (*_WORDS, _FUSED)]
    if not families:
        return
    a_slide = len(mosaic.vectors) / len(mosaic.starts)
    searches = {_SPARSE if family == _FUSED else family for family in families}
    words = {name: _distances(name, mosaic, p) for name in searches}
    means = _mean(mosaic, p)
    for family, code, budget in product(families, p.codes, p.budgets):
        if family != _FUSED:
            if a_slide <= budget:
                yield family, code, budget, (0, a_slide), _alike(words[family])
            continue
        size = fitting(means, code, budget, a_slide)
        if size is not None:
            dense = compared(means, ["mean"], code, size[0], p)["mean"]
            yield family, code, budget, size, partial(_fused, dense, words[_SPARSE], mosaic)


def _distances(family: str, mosaic: Mosaic, p: IndexBytes) -> Floats:
    return rounded(FAMILIES[family](mosaic, mosaic, p))


def _alike(distances: Floats) -> Callable[[Bools], Floats]:
    """The same distances whatever a query may find."""
    return lambda allowed: distances


def _fused(dense: Floats, words: Floats, mosaic: Mosaic, allowed: Bools) -> Floats:
    """Ranks by vectors and by words, fused."""
    lists = {"dense": dense, "words": words}
    settings = FamilySettings(fused=("dense", "words"))
    return rounded(hybrid(lists.__getitem__, allowed, mosaic, mosaic, settings))


def bytes_figures(matches: pl.DataFrame, slides: pl.DataFrame, p: IndexBytes) -> Iterator[Figure]:
    """Figures of the experiment, in reading order."""
    for scope in p.scopes:
        for vote in p.votes:
            for code in p.codes:
                for budget in p.budgets:
                    at = {"scope": scope, "vote": vote, "code": code, "budget": budget}
                    own = matches.filter(scope=scope, code=code, budget=budget)
                    yield from _at_size(own, slides, at, p)


def _at_size(
    matches: pl.DataFrame, slides: pl.DataFrame, at: Mapping[str, Any], p: IndexBytes
) -> Iterator[Figure]:
    base: PatientVotes | None = None
    base_bytes = 0.0
    families = [name for name in p.families if name != _BITS or at["code"] == "binary"]
    for family in sorted(families, key=lambda name: name != "mean"):
        setting = {**at, "family": family}
        own = matches.filter(family=family)
        metrics = ["macro_f1", *(["gain_over_mean"] if family != "mean" else [])]
        if own.is_empty():
            reason = f"nothing of a slide fits into {at['budget']} bytes: raise index_bytes.budgets"
            yield from no_figures(metrics, setting, reason)
            continue
        votes = search_votes(own, slides, at["scope"], VOTES[at["vote"]], p)
        if votes is None:
            yield from no_figures(metrics, setting, why_no_votes(own))
            continue
        yield Figure("macro_f1", partial(share, votes.macro_f1, votes.n, votes.n_patients), setting)
        for name in ("dimensions", "bytes_per_slide"):
            known = Estimate(float(own[name][0]), None, None, votes.n, votes.n_patients)
            yield Figure(name, partial(Value, known), setting)
        if family == "mean":
            base, base_bytes = votes, float(own["bytes_per_slide"][0])
        elif base is not None:
            whole = base_bytes < at["budget"] / 2
            remark = (
                f"the mean is whole at {base_bytes:g} bytes and cannot use more" if whole else ""
            )
            yield Figure("gain_over_mean", partial(_gain, votes, base, remark), setting)


def _gain(votes: PatientVotes, base: PatientVotes, remark: str) -> Value:
    return replace(gain_over(votes, base), remark=remark)
