"""Field of view: gains, equivalence and pools against brute force and other packages."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from pathfm_kedro.encoders.heads import AttentionSettings
from pathfm_kedro.pipelines.robustness.field_of_view import (
    ARMS,
    COST,
    EQUIVALENCE,
    FIELD_OF_VIEW_SCHEMA,
    GAIN,
    MEAN,
    NATIVE,
    NATIVES,
    PARTS,
    PROBLEMS,
    SAME_FIELD,
    SAME_TISSUE,
    TILE,
    WHOLE,
    FieldOfView,
    attention_neighbours,
    field_of_view_figures,
    field_of_view_statistics,
)
from pathfm_kedro.pipelines.robustness.field_pool import choose_field_pool
from pathfm_kedro.slides.nested_fields import Layout, sub_tiles
from pathfm_kedro.statistics.bootstrap import bootstrap_weights
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.neighbours import nearest_indices
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.vote_gain import macro_f1_gain, tost_p
from pathfm_kedro.statistics.votes import (
    LabelledQueries,
    label_counts,
    macro_f1_influence,
    majority_vote,
    patient_votes,
)
from pathfm_kedro.wiring import Experiment

PARAMETERS = {
    "fields": [224, 512],
    "k": 5,
    "max_tiles": 48,
    "criteria": [
        {"metric": GAIN, "at": {"field": "512", "arm": WHOLE, "over": TILE}, "below": 0.05},
        {"metric": SAME_TISSUE, "at": {"field": "512", "arm": WHOLE, "over": MEAN}, "below": 0.05},
    ],
    "equivalence_margin": 0.05,
    "attention": {
        "folds": 4,
        "components": 8,
        "hidden": 4,
        "steps": 60,
        "learning_rate": 0.05,
        "weight_decay": 0.001,
    },
    "draws": 400,
    "n_permutations": 100,
    "seed": 0,
}
FIELD_OF_VIEW = Experiment(
    "field_of_view", FieldOfView, field_of_view_statistics, field_of_view_figures, []
)
ATTENTION = AttentionSettings(**PARAMETERS["attention"])


def parameters_with(**changes):
    return read_parameters(FieldOfView, "field_of_view", PARAMETERS | changes)


@dataclass(frozen=True)
class Cohort:
    """Labels of places whose neighbours vote."""

    queries: LabelledQueries
    searchable: np.ndarray
    permuted: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, labels, patients, n_permutations=100):
        patient, label = (np.unique(names, return_inverse=True)[1] for names in (patients, labels))
        shape = (patient.max() + 1, label.max() + 1)
        queries = LabelledQueries(patient, label, np.zeros_like(patient), *shape)
        permuted = queries.permuted(n_permutations, seed=0)
        weights = bootstrap_weights(shape[0], 400, seed=0)
        return cls(queries, queries.support >= 2, permuted, weights)

    def votes(self, neighbours):
        return patient_votes(self.queries, neighbours, self.searchable, self.permuted, self.weights)

    def gain(self, neighbours, over):
        return macro_f1_gain(self.votes(neighbours), self.votes(over), 0.05)


def attended(subs, labels, patients, **changes):
    return attention_neighbours(subs, labels, patients, 5, replace(ATTENTION, **changes), seed=0)


def cohort(n_patients=40, each=2, labels=4, seed=0):
    """Labels and patients of places, in no order."""
    patient = np.random.default_rng(seed).permutation(np.repeat(np.arange(n_patients), each))
    label = np.array(list("wxyz"))[patient % labels]
    return label, np.array([f"p{p:03d}" for p in patient])


def vectors(labels, signal, seed, d=12):
    means = np.eye(26, d)[[ord(label) - ord("w") for label in labels]]
    noise = np.random.default_rng(seed).normal(size=(len(labels), d))
    return (signal * means + noise).astype(np.float32)


def brute_force_vote(space, labels, patients, k):
    """Vote of the k most similar rows of other patients, one row at a time."""
    unit = space / np.linalg.norm(space, axis=1, keepdims=True)
    votes = []
    for i in range(len(space)):
        others = [j for j in range(len(space)) if patients[j] != patients[i]]
        near = [labels[j] for j in sorted(others, key=lambda j: -(unit[i] @ unit[j]))[:k]]
        votes.append(max(near, key=near.count))
    return votes


@pytest.mark.parametrize("signal", [0.0, 1.5])
def test_scores_and_gain_equal_brute_force(signal):
    labels, patients = cohort()
    spaces = [vectors(labels, signal, 1), vectors(labels, signal + 1, 2)]
    expected = [
        f1_score(labels, brute_force_vote(space, labels, patients, 5), average="macro")
        for space in spaces
    ]
    places = Cohort.of(labels, patients)
    found = [nearest_indices(space, patients, 5) for space in spaces]
    for neighbours, value in zip(found, expected, strict=True):
        assert places.votes(neighbours).macro_f1.value == pytest.approx(value)
    gained = places.gain(found[1], found[0]).estimate.value
    assert gained == pytest.approx(expected[1] - expected[0])


def test_influence_is_the_change_that_one_place_makes():
    """First-order effects add up as those of numerical weights on places do."""
    labels, patients = cohort(12, 2, labels=3)
    places = Cohort.of(labels, patients, 3)
    neighbours = nearest_indices(vectors(labels, 1.0, 3), patients, 5)
    voted = np.stack([majority_vote(truth[neighbours]) for truth in places.permuted])
    draw = np.broadcast_to(np.arange(3)[:, None], voted.shape)
    counts = label_counts(places.permuted, voted, draw, (3, 3))
    influence = macro_f1_influence(counts, places.permuted, voted)
    for row, truth, predicted in zip(influence, places.permuted, voted, strict=True):
        for place in range(len(truth)):
            f1 = [
                f1_score(
                    truth,
                    predicted,
                    average="macro",
                    sample_weight=1 + h * (np.arange(24) == place),
                )
                for h in (-1e-4, 1e-4)
            ]
            assert row[place] == pytest.approx((f1[1] - f1[0]) / 2e-4, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 3))
def test_identical_arms_gain_nothing_and_are_equivalent(seed, signal):
    labels, patients = cohort(seed=seed)
    neighbours = nearest_indices(vectors(labels, signal, seed), patients, 5)
    figure = Cohort.of(labels, patients).gain(neighbours, neighbours.copy())
    estimate = figure.estimate
    assert (estimate.value, estimate.ci_low, estimate.ci_high) == (0, 0, 0)
    assert figure.equivalence_p == 0


@pytest.mark.parametrize(("n_patients", "shown"), [(40, False), (80, True)])
def test_arms_that_only_answer_alike_are_equivalent_where_patients_are_many(n_patients, shown):
    """Of P patients none differs: the rule of three, 59 of them exclude a share of 5%."""
    labels, patients = cohort(n_patients, 1)
    both = [nearest_indices(vectors(labels, 60, seed), patients, 5) for seed in (1, 2)]
    figure = Cohort.of(labels, patients).gain(*both)
    assert figure.estimate.value == 0
    reach = 1 - 0.025 ** (1 / n_patients)
    assert (figure.estimate.ci_low, figure.estimate.ci_high) == pytest.approx((-reach, reach))
    assert figure.equivalence_p == pytest.approx(0.95**n_patients)
    assert (figure.equivalence_p < 0.05) == shown


def answers(labels, patients, wrong):
    """Neighbours that classify all places correctly, but those of the first so many patients."""
    own = np.array(
        [
            np.flatnonzero((labels == a) & (patients != p))
            for a, p in zip(labels, patients, strict=True)
        ]
    )
    other = np.array([np.flatnonzero(labels != a)[: own.shape[1]] for a in labels])
    return np.where((patients < f"p{wrong:03d}")[:, None], other, own)[:, :5]


@pytest.mark.parametrize("each", [1, 2])
def test_losing_places_never_makes_a_pass_easier(each):
    """24 patients who gain nothing exclude no gain below 0.142, however many lose."""
    labels, patients = cohort(24, each, labels=2)
    places = Cohort.of(labels, patients)
    right = answers(labels, patients, 0)
    for lost in (1, 2, 5, 12):
        figure = places.gain(answers(labels, patients, lost), right)
        assert figure.estimate.value < 0
        assert figure.estimate.ci_high >= 1 - 0.025 ** (1 / 24) - 1e-9
        assert figure.equivalence_p > 0.05


@pytest.mark.parametrize("gained", [1, 2, 6])
def test_a_gain_reaches_as_far_as_scipys_binomial_test(gained):
    from scipy.stats import binomtest

    labels, patients = cohort(24, 1, labels=2)
    places = Cohort.of(labels, patients)
    found = places.gain(answers(labels, patients, 0), answers(labels, patients, gained))
    exact = binomtest(gained, 24).proportion_ci()
    assert found.estimate.ci_low <= exact.low + 1e-9
    assert found.estimate.ci_high >= exact.high - 1e-9


def test_equal_labels_of_too_few_places_say_so_to_attention():
    subs, _, patients = bags(1.0, n_patients=8)
    labels = np.array(list("wwxxyyzz"))
    with pytest.raises(Undefined, match="of 2 places at most"):
        attended(subs, labels, patients)


@pytest.mark.parametrize(("side", "fields"), [(128, ["512"]), (512, []), (125, []), (600, [])])
def test_the_first_field_is_the_tile_that_is_audited(side, fields):
    slides, tiles = tables()
    tiles = tiles.with_columns(field_um=pl.lit(side * 0.5))
    pool, room = choose_field_pool(slides, tiles, PARAMETERS)
    assert sorted(pool["field"].unique()) == fields
    assert room["field"].to_list() == ["512"]
    if not fields:
        for row in measured(Views({}), pool, room):
            assert row["verdict"] == "not_applicable"
            assert f"the tile of {side} px" in row["reason"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_swapping_arms_turns_the_gain_around(seed):
    labels, patients = cohort(seed=seed)
    places = Cohort.of(labels, patients)
    a, b = (nearest_indices(vectors(labels, 1, seed + s), patients, 5) for s in (1, 2))
    one, other = places.gain(a, b), places.gain(b, a)
    assert one.estimate.value == pytest.approx(-other.estimate.value)
    # Where more gain than lose, the other way round keeps the end that no patient can exclude.
    least = 1 - 0.025 ** (1 / 40)
    assert other.estimate.ci_high == pytest.approx(max(-one.estimate.ci_low, least))
    assert one.equivalence_p == pytest.approx(other.equivalence_p)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_neither_order_nor_names_of_patients_matter(seed):
    labels, patients = cohort(seed=seed)
    spaces = [vectors(labels, 1, seed + s) for s in (1, 2)]
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    names = dict(zip(np.unique(patients), generator.permutation(np.unique(patients)), strict=True))
    renamed = np.array([names[p] for p in patients])
    values = [
        Cohort.of(labels[rows], owners[rows])
        .gain(*(nearest_indices(space[rows], owners[rows], 5) for space in spaces))
        .estimate.value
        for rows, owners in ((np.arange(len(order)), patients), (order, patients), (order, renamed))
    ]
    assert values[1:] == pytest.approx(values[:1] * 2)


def test_permuted_gains_are_centred_on_nothing():
    labels, patients = cohort()
    places = Cohort.of(labels, patients, 400)
    a, b = (nearest_indices(vectors(labels, 3, seed), patients, 5) for seed in (1, 2))
    null = places.gain(a, b).null
    assert null.low < 0 < null.high
    chance = places.votes(a).macro_f1.null
    assert chance.low < 1 / 4 < chance.high < 0.5


def test_a_label_of_one_patient_is_no_query_but_stays_a_neighbour():
    labels, patients = cohort()
    labels = np.where(patients == "p000", "lone", labels)
    places = Cohort.of(labels, patients)
    space = vectors(np.where(labels == "lone", "w", labels), 2, 1)
    neighbours = nearest_indices(space, patients, 5)
    assert places.votes(neighbours).n == (labels != "lone").sum()
    assert places.votes(neighbours).n_patients == 39
    kept = labels != "lone"
    voted = np.array(brute_force_vote(space, labels, patients, 5))
    expected = f1_score(
        labels[kept], voted[kept], labels=list("wxyz"), average="macro", zero_division=0
    )
    assert places.votes(neighbours).macro_f1.value == pytest.approx(expected)


@pytest.mark.parametrize("shift", [-0.04, 0.0, 0.03, 0.2])
def test_tost_equals_statsmodels(shift):
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    generator = np.random.default_rng(1)
    a, b = generator.normal(0, 0.1, (2, 40))
    difference = a + shift - b
    error = difference.std(ddof=1) / np.sqrt(40)
    expected, _, _ = weightstats.ttost_paired(a + shift, b, -0.05, 0.05)
    assert tost_p(difference.mean(), error, 39, 0.05) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.floats(-0.3, 0.3), st.floats(0.001, 0.2), st.integers(7, 200), st.floats(0.01, 0.2))
def test_tost_agrees_with_the_90_percent_interval(value, error, freedom, margin):
    from scipy.stats import t

    reach = t.ppf(0.95, freedom) * error
    inside = -margin < value - reach and value + reach < margin
    assert (tost_p(value, error, freedom, margin) < 0.05) == inside


@settings(max_examples=60, deadline=None)
@given(st.integers(224, 1500), st.integers(224, 1500))
def test_sub_tiles_cover_the_field_and_nothing_else(width, height):
    covered = np.zeros((height, width), bool)
    boxes = sub_tiles((width, height), (224, 224))
    for box in boxes:
        part = covered[box.top : box.top + 224, box.left : box.left + 224]
        assert part.shape == (224, 224)
        part[:] = True
    assert covered.all()
    assert len(boxes) == -(-width // 224) * -(-height // 224)


def test_parts_keep_their_index_in_a_larger_field():
    fields = [(224, 224), (512, 512), (1024, 1024), (2048, 1536)]
    full = Layout.of(fields)
    for n in range(2, 5):
        part = Layout.of(fields[:n])
        shift = ((2048 - fields[n - 1][0]) // 2, (1536 - fields[n - 1][1]) // 2)
        moved = [
            box._replace(left=box.left + shift[0], top=box.top + shift[1]) for box in part.parts
        ]
        assert full.parts[: len(moved)] == tuple(moved)
        assert (full.wholes[:n], full.subs[:n]) == (part.wholes, part.subs)
    assert [len(subs) for subs in full.subs] == [1, 9, 25, 70]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": [224]}, "one wider field"),
        ({"fields": [512, 224]}, "does not lie inside"),
        ({"fields": [224, [512, 200]]}, "does not lie inside"),
        ({"fields": [224, 511]}, "no common centre px"),
        ({"attention": PARAMETERS["attention"] | {"folds": 1}}, "attention.folds is 1"),
        ({"signature_field": 512}, "signature_field: no such parameter"),
        ({"fields": [224, "512"]}, "neither a side"),
    ],
)
def test_unfit_parameters_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        parameters_with(**changes)


def tables(n_patients=16, size=3000, mpp=0.5):
    names = [f"s{i:02d}" for i in range(n_patients)]
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": [f"p{i:02d}" for i in range(n_patients)],
            "center": ["AB"[i % 2] for i in range(n_patients)],
            "organ": "o",
            "label": ["xy"[i // 2 % 2] for i in range(n_patients)],
            "status": "usable",
            "width": size,
            "height": size,
            "mpp": mpp,
        }
    )
    grid = range(0, size - 223, 224)
    tiles = pl.DataFrame(
        [
            {
                "tile_id": f"{s}@{x}_{y}",
                "slide_id": s,
                "x": x,
                "y": y,
                "field_um": 112.0,
                "mpp": 0.5,
            }
            for s in names
            for y in grid
            for x in grid
        ]
    )
    return slides, tiles


def test_the_pool_is_balanced_and_has_room():
    slides, tiles = tables()
    pool, room = choose_field_pool(slides, tiles, PARAMETERS)
    assert pool.height == 48
    assert pool["patient_id"].value_counts()["count"].to_list() == [3] * 16
    assert pool["x"].min() >= 144
    assert pool["x"].max() + 224 + 144 <= 3000
    assert pool["field"].unique().to_list() == ["512"]
    assert room["n_slides_with_room"].to_list() == [16]
    assert "over the edge" in room["reason"][0]


def test_the_pool_does_not_depend_on_the_order_of_rows():
    slides, tiles = tables()
    pool, _ = choose_field_pool(slides, tiles, PARAMETERS)
    again, _ = choose_field_pool(slides.sample(fraction=1, shuffle=True, seed=1), tiles, PARAMETERS)
    assert pool.equals(again)
    shuffled = tiles.sample(fraction=1, shuffle=True, seed=2)
    other, _ = choose_field_pool(slides, shuffled, PARAMETERS)
    assert sorted(other["tile_id"]) == sorted(pool["tile_id"])


def test_a_slide_takes_part_up_to_its_largest_field():
    slides, tiles = tables()
    sizes = pl.Series([3000, 1100, 700, 224] * 4)
    slides = slides.with_columns(width=sizes, height=sizes)
    tiles = tiles.join(slides.select("slide_id", "width"), on="slide_id").filter(
        pl.max_horizontal("x", "y") + 224 <= pl.col("width")
    )
    changes = {"fields": [224, 512, 1024, [2048, 1536]], "max_tiles": 400}
    pool, room = choose_field_pool(slides, tiles, PARAMETERS | changes)
    largest = dict(pool.select("slide_id", "field").unique().iter_rows())
    assert {largest.get(f"s{i:02d}") for i in (0, 4, 8)} == {"2048x1536"}
    assert [largest.get(f"s{i:02d}") for i in (1, 2, 3)] == ["1024", "512", None]
    assert room["n_slides_with_room"].to_list() == [12, 8, 4]
    assert "cut beforehand" in room["reason"][0]


@dataclass(frozen=True)
class Views:
    """Stored fields of a pool: one shard a slide."""

    shards: dict[str, dict[str, np.ndarray]]

    @property
    def slide_ids(self):
        return tuple(sorted(self.shards))

    def stack(self, slide_ids, name="embedding"):
        return np.concatenate([self.shards[s][name] for s in slide_ids]).astype(np.float32)


def make_views(pool, base, wide, problem=0, seed=0):
    """Vectors whose signal at the tile is `base` and in the wider fields `wide`."""
    shards = {}
    for (slide, field), rows in pool.group_by(["slide_id", "field"], maintain_order=True):
        sides = (224, 512) if field == "512" else (224, 512, 1024)
        fields = tuple((side, side) for side in sides)
        layout = Layout.of(fields)
        labels = [{"x": "w", "y": "x"}[label] for label in rows["label"]]
        own = seed + int(slide[1:])
        noise = vectors(labels, 0, own)
        signal = vectors(labels, 1, 0) - vectors(labels, 0, 0)
        parts = np.repeat((base * signal + noise)[:, None], len(layout.parts), 1)
        for whole in layout.wholes[1:]:
            parts[:, whole] = wide * signal + noise
        n, m = len(labels), len(fields)
        shards[slide] = {
            PARTS: parts,
            NATIVES: parts[:, list(layout.wholes[1:])],
            PROBLEMS: np.full((n, m - 1), problem, np.int8),
            COST: np.tile(
                np.array([[[1, 9000], [len(s), 9000 * len(s)], [1, 25000]] for s in layout.subs]),
                (n, 1, 1, 1),
            ),
        }
    return Views(shards)


def measured(views, pool, room, parameters=PARAMETERS):
    statistics = FIELD_OF_VIEW.statistics(views, pool, parameters)
    assert dict(statistics.schema) == FIELD_OF_VIEW_SCHEMA
    table = FIELD_OF_VIEW.measurements(statistics, room, parameters, encoder="e")
    return [row | json.loads(row["setting"]) for row in table.to_dicts()]


def row_of(rows, metric, **setting):
    [row] = [r for r in rows if r["metric"] == metric and setting.items() <= r.items()]
    return row


@pytest.fixture(scope="module")
def large():
    slides, tiles = tables(48)
    return choose_field_pool(slides, tiles, PARAMETERS | {"max_tiles": 96})


def test_an_encoder_that_sees_the_label_only_in_wide_fields_fails(large):
    pool, room = large
    rows = measured(make_views(pool, 0.0, 30.0), pool, room)
    for metric, over in ((GAIN, TILE), (SAME_TISSUE, MEAN)):
        row = row_of(rows, metric, arm=WHOLE, over=over)
        assert (row["verdict"], row["threshold"], row["direction"]) == ("fail", 0.05, "below")
        assert row["value"] > 0.3
    assert row_of(rows, EQUIVALENCE, over=TILE)["value"] > 0.9
    assert row_of(rows, SAME_FIELD, arm=NATIVE)["value"] == 0


def test_an_encoder_that_sees_the_label_in_a_tile_passes(large):
    pool, room = large
    rows = measured(make_views(pool, 30.0, 30.0), pool, room)
    for metric in (GAIN, SAME_TISSUE):
        row = row_of(rows, metric, arm=WHOLE)
        assert (row["verdict"], row["value"]) == ("pass", 0)
    row = row_of(rows, EQUIVALENCE, over=TILE)
    assert (row["value"], row["margin"]) == (0, 0.05)


def test_an_encoder_that_knows_nothing_has_nothing_to_gain(large):
    pool, room = large
    rows = measured(make_views(pool, 0.0, 0.0, seed=100), pool, room)
    row = row_of(rows, GAIN, arm=WHOLE)
    assert row["verdict"] == "inconclusive"
    assert "nothing to gain" in row["caveat"]


def test_rows_are_few_and_never_empty_of_reason(large):
    pool, room = large
    rows = measured(make_views(pool, 1.0, 2.0), pool, room)
    assert len(rows) <= 24
    assert {row["arm"] for row in rows if row["metric"] == "macro_f1"} == set(ARMS)
    assert sum(row["threshold"] is not None for row in rows) == 2
    assert all(row["reason"] for row in rows if row["verdict"] == "not_applicable")
    assert all(row["n_patients"] == 48 for row in rows)


def test_cost_is_counted(large):
    pool, room = large
    rows = measured(make_views(pool, 1.0, 2.0), pool, room)
    found = {
        (r["metric"], r.get("arm")): r["value"] for r in rows if not r["metric"].startswith("macro")
    }
    assert found["forward_passes", MEAN] == 9
    assert found["megapixels_forwarded", MEAN] == pytest.approx(0.081)
    assert found["megapixels_forwarded", NATIVE] == pytest.approx(0.025)
    assert found["megapixels_read", None] == pytest.approx(512**2 / 1e6)


def test_an_encoder_without_native_size_says_so(large):
    pool, room = large
    rows = measured(make_views(pool, 1.0, 2.0, problem=1), pool, room)
    for metric in (GAIN, SAME_TISSUE, SAME_FIELD):
        row = row_of(rows, metric, arm=NATIVE)
        assert (row["verdict"], row["value"]) == ("not_applicable", None)
        assert "position embeddings" in row["reason"]
    assert row_of(rows, GAIN, arm=WHOLE)["value"] is not None


def test_images_cut_beforehand_have_no_wider_field():
    slides, tiles = tables(16, size=224)
    pool, room = choose_field_pool(slides, tiles, PARAMETERS)
    assert pool.is_empty()
    rows = measured(Views({}), pool, room)
    assert [r["metric"] for r in rows if r["threshold"] == 0.05] == [GAIN, SAME_TISSUE]
    for row in rows:
        assert (row["verdict"], row["value"]) == ("not_applicable", None)
        assert "none of 16 slides has room for a field of 512 px" in row["reason"]
        assert "cut beforehand" in row["reason"]


def test_slides_of_other_largest_fields_are_compared_where_both_have_room():
    parameters = PARAMETERS | {"fields": [224, 512, 1024], "max_tiles": 96}
    slides, tiles = tables(24)
    slides = slides.with_columns(
        width=pl.when(pl.col("slide_id") < "s12").then(1000).otherwise(3000)
    )
    tiles = tiles.join(slides.select("slide_id", "width"), on="slide_id").filter(
        pl.col("x") + 224 <= pl.col("width")
    )
    pool, room = choose_field_pool(slides, tiles, parameters)
    found = FIELD_OF_VIEW.statistics(make_views(pool, 1.0, 2.0), pool, parameters)
    counted = found.group_by("field").agg(pl.col("patient_id").n_unique())
    assert dict(counted.iter_rows()) == {"512": 24, "1024": 12}
    rows = measured(make_views(pool, 1.0, 2.0), pool, room, parameters)
    judged = [r for r in rows if r["threshold"] is not None]
    assert {r["field"] for r in judged} == {"512"}


def test_a_slide_that_failed_is_left_out(large):
    pool, room = large
    views = make_views(pool, 1.0, 2.0)
    fewer = replace(views, shards={s: v for s, v in views.shards.items() if s != "s00"})
    assert {row["n_patients"] for row in measured(fewer, pool, room)} == {47}
    assert "see why its slides failed" in measured(Views({}), pool, room)[0]["reason"]


def test_shards_of_other_parameters_are_refused(large):
    pool, _ = large
    views = make_views(pool, 1.0, 2.0)
    views.shards["s00"][PARTS] = views.shards["s00"][PARTS][:-1]
    with pytest.raises(ValueError, match="embed the fields again"):
        FIELD_OF_VIEW.statistics(views, pool, PARAMETERS)


def test_one_label_is_nothing_to_tell_apart(large):
    pool, room = large
    one = pool.with_columns(label=pl.lit("x"))
    rows = measured(make_views(one, 1.0, 2.0), one, room)
    assert "two are needed" in row_of(rows, GAIN, arm=WHOLE)["reason"]


def bags(signal, seed=0, n_patients=48, subs=25):
    """One sub-tile of each place carries the label, and is marked; the others are noise."""
    generator = np.random.default_rng(seed)
    labels = np.array(list("wx"))[np.arange(n_patients) % 2]
    found = generator.normal(size=(n_patients, subs, 40))
    at = generator.integers(0, subs, n_patients)
    side = np.where(labels == "w", 1.0, -1.0)
    found[np.arange(n_patients), at, 0] += signal * side
    found[np.arange(n_patients), at, 1] += 8 * (signal > 0)
    return found.astype(np.float32), labels, np.array([f"p{i:02d}" for i in range(n_patients)])


def score(places, neighbours):
    return places.votes(neighbours).macro_f1.value


def test_attention_finds_the_sub_tile_that_matters():
    subs, labels, patients = bags(6.0)
    places = Cohort.of(labels, patients)
    found = score(places, attended(subs, labels, patients, steps=200))
    mean = score(places, nearest_indices(subs.mean(axis=1), patients, 5))
    assert found > mean + 0.1
    assert found > 0.9


def test_attention_without_steps_is_the_mean():
    subs, labels, patients = bags(6.0)
    found = attended(subs, labels, patients, steps=0)
    np.testing.assert_array_equal(found, nearest_indices(subs.mean(axis=1), patients, 5))


@pytest.mark.slow
def test_attention_learns_nothing_from_noise():
    """Fitted on training patients only: were it not, it would beat chance here."""
    values = []
    for seed in range(6):
        subs, labels, patients = bags(0.0, seed)
        values.append(score(Cohort.of(labels, patients), attended(subs, labels, patients)))
    assert abs(np.mean(values) - 0.5) < 0.12


def test_too_few_patients_for_attention_say_so():
    subs, labels, patients = bags(1.0, n_patients=3)
    with pytest.raises(Undefined, match="3 patients"):
        attended(subs, labels, patients)
