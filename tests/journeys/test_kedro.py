"""Kedro's own commands behave as a Kedro user expects."""

from __future__ import annotations

import pytest

from tests.journeys.conftest import fresh_clone, kedro, newest, read_table, write_parameters
from tests.journeys.test_dvc import COHORT, small_phantom

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clone with the small phantom, run once as a person runs it."""
    folder = fresh_clone(tmp_path_factory)
    small_phantom(folder)
    kedro(folder, "run", "--env", COHORT)
    return folder


def versions(project, name):
    return sorted(p.name for p in newest(project, COHORT, name).parent.parent.iterdir())


def test_a_run_ends_at_the_report_and_says_where(project):
    output = kedro(project, "run", "--env", COHORT, "--pipelines", "report")
    assert "The report:" in output.stdout + output.stderr
    page = newest(project, COHORT, "08_reporting/report.html").read_text()
    assert "phantom_truth" in page
    assert len(page) < 8_000_000


def test_the_old_option_for_one_pipeline_still_works(project):
    before = len(versions(project, "03_primary/tiles.parquet"))
    kedro(project, "run", "--env", COHORT, "--pipeline", "tile")
    assert len(versions(project, "03_primary/tiles.parquet")) == before + 1


def test_a_parameter_from_the_command_line_counts(project):
    kedro(project, "run", "--env", COHORT, "--pipelines", "tile", "--params",
          "tile.max_tiles_per_slide=3")  # fmt: skip
    tiles = read_table(project, COHORT, "03_primary/tiles.parquet")
    assert tiles.group_by("slide_id").len()["len"].max() == 3
    kedro(project, "run", "--env", COHORT, "--pipelines", "tile")


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


def test_vectors_of_other_tiles_are_refused(project):
    kedro(project, "run", "--env", COHORT, "--pipelines", "tile", "--params",
          "tile.max_tiles_per_slide=3")  # fmt: skip
    output = kedro(project, "run", "--env", COHORT, "--pipelines", "retrieve", check=False)
    kedro(project, "run", "--env", COHORT, "--pipelines", "tile")
    assert output.returncode != 0
    assert "run the embed pipeline again" in " ".join((output.stdout + output.stderr).split())
