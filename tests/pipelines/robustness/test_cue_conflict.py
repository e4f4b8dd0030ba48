"""Which cue neighbours follow when morphology and stain disagree."""

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.pipelines.robustness.appearance import TRANSFERS, appearance_views
from pathfm_kedro.pipelines.robustness.cue_conflict import (
    CUE_CONFLICT_SCHEMA,
    CueConflict,
    cue_conflict_figures,
    cue_conflict_statistics,
)
from pathfm_kedro.slides.center_stains import target_centers
from pathfm_kedro.statistics.figures import measure as measure_figures
from pathfm_kedro.statistics.mutual_knn import unit
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.wiring import Experiment
from tests.pipelines.robustness.phantom_views import (
    APPEARANCE,
    appearance_of,
    appearance_with,
    make_pool,
    measured,
    phantom_cohort,
    phantom_references,
    pick,
    shards_of,
)

JUDGED = "follows_morphology_minus_null"
PARAMETERS = {
    "k": [1, 5],
    "criteria": [{"metric": JUDGED, "at": {"change": "macenko", "k": 5}, "above": 0.0}],
    "draws": 300,
    "seed": 0,
}
CUE_CONFLICT = Experiment(
    "cue_conflict", CueConflict, cue_conflict_statistics, cue_conflict_figures, []
)
LABELS, CENTERS, PATIENTS = "wxyz", ("A", "B", "C"), 3


def references(centers=CENTERS) -> pl.DataFrame:
    """The phantom's references under other names of centers."""
    found = phantom_references()
    return found.head(len(centers)).with_columns(center=pl.Series(list(centers), dtype=pl.String))


def balanced_pool(labels=LABELS, centers=CENTERS, each=PATIENTS) -> pl.DataFrame:
    """One tile of each of equally many patients in every cell."""
    cells = [(label, center, i) for label in labels for center in centers for i in range(each)]
    return make_pool(
        [f"{label}{center}{i}" for label, center, i in cells],
        [label for label, _, _ in cells],
        [center for _, center, _ in cells],
    )


def settings_of(known) -> tuple:
    return appearance_views(known, None, appearance_with()).settings


def parameters_with(**changes) -> CueConflict:
    return read_parameters(CueConflict, "cue_conflict", PARAMETERS | changes)


def statistics_of(pool, views, known) -> pl.DataFrame:
    shards = shards_of(pool, views=views)
    return cue_conflict_statistics(shards, pool, known, APPEARANCE, parameters_with())


def measure(pool, views, known=None, **changes) -> pl.DataFrame:
    known = references() if known is None else known
    shards = shards_of(pool, views=views)
    return measured(CUE_CONFLICT, PARAMETERS | changes, shards, pool, known, APPEARANCE)


def at_k(k: int) -> dict:
    """Parameters of one k."""
    criterion = {"metric": JUDGED, "at": {"change": "macenko", "k": k}, "above": 0.0}
    return {"k": [k], "criteria": [criterion]}


def cues(pool, morphology: float, stain: float, centers=CENTERS, noise=0.01) -> np.ndarray:
    """Vectors that hold the label and the stain that is seen, with given strength."""
    known = list(centers)
    changes = settings_of(references(centers))
    generator = np.random.default_rng(0)
    labels = sorted(set(pool["label"]))
    out = generator.normal(0, noise, (pool.height, len(changes), len(labels) + len(known)))
    for i, row in enumerate(pool.iter_rows(named=True)):
        for j, change in enumerate(changes):
            seen = row["center"]
            if change["view"] in TRANSFERS:
                seen = target_centers(known, row["center"], 3)[change["target"]]
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
    row = pick(table, JUDGED, change="macenko", k=5)
    assert row["verdict"] == "pass"


def test_who_sees_only_stain_follows_it_once_it_has_changed():
    pool = balanced_pool()
    table = measure(pool, cues(pool, 0.0, 1.0))
    at = {"change": "reinhard", "k": 5}
    assert pick(table, "follows_morphology", view="transferred", scope="any", **at)["value"] == 0
    assert pick(table, "follows_morphology", view="clean", scope="any", **at)["value"] == 1
    assert pick(table, "morphology_loss", **at)["value"] == 1
    assert pick(table, JUDGED, change="macenko", k=5)["verdict"] == "fail"


@pytest.mark.parametrize(("labels", "centers"), [("wxyz", "ABC"), ("wx", "AB"), ("wxyz", "AB")])
def test_null_of_a_balanced_design_is_that_of_the_robustness_index(labels, centers):
    pool = balanced_pool(labels, centers, each=30)
    views = cues(pool, 0.0, 0.0, centers, noise=1.0)
    table = measure(pool, views, known=references(tuple(centers)), **at_k(5))
    row = pick(table, "follows_morphology", change="macenko", view="transferred", scope="any")
    expected = (len(centers) - 1) / (len(centers) + len(labels) - 2)
    # The query's own patient is no candidate, which takes 1 of 30 from its cell.
    assert row["null_low"] == pytest.approx(expected, abs=0.02)


def test_knowing_nothing_sits_on_the_null():
    pool = balanced_pool(each=6)
    shape = (pool.height, len(settings_of(references())), 40)
    views = np.random.default_rng(3).normal(size=shape)
    table = measure(pool, views.astype(np.float32))
    rows = table.filter(metric="follows_morphology")
    assert rows.select(pl.col("null_low").is_between("ci_low", "ci_high").mean()).item() > 0.7


def test_counts_are_those_of_brute_force():
    pool = balanced_pool(each=2)
    changes = settings_of(references())
    views = np.random.default_rng(1).normal(size=(pool.height, len(changes), 6)).astype(np.float32)
    counts = statistics_of(pool, views, references())
    assert dict(counts.schema) == CUE_CONFLICT_SCHEMA
    rows, tiles = unit(views.reshape(-1, 6)).reshape(views.shape), pool.to_dicts()
    place = {(c["view"], c.get("target")): i for i, c in enumerate(changes)}
    found = {"any": 0, "origin": 0, "stain": 0}
    expected = {"any": 0.0, "stain": 0.0}
    for i, tile in enumerate(tiles):
        others = [j for j in range(len(tiles)) if tiles[j]["patient_id"] != tile["patient_id"]]
        for target, center in enumerate(target_centers(list(CENTERS), tile["center"], 3)):
            query = rows[i, place["macenko", target]]
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
    views, pool, known = appearance_of(control), phantom_cohort().pool, phantom_references()
    table = measured(CUE_CONFLICT, PARAMETERS, views, pool, known, APPEARANCE)
    row = pick(table, JUDGED, change="macenko", k=5)
    assert row["verdict"] == verdict
    if control == "phantom_truth":
        assert pick(table, "morphology_loss", change="macenko", k=5)["value"] == 0


def test_designs_without_a_conflict_are_told_what_to_mend():
    pool = balanced_pool(centers=("A",), each=6)
    table = measure(pool, cues(pool, 1.0, 1.0, ("A",)), known=references(("A",)))
    assert (table["verdict"] == "not_applicable").all()
    assert table["reason"].str.contains("add centers").all()
    assert pick(table, JUDGED, change="macenko", k=5)["threshold"] == 0
    pool = balanced_pool(labels="w", each=6)
    table = measure(pool, cues(pool, 1.0, 1.0))
    assert table["reason"].str.contains("add labels").all()
    pool = balanced_pool("wx", "AB", each=1)
    table = measure(pool, cues(pool, 1.0, 1.0, "AB"), known=references(("A", "B")))
    many = table.filter(pl.col("setting").str.contains('"k": 5'))
    assert many["reason"].str.contains("raise tile_pool.max_tiles").all()


def test_a_criterion_of_what_is_not_measured_is_refused():
    pool = balanced_pool()
    with pytest.raises(ValueError, match=r"cue_conflict.criteria: no figure .*is measured at"):
        measure(pool, cues(pool, 1.0, 1.0), **at_k(3) | {"k": [1, 5]})


def test_patients_without_a_conflict_do_not_count():
    pool = balanced_pool()
    counts = statistics_of(pool, cues(pool, 1.0, 0.1), references())
    asking = pl.col("patient_id").is_in(pool["patient_id"].unique().sort().head(5).to_list())
    sums = ["n_queries", "morphology_any", "morphology_origin", "stain"]
    others = ~asking & pl.col("neighbour_patient").is_null()
    silent = counts.filter(asking | pl.col("neighbour_patient").is_null()).with_columns(
        pl.when(others).then(0).otherwise(name).cast(counts.schema[name]).alias(name)
        for name in sums
    )
    p = parameters_with()
    table = measure_figures(cue_conflict_figures(silent, p), "cue_conflict", "e", p.criteria)
    assert table["n_patients"].unique().to_list() == [5]
    row = pick(table, JUDGED, change="macenko", k=5)
    assert row["verdict"] == "undecidable"
    assert "5 patients" in row["reason"]


def test_as_many_candidates_as_neighbours_are_enough():
    pool = balanced_pool("wx", "AB", each=2)  # 7 tiles of other patients for every tile
    known, views = references(("A", "B")), cues(pool, 1.0, 0.0, ("A", "B"))
    found = pick(measure(pool, views, known, **at_k(7)), JUDGED, change="macenko")
    assert found["value"] is not None
    table = measure(pool, views, known, **at_k(8))
    assert table["reason"].str.contains("at least 8 tiles of other patients").all()
