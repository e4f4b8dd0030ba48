"""Slides as texts: patches are words of a vocabulary that was learned on other patients.

Visual words are the centres of a k-means on unit vectors; a patch is the word it lies nearest to. A
slide is then

- ``bovw``: how often it uses each word, as TF-IDF (``tf · (ln((1 + N) / (1 + df)) + 1)``), cosine;
- ``bm25``: the same counts, ``Σ_w f_q(w) · idf(w) · f_c(w) / (f_c(w) + k1 (1 − b + b |c| / avg |c|))``
  with ``idf = ln(1 + (N − df + ½) / (df + ½))``;
- ``vlad``: per word the sum of what its patches differ from it, each of length 1, cosine.

Words, N, df and the average length come from the patients outside the query's fold.

References
----------
Sivic & Zisserman, Video Google, ICCV 2003; Jégou et al., VLAD, CVPR 2010; Arandjelović & Zisserman,
All about VLAD, CVPR 2013; Robertson & Zaragoza, BM25, 2009; Lahr et al. on words of slides, arXiv
2401.03271.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from pathfm_kedro.pipelines.retrieve.families.folds import other_patients
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings, Floats, Ints
from pathfm_kedro.pipelines.retrieve.families.vectors import between_rows
from pathfm_kedro.statistics.mosaic import Mosaic
from pathfm_kedro.statistics.mutual_knn import unit

#: Usual values of BM25: how soon a word that comes again says nothing new, and how far long slides are
#: held to their length.
K1, B = 1.2, 0.75
#: Patches that a word is learned on: more do not move it (the default of FAISS).
_PATCHES_A_WORD = 256
#: Fewer patches make words of single patches, which no other patient uses.
_FEWEST_A_WORD = 3


def bovw(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Cosine distance of TF-IDF vectors: [n_queries, n_archive]."""

    def compare(words: Floats, some: Mosaic, others: Mosaic) -> Floats:
        counts = [word_counts(mosaic, words) for mosaic in (some, archive, others)]
        idf = np.log((1 + len(counts[2])) / (1 + (counts[2] > 0).sum(axis=0))) + 1
        return between_rows(counts[0] * idf, counts[1] * idf, "cosine")

    return _by_fold(compare, queries, archive, p.words, p)


def bm25(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """BM25 as a distance, its largest score less a slide's: [n_queries, n_archive]."""

    def compare(words: Floats, some: Mosaic, others: Mosaic) -> Floats:
        scores = bm25_scores(*(word_counts(mosaic, words) for mosaic in (some, archive, others)))
        return cast(Floats, scores.max() - scores)

    return _by_fold(compare, queries, archive, p.words, p)


def vlad(queries: Mosaic, archive: Mosaic, p: FamilySettings) -> Floats:
    """Cosine distance of vectors of locally aggregated descriptors: [n_queries, n_archive]."""

    def compare(words: Floats, some: Mosaic, others: Mosaic) -> Floats:
        return between_rows(residuals(some, words), residuals(archive, words), "cosine")

    return _by_fold(compare, queries, archive, p.vlad_words, p)


def bm25_scores(queries: Floats, archive: Floats, corpus: Floats) -> Floats:
    """Score of each slide of the archive for each query.

    Parameters
    ----------
    queries, archive
        [n, words] and [m, words] counts.
    corpus
        [c, words] counts from which document frequencies and the average length are taken.

    Returns
    -------
    ndarray
        [n, m].
    """
    frequency = (corpus > 0).sum(axis=0)
    idf = np.log(1 + (len(corpus) - frequency + 0.5) / (frequency + 0.5))
    lengths = archive.sum(axis=1, keepdims=True) / corpus.sum(axis=1).mean()
    saturated = archive / (archive + K1 * (1 - B + B * lengths))
    return cast(Floats, queries @ (idf * saturated).T)


def learned_words(patches: Floats, n_words: int, seed: int) -> Floats:
    """Centres of a k-means on unit vectors: [at most n_words, d].

    Parameters
    ----------
    patches
        [n, d].
    n_words
        Words wanted; at most a third of the patches.
    seed
        Of the sample of patches and of the initialisation.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    most = _PATCHES_A_WORD * n_words
    if len(patches) > most:
        patches = patches[np.random.default_rng(seed).choice(len(patches), most, replace=False)]
    rows = unit(patches)
    # Adding 0 makes −0 of one kind with 0.
    distinct = len({row.tobytes() for row in rows + 0.0})
    n = max(1, min(n_words, len(rows) // _FEWEST_A_WORD, distinct))
    # k-means adds up in the order of its threads.
    with threadpool_limits(1):
        return cast(Floats, KMeans(n, n_init=1, random_state=seed).fit(rows).cluster_centers_)


def nearest_word(mosaic: Mosaic, words: Floats) -> Ints:
    """[n_patches] word of each patch."""
    products = unit(mosaic.vectors) @ words.T
    return cast(Ints, (np.einsum("ij,ij->i", words, words) - 2 * products).argmin(axis=1))


def word_counts(mosaic: Mosaic, words: Floats) -> Floats:
    """[n_slides, words] how often each slide uses each word."""
    counts = np.zeros((len(mosaic.starts), len(words)))
    np.add.at(counts, (mosaic.slide_of_patch, nearest_word(mosaic, words)), 1)
    return counts


def residuals(mosaic: Mosaic, words: Floats) -> Floats:
    """[n_slides, words · d] summed differences from the words, of length 1 for each word."""
    word = nearest_word(mosaic, words)
    sums = np.zeros((len(mosaic.starts), *words.shape))
    np.add.at(sums, (mosaic.slide_of_patch, word), unit(mosaic.vectors) - words[word])
    return unit(sums.reshape(-1, words.shape[1])).reshape(len(sums), -1)


def _by_fold(
    compare: Callable[[Floats, Mosaic, Mosaic], Floats],
    queries: Mosaic,
    archive: Mosaic,
    n_words: int,
    p: FamilySettings,
) -> Floats:
    """Distances of the queries of each fold, with the words of the patients outside it."""
    result = np.zeros((len(queries.starts), len(archive.starts)))
    for rows, outside in other_patients(queries, archive, p.folds, p.seed):
        others = archive.select(np.flatnonzero(outside))
        words = learned_words(others.vectors.astype(np.float64), n_words, p.seed)
        result[rows] = compare(words, queries.select(rows), others)
    return result
