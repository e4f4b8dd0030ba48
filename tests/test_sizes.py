"""The size of an audit changes conf/base alone, and what it asks for can be decided."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from pathfm_kedro.cohorts import CONFIG_LOADER_ARGS
from pathfm_kedro.commands.supported_checks import too_small_checks
from pathfm_kedro.configuration import refuse_unknown_keys
from pathfm_kedro.sizes import SizedConfigLoader
from pathfm_kedro.statistics.bootstrap import binomial_interval
from tests.conftest import PROJECT, base_parameters

#: Smallest institution that the default size is made for.
PATIENTS = 200
BASE = base_parameters()
SIZES = BASE["sizes"]
#: What is no matter of size.
NOT_OF_SIZE = {"criteria", "seed", "k_grid", "distance", "designs", "calibration"}


def loader(conf: Path, env: str = "clinic", **typed) -> SizedConfigLoader:
    return SizedConfigLoader(str(conf), env=env, runtime_params=typed or None, **CONFIG_LOADER_ARGS)


@pytest.fixture
def conf(tmp_path) -> Path:
    """A configuration with conf/base and an empty cohort."""
    shutil.copytree(PROJECT / "conf" / "base", tmp_path / "base")
    (tmp_path / "clinic").mkdir()
    write(tmp_path, "parameters.yml", {"cohort": {"name": "clinic"}})
    write(tmp_path, "globals.yml", {"root": "data/clinic"})
    return tmp_path


def write(conf: Path, name: str, content: dict) -> None:
    (conf / "clinic" / name).write_text(yaml.safe_dump(content))


def test_the_default_size_is_conf_base_as_it_is(conf):
    expected = {key: value for key, value in BASE.items() if key != "sizes"}
    found = loader(conf)["parameters"]
    assert found == expected | {"cohort": BASE["cohort"] | {"name": "clinic"}}
    assert found["audit"] == {"size": "standard"}
    assert (found["tile_pool"]["max_tiles"], found["adversarial"]["pgd_steps"]) == (1024, [10, 50])


def merged(values, changed):
    """Settings within settings keep what a size does not name."""
    if not isinstance(values, dict) or not isinstance(changed, dict):
        return changed
    return values | {key: merged(values.get(key), value) for key, value in changed.items()}


@pytest.mark.parametrize("size", SIZES)
def test_a_size_changes_what_it_lists_and_nothing_else(conf, size):
    found = loader(conf, audit={"size": size})["parameters"]
    for block, values in BASE.items():
        if block in {"sizes", "audit", "cohort"}:
            continue
        changed = SIZES[size].get(block, {})
        assert found[block] == merged(values, changed)
        assert not NOT_OF_SIZE & set(changed)


def test_the_cohorts_own_keys_win_and_the_command_line_over_them(conf):
    write(conf, "parameters_robustness.yml", {"tile_pool": {"max_tiles": 500}})
    write(conf, "parameters.yml", {"audit": {"size": "quick"}})
    found = loader(conf)["parameters"]
    assert found["tile_pool"] == {"max_tiles": 500, "seed": 0}
    assert found["field_of_view"]["max_tiles"] == SIZES["quick"]["field_of_view"]["max_tiles"]
    typed = loader(conf, tile_pool={"max_tiles": 9}, audit={"size": "full"})["parameters"]
    assert typed["tile_pool"]["max_tiles"] == 9
    assert typed["rotation"]["angle_step"] == SIZES["full"]["rotation"]["angle_step"]


def test_the_demonstration_is_quick():
    found = loader(PROJECT / "conf", "phantom")["parameters"]
    assert found["audit"]["size"] == "quick"
    quick = SIZES["quick"]
    assert found["tile_pool"]["max_tiles"] <= quick["tile_pool"]["max_tiles"]
    assert found["field_of_view"]["max_tiles"] <= quick["field_of_view"]["max_tiles"]
    assert found["rotation"]["angle_step"] >= quick["rotation"]["angle_step"]
    # With fewer than 23 patients attacked nothing could pass.
    assert found["adversarial"]["max_tiles"] == quick["adversarial"]["max_tiles"] == 24
    for name in ("robustness_index", "center_auc"):
        assert quick[name].items() <= found[name].items()


def test_a_cohort_may_add_a_size_of_its_own(conf):
    own = {"sizes": {"ours": {"tile_pool": {"max_tiles": 300}}}, "audit": {"size": "ours"}}
    write(conf, "parameters.yml", own)
    refuse_unknown_keys(loader(conf))
    assert loader(conf)["parameters"]["tile_pool"]["max_tiles"] == 300


def test_a_size_that_is_not_there_and_a_key_that_nothing_reads_are_refused(conf):
    with pytest.raises(
        ValueError, match=r"audit\.size is 'huge': give one of quick, standard, full"
    ):
        loader(conf, audit={"size": "huge"})["parameters"]
    write(conf, "parameters.yml", {"sizes": {"ours": {"tile_pool": {"max_tile": 300}}}})
    with pytest.raises(
        ValueError, match=r"sizes.ours: there is no tile_pool.max_tile: did you mean"
    ):
        refuse_unknown_keys(loader(conf))


@pytest.mark.parametrize("size", ["standard", "full"])
def test_no_check_is_undecidable_at_an_institution_s_size(conf, size):
    found = loader(conf, audit={"size": size})["parameters"]
    assert too_small_checks(found, PATIENTS) == []
    assert too_small_checks(loader(conf, audit={"size": "quick"})["parameters"], PATIENTS)


def test_a_gain_of_nothing_passes_at_the_default_size():
    """A tenth of the places are answered otherwise, half of them better."""
    threshold = BASE["field_of_view"]["criteria"][0]["below"]
    places = min(PATIENTS, BASE["field_of_view"]["max_tiles"])
    generator = np.random.default_rng(0)
    moved = generator.choice([-1, 0, 1], p=[0.05, 0.9, 0.05], size=(2000, places))
    gain, spread = moved.mean(axis=1), moved.std(axis=1) / np.sqrt(places)
    passes = (gain + 1.96 * spread < threshold).mean()
    assert passes > 0.5
    # The 48 of the demonstration could not, even where nothing is answered otherwise.
    assert binomial_interval(0, SIZES["quick"]["field_of_view"]["max_tiles"])[1] > threshold
    assert binomial_interval(0, places)[1] < threshold


def test_a_small_drop_passes_at_the_default_size():
    """With a drop in 7 of 100 patients an encoder passes; of the least number all must stand."""
    block = BASE["adversarial"]
    threshold, tiles = block["criteria"][0]["below"], block["max_tiles"]
    assert binomial_interval(round(0.07 * tiles), tiles)[1] < threshold
    least = block["criteria"][0]["min_patients"]
    assert binomial_interval(0, least)[1] < threshold <= binomial_interval(0, least - 1)[1]
