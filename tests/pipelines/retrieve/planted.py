"""Cohorts of which it is known what a search must find."""

from __future__ import annotations

import numpy as np
import polars as pl

from pathfm_kedro.statistics.mosaic import Mosaic

PATCHES = 6


def slides_of(label, organ=None):
    n = len(label)
    return pl.DataFrame(
        {
            "slide_id": [f"s{i:03}" for i in range(n)],
            "patient_id": [f"p{i:03}" for i in range(n)],
            "center": [f"c{i % 3}" for i in range(n)],
            "organ": ["o"] * n if organ is None else [f"o{one}" for one in organ],
            "label": [f"l{one}" for one in label],
        }
    )


def mosaic_of(slides, patches):
    """[n, PATCHES, d] patches as a mosaic."""
    named = slides.rename({"patient_id": "patient"})
    vectors = patches.reshape(-1, patches.shape[2]).astype(np.float32)
    return Mosaic(named, vectors, np.arange(len(slides)) * patches.shape[1])


def label_in_the_mean(n=90, dimension=12, seed=0):
    """Every patch leans a little towards its label: the mean holds all there is."""
    generator = np.random.default_rng(seed)
    label = np.arange(n) % 3
    patches = generator.normal(size=(n, PATCHES, dimension))
    patches[..., :3] += 0.9 * np.eye(3)[label][:, None]
    return slides_of(label), patches


def label_in_the_maximum(n=90, dimension=12, seed=0):
    """One patch of each slide is of its label; another takes it out of the mean again."""
    generator = np.random.default_rng(seed)
    label = np.arange(n) % 3
    patches = 0.5 * generator.normal(size=(n, PATCHES, dimension))
    signal = 6 * np.eye(dimension)[label]
    patches[:, 0] += signal
    # The rest weighs as much against it, spread where single patches do not show it.
    patches[:, 1:] -= signal[:, None] / (PATCHES - 1)
    return slides_of(label), patches


def nothing(n=48, dimension=6, seed=0):
    """Vectors that know nothing."""
    generator = np.random.default_rng(seed)
    label = generator.permutation(np.arange(n) % 3)
    return slides_of(label), generator.normal(size=(n, PATCHES, dimension))
