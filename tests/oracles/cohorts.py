"""Cohorts that both implementations are shown: every label at every center, in equal numbers."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl

from tests.in_memory import InMemory


def balanced_cohort(labels, centers, patients=4, tiles=6, d=24):
    generator = np.random.default_rng(10 * labels + centers)
    of_label, of_center = generator.standard_normal((2, 6, d)) * 0.4
    cells = list(itertools.product(range(labels), range(centers), range(patients)))
    names = [f"p{i:03d}" for i in range(len(cells))]
    shards = {
        name: (
            of_label[label]
            + of_center[center]
            + 0.4 * generator.standard_normal(d)
            + generator.standard_normal((tiles, d))
        ).astype(np.float32)
        for name, (label, center, _) in zip(names, cells, strict=True)
    }
    slides = pl.DataFrame(
        {
            "slide_id": names,
            "patient_id": names,
            "center": [f"C{center}" for _, center, _ in cells],
            "organ": "organ",
            "label": [f"L{label}" for label, _, _ in cells],
        }
    )
    rows = pl.DataFrame({"slide_id": np.repeat(names, tiles)}).with_row_index("tile")
    return slides, rows.with_columns(tile_id=pl.col("tile").cast(pl.String)), InMemory(shards)
