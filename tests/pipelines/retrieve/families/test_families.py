"""Every family against brute force, written down plainly or in another package."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.retrieve.families import barcode as barcodes_module
from pathfm_kedro.pipelines.retrieve.families import vectors, visual_words
from pathfm_kedro.pipelines.retrieve.families.barcode import hamming
from pathfm_kedro.pipelines.retrieve.families.folds import other_patients
from pathfm_kedro.pipelines.retrieve.families.maxsim import pooled_patches
from pathfm_kedro.pipelines.retrieve.families.registry import (
    FAMILIES,
    REORDERINGS,
    Distances,
    known_families,
)
from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings
from pathfm_kedro.pipelines.retrieve.search import SCOPES, allowed_pairs, rank_matches
from pathfm_kedro.statistics.barcodes import barcodes
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.mosaic import Mosaic

SETTINGS = FamilySettings(words=5, vlad_words=3, tokens=2, folds=3, candidates=6)


def mosaic_of(seed=0, n_slides=13, dimension=11, largest=6):
    """Slides with ragged mosaics; some patients have several."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, largest + 1, n_slides)
    slides = pl.DataFrame(
        {
            "slide_id": [f"s{i:02}" for i in range(n_slides)],
            "patient": [f"p{i}" for i in generator.integers(0, 9, n_slides)],
            "center": [f"c{i}" for i in generator.integers(0, 2, n_slides)],
            "organ": ["o"] * n_slides,
            "label": [f"l{i}" for i in generator.integers(0, 2, n_slides)],
        }
    )
    patches = generator.normal(size=(sizes.sum(), dimension)).astype(np.float32)
    return Mosaic(slides, patches, np.cumsum(sizes) - sizes)


def patches_of(mosaic):
    return np.split(mosaic.vectors.astype(float), mosaic.starts[1:])


def cosine(a, b):
    return 1 - np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))


def nearest(query, other, distance):
    return [min(distance(a, b) for b in other) for a in query]


def bits(vector):
    """Yottixel's barcode as its reference code has it: one where the vector falls."""
    return [int(after - before < 0) for before, after in pairwise(vector)]


def bits_that_differ(a, b):
    return sum(x != y for x, y in zip(bits(a), bits(b), strict=True)) / (len(a) - 1)


def chamfer(q, c):
    def squared(a, b):
        return float(((a - b) ** 2).sum())

    return (np.mean(nearest(q, c, squared)) + np.mean(nearest(c, q, squared))) / 2


#: Each slide pair in plain Python.
PLAIN = {
    "mean": lambda q, c: cosine(q.mean(axis=0), c.mean(axis=0)),
    "max": lambda q, c: cosine(q.max(axis=0), c.max(axis=0)),
    "median_min": lambda q, c: np.median(nearest(q, c, cosine)),
    "median_min_symmetric": lambda q, c: (
        (np.median(nearest(q, c, cosine)) + np.median(nearest(c, q, cosine))) / 2
    ),
    "barcode": lambda q, c: np.median(nearest(q, c, bits_that_differ)),
    "maxsim": lambda q, c: (np.mean(nearest(q, c, cosine)) + np.mean(nearest(c, q, cosine))) / 2,
    "chamfer": chamfer,
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_family_equals_plain_python(name):
    queries, archive = mosaic_of(0, 7), mosaic_of(1, 9)
    for left, right in ((queries, queries), (queries, archive)):
        expected = [[PLAIN[name](q, c) for c in patches_of(right)] for q in patches_of(left)]
        np.testing.assert_allclose(FAMILIES[name](left, right, SETTINGS), expected, atol=1e-9)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("entries", [1, 40])
def test_blocks_change_nothing(monkeypatch, name, entries):
    mosaic = mosaic_of(3)
    whole = Distances(mosaic, mosaic, SETTINGS).of(name, np.ones((13, 13), bool))
    for module in (vectors, barcodes_module):
        monkeypatch.setattr(module, "BLOCK_ENTRIES", entries)
        monkeypatch.setattr(module, "BLOCK_ROWS", entries)
    blocked = Distances(mosaic, mosaic, SETTINGS).of(name, np.ones((13, 13), bool))
    np.testing.assert_array_equal(blocked, whole)


@pytest.mark.parametrize("dimension", [2, 21, 330, 1024])
def test_packed_bits_are_those_of_plain_python(dimension):
    mosaic = mosaic_of(dimension=dimension)
    packed = barcodes(mosaic.vectors)
    unpacked = np.unpackbits(packed, axis=1)[:, : dimension - 1]
    assert unpacked.tolist() == [bits(row) for row in mosaic.vectors]
    expected = (unpacked[:, None] != unpacked).sum(axis=2)
    np.testing.assert_array_equal(hamming(packed, packed), expected)


def test_yottixel_as_its_paper_tells_it():
    """Barcodes, median of minima, majority of three with ties to the nearest, one slide left out."""
    from collections import Counter

    mosaic = mosaic_of(5, n_slides=11)
    labels = mosaic.slides["label"].to_list()
    slides = patches_of(mosaic)
    expected = []
    for i, query in enumerate(slides):
        others = [j for j in range(len(slides)) if j != i]
        distance = {j: np.median(nearest(query, slides[j], bits_that_differ)) for j in others}
        near = sorted(others, key=lambda j: (distance[j], j))[:3]
        # most_common keeps the order of first appearance among equals.
        expected.append(Counter(labels[j] for j in near).most_common(1)[0][0])
    allowed = allowed_pairs(mosaic.slides, SCOPES["across_organs"], "slide")
    distances = Distances(mosaic, mosaic, SETTINGS).of("barcode", allowed)
    query, _, match = rank_matches(distances, allowed, 3)
    found = [[labels[m] for m in match[query == i]] for i in range(len(slides))]
    voted = [max(row, key=lambda x: (row.count(x), -row.index(x))) for row in found]
    assert voted == expected


def test_pooled_tokens_are_means_of_clusters_and_few_patches_stay():
    mosaic = mosaic_of(2)
    pooled = pooled_patches(mosaic, 3)
    assert pooled.sizes.tolist() == np.minimum(mosaic.sizes, 3).tolist()
    unit = mosaic.vectors / np.linalg.norm(mosaic.vectors, axis=1, keepdims=True)
    first = mosaic.sizes.argmax()
    own = unit[mosaic.starts[first] :][: mosaic.sizes[first]]
    tokens = pooled.vectors[pooled.starts[first] :][:3]
    # Tokens are means of disjoint sets that together are all patches.
    splits = (np.array(s) for s in product(range(3), repeat=len(own)) if len(set(s)) == 3)
    assert any(
        np.allclose([own[split == c].mean(axis=0) for c in range(3)], tokens, atol=1e-5)
        for split in splits
    )


def test_bm25_equals_bm25s():
    bm25s = pytest.importorskip("bm25s")
    generator = np.random.default_rng(0)
    archive = generator.poisson(1.0, (12, 9)).astype(float) + np.eye(12, 9)
    queries = generator.poisson(1.0, (4, 9)).astype(float) + np.eye(4, 9)
    texts = [[str(w) for w in np.repeat(np.arange(9), row.astype(int))] for row in archive]
    index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    index.index(texts, show_progress=False)
    expected = [
        index.get_scores([str(w) for w in np.repeat(np.arange(9), row.astype(int))])
        for row in queries
    ]
    found = visual_words.bm25_scores(queries, archive, archive)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def learned_by_fold(mosaic, n_words, compare):
    """Distances of visual words, each fold's words learned anew on the slides outside it."""
    result = np.zeros((len(mosaic.starts),) * 2)
    for rows, outside in other_patients(mosaic, mosaic, SETTINGS.folds, SETTINGS.seed):
        others = mosaic.select(np.flatnonzero(outside))
        words = visual_words.learned_words(others.vectors.astype(float), n_words, SETTINGS.seed)
        unit = [p / np.linalg.norm(p, axis=1, keepdims=True) for p in patches_of(mosaic)]
        word = [[int(((words - x) ** 2).sum(axis=1).argmin()) for x in p] for p in unit]
        result[rows] = compare(words, unit, word, np.flatnonzero(outside))[rows]
    return result


def test_bovw_equals_scikit_learn():
    from sklearn.feature_extraction.text import TfidfTransformer

    def compare(words, unit, word, others):
        counts = np.array([np.bincount(own, minlength=len(words)) for own in word])
        vectors = TfidfTransformer().fit(counts[others]).transform(counts).toarray()
        return 1 - vectors @ vectors.T

    mosaic = mosaic_of(4)
    found = FAMILIES["bovw"](mosaic, mosaic, SETTINGS)
    np.testing.assert_allclose(found, learned_by_fold(mosaic, 5, compare), atol=1e-9)


def test_vlad_equals_plain_sums():
    def compare(words, unit, word, others):
        described = []
        for rows, own in zip(unit, word, strict=True):
            sums = [
                sum(
                    (r - words[w] for r, w in zip(rows, own, strict=True) if w == c),
                    np.zeros(words.shape[1]),
                )
                for c in range(len(words))
            ]
            described.append(np.concatenate([s / (np.linalg.norm(s) or 1) for s in sums]))
        return [[cosine(a, b) for b in described] for a in described]

    mosaic = mosaic_of(4, largest=5)
    found = FAMILIES["vlad"](mosaic, mosaic, SETTINGS)
    expected = learned_by_fold(mosaic, 3, lambda *given: np.array(compare(*given)))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", ["bovw", "bm25", "vlad"])
def test_words_are_learned_without_the_querys_patient(monkeypatch, name):
    mosaic, seen = mosaic_of(6), []
    learn = visual_words.learned_words
    monkeypatch.setattr(
        visual_words, "learned_words", lambda v, *rest: seen.append(v) or learn(v, *rest)
    )
    FAMILIES[name](mosaic, mosaic, SETTINGS)
    folds = list(other_patients(mosaic, mosaic, SETTINGS.folds, SETTINGS.seed))
    assert len(seen) == len(folds)
    assert sorted(np.concatenate([rows for rows, _ in folds])) == list(range(13))
    patient = mosaic.slides["patient"].to_numpy()
    for patches, (rows, outside) in zip(seen, folds, strict=True):
        assert not set(patient[rows]) & set(patient[outside])
        assert len(patches) == mosaic.sizes[outside].sum()


def test_hybrid_adds_reciprocal_ranks_among_the_slides_that_may_be_found():
    mosaic = mosaic_of(7)
    allowed = allowed_pairs(mosaic.slides, SCOPES["within_organ_other_centers"], "patient")
    distances = Distances(mosaic, mosaic, SETTINGS)
    found = distances.of("hybrid", allowed)
    lists = [distances.of(name, allowed) for name in SETTINGS.fused]
    for q in range(13):
        may = np.flatnonzero(allowed[q])
        for c in may:
            ranks = [1 + sum(d[q, o] < d[q, c] for o in may) for d in lists]
            expected = 2 / 61 - sum(1 / (60 + rank) for rank in ranks)
            assert found[q, c] == pytest.approx(expected, abs=1e-7)


def test_reranked_needs_its_candidates():
    mosaic = mosaic_of(8)
    allowed = allowed_pairs(mosaic.slides, SCOPES["across_organs"], "patient")
    with pytest.raises(Undefined, match=r"may find \d+ slides here, .* 100 .*add slides"):
        Distances(mosaic, mosaic, FamilySettings(words=4, folds=3)).of("reranked", allowed)


def test_reranked_learns_what_the_mean_does_not_show_and_only_from_other_patients():
    """The label is the sign of one direction, drowned in others: known only by examples."""
    generator = np.random.default_rng(0)
    n, dimension = 70, 6
    label = np.arange(n) % 2
    patches = generator.normal(size=(n, 4, dimension)) * np.array([0.1, *[1.0] * (dimension - 1)])
    patches[..., 0] += 0.25 * (2 * label[:, None] - 1)
    slides = pl.DataFrame(
        {
            "slide_id": [f"s{i:02}" for i in range(n)],
            "patient": [f"p{i:02}" for i in range(n)],
            "center": ["c"] * n,
            "organ": ["o"] * n,
            "label": [f"l{one}" for one in label],
        }
    )
    mosaic = Mosaic(slides, patches.reshape(-1, dimension).astype(np.float32), np.arange(n) * 4)
    allowed = ~np.eye(n, dtype=bool)
    p = FamilySettings(candidates=40, folds=3)

    def top1(mosaic, name):
        _, rank, match = rank_matches(Distances(mosaic, mosaic, p).of(name, allowed), allowed, 1)
        assert (rank == 1).all()
        return float((label[match] == label).mean())

    assert top1(mosaic, "reranked") > top1(mosaic, "mean")
    # Labels of the query's own patient must not matter: with shuffled labels nothing is learned.
    shuffled = slides.with_columns(label=pl.col("label").shuffle(seed=1))
    stated = shuffled["label"].to_numpy()
    blind = Mosaic(
        shuffled, generator.normal(size=mosaic.vectors.shape).astype(np.float32), mosaic.starts
    )
    _, _, match = rank_matches(Distances(blind, blind, p).of("reranked", allowed), allowed, 1)
    assert abs(float((stated[match] == stated).mean()) - 0.5) < 0.25


def test_every_name_is_known_and_others_are_not():
    assert known_families([*FAMILIES, *REORDERINGS]) == (*FAMILIES, *REORDERINGS)
    with pytest.raises(ValueError, match=r"'maxsin' is no family: did you mean maxsim\?"):
        known_families(["maxsin"])
