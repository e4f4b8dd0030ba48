"""A slide's pixels are read once for all encoders and experiments, and pictures of them made once."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pathfm_kedro import views
from pathfm_kedro.pipelines.robustness import crop_coherence
from pathfm_kedro.pipelines.robustness.crop_coherence import (
    CropCoherence,
    composition_of_crops,
    view_of_crops,
)
from pathfm_kedro.pipelines.robustness.texture import Texture, view_of_texture
from pathfm_kedro.slides import fields, files
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.kept_pixels import KeptPixels
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.views import plan_views

SIDE = 64
PROBE = {"folds": 3, "C": 1.0, "max_iter": 100}
TEXTURE = {"grids": [2, 4], "k": 3, "probe": PROBE, "draws": 10, "seed": 0}
CROPS = {"n_global": 2, "n_local": 2, "draws": 10, "seed": 0}
SETS = [
    ("crop_coherence", CropCoherence, CROPS, composition_of_crops, [None]),
    ("crop_coherence", CropCoherence, CROPS, view_of_crops, ["noise", "stain_statistics"]),
    ("texture", Texture, TEXTURE, view_of_texture, ["noise", "stain_statistics"]),
]


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """Three images of two tiles each; counts how often they are opened and their crops are made."""
    generator = np.random.default_rng(0)
    names = ["a", "b", "c"]
    for name in names:
        pixels = generator.integers(0, 256, (SIDE, 2 * SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    slides = pl.DataFrame(
        {"slide_id": names, "path": [f"{n}.png" for n in names], "fingerprint": names, "mpp": 0.5}
    )
    tiles = pl.DataFrame(
        {
            "tile_id": [f"{n}{x}" for n in names for x in (0, SIDE)],
            "slide_id": [n for n in names for _ in range(2)],
            "x": [0, SIDE] * 3,
            "y": [0] * 6,
            "field_um": SIDE * 0.5,
            "mpp": 0.5,
        }
    )
    counts: Counter[str] = Counter()

    def counted(what, function):
        def call(*given, **named):
            counts[what] += 1
            return function(*given, **named)

        call.__name__ = function.__name__
        return call

    monkeypatch.setattr(files, "open_slide", counted("opened", files.open_slide))
    monkeypatch.setattr(
        crop_coherence,
        "global_and_local_crops",
        counted("cropped", crop_coherence.global_and_local_crops),
    )
    return slides, tiles, SlideFiles(tmp_path), counts


def plans(slides, tiles, slide_files):
    for name, kind, parameters, work, encoders in SETS:
        for encoder in encoders:
            more = [{"model": f"control:{encoder}"}, {encoder: {}}] if encoder else []
            yield plan_views(
                slides, tiles, tiles, slide_files, {"pixels": SIDE}, {"workers": 2}, *more,
                parameters, name=encoder, work=work, title=name,
                read=lambda p, kind=kind, name=name: read_parameters(kind, name, p),
            )  # fmt: skip


def computed(cohort, monkeypatch, most_bytes):
    """Tensors of all jobs of all plans, with so much kept."""
    kept = KeptPixels(most_bytes)
    monkeypatch.setattr(fields, "KEPT", kept)
    monkeypatch.setattr(views, "KEPT", kept)
    *tables, counts = cohort
    counts.clear()
    found = [[job.compute() for job in plan.jobs] for plan in plans(*tables)]
    headers = [[job.header() for job in plan.jobs] for plan in plans(*tables)]
    return found, headers, dict(counts)


def test_each_slide_is_opened_once_and_each_crop_made_once(cohort, monkeypatch):
    shared, headers, counts = computed(cohort, monkeypatch, 1 << 24)
    assert counts == {"opened": 3, "cropped": 6}
    alone, own_headers, counts = computed(cohort, monkeypatch, 0)
    # Five sets of jobs of three slides, two of them with two encoders; crops are made in three.
    assert counts == {"opened": 15, "cropped": 18}
    assert headers == own_headers
    for left, right in zip(shared, alone, strict=True):
        for kept, made in zip(left, right, strict=True):
            assert kept.keys() == made.keys()
            for name in kept:
                np.testing.assert_array_equal(kept[name], made[name])


def test_what_does_not_fit_as_a_whole_is_not_kept(cohort, monkeypatch):
    _, _, counts = computed(cohort, monkeypatch, 6 * 3 * SIDE**2)
    # The six tiles fit, four crops of each do not.
    assert counts == {"opened": 3, "cropped": 18}


def test_a_job_travels_without_the_pixels(cohort):
    *tables, _ = cohort
    *_, texture = plans(*tables)
    job = texture.jobs[0]
    sent = pickle.dumps(job)
    assert len(sent) < 3 * SIDE**2
    assert pickle.loads(sent) == job
