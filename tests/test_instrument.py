"""The instrument is right on the phantom: controls answer as they must at every strength of bias."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from kedro.io.core import Version

from pathfm_kedro.datasets.sharded_tensors import ShardedTensorDataset, ShardedTensors
from pathfm_kedro.datasets.slide_files import SlideFilesDataset
from pathfm_kedro.pipelines.embed.embedding import plan_embedding
from pathfm_kedro.pipelines.embed.runtime import choose_runtime
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.drawing import draw_phantom
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    choose_k,
    robustness_index_figures,
    robustness_index_statistics,
)
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.statistics.figures import measure
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.wiring import Experiment
from tests.conftest import base_parameters

#: Three cohorts are drawn, embedded and searched.
pytestmark = pytest.mark.slow

CONTROLS = ("stain_statistics", "noise", "phantom_truth")
STRENGTHS = (0.0, 0.5, 1.0)


PARAMETERS = base_parameters()
RETRIEVAL = Experiment("retrieval", Retrieval, search_slides, retrieval_figures, [])
ENGINE = {"workers": 2, "max_failed_share": 0.0}


@dataclass(frozen=True)
class Cohort:
    folder: Path
    slides: pl.DataFrame
    tiles: pl.DataFrame
    files: SlideFiles

    def embed(self, encoder: str, entry: dict, workers: int = 2) -> ShardedTensors:
        store = ShardedTensorDataset(
            filepath=(self.folder / f"vectors-{workers}" / encoder).as_posix(),
            version=Version("v", "v"),
        )
        runtime = choose_runtime(entry, {"pixels": 64}, name=encoder).record()
        store.save(
            plan_embedding(
                self.slides, self.tiles, self.files, entry, runtime, PARAMETERS["tile"],
                PARAMETERS["embed"], ENGINE | {"workers": workers}, name=encoder,
            )
        )  # fmt: skip
        return store.load()


def draw(folder: Path, **changes) -> Cohort:
    plan, manifest = draw_phantom(PARAMETERS["phantom"] | changes, ENGINE)
    store = SlideFilesDataset(filepath=folder.as_posix())
    store.save(plan)
    files = store.load()
    slides = describe_slides(check_manifest(manifest), files, PARAMETERS["ingest"], ENGINE)
    tiles, _ = cut_tiles(slides, files, PARAMETERS["tile"], ENGINE)
    return Cohort(folder, slides, tiles, files)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> dict[float, Cohort]:
    """Twenty-four small slides at each strength of site bias."""
    return {
        strength: draw(
            tmp_path_factory.mktemp(f"bias{strength}"),
            site_bias=strength,
            patients_per_cell=2,
            size_px=1024,
        )
        for strength in STRENGTHS
    }


@pytest.fixture(scope="module")
def indices(cohorts) -> dict[tuple[str, float], dict[str, dict]]:
    """Rows of the robustness index at the cohort's k, by metric."""
    asked = PARAMETERS["robustness_index"] | {"designs": ["all"], "n_permutations": 50}
    p = read_parameters(RobustnessIndex, "robustness_index", asked)
    found = {}
    for strength, cohort in cohorts.items():
        statistics = {
            name: robustness_index_statistics(
                cohort.slides, cohort.tiles, cohort.embed(name, {"model": f"control:{name}"}), p
            )
            for name in CONTROLS
        }
        for name in CONTROLS:
            # Each control is read at its own k: none of them has a say in another's.
            k = choose_k(asked, **{name: statistics[name]})
            figures = robustness_index_figures(statistics[name], k, p)
            table = measure(figures, "robustness_index", name, p.criteria)
            chosen = table.filter(
                pl.col("setting").map_elements(
                    lambda text: json.loads(text).get("role") == "cohort_k", pl.Boolean
                )
            )
            found[name, strength] = {row["metric"]: row for row in chosen.to_dicts()}
    return found


def test_colour_follows_the_center_more_the_stronger_the_bias(indices):
    falling = [indices["stain_statistics", strength]["ri"]["value"] for strength in STRENGTHS]
    assert falling == sorted(falling, reverse=True)
    weak, _, strong = (indices["stain_statistics", s]["ri_minus_null"] for s in STRENGTHS)
    assert weak["value"] > 0 > strong["value"]
    # Two patients a cell leave a wide interval; it still excludes what the unbiased centers gave.
    assert strong["verdict"] != "pass"
    assert strong["ci_high"] < weak["ci_low"]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_truth_passes_at_every_strength(indices, strength):
    rows = indices["phantom_truth", strength]
    assert rows["ri"]["value"] == 1.0
    assert rows["ri_minus_null"]["verdict"] == "pass"


@pytest.mark.parametrize("strength", STRENGTHS)
def test_who_knows_nothing_sits_on_the_null(indices, strength):
    rows = indices["noise", strength]
    design = rows["ri_design_null"]["value"]
    # Four labels and three centers: (C - 1) / (B + C - 2), and the ratio form close to C / B.
    assert design == pytest.approx(2 / 5, abs=1e-9)
    assert rows["ri"]["ci_low"] <= design <= rows["ri"]["ci_high"]
    ratio = rows["ri_ratio"]
    assert ratio["ci_low"] <= 3 / 4 + 0.05
    assert ratio["ci_high"] >= 3 / 4 - 0.1


def retrieved(cohort: Cohort, control: str) -> pl.DataFrame:
    vectors = cohort.embed(control, {"model": f"control:{control}"})
    parameters = PARAMETERS["retrieval"]
    matches = RETRIEVAL.statistics(cohort.slides, cohort.tiles, vectors, parameters)
    return RETRIEVAL.measurements(matches, cohort.slides, parameters, encoder=control)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_truth_finds_every_diagnosis(cohorts, strength):
    table = retrieved(cohorts[strength], "phantom_truth")
    by_vectors = pl.col("setting").str.contains('"family": "(mean|median_min|maxsim)"')
    found = table.filter(
        pl.col("stratum").str.contains("all|organ="), by_vectors, metric="macro_f1"
    )
    assert found["stratum"].n_unique() == 3
    assert set(found["value"]) == {1.0}
    judged = table.drop_nulls("threshold")
    assert judged.filter(metric="f1_range_over_organs")["verdict"].to_list() == ["pass"]
    assert "fail" not in judged["verdict"].to_list()


@pytest.mark.parametrize("strength", STRENGTHS)
def test_who_knows_nothing_passes_no_check_of_retrieval(cohorts, strength):
    table = retrieved(cohorts[strength], "noise")
    assert "pass" not in table.drop_nulls("threshold")["verdict"].to_list()
    judged = table.drop_nulls("threshold").filter(metric="f1_range_over_organs")
    pooled = table.filter(metric="macro_f1", stratum="all", setting=judged["setting"].item())
    assert pooled["ci_low"].item() <= pooled["null_high"].item()
    assert pooled["ci_high"].item() >= pooled["null_low"].item()


def test_one_and_two_threads_give_the_same_bytes(cohorts):
    cohort = cohorts[1.0]
    few = Cohort(cohort.folder, cohort.slides.head(4), cohort.tiles.join(
        cohort.slides.head(4).select("slide_id"), on="slide_id", maintain_order="left"
    ), cohort.files)  # fmt: skip
    entry = {"model": "package:efficientnet_lite0"}
    one, two = (few.embed("lite0", entry, workers) for workers in (1, 2))
    names = [path.name for path in one.folder.iterdir()]
    assert len(names) == 5
    assert all((one.folder / n).read_bytes() == (two.folder / n).read_bytes() for n in names)


def test_slides_drawn_before_are_not_drawn_again(cohorts):
    cohort = cohorts[0.0]
    before = {path: path.stat().st_mtime_ns for path in (cohort.folder / "slides").iterdir()}
    draw(cohort.folder, site_bias=0.0, patients_per_cell=2, size_px=1024)
    assert before == {p: p.stat().st_mtime_ns for p in (cohort.folder / "slides").iterdir()}
