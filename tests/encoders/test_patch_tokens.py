"""Tokens of patches: what they are an average of, how they are stored, and searches that take them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import timm
import torch
from kedro.io.core import Version
from safetensors.torch import save_file

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.harmonised import HarmoniseSlide
from pathfm_kedro.encoders.patch_tokens import as_float16, averaged, token_encoder
from pathfm_kedro.encoders.trial import synthetic_tiles
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.embed.card import describe_encoder
from pathfm_kedro.pipelines.embed.embedding import EmbedSlide
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.statistics.harmonisation import AffineMap
from tests.pipelines.embed.test_embed_slides import RECORD, TILE, Drawn

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 96
TILES = synthetic_tiles(3, SIDE)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A small ViT saved locally: class token, register, 6 x 6 patches."""
    torch.manual_seed(0)
    kwargs = {"img_size": SIDE, "reg_tokens": 1}
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0, **kwargs).state_dict(), path)
    return {
        "model": "timm:test_vit",
        "checkpoint": str(path),
        "model_kwargs": kwargs,
        "device": "cpu",
        "pooling": "class_token",
    }


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory, save_dinov2):
    return save_dinov2(tmp_path_factory.mktemp("dinov2"), SIDE) | {"device": "cpu"}


def spec_of(entry, **more):
    return EncoderSpec.from_parameters("e", {**entry, **more})


def tokens_of(entry, tokens, **more):
    encoder = token_encoder(spec_of(entry, patch_tokens=tokens, **more))
    return encoder.embed_batches([(TILES[:2], None), (TILES[2:], None)])


def vectors_of(entry, **more):
    return load_encoder(spec_of(entry, **more)).embed(TILES)


@pytest.mark.parametrize("runtime", ["eager", "channels_last", "onnxruntime"])
def test_tokens_of_a_vit_average_to_its_patches_and_leave_its_vectors(vit, runtime):
    vectors, tokens = tokens_of(vit, 16, runtime=runtime)
    assert tokens.shape == (3, 16, 64)
    same = np.testing.assert_array_equal if runtime != "onnxruntime" else close
    same(vectors, vectors_of(vit, runtime=runtime))
    close(tokens.mean(axis=1), vectors_of(vit, runtime="eager", pooling="patch_mean"))


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_tokens_of_transformers_average_to_its_patches(dinov2):
    vectors, tokens = tokens_of(dinov2, 9)
    np.testing.assert_array_equal(vectors, vectors_of(dinov2))
    close(tokens.mean(axis=1), vectors_of(dinov2, pooling="patch_mean"))


def test_tokens_of_lite0_are_its_last_map():
    entry = {"model": "package:efficientnet_lite0", "device": "cpu", "input_pixels": SIDE}
    vectors, tokens = tokens_of(entry, 4)
    np.testing.assert_array_equal(vectors, vectors_of(entry))
    close(tokens.mean(axis=1), vectors)
    assert (tokens[:, 0] != tokens[:, 3]).any()


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_squares_of_a_grid_are_means_of_their_area(side):
    grid = torch.from_numpy(np.random.default_rng(side).normal(size=(2, 5, 7, 7)))
    # Each patch enlarged, so that squares end between patches.
    enlarged = grid.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    expected = torch.nn.functional.avg_pool2d(enlarged, 7).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(averaged(grid, side), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"patch_tokens": 5}, r"e\.patch_tokens is 5: give one of 1, 4, 9, 16"),
        ({"patch_tokens": 4.0}, r"e\.patch_tokens is 4\.0"),
        ({"patch_tokens": 4, "mitigation": "rotation_average"}, "gives vectors only"),
        ({"model": "control:noise"}, "gives vectors only"),
    ],
)
def test_what_cannot_have_tokens_is_refused(changes, problem):
    entry = {"model": "timm:test_vit", "patch_tokens": 4}
    with pytest.raises(ValueError, match=problem):
        spec_of(entry, **changes)


def test_more_tokens_than_patches_are_refused(vit):
    kwargs = {"img_size": 48, "reg_tokens": 1}
    entry = {k: v for k, v in vit.items() if k != "checkpoint"}
    entry |= {"pretrained": False, "seed": 0, "model_kwargs": kwargs}
    with pytest.raises(ValueError, match=r"patch_tokens is 16, and 'timm:test_vit' has 9 patches"):
        tokens_of(entry, 16)


def test_the_loss_is_that_of_the_worst_token():
    tokens = np.random.default_rng(0).normal(size=(3, 4, 7)).astype(np.float32)
    half, loss = as_float16(tokens, "e")
    exact = tokens.astype(float)
    lengths = np.sqrt((exact**2).sum(axis=2))
    moved = np.sqrt(((half.astype(float) - exact) ** 2).sum(axis=2))
    np.testing.assert_allclose(loss, (moved / lengths).max(axis=1), rtol=1e-6)
    with pytest.raises(ValueError, match="float16 cannot hold the patch tokens of e"):
        as_float16(tokens * 1e6, "e")


@pytest.fixture(scope="module")
def embedded(vit, tmp_path_factory):
    """Four slides of four patients with tokens; and what a second save makes anew."""
    folder = tmp_path_factory.mktemp("shards")
    spec = spec_of(vit, patch_tokens=4, runtime="eager")
    places = tuple(range(3))
    jobs = [
        EmbedSlide(f"s{n}", "slide", Drawn(places, places, n), "tiles", spec, "float32")
        for n in range(4)
    ]
    computed = []
    counted = [Counted(job, computed) for job in jobs]
    for version in ("1", "2"):
        store = ShardedTensorDataset(
            filepath=(folder / "e").as_posix(), version=Version(None, version)
        )
        store.save(ShardPlan(counted, EngineSettings(workers=1, max_failed_share=0.0)))
    return store.load(), computed


class Counted:
    """A job that notes when it is computed."""

    def __init__(self, job, computed):
        self.job, self.computed, self.slide_id = job, computed, job.slide_id

    def header(self):
        return self.job.header()

    def compute(self):
        self.computed.append(self.slide_id)
        return self.job.compute()


def test_tokens_stand_in_the_shard_and_are_not_computed_again(vit, embedded):
    shards, computed = embedded
    assert sorted(computed) == ["s0", "s1", "s2", "s3"]
    tokens = shards.load_slide("s1", "patch_tokens")
    assert (tokens.dtype, tokens.shape) == (np.float16, (3, 4, 64))
    assert shards.load_slide("s1").shape == (3, 64)
    loss = shards.load_slide("s1", "patch_tokens_loss")
    assert loss.shape == (3,)
    assert (loss > 0).all()
    assert (loss < 2**-11).all()
    card = describe_encoder(vit | {"patch_tokens": 4}, _RECORD, shards, TILE, name="e")
    kept = card["patch_tokens"]
    assert (kept["tokens"], kept["width"], kept["dtype"]) == (4, 64, "float16")
    assert loss.max() <= kept["loss"] < 2**-11


_RECORD = {"agreement": {}, "tolerance": {}, "tiles_per_second": {}} | RECORD


def tables():
    slides = pl.DataFrame({"slide_id": [f"s{n}" for n in range(4)]}).with_columns(
        patient_id="slide_id", center=pl.lit("c"), organ=pl.lit("o"), label=pl.lit("x")
    )
    # The middle tile of each slide stands for nothing.
    rows = [(f"s{n}", f"s{n}-{t}", t != 1) for n in range(4) for t in range(3)]
    return slides, pl.DataFrame(rows, ["slide_id", "tile_id", "in_mosaic"], orient="row")


def searched(embeddings, family):
    p = Retrieval(
        families=(family,), scopes=("across_organs",), votes=("top1",), exclude="patient", k=3,
        min_patients=2, n_permutations=10, draws=10, seed=0, criteria=(),
    )  # fmt: skip
    return search_slides(*tables(), embeddings, p)


def maxsim(q, c):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, c)]
    cosine = unit[0] @ unit[1].T
    return 1 - (cosine.max(axis=1).mean() + cosine.max(axis=0).mean()) / 2


def chamfer(q, c):
    squared = ((q[:, None] - c) ** 2).sum(axis=2)
    return (squared.min(axis=1).mean() + squared.min(axis=0).mean()) / 2


@pytest.mark.parametrize("plain", [maxsim, chamfer])
def test_a_search_by_tokens_is_that_of_plain_numpy(embedded, plain):
    shards, _ = embedded
    of = {
        s: shards.load_slide(s, "patch_tokens")[[0, 2]].reshape(8, 64).astype(float)
        for s in shards.slide_ids
    }
    found = searched(shards, f"{plain.__name__}_tokens")
    assert len(found) == 12
    for row in found.iter_rows(named=True):
        expected = plain(of[row["query_slide"]], of[row["match_slide"]])
        assert row["distance"] == pytest.approx(expected, abs=1e-6)


def test_without_tokens_a_search_by_them_says_what_it_needs(embedded):
    shards, _ = embedded
    without = replace(shards)
    for slide in shards.slide_ids:
        without._headers[slide] = {"tile_ids": "tiles"}
    found = searched(without, "maxsim_tokens")
    assert found["query_slide"].to_list() == [None]
    assert "give the encoder's entry patch_tokens" in found["reason"][0]


def test_a_harmonised_variant_has_vectors_alone(embedded):
    shards, _ = embedded
    identity = AffineMap(np.zeros(64), np.zeros(64), np.ones(64), np.zeros((0, 64)), np.zeros(0))
    job = HarmoniseSlide("s0", shards, identity, "centring", center="")
    assert set(job.compute()) == {"embedding"}
    assert "patch_tokens" not in job.header()
