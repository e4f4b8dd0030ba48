"""The index finds what a full sort finds, and comes back from disk as it was."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from kedro.io.core import DatasetError, Version

from pathfm_kedro.datasets.faiss_index import FaissIndexDataset
from pathfm_kedro.statistics.named_index import (
    barcode_index,
    cell_index,
    cosine_index,
    graph_index,
)

TYPES = [
    cosine_index,
    barcode_index,
    partial(cell_index, probed=0.5, seed=0),
    partial(graph_index, links=4, built=8, searched=8),
]


VECTORS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
NAMES = [f"s{i}" for i in range(20)]


def test_it_finds_what_a_full_sort_of_cosines_finds():
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    expected = [[f"s{j}" for j in row] for row in np.argsort(-(unit @ unit.T), axis=1)[:, :5]]
    similarity, names = cosine_index(VECTORS, NAMES).search(VECTORS, 5)
    assert names == expected
    np.testing.assert_allclose(similarity[:, 0], 1, atol=1e-6)


@pytest.mark.parametrize("make", TYPES)
def test_it_comes_back_from_disk(make, tmp_path):
    data = FaissIndexDataset(
        filepath=(tmp_path / "flat.uni.faiss").as_posix(), version=Version("v", "v")
    )
    index = make(VECTORS, NAMES)
    data.save(index)
    loaded = data.load()
    query = np.arange(6, dtype=np.float32)[None] % 4
    assert loaded.search(query, 30)[1] == index.search(query, 30)[1]
    assert loaded.serialized() == index.serialized()
    assert (tmp_path / "v" / "flat.uni.faiss").is_file()


@pytest.mark.parametrize("make", TYPES)
def test_a_cut_file_is_named_with_the_mend(make, tmp_path):
    path = tmp_path / "uni.faiss"
    FaissIndexDataset(filepath=path.as_posix()).save(make(VECTORS, NAMES))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match="not a whole index"):
        FaissIndexDataset(filepath=path.as_posix()).load()


def test_a_name_for_every_vector():
    with pytest.raises(ValueError, match="2 vectors and 1 names"):
        cosine_index(np.eye(2, dtype=np.float32), ["a"])


def test_a_file_of_other_rows_is_named(tmp_path):
    path = tmp_path / "uni.faiss"
    FaissIndexDataset(filepath=path.as_posix()).save(cosine_index(VECTORS, NAMES))
    _, _, content = path.read_bytes().partition(b"\n")
    path.write_bytes(b'["s0"]\n' + content)
    with pytest.raises(DatasetError, match="20 rows and 1 names"):
        FaissIndexDataset(filepath=path.as_posix()).load()
