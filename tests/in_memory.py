"""Embeddings without files, for tests of what is computed from them."""

from __future__ import annotations

import numpy as np


class InMemory:
    """One array a slide, in the order of the slide's tiles."""

    def __init__(self, shards):
        self.shards = shards
        self.slide_ids = tuple(sorted(shards))

    def stack(self, slide_ids, name="embedding"):
        return np.concatenate([self.shards[slide] for slide in slide_ids])
