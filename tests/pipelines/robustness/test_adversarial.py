"""The adversarial experiment: who is attacked under which probe, and what the figures say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset, ShardedTensors
from pathfm_kedro.pipelines.robustness.adversarial import (
    POOL_SCHEMA,
    SIGNATURE,
    SUMS_SCHEMA,
    AdversarialParameters,
    adversarial_measurements,
    adversarial_sums,
    attacked_rows,
    choose_adversarial_pool,
    cosine_chance,
    fit_adversarial_probes,
    fit_probe,
    never_certain,
    not_attacked,
    probe_of_fold,
)
from pathfm_kedro.pipelines.robustness.adversarial_views import (
    plan_adversarial_tiles,
    plan_adversarial_transfer,
    plan_universal_perturbation,
    ssim_to_first,
)
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.measurements import Estimate
from tests.conftest import write_tiff

PARAMETERS = {
    "epsilons": [2, 8],
    "pgd_steps": [2, 5],
    "universal": {"epsilons": [2, 8], "tiles": 3, "steps": 3, "batch": 2},
    "transfer_epsilon": 8,
    "signature_epsilon": 2,
    "max_tiles": 12,
    "folds": 3,
    "probe_tiles_per_slide": 3,
    "C": 0.1,
    "max_iter": 200,
    "thresholds": {SIGNATURE: 0.15},
    "tolerance": 0.05,
    "draws": 300,
    "seed": 0,
}
SIDE = 32
TILE = {"pixels": SIDE}
#: Two small networks with random weights: enough to have gradients.
RUNTIME = {"runtime": "eager", "precision": "float32", "device": "cpu"}
TINY = {
    "model": "timm:vit_tiny_patch16_224",
    "pretrained": False,
    "seed": 0,
    "input_pixels": SIDE,
    "mean": [0.7, 0.6, 0.7],
    "std": [0.2, 0.2, 0.2],
    "model_kwargs": {"img_size": SIDE, "patch_size": 8, "depth": 2},
}
OTHER = TINY | {"model_kwargs": {"img_size": SIDE, "patch_size": 16, "depth": 1}}
STAIN = {"model": "control:stain_statistics", "role": "control"}
ENCODERS = {"tiny": TINY, "other": OTHER, "stain": STAIN}


def cohort(n_patients: int = 12, tiles_each: int = 5) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Slides of 256 px with tiles of 32 px; labels x and y take turns, centers A and B in pairs."""
    names = [f"s{i:02d}" for i in range(n_patients)]
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "path": [f"{name}.tiff" for name in names],
            "patient_id": [f"p{i:02d}" for i in range(n_patients)],
            "center": ["AABB"[i % 4] for i in range(n_patients)],
            "organ": "o",
            "label": ["xy"[i % 2] for i in range(n_patients)],
            "mpp": 0.5,
            "fingerprint": [f"f{name}" for name in names],
            "status": "usable",
        }
    )
    place = list(range(tiles_each))
    tiles = pl.DataFrame(
        {
            "tile_id": [f"{name}@{k}" for name in names for k in place],
            "slide_id": [name for name in names for _ in place],
            "x": [32 * k for _ in names for k in place],
            "y": [64 for _ in names for _ in place],
            "field_um": SIDE * 0.5,
            "mpp": 0.5,
        }
    )
    return slides, tiles


class Stored:
    """Vectors of a cohort in memory."""

    def __init__(self, shards: dict[str, np.ndarray]) -> None:
        self.shards = shards
        self.slide_ids = tuple(sorted(shards))

    def stack(self, slide_ids, name="embedding"):
        return np.concatenate([self.shards[s] for s in slide_ids])


def test_no_probe_has_seen_the_patient_it_is_attacked_on():
    slides, tiles = cohort()
    pool = choose_adversarial_pool(slides, tiles, PARAMETERS)
    assert pool.schema == POOL_SCHEMA
    assert pool.group_by("patient_id").agg(pl.col("fold").n_unique())["fold"].max() == 1
    for fold in range(3):
        trained = pool.filter("trains", pl.col("fold") != fold)
        attacked = pool.filter("attacked", pl.col("fold") == fold)
        assert not set(trained["patient_id"]) & set(attacked["patient_id"])
        assert set(trained["label"]) == {"x", "y"}


def test_attacked_tiles_are_spread_over_cells_and_patients():
    slides, tiles = cohort()
    pool = choose_adversarial_pool(slides, tiles, PARAMETERS)
    attacked = pool.filter("attacked")
    assert len(attacked) == 12
    assert attacked["patient_id"].n_unique() == 12
    assert set(attacked.group_by("label", "center").len()["len"]) == {3}
    assert pool.filter("trains").group_by("slide_id").len()["len"].max() == 3


def test_the_draw_does_not_depend_on_the_order_of_rows():
    slides, tiles = cohort()
    one = choose_adversarial_pool(slides, tiles, PARAMETERS)
    other = choose_adversarial_pool(
        slides.sample(fraction=1, shuffle=True, seed=1),
        tiles.sample(fraction=1, shuffle=True, seed=2),
        PARAMETERS,
    )
    assert one.sort("tile_id").equals(other.sort("tile_id"))


def test_labels_of_too_few_patients_take_no_part():
    slides, tiles = cohort()
    rare = slides.with_columns(
        label=pl.when(pl.col("slide_id") == "s00").then(pl.lit("z")).otherwise("label")
    )
    assert "z" not in set(choose_adversarial_pool(rare, tiles, PARAMETERS)["label"])
    alone = slides.with_columns(label=pl.lit("x"))
    assert choose_adversarial_pool(alone, tiles, PARAMETERS).is_empty()


@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_is_scikit_learns_on_standardised_vectors(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    labels = np.array(list("abcd"))[np.arange(120) % classes]
    vectors = generator.normal(size=(120, 6)) * [1, 5, 1, 1, 0.1, 1] + 3
    vectors[:, 0] += labels == "a"
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, class_weight="balanced"))
    decision = model.fit(vectors, labels).decision_function(vectors)
    logits = np.stack([-decision / 2, decision / 2], axis=1) if classes == 2 else decision
    targets = np.unique(labels, return_inverse=True)[1]
    own = logits[np.arange(120), targets]
    others = np.where(np.arange(classes) == targets[:, None], -np.inf, logits).max(axis=1)
    probe = fit_probe(vectors, labels, 0.3, 100)
    np.testing.assert_allclose(probe.margins(vectors, targets), own - others, atol=1e-6)


def test_probes_are_those_of_the_rows_of_other_folds():
    slides, tiles = cohort()
    pool = choose_adversarial_pool(slides, tiles, PARAMETERS)
    generator = np.random.default_rng(0)
    stored = Stored({s: generator.normal(size=(5, 4)) for s in slides["slide_id"]})
    probes = fit_adversarial_probes(slides, tiles, stored, pool, PARAMETERS)
    assert probes["fold"].to_list() == [0, 0, 1, 1, 2, 2]
    chosen = pool.filter("trains", pl.col("fold") != 1)
    vectors = np.stack(
        [stored.shards[s][int(t.split("@")[1])] for s, t in chosen["slide_id", "tile_id"].rows()]
    )
    expected = fit_probe(vectors, chosen["label"].to_numpy(), 0.1, 200)
    np.testing.assert_allclose(probe_of_fold(probes, 1).weight, expected.weight, atol=1e-6)
    assert probe_of_fold(probes, 7) is None


def save(folder: Path, plan) -> ShardedTensors:
    dataset = ShardedTensorDataset(filepath=folder.as_posix())
    dataset.save(plan)
    return dataset.load()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A cohort on disk: two stripe patterns in noise, which random networks tell apart."""
    folder = tmp_path_factory.mktemp("slides")
    slides, tiles = cohort()
    generator = np.random.default_rng(0)
    for row in slides.iter_rows(named=True):
        pixels = generator.normal(170, 12, (256, 256, 3))
        stripes = 25 * np.sin(np.arange(256) * 2 * np.pi / 8)
        pixels += stripes[:, None, None] if row["label"] == "x" else stripes[None, :, None]
        write_tiff(folder / row["path"], pixels.clip(0, 255).astype(np.uint8))
    return slides, tiles, SlideFiles(folder)


def embedded(slides, tiles, files, name) -> Stored:
    from pathfm_kedro.encoders import EncoderSpec, load_encoder
    from pathfm_kedro.slides.fields import slide_fields

    encoder = load_encoder(EncoderSpec.from_parameters(name, ENCODERS[name]))
    return Stored(
        {
            slide["slide_id"]: encoder.embed(next(fields.batches(99))[0])
            for slide, fields in slide_fields(slides, tiles, files, SIDE)
        }
    )


@pytest.fixture(scope="module")
def experiment(drawn, tmp_path_factory):
    """Everything for three encoders; the control is shown what was made against the others."""
    slides, tiles, files = drawn
    folder = tmp_path_factory.mktemp("shards")
    engine = {"workers": 2}
    pool = choose_adversarial_pool(slides, tiles, PARAMETERS)
    made: dict[str, dict] = {}
    for name, spec in ENCODERS.items():
        vectors = embedded(slides, tiles, files, name)
        probes = fit_adversarial_probes(slides, tiles, vectors, pool, PARAMETERS)
        told = (spec, RUNTIME, TILE, PARAMETERS, engine)
        fitted = plan_universal_perturbation(slides, pool, files, *told, name=name)
        universal = save(folder / f"universal.{name}", fitted)
        plan = plan_adversarial_tiles(slides, pool, probes, universal, files, *told, name=name)
        attacks = save(folder / f"attacks.{name}", plan)
        made[name] = {"probes": probes, "universal": universal, "attacks": attacks, "plan": plan}
    for name, spec in ENCODERS.items():
        sources = {k: made[k]["attacks"] for k in ENCODERS if k != name}
        shown = save(
            folder / f"transfer.{name}",
            plan_adversarial_transfer(
                slides,
                pool,
                made[name]["probes"],
                files,
                spec,
                RUNTIME,
                TILE,
                engine,
                *sources.values(),
                name=name,
                sources=tuple(sources),
            ),
        )
        made[name]["sums"] = adversarial_sums(
            made[name]["attacks"],
            shown,
            pool,
            made[name]["probes"],
            PARAMETERS,
            sources=tuple(sources),
        )
    return pool, made


def pick(table: pl.DataFrame, metric: str, **setting) -> dict:
    rows = [
        row
        for row in table.filter(pl.col("metric") == metric).iter_rows(named=True)
        if setting.items() <= json.loads(row["setting"]).items()
    ]
    assert len(rows) == 1, (metric, setting, len(rows))
    return rows[0]


def test_stored_variants_are_what_their_names_say(experiment):
    pool, made = experiment
    told = AdversarialParameters.parse(PARAMETERS)
    attacks = made["tiny"]["attacks"]
    assert not attacks.failures
    slide = attacks.slide_ids[0]
    n = len(pool.filter(pl.col("attacked"), pl.col("slide_id") == slide))
    variants = len(told.noises) + len(told.white_box)
    shapes = {
        name: attacks.load_slide(slide, name).shape
        for name in ("embedding", "margin", "ssim", "margin_unrounded", "attacked")
    }
    assert shapes == {
        "embedding": (n, variants, 192),
        "margin": (n, variants),
        "ssim": (n, variants),
        "margin_unrounded": (n, 1 + 4),
        "attacked": (n, 1, SIDE, SIDE, 3),
    }
    assert attacks.load_slide(slide, "ssim")[0, 0] == 1
    assert made["stain"]["attacks"].load_slide(slide, "embedding").shape[1] == len(told.noises)


def test_attacked_tiles_lie_in_the_ball_of_the_pixels(experiment, drawn):
    from pathfm_kedro.slides.fields import slide_fields

    pool, made = experiment
    slides, _, files = drawn
    rows = attacked_rows(pool, made["tiny"]["probes"])
    for slide, fields in slide_fields(slides, rows, files, SIDE):
        clean, _ = next(fields.batches(99))
        attacked = made["tiny"]["attacks"].load_slide(slide["slide_id"], "attacked")[:, 0]
        moved = np.abs(attacked.astype(int) - clean)
        assert 0 < moved.max() <= 8


def test_universal_perturbations_are_fitted_on_the_other_half_of_patients(experiment):
    pool, made = experiment
    universal = made["tiny"]["universal"]
    assert universal.slide_ids == ("half-0", "half-1")
    delta = universal.load_slide("half-0", "universal")
    assert delta.shape == (2, SIDE, SIDE, 3)
    assert np.abs(delta).max(axis=(1, 2, 3)).tolist() == [2, 8]
    assert len(made["stain"]["universal"].load_slide("half-0", "universal")) == 0
    for half, job in enumerate(
        plan_universal_perturbation(
            cohort()[0], pool, SlideFiles(Path()), TINY, RUNTIME, TILE, PARAMETERS, {}, name="tiny"
        ).jobs
    ):
        folds = pool.filter(pl.col("tile_id").is_in(job.tile_ids))["fold"]
        assert set(folds % 2) == {1 - half}
        assert len(job.tile_ids) == 3


def test_more_workers_and_another_run_give_the_same_bytes(experiment, tmp_path):
    import dataclasses

    from pathfm_kedro.engine import EngineSettings

    _, made = experiment
    again = dataclasses.replace(made["tiny"]["plan"], engine=EngineSettings(workers=1))
    save(tmp_path / "again", again)
    for one in sorted(made["tiny"]["attacks"].folder.glob("*.safetensors")):
        assert one.read_bytes() == (tmp_path / "again" / one.name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"epsilons": [2, 7, 8]}, {"pgd_steps": [2, 6]}, {"seed": 1}],
)
def test_a_shard_knows_what_decides_it(experiment, drawn, change):
    pool, made = experiment
    slides, _, files = drawn
    told = PARAMETERS | change
    plan = plan_adversarial_tiles(
        slides,
        pool,
        made["tiny"]["probes"],
        made["tiny"]["universal"],
        files,
        TINY,
        RUNTIME,
        TILE,
        told,
        {},
        name="tiny",
    )
    assert plan.jobs[0].header() != made["tiny"]["plan"].jobs[0].header()


def test_a_shard_knows_the_probe(experiment, drawn):
    pool, made = experiment
    slides, _, files = drawn
    moved = made["tiny"]["probes"].with_columns(pl.col("bias") + 1e-9)
    plan = plan_adversarial_tiles(
        slides,
        pool,
        moved,
        made["tiny"]["universal"],
        files,
        TINY,
        RUNTIME,
        TILE,
        PARAMETERS,
        {},
        name="tiny",
    )
    one, other = plan.jobs[0].header(), made["tiny"]["plan"].jobs[0].header()
    assert {key for key in one if one[key] != other[key]} == {"probe"}


@pytest.mark.parametrize("name", ["tiny", "other"])
def test_a_real_attack_keeps_every_rule(experiment, name):
    _, made = experiment
    table = adversarial_measurements(made[name]["sums"], PARAMETERS, encoder=name)
    checks = table.filter(pl.col("metric") == "attack_check")
    assert len(checks) == 5
    assert checks["value"].to_list() == [0.0] * 5
    clean = pick(table, "accuracy", attack="none")
    attacked = pick(table, "accuracy", attack="pgd-5", epsilon=8)
    assert clean["value"] > 0.8
    assert attacked["value"] < 0.3
    assert (
        attacked["value"] == pick(table, "accuracy_unrounded", attack="pgd-5", epsilon=8)["value"]
    )
    sources = {json.loads(s)["made_against"] for s in table["setting"] if "made_against" in s}
    assert len(sources) == 1
    assert len(table) <= 60


def test_margins_fall_with_steps_and_size(experiment):
    _, made = experiment
    attacks = made["tiny"]["attacks"]
    margin = attacks.stack(attacks.slide_ids, "margin")
    told = AdversarialParameters.parse(PARAMETERS)
    at = {v: i for i, v in enumerate((*told.noises, *told.white_box))}
    by = {(v.attack, v.epsilon): margin[:, i] for v, i in at.items()}
    for weak, strong in [
        (("none", 0), ("pgd-2", 2)),
        (("fgsm", 2), ("pgd-2", 2)),
        (("pgd-2", 2), ("pgd-5", 2)),
        (("pgd-2", 2), ("pgd-2", 8)),
        (("pgd-2", 8), ("pgd-5", 8)),
    ]:
        assert (by[strong] <= by[weak] + 1e-4).all()


def test_a_control_without_gradient_says_so_and_is_shown_others_tiles(experiment):
    _, made = experiment
    table = adversarial_measurements(made["stain"]["sums"], PARAMETERS, encoder="stain")
    row = pick(table, SIGNATURE)
    assert row["verdict"] == "not_applicable"
    assert "no gradient" in row["reason"]
    assert row["threshold"] == 0.15
    assert set(table["metric"]) == {
        "accuracy",
        "embedding_cosine",
        "ssim",
        "transfer_accuracy",
        "transfer_cosine",
        SIGNATURE,
    }
    assert len(table.filter(pl.col("metric") == "transfer_accuracy")) == 2


def sums(kept: dict[str, list[int]], n: int = 40, chance: float = 0.5) -> pl.DataFrame:
    """One tile a patient; `kept` says of each attack which patients' tiles stay right."""
    told = AdversarialParameters.parse(PARAMETERS)
    rows = [
        {
            "attack": v.attack,
            "epsilon": v.epsilon,
            "source": "",
            "patient_id": f"p{i:02d}",
            "n_tiles": 1,
            "correct_sum": float(i in kept.get(v.attack, kept["none"])),
            "correct_unrounded_sum": float(i in kept["none"]) if v.attack == "none" else None,
            "cosine_sum": 0.9,
            "ssim_sum": 0.98,
            "cosine_chance_sum": 0.3,
            "chance": chance,
        }
        for v in (*told.noises, *told.white_box)
        for i in range(n)
    ]
    return pl.DataFrame(rows, schema=SUMS_SCHEMA)


def measured(table: pl.DataFrame) -> dict:
    return pick(adversarial_measurements(table, PARAMETERS, encoder="e"), SIGNATURE)


ALL, NONE = list(range(40)), []
BROKEN = {"fgsm": NONE, "pgd-2": NONE, "pgd-5": NONE}


def test_the_drop_is_counted_beyond_that_of_noise():
    row = measured(sums({"none": ALL, "sign_noise": ALL[:30], **BROKEN}))
    assert row["value"] == pytest.approx(0.75)
    assert row["verdict"] == "fail"


def test_an_encoder_that_loses_nothing_passes_only_with_enough_patients():
    assert measured(sums({"none": ALL}))["verdict"] == "pass"
    few = measured(sums({"none": ALL}, n=12))
    assert few["verdict"] == "inconclusive"
    assert few["ci_high"] == pytest.approx(1 - 0.025 ** (1 / 12))


def test_a_probe_at_chance_has_nothing_to_lose():
    row = measured(sums({"none": ALL[:20], "sign_noise": ALL[:20]}))
    assert row["verdict"] == "not_applicable"
    assert "no better than chance" in row["reason"]


def test_an_attack_that_breaks_its_rules_decides_nothing():
    odd = {"none": ALL, "fgsm": NONE, "pgd-2": NONE, "pgd-5": ALL[:30]}
    row = measured(sums(odd))
    assert row["verdict"] == "inconclusive"
    assert "more_steps_never_weaker by 0.75" in row["reason"]


def test_no_tiles_is_a_reason_and_not_a_zero():
    row = measured(pl.DataFrame(schema=SUMS_SCHEMA))
    assert row["verdict"] == "not_applicable"
    assert "two labels with at least 3 patients" in row["reason"]
    one = measured(sums({"none": ALL}, n=1))
    assert "one patient" in one["reason"]


def test_an_empty_pool_leaves_empty_tables(tmp_path):
    slides, tiles = cohort()
    pool = choose_adversarial_pool(slides.with_columns(label=pl.lit("x")), tiles, PARAMETERS)
    stored = Stored({s: np.zeros((5, 4)) for s in slides["slide_id"]})
    probes = fit_adversarial_probes(slides, tiles, stored, pool, PARAMETERS)
    told = (SlideFiles(tmp_path), TINY, RUNTIME, TILE, PARAMETERS, {})
    universal = plan_universal_perturbation(slides, pool, *told, name="tiny")
    assert not universal.jobs
    nothing = Stored({})
    assert not plan_adversarial_tiles(slides, pool, probes, nothing, *told, name="tiny").jobs
    assert adversarial_sums(nothing, nothing, pool, probes, PARAMETERS).is_empty()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilons": [0.01, 2, 8]}, "whole grey levels"),
        ({"epsilons": [2, 200], "transfer_epsilon": 2}, "whole grey levels"),
        ({"signature_epsilon": 4}, "signature_epsilon is 4"),
        ({"transfer_epsilon": 4}, "transfer_epsilon is 4"),
        ({"universal": {"epsilons": [3], "tiles": 2, "steps": 1, "batch": 1}}, "give some of"),
        ({"pgd_steps": []}, "at least one number"),
        ({"folds": 1}, "give 2 or more"),
    ],
)
def test_bad_parameters_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        AdversarialParameters.parse(PARAMETERS | change)


def test_likeness_agrees_with_the_formula_on_flat_images():
    """Two flat images: SSIM = (2ab + C1) / (a² + b² + C1)."""
    flat = np.stack([np.full((24, 24, 3), v, np.uint8) for v in (100, 140)])
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 140 + c1) / (100**2 + 140**2 + c1)
    np.testing.assert_allclose(ssim_to_first(flat), [1, expected], rtol=1e-6)


def test_unrelated_tiles_are_compared_across_patients():
    vectors = np.array([[1.0, 0], [1, 0], [0, 1]])
    found = cosine_chance(vectors, np.array(["p", "p", "q"]))
    np.testing.assert_allclose(found, [0, 0, 0])
    found = cosine_chance(vectors, np.array(["p", "q", "r"]))
    np.testing.assert_allclose(found, [0.5, 0.5, 0])


@pytest.mark.parametrize("lost", [0, 1, 2, 10, 24])
def test_intervals_are_at_least_those_of_scipys_binomial_test(lost):
    from scipy.stats import binomtest

    exact = binomtest(lost, 24).proportion_ci()
    found = never_certain(Estimate(lost / 24, lost / 24, lost / 24, 24, 24))
    assert (found.ci_low, found.ci_high) == pytest.approx((exact.low, exact.high))


def test_one_lost_patient_of_24_never_makes_a_pass_easier():
    clean = {"none": ALL[:24], "pgd-2": ALL[:24], "pgd-5": ALL[:24]}
    none = measured(sums(clean, n=24))
    one = measured(sums(clean | {"pgd-5": ALL[1:24]}, n=24))
    assert (none["verdict"], one["verdict"]) == ("pass", "inconclusive")
    assert one["ci_high"] > none["ci_high"] == pytest.approx(1 - 0.025 ** (1 / 24))


def test_wide_intervals_stay():
    wide = Estimate(0.5, 0.1, 0.9, 10, 10)
    assert never_certain(wide) == wide
    assert never_certain(Estimate(1.0, 1.0, 1.0, 24, 24)).ci_low == pytest.approx(0.025 ** (1 / 24))


def test_a_harmonised_variant_says_why_it_is_not_attacked():
    row = not_attacked(PARAMETERS, encoder="centred").row(0, named=True)
    assert (row["verdict"], row["value"]) == ("not_applicable", None)
    assert row["threshold"] is not None
    assert "no one network" in row["reason"]


def test_a_variant_with_changed_pixels_has_a_reason_of_its_own():
    table = sums({"none": ALL}).filter(~pl.col("attack").str.contains("pgd|fgsm|universal"))
    entry = {"model": "timm:resnet18", "mitigation": "macenko"}
    found = adversarial_measurements(table, PARAMETERS, entry, encoder="e")
    reason = pick(found, SIGNATURE)["reason"]
    assert "macenko, has no gradient" in reason
    assert "no neural network" not in reason
