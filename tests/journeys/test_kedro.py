"""Kedro's own commands behave as a Kedro user expects."""

from __future__ import annotations

import pytest

from tests.journeys.conftest import fresh_clone, kedro, newest, read_table, write_parameters
from tests.journeys.test_dvc import COHORT, small_phantom
from tests.test_registry import SEVEN

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clone with the small phantom, run once as a person runs it, and what the run said."""
    folder = fresh_clone(tmp_path_factory)
    small_phantom(folder)
    return folder, kedro(folder, "run", "--env", COHORT).stdout


@pytest.fixture(scope="module")
def project(made):
    return made[0]


def test_a_whole_run_says_what_a_person_must_see_and_keeps_the_rest(made):
    folder, output = made
    lines = output.splitlines()
    assert len(lines) < 60
    for pipeline in SEVEN:
        assert sum(line.startswith(f"{pipeline}: done in ") for line in lines) == 1
    verdicts = lines[lines.index("Verdicts:") + 1 :]
    assert {line.split()[0] for line in verdicts[:3]} == {
        "phantom_truth", "noise", "stain_statistics",
    }  # fmt: skip
    assert verdicts[3].startswith("The report: data/")
    page = newest(folder, COHORT, "08_reporting/report.html").read_text()
    assert "phantom_truth" in page
    assert len(page) < 6_000_000
    assert "Completed node:" in (folder / "logs" / "kedro.log").read_text()
    output = kedro(folder, "run", "--env", COHORT, "--pipelines", "tile", "--verbose").stdout
    assert "Completed node:" in output


def test_a_misspelt_parameter_is_one_message(project):
    told = kedro(project, "run", "--env", COHORT, "--params", "tile.mp=1", check=False)
    assert told.returncode == 1
    assert told.stderr.strip() == "Error: --params: there is no tile.mp: did you mean tile.mpp?"
    told = kedro(
        project, "run", "--env", COHORT, "--params", "tile.mp=1", "--traceback", check=False
    )
    assert "Traceback" in told.stderr + told.stdout


def test_the_runner_of_processes_is_refused_in_words(project):
    told = kedro(project, "run", "--env", COHORT, "--runner", "ParallelRunner", check=False)
    assert told.returncode == 1
    assert "ParallelRunner cannot run this project" in told.stderr


def versions(project, name):
    return sorted(p.name for p in newest(project, COHORT, name).parent.parent.iterdir())


def test_the_old_option_for_one_pipeline_still_works(project):
    before = len(versions(project, "03_primary/tiles.parquet"))
    kedro(project, "run", "--env", COHORT, "--pipeline", "tile")
    assert len(versions(project, "03_primary/tiles.parquet")) == before + 1


def test_one_experiment_and_one_encoder_can_be_run_alone(project):
    output = kedro(
        project, "run", "--env", COHORT, "--pipelines", "robustness", "--tags", "rotation"
    )
    assert "robustness_index" not in output.stdout
    output = kedro(project, "run", "--env", COHORT, "--namespaces", "embed.stain_statistics")
    assert "phantom_truth" not in output.stdout


def test_only_missing_outputs_runs_nothing_twice(project):
    output = kedro(project, "run", "--env", COHORT, "--only-missing-outputs")
    assert "embed_" not in output.stdout


def test_a_second_run_reuses_the_vectors(project):
    before = newest(project, COHORT, "04_feature/embeddings/*/stain_statistics")
    kedro(project, "run", "--env", COHORT, "--namespaces", "embed.stain_statistics")
    after = newest(project, COHORT, "04_feature/embeddings/*/stain_statistics")
    assert before != after
    shards = sorted(path.name for path in before.glob("*.safetensors"))
    assert shards
    assert all((before / name).samefile(after / name) for name in shards)


def test_commands_that_look_at_the_project(project):
    assert "robustness" in kedro(project, "registry", "list").stdout
    described = kedro(project, "registry", "describe", "tile").stdout
    assert "cut_tiles" in described
    listed = kedro(project, "catalog", "describe-datasets").stdout
    assert "embeddings." in listed
    patterns = kedro(project, "catalog", "list-patterns").stdout
    assert "measurements.{pipeline}.{experiment}.{encoder}" in patterns


def test_a_wrong_name_gets_a_hint(project):
    output = kedro(project, "run", "--env", COHORT, "--pipelines", "robustnes", check=False)
    assert output.returncode != 0
    assert "robustness" in output.stdout + output.stderr


def test_a_wrong_parameter_says_what_to_give(project):
    write_parameters(project, COHORT, "embed", embed={"dtype": "float8"})
    output = kedro(project, "run", "--env", COHORT, "--pipelines", "embed", check=False)
    write_parameters(project, COHORT, "embed")
    assert output.returncode != 0
    assert "give float32 or float16" in " ".join((output.stdout + output.stderr).split())


def test_a_parameter_from_the_command_line_counts_and_vectors_of_other_tiles_are_refused(project):
    kedro(project, "run", "--env", COHORT, "--pipelines", "tile", "--params",
          "tile.max_tiles_per_slide=3")  # fmt: skip
    tiles = read_table(project, COHORT, "03_primary/tiles.parquet")
    assert tiles.group_by("slide_id").len()["len"].max() == 3
    output = kedro(project, "run", "--env", COHORT, "--pipelines", "retrieve", check=False)
    kedro(project, "run", "--env", COHORT, "--pipelines", "tile")
    assert output.returncode != 0
    assert "run the embed pipeline again" in " ".join((output.stdout + output.stderr).split())
