"""`dvc repro` is hermetic: same bytes from a clean clone, and it leaves alone what a person made."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.journeys.conftest import (
    SMALL_INHERITANCE,
    SMALL_RETRIEVE,
    dvc,
    fresh_clone,
    git,
    kedro,
    run,
    write_parameters,
)

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

COHORT = "mini"


def small_phantom(folder: Path) -> None:
    """A phantom of 16 slides, audited with the controls alone: minutes become seconds."""
    kedro(folder, "cohort", "new", COHORT, "--phantom")
    write_parameters(
        folder,
        COHORT,
        "ingest",
        phantom={"patients_per_cell": 2, "centers": ["north", "south"], "size_px": 1024},
    )
    encoders = {
        "efficientnet_lite0": None,
        "phantom_truth": {"model": "control:phantom_truth", "role": "control"},
    }
    write_parameters(folder, COHORT, "encoders", encoders=encoders)
    write_parameters(
        folder,
        COHORT,
        "robustness",
        tile_pool={"max_tiles": 16},
        rotation={"angle_step": 45, "k": [10], "draws": 200},
        robustness_index={"k_grid": [1, 3, 5], "n_permutations": 20, "draws": 200},
        robustness_margins={"sampled_queries": 100, "n_permutations": 20, "draws": 200},
        clustering_score={"k_range": [2, 5], "restarts": 2, "n_permutations": 20},
        performance_drop={"repeats": 3, "draws": 200},
        center_auc={"n_permutations": 10, "draws": 200},
        appearance={"jitter": [0.1], "jpeg": [70], "blur": [1.0], "gamma": [0.8], "draws": 200},
        texture={"grids": [2, 8], "draws": 200},
        stain_probe={"n_permutations": 5, "draws": 200},
        crop_coherence={"draws": 200},
        field_of_view={"max_tiles": 16, "n_permutations": 20, "draws": 200},
        adversarial={"max_tiles": 8, "probe": {"folds": 2}, "draws": 200},
    )
    # Seconds are no figures that a second clone could give again.
    write_parameters(folder, COHORT, "embed", cost_trial={"measured": False})
    write_parameters(folder, COHORT, "retrieve", **SMALL_RETRIEVE)
    write_parameters(
        folder,
        COHORT,
        "inheritance",
        **SMALL_INHERITANCE,
        geometry={"n_tiles": 64, "null_samples": 3},
        linear_probe={"probe": {"folds": 2}},
    )
    kedro(folder, "cohort", "sync")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A clone in which the small cohort was reproduced and committed."""
    folder = fresh_clone(tmp_path_factory)
    small_phantom(folder)
    dvc(folder, "repro", f"report@{COHORT}")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "reproduced")
    return folder


def ran(output: str) -> list[str]:
    return [
        line.split("'")[1].split("@")[0]
        for line in output.splitlines()
        if line.startswith("Running stage")
    ]


def test_metrics_and_plots_are_shown(reproduced, tmp_path):
    shown = json.loads(dvc(reproduced, "metrics", "show", "--json").stdout)
    found = {
        Path(path).stem: files["data"]
        for revision in shown.values()
        for path, files in revision["data"].items()
        if f"data/{COHORT}/" in path
    }
    # So few patients leave the spread over organs open, whoever is asked.
    assert found["phantom_truth"]["verdict"] in {"pass", "inconclusive"}
    assert found["phantom_truth"]["ri_minus_null"] > 0
    curves = f"data/{COHORT}/08_reporting/curves/0-repro/curves"
    dvc(reproduced, "plots", "show", curves, "-o", tmp_path / "plots")
    page = (tmp_path / "plots" / "index.html").read_text()
    assert {"robustness_index.csv", "rotation.csv"} <= set(re.findall(r"\w+\.csv", page))


def test_nothing_runs_twice(reproduced):
    assert ran(dvc(reproduced, "repro", f"report@{COHORT}").stdout) == []


def test_a_clean_clone_gives_the_same_bytes(reproduced, tmp_path):
    second = tmp_path / "second"
    run(tmp_path, "git", "clone", "--quiet", reproduced, second)
    output = dvc(second, "repro", f"report@{COHORT}").stdout
    assert set(ran(output)) == {
        "draw", "ingest", "tile", "embed", "collect", "retrieve", "robustness", "inheritance", "report",
    }  # fmt: skip
    assert git(second, "status", "--porcelain").stdout == ""
    report = Path("data", COHORT, "08_reporting/report.html/0-repro/report.html")
    assert (second / report).read_bytes() == (reproduced / report).read_bytes()


def test_a_parameter_reruns_what_depends_on_it(reproduced, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(reproduced, folder, symlinks=True)
    write_parameters(
        folder, COHORT, "retrieve", **(SMALL_RETRIEVE | {"retrieval": {"votes": ["top1", "mv5"]}})
    )
    assert ran(dvc(folder, "repro", f"report@{COHORT}").stdout) == ["retrieve", "report"]


def test_versions_of_a_person_survive(reproduced, tmp_path):
    folder = tmp_path / "person"
    shutil.copytree(reproduced, folder, symlinks=True)
    kedro(folder, "run", "--env", COHORT, "--pipelines", "tile")
    tables = folder / "data" / COHORT / "03_primary" / "tiles.parquet"
    made = {path.name for path in tables.iterdir()} - {"0-repro"}
    assert len(made) == 1
    # The pinned version was read where the person had none, and theirs is the newest now.
    dvc(folder, "repro", "--force", "--single-item", f"tile@{COHORT}")
    assert {path.name for path in tables.iterdir()} == made | {"0-repro"}
    assert git(folder, "status", "--porcelain").stdout == ""


def test_the_pinned_run_and_the_timestamped_run_agree(reproduced, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(reproduced, folder, symlinks=True)
    kedro(folder, "run", "--env", COHORT, "--pipelines", "retrieve,inheritance")
    for pipeline, name in (("retrieve", "retrieval"), ("inheritance", "geometry")):
        versions = folder / "data" / COHORT / "07_model_output" / "measurements" / pipeline
        bytes_of = {
            path.read_bytes() for path in versions.glob(f"*/{name}.stain_statistics.parquet")
        }
        assert len(list(versions.iterdir())) == 2
        assert len(bytes_of) == 1
