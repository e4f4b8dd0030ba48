"""The wheel runs a cohort where there is no project; IPython knows the catalog of one."""

from __future__ import annotations

import sys
import tarfile
import zipfile

import pytest

from tests.journeys.conftest import fresh_clone, kedro, newest, run, write_parameters

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

COHORT = "mini"
#: Eight slides, drawn and tiled in seconds.
SMALL = {"patients_per_cell": 1, "size_px": 512, "centers": ["north", "south"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clone with a cohort of its own, and one whose manifest names patients."""
    folder = fresh_clone(tmp_path_factory)
    kedro(folder, "cohort", "new", COHORT, "--phantom")
    write_parameters(folder, COHORT, "ingest", phantom=SMALL)
    (folder / "conf" / COHORT / "manifest.csv").write_text("patient_id\nsecret-patient\n")
    return folder


@pytest.fixture(scope="module")
def installed(project, tmp_path_factory):
    """The wheel in a folder of its own, an empty folder to work in, and the wheel's file."""
    target, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    run(project, *pip, "wheel", ".", *offline, "--no-build-isolation", "-w", "dist")
    (wheel,) = (project / "dist").glob("*.whl")
    run(work, *pip, "install", *offline, "--target", target, wheel)
    code = "from pathlib import Path; from pathfm_kedro.commands import kedro_commands as k; "
    code += "k.pack_configuration(Path('conf'), Path('dist/conf-pathfm_kedro.tar.gz'))"
    run(project, sys.executable, "-c", code, env={"PYTHONPATH": str(project / "src")})
    return target, work, wheel


def test_the_wheel_runs_a_cohort_outside_of_the_project(project, installed):
    target, work, _ = installed
    archive = project / "dist" / "conf-pathfm_kedro.tar.gz"
    # -P: nothing of the working folder is imported.
    words = (sys.executable, "-P", "-m", "pathfm_kedro", "run", "--env", COHORT)
    output = run(
        work, *words, "--pipelines", "ingest,tile", "--conf-source", archive,
        env={"PYTHONPATH": str(target)},
    ).stdout  # fmt: skip
    assert f"cohort {COHORT}: ingest, tile" in output
    assert newest(work, COHORT, "03_primary/tiles.parquet").stat().st_size
    listed = run(work, sys.executable, "-P", "-m", "pathfm_kedro", "--help",
                 env={"PYTHONPATH": str(target)}).stdout  # fmt: skip
    assert {"cohort", "run", "encoders"} <= set(listed.split())


def test_nothing_that_names_a_patient_is_packed(project, installed):
    _, _, wheel = installed
    with zipfile.ZipFile(wheel) as packed:
        assert not [name for name in packed.namelist() if name.endswith((".csv", ".parquet"))]
        assert not any(b"secret-patient" in packed.read(name) for name in packed.namelist())
    with tarfile.open(project / "dist" / "conf-pathfm_kedro.tar.gz") as packed:
        names = packed.getnames()
    assert f"conf/{COHORT}/globals.yml" in names
    assert "conf/scenarios/pathorob/parameters_tile.yml" in names
    assert not [name for name in names if name.endswith((".csv", ".parquet"))]


def test_ipython_knows_catalog_and_pipelines(project):
    env = {"PYTHONPATH": str(project / "src"), "IPYTHONDIR": str(project / "data" / "ipython")}
    asked = "print('found', catalog.load('params:tile')['pixels'], 'tile' in pipelines)"
    plain = (
        sys.executable,
        "-m",
        "IPython",
        "--no-banner",
        "-c",
        f"%load_ext kedro.ipython\n{asked}",
    )
    assert "found 224 True" in run(project, *plain, env=env).stdout
    # As `kedro ipython` starts it; its standard input is no terminal here.
    own = kedro(project, "ipython", "--env", COHORT, "--", "-c", asked, env=env)
    assert "found 224 True" in own.stdout
