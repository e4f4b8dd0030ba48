"""Models of the hub: from its cache without a network, and one sentence where they cannot be had."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import errors

transformers = pytest.importorskip("transformers")

#: A name of the index that is none: no request ever leaves.
NAME = "nobody-at-all/small"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub's cache as its client lays it out, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--nobody-at-all--small/snapshots" / ("a" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs/main").write_text("a" * 40)
    return snapshot


def publish(folder):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 28}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))


def test_a_cached_model_and_its_folder_are_the_same_encoder(cache, tmp_path, load):
    publish(cache)
    shutil.copytree(cache, tmp_path / "copy")
    names = (
        f"transformers:{NAME}",
        f"transformers:{NAME}@{'a' * 40}",
        f"transformers:{tmp_path}/copy",
    )
    assert len({load(name).fingerprint for name in names}) == 1


@pytest.mark.parametrize("prefix", ["transformers:", "open_clip:"])
def test_a_model_that_is_not_cached(cache, refused, prefix):
    text = refused(f"{prefix}{NAME}")
    assert "are not cached on this machine" in text
    assert f"give {prefix}<folder>" in text


def test_a_model_of_which_only_the_configuration_is_cached(cache, refused):
    cache.mkdir(parents=True)
    (cache / "config.json").write_text("{}")
    assert "are not cached on this machine" in refused(f"transformers:{NAME}")


def answered(kind):
    """The client's error without the answer that it was made of: transports differ by version."""
    return kind.__new__(kind, "no")


SAID = {
    "gated": (errors.GatedRepoError, "is gated: accept its terms"),
    "unknown": (errors.RepositoryNotFoundError, "the hub has no such model"),
    "revision": (errors.RevisionNotFoundError, "no such revision"),
}


@pytest.mark.parametrize("case", SAID)
@pytest.mark.parametrize("prefix", ["transformers:", "open_clip:", "hf-hub:"])
def test_what_the_hub_answers_is_said_in_one_sentence(monkeypatch, refused, prefix, case):
    kind, stated = SAID[case]

    def answer(*_, **__):
        raise answered(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    monkeypatch.setattr(timm, "create_model", answer)
    assert stated in refused(f"{prefix}{NAME}")


def test_weights_of_timm_that_are_not_cached_are_named(monkeypatch, refused):
    def answer(*_, **__):
        raise answered(errors.LocalEntryNotFoundError)

    monkeypatch.setattr(timm, "create_model", answer)
    mend = "hf download timm/vit_small_patch16_224.dino --local-dir <folder>"
    assert mend in refused("timm:vit_small_patch16_224.dino")


def test_a_folder_that_is_not_there_is_no_name_of_the_hub(refused):
    assert "there is no folder at" in refused("transformers:models/that/is/not")
    assert "there is no folder at" in refused("open_clip:./small")


def test_a_library_that_is_not_installed_names_the_extra(monkeypatch, refused, tmp_path):
    import importlib

    def missing(name, *_):
        raise ImportError(name)

    real = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda n, *a: missing(n) if n == "open_clip" else real(n, *a)
    )
    assert 'pip install "pathfm-kedro[models]"' in refused(f"open_clip:{tmp_path}")
