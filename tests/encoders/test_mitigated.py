"""Variants of encoders: what is done to pixels first, and what that leaves of colour and of turns."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.controls import StainStatistics, TileCorner
from pathfm_kedro.encoders.mitigated import MITIGATIONS, MitigatedEncoder, normalised
from pathfm_kedro.engine import versions


def stained(haematoxylin, eosin, scale=1.0, seed=0) -> np.ndarray:
    """A tile [64, 64, 3] of two stains with the given vectors; the amounts follow from the seed."""
    random = np.random.default_rng(seed)
    amounts = random.gamma(2.0, 0.4, (64 * 64, 2)) * scale
    density = amounts @ np.array([haematoxylin, eosin])
    return np.clip(240 * np.exp(-density), 0, 255).astype(np.uint8).reshape(64, 64, 3)


A = ([0.65, 0.70, 0.29], [0.07, 0.99, 0.11])
B = ([0.55, 0.75, 0.37], [0.20, 0.93, 0.31])


def test_a_quarter_turn_does_not_change_an_average_over_turns():
    tiles = np.stack([stained(*A, seed=seed) for seed in range(3)])
    turned = np.ascontiguousarray(np.rot90(tiles, axes=(1, 2)))
    averaged = MitigatedEncoder(TileCorner(), "rotation_average")
    np.testing.assert_allclose(averaged.embed(tiles), averaged.embed(turned), atol=1e-6)
    assert not np.allclose(TileCorner().embed(tiles), TileCorner().embed(turned), atol=0.1)


def test_stain_normalisation_brings_two_stainings_together():
    encoder = MitigatedEncoder(StainStatistics(), "stain_normalisation")
    tiles = [np.stack([stained(*stain, seed=7)]) for stain in (A, B)]
    before = np.abs(StainStatistics().embed(tiles[0]) - StainStatistics().embed(tiles[1])).max()
    after = np.abs(encoder.embed(tiles[0]) - encoder.embed(tiles[1])).max()
    assert after < before / 3


def test_glass_stays_glass():
    glass = np.full((64, 64, 3), 250, np.uint8)
    np.testing.assert_array_equal(normalised(glass), glass)


def test_a_variant_has_a_fingerprint_and_a_preprocessing_of_its_own():
    specs = [
        EncoderSpec("a", "control:tile_corner"),
        EncoderSpec("b", "control:tile_corner", mitigation="rotation_average"),
        EncoderSpec("c", "control:tile_corner", mitigation="stain_normalisation"),
    ]
    encoders = [load_encoder(spec) for spec in specs]
    assert len({encoder.fingerprint for encoder in encoders}) == 3
    assert encoders[1].preprocessing["mitigation"] == "rotation_average"


@pytest.mark.parametrize(
    ("model", "mitigation", "told"),
    [
        ("timm:resnet18", "combat", "stain_normalisation, rotation_average"),
        ("harmonised:uni", None, "centring, whitening, combat"),
        ("harmonised:uni", "rotation_average", "centring, whitening, combat"),
        ("harmonised:", "combat", "name the encoder"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(model, mitigation, told):
    with pytest.raises(ValueError, match=told):
        EncoderSpec("x", model, mitigation=mitigation)


def test_a_harmonised_encoder_has_no_pixels():
    with pytest.raises(ValueError, match="no pixels of its own"):
        load_encoder(EncoderSpec("x", "harmonised:uni", mitigation="combat"))


def test_the_stain_normaliser_s_version_is_part_of_the_fingerprint_and_of_no_other(monkeypatch):
    base = load_encoder(EncoderSpec("stain", "control:stain_statistics"))
    variants = {m: MitigatedEncoder(base, m) for m in MITIGATIONS}
    before, real = {m: v.fingerprint for m, v in variants.items()}, versions.version
    monkeypatch.setattr(versions, "version", lambda p: "9" if p == "torchstain" else real(p))
    changed = {m for m, v in variants.items() if v.fingerprint != before[m]}
    assert changed == {"stain_normalisation"}
