"""Device and precision of fits."""

from __future__ import annotations

import pytest
import torch

from pathfm_kedro.encoders import fabric, runtimes
from pathfm_kedro.encoders.spec import EncoderSpec
from pathfm_kedro.encoders.training import AdamWSettings, classification_loss, weights_of


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with bfloat16 as far as PyTorch is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def test_a_gpu_and_its_precision_are_in_the_header(gpu, monkeypatch):
    assert fabric.fitted_on("small_cnn") == {"fitted_on": "cuda, bf16-mixed"}
    # Its entry may ask for a CPU, or name a runtime that cannot train.
    assert fabric.fitted_on(EncoderSpec("l", "timm:resnet18", device="cpu")) == {}
    assert (
        fabric.training_device(EncoderSpec("l", "timm:resnet18", runtime="onnxruntime")) == "cuda"
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert fabric.fitted_on("small_cnn") == {"fitted_on": "cuda, 32-true"}


def test_tasks_of_a_cluster_do_not_stop_a_fit(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "audit")
    assert fabric.fabric_on.__wrapped__("cpu").device == torch.device("cpu")


def test_operations_are_reduced_and_weights_are_not(monkeypatch):
    """bfloat16 by Fabric, tried on a CPU."""
    monkeypatch.setattr(fabric, "training_precision", lambda device: "bf16-mixed")
    reduced = fabric.fabric_on.__wrapped__("cpu")
    monkeypatch.setattr("pathfm_kedro.encoders.training.fabric_on", lambda device: reduced)
    model, seen = torch.nn.Linear(4, 2), []
    model.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    points = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    loss = classification_loss(lambda rows, _: points[rows], torch.arange(8).numpy() % 2)
    AdamWSettings(2, 4, 0.01, 0.0).fit(model, 8, loss, 0)
    assert set(seen) == {torch.bfloat16}
    assert {value.dtype.name for value in weights_of(model).values()} == {"float32"}


def test_only_a_gpu_changes_how_convolutions_are_computed():
    before = torch.backends.cudnn.deterministic
    with runtimes.exact_convolutions("cpu"):
        assert torch.backends.cudnn.deterministic == before
    with runtimes.exact_convolutions("cuda"):
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic == before
