"""Files of weights: the one that is named, in that revision, with the digest that is given."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.encoders.verification import check_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

ARCHITECTURE = "test_vit"
CONFIG = {
    "architecture": ARCHITECTURE,
    "num_classes": 0,
    "pretrained_cfg": {
        "input_size": [3, 160, 160],
        "fixed_input_size": True,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "first_conv": "patch_embed.proj",
    },
}


def weights_of(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(ARCHITECTURE, num_classes=0).state_dict()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A repository with two files of weights that differ."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights_of(1), made / "model.safetensors")
    torch.save(weights_of(2), made / "pytorch_model.bin")
    return made


@pytest.fixture
def hub(folder, monkeypatch) -> list[tuple[str, str, str | None]]:
    """A hub with one model; what was asked of it."""
    asked = []

    def download(repo_id, filename, revision=None, **_):
        asked.append((repo_id, filename, revision))
        if not (folder / filename).is_file():
            raise errors.EntryNotFoundError(f"no {filename}")
        return str(folder / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    return asked


def load(**entry):
    return load_encoder(EncoderSpec.from_parameters("mine", entry))


TILES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def test_the_named_file_is_loaded_whatever_lies_beside_it(folder):
    """timm alone would take the other one."""
    plain = load(model=f"local-dir:{folder}")
    first = load(model=f"local-dir:{folder}", weights="model.safetensors")
    second = load(model=f"local-dir:{folder}", weights="pytorch_model.bin")
    assert plain.fingerprint == first.fingerprint != second.fingerprint
    assert (plain.embed(TILES) == first.embed(TILES)).all()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_model_is_loaded_from_its_revision_and_file(folder, hub, name):
    entry = {"model": "hf-hub:owner/model@abc123", "weights": name}
    encoder = load(**entry, sha256=digest(folder / name).upper())
    assert set(hub) == {("owner/model", one, "abc123") for one in ("config.json", name)}
    assert encoder.fingerprint == load(model=f"local-dir:{folder}", weights=name).fingerprint


def test_timm_itself_reads_the_revision_from_the_name(folder, hub):
    """Presets without a digest leave the download to timm."""
    load(model="hf-hub:owner/model@def456")
    assert hub
    assert {revision for _, _, revision in hub} == {"def456"}


@pytest.mark.parametrize("where", ["hub", "folder", "checkpoint", "checkpoint of the hub"])
def test_another_file_than_expected_is_refused(folder, hub, where):
    expected = "f" * 64
    entry = {
        "hub": {"model": "hf-hub:owner/model", "weights": "pytorch_model.bin"},
        "folder": {"model": f"local-dir:{folder}", "weights": "pytorch_model.bin"},
        "checkpoint": {
            "model": f"timm:{ARCHITECTURE}",
            "checkpoint": str(folder / "pytorch_model.bin"),
        },
        "checkpoint of the hub": {
            "model": f"timm:{ARCHITECTURE}",
            "checkpoint": "hf-hub:owner/model@abc/pytorch_model.bin",
        },
    }[where]
    with pytest.raises(ValueError, match="download the file again") as refused:
        load(**entry, sha256=expected)
    found = digest(folder / "pytorch_model.bin")
    for stated in ("encoders.mine", "pytorch_model.bin", found, expected):
        assert stated in str(refused.value)
    assert load(**entry, sha256=found).embed(TILES).shape == (2, 64)


def test_a_checkpoint_of_the_hub_is_the_same_as_the_file(folder, hub):
    here = load(model=f"timm:{ARCHITECTURE}", checkpoint=str(folder / "pytorch_model.bin"))
    there = load(
        model=f"timm:{ARCHITECTURE}", checkpoint="hf-hub:owner/model@v1.0/pytorch_model.bin"
    )
    assert here.fingerprint == there.fingerprint
    assert hub == [("owner/model", "pytorch_model.bin", "v1.0")]


def test_a_file_that_the_folder_lacks(folder):
    with pytest.raises(
        ValueError, match=r"the folder holds no other.bin: download it too, or name"
    ):
        load(model=f"local-dir:{folder}", weights="other.bin")
    with pytest.raises(ValueError, match=r"there is no folder at"):
        load(model="local-dir:/nowhere/at/all", weights="other.bin")


def test_what_is_wrong_is_said_of_the_folder_that_the_entry_names(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"architecture": "none_such"}))
    with pytest.raises(ValueError, match=f"local-dir:{folder}'.*none_such"):
        load(model=f"local-dir:{folder}", weights="model.safetensors")


REFUSALS = {
    "gated": (
        errors.GatedRepoError,
        "is gated: accept its terms at https://huggingface.co/owner/m",
    ),
    "missing": (errors.RepositoryNotFoundError, "is not there, or not for you: check name"),
    "revision": (errors.RevisionNotFoundError, "not there in that revision"),
    "offline": (
        errors.LocalEntryNotFoundError,
        "not cached here.*run 'hf download owner/m model.safetensors --revision abc'",
    ),
    "file": (errors.EntryNotFoundError, "is not among its files"),
    "other": (TimeoutError, "cannot be had .TimeoutError: stated"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_why_the_hub_does_not_give_it(monkeypatch, case):
    kind, stated = REFUSALS[case]

    def refuse(*_, **__):
        error = kind.__new__(kind)
        error.args = ("stated",)
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ValueError, match=stated):
        load(model="hf-hub:owner/m@abc", weights="model.safetensors")


# --- whether an encoder is what its entry says


def failed(spec: EncoderSpec, **known) -> set[str]:
    return {one.name for one in check_encoder(spec, **known) if one.passed is False}


def test_weights_of_a_file_pass(folder):
    spec = EncoderSpec.from_parameters("mine", {"model": f"local-dir:{folder}"})
    assert failed(spec, dimension=64, tile_pixels=64) == set()
    assert failed(spec, dimension=65, tile_pixels=64) == {"dimension"}


def test_a_network_that_silently_starts_at_random_is_refused(folder, monkeypatch):
    """As a published model did, whose own code ignored `pretrained` (GigaPath-Flash)."""
    create = timm.create_model

    def random_instead(source, pretrained=False, **kwargs):
        del source, pretrained
        network = create(ARCHITECTURE, pretrained=False, **kwargs)
        network.load_state_dict(network.state_dict())
        return network

    monkeypatch.setattr(timm, "create_model", random_instead)
    spec = EncoderSpec.from_parameters("mine", {"model": f"local-dir:{folder}"})
    checks = {one.name: one for one in check_encoder(spec, tile_pixels=64)}
    assert {name for name, one in checks.items() if one.passed is False} == {"weights from a file"}
    assert "encoders.mine.checkpoint" in checks["weights from a file"].detail


def test_one_random_tensor_among_those_of_a_file_is_seen(folder, monkeypatch):
    create = timm.create_model

    def one_drawn(*args, **kwargs):
        network = create(*args, **kwargs)
        torch.nn.init.normal_(network.norm.weight)
        return network

    monkeypatch.setattr(timm, "create_model", one_drawn)
    spec = EncoderSpec.from_parameters("mine", {"model": f"local-dir:{folder}"})
    assert failed(spec, tile_pixels=64) == {"weights from a file"}


def test_weights_that_are_random_by_declaration_are_no_fault():
    entry = {"model": f"timm:{ARCHITECTURE}", "pretrained": False, "seed": 3}
    spec = EncoderSpec.from_parameters("mine", entry)
    checks = {one.name: one for one in check_encoder(spec, tile_pixels=64)}
    assert checks["weights from a file"].passed is None
    assert "random by declaration, from seed 3" in checks["weights from a file"].detail
    assert failed(spec, tile_pixels=64) == set()


def test_a_control_has_no_weights():
    spec = EncoderSpec.from_parameters("noise", {"model": "control:noise"})
    assert failed(spec) == set()


def test_a_network_that_draws_numbers_is_seen(folder, monkeypatch):
    create = timm.create_model

    class Draws(torch.nn.Module):
        def forward(self, x):
            return x + torch.randn(x.shape) / 100

    def changed(*args, **kwargs):
        network = create(*args, **kwargs)
        network.fc_norm = Draws()
        return network

    monkeypatch.setattr(timm, "create_model", changed)
    spec = EncoderSpec.from_parameters("mine", {"model": f"local-dir:{folder}"})
    assert "deterministic" in failed(spec, tile_pixels=64)


# --- models of other libraries


def test_the_named_file_of_another_library(tmp_path):
    """transformers alone would take the safetensors file."""
    transformers = pytest.importorskip("transformers")
    made = tmp_path / "phikon"
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**size, intermediate_size=48, image_size=32, patch_size=8)
    torch.manual_seed(0)
    other = transformers.ViTModel(config, add_pooling_layer=False)
    torch.save(other.state_dict(), tmp_path / "other.bin")
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(made)
    shutil.copy(tmp_path / "other.bin", made / "pytorch_model.bin")
    entry = {"model": f"transformers:{made}", "pooling": "class_token", "input_pixels": 32}
    entry |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    plain = load(**entry)
    named = {"weights": "pytorch_model.bin", "sha256": digest(made / "pytorch_model.bin")}
    encoder = load(**entry, **named)
    assert encoder.fingerprint != plain.fingerprint
    (made / "model.safetensors").unlink()
    assert encoder.fingerprint == load(**entry, batch_size=2).fingerprint
    with pytest.raises(ValueError, match=r"sha256 is not that of 'pytorch_model.bin'"):
        load(**entry, **(named | {"sha256": "f" * 64}))
