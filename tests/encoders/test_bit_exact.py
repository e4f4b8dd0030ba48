"""On a CPU a tile's vector is the same bytes whatever is beside it and however many work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.runtimes import CPU_BATCH
from pathfm_kedro.encoders.torch_encoder import load_torch_encoder
from pathfm_kedro.encoders.trial import synthetic_tiles

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return synthetic_tiles(2 * CPU_BATCH + 1, SIDE)


def timm_network(name, **kwargs):
    drawn = {"model": f"timm:{name}", "pretrained": False, "seed": 0, "input_pixels": SIDE}
    return lambda folder, save_dinov2: drawn | kwargs


NETWORKS = {
    "convolutions": timm_network("test_efficientnet"),
    "transformer": timm_network("test_vit", model_kwargs={"img_size": SIDE}),
    "tokens": timm_network(
        "test_vit", model_kwargs={"img_size": SIDE}, pooling="class_token_and_patch_mean"
    ),
    "transformers": lambda folder, save_dinov2: save_dinov2(folder, SIDE),
}


@pytest.fixture(scope="module")
def entries(tmp_path_factory, save_dinov2):
    return {
        name: make(tmp_path_factory.mktemp(name), save_dinov2) for name, make in NETWORKS.items()
    }


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
