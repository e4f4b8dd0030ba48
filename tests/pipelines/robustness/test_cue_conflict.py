"""Which cue neighbours follow when morphology and stain disagree."""

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.appearance_views import (
    center_references,
    n_targets,
    target_centers,
    view_changes,
)
from pathfm_kedro.pipelines.robustness.cue_conflict import (
    COUNTS_SCHEMA,
    cue_conflict_counts,
    cue_conflict_measurements,
)
from pathfm_kedro.pipelines.robustness.mutual_knn import unit
from tests.pipelines.robustness.phantom_views import (
    APPEARANCE,
    appearance_of,
    make_pool,
    phantom_cohort,
    phantom_stains,
    pick,
    refuses_nan,
    shards_of,
)

TOLD = {
    "k": [1, 5],
    "signature": {"change": "macenko", "k": 5},
    "thresholds": {"morphology": 0.0},
    "draws": 300,
    "seed": 0,
}
LABELS, CENTERS, PATIENTS = "wxyz", ("A", "B", "C"), 3


def references(centers=CENTERS) -> pl.DataFrame:
    """The phantom's references under other names of centers."""
    found = center_references(phantom_stains(), APPEARANCE)
    return found.head(len(centers)).with_columns(center=pl.Series(centers))


def balanced_pool(labels=LABELS, centers=CENTERS, each=PATIENTS) -> pl.DataFrame:
    """One tile of each of equally many patients in every cell."""
    cells = [(label, center, i) for label in labels for center in centers for i in range(each)]
    return make_pool(
        [f"{label}{center}{i}" for label, center, i in cells],
        [label for label, _, _ in cells],
        [center for _, center, _ in cells],
    )


def measure(pool, views, known=None, **changes) -> pl.DataFrame:
    told = TOLD | changes
    known = references() if known is None else known
    counts = cue_conflict_counts(shards_of(pool, views=views), pool, known, APPEARANCE, told)
    assert dict(counts.schema) == COUNTS_SCHEMA
    table = cue_conflict_measurements(counts, told, "e")
    refuses_nan(table)
    return table


def cues(pool, morphology: float, stain: float, centers=CENTERS, noise=0.01) -> np.ndarray:
    """Vectors that hold the label and the stain that is seen, with given strength."""
    known = list(centers)
    changes = view_changes(APPEARANCE, n_targets(known, APPEARANCE["max_targets"]))
    generator = np.random.default_rng(0)
    labels = sorted(set(pool["label"]))
    out = generator.normal(0, noise, (pool.height, len(changes), len(labels) + len(known)))
    for i, row in enumerate(pool.iter_rows(named=True)):
        for j, change in enumerate(changes):
            seen = row["center"]
            if change.kind in ("macenko", "reinhard"):
                seen = target_centers(known, row["center"], 3)[change.target]
            out[i, j, labels.index(row["label"])] += morphology
            out[i, j, len(labels) + known.index(seen)] += stain
    return out.astype(np.float32)


def test_who_sees_only_morphology_follows_it():
    pool = balanced_pool()
    table = measure(pool, cues(pool, 1.0, 0.0))
    for k in (1, 5):
        at = {"change": "macenko", "k": k}
        assert (
            pick(table, "follows_morphology", view="transferred", scope="any", **at)["value"] == 1
        )
        assert pick(table, "morphology_loss", **at)["value"] == 0
    signature = pick(table, "follows_morphology_minus_null", change="macenko", k=5)
    assert signature["verdict"] == "pass"


def test_who_sees_only_stain_follows_it_once_it_has_changed():
    pool = balanced_pool()
    table = measure(pool, cues(pool, 0.0, 1.0))
    at = {"change": "reinhard", "k": 5}
    assert pick(table, "follows_morphology", view="transferred", scope="any", **at)["value"] == 0
    assert pick(table, "follows_morphology", view="clean", scope="any", **at)["value"] == 1
    assert pick(table, "morphology_loss", **at)["value"] == 1
    assert pick(table, "follows_morphology_minus_null", change="macenko", k=5)["verdict"] == "fail"


@pytest.mark.parametrize(("labels", "centers"), [("wxyz", "ABC"), ("wx", "AB"), ("wxyz", "AB")])
def test_null_of_a_balanced_design_is_that_of_the_robustness_index(labels, centers):
    pool = balanced_pool(labels, centers, each=30)
    views = cues(pool, 0.0, 0.0, centers, noise=1.0)
    table = measure(pool, views, known=references(tuple(centers)), k=[5])
    row = pick(table, "follows_morphology", change="macenko", view="transferred", scope="any")
    expected = (len(centers) - 1) / (len(centers) + len(labels) - 2)
    # The query's own patient is no candidate, which takes 1 of 30 from its cell.
    assert row["null_low"] == pytest.approx(expected, abs=0.02)


def test_knowing_nothing_sits_on_the_null():
    pool = balanced_pool(each=6)
    views = np.random.default_rng(3).normal(
        size=(pool.height, len(view_changes(APPEARANCE, 2)), 40)
    )
    table = measure(pool, views.astype(np.float32))
    rows = table.filter(metric="follows_morphology")
    assert rows.select(pl.col("null_low").is_between("ci_low", "ci_high").mean()).item() > 0.7


def test_counts_are_those_of_brute_force():
    pool = balanced_pool(each=2)
    changes = view_changes(APPEARANCE, 2)
    views = np.random.default_rng(1).normal(size=(pool.height, len(changes), 6)).astype(np.float32)
    counts = cue_conflict_counts(shards_of(pool, views=views), pool, references(), APPEARANCE, TOLD)
    rows, tiles = unit(views.reshape(-1, 6)).reshape(views.shape), pool.to_dicts()
    place = {change.name: i for i, change in enumerate(changes)}
    found = {"any": 0, "origin": 0, "stain": 0}
    expected = {"any": 0.0, "stain": 0.0}
    for i, tile in enumerate(tiles):
        others = [j for j in range(len(tiles)) if tiles[j]["patient_id"] != tile["patient_id"]]
        for target, center in enumerate(target_centers(list(CENTERS), tile["center"], 3)):
            query = rows[i, place[f"macenko {target}"]]
            near = sorted(others, key=lambda j, query=query: -float(query @ rows[j, 0]))[:5]
            same = [tiles[j]["label"] == tile["label"] for j in near]
            there = [tiles[j]["center"] == center for j in near]
            home = [tiles[j]["center"] == tile["center"] for j in near]
            found["any"] += sum(s and not t for s, t in zip(same, there, strict=True))
            found["origin"] += sum(s and h for s, h in zip(same, home, strict=True))
            found["stain"] += sum(t and not s for s, t in zip(same, there, strict=True))
            for name, wanted in (("any", True), ("stain", False)):
                eligible = [
                    j
                    for j in others
                    if (tiles[j]["label"] == tile["label"]) == wanted
                    and (tiles[j]["center"] == center) != wanted
                ]
                expected[name] += 5 * len(eligible) / len(others)
    part = counts.filter(change="macenko", k=5, view="transferred")
    met = part.filter(pl.col("neighbour_patient").is_not_null())
    assert met["morphology_any"].sum() == found["any"]
    assert met["morphology_origin"].sum() == found["origin"]
    assert met["stain"].sum() == found["stain"]
    asked = part.filter(pl.col("neighbour_patient").is_null())
    assert asked["morphology_any"].sum() == pytest.approx(expected["any"])
    assert asked["stain"].sum() == pytest.approx(expected["stain"])
    assert asked["n_queries"].sum() == 2 * pool.height


@pytest.mark.parametrize(
    ("control", "verdict"), [("phantom_truth", "pass"), ("stain_statistics", "fail")]
)
def test_controls_answer_as_they_must(control, verdict):
    known = center_references(phantom_stains(), APPEARANCE)
    counts = cue_conflict_counts(
        appearance_of(control), phantom_cohort().pool, known, APPEARANCE, TOLD
    )
    table = cue_conflict_measurements(counts, TOLD, control)
    refuses_nan(table)
    signature = pick(table, "follows_morphology_minus_null", change="macenko", k=5)
    assert signature["verdict"] == verdict
    if control == "phantom_truth":
        assert pick(table, "morphology_loss", change="macenko", k=5)["value"] == 0


def test_designs_without_a_conflict_are_told_what_to_mend():
    pool = balanced_pool(centers=("A",), each=6)
    table = measure(pool, cues(pool, 1.0, 1.0, ("A",)), known=references(("A",)))
    assert (table["verdict"] == "not_applicable").all()
    assert table["reason"].str.contains("add centers").all()
    assert pick(table, "follows_morphology_minus_null", change="macenko", k=5)["threshold"] == 0
    pool = balanced_pool(labels="w", each=6)
    table = measure(pool, cues(pool, 1.0, 1.0))
    assert table["reason"].str.contains("add labels").all()
    pool = balanced_pool("wx", "AB", each=1)
    table = measure(pool, cues(pool, 1.0, 1.0, "AB"), known=references(("A", "B")))
    many = table.filter(pl.col("setting").str.contains('"k": 5'))
    assert many["reason"].str.contains("raise tile_pool.max_tiles").all()


def test_a_signature_that_is_not_measured_is_refused():
    pool = balanced_pool()
    with pytest.raises(ValueError, match="is not measured"):
        measure(pool, cues(pool, 1.0, 1.0), signature={"change": "macenko", "k": 3})


def test_patients_without_a_conflict_do_not_count():
    pool = balanced_pool()
    shards = shards_of(pool, views=cues(pool, 1.0, 0.1))
    counts = cue_conflict_counts(shards, pool, references(), APPEARANCE, TOLD)
    asking = pl.col("patient_id").is_in(pool["patient_id"].unique().sort().head(5).to_list())
    sums = ["n_queries", "morphology_any", "morphology_origin", "stain"]
    others = ~asking & pl.col("neighbour_patient").is_null()
    silent = counts.filter(asking | pl.col("neighbour_patient").is_null()).with_columns(
        pl.when(others).then(0).otherwise(name).cast(counts.schema[name]).alias(name)
        for name in sums
    )
    table = cue_conflict_measurements(silent, TOLD, "e")
    assert table["n_patients"].unique().to_list() == [5]
    row = pick(table, "follows_morphology_minus_null", change="macenko", k=5)
    assert row["verdict"] == "inconclusive"
    assert row["reason"].startswith("rests on 5 patients")


def test_as_many_candidates_as_neighbours_are_enough():
    pool = balanced_pool("wx", "AB", each=2)  # 7 tiles of other patients for every tile
    known, views = references(("A", "B")), cues(pool, 1.0, 0.0, ("A", "B"))
    told = {"k": [7], "signature": {"change": "macenko", "k": 7}}
    found = pick(
        measure(pool, views, known, **told), "follows_morphology_minus_null", change="macenko"
    )
    assert found["value"] is not None
    told = {"k": [8], "signature": {"change": "macenko", "k": 8}}
    table = measure(pool, views, known, **told)
    assert table["reason"].str.contains("at least 8 tiles of other patients").all()
