"""`dvc repro` of a cohort of features alone: a report, nothing runs twice, changed files are seen."""

from __future__ import annotations

import h5py
import polars as pl
import pytest

from pathfm_kedro.commands.supported_checks import ON_PIXELS
from pathfm_kedro.wiring import NO_SLIDES
from tests.journeys.conftest import (
    SMALL_INHERITANCE,
    SMALL_RETRIEVE,
    SMALL_ROBUSTNESS,
    dvc,
    fresh_clone,
    kedro,
    read_table,
    write_parameters,
)
from tests.journeys.test_dvc import ran
from tests.journeys.test_features import COHORT, write_features

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

#: What reads the files: the cohort's tiles are uni's, titan has its own.
VECTORS = [f"embed@{COHORT}-uni", f"features@{COHORT}-titan"]
REPORT = f"report@{COHORT}"


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A clone in which `dvc repro` audited two encoders' files, from the manifest to the report."""
    folder = fresh_clone(tmp_path_factory)
    job = folder.parent / "job"
    write_features(job)
    kedro(
        folder, "cohort", "new", COHORT, "--manifest", job / "slides.csv",
        f"--features=uni={job / 'features_uni'}", f"--features=titan={job / 'features_titan'}",
        "--size=quick",
    )  # fmt: skip
    for pipeline, small in (
        ("retrieve", SMALL_RETRIEVE),
        ("robustness", SMALL_ROBUSTNESS),
        ("inheritance", SMALL_INHERITANCE),
    ):
        write_parameters(folder, COHORT, pipeline, **small)
    return folder, job, dvc(folder, "repro", REPORT)


def test_features_are_read_by_stages_and_nothing_runs_twice(reproduced):
    folder, _, first = reproduced
    stages = ran(first.stdout)
    assert sorted(stages) == sorted(
        ["ingest", "tile", "embed", "embed", "features", "collect", "retrieve", "robustness",
         "inheritance", "report"]
    )  # fmt: skip
    assert ran(dvc(folder, "repro", REPORT).stdout) == []


def test_what_needs_pixels_says_so_and_nothing_else_is_left_out(reproduced):
    folder, _, first = reproduced
    rows = read_table(folder, COHORT, "08_reporting/measurements.parquet")
    on_pixels = rows.filter(pl.col("experiment").is_in(ON_PIXELS))
    # Adaptation has rows of the encoders that it is asked for alone.
    assert set(on_pixels["experiment"]) == set(ON_PIXELS) - {"adaptation"}
    assert set(on_pixels["verdict"]) == {"not_applicable"}
    assert set(on_pixels["reason"]) == {NO_SLIDES}
    others = rows.filter(~pl.col("experiment").is_in(ON_PIXELS))
    assert not others["reason"].str.contains("needs pixels").any()
    measured = set(others.filter(pl.col("encoder") == "uni").drop_nulls("value")["experiment"])
    # Too few labels, no head asked for, and one vector or word that other encoders share.
    assert set(others.filter(encoder="uni")["experiment"]) - measured <= {
        "tissue_limit",
        "slide_heads",
    }
    # No check is called too small that cannot be measured anyway.
    said = first.stdout + first.stderr
    too_small = [line for line in said.splitlines() if "cannot pass at this size" in line]
    assert not [line for line in too_small if line.partition(":")[0] in ON_PIXELS]


def test_changed_files_of_features_are_changed_dependencies(reproduced):
    folder, job, _ = reproduced
    with h5py.File(job / "features_titan" / "s111.h5", "r+") as file:
        file["features"][...] = -file["features"][...]
    planned = ran(dvc(folder, "repro", "--dry", *VECTORS).stdout)
    # The cohort's tiles are where uni's files have them: titan's own change no tile of it.
    assert "features" in planned
    assert not {"ingest", "tile"} & set(planned)
    with h5py.File(job / "features_uni" / "s111.h5", "r+") as file:
        file["features"][...] = -file["features"][...]
    planned = ran(dvc(folder, "repro", "--dry", *VECTORS).stdout)
    assert {"tile", "embed", "features"} <= set(planned)
