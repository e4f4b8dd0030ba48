"""What tests of encoders share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a worker computes: small networks are many times faster so."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def save_dinov2() -> Callable[[Path, int], dict[str, Any]]:
    """Saves a small DINOv2 of transformers for tiles of a side; returns the entry that names it."""

    def saved(folder: Path, side: int) -> dict[str, Any]:
        import torch

        transformers = pytest.importorskip("transformers")
        config = transformers.Dinov2Config(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=side,
            patch_size=16,
        )  # fmt: skip
        torch.manual_seed(0)
        transformers.Dinov2Model(config).save_pretrained(folder)
        stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": side}
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))
        return {"model": f"transformers:{folder}"}

    return saved
