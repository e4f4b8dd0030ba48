"""The trial of runtimes: what it measures, what it chooses, what it refuses."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.encoders import EncoderSpec, RuntimeTrial, load_encoder
from pathfm_kedro.encoders import runtimes as runtimes_module
from pathfm_kedro.encoders import trial as trial_module
from pathfm_kedro.encoders.trial import (
    TOLERANCE,
    Agreement,
    agreement,
    fastest,
    synthetic_tiles,
    try_runtimes,
)

SMALL = EncoderSpec("small", "timm:test_resnet", pretrained=False, seed=0, input_pixels=96)


@pytest.fixture
def quick(monkeypatch):
    """Turns of a trial that are over at once."""
    monkeypatch.setattr(trial_module, "_SECONDS_A_TURN", 0.0)


def test_auto_takes_the_fastest_and_says_how_fast_all_were(quick):
    record = try_runtimes(SMALL)
    assert set(record.tiles_per_second) == {"eager", "channels_last", "onnxruntime"}
    assert record.runtime == fastest(record.tiles_per_second)
    assert (record.precision, record.device) in {("float32", "cpu"), ("bfloat16", "cuda")}
    assert "processor" in record.key


@pytest.mark.parametrize("runtime", ["eager", "channels_last", "onnxruntime"])
def test_a_runtime_that_is_given_is_checked_and_not_timed(runtime):
    def clock():
        raise AssertionError("timed")

    spec = replace(SMALL, runtime=runtime, device="cpu")
    first, second = (try_runtimes(spec, clock).to_dict() for _ in range(2))
    assert first["agreement"] == {"cosine": 1.0, "difference": 0.0001}
    assert first["tiles_per_second"] == {}
    assert "processor" not in first["key"]
    assert json.dumps(first) == json.dumps(second)


def test_what_disagrees_is_refused_with_the_measured_figure(monkeypatch):
    monkeypatch.setitem(trial_module.TOLERANCE, "bfloat16", Agreement(0.9999999, 0.0001))
    spec = replace(SMALL, runtime="eager", precision="bfloat16", device="cpu")
    with pytest.raises(
        ValueError, match=r"encoders\.small cannot .*eager, bfloat16 moves tiles by 0"
    ):
        try_runtimes(spec)


def test_a_precision_that_is_not_given_falls_back_to_float32(monkeypatch, quick):
    monkeypatch.setattr(trial_module, "place", lambda _: ("channels_last", "cpu", "bfloat16"))
    monkeypatch.setitem(trial_module.TOLERANCE, "bfloat16", Agreement(0.9999999, 0.0001))
    record = try_runtimes(replace(SMALL, runtime="channels_last"))
    assert record.precision == "float32"
    assert list(record.refused) == ["channels_last, bfloat16"]


def test_a_runtime_that_cannot_have_the_network_is_left_out_with_the_reason(monkeypatch, quick):
    def refuse(*_):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(runtimes_module, "_exported", refuse)
    # Weights of their own, so that no network that was exported before is taken.
    spec = replace(SMALL, device="cpu", model_kwargs={"stem_width": 24})
    record = try_runtimes(spec)
    assert set(record.tiles_per_second) == {"eager", "channels_last"}
    assert "no such operation" in record.refused["onnxruntime, float32"]
    with pytest.raises(
        ValueError, match=r"onnxruntime, float32 cannot have .*runtime and precision"
    ):
        try_runtimes(replace(spec, runtime="onnxruntime"))


def test_the_encoder_that_is_loaded_is_the_one_of_the_record(quick):
    record = try_runtimes(SMALL)
    chosen = load_encoder(SMALL.with_runtime(record.to_dict()))
    given = replace(SMALL, runtime=record.runtime, precision=record.precision, device=record.device)
    assert chosen.fingerprint == load_encoder(given).fingerprint


def test_the_key_knows_what_a_record_depends_on_and_nothing_else():
    def key(**changes):
        return RuntimeTrial(replace(SMALL, **changes)).key()

    assert key() == key(name="other", batch_size=3, role="control")
    keys = [
        key(),
        key(runtime="eager"),
        key(precision="float16"),
        key(input_pixels=64),
        key(model="timm:test_vit", input_pixels=160),
    ]
    assert len({json.dumps(k) for k in keys}) == len(keys)


def test_the_key_is_that_of_the_record(quick):
    trial = RuntimeTrial(SMALL)
    assert trial.key() == trial.record()["key"]


def test_a_control_has_no_runtime():
    trial = RuntimeTrial(EncoderSpec("stain", "control:stain_statistics"))
    record = trial.record()
    assert (record["runtime"], record["key"]) == ("none", trial.key())
    assert trial.spec.with_runtime(record) == trial.spec


@given(st.floats(1.0, 500.0), st.floats(1.0, 500.0))
def test_another_runtime_must_be_a_tenth_faster_than_channels_last(eager, channels_last):
    chosen = fastest({"eager": eager, "channels_last": channels_last})
    assert chosen == ("eager" if eager >= 1.1 * channels_last else "channels_last")


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100.0))
def test_agreement_does_not_depend_on_axes_or_scale(seed, scale):
    generator = np.random.default_rng(seed)
    reference = generator.normal(size=(8, 6)).astype(np.float32)
    vectors = reference + 0.05 * generator.normal(size=(8, 6)).astype(np.float32)
    axes = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    turned = agreement(
        (scale * vectors @ axes).astype(np.float32), (scale * reference @ axes).astype(np.float32)
    )
    found = agreement(vectors, reference)
    assert turned.cosine == pytest.approx(found.cosine, abs=2e-6)
    assert turned.difference == pytest.approx(found.difference, rel=0.5)


def test_a_mean_that_all_vectors_share_hides_nothing():
    """The cosine alone would pass vectors that are as far off as tiles are apart."""
    generator = np.random.default_rng(0)
    reference = (200 + generator.normal(size=(8, 16))).astype(np.float32)
    found = agreement(reference[::-1].copy(), reference)
    assert found.cosine > TOLERANCE["float32"].cosine
    assert not found.within(TOLERANCE["float32"])
    assert not found.within(TOLERANCE["bfloat16"])


def test_not_a_number_never_agrees():
    assert not Agreement(float("nan"), 0.0001).within(TOLERANCE["bfloat16"])
    assert not Agreement(1.0, float("nan")).within(TOLERANCE["bfloat16"])


def test_synthetic_tiles_are_pink_differ_and_are_always_the_same():
    tiles = synthetic_tiles(6, 64)
    np.testing.assert_array_equal(tiles, synthetic_tiles(6, 64))
    red, green, blue = tiles.reshape(-1, 3).mean(axis=0)
    assert min(red, blue) > green
    means = tiles.reshape(6, -1).mean(axis=1)
    assert np.ptp(means) > 10


def test_a_trial_says_what_it_tries_at_which_size_and_how_long(quick, caplog):
    caplog.set_level("INFO")
    try_runtimes(replace(SMALL, device="cpu"))
    told = [record.getMessage() for record in caplog.records]
    assert "eager, channels_last, onnxruntime is tried on 8 tiles of 96 px (cpu)" in told[0]
    assert re.search(r"encoders\.small: that takes about \d+ s", told[1])


def test_a_bar_shows_every_step(quick, monkeypatch):
    steps, totals = [], []

    @contextmanager
    def bar(title, total):
        totals.append((title, total))
        yield steps.append

    monkeypatch.setattr(trial_module, "progress", bar)
    try_runtimes(replace(SMALL, device="cpu"))
    try_runtimes(replace(SMALL, device="cpu", runtime="eager"))
    assert totals == [("runtimes of small at 96 px", 13), ("runtimes of small at 96 px", 2)]
    assert len(steps) == 15


@pytest.mark.parametrize(("tile", "warned"), [(32, True), (63, True), (64, False), (96, False)])
def test_tiles_that_are_enlarged_by_more_than_half_are_warned_of(caplog, tile, warned):
    RuntimeTrial(replace(SMALL, runtime="eager", device="cpu"), tile).key()
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == warned
    if warned:
        assert f"encoders.small: tiles of {tile} px are enlarged" in told[0]
        assert "to its input of 96 px" in told[0]


@pytest.mark.parametrize("control", ["noise", "stain_statistics"])
def test_a_control_is_neither_tried_nor_announced(monkeypatch, caplog, control):
    def asked(*_):
        raise AssertionError("announced")

    monkeypatch.setattr(trial_module, "progress", asked)
    caplog.set_level("DEBUG")
    trial = RuntimeTrial(EncoderSpec("c", f"control:{control}", role="control"), 224)
    assert trial.record()["key"] == trial.key()
    assert not caplog.records
