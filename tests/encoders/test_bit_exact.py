"""On a CPU a tile's vector is the same bytes whatever is beside it and however many work."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.runtimes import CPU_BATCH
from pathfm_kedro.encoders.torch_encoder import load_torch_encoder
from pathfm_kedro.encoders.trial import synthetic_tiles

SIDE = 64


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return synthetic_tiles(2 * CPU_BATCH + 1, SIDE)


def timm_network(name, **kwargs):
    drawn = {"model": f"timm:{name}", "pretrained": False, "seed": 0, "input_pixels": SIDE}
    return lambda folder: drawn | kwargs


def of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=16
    )
    torch.manual_seed(0)
    transformers.Dinov2Model(config).save_pretrained(folder)
    stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": SIDE}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return {"model": f"transformers:{folder}"}


NETWORKS = {
    "convolutions": timm_network("test_efficientnet"),
    "transformer": timm_network("test_vit", model_kwargs={"img_size": SIDE}),
    "tokens": timm_network(
        "test_vit", model_kwargs={"img_size": SIDE}, pooling="class_token_and_patch_mean"
    ),
    "transformers": of_transformers,
}


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in NETWORKS.items()}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("runtime", ["eager", "channels_last", "onnxruntime"])
@pytest.mark.parametrize("network", NETWORKS)
def test_vectors_do_not_depend_on_batch_threads_or_workers(entries, tiles, network, runtime):
    spec = EncoderSpec.from_parameters("e", entries[network] | {"runtime": runtime})
    try:
        encoder = load_torch_encoder(spec)
    except ValueError as error:
        if "cannot have this model" not in str(error):
            raise
        pytest.skip("onnxruntime cannot have it, and the trial refuses it")
    whole = encoder.embed(tiles)
    for size in (1, 3, CPU_BATCH):
        parts = [encoder.embed(tiles[start : start + size]) for start in range(0, len(tiles), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole, f"in batches of {size}")
    order = np.random.default_rng(0).permutation(len(tiles))
    np.testing.assert_array_equal(encoder.embed(tiles[order]), whole[order], "in another order")
    if runtime == "onnxruntime":  # PyTorch's workers have one thread each; a session always has one
        torch.set_num_threads(2)
        np.testing.assert_array_equal(encoder.embed(tiles), whole, "with two threads")
        torch.set_num_threads(1)
    with ThreadPoolExecutor(3) as workers:
        for vectors in workers.map(encoder.embed, [tiles] * 3):
            np.testing.assert_array_equal(vectors, whole, "by three workers")
