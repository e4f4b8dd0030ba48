"""One key adds the null of an encoder's architecture."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_kedro.cohorts import with_random_weights
from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.trial import synthetic_tiles
from pathfm_kedro.pipelines.embed.pipeline import create_pipeline


def null_of(**entry):
    return with_random_weights({"e": {**entry, "random_weights": True}})["e_random_weights"]


def test_the_null_is_the_encoder_with_other_weights():
    entry = {"model": "package:efficientnet_lite0", "runtime": "eager", "device": "cpu"}
    drawn = null_of(**entry)
    assert drawn["role"] == "control"
    encoder, null = (
        load_encoder(EncoderSpec.from_parameters(*named))
        for named in (("e", entry | {"random_weights": True}), ("e_random_weights", drawn))
    )
    assert null.preprocessing == encoder.preprocessing
    assert null.fingerprint != encoder.fingerprint
    shapes = [{k: v.shape for k, v in e.model.state_dict().items()} for e in (encoder, null)]
    assert shapes[0] == shapes[1]
    tiles = synthetic_tiles(2, 224)
    assert null.embed(tiles).shape == encoder.embed(tiles).shape
    assert not np.allclose(null.embed(tiles), encoder.embed(tiles))


def test_everything_else_of_the_entry_is_kept():
    drawn = null_of(
        model="timm:vit_tiny_patch16_224", checkpoint="w.pth", pooling="class_token", seed=None
    )
    assert drawn == {
        "model": "timm:vit_tiny_patch16_224",
        "pooling": "class_token",
        "role": "control",
        "pretrained": False,
        "seed": 0,
    }


def test_the_null_of_a_rival_is_the_rival_before_training():
    drawn = null_of(model="trained:small_cnn", seed=3, training={"epochs": 20, "folds": 4})
    assert drawn["training"] == {"epochs": 0, "folds": 4, "repeats": 1}
    assert drawn["seed"] == 3


def test_an_entry_without_the_key_has_none_and_order_is_kept():
    entries = {
        "b": {"model": "timm:x"},
        "a": None,
        "c": {"model": "timm:y", "random_weights": True},
    }
    found = with_random_weights(entries)
    assert list(found) == ["b", "a", "c", "c_random_weights"]
    assert with_random_weights(found) == found


@pytest.mark.parametrize("model", ["control:noise", "harmonised:uni"])
def test_what_has_no_network_is_refused(model):
    with pytest.raises(ValueError, match=r"encoders\.e\.random_weights is true, and"):
        null_of(model=model)


def test_a_name_that_is_taken_is_refused():
    entries = {
        "e": {"model": "timm:x", "random_weights": True},
        "e_random_weights": {"model": "timm:y"},
    }
    with pytest.raises(ValueError, match="leave out one of them"):
        with_random_weights(entries)


def test_a_value_that_is_no_yes_or_no_is_named():
    with pytest.raises(ValueError, match="random_weights is 3: give true or false"):
        EncoderSpec.from_parameters("e", {"model": "timm:x", "random_weights": 3})


def test_a_rival_is_read_fitted_and_embedded_in_its_own_namespace():
    part = create_pipeline(["cnn"], seeds={"cnn": 2}).filter(node_namespaces=["embed.cnn"])
    assert part.all_outputs() == {
        "training_tiles.cnn",
        "models.cnn.2",
        "encoder_runtime.cnn",
        "embeddings.cnn",
        "encoder_card.cnn",
        "encoder_cost.cnn",
    }
