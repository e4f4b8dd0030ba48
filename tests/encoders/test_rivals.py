"""Networks trained on the cohort: what trains them is never audited, and they learn what is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.batches import turned
from pathfm_kedro.encoders.rivals import (
    Training,
    left_out,
    plan_rival,
    split_patients,
    training_tiles,
    with_weights,
)
from pathfm_kedro.encoders.training import InMemory
from pathfm_kedro.statistics.cross_validation import patient_folds

ENTRY = {
    "model": "trained:small_cnn",
    "input_pixels": 32,
    "training": {"epochs": 7, "batch": 8},
}


def spec_of(**changes):
    training = ENTRY["training"] | changes.pop("training", {})
    return EncoderSpec.from_parameters("rival", ENTRY | changes | {"training": training})


def cohort(n_patients=16, slides_each=1, labels="xy"):
    rows = [
        {
            "slide_id": f"s{patient:03d}-{slide}",
            "patient_id": f"p{patient:03d}",
            "label": labels[patient % len(labels)],
            "center": "AB"[patient // 2 % 2],
            "status": "usable",
        }
        for patient in range(n_patients)
        for slide in range(slides_each)
    ]
    return pl.DataFrame(rows)


class Shards:
    """Tiles in memory: noise, in which label y is less red where it shows."""

    def __init__(self, slides, shows="label", each=6, side=32):
        self.slide_ids = tuple(slides["slide_id"].sort())
        self.made = {}
        for number, row in enumerate(slides.sort("slide_id").iter_rows(named=True)):
            rng = np.random.default_rng(number)
            tiles = rng.integers(100, 156, (each, side, side, 3))
            if row[shows] == "y":
                tiles[..., 0] -= 60
            self.made[row["slide_id"]] = tiles.astype(np.uint8)

    def load_slide(self, slide_id, name="pixels"):
        assert name == "pixels"
        return self.made[slide_id]

    def slide_header(self, slide_id):
        return {"slide": slide_id, "sum": str(self.made[slide_id].sum())}


def fitted(slides, shards, spec, tmp_path, checkpoint=None):
    """The encoder that a fit gives, as it is loaded."""
    from pathfm_kedro.datasets.shard_files import write_shard

    weights, stated = plan_rival(slides, spec, shards).fit(checkpoint or InMemory())
    write_shard(tmp_path / "w.safetensors", weights, {})
    return load_encoder(with_weights(spec, str(tmp_path / "w.safetensors"))), stated


def nearest_centroid(encoder, slides, shards, spec):
    """Share of audited tiles that lie nearer to the mean of their label, leaving their patient out."""
    split = split_patients(slides, spec)
    audited = slides.filter(pl.col("patient_id").is_in(sorted(split.audited)))
    rows = [
        (vector, label, patient)
        for slide, patient, label in audited["slide_id", "patient_id", "label"].iter_rows()
        for vector in encoder.embed(shards.load_slide(slide))
    ]
    vectors = np.array([row[0] for row in rows])
    labels, patients = (np.array([row[i] for row in rows]) for i in (1, 2))
    correct = []
    for vector, label, patient in rows:
        means = {
            each: vectors[(labels == each) & (patients != patient)].mean(axis=0) for each in "xy"
        }
        nearest = min(means, key=lambda each: np.linalg.norm(vector - means[each]))
        correct.append(nearest == label)
    return float(np.mean(correct))


@pytest.mark.parametrize("model", ["trained:small_cnn", "trained:small_vit"])
def test_a_planted_class_is_learnt(tmp_path, model):
    slides, spec = cohort(), spec_of(model=model)
    shards = Shards(slides)
    encoder, stated = fitted(slides, shards, spec, tmp_path)
    assert stated["labels"] == ["x", "y"]
    assert stated["n_patients"] == 8
    assert stated["losses"][-1] < 0.4 < stated["losses"][0]
    assert nearest_centroid(encoder, slides, shards, spec) > 0.95


def test_permuted_labels_are_not_found_on_other_patients(tmp_path):
    """What is learnt by heart of some patients tells nothing of the others."""
    slides = cohort(24)
    shards = Shards(slides, shows="center")  # not drawn at all: no center is called y
    accuracy = []
    for seed in range(3):
        spec = spec_of(seed=seed, training={"epochs": 4})
        encoder, _ = fitted(slides, shards, spec, tmp_path)
        accuracy.append(nearest_centroid(encoder, slides, shards, spec))
    assert 0.3 < np.mean(accuracy) < 0.7


@examples(deadline=None, max_examples=20)
@given(
    n_patients=st.integers(2, 30),
    slides_each=st.integers(1, 3),
    folds=st.integers(2, 5),
    seed=st.integers(0, 5),
    patience=st.sampled_from([None, 3]),
)
def test_nobody_trains_and_is_audited(n_patients, slides_each, folds, seed, patience):
    slides = cohort(n_patients, slides_each, "xyz")
    tiles = pl.DataFrame(
        [{"tile_id": f"{s}-{i}", "slide_id": s} for s in slides["slide_id"] for i in range(5)]
    )
    everybody = set(slides["patient_id"])
    audited = []
    for fold in range(folds):
        training = {"folds": folds, "audited_fold": fold, "patience": patience}
        spec = spec_of(seed=seed, training=training | {"tiles_per_slide": 3})
        split = split_patients(slides, spec)
        parts = [split.train, split.validation, split.audited]
        assert set().union(*parts) == everybody
        assert sum(map(len, parts)) == len(everybody)
        chosen = training_tiles(slides, tiles, spec)
        patient_of = dict(slides["slide_id", "patient_id"].iter_rows())
        trains = {patient_of[slide] for slide in chosen["slide_id"]}
        assert trains == split.train | split.validation
        assert not trains & split.audited
        assert chosen.height == 3 * chosen["slide_id"].n_unique()
        assert {patient_of[slide] for slide in left_out(slides, spec)} == trains
        audited += sorted(split.audited)
    assert sorted(audited) == sorted(everybody)


def test_the_split_is_that_of_the_patients_in_any_order():
    slides, spec = cohort(20, 2), spec_of(seed=3)
    assert split_patients(slides, spec) == split_patients(slides.reverse(), spec)
    labels = slides.filter(pl.col("patient_id").is_in(sorted(split_patients(slides, spec).train)))
    assert labels["label"].value_counts()["count"].to_list() == [10, 10]


def test_an_encoder_that_is_not_trained_here_leaves_nobody_out():
    assert left_out(cohort(), EncoderSpec("r", "timm:resnet18")) == {}
    assert left_out(cohort(), None) == {}


def test_training_repeats_to_the_last_bit_and_goes_on_after_a_kill(tmp_path):
    slides, spec = cohort(8), spec_of(training={"epochs": 4, "patience": 4})
    shards = Shards(slides)
    whole, stated = plan_rival(slides, spec, shards).fit(InMemory())

    class Interrupted(InMemory):
        def save(self, tensors, text):
            if self.saved is not None:
                raise KeyboardInterrupt
            super().save(tensors, text)

    killed = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        plan_rival(slides, spec, shards).fit(killed)
    weights, again = plan_rival(slides, spec, shards).fit(InMemory(killed.saved))
    assert again == stated
    assert weights.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def test_the_header_knows_data_and_settings():
    slides, spec = cohort(8), spec_of()
    shards = Shards(slides)
    header = plan_rival(slides, spec, shards).header()
    assert plan_rival(slides.reverse(), spec, shards).header() == header
    other = [
        plan_rival(slides, spec_of(seed=1), shards),
        plan_rival(slides, spec_of(training={"epochs": 9}), shards),
        plan_rival(slides, spec, Shards(slides, each=5)),
        plan_rival(slides.with_columns(label=pl.lit("x")), spec, shards),
    ]
    assert all(fit.header() != header for fit in other)


def test_one_label_trains_nothing():
    slides, spec = cohort(8, labels="x"), spec_of()
    with pytest.raises(ValueError, match=r"encoders\.rival .* carry 1 \(x\): add patients"):
        plan_rival(slides, spec, Shards(slides)).fit(InMemory())


def test_a_turned_tile_has_the_pixels_that_it_had():
    tiles = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3)).astype(np.uint8)
    made = turned(tiles, np.random.default_rng(1))
    symmetries = [
        [np.rot90(view, turns) for view in (tile, tile[::-1]) for turns in range(4)]
        for tile in tiles
    ]
    places = [
        [np.array_equal(one, view) for view in views].index(True)
        for one, views in zip(made, symmetries, strict=True)
    ]
    assert set(places) == set(range(8))


def test_tiles_are_shrunk_as_the_encoder_shrinks_them():
    """What trains a network is, to the last grey level, what it is given later."""
    from pathfm_kedro.encoders.rivals import untrained
    from pathfm_kedro.slides.training_tiles import shrunk

    tiles = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype(np.uint8)
    import torch

    network = untrained(spec_of())
    stored = network.prepared(torch.from_numpy(shrunk(tiles, 32)))
    given_later = network.prepared(torch.from_numpy(tiles))
    assert float((stored - given_later).abs().max()) < 0.5 / 255 / 0.2 + 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "trained:large_cnn"}, "trained:small_cnn and trained:small_vit"),
        ({"input_pixels": 40}, "input_pixels is 40: give a multiple of 16 px"),
        ({"training": {"epoch": 3}}, "training.epoch is 3: .* its keys are epochs, batch"),
        ({"training": {"folds": 1}}, "training.folds is 1"),
        ({"training": {"audited_fold": 2}}, "with 2 folds give 0 to 1"),
        ({"checkpoint": "w.pth"}, "is fitted on the cohort: leave it out"),
        ({"model": "timm:resnet18"}, "training is given, and 'timm:resnet18' is not trained here"),
    ],
)
def test_an_entry_that_cannot_be_names_its_key(changes, message):
    with pytest.raises(ValueError, match=message):
        Training.of(spec_of(**changes))


def test_weights_that_are_not_there_say_how_to_fit_them(tmp_path):
    spec = spec_of()
    with pytest.raises(ValueError, match="not fitted yet: kedro run --pipelines embed"):
        load_encoder(spec)
    with pytest.raises(ValueError, match=r"cannot be read from .* fit it again"):
        load_encoder(replace(spec, checkpoint=str(tmp_path / "gone.safetensors")))


def test_the_split_is_not_that_of_the_folds_of_experiments():
    """Audited patients lie in every fold of an experiment that counts folds from the same seed."""
    slides, spec = cohort(24), spec_of()
    patients, labels = slides["patient_id"].to_numpy(), slides["label"].to_numpy()
    for folds in (2, 4):
        fold = patient_folds(patients, folds, 0, labels)
        audited = np.isin(patients, sorted(split_patients(slides, spec).audited))
        assert set(fold[audited]) == set(fold[~audited]) == set(range(folds))
