"""The adversarial experiment: who is attacked under which probe, and what the figures say."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset, ShardedTensors
from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.engine import EngineSettings
from pathfm_kedro.pipelines.robustness.adversarial import (
    ADVERSARIAL_SCHEMA,
    adversarial_figures,
    adversarial_statistics,
    no_adversarial_statistics,
)
from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    POOL_SCHEMA,
    Adversarial,
    attacked_tiles,
    choose_adversarial_pool,
    fit_adversarial_probes,
    probe_of_fold,
)
from pathfm_kedro.pipelines.robustness.adversarial_transfer import transfer_work
from pathfm_kedro.pipelines.robustness.adversarial_universal import plan_universal_perturbation
from pathfm_kedro.pipelines.robustness.adversarial_views import attack_work
from pathfm_kedro.pipelines.robustness.probed_tiles import plan_probed
from pathfm_kedro.slides.fields import slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.linear_classifier import fit_linear_classifier
from pathfm_kedro.statistics.parameters import read_parameters
from tests.conftest import write_tiff
from tests.pipelines.robustness.phantom_views import Shards, pick

DROP = "accuracy_drop_beyond_noise"
PARAMETERS = {
    "epsilons": [2, 8],
    "pgd_steps": [2, 5],
    "universal": {"epsilons": [2, 8], "tiles": 3, "steps": 3, "batch": 2},
    "transfer_epsilon": 8,
    "drop_epsilon": 2,
    "max_tiles": 12,
    "probe_tiles_per_slide": 3,
    "probe": {"folds": 3, "C": 0.1, "max_iter": 200},
    "tolerance": 0.05,
    "published": {"epsilon": 0.0015, "step": 0.001, "steps": 5},
    "criteria": [{"metric": DROP, "at": {"epsilon": 2}, "below": 0.15}],
    "draws": 300,
    "seed": 0,
}


def parameters_with(**changes) -> Adversarial:
    return read_parameters(Adversarial, "adversarial", PARAMETERS | changes)


P = parameters_with()
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
RUNTIMES = dict.fromkeys(ENCODERS, RUNTIME)


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


def stored(vectors: dict[str, np.ndarray]) -> Shards:
    return Shards({slide: {"embedding": rows} for slide, rows in vectors.items()})


def test_no_probe_has_seen_the_patient_it_is_attacked_on():
    slides, tiles = cohort()
    pool = choose_adversarial_pool(slides, tiles, P)
    assert pool.schema == POOL_SCHEMA
    assert pool.group_by("patient_id").agg(pl.col("fold").n_unique())["fold"].max() == 1
    for fold in range(3):
        trained = pool.filter("trains", pl.col("fold") != fold)
        attacked = pool.filter("attacked", pl.col("fold") == fold)
        assert not set(trained["patient_id"]) & set(attacked["patient_id"])
        assert set(trained["label"]) == {"x", "y"}


def test_attacked_tiles_are_spread_over_cells_and_patients():
    slides, tiles = cohort()
    pool = choose_adversarial_pool(slides, tiles, P)
    attacked = pool.filter("attacked")
    assert len(attacked) == 12
    assert attacked["patient_id"].n_unique() == 12
    assert set(attacked.group_by("label", "center").len()["len"]) == {3}
    assert pool.filter("trains").group_by("slide_id").len()["len"].max() == 3


def test_the_sample_does_not_depend_on_the_order_of_rows():
    slides, tiles = cohort()
    one = choose_adversarial_pool(slides, tiles, P)
    other = choose_adversarial_pool(
        slides.sample(fraction=1, shuffle=True, seed=1),
        tiles.sample(fraction=1, shuffle=True, seed=2),
        P,
    )
    assert one.sort("tile_id").equals(other.sort("tile_id"))


def test_labels_of_too_few_patients_take_no_part():
    slides, tiles = cohort()
    rare = slides.with_columns(
        label=pl.when(pl.col("slide_id") == "s00").then(pl.lit("z")).otherwise("label")
    )
    assert "z" not in set(choose_adversarial_pool(rare, tiles, P)["label"])
    alone = slides.with_columns(label=pl.lit("x"))
    assert choose_adversarial_pool(alone, tiles, P).is_empty()


def test_probes_are_those_of_the_rows_of_other_folds():
    slides, tiles = cohort()
    pool = choose_adversarial_pool(slides, tiles, P)
    generator = np.random.default_rng(0)
    of = {s: generator.normal(size=(5, 4)) for s in slides["slide_id"]}
    probes = fit_adversarial_probes(slides, tiles, stored(of), pool, P)
    assert probes["fold"].to_list() == [0, 0, 1, 1, 2, 2]
    chosen = pool.filter("trains", pl.col("fold") != 1)
    rows = chosen["slide_id", "tile_id"].rows()
    vectors = np.stack([of[slide][int(tile.split("@")[1])] for slide, tile in rows])
    expected = fit_linear_classifier(vectors, chosen["label"].to_numpy(), 0.1, 200)
    np.testing.assert_allclose(probe_of_fold(probes, 1).weight, expected.weight, atol=1e-6)
    with pytest.raises(KeyError, match="fold 7 has no probe"):
        probe_of_fold(probes, 7)


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


def vectors_of(slides, tiles, files, name) -> Shards:
    encoder = load_encoder(EncoderSpec.from_parameters(name, ENCODERS[name]))
    fields = slide_fields(slides, tiles, files, SIDE)
    return stored({slide["slide_id"]: encoder.embed(next(f.batches(99))[0]) for slide, f in fields})


def attacks_on(name, drawn, pool, probes, universal, p=P):
    slides, _, files = drawn
    more = (files, TILE, {"workers": 2}, ENCODERS[name], RUNTIMES, universal, p)
    return plan_probed(slides, pool, probes, *more, name=name, work=attack_work, title="attacking")


@pytest.fixture(scope="module")
def experiment(drawn, tmp_path_factory):
    """Everything for three encoders; the control is shown what was made against the others."""
    slides, tiles, files = drawn
    folder = tmp_path_factory.mktemp("shards")
    pool = choose_adversarial_pool(slides, tiles, P)
    made: dict[str, dict] = {}
    for name, entry in ENCODERS.items():
        vectors = vectors_of(slides, tiles, files, name)
        probes = fit_adversarial_probes(slides, tiles, vectors, pool, P)
        fitted = plan_universal_perturbation(
            slides, pool, files, TILE, {"workers": 2}, entry, RUNTIMES, P, name=name
        )
        universal = save(folder / f"universal.{name}", fitted)
        plan = attacks_on(name, drawn, pool, probes, universal)
        attacks = save(folder / f"attacks.{name}", plan)
        made[name] = {"probes": probes, "universal": universal, "attacks": attacks, "plan": plan}
    for name, entry in ENCODERS.items():
        own = made[name]
        sources = {k: made[k]["attacks"] for k in ENCODERS if k != name}
        told = (files, TILE, {"workers": 2}, entry, RUNTIMES, *sources.values())
        work = functools.partial(transfer_work, sources=tuple(sources))
        transfer = plan_probed(
            slides, pool, own["probes"], *told, name=name, work=work, title="showing"
        )
        shown = save(folder / f"transfer.{name}", transfer)
        own["statistics"] = adversarial_statistics(
            own["attacks"], shown, pool, own["probes"], P, sources=tuple(sources)
        )
    return pool, made


def measured(statistics: pl.DataFrame, entry=TINY, p=P) -> pl.DataFrame:
    return measure(adversarial_figures(statistics, entry, p), "adversarial", "e", p.criteria)


def test_stored_variants_are_what_their_names_say(experiment):
    pool, made = experiment
    attacks = made["tiny"]["attacks"]
    assert not attacks.failures
    slide = attacks.slide_ids[0]
    n = len(pool.filter(pl.col("attacked"), pl.col("slide_id") == slide))
    variants = len(P.noises) + len(P.white_box)
    shapes = {
        name: attacks.load_slide(slide, name).shape
        for name in ("embedding", "margin", "ssim", "margin_unrounded", "attacked", "change")
    }
    assert shapes == {
        "embedding": (n, variants, 192),
        "margin": (n, variants),
        "ssim": (n, variants),
        "margin_unrounded": (n, 1 + 4 + 1),
        "attacked": (n, 1, SIDE, SIDE, 3),
        "change": (n, 1, SIDE, SIDE, 3),
    }
    assert attacks.load_slide(slide, "ssim")[0, 0] == 1
    assert made["stain"]["attacks"].load_slide(slide, "embedding").shape[1] == len(P.noises)


def test_attacked_tiles_lie_in_the_ball_of_the_pixels(experiment, drawn):
    pool, made = experiment
    slides, _, files = drawn
    rows = attacked_tiles(pool, made["tiny"]["probes"])
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
    plan = plan_universal_perturbation(
        cohort()[0], pool, SlideFiles(Path()), TILE, {}, TINY, RUNTIMES, P, name="tiny"
    )
    for half, job in enumerate(plan.jobs):
        folds = pool.filter(pl.col("tile_id").is_in(job.tile_ids))["fold"]
        assert set(folds % 2) == {1 - half}
        assert len(job.tile_ids) == 3


def test_more_workers_and_another_run_give_the_same_bytes(experiment, tmp_path):
    _, made = experiment
    again = dataclasses.replace(made["tiny"]["plan"], engine=EngineSettings(workers=1))
    save(tmp_path / "again", again)
    for one in sorted(made["tiny"]["attacks"].folder.glob("*.safetensors")):
        assert one.read_bytes() == (tmp_path / "again" / one.name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"epsilons": [2, 7, 8]}, {"pgd_steps": [2, 6]}, {"drop_epsilon": 8}, {"seed": 1}],
)
def test_a_shard_knows_what_decides_it(experiment, drawn, change):
    pool, made = experiment
    own, p = made["tiny"], parameters_with(**change)
    plan = attacks_on("tiny", drawn, pool, own["probes"], own["universal"], p)
    assert plan.jobs[0].header() != own["plan"].jobs[0].header()


def test_a_shard_knows_the_probe(experiment, drawn):
    pool, made = experiment
    own = made["tiny"]
    moved = own["probes"].with_columns(pl.col("bias") + 1e-9)
    plan = attacks_on("tiny", drawn, pool, moved, own["universal"])
    one, other = plan.jobs[0].header(), own["plan"].jobs[0].header()
    assert {key for key in one if one[key] != other[key]} == {"view"}


@pytest.mark.parametrize("name", ["tiny", "other"])
def test_a_real_attack_keeps_every_rule(experiment, name):
    _, made = experiment
    table = measured(made[name]["statistics"])
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
    assert len(table.filter(metric="transfer_accuracy")) == 1
    assert len(table) <= 60


def test_margins_fall_with_steps_and_size(experiment):
    _, made = experiment
    attacks = made["tiny"]["attacks"]
    margin = attacks.stack(attacks.slide_ids, "margin")
    at = {v: i for i, v in enumerate((*P.noises, *P.white_box))}
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
    table = measured(made["stain"]["statistics"], STAIN)
    row = pick(table, DROP)
    assert row["verdict"] == "not_applicable"
    assert "no gradient" in row["reason"]
    assert row["threshold"] == 0.15
    assert set(table["metric"]) == {
        "accuracy",
        "embedding_cosine",
        "ssim",
        "transfer_accuracy",
        "transfer_cosine",
        DROP,
    }
    assert len(table.filter(pl.col("metric") == "transfer_accuracy")) == 2


def sums(kept: dict[str, list[int]], n: int = 40, chance: float = 0.5) -> pl.DataFrame:
    """One tile a patient; `kept` says of each attack which patients' tiles stay right."""
    rows = [
        {
            "attack": v.attack,
            "epsilon": v.epsilon,
            "made_against": None,
            "patient_id": f"p{i:02d}",
            "n_tiles": 1,
            "n_correct": int(i in kept.get(v.attack, kept["none"])),
            "n_correct_unrounded": int(i in kept["none"]) if v.attack == "none" else None,
            "cosine_sum": 0.9,
            "ssim_sum": 0.98,
            "cosine_between_sum": 0.3,
            "chance": chance,
        }
        for v in (*P.noises, *P.white_box)
        for i in range(n)
    ]
    return pl.DataFrame(rows, schema=ADVERSARIAL_SCHEMA)


def drop(statistics: pl.DataFrame, entry=TINY, p=P) -> dict:
    return pick(measured(statistics, entry, p), DROP)


ALL, NONE = list(range(40)), []
BROKEN = {"fgsm": NONE, "pgd-2": NONE, "pgd-5": NONE}


def test_the_published_attack_is_read_on_images_that_are_not_rounded(experiment):
    pool, made = experiment
    statistics = made["tiny"]["statistics"]
    rows = statistics.filter(attack="published")
    assert rows["n_tiles"].sum() == pool["attacked"].sum()
    assert rows["n_correct"].null_count() == rows.height
    clean = statistics.filter(attack="none")
    lost = clean["n_correct_unrounded"].sum() - rows["n_correct_unrounded"].sum()
    assert lost >= 0
    assert made["stain"]["statistics"].filter(attack="published").is_empty()


def test_the_published_drop_is_the_share_that_is_lost():
    of = sums({"none": ALL})
    attacked = of.filter(attack="none").with_columns(
        attack=pl.lit("published"),
        n_correct=pl.lit(None, pl.Int64),
        n_correct_unrounded=(pl.col("patient_id") < "p10").cast(pl.Int64),
    )
    row = pick(measured(pl.concat([of, attacked])), "published_drop")
    assert row["value"] == pytest.approx(30 / 40)
    assert json.loads(row["setting"]) == {"epsilon_of_1": 0.0015, "step_of_1": 0.001, "steps": 5}
    without = measured(of, p=parameters_with(published=None))
    assert without.filter(metric="published_drop").is_empty()


def test_the_drop_is_counted_beyond_that_of_noise():
    row = drop(sums({"none": ALL, "sign_noise": ALL[:30], **BROKEN}))
    assert row["value"] == pytest.approx(0.75)
    assert row["verdict"] == "fail"


def test_an_encoder_that_loses_nothing_passes_only_with_enough_patients():
    assert drop(sums({"none": ALL}))["verdict"] == "pass"
    few = drop(sums({"none": ALL}, n=12))
    assert few["verdict"] == "inconclusive"
    assert few["ci_high"] == pytest.approx(1 - 0.025 ** (1 / 12))


def test_a_probe_at_chance_has_nothing_to_lose():
    row = drop(sums({"none": ALL[:20], "sign_noise": ALL[:20]}))
    assert row["verdict"] == "not_applicable"
    assert "no better than chance" in row["reason"]


def test_an_attack_that_breaks_its_rules_decides_nothing():
    odd = {"none": ALL, "fgsm": NONE, "pgd-2": NONE, "pgd-5": ALL[:30]}
    row = drop(sums(odd))
    assert row["verdict"] == "inconclusive"
    assert "more_steps_never_weaker by 0.75" in row["reason"]


def test_no_tiles_is_a_reason_and_not_a_zero():
    row = drop(pl.DataFrame(schema=ADVERSARIAL_SCHEMA))
    assert row["verdict"] == "not_applicable"
    assert "two labels with at least 3 patients" in row["reason"]
    one = drop(sums({"none": ALL}, n=1))
    assert "one patient" in one["reason"]


def test_an_empty_pool_leaves_empty_tables(tmp_path):
    slides, tiles = cohort()
    pool = choose_adversarial_pool(slides.with_columns(label=pl.lit("x")), tiles, P)
    vectors = stored({s: np.zeros((5, 4)) for s in slides["slide_id"]})
    probes = fit_adversarial_probes(slides, tiles, vectors, pool, P)
    told, nothing = (SlideFiles(tmp_path), TILE, {}, TINY, RUNTIMES), Shards({})
    assert not plan_universal_perturbation(slides, pool, *told, P, name="tiny").jobs
    by_name = {"name": "tiny", "work": attack_work, "title": "attacking"}
    assert not plan_probed(slides, pool, probes, *told, nothing, P, **by_name).jobs
    assert adversarial_statistics(nothing, nothing, pool, probes, P).is_empty()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilons": [0.01, 2, 8]}, r"epsilons.0 is 0.01: .* integer"),
        ({"epsilons": [2, 200], "transfer_epsilon": 2}, r"epsilons.1 is 200: .* 127"),
        (
            {"drop_epsilon": 4},
            r"drop_epsilon is 4: give what is among adversarial.epsilons, \[2, 8\]",
        ),
        ({"transfer_epsilon": 4}, "transfer_epsilon is 4"),
        (
            {"universal": {"epsilons": [3], "tiles": 2, "steps": 1, "batch": 1}},
            "universal is .* give",
        ),
        ({"pgd_steps": []}, "pgd_steps is .* at least 1 item"),
        ({"pgd_steps": [0]}, "pgd_steps.0 is 0: .* greater than 0"),
        ({"probe": PARAMETERS["probe"] | {"folds": 1}}, "probe.folds is 1: .* equal to 2"),
    ],
)
def test_bad_parameters_are_named(change, message):
    with pytest.raises(ValueError, match=f"adversarial.{message}"):
        parameters_with(**change)


def test_statistics_are_sums_over_the_tiles_of_each_patient():
    """Two patients with two tiles each; the vectors and margins are written by hand."""
    p = parameters_with(epsilons=[2], pgd_steps=[1], universal=None, transfer_epsilon=2)
    pool = pl.DataFrame(
        {
            "tile_id": list("abcd"),
            "slide_id": list("ssuu"),
            "patient_id": list("ppqq"),
            "label": list("xxyy"),
            "fold": [0, 0, 1, 1],
            "attacked": True,
        }
    )
    probes = pl.DataFrame({"fold": [0, 0, 1, 1], "label": list("xyxy")})
    vectors = np.tile([1.0, 0.0], (2, 5, 1))
    vectors[1, 4] = [0.0, 3.0]  # PGD turns the second tile's vector by a right angle
    margin = np.array([[1, 1, 1, 1, -1], [1, 1, 1, -1, 0]])
    own = {"embedding": vectors, "margin": margin, "ssim": np.full((2, 5), 0.5)}
    own["margin_unrounded"] = np.array([[1, -1], [1, 1]])
    shown = {"margin": np.array([[1.0], [np.nan]]), "cosine": np.array([[0.5], [np.nan]])}
    turned = own | {"embedding": 2 * vectors[..., ::-1]}  # unrelated to the other patient's
    attacks, transfer = Shards({"s": own, "u": turned}), Shards({"s": shown, "u": shown})
    found = adversarial_statistics(attacks, transfer, pool, probes, p, sources=["other"])
    assert dict(found.schema) == ADVERSARIAL_SCHEMA
    own_rows = found.filter(pl.col("made_against").is_null(), patient_id="p")
    attacked = own_rows.filter(attack="pgd-1").row(0, named=True)
    assert (attacked["n_tiles"], attacked["n_correct"], attacked["n_correct_unrounded"]) == (
        2,
        0,
        1,
    )
    assert (attacked["cosine_sum"], attacked["ssim_sum"]) == (1.0, 1.0)
    clean = own_rows.filter(attack="none").row(0, named=True)
    assert (clean["n_correct"], clean["cosine_sum"], clean["cosine_between_sum"]) == (2, 2.0, 0.0)
    assert own_rows.filter(attack="fgsm")["n_correct_unrounded"].to_list() == [None]
    other = found.filter(made_against="other", patient_id="q").row(0, named=True)
    assert (other["n_tiles"], other["n_correct"], other["cosine_sum"]) == (1, 1, 0.5)
    assert found["chance"].unique().to_list() == [0.5]


def test_one_lost_patient_of_24_never_makes_a_pass_easier():
    clean = {"none": ALL[:24], "pgd-2": ALL[:24], "pgd-5": ALL[:24]}
    none = drop(sums(clean, n=24))
    one = drop(sums(clean | {"pgd-5": ALL[1:24]}, n=24))
    assert (none["verdict"], one["verdict"]) == ("pass", "inconclusive")
    assert one["ci_high"] > none["ci_high"] == pytest.approx(1 - 0.025 ** (1 / 24))


def test_a_harmonised_variant_says_why_it_is_not_attacked():
    entry = {"model": "harmonised:tiny", "mitigation": "centring"}
    row = measured(no_adversarial_statistics(P), entry).row(0, named=True)
    assert (row["verdict"], row["value"]) == ("not_applicable", None)
    assert row["threshold"] is not None
    assert "where adversarial.harmonised is true" in row["reason"]


def test_a_variant_with_changed_pixels_has_a_reason_of_its_own():
    table = sums({"none": ALL}).filter(~pl.col("attack").str.contains("pgd|fgsm|universal"))
    entry = {"model": "timm:resnet18", "mitigation": "macenko"}
    reason = drop(table, entry)["reason"]
    assert "macenko, has no gradient" in reason
    assert "no neural network" not in reason


def test_an_onnx_file_says_that_it_has_no_gradient():
    table = sums({"none": ALL}).filter(~pl.col("attack").str.contains("pgd|fgsm|universal"))
    row = drop(table, {"model": "onnx:own.onnx"})
    assert row["verdict"] == "not_applicable"
    assert "ONNX file, which onnxruntime runs without gradients" in row["reason"]
