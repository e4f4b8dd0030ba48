"""A mistake in the configuration is one error that names the key, the value and the mend."""

from __future__ import annotations

import re
import shutil

import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner
from kedro.io import DataCatalog, MemoryDataset
from kedro.io.core import Version
from kedro.pipeline import Pipeline, node

from pathfm_kedro.cli import cli
from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS, read_cohort_plan
from pathfm_kedro.conf_files import PlainConfigLoader
from pathfm_kedro.configuration import is_open, refuse_unknown_keys, unknown_keys
from pathfm_kedro.datasets.parquet import ParquetDataset
from pathfm_kedro.datasets.sharded_tensors import ShardedTensors
from pathfm_kedro.encoders import EncoderSpec, load_encoder
from pathfm_kedro.engine import EngineSettings
from pathfm_kedro.engine.failures import TooManyFailedError, refuse_too_many_failed
from pathfm_kedro.hooks import RunHooks, VectorHooks
from pathfm_kedro.manifests.folders import FolderError, list_folder
from pathfm_kedro.pipelines.retrieve.search import Retrieval, rank_matches
from pathfm_kedro.pipelines.tile.tiles import cut_tiles
from pathfm_kedro.run_lock import CohortInUseError, cohort_lock
from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.phantom import PhantomDesign
from pathfm_kedro.statistics.parameters import read_parameters
from pathfm_kedro.statistics.tables import OtherSlidesError, refuse_other_slides
from tests.conftest import PROJECT, base_parameters

RETRIEVAL, TILE = (base_parameters()[block] for block in ("retrieval", "tile"))

ENCODERS = {
    "unknown_key": (
        {"model": "timm:resnet18", "poling": "default"},
        "encoders.mine has unknown keys ['poling']",
    ),
    "no_model": ({"role": "encoder"}, "encoders.mine has no 'model'"),
    "text_for_keys": ("timm:resnet18", "encoders.mine is 'timm:resnet18': write its keys below it"),
    "model_without_kind": ({"model": "resnet18"}, "encoders.mine.model is 'resnet18': begin it"),
    "unknown_pooling": (
        {"model": "timm:resnet18", "pooling": "median"},
        "encoders.mine.pooling is 'median'",
    ),
    "mean_of_two": (
        {"model": "timm:resnet18", "mean": [0.5, 0.5]},
        "encoders.mine.mean is [0.5, 0.5]: give three numbers",
    ),
    "mean_of_one": ({"model": "timm:resnet18", "mean": 0.5}, "encoders.mine.mean is 0.5"),
    "mean_of_words": (
        {"model": "timm:resnet18", "mean": ["a", "b", "c"]},
        "encoders.mine.mean is ['a', 'b', 'c']",
    ),
    "std_of_zero": (
        {"model": "timm:resnet18", "std": [0.2, 0, 0.2]},
        "encoders.mine.std is [0.2, 0, 0.2]: pixels are divided by it",
    ),
    "batch_of_nothing": (
        {"model": "timm:resnet18", "batch_size": 0},
        "encoders.mine.batch_size is 0",
    ),
    "checkpoint_of_a_whole_model": (
        {"model": "hf-hub:owner/model", "checkpoint": "w.pth"},
        "encoders.mine.checkpoint goes with a timm: architecture",
    ),
}


@pytest.mark.parametrize("case", ENCODERS)
def test_an_encoders_entry_is_read_with_care(case):
    entry, message = ENCODERS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        EncoderSpec.from_parameters("mine", entry)


MODELS = {
    "unknown_model": ({"model": "timm:resnet1888"}, "'timm:resnet1888' could not be loaded"),
    "unknown_control": (
        {"model": "control:luck"},
        "encoders.mine.model is 'control:luck', which there is not",
    ),
    "unknown_package": (
        {"model": "package:luck"},
        "encoders.mine.model is 'package:luck', which there is not",
    ),
    "missing_folder": ({"model": "local-dir:nowhere"}, "folder 'nowhere' has no config.json"),
    "missing_checkpoint": (
        {"model": "timm:test_vit", "checkpoint": "nowhere.pth"},
        "encoders.mine: there is no checkpoint at 'nowhere.pth': correct the path",
    ),
    "text_as_checkpoint": (
        {"model": "timm:test_vit", "checkpoint": "text.pth"},
        "encoders.mine: checkpoint 'text.pth' cannot be used: it is cut short or no file",
    ),
    "empty_checkpoint": (
        {"model": "timm:test_vit", "checkpoint": "empty.pth"},
        "encoders.mine: checkpoint 'empty.pth' cannot be used: it is cut short or no file",
    ),
    "text_as_safetensors": (
        {"model": "timm:test_vit", "checkpoint": "text.safetensors"},
        "encoders.mine: checkpoint 'text.safetensors' cannot be used: it is cut short or no file",
    ),
    "checkpoint_of_another_model": (
        {"model": "timm:test_vit", "checkpoint": "other.pth"},
        "encoders.mine: checkpoint 'other.pth' does not fit",
    ),
    "whole_training_state": (
        {"model": "timm:test_vit", "checkpoint": "training.pth"},
        "encoders.mine: checkpoint 'training.pth' does not fit",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_had_is_named(tmp_path, monkeypatch, case):
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "training.pth")
    entry, message = MODELS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        load_encoder(EncoderSpec.from_parameters("mine", entry))


ENGINES = {
    "negative_workers": ({"workers": -1}, "engine.workers is -1: give a whole number"),
    "workers_in_words": ({"workers": "two"}, "engine.workers is 'two'"),
    "unknown_scheduler": ({"scheduler": "slurm"}, "engine.scheduler is 'slurm': give one of"),
    "share_of_two": (
        {"max_failed_share": 2},
        "engine.max_failed_share is 2: give a share from 0 to 1",
    ),
    "share_in_words": ({"max_failed_share": "half"}, "engine.max_failed_share is half"),
    "foreign_cluster": (
        {"scheduler": "dask", "workers": 2, "dask": {"cluster": "os.system"}},
        "engine.dask.cluster is 'os.system'",
    ),
}


@pytest.mark.parametrize("case", ENGINES)
def test_the_engine_says_what_it_cannot_do(case):
    settings, message = ENGINES[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        EngineSettings(**settings)


RETRIEVALS = {
    "unknown_family": (
        {"families": ["mean", "medain_min"]},
        "'medain_min' is no family: did you mean median_min?",
    ),
    "text_for_a_list": ({"families": "mean"}, "retrieval.families is 'mean': Input should be"),
    "unknown_scope": ({"scopes": ["anywhere"]}, "retrieval.scopes.0 is 'anywhere': Input should"),
    "votes_need_more": ({"k": 3}, "retrieval.k is 3: mv5 asks 5 matches"),
    "unknown_exclusion": ({"exclude": "center"}, "retrieval.exclude is 'center': Input should be"),
    "unknown_key": ({"primary": {}}, "retrieval.primary: no such parameter"),
}


@pytest.mark.parametrize("case", RETRIEVALS)
def test_the_search_says_what_it_cannot_do(case):
    changes, message = RETRIEVALS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        read_parameters(Retrieval, "retrieval", RETRIEVAL | changes)


def test_more_matches_than_there_are_slides_gives_those_there_are():
    patient = np.array([0, 1, 1])
    query, _, match = rank_matches(np.ones((3, 3)), patient[:, None] != patient, k=50)
    assert sorted(zip(query.tolist(), match.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (1, 0),
        (2, 0),
    ]


TILES = {
    "no_pixels": ({"pixels": 0}, "tile.pixels is 0: give a whole number of 1 or more"),
    "half_a_pixel": ({"pixels": 0.5}, "tile.pixels is 0.5"),
    "no_mpp": ({"mpp": 0}, "tile.mpp is 0: give a number above 0"),
    "mpp_in_words": ({"mpp": "20x"}, "tile.mpp is '20x'"),
    "tissue_in_per_cent": (
        {"min_tissue_fraction": 70},
        "tile.min_tissue_fraction is 70: give a share",
    ),
    "no_tiles": ({"max_tiles_per_slide": 0}, "tile.max_tiles_per_slide is 0"),
    "no_overview": ({"overview_mpp": -8}, "tile.overview_mpp is -8"),
    "no_clusters": (
        {"mosaic": {"colour_clusters": 0, "share": 0.05}},
        "tile.mosaic.colour_clusters is 0",
    ),
    "mosaic_in_per_cent": (
        {"mosaic": {"colour_clusters": 9, "share": 5}},
        "tile.mosaic.share is 5: give a share from 0 to 1",
    ),
    "misspelt": ({"tissue": {"min_speck": 1}}, "tile.tissue has no parameter min_speck"),
}


@pytest.mark.parametrize("case", TILES)
def test_tiles_are_not_cut_by_a_mistaken_parameter(tmp_path, case):
    changes, message = TILES[case]
    nothing = pl.DataFrame(schema={"slide_id": pl.String(), "status": pl.String()})
    with pytest.raises(ValueError, match=re.escape(message)):
        cut_tiles(nothing, SlideFiles(tmp_path), TILE | changes, {"workers": 1})


def test_the_phantom_has_no_parameter_of_another_name():
    with pytest.raises(ValueError, match="site_bais: no such parameter of the phantom"):
        PhantomDesign.from_parameters({"site_bais": 0.5})


def test_more_failures_than_a_run_may_lose():
    reasons = {"s1": "no file at 's1.svs'", "s2": "no tissue was found on this slide"}
    with pytest.raises(
        TooManyFailedError,
        match=r"2 of 3 slides failed, more than engine\.max_failed_share = 0\.5 allows\. s1: no file",
    ):
        refuse_too_many_failed(reasons, 3, EngineSettings())
    refuse_too_many_failed(reasons, 4, EngineSettings())


@pytest.fixture
def conf(tmp_path):
    """The project's configuration with an empty cohort 'clinic'."""
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "clinic").mkdir()
    return tmp_path / "conf"


def test_a_cohort_that_is_not_there_is_named_with_those_that_are(conf):
    with pytest.raises(
        ValueError, match=r"there is no cohort 'clinik': .* has .*phantom.*kedro cohort new"
    ):
        read_cohort_plan("clinik", str(conf))


def test_an_encoder_given_as_text_is_told_how_to_be_written(conf):
    (conf / "clinic" / "parameters_encoders.yml").write_text("encoders:\n  mine: timm:resnet18\n")
    with pytest.raises(
        ValueError, match=r"encoders\.mine is 'timm:resnet18': write its keys below it"
    ):
        read_cohort_plan("clinic", str(conf))


def test_broken_yaml_names_its_file_and_line(conf):
    path = conf / "clinic" / "parameters.yml"
    path.write_text("cohort:\n  name: [\n")
    with pytest.raises(
        Exception, match=r"Invalid YAML or JSON file .*clinic/parameters\.yml.* line 2"
    ):
        read_cohort_plan("clinic", str(conf))


def test_the_same_key_in_two_files_of_a_cohort_is_refused(conf):
    for name in ("parameters.yml", "parameters_tile.yml"):
        (conf / "clinic" / name).write_text("tile: {pixels: 224}\n")
    with pytest.raises(Exception, match="Duplicate keys found"):
        read_cohort_plan("clinic", str(conf))


def test_a_new_cohort_of_a_broken_manifest_shows_the_message_and_no_traceback(conf, monkeypatch):
    monkeypatch.chdir(conf.parent)
    shutil.copy(PROJECT / "pyproject.toml", conf.parent)
    (conf.parent / "src").mkdir()
    (conf.parent / "slides.csv").write_bytes(b"slide_id;path\n\xff;a.svs\n")
    result = CliRunner().invoke(cli, ["cohort", "new", "other", "--manifest", "slides.csv"])
    assert result.exit_code == 1
    assert "row 2 is not UTF-8 text (byte 0xff)" in result.output
    assert not (conf / "other").exists()


def test_two_images_whose_names_differ_in_case_only_are_refused(tmp_path):
    for name in ("a.png", "A.png"):
        path = tmp_path / "center" / "label" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    if len(list((tmp_path / "center" / "label").iterdir())) < 2:
        pytest.skip("this disk takes the two for one")
    with pytest.raises(FolderError, match="differ in case only"):
        list_folder(tmp_path, ("center", "label"), tmp_path)


def paths_of(group: dict, above: str = ""):
    """Every key below a group that a cohort may change, as a path of names."""
    for key, value in group.items():
        path = f"{above}{key}"
        if not is_open(path):
            yield path
            if isinstance(value, dict):
                yield from paths_of(value, f"{path}.")


def nested(path: str, value: object) -> dict:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def configured(conf, typed: dict | None = None) -> PlainConfigLoader:
    return PlainConfigLoader(str(conf), env="clinic", runtime_params=typed, **CONFIG_LOADER_ARGS)


def test_every_cohort_of_the_project_has_known_keys_only():
    for file in sorted((PROJECT / "conf").glob("*/globals.yml")):
        refuse_unknown_keys(
            PlainConfigLoader(str(PROJECT / "conf"), env=file.parent.name, **CONFIG_LOADER_ARGS)
        )


def test_each_key_misspelt_is_refused_with_what_was_meant():
    base = base_parameters()
    paths = list(paths_of(base))
    assert len(paths) > 100
    for path in paths:
        group, _, key = path.rpartition(".")
        wrong = f"{path[:-1]}{'y' if path[-1] != 'y' else 'z'}x"
        (told,) = unknown_keys(nested(wrong, 0.9), base)
        assert told.startswith(f"there is no {wrong}:")
        # Names of one or two letters have nothing close to them: those that there are stand there.
        # Without its last letter a name may be another one: step, steps.
        assert key in told or key[:-1] in told
        assert group in told


def test_each_key_may_be_given_and_each_leaf_may_take_any_value():
    base = base_parameters()
    for path in paths_of(base):
        value = base
        for key in path.split("."):
            value = value[key]
        for given in (None, [1], 0.5, value):
            told = unknown_keys(nested(path, given), base)
            is_group = isinstance(value, dict) and value
            refused = is_group and given != value and not (given is None and "." in path)
            assert bool(told) == bool(refused), (path, given, told)


UNKNOWN = {
    "group": ({"retreival": {"k": 5}}, "there is no retreival: did you mean retrieval?"),
    "key": (
        {"retrieval": {"critera": []}},
        "no retrieval.critera: did you mean retrieval.criteria?",
    ),
    "key_of_another_group": ({"retrieval": {"mpp_bounds": 1}}, "did you mean ingest.mpp_bounds?"),
    "value_for_a_group": (
        {"texture": {"probe": 3}},
        "texture.probe is 3: it has the keys folds, C, max_iter",
    ),
    "words_of_no_experiment": (
        {"words_robustness": {"rotaton": {"title": "x"}}},
        "no words_robustness.rotaton: did you mean words_robustness.rotation?",
    ),
    "calibration_of_no_experiment": (
        {"tile": {"calibration": {"called": "x"}}},
        "there is no tile.calibration",
    ),
    "empty_group": ({"tile": None}, "tile is empty: remove the line"),
    "no_encoders": ({"encoders": None}, "encoders is empty: remove the line"),
    "encoders_as_a_list": ({"encoders": ["uni"]}, "encoders is ['uni']: write its keys below it"),
    "encoder_not_left_out": (
        {"encoders": {"eficientnet_lite0": None}},
        "encoders.eficientnet_lite0 is null and leaves out nothing: did you mean "
        "encoders.efficientnet_lite0?",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_key_that_nothing_reads_is_refused_before_anything_runs(conf, case):
    content, message = UNKNOWN[case]
    (conf / "clinic" / "parameters_mine.yml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        ValueError, match=re.escape("conf/clinic/parameters_mine.yml: ") + ".*" + re.escape(message)
    ):
        refuse_unknown_keys(configured(conf))


def test_open_groups_take_names_of_ones_own(conf):
    content = {
        "encoders": {"mine": {"model": "timm:resnet18"}, "efficientnet_lite0": None},
        "engine": {"dask": {"options": {"queue": "gpu"}}},
        "phantom": {"labels": {"breast_lobular": "breast"}},
        "words_robustness": {
            "rotation": {"title": "Drehung", "settings": {"view": {"rotated": ""}}}
        },
        "clustering_score": {"calibration": {"called": "colour", "nuisance": "stain_statistics"}},
        "_helper": 3,
    }
    (conf / "clinic" / "parameters_mine.yml").write_text(yaml.safe_dump(content))
    refuse_unknown_keys(configured(conf, {"encoders": {"mine": {"batch_size": 4}}}))


def test_several_faults_are_told_at_once(conf):
    (conf / "clinic" / "parameters_tile.yml").write_text("tile: {pixel: 1, mppp: 2}\n")
    with pytest.raises(
        ValueError, match=r"tile\.pixel:(.|\n)*tile\.mppp:(.|\n)*--params: .*tile\.x"
    ):
        refuse_unknown_keys(configured(conf, {"tile": {"x": 1}}))


def test_files_and_globals_whose_names_have_a_slip_are_refused(conf):
    (conf / "clinic" / "paramters_tile.yml").write_text("tile: {mpp: 1}\n")
    (conf / "clinic" / "globals.yml").write_text("root: data/clinic\nslide_root: /x\nmine: 1\n")
    with pytest.raises(ValueError, match="did you mean") as info:
        refuse_unknown_keys(configured(conf))
    assert str(info.value).splitlines() == [
        "conf/clinic/paramters_tile.yml: nothing reads a file of this name: did you mean "
        "parameters_tile.yml?",
        "conf/clinic/globals.yml: there is no slide_root: did you mean slides_root?",
    ]


def test_a_second_run_of_a_cohort_is_told_which_one_there_is(tmp_path):
    with (
        cohort_lock(tmp_path, "clinic"),
        pytest.raises(CohortInUseError, match="cohort clinic is being run already, by process"),
        cohort_lock(tmp_path, "clinic"),
    ):
        pytest.fail("two runs at once")


def test_what_another_pipeline_makes_is_told_with_the_command(tmp_path):
    tiles = ParquetDataset(filepath=(tmp_path / "tiles").as_posix(), version=Version(None, None))
    told = {"run_params": {"env": "clinic"}, "catalog": DataCatalog({"tiles": tiles})}
    with pytest.raises(
        ValueError, match=r"tiles: not made yet for cohort clinic\. Run first: kedro"
    ):
        RunHooks().before_pipeline_run(
            pipeline=Pipeline([node(len, "tiles", "n", name="count")]), **told
        )


def test_a_reference_in_a_folders_name_is_told_as_one(conf):
    (conf / "clinic" / "globals.yml").write_text("slides_root: /data/a${x}b\n")
    with pytest.raises(ValueError, match=r"conf/clinic, slides_root: .* is read as a reference"):
        read_cohort_plan("clinic", str(conf))


def test_vectors_of_a_changed_entry_are_basis_key(tmp_path):
    vectors = ShardedTensors(
        tmp_path, {}, {"encoder": "uni", "entry": {"model": "timm:resnet18", "pooling": "default"}}
    )
    entry = {"model": "timm:resnet18", "pooling": "patch_mean"}
    catalog = DataCatalog(
        {"params:encoders.uni": MemoryDataset(entry), "slides": ParquetDataset(filepath="none")}
    )
    read = node(len, "embeddings.uni", "n", name="read")
    with pytest.raises(ValueError, match=r"the vectors were made with encoders\.uni"):
        VectorHooks().check_vectors(read, catalog, {"embeddings.uni": vectors})


def test_vectors_of_a_replaced_file_are_told():
    class Vectors:
        slide_ids = ("a",)

        def slide_header(self, slide_id):
            return {"slide": "as it was"}

    slides = pl.DataFrame({"slide_id": ["a"], "fingerprint": ["as it is"]})
    with pytest.raises(
        OtherSlidesError, match="the vectors of slide a were made from another file"
    ):
        refuse_other_slides(slides, Vectors(), "embeddings.uni", "run the embed pipeline again")
