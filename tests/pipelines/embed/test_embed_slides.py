"""Embedding of slides: the same shards however many workers and whatever the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from kedro.io.core import Version

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset
from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.trial import synthetic_tiles
from pathfm_kedro.engine import EngineSettings, ShardPlan
from pathfm_kedro.pipelines.embed import embedding
from pathfm_kedro.pipelines.embed.card import describe_encoder
from pathfm_kedro.pipelines.embed.embedding import EmbedSlide, plan_embedding
from pathfm_kedro.pipelines.embed.runtime import choose_runtime

ENTRY = {
    "model": "timm:test_resnet",
    "pretrained": False,
    "seed": 0,
    "input_pixels": 64,
    "device": "cpu",
}
RECORD = {"runtime": "eager", "precision": "float32", "device": "cpu"}
TILE = {"pixels": 224, "mpp": 0.5}


@dataclass(frozen=True)
class Drawn:
    """Fields of a slide that is drawn and not read."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    seed: int

    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, None]]:
        tiles = synthetic_tiles(len(self.x), 64)
        tiles = np.roll(tiles, 5 * self.seed, axis=2)
        for start in range(0, len(tiles), size):
            yield tiles[start : start + size], None


def embed(folder: Path, workers: int, **changes) -> dict[str, bytes]:
    """Bytes of every shard."""
    spec = EncoderSpec.from_parameters("small", ENTRY | changes)
    jobs = [
        EmbedSlide(
            f"s{seed}",
            "slide",
            Drawn(tuple(range(5 + 2 * seed)), tuple(range(5 + 2 * seed)), seed),
            "tiles",
            spec,
            "float32",
        )
        for seed in range(4)
    ]
    load_encoder(spec)
    store = ShardedTensorDataset(filepath=(folder / "v").as_posix(), version=Version("1", "1"))
    store.save(ShardPlan(jobs, EngineSettings(workers=workers, max_failed_share=0.0)))
    return {path.name: path.read_bytes() for path in (folder / "1").rglob("*.safetensors")}


@pytest.mark.parametrize("runtime", ["channels_last", "onnxruntime"])
def test_workers_do_not_change_a_byte(tmp_path, runtime):
    one = embed(tmp_path / "one", 1, runtime=runtime)
    two = embed(tmp_path / "two", 2, runtime=runtime)
    assert len(one) == 4
    assert one == two


def test_the_batch_does_not_change_a_byte_with_onnxruntime(tmp_path):
    shards = [
        embed(tmp_path / str(size), 2, runtime="onnxruntime", batch_size=size)
        for size in (1, 8, "auto")
    ]
    assert shards[0] == shards[1] == shards[2]


def test_another_runtime_is_another_shard(tmp_path):
    """What one runtime embedded is not taken for what another would."""
    by_runtime = [embed(tmp_path / r, 1, runtime=r) for r in ("eager", "onnxruntime")]
    assert set(by_runtime[0]) == set(by_runtime[1])
    assert all(by_runtime[0][name] != by_runtime[1][name] for name in by_runtime[0])


class Embedded:
    """One embedded slide."""

    def __init__(self) -> None:
        self.slide_ids = ("s",)
        self.header = {"encoder": "abc", "preprocessing": "{}"}
        self.failures: dict[str, str] = {}

    def stack(self, slide_ids, name="embedding"):
        return np.ones((3, 4), np.float32)


def test_the_card_says_how_the_encoder_was_run():
    entry = ENTRY | {"runtime": "onnxruntime"}
    record = choose_runtime(entry, {"pixels": 64}, name="small").record()
    card = describe_encoder(entry, record, Embedded(), TILE, name="small")
    assert (card["runtime"], card["precision"], card["device"]) == ("onnxruntime", "float32", "cpu")
    assert card["agreement"] == {"cosine": 1.0, "difference": 0.0001}
    assert card["tiles_per_second"] == {}


def test_the_card_of_a_control_has_no_runtime():
    entry = {"model": "control:stain_statistics", "role": "control"}
    record = choose_runtime(entry, {"pixels": 64}, name="stain").record()
    card = describe_encoder(entry, record, Embedded(), TILE, name="stain")
    assert (card["runtime"], card["preset"]) == ("none", {})


def test_the_card_of_a_preset_says_what_may_be_done_and_what_it_was_trained_on():
    record = {"agreement": {}, "tolerance": {}, "tiles_per_second": {}} | RECORD
    card = describe_encoder({"preset": "retccl"}, record, Embedded(), TILE, name="mine")
    assert card["preset"] == {
        "name": "retccl",
        "licence": "GPL-3.0",
        "commercial": None,
        "gated": False,
        "revision": "076c6d18dd11f9ca951c6e294c31a021b42df494",
        "trained_on": {"pixels": 256, "mpp": [1.0], "stated": "authors"},
        "differs": "trained on tiles of 256 px at 1 µm per px (authors), and the cohort's are 224 px "
        "at 0.5",
    }
    as_trained = {"pixels": 256, "mpp": 1.0}
    card = describe_encoder({"preset": "retccl"}, record, Embedded(), as_trained, name="mine")
    assert card["preset"]["differs"] == ""


@dataclass
class Gives:
    """An encoder whose vectors are told in advance."""

    vectors: np.ndarray
    fingerprint: str = "abc"
    batch_size: int = 100

    @property
    def preprocessing(self) -> dict:
        return {}

    def embed(self, tiles, truth=None):
        return self.vectors


def stored(monkeypatch, vectors, dtype):
    monkeypatch.setattr(embedding, "load_encoder", lambda _: Gives(np.float32(vectors)))
    places = tuple(range(len(vectors)))
    spec = EncoderSpec.from_parameters("small", ENTRY)
    job = EmbedSlide("s7", "slide", Drawn(places, places, 0), "tiles", spec, dtype)
    return job.compute()["embedding"]


@pytest.mark.parametrize("number", [7e4, -1e30, 1e-9])
def test_vectors_that_float16_cannot_hold_are_refused_and_float32_holds_them(monkeypatch, number):
    vectors = [[1.0, 2.0], [number, 0.0], [3.0, 4.0]]
    np.testing.assert_array_equal(stored(monkeypatch, vectors, "float32"), np.float32(vectors))
    with pytest.raises(
        ValueError, match=r"encoder small on slide s7 \(1 tiles, the first at x=1"
    ) as e:
        stored(monkeypatch, vectors, "float16")
    assert "set embed.dtype to float32" in str(e.value)


def test_vectors_within_float16_are_stored_as_such(monkeypatch):
    vectors = [[65504.0, 1e-9], [0.1, -3.0]]
    half = stored(monkeypatch, vectors, "float16")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, np.float16(vectors))


@pytest.mark.parametrize("told", [None, {}, {"dtype": None}, {"dtype": "float8"}])
def test_how_vectors_are_stored_is_told(told):
    with pytest.raises(ValueError, match=r"embed\.dtype is .*: give float32 or float16"):
        plan_embedding(None, None, None, ENTRY, RECORD, {"pixels": 64}, told, {}, name="small")
