"""Tiles and an entry that every loader's test uses."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_kedro.encoders import EncoderSpec, load_encoder


@pytest.fixture(scope="session")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def load():
    def loaded(model, **entry):
        return load_encoder(EncoderSpec.from_parameters("mine", {"model": model} | entry))

    return loaded


@pytest.fixture(scope="session")
def refused(load):
    """What an entry is refused with, in one line that names the entry."""

    def words(model, **entry):
        with pytest.raises(ValueError, match=r"encoders\.mine") as error:
            load(model, **entry)
        text = str(error.value)
        assert "\n" not in text
        return text

    return words
