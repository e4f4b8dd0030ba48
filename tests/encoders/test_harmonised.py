"""Harmonised vectors: the held-out patient has no say, and every tensor of a slide is mapped alike."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pathfm_kedro.encoders.harmonised import center_maps, plan_harmonised
from pathfm_kedro.statistics.tables import OtherCentersError, refuse_other_centers


class Shards:
    def __init__(self, shards):
        self.shards = shards

    @property
    def slide_ids(self):
        return tuple(sorted(self.shards))

    def load_slide(self, slide_id, name="embedding"):
        return self.shards[slide_id][name]

    def tensor_names(self, slide_id):
        return tuple(sorted(self.shards[slide_id]))

    def slide_header(self, slide_id):
        return {"slide": slide_id, "encoder": "base"}


@pytest.fixture
def slides() -> pl.DataFrame:
    n = 12
    return pl.DataFrame(
        {
            "slide_id": [f"s{i:02d}" for i in range(n)],
            "patient_id": [f"p{i:02d}" for i in range(n)],
            "center": ["A", "B"] * (n // 2),
        }
    )


@pytest.fixture
def shards(slides) -> Shards:
    random = np.random.default_rng(0)
    return Shards(
        {
            slide: {"embedding": random.normal(5.0 * (center == "B"), 1, (8, 4)).astype(np.float32)}
            for slide, _, center in slides.iter_rows()
        }
    )


VARIANT = {"model": "harmonised:base", "mitigation": "centring"}


def test_a_patients_own_vectors_do_not_move_its_map(slides, shards):
    before = center_maps(slides, shards, "centring")["s00"]
    shards.shards["s00"]["embedding"] += 100
    after = center_maps(slides, shards, "centring")["s00"]
    np.testing.assert_array_equal(before.mean, after.mean)
    assert before.digest() == after.digest()


def test_centers_lie_together_afterwards(slides, shards):
    jobs = {job.slide_id: job for job in plan(slides, shards).jobs}
    mapped = {slide: job.compute()["embedding"].mean() for slide, job in jobs.items()}
    of = dict(slides.select("slide_id", "center").iter_rows())
    means = [np.mean([m for s, m in mapped.items() if of[s] == c]) for c in "AB"]
    assert abs(means[0] - means[1]) < 0.5


def test_views_are_mapped_as_the_tile_is(slides, shards):
    views = Shards(
        {
            s: {"views": np.repeat(t["embedding"][:, None], 3, axis=1)}
            for s, t in shards.shards.items()
        }
    )
    tiles = {job.slide_id: job.compute()["embedding"] for job in plan(slides, shards).jobs}
    for job in plan_harmonised(slides, shards, views, VARIANT, {}, name="v").jobs:
        np.testing.assert_allclose(job.compute()["views"][:, 1], tiles[job.slide_id], rtol=1e-6)


def test_a_center_of_one_patient_is_refused_with_the_mend(slides, shards):
    alone = slides.with_columns(
        center=pl.when(pl.col("slide_id") == "s03").then(pl.lit("C")).otherwise("center")
    )
    job = next(job for job in plan(alone, shards).jobs if job.slide_id == "s03")
    with pytest.raises(ValueError, match="add patients"):
        job.compute()


def test_the_header_knows_base_method_and_map(slides, shards):
    centred = plan(slides, shards).jobs[0].header()
    combat = plan_harmonised(
        slides, shards, shards, {**VARIANT, "mitigation": "combat"}, {}, name="v"
    )
    assert centred["slide"] == "s00"
    assert centred != combat.jobs[0].header()


def test_vectors_of_a_center_that_was_corrected_since_are_refused(slides, shards):
    class Made(Shards):
        def slide_header(self, slide_id):
            return headers[slide_id]

    headers = {job.slide_id: job.header() for job in plan(slides, shards).jobs}
    refuse_other_centers(slides, Made(shards.shards), "embeddings.v", "embed again")
    refuse_other_centers(slides, shards, "embeddings.base", "embed again")
    corrected = slides.with_columns(
        center=pl.when(pl.col("slide_id") == "s03").then(pl.lit("A")).otherwise("center")
    )
    with pytest.raises(OtherCentersError, match=r"embeddings\.v: .* of slide s03 .*: embed again"):
        refuse_other_centers(corrected, Made(shards.shards), "embeddings.v", "embed again")
    # Of the encoder itself a center decides nothing.
    refuse_other_centers(corrected, shards, "embeddings.base", "embed again")


def plan(slides, shards):
    return plan_harmonised(slides, shards, shards, VARIANT, {}, name="v")


def test_a_center_of_one_patient_does_not_move_the_others_apart(slides, shards):
    """It is missing from one fold's fit: the common middle of that fold must be that of the rest."""
    far = slides.with_columns(
        center=pl.when(pl.col("slide_id") == "s11").then(pl.lit("C")).otherwise("center")
    )
    shards.shards["s11"]["embedding"] += 1000
    maps = center_maps(far, shards, "centring")
    assert "s11" not in maps
    offsets = np.array([apply.offset for apply in maps.values()])
    assert np.ptp(offsets, axis=0).max() < 2


def test_a_map_knows_its_directions(slides, shards):
    from dataclasses import replace

    white = center_maps(slides, shards, "whitening")["s00"]
    other = np.linalg.qr(np.random.default_rng(5).normal(size=white.basis.T.shape))[0].T
    assert white.digest() != replace(white, basis=other).digest()
    assert white.digest() == replace(white, basis=-white.basis).digest()


def test_a_slide_that_shows_tissue_again_takes_its_patient_s_map(slides, shards):
    again = slides.head(1).with_columns(slide_id=pl.lit("again"))
    maps = center_maps(pl.concat([slides, again]), shards, "centring")
    assert maps["again"].digest() == maps[slides["slide_id"][0]].digest()
