"""Runtimes: the same vectors whoever computes them, told apart by the fingerprint."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.encoders import EncoderSpec, embed_batches, load_encoder, stream
from pathfm_kedro.encoders import runtimes as runtimes_module
from pathfm_kedro.encoders.controls import CONTROLS
from pathfm_kedro.encoders.entry_checks import RUNTIMES
from pathfm_kedro.encoders.runtimes import (
    CUDA_BATCHES,
    ExportError,
    cuda_batch,
    onnx_session,
    place,
)
from pathfm_kedro.encoders.stream import one_ahead
from pathfm_kedro.encoders.torch_encoder import load_torch_encoder
from pathfm_kedro.encoders.trial import synthetic_tiles
from tests.conftest import base_parameters

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = ("test_resnet", "test_efficientnet", "test_vit")


def small(model: str = "test_resnet", **changes) -> EncoderSpec:
    """A network of some thousand weights, drawn from a seed."""
    told = {"model": f"timm:{model}", "pretrained": False, "seed": 0, "input_pixels": 160} | changes
    return EncoderSpec.from_parameters("small", told)


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return synthetic_tiles(9, 160)


@pytest.mark.parametrize("model", MODELS)
def test_every_runtime_gives_what_a_plain_forward_pass_gives(model, tiles):
    network = load_torch_encoder(small(model, runtime="eager"))
    with torch.inference_mode():
        expected = network.model(network.prepare(tiles).contiguous()).numpy()
    scale = np.abs(expected).max()
    for runtime in RUNTIMES:
        vectors = load_torch_encoder(small(model, runtime=runtime)).embed(tiles)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=1e-5 * scale)


@pytest.mark.parametrize("pooling", ["class_token", "patch_mean", "class_token_and_patch_mean"])
def test_pooling_is_part_of_the_export(pooling, tiles):
    eager, exported = (
        load_torch_encoder(small("test_vit", pooling=pooling, runtime=runtime)).embed(tiles)
        for runtime in ("eager", "onnxruntime")
    )
    np.testing.assert_allclose(exported, eager, atol=1e-4)


def test_position_embeddings_that_are_resized_at_every_pass_are_exported(tiles):
    """ONNX has no such resize; many pathology encoders are built that way."""
    told = {"input_pixels": 96, "model_kwargs": {"dynamic_img_size": True}}
    eager, exported = (
        load_torch_encoder(small("test_vit", runtime=runtime, **told)).embed(tiles)
        for runtime in ("eager", "onnxruntime")
    )
    np.testing.assert_allclose(exported, eager, atol=1e-4)


def test_onnxruntime_gives_a_tile_the_same_bytes_in_any_company(tiles):
    by_size = [
        load_torch_encoder(small(runtime="onnxruntime", batch_size=size)).embed(tiles)
        for size in (1, 2, 8)
    ]
    np.testing.assert_array_equal(by_size[0], by_size[1])
    np.testing.assert_array_equal(by_size[0], by_size[2])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_share_an_encoder_and_change_nothing(runtime, tiles):
    encoder = load_torch_encoder(small(runtime=runtime))
    alone = encoder.embed(tiles)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(encoder.embed, [tiles] * 8))
    for vectors in together:
        np.testing.assert_array_equal(vectors, alone)


def test_the_fingerprint_knows_runtime_and_precision_and_not_the_batch():
    told = [{"runtime": runtime} for runtime in RUNTIMES]
    told += [{"runtime": "eager", "precision": "bfloat16"}, {"runtime": "eager", "batch_size": 3}]
    prints = [load_torch_encoder(small(**each)).fingerprint for each in told]
    assert len(set(prints[:4])) == 4
    assert prints[4] == prints[0]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_gives_float32_vectors_that_are_nearly_the_same(precision, tiles):
    full = load_torch_encoder(small(runtime="eager")).embed(tiles)
    reduced = load_torch_encoder(small(runtime="eager", precision=precision)).embed(tiles)
    assert reduced.dtype == np.float32
    assert not np.array_equal(full, reduced)
    cosines = (
        (full * reduced).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(reduced, axis=1)
    )
    assert cosines.min() > 0.99


class Spectrum(torch.nn.Module):
    """What ONNX has no operation for."""

    def forward(self, batch):
        return torch.linalg.svdvals(batch.mean(dim=1))


def test_a_network_that_cannot_be_exported_is_named_without_printing_it(capfd):
    with pytest.raises(ExportError, match="svd"):
        onnx_session(Spectrum(), "default", 8)
    assert capfd.readouterr().out == ""


def test_onnxruntime_asked_for_in_vain_says_what_to_give(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such operation\nand a long graph")

    monkeypatch.setattr(runtimes_module, "_exported", refuse)
    with pytest.raises(
        ValueError, match=r"encoders\.small\.runtime .*no such operation\): give auto"
    ):
        load_torch_encoder(small(runtime="onnxruntime"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"runtime": "tensorrt"}, r"m\.runtime is 'tensorrt': give one of auto, eager"),
        ({"precision": "int8"}, r"m\.precision is 'int8': give one of auto, float32"),
        ({"device": "tpu"}, r"m\.device is 'tpu': give one of auto, cpu, cuda"),
        ({"batch_size": "many"}, r"m\.batch_size is 'many': give a number from 1, or 'auto'"),
        ({"batch_size": True}, r"m\.batch_size is True"),
        ({"runtime": "onnxruntime", "precision": "float16"}, r"m\.precision is 'float16'.*float32"),
        ({"runtime": "onnxruntime", "device": "cuda"}, r"m\.device is 'cuda'.*cpu or auto"),
        ({"model": "control:stain_statistics", "runtime": "eager"}, r"m\.runtime .* is no network"),
    ],
)
def test_a_runtime_that_cannot_be_names_the_key_and_the_mend(entry, message):
    with pytest.raises(ValueError, match=message):
        EncoderSpec.from_parameters("m", {"model": "timm:resnet18"} | entry)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"small\.device is 'cuda', and PyTorch finds no GPU"):
        place(small(device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_gives_what_the_cpu_gives(precision, tiles):
    here = load_torch_encoder(small(runtime="eager", device="cpu")).embed(tiles)
    encoder = load_torch_encoder(small(runtime="channels_last", device="cuda", precision=precision))
    assert encoder.batch_size >= 8
    there = embed_batches(encoder, [(tiles[:4], None), (tiles[4:], None)])
    bound = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}[precision]
    np.testing.assert_allclose(there, here, atol=bound * np.abs(here).max())


def test_batches_of_a_gpu_are_filled_up_and_computed_by_threads_of_its_own(tiles):
    """The CPU stands for a GPU: its threads alone are played."""
    here = load_torch_encoder(small(runtime="eager", device="cpu"))
    threads, sizes, full = set(), set(), threading.Barrier(CUDA_BATCHES, timeout=30)

    def run(batch):
        threads.add(threading.get_ident())
        sizes.add(len(batch))
        full.wait()
        return here.run(batch)

    with ThreadPoolExecutor(CUDA_BATCHES) as gpu, ThreadPoolExecutor(3 * CUDA_BATCHES) as pool:
        there = replace(here, run=run, gpu=gpu)
        found = list(pool.map(there.forward, [torch.from_numpy(tiles)] * 3 * CUDA_BATCHES))
        with pytest.raises(ZeroDivisionError):
            replace(there, run=lambda _: 1 / 0).forward(torch.from_numpy(tiles))
    assert len(threads) == CUDA_BATCHES
    assert sizes == {2 * here.batch_size}
    assert all(np.array_equal(vectors, here.embed(tiles)) for vectors in found)


@given(weights=st.integers(1, 10_000), free=st.integers(1, 10**7))
def test_a_gpu_s_batches_stay_within_half_of_the_free_memory(weights, free):
    size = cuda_batch(lambda tiles: tiles * weights, free)
    at_work = CUDA_BATCHES * size * weights
    assert size == 8 or at_work <= free / 2
    assert size == 512 or 2 * at_work > free / 2


def test_the_baseline_is_not_chosen_by_a_machine_s_speed():
    """The record of the phantom's encoder must be the same wherever `dvc repro` runs."""
    entry = base_parameters()["encoders"]
    spec = EncoderSpec.from_parameters("lite0", entry["efficientnet_lite0"])
    assert place(spec) == ("onnxruntime", "cpu", "float32")


@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_says_how_many_tiles_it_takes_at_a_time(control):
    assert load_encoder(EncoderSpec("c", f"control:{control}")).batch_size >= 1


def test_batches_give_what_one_call_gives(tiles):
    for spec in (small(runtime="eager"), EncoderSpec("stain", "control:stain_statistics")):
        encoder = load_encoder(spec)
        batches = ((tiles[start : start + 4], None) for start in range(0, len(tiles), 4))
        np.testing.assert_array_equal(embed_batches(encoder, batches), encoder.embed(tiles))


@pytest.mark.parametrize("cores", [1, 2])
def test_tiles_are_read_in_another_thread_where_a_core_is_free_for_it(monkeypatch, tiles, cores):
    monkeypatch.setattr(stream, "available_cores", lambda: cores)
    readers = []

    def batches():
        for tile in tiles:
            readers.append(threading.get_ident())
            yield tile[None], None

    encoder = load_encoder(EncoderSpec("stain", "control:stain_statistics"))
    np.testing.assert_array_equal(embed_batches(encoder, batches()), encoder.embed(tiles))
    assert {reader == threading.get_ident() for reader in readers} == {cores == 1}


def test_the_next_item_is_made_while_this_one_is_used():
    made_second = threading.Event()

    def items():
        yield 1
        made_second.set()
        yield 2

    ahead = one_ahead(items())
    assert next(ahead) == 1
    assert made_second.wait(10)
    assert list(ahead) == [2]


def test_items_are_made_one_ahead_and_no_more():
    made = []

    def items():
        for i in range(5):
            made.append(i)
            yield i

    ahead = one_ahead(items())
    next(ahead)
    time.sleep(0.05)
    assert made == [0, 1]


def test_what_goes_wrong_in_making_an_item_is_raised_where_it_is_used():
    def items():
        yield 1
        raise OSError("tile is torn")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="torn"):
        next(ahead)
