"""`dvc repro` of a cohort of features alone: nothing runs twice, and changed files are seen."""

from __future__ import annotations

import h5py
import pytest

from tests.journeys.conftest import dvc, fresh_clone, kedro
from tests.journeys.test_dvc import ran
from tests.journeys.test_features import COHORT, write_features

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

#: What reads the files: the cohort's tiles are uni's, titan has its own. What rests on their vectors is
#: as in a cohort of slides (test_dvc.py).
VECTORS = [f"embed@{COHORT}-uni", f"features@{COHORT}-titan"]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A clone in which `dvc repro` read two encoders' files, from the manifest on."""
    folder = fresh_clone(tmp_path_factory)
    job = folder.parent / "job"
    write_features(job)
    kedro(
        folder, "cohort", "new", COHORT, "--manifest", job / "slides.csv",
        f"--features=uni={job / 'features_uni'}", f"--features=titan={job / 'features_titan'}",
        "--size=quick",
    )  # fmt: skip
    first = dvc(folder, "repro", *VECTORS).stdout
    return folder, job, first


def test_features_are_read_by_stages_and_nothing_runs_twice(reproduced):
    folder, _, first = reproduced
    # Neither encoder waits for the other.
    assert sorted(ran(first)) == ["embed", "features", "ingest", "tile"]
    assert ran(dvc(folder, "repro", *VECTORS).stdout) == []


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
