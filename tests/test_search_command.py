"""Searching for a slide or an image from the command line."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from PIL import Image

from pathfm_kedro.commands import search as search_command
from pathfm_kedro.commands.search_page import Picture, ShownPair, ShownSlide, render_page
from pathfm_kedro.encoders import EncoderSpec, embed_batches, load_encoder
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.retrieve.nearest import nearest_slides, one_to_one
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.fields import slide_fields
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.figures import Undefined
from pathfm_kedro.statistics.mosaic import read_mosaic
from tests.conftest import base_parameters
from tests.in_memory import InMemory
from tests.pipelines.retrieve.planted import label_in_the_mean, mosaic_of

ENTRY = {"model": "control:stain_statistics", "role": "control"}


def parameters():
    found = base_parameters()
    found["encoders"] = {"stain_statistics": ENTRY}
    found["engine"] = {"workers": 1, "max_failed_share": 0.0}
    found["tile"] = found["tile"] | {"min_tissue_fraction": 0.0, "pixels": 64}
    return found


def painted(path, colour, seed):
    generator = np.random.default_rng(seed)
    pixels = np.array(colour) + generator.normal(0, 10, (160, 160, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six pictures of three patients, two colours; with the vectors of their colours."""
    folder = tmp_path_factory.mktemp("slides")
    colours = {"pink": (205, 120, 175), "violet": (120, 70, 160)}
    rows = []
    for i in range(6):
        label = ["pink", "violet"][i % 2]
        painted(folder / f"s{i}.png", colours[label], i)
        rows.append(
            {"slide_id": f"s{i}", "path": f"s{i}.png", "patient_id": f"p{i // 2}", "center": "A",
             "label": f"<{label}>", "organ": "o", "mpp": "0.5"}
        )  # fmt: skip
    p, files = parameters(), SlideFiles(folder)
    slides = describe_slides(check_manifest(pl.DataFrame(rows)), files, p["ingest"], p["engine"])
    tiles, _ = cut_tiles(slides, files, p["tile"], p["engine"])
    encoder = load_encoder(EncoderSpec.from_parameters("stain_statistics", ENTRY))
    shards = {
        slide["slide_id"]: embed_batches(encoder, fields.batches(8))
        for slide, fields in slide_fields(slides, tiles, files, 64)
    }
    archive = read_mosaic(slides, tiles, InMemory(shards))
    return search_command.EmbeddedCohort(
        "mine", "stain_statistics", slides, tiles, files, archive, p, None
    )


@pytest.fixture
def run(cohort, monkeypatch):
    monkeypatch.setattr(search_command.EmbeddedCohort, "open", lambda *given: cohort)
    return lambda *words: CliRunner().invoke(search_command.search, [*map(str, words)])


def found_slides(output):
    return re.findall(r"│ \d+ │ (s\d)", output)


def test_a_slide_finds_its_like_and_never_its_own_patient(run, tmp_path):
    page = tmp_path / "page.html"
    result = run("s0", "--family", "mean", "--top", 4, "--html", page)
    assert result.exit_code == 0, result.output
    found = found_slides(result.output)
    assert set(found) == {"s2", "s3", "s4", "s5"}
    assert set(found[:2]) == {"s2", "s4"}  # the pink ones
    html = page.read_text()
    assert "<pink>" not in html
    assert "&lt;pink&gt;" in html
    assert html.count("<article>") == 5
    assert "no picture" not in html
    assert not re.search(r"(src|href)=['\"](?!data:)", html)
    again = run("s0", "--html", page)
    assert again.exit_code == 1
    assert "exists: give another --html" in again.output


def test_an_image_from_outside_is_cut_and_embedded_as_the_slides_were(run, tmp_path):
    painted(tmp_path / "new.png", (120, 70, 160), 99)
    result = run(tmp_path / "new.png", "--mpp", 0.5, "--family", "maxsim", "--top", 3)
    assert result.exit_code == 0, result.output
    assert set(found_slides(result.output)) == {"s1", "s3", "s5"}
    assert "none of the cohort's" in result.output


def test_a_copy_of_a_slide_does_not_find_its_patient(run, cohort, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes((cohort.files.root / "s2.png").read_bytes())
    result = run(copy, "--mpp", 0.5, "--top", 6)
    assert set(found_slides(result.output)) == {"s0", "s1", "s4", "s5"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody"], "'nobody' is no slide of cohort mine and no file: give a slide_id"),
        (["s0", "--family", "maxsin"], "did you mean maxsim?"),
        (["s0", "--scope", "anywhere"], "--scope anywhere is unknown: give one of within_organ"),
        (["s0", "--family", "reranked"], "may find 4 slides here"),
        (["s0", "--family", "attention"], "choose another family"),
        (["s0", "--html", "nowhere/page.html"], "make the folder first"),
    ],
)
def test_errors_name_the_mend(run, words, message):
    result = run(*words)
    assert result.exit_code == 1
    assert message in result.output


def test_an_image_that_cannot_be_searched_for_says_why(run, tmp_path):
    painted(tmp_path / "new.png", (120, 70, 160), 9)
    assert "give --mpp" in run(tmp_path / "new.png").output
    (tmp_path / "text.png").write_text("no image")
    assert "cannot be" in run(tmp_path / "text.png", "--mpp", 0.5).output
    scoped = run(tmp_path / "new.png", "--mpp", 0.5, "--scope", "within_organ")
    assert "leave --scope out" in scoped.output


def test_a_slide_whose_pixels_are_gone_is_shown_without_a_picture():
    gone = Picture(None, "no file at <a&b>")
    slide = ShownSlide("x", [("label", "<l>")], gone, [ShownPair(gone, gone, 0.5)])
    page = render_page("<script>alert(1)</script>", [("family", "<f>")], slide, [slide])
    assert "<script>" not in page
    assert "<f>" not in page
    assert "<l>" not in page
    assert "no file at &lt;a&amp;b&gt;" in page


def test_pairs_take_each_tile_once_and_the_most_similar_first():
    similar = np.random.default_rng(0).random((4, 6))
    pairs = one_to_one(similar)
    assert len({q for q, _ in pairs}) == len({c for _, c in pairs}) == len(pairs) == 4
    values = [similar[pair] for pair in pairs]
    assert values == sorted(values, reverse=True)
    assert values[0] == similar.max()


def test_one_search_is_a_row_of_the_cohorts_own():
    from pathfm_kedro.pipelines.retrieve.families.settings import FamilySettings
    from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_mosaic

    mosaic = mosaic_of(*label_in_the_mean(n=18))
    families = ["mean", "median_min", "maxsim", "barcode", "bm25", "hybrid"]
    given = {"families": families, "scopes": ["across_organs"], "votes": ["mv5"], "k": 5}
    p = Retrieval(exclude="patient", min_patients=2, n_permutations=1, words=6, folds=3, **given)
    matches = search_mosaic(mosaic, p)
    settings = FamilySettings(words=6, folds=3)
    for family in families:
        query = mosaic.select(np.array([7]))
        found = nearest_slides(query, mosaic, family, settings, held_out=["p007"], top=5)
        own = matches.filter(family=family, query_slide="s007").sort("rank")
        assert [f"s{one.row:03}" for one in found] == own["match_slide"].to_list()
    with pytest.raises(Undefined, match="no slide of another patient"):
        nearest_slides(query, query, "mean", settings, held_out=["p007"])
