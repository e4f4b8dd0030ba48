"""Harmonised variants under attack: through the other encoder's network as through one of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.attacks import to_images
from pathfm_kedro.encoders.gradients import differentiable
from pathfm_kedro.encoders.harmonised import center_maps, plan_harmonised
from pathfm_kedro.engine import ShardPlan
from pathfm_kedro.pipelines.robustness.adversarial_pool import Adversarial, Variant, probe_of_fold
from pathfm_kedro.pipelines.robustness.adversarial_views import AttackTiles
from pathfm_kedro.pipelines.robustness.attacks.pipeline import (
    adversarial_pipeline,
    attacked_encoders,
)
from pathfm_kedro.pipelines.robustness.probed_tiles import ProbedTiles, probed_tiles
from pathfm_kedro.slides.fields import slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.harmonisation import AffineMap, fit_maps
from pathfm_kedro.statistics.linear_classifier import LinearClassifier
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.wiring import TileGrids
from tests.conftest import write_tiff
from tests.pipelines.robustness.phantom_views import Shards, pick

SIDE, D = 12, 5
PARAMETERS = {
    "epsilons": [2, 8],
    "pgd_steps": [3],
    "transfer_epsilon": 8,
    "drop_epsilon": 2,
    "max_tiles": 12,
    "probe_tiles_per_slide": 4,
    "probe": {"folds": 3, "C": 0.1, "max_iter": 200},
    "criteria": [{"metric": "accuracy_drop_beyond_noise", "at": {"epsilon": 2}, "below": 0.15}],
    "draws": 100,
    "seed": 0,
}
P = read_parameters(Adversarial, "adversarial", PARAMETERS)
NO_UNIVERSAL = np.zeros((0, SIDE, SIDE, 3), np.int8)


@dataclass
class Network:
    """An encoder that PyTorch runs."""

    model: torch.nn.Module
    pooling: str = "default"

    @property
    def preprocessing(self):
        return {"input_pixels": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3}

    def embed(self, tiles, truth=None):
        with torch.no_grad():
            return differentiable(self).embed(to_images(tiles)).numpy()


class Mapped(torch.nn.Module):
    """A network with a map behind it."""

    def __init__(self, network: torch.nn.Module, center_map: AffineMap):
        super().__init__()
        d = len(center_map.mean)
        matrix = np.diag(center_map.scale)
        matrix = matrix + center_map.basis.T @ np.diag(center_map.gains) @ center_map.basis
        self.network, self.linear = network, torch.nn.Linear(d, d)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor(matrix))
            self.linear.bias.copy_(torch.tensor(center_map.offset - matrix @ center_map.mean))

    def forward(self, images):
        return self.linear(self.network(images))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    linear = torch.nn.Linear(3 * SIDE * SIDE, D)
    return torch.nn.Sequential(torch.nn.Flatten(), linear).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def probe() -> LinearClassifier:
    random = np.random.default_rng(1)
    return LinearClassifier(("x", "y", "z"), random.normal(size=(3, D)), random.normal(size=3))


def map_of(method: str) -> AffineMap:
    random = np.random.default_rng(2)
    parts = [
        (c, random.normal(i, 1 + i, (40, D)) @ random.normal(size=(D, D)))
        for i, c in enumerate("AB")
    ]
    return fit_maps(iter(parts), method)["B"]


def tiles(n: int) -> np.ndarray:
    return np.random.default_rng(3).integers(60, 200, (n, SIDE, SIDE, 3), dtype=np.uint8)


def attacked(encoder, probed: ProbedTiles, n: int = 3):
    names = [f"t{i}" for i in range(n)]
    return AttackTiles(probed, NO_UNIVERSAL, P).compute(encoder, tiles(n), None, names)


@pytest.mark.parametrize("method", ["centring", "whitening", "combat"])
def test_an_attack_through_the_map_is_that_on_a_network_with_the_map_in_it(network, probe, method):
    center_map, targets = map_of(method), {"t0": 0, "t1": 1, "t2": 2}
    through = attacked(Network(network), ProbedTiles(probe, targets, center_map))
    inside = attacked(Network(Mapped(network, center_map).eval()), ProbedTiles(probe, targets))
    for name in ("attacked", "change"):
        np.testing.assert_array_equal(through[name], inside[name])
    for name in ("embedding", "margin", "margin_unrounded", "ssim"):
        np.testing.assert_allclose(through[name], inside[name], rtol=1e-4, atol=1e-4)


def test_one_step_costs_epsilon_times_the_one_norm_of_the_mapped_slope(network, probe):
    """Of two classes FGSM is optimal on a linear encoder, whatever the map."""
    two = LinearClassifier(probe.labels[:2], probe.weight[:2], probe.bias[:2])
    center_map = map_of("whitening")
    made = attacked(
        Network(network), ProbedTiles(two, dict.fromkeys(["t0", "t1", "t2"], 0), center_map)
    )
    matrix = np.diag(center_map.scale)
    matrix += center_map.basis.T @ np.diag(center_map.gains) @ center_map.basis
    slope = (two.weight[0] - two.weight[1]) @ matrix @ network[1].weight.numpy() / 0.25
    variants = [*P.noises, *P.white_box]
    margin = {v: made["margin"][:, i] for i, v in enumerate(variants)}
    lost = margin[Variant("none", 0)] - margin[Variant("fgsm", 8)]
    np.testing.assert_allclose(lost, 8 / 255 * np.abs(slope).sum(), rtol=1e-4)


def cohort() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Twelve slides of four tiles; labels take turns, centers in pairs."""
    names = [f"s{i:02d}" for i in range(12)]
    slides = pl.DataFrame(
        {"slide_id": names, "patient_id": [f"p{name}" for name in names], "organ": "o",
         "path": [f"{name}.tiff" for name in names], "label": ["xy"[i % 2] for i in range(12)],
         "center": ["AABB"[i % 4] for i in range(12)], "mpp": 0.5, "fingerprint": names,
         "status": "usable"}
    )  # fmt: skip
    places = pl.DataFrame(
        {"x": [0, SIDE, 2 * SIDE, 3 * SIDE], "y": 0, "field_um": SIDE * 0.5, "mpp": 0.5}
    )
    of = slides.select("slide_id").join(places, how="cross")
    return slides, of.with_columns(tile_id=pl.format("{}@{}", "slide_id", "x"))


class Stored(Shards):
    """Shards that are read slide by slide too."""

    def tensor_names(self, slide_id):
        return tuple(sorted(self.shards[slide_id]))

    def load_slide(self, slide_id, name="embedding"):
        return self.shards[slide_id][name]

    def slide_header(self, slide_id):
        return {}


ENTRY = {
    "model": "timm:vit_tiny_patch16_224", "pretrained": False, "seed": 0, "input_pixels": SIDE,
    "mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2],
    "model_kwargs": {"img_size": SIDE, "patch_size": 4, "depth": 1},
}  # fmt: skip
VARIANT = {"model": "harmonised:base", "mitigation": "centring"}


def done(plan) -> Stored:
    return Stored({job.slide_id: job.compute() for job in plan.jobs})


@pytest.fixture(scope="module")
def audit(tmp_path_factory) -> dict:
    """Datasets of a small network on drawn stripes and its variant, made by the pipeline's nodes."""
    folder = tmp_path_factory.mktemp("slides")
    slides, tiles = cohort()
    random, stripes = np.random.default_rng(0), 30 * np.sin(np.arange(64) * np.pi / 2)
    for row in slides.iter_rows(named=True):
        pixels = random.normal(170, 8, (64, 64, 3)) - 15 * (row["center"] == "B")
        pixels += stripes[:, None, None] if row["label"] == "x" else stripes[None, :, None]
        write_tiff(folder / row["path"], pixels.clip(0, 255).astype(np.uint8))
    encoder = load_encoder(EncoderSpec.from_parameters("base", ENTRY))
    fields = slide_fields(slides, tiles, SlideFiles(folder), SIDE)
    base = Stored(
        {s["slide_id"]: {"embedding": encoder.embed(next(f.batches(9))[0])} for s, f in fields}
    )
    data = {
        "slides": slides,
        "tiles": tiles,
        "slide_files": SlideFiles(folder),
        "params:tile": {"pixels": SIDE},
        "params:engine": {"workers": 1},
        "params:encoders.base": ENTRY,
        "params:encoders.variant": VARIANT,
        "params:adversarial": PARAMETERS,
        "encoder_runtimes": {"base": {"runtime": "eager", "precision": "float32", "device": "cpu"}},
        "embeddings.base": base,
        "embeddings.variant": done(
            plan_harmonised(slides, base, base, VARIANT, {}, name="variant")
        ),
    }
    both, bases = ["base", "variant"], {"variant": "base"}
    for node in adversarial_pipeline(both, both, [], bases).nodes:
        found = node.func(*(data[name] for name in node.inputs))
        made = dict(zip(node.outputs, found if len(node.outputs) > 1 else [found], strict=True))
        data |= {k: done(v) if isinstance(v, ShardPlan) else v for k, v in made.items()}
    return data


def test_what_is_read_of_clean_tiles_is_the_variants_own(audit):
    pool, probes = audit["adversarial_pool"], audit["probes.adversarial.variant"]
    attacks = audit["views.adversarial.variant"]
    assert set(attacks.slide_ids) == set(pool.filter("attacked")["slide_id"])
    for slide in attacks.slide_ids:
        rows = pool.filter("attacked", slide_id=slide)
        places = [int(tile.split("@")[1]) // SIDE for tile in rows["tile_id"]]
        vectors = audit["embeddings.variant"].load_slide(slide)[places]
        np.testing.assert_allclose(attacks.load_slide(slide)[:, 0], vectors, atol=1e-5)
        probe = probe_of_fold(probes, rows["fold"][0])
        targets = np.array([probe.labels.index(label) for label in rows["label"]])
        margins = probe.margins(vectors, targets)
        np.testing.assert_allclose(attacks.load_slide(slide, "margin")[:, 0], margins, atol=1e-4)


def test_the_drop_of_a_variant_is_measured_and_its_attack_is_sound(audit):
    table = audit["measurements.robustness.adversarial.variant"]
    drop = pick(table, "accuracy_drop_beyond_noise")
    assert drop["value"] is not None
    assert drop["threshold"] == 0.15
    assert set(table.filter(metric="attack_check")["value"]) == {0.0}
    assert pick(table, "accuracy", attack="none")["value"] > 0.8
    # It is shown what was made against its encoder, and shows that one nothing.
    shown = audit["measurements.robustness.adversarial"].filter(metric="transfer_accuracy")
    assert shown["encoder"].to_list() == ["variant"]


def test_a_variant_is_left_out_where_the_parameters_say_so():
    both, bases = ["base", "variant"], {"variant": "base"}
    of = {"adversarial": {"harmonised": False}}
    assert attacked_encoders(both, bases, {}, TileGrids()) == both
    assert attacked_encoders(both, bases, of, TileGrids()) == ["base"]
    left = adversarial_pipeline(both, ["base"], [], bases)
    own = [node for node in left.nodes if "variant" in node.name]
    called = {node.short_name.split(".")[-1] for node in own}
    assert called == {"probes", "statistics", "measurements"}
    (probes,) = [node for node in own if node.short_name.endswith("probes")]
    assert probes.inputs == ["params:adversarial"]


def test_a_shard_knows_the_map_and_a_slide_without_one_is_left_out(audit):
    pool, probes = audit["adversarial_pool"], audit["probes.adversarial.variant"]
    slide = pool.filter("attacked")["slide_id"][0]
    rows = pool.filter("attacked", slide_id=slide)
    by_method = [
        center_maps(audit["slides"], audit["embeddings.base"], method)
        for method in ("centring", "whitening")
    ]
    mapped = [probed_tiles(rows, probes, maps).describe() for maps in (None, *by_method)]
    assert mapped[0] == mapped[1][:2] == mapped[2][:2]
    assert mapped[1] != mapped[2]
    assert probed_tiles(rows, probes, {}) is None
