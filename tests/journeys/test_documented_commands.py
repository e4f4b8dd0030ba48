"""Every command that a page shows is run, or ``documented_commands.yml`` says why nothing can run it.

The commands of its lists `fast` and `slow` are run in their order in one clone, within this process:
some need what an earlier one made.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from unittest import mock

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from tests.conftest import PROJECT, write_tiff
from tests.journeys.conftest import fresh_clone, write_parameters
from tests.journeys.test_features import write_features
from tests.pages import COMMANDS, SPANS, commands_in

PLAN = yaml.safe_load(Path(__file__).with_name("documented_commands.yml").read_text())
SHOWN = {tuple(words): str(block) for block in COMMANDS for words in commands_in(block.text)}
LISTED = [*PLAN["fast"], *PLAN["slow"]]
for section in ("elsewhere", "not_run"):
    LISTED += [command for own in PLAN[section].values() for command in own]
#: One patient has a stage and a center each; the files are named as CAMELYON17 names them.
_STAGES = "patient,stage\npatient_004_node_4.tif,macro\npatient_081_node_1.tif,negative\n"
_BARCODE = "TCGA-CJ-4642-01Z-00-DX1.70be2e6a-6b15-4f0b-a5a5-57e5e3bba0f0"
_SLIDES = (
    *(f"slides/north/benign/{scanner}/p{i}/a.tiff" for scanner in ("AT2", "DP200") for i in (1, 2)),
    "camelyon17/images/patient_004_node_4.tif",
    "camelyon17/images/patient_081_node_1.tif",
    f"tcga/TCGA-KIRC/x/{_BARCODE}.svs",
    "plism/GIV_AT2.tif",
    "plism/GMH_S60.tif",
)


def test_every_command_of_a_block_is_listed_once_and_no_other():
    listed = [tuple(shlex.split(command)) for command in LISTED]
    assert len(listed) == len(set(listed)), "a command of documented_commands.yml is listed twice"
    unlisted = {shlex.join(words): where for words, where in SHOWN.items() if words not in listed}
    assert not unlisted, "list what runs these, or why nothing can, in documented_commands.yml"
    stale = [shlex.join(words) for words in listed if words not in SHOWN]
    assert not stale, "no page shows these any more: take them out of documented_commands.yml"


def kind(words: Iterable[str]) -> tuple[str, ...]:
    """A command without what it is about: ``kedro cohort new``, ``dvc metrics show``."""
    return tuple(takewhile(re.compile(r"[a-z]+").fullmatch, words))[:3]


def test_every_kind_of_command_in_a_sentence_is_run():
    """What a sentence names may lack arguments; that kind of command is run with some."""
    named = [command for own in PLAN["in_sentences"].values() for command in own]
    known = {kind(shlex.split(command)) for command in [*LISTED, *named]}
    for span, where in SPANS:
        if re.match(r"(?:kedro|dvc) [a-z]", span):
            for words in commands_in(span.replace("…", "")):
                assert any(of[: len(kind(words))] == kind(words) for of in known), (span, where)


def test_what_runs_a_command_elsewhere_is_there():
    for section in ("elsewhere", "in_sentences"):
        for test, commands in PLAN[section].items():
            path, is_test, name = test.partition("::")
            if not is_test:  # the reason why none runs it
                continue
            text = (PROJECT / path).read_text()
            assert f"\ndef {name}(" in text, test
            for command in commands:
                assert kind(shlex.split(command))[-1] in text, (test, command)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone to stand in, beside it small imitations of what the pages speak of."""
    folder = fresh_clone(tmp_path_factory)
    _imitate(folder.parent)
    shutil.copy(folder.parent / "job" / "slides.csv", folder)
    # Kedro and its sessions change the environment: this puts all of it back.
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.chdir(folder)
        os.environ.pop("KEDRO_ENV", None)
        os.environ["PYTHONPATH"] = str(PROJECT / "src")
        yield folder


def _imitate(folder: Path) -> None:
    """Slides, tiles and feature files, laid out as the pages say."""
    generator = np.random.default_rng(0)
    pixels = np.full((1024, 1024, 3), 244, np.uint8)
    pixels[256:768, 256:768] = generator.integers(120, 200, (512, 512, 3))
    slide = write_tiff(folder / "slide.tiff", pixels)
    for name in _SLIDES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(slide, folder / name)
    (folder / "camelyon17" / "stage_labels.csv").write_text(_STAGES)
    for name in ("north/benign/p1", "north/tumour/p2", "south/benign/p3", "south/tumour/p4"):
        (folder / "tiles" / name).mkdir(parents=True)
        Image.fromarray(pixels[300:428, 300:428]).save(folder / "tiles" / name / "a.png")
    write_features(folder / "job")
    (folder / "job" / "features_titan").rename(folder / "job" / "slide_features_titan")


@pytest.fixture(scope="module")
def kedro(project: Path) -> click.Group:
    """Kedro's command line as it is in the clone."""
    from kedro.framework.cli.cli import KedroCLI

    return KedroCLI(project)


def run_as_printed(command: str, kedro: click.Group, project: Path) -> None:
    """Run a command in the clone as a page shows it; fail with what it said."""
    _, *words = shlex.split(command.replace("/data/clinic/", "../slides/"))
    if words[:2] == ["cohort", "new"]:  # a page begins without the cohorts of another page
        shutil.rmtree(project / "conf" / words[2], ignore_errors=True)
    done = CliRunner().invoke(kedro, words)
    assert done.exit_code == 0, f"{command}\n{done.output[-6000:]}{done.exception or ''}"


@pytest.mark.parametrize("command", PLAN["fast"])
def test_what_is_quick_runs_as_printed(command, kedro, project):
    run_as_printed(command, kedro, project)


@pytest.fixture(scope="module")
def drawn(project: Path, kedro: click.Group) -> None:
    """The cohorts of the pages, drawn small, with encoders that need no hub; two are run in part.

    Pages repeat one experiment of an audit that was run before.
    """
    Image.new("RGB", (224, 224), (205, 120, 175)).save(project / "region.png")
    small = {"patients_per_cell": 1, "centers": ["north", "south"], "size_px": 1024}
    stand_in = {"uni": {"model": "control:stain_statistics"}, "efficientnet_lite0": None}
    for name in ("clinic", "clinic_ten", "kidney", "phantom"):
        folder = project / "conf" / name
        if name != "phantom":
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(project / "conf" / "phantom", folder)
            places = (folder / "globals.yml").read_text()
            (folder / "globals.yml").write_text(places.replace("data/phantom", f"data/{name}"))
        encoders = {"noise": None} | (stand_in if name != "phantom" else {})
        write_parameters(project, name, "encoders", encoders=encoders)
        write_parameters(project, name, "ingest", phantom=small)
        write_parameters(project, name, "tile", tile={"max_tiles_per_slide": 8})
        write_parameters(project, name, "inheritance", adaptation={"encoders": []})
        write_parameters(project, name, "robustness", rotation={"angle_step": 90, "draws": 100})
    for name in ("clinic", "phantom"):
        words = f"kedro run --env {name} --to-outputs measurements.robustness.rotation"
        run_as_printed(words, kedro, project)


@pytest.mark.slow
@pytest.mark.parametrize("command", PLAN["slow"])
def test_what_takes_its_time_runs_as_printed(command, kedro, project, drawn):
    run_as_printed(command, kedro, project)
