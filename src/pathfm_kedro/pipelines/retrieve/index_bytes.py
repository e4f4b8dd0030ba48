"""Equal bytes: whether a search gains by several vectors, or by the bytes that they take.

Every family is given the same bytes per slide, and what it stores is made to fit:

- what is stored: the mean (``mean``), all patches (``median_min``, ``maxsim``), or patches pooled to
  ``tokens`` vectors (``maxsim_pooled``); ``bm25`` stores one byte a patch, its visual word, and
  ``hybrid`` that and the mean;
- how a number is stored: ``float32``, ``float16``, ``binary`` (the sign of what a number differs from
  the mean of other patients) or ``codes`` (k-means codes: every eight numbers are one of 256 centres,
  learned on other patients: product quantisation);
- how many numbers: vectors are turned by a random rotation, the same for all, and cut to the first d′
  that fit. An encoder's own numbers come in no order, so that any d′ of them would do as well; turned,
  they stand for the whole vector (Johnson & Lindenstrauss).

``macro_f1`` at each size, and ``gain_over_mean``: less the mean's at the same bytes and code, by the
same queries and draws. ``dimensions`` says what was left of a vector.

Pitfalls
--------
- Bytes are of the vectors alone, without names, centres and pointers, and the mean over slides: a slide
  of a larger mosaic takes more.
- What is learned (means, centres, words) is stored once for all slides and not counted.
- Queries are stored in the same way as what they search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from typing import Annotated, Any, Literal, cast

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
from pathfm_kedro.pipelines.retrieve.families.folds import other_patients
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
from pathfm_kedro.pipelines.retrieve.voted_figures import share
from pathfm_kedro.statistics.figures import Figure, Value
from pathfm_kedro.statistics.measurements import Estimate
from pathfm_kedro.statistics.mosaic import Mosaic, read_mosaic
from pathfm_kedro.statistics.mutual_knn import unit
from pathfm_kedro.statistics.parameters import STRICT
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.statistics.votes import PatientVotes

Code = Literal["float32", "float16", "binary", "codes"]

#: Numbers that one byte of a k-means code stands for, and its centres.
NUMBERS_A_CODE, CENTRES = 8, 256
_COLUMNS: dict[str, pl.DataType] = {
    "code": pl.String(),
    "budget": pl.Int64(),
    "dimensions": pl.Int64(),
    "bytes_per_slide": pl.Float64(),
    **MATCHES_SCHEMA,
}


def _one_vector(mosaic: Mosaic, p: FamilySettings) -> Mosaic:
    means = mosaic.mean().astype(np.float32)
    return Mosaic(mosaic.slides, means, np.arange(len(means)))


def _all_patches(mosaic: Mosaic, p: FamilySettings) -> Mosaic:
    return mosaic


def _tokens(mosaic: Mosaic, p: FamilySettings) -> Mosaic:
    return pooled_patches(mosaic, p.tokens)


#: What a family stores of a slide, and the family that compares it.
STORED: dict[str, tuple[Callable[[Mosaic, FamilySettings], Mosaic], str]] = {
    "mean": (_one_vector, "mean"),
    "median_min": (_all_patches, "median_min"),
    "maxsim": (_all_patches, "maxsim"),
    "maxsim_pooled": (_tokens, "maxsim"),
}
#: Families that store a word for each patch; hybrid also stores the mean.
_WORDS, _FUSED = "bm25", "hybrid"


def _stored_families(names: tuple[str, ...]) -> tuple[str, ...]:
    known = [*STORED, _WORDS, _FUSED]
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
        Names in :data:`STORED`, ``bm25`` and ``hybrid``; ``mean``, for the others to be held against.
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
    turned = rotated(mosaic, p.seed)
    allowed = {scope: allowed_pairs(mosaic.slides, SCOPES[scope], p.exclude) for scope in p.scopes}
    words = None
    if {_WORDS, _FUSED} & {*p.families}:
        words = rounded(FAMILIES[_WORDS](mosaic, mosaic, p))
    for family in p.families:
        store, compare = STORED.get(family, STORED["mean"])
        stored = store(turned, p)
        for code, budget in product(p.codes, p.budgets):
            size = fitting(family, stored, mosaic, code, budget)
            if size is None:
                continue
            dense = compared(stored, compare, code, size[0], p) if size[0] else None
            for scope in p.scopes:
                own = words if family in (_WORDS, _FUSED) else None
                found = _fused(dense, own, allowed[scope], mosaic)
                table = matches_table(family, scope, mosaic.slides, found, allowed[scope], p.k)
                beside = zip(_COLUMNS, (code, budget, *size), strict=False)
                columns = [pl.lit(v).cast(_COLUMNS[name]).alias(name) for name, v in beside]
                yield table.with_columns(columns).select(list(_COLUMNS))


def fitting(
    family: str, stored: Mosaic, mosaic: Mosaic, code: Code, budget: int
) -> tuple[int, float] | None:
    """Numbers of each vector that fit into the bytes of a slide, and the bytes they take.

    Parameters
    ----------
    family
        Its name.
    stored
        Vectors that the family stores.
    mosaic
        All patches: visual words take a byte of each.
    code
        How a number is stored.
    budget
        Bytes per slide.

    Returns
    -------
    tuple
        Dimensions (0 for words alone) and mean bytes per slide; None where nothing fits.

    Examples
    --------
    >>> one = Mosaic(pl.DataFrame({"slide_id": ["s"]}), np.zeros((2, 100), np.float32), np.array([0]))
    >>> fitting("maxsim", one, one, "float16", 64), fitting("maxsim", one, one, "float32", 4)
    ((16, 64.0), None)
    """
    of_words = len(mosaic.vectors) / len(mosaic.starts) if family in (_WORDS, _FUSED) else 0.0
    if family == _WORDS:
        return (0, of_words) if of_words <= budget else None
    vectors = len(stored.vectors) / len(stored.starts)
    bytes_a_vector = (budget - of_words) / vectors
    numbers_a_byte = {"float32": 1 / 4, "float16": 1 / 2, "binary": 8, "codes": NUMBERS_A_CODE}[
        code
    ]
    # Bits and codes come in whole bytes.
    whole = np.floor(bytes_a_vector) if numbers_a_byte > 1 else bytes_a_vector
    dimensions = min(int(whole * numbers_a_byte), stored.vectors.shape[1])
    if dimensions < 1:
        return None
    taken = np.ceil(dimensions / numbers_a_byte) * vectors + of_words
    return dimensions, float(taken)


def rotated(mosaic: Mosaic, seed: int) -> Mosaic:
    """Patches turned by a random rotation, which leaves all distances between them."""
    turned = mosaic.vectors.astype(np.float64) @ _rotation(mosaic.vectors.shape[1], seed)
    return mosaic.with_vectors(turned.astype(np.float32))


@lru_cache(maxsize=1)
def _rotation(dimension: int, seed: int) -> Floats:
    """[d, d]; kept, since encoders of one dimension follow one another and it takes d³ operations."""
    normal = np.random.default_rng(seed).normal(size=(dimension, dimension))
    rotation, triangle = np.linalg.qr(normal)
    signed: Floats = rotation * np.sign(np.diag(triangle))
    signed.setflags(write=False)
    return signed


def compared(stored: Mosaic, compare: str, code: Code, dimensions: int, p: IndexBytes) -> Floats:
    """Distances between slides whose stored vectors were cut and coded: [n, n].

    What the code learns, it learns on patients outside the query's fold.
    """
    cut = stored.with_vectors(stored.vectors[:, :dimensions])
    if code in ("float32", "float16"):
        kept = cut.with_vectors(cut.vectors.astype(code).astype(np.float32))
        return rounded(FAMILIES[compare](kept, kept, p))
    scaled = cut.with_vectors(unit(cut.vectors).astype(np.float32))
    result = np.zeros((len(cut.starts),) * 2)
    for rows, outside in other_patients(scaled, scaled, p.folds, p.seed):
        seen = scaled.select(np.flatnonzero(outside)).vectors
        coded = scaled.with_vectors(_CODERS[code](scaled.vectors, seen, p.seed))
        result[rows] = FAMILIES[compare](coded.select(rows), coded, p)
    return rounded(result)


def binary(vectors: np.ndarray, seen: np.ndarray, seed: int) -> np.ndarray:
    """Signs of what vectors differ from the mean of those that were seen, as 1 and −1.

    The cosine distance of such vectors is twice the share of signs that differ.
    """
    return np.where(vectors >= seen.mean(axis=0), np.float32(1), np.float32(-1))


def product_codes(vectors: np.ndarray, seen: np.ndarray, seed: int) -> np.ndarray:
    """Each group of eight numbers replaced by the nearest of 256 centres of those that were seen.

    References
    ----------
    Jégou, Douze & Schmid, Product quantization for nearest neighbor search, TPAMI 2011.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    coded = np.empty_like(vectors)
    with threadpool_limits(1):
        for start in range(0, vectors.shape[1], NUMBERS_A_CODE):
            part = slice(start, start + NUMBERS_A_CODE)
            rows = np.ascontiguousarray(seen[:, part])
            n = min(CENTRES, len(np.unique(rows, axis=0)))
            means = KMeans(n, n_init=1, max_iter=25, random_state=seed).fit(rows)
            nearest = means.predict(np.ascontiguousarray(vectors[:, part]))
            coded[:, part] = means.cluster_centers_[nearest]
    return coded


_CODERS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "binary": binary,
    "codes": product_codes,
}


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
    for family in sorted(p.families, key=lambda name: name != "mean"):
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


def _fused(dense: Floats | None, words: Floats | None, allowed: Bools, mosaic: Mosaic) -> Floats:
    """Distances by vectors, by words, or by the ranks of both."""
    if dense is None or words is None:
        return cast(Floats, words if dense is None else dense)
    lists = {"dense": dense, "words": words}
    settings = FamilySettings(fused=("dense", "words"))
    return rounded(hybrid(lists.__getitem__, allowed, mosaic, mosaic, settings))
