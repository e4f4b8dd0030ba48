"""The index finds what a full sort finds, and comes back from disk as it was."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from kedro.io.core import DatasetError, Version

from pathfm_kedro.datasets.faiss_index import FaissIndexDataset
from pathfm_kedro.pipelines.retrieve.index import index_slides
from pathfm_kedro.statistics.named_index import cosine_index


@pytest.fixture
def slide_vectors() -> pl.DataFrame:
    vectors = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    return pl.DataFrame(
        {"slide_id": [f"s{i}" for i in range(20)], "mean": vectors},
        schema={"slide_id": pl.String, "mean": pl.Array(pl.Float32, 6)},
    )


def test_it_finds_what_a_full_sort_of_cosines_finds(slide_vectors):
    index = index_slides(slide_vectors)
    vectors = slide_vectors["mean"].to_numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = [[f"s{j}" for j in row] for row in np.argsort(-(unit @ unit.T), axis=1)[:, :5]]
    similarity, names = index.search(unit, 5)
    assert names == expected
    np.testing.assert_allclose(similarity[:, 0], 1, atol=1e-6)


def test_it_comes_back_from_disk(slide_vectors, tmp_path):
    data = FaissIndexDataset(
        filepath=(tmp_path / "uni.faiss").as_posix(), version=Version("v", "v")
    )
    index = index_slides(slide_vectors)
    data.save(index)
    loaded = data.load()
    query = np.ones((1, 6), np.float32)
    assert loaded.search(query, 30)[1] == index.search(query, 30)[1]
    assert (tmp_path / "v" / "uni.faiss").is_file()


def test_a_cut_file_is_named_with_the_mend(slide_vectors, tmp_path):
    path = tmp_path / "uni.faiss"
    FaissIndexDataset(filepath=path.as_posix()).save(index_slides(slide_vectors))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match="not a whole index"):
        FaissIndexDataset(filepath=path.as_posix()).load()


def test_a_name_for_every_vector():
    with pytest.raises(ValueError, match="2 vectors and 1 names"):
        cosine_index(np.eye(2, dtype=np.float32), ["a"])
