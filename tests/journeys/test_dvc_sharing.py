"""What DVC makes of the project's stages: shared by a remote, compared, varied as experiments.

A stand-in for kedro writes what each stage must leave behind, so that an experiment takes seconds;
that the stages themselves give the same bytes again is asked in ``test_dvc.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.journeys.conftest import dvc, fresh_clone, git, kedro, run, write_parameters

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

COHORT = "mini"
TARGET = f"report@{COHORT}"
FINDINGS = f"data/{COHORT}/08_reporting/findings/0-repro/findings/candidate.json"
CURVES = f"data/{COHORT}/08_reporting/curves/0-repro/curves"
ENTRIES = f"conf/{COHORT}/parameters_encoders.yml"

#: Writes the outputs of the stage whose command it is given; what stands in them follows from the
#: entries of the encoders.
STAND_IN = f"""#!{sys.executable}
import hashlib, json, os, pathlib, sys
outputs = json.loads(pathlib.Path(os.environ["STAGES"]).read_text())[" ".join(sys.argv[1:])]
number = int(hashlib.sha256(pathlib.Path("{ENTRIES}").read_bytes()).hexdigest()[:6], 16)
for name in outputs:
    path = pathlib.Path(name)
    if path.suffix != ".json" or path.parent.name != "0-repro":
        path.mkdir(parents=True, exist_ok=True)
        path = path / ("candidate.json" if path.name == "findings" else "rotation.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = "x,value\\n0,1\\n90," + str(number) + "\\n"
    path.write_text(json.dumps({{"ri": number}}) if path.suffix == ".json" else table)
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A clone with a cohort whose stages were run by the stand-in, and the variables that call it."""
    folder, programs = fresh_clone(tmp_path_factory), tmp_path_factory.mktemp("bin")
    kedro(folder, "cohort", "new", COHORT, "--phantom")
    entries = {"candidate": {"model": "control:stain_statistics"}, "efficientnet_lite0": None}
    write_parameters(folder, COHORT, "encoders", encoders=entries)
    kedro(folder, "cohort", "sync")
    (programs / "kedro").write_text(STAND_IN)
    (programs / "kedro").chmod(0o755)
    listed = (
        "import json; from dvc.repo import Repo; stages = Repo().index.stages; "
        "outs = {s.cmd.partition('kedro ')[2]: [o.def_path for o in s.outs] for s in stages}; "
        "print(json.dumps(outs))"
    )
    stages = programs / "stages.json"
    stages.write_text(run(folder, sys.executable, "-c", listed).stdout.splitlines()[-1])
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {"PATH": path, "STAGES": str(stages)}
    dvc(folder, "repro", TARGET, env=env)
    dvc(folder, "remote", "add", "--default", "store", programs / "store")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "reproduced")
    return folder, env


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '(\w+)@", output))


def test_a_clone_pulls_what_was_pushed_and_has_nothing_to_do(stand_in, tmp_path):
    folder, env = stand_in
    dvc(folder, "push", "--with-deps", TARGET)
    second = tmp_path / "second"
    run(tmp_path, "git", "clone", "--quiet", folder, second)
    assert not (second / FINDINGS).exists()
    dvc(second, "pull", "--with-deps", TARGET)
    assert (second / FINDINGS).read_bytes() == (folder / FINDINGS).read_bytes()
    assert ran(dvc(second, "repro", TARGET, env=env).stdout) == set()
    assert git(second, "status", "--porcelain").stdout == ""


def test_two_encoders_are_two_experiments(stand_in, tmp_path):
    """The same entry with another model in it: what differs is shown as metrics and as curves."""
    original, env = stand_in
    folder = tmp_path / "experiments"
    shutil.copytree(original, folder, symlinks=True)
    changed = f"{ENTRIES}:encoders.candidate.model=control:random_projection"
    output = dvc(folder, "exp", "run", "-n", "projection", "-S", changed, TARGET, env=env).stdout
    assert {"embed", "retrieve", "robustness", "inheritance", "report"} <= ran(output)
    assert ran(output).isdisjoint({"draw", "ingest", "tile"})
    differences = json.loads(dvc(folder, "metrics", "diff", "HEAD", "--json").stdout)
    assert differences[FINDINGS]["ri"]["diff"] != 0
    dvc(folder, "plots", "diff", "HEAD", "--targets", CURVES, "-o", tmp_path / "plots")
    page = (tmp_path / "plots" / "index.html").read_text()
    assert "rotation.csv" in page
    assert {"HEAD", "workspace"} <= set(re.findall(r"HEAD|workspace", page))
    assert "projection" in dvc(folder, "exp", "show", "--csv").stdout
