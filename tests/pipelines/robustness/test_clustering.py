"""The clustering score: against scikit-learn and plain loops, and on encoders of known answer."""

import itertools

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from pathfm_kedro.pipelines.robustness.clustering import (
    CLUSTERING_SCHEMA,
    ClusteredUnits,
    ClusteringScore,
    clustering_figures,
    clustering_statistics,
    clusterings,
)
from pathfm_kedro.statistics.clusters import resampled_ari, silhouettes_of
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.tables import to_schema
from pathfm_kedro.wiring import Experiment
from tests.in_memory import InMemory

PARAMETERS = {
    "max_tiles": 400,
    "min_patients_per_cell": 2,
    "min_tiles_per_cell": 2,
    "k_range": [2, 8],
    "restarts": 2,
    "draws": 300,
    "n_permutations": 60,
    "seed": 0,
    "criteria": [{"metric": "clustering_score_minus_null", "above": 0.0}],
}
CLUSTERING = Experiment(
    "clustering_score",
    ClusteringScore,
    clustering_statistics,
    clustering_figures,
    ["slides", "tiles", "embeddings.{e}"],
)


def parameters_with(**changes):
    return read_parameters(ClusteringScore, "clustering_score", PARAMETERS | changes)


def judged(statistics, **changes):
    return CLUSTERING.measurements(statistics, PARAMETERS | changes, encoder="encoder")


def measured_on(data, **changes):
    return judged(CLUSTERING.statistics(*data, PARAMETERS | changes), **changes)


def cohort(seed, effects, patients=8, tiles=5, d=10):
    """2 labels × 2 centers, one slide a patient."""
    generator = np.random.default_rng(seed)
    effect = np.random.default_rng(9).standard_normal((4, d))
    rows, shards = [], {}
    for label, center, _ in itertools.product(range(2), range(2), range(patients)):
        name = f"s{len(rows):03d}"
        rows.append((name, name, f"C{center}", "organ", f"L{label}"))
        mean = effects[0] * effect[label] + effects[1] * effect[2 + center]
        mean = mean + 0.4 * generator.standard_normal(d)
        shards[name] = (mean + 0.5 * generator.standard_normal((tiles, d))).astype(np.float32)
    columns = ["slide_id", "patient_id", "center", "organ", "label"]
    names = [f"{name}-{i}" for name in shards for i in range(tiles)]
    table = pl.DataFrame({"tile_id": names, "slide_id": np.repeat(list(shards), tiles)})
    return pl.DataFrame(rows, schema=columns, orient="row"), table, InMemory(shards)


def measured(seed, effects, **changes):
    table = measured_on(cohort(seed, effects), **changes)
    return {row["metric"]: row for row in table.iter_rows(named=True)}


def test_ari_equals_scikit_learn():
    generator = np.random.default_rng(0)
    patients = np.arange(30)
    tags = generator.integers(0, 3, 30)
    counts = generator.integers(0, 5, (30, 4)).astype(float)
    tag_of_tile = np.repeat(np.repeat(tags, 4), counts.astype(int).ravel())
    cluster_of_tile = np.repeat(np.tile(np.arange(4), 30), counts.astype(int).ravel())
    expected = adjusted_rand_score(tag_of_tile, cluster_of_tile)
    ones = np.ones((1, 30))
    assert resampled_ari(counts, tags, patients, ones)[0] == pytest.approx(expected, abs=1e-12)


def test_resampled_ari_equals_plain_loops_over_pairs():
    generator = np.random.default_rng(1)
    tags, patients = np.array([0, 1, 0, 1, 1]), np.array([0, 0, 1, 2, 3])
    counts = generator.integers(0, 4, (5, 3)).astype(float)
    weights = generator.multinomial(4, np.full(4, 0.25), 6).astype(float)
    tile_unit = np.repeat(np.repeat(np.arange(5), 3), counts.astype(int).ravel())
    cluster = np.repeat(np.tile(np.arange(3), 5), counts.astype(int).ravel())
    for weight, value in zip(weights, resampled_ari(counts, tags, patients, weights), strict=True):
        both = of_tag = of_cluster = every = 0.0
        for i, j in itertools.combinations(range(len(tile_unit)), 2):
            p, q = patients[tile_unit[i]], patients[tile_unit[j]]
            pair = weight[p] if p == q else weight[p] * weight[q]
            same_tag = tags[tile_unit[i]] == tags[tile_unit[j]]
            every += pair
            of_tag += pair * same_tag
            of_cluster += pair * (cluster[i] == cluster[j])
            both += pair * (same_tag and cluster[i] == cluster[j])
        expected = of_tag * of_cluster / every
        assert value == pytest.approx((both - expected) / ((of_tag + of_cluster) / 2 - expected))


def test_silhouette_equals_scikit_learn():
    points = np.random.default_rng(2).standard_normal((40, 3))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    clusters = np.unique(np.random.default_rng(3).integers(0, 5, 40), return_inverse=True)[1]
    clusters[0] = clusters.max() + 1  # one tile alone
    clusters = np.unique(clusters, return_inverse=True)[1]
    expected = silhouette_samples(distances, clusters, metric="precomputed")
    np.testing.assert_allclose(silhouettes_of(distances, clusters), expected, atol=1e-12)


@pytest.mark.parametrize("k", [3, 5])
def test_finds_the_number_of_clusters(k):
    generator = np.random.default_rng(k)
    centres = np.linalg.qr(generator.standard_normal((8, 8)))[0][:k]
    truth = np.arange(90) % k
    vectors = (centres[truth] + 0.08 * generator.standard_normal((90, 8))).astype(np.float32)
    # Lengths must not matter: clusters are of directions.
    vectors *= generator.uniform(0.2, 5, (90, 1)).astype(np.float32)
    found = clusterings(vectors, parameters_with())
    assert list(found) == list(range(2, 9))
    clusters, silhouettes = max(found.values(), key=lambda each: each[1].mean())
    assert adjusted_rand_score(truth, clusters) == 1
    assert silhouettes.mean() > 0.6


def test_known_encoders_are_judged():
    of_label, of_center = measured(0, (2.0, 0.0)), measured(0, (0.0, 2.0))
    assert of_label["clustering_score_minus_null"]["verdict"] == "pass"
    assert of_label["clustering_score"]["value"] > 0.8
    assert of_center["clustering_score_minus_null"]["verdict"] == "fail"
    assert of_center["ari_center"]["value"] > 0.8
    assert of_label["n_clusters"]["value"] == 2


def test_random_embeddings_sit_on_the_null():
    rows = [measured(seed, (0.0, 0.0))["clustering_score_minus_null"] for seed in range(8)]
    assert sum(row["null_low"] <= row["value"] <= row["null_high"] for row in rows) >= 6
    assert [row["verdict"] for row in rows].count("inconclusive") >= 7


def test_interval_covers_what_other_patients_of_these_clusters_would_give():
    """Given the clusters: units sampled from a known distribution over clusters."""
    generator = np.random.default_rng(5)
    tags, patients = np.arange(24) % 2, np.arange(24)
    shares = np.array([[0.7, 0.3], [0.4, 0.6]])
    weights = generator.multinomial(24, np.full(24, 1 / 24), 300).astype(float)
    values, bounds = [], []
    for _ in range(200):
        own = np.clip(shares[tags, 0] + 0.15 * generator.standard_normal(24), 0, 1)
        first = generator.binomial(10, own)
        counts = np.stack([first, 10 - first], axis=1).astype(float)
        values.append(resampled_ari(counts, tags, patients, np.ones((1, 24)))[0])
        bounds.append(np.percentile(resampled_ari(counts, tags, patients, weights), [2.5, 97.5]))
    truth, bounds = np.mean(values), np.array(bounds)
    assert ((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean() > 0.88


def test_the_same_seed_gives_the_same_clusters():
    data = cohort(1, (0.5, 0.5))
    once, again = (clustering_statistics(*data, parameters_with()) for _ in range(2))
    assert once.equals(again)
    assert dict(once.schema) == CLUSTERING_SCHEMA
    fewer = clustering_statistics(*data, parameters_with(max_tiles=40))
    assert fewer.group_by("n_clusters").agg(pl.col("n").sum())["n"].unique().to_list() == [40]


def test_a_cohort_that_cannot_be_clustered_says_why():
    slides, tiles, embeddings = cohort(0, (1.0, 0.0))
    one = slides.with_columns(center=pl.lit("C0"))
    table = measured_on((one, tiles, embeddings))
    assert table["verdict"].unique().to_list() == ["not_applicable"]
    assert table["reason"].str.contains("second center").all()
    table = measured_on((slides, tiles, embeddings), k_range=[200, 300])
    assert "take fewer clusters" in table["reason"][0]
    assert table.filter(metric="clustering_score_minus_null")["threshold"][0] == 0.0


def test_repeated_vectors_make_no_more_clusters_than_there_are():
    vectors = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    with pytest.warns(match="distinct clusters"):
        found = clusterings(vectors, parameters_with())
    assert list(found) == [2, 3]


def of_two_numbers(seed):
    """Two labels in two clusters each; two clusters fit about as well as four, by other patients."""
    generator = np.random.default_rng(seed)
    rows = []
    for i, (label, center, _) in enumerate(itertools.product(range(2), range(2), range(6))):
        own = (f"p{i:03d}", f"L{label}", f"C{center}")
        four, two = generator.normal(0.2, 0.1, 2)
        # Two clusters are of the labels, four of label and center: their scores differ.
        rows += [(*own, label, 5, 2, two), (*own, 2 * label + center, 5, 4, four)]
    columns = ["patient_id", "label", "center", "cluster", "n", "n_clusters", "silhouette"]
    return to_schema(pl.DataFrame(rows, schema=columns, orient="row"), CLUSTERING_SCHEMA)


def test_resampled_patients_choose_the_number_of_clusters_anew():
    p, table = parameters_with(), of_two_numbers(3)
    units = ClusteredUnits.of(table, p)
    weights = p.weights(24)
    sums = {
        k: weights @ part.sort("patient_id")["silhouette"].to_numpy()
        for (k,), part in table.group_by("n_clusters")
    }
    expected = np.where(sums[2] > sums[4], 2, 4)
    assert set(expected.tolist()) == {2, 4}
    assert units.chosen(weights).tolist() == expected.tolist()
    scores = units.scores(weights)["clustering_score"]
    for k in (2, 4):
        tags = units.labels, units.centers
        parts = (resampled_ari(units.counts[k], t, units.patients, weights) for t in tags)
        np.testing.assert_allclose(scores[expected == k], np.subtract(*parts)[expected == k])


def test_the_interval_holds_the_scores_of_every_number_that_may_be_chosen():
    row = judged(of_two_numbers(3)).filter(metric="clustering_score").row(0, named=True)
    # Two clusters of labels score 1, four of label and center about 0.
    assert row["ci_low"] < 0.2
    assert row["ci_high"] > 0.9
    chosen = judged(of_two_numbers(3)).filter(metric="n_clusters").row(0, named=True)
    assert (chosen["ci_low"], chosen["ci_high"]) == (2, 4)


def clusters_of_patients(seed, labels, centers, patients=5, tiles=8, n_clusters=6):
    """Statistics where each patient is in a cluster taken at random."""
    generator = np.random.default_rng(seed)
    cells = itertools.product(range(labels), range(centers), range(patients))
    rows = [
        (f"p{i:03d}", f"L{label}", f"C{center}", int(generator.integers(n_clusters)), tiles)
        for i, (label, center, _) in enumerate(cells)
    ]
    columns = ["patient_id", "label", "center", "cluster", "n"]
    table = pl.DataFrame(rows, schema=columns, orient="row")
    of_clusters = {"n_clusters": pl.lit(n_clusters), "silhouette": pl.lit(0.1)}
    return to_schema(table.with_columns(**of_clusters), CLUSTERING_SCHEMA)


@pytest.mark.parametrize(("labels", "centers"), [(2, 4), (4, 2), (3, 3)])
def test_random_clusters_of_patients_are_not_judged_by_the_shape_of_the_design(labels, centers):
    tables = [judged(clusters_of_patients(seed, labels, centers)) for seed in range(20)]
    rows = [t.filter(metric="clustering_score_minus_null").row(0, named=True) for t in tables]
    assert [row["verdict"] for row in rows].count("inconclusive") >= 18
    assert abs(np.mean([row["value"] for row in rows])) < 0.02
    scores = [table.filter(metric="clustering_score")["value"][0] for table in tables]
    if labels != centers:  # 0 itself is off
        assert np.sign(np.mean(scores)) == np.sign(labels - centers)


def test_minus_null_is_the_score_less_the_mean_of_its_permutations():
    both = measured(0, (1.0, 0.0))
    score, less = both["clustering_score"], both["clustering_score_minus_null"]
    shift = score["value"] - less["value"]
    assert score["null_low"] < shift < score["null_high"]
    for end in ("ci_low", "ci_high", "null_low", "null_high"):
        assert score[end] - less[end] == pytest.approx(shift)
    without = measured(0, (1.0, 0.0), n_permutations=0)["clustering_score_minus_null"]
    assert without["verdict"] == "not_applicable"
    assert "set n_permutations" in without["reason"]
    assert without["threshold"] == 0.0


def test_patients_that_show_every_label_do_not_keep_their_labels_in_the_null():
    rows = [
        (f"p{i:02d}", f"L{label}", f"C{i % 2}", label, 6) for i in range(16) for label in range(2)
    ]
    columns = ["patient_id", "label", "center", "cluster", "n"]
    table = pl.DataFrame(rows, schema=columns, orient="row")
    table = to_schema(table.with_columns(n_clusters=2, silhouette=0.1), CLUSTERING_SCHEMA)
    found = judged(table)
    of_label = found.filter(metric="ari_label").row(0, named=True)
    assert of_label["value"] == 1
    assert of_label["null_high"] < 0.5
    assert found.filter(metric="clustering_score_minus_null")["verdict"][0] == "pass"


def test_a_nearly_empty_cell_is_left_out_by_name_or_named_beside_the_verdict():
    slides, _, embeddings = cohort(0, (1.0, 0.0), patients=4, tiles=20)
    first = slides.filter(label=slides["label"][0], center=slides["center"][0])[
        "slide_id"
    ].to_list()
    for keep, n in ((1, 3 * 80), (6, 4 * 24)):
        shards = {s: x[:keep] if s in first else x for s, x in embeddings.shards.items()}
        tiles = pl.DataFrame(
            [(f"{s}-{i}", s) for s, x in shards.items() for i in range(len(x))],
            schema=["tile_id", "slide_id"],
            orient="row",
        )
        table = measured_on((slides, tiles, InMemory(shards)))
        row = table.filter(metric="clustering_score_minus_null").row(0, named=True)
        assert row["n"] == n
        cell = f"{slides['label'][0]} × {slides['center'][0]}"
        if keep == 1:
            assert "below" not in row["reason"]
            reason = table.filter(stratum=cell)["reason"].item()
            assert "4 patients with 4 tiles: fewer than 10% of the median cell's 80" in reason
        else:
            assert f"as many as the smallest, {cell}, has" in row["reason"]
