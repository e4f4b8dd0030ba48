"""`kedro encoders`: what is listed, shown and checked, and what is written into a cohort's file."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from pathfm_kedro.cohorts import read_cohort_plan
from pathfm_kedro.commands import encoders as encoders_cli
from pathfm_kedro.commands.encoders import encoders, with_encoder
from pathfm_kedro.encoders.presets import read_presets
from tests.conftest import PROJECT
from tests.encoders.features import layouts


@pytest.fixture(autouse=True)
def one_compute_thread():
    """As in a worker: small networks are many times faster so."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The project's configuration in a folder of its own, with a cohort."""
    root = tmp_path / "project"
    shutil.copytree(PROJECT / "conf", root / "conf")
    shutil.copy(PROJECT / "pyproject.toml", root)
    (root / "src").mkdir()
    shutil.copytree(root / "conf" / "phantom", root / "conf" / "clinic")
    monkeypatch.chdir(root)
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    return root


def run(*words):
    return CliRunner().invoke(encoders, [str(word) for word in words])


def test_the_list_holds_every_preset_a_line_each():
    lines = run("list").output.splitlines()
    rows = [line.split("\t") for line in lines]
    assert [row[0] for row in rows] == ["name", *read_presets()]
    by_name = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert by_name["uni2_h"] == {
        "name": "uni2_h",
        "parameters": "681.4M",
        "dimension": "1536",
        "licence": "CC-BY-NC-ND-4.0",
        "commercial": "no",
        "gated": "yes",
        "cached": "no",
        "needs": "its terms accepted, hf auth login",
    }
    assert by_name["gpfm"]["commercial"] == "?"
    assert by_name["atlas_2"]["needs"].startswith("bring its features: it needs weights, which")
    assert len(run("list", "--usable").output.splitlines()) < len(lines)


def test_the_list_as_json_is_all_that_is_known():
    facts = {entry["name"]: entry for entry in json.loads(run("list", "--json").output)}
    assert facts["uni"]["pinned"] == "b55a5ec6cade1a39edfe6534189a9b8ca7a022f0"
    assert facts["uni"]["published"]["ri_camelyon"] == 0.108
    assert set(facts) == set(read_presets())


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_table_fits_the_terminal_and_cuts_no_name(width):
    rows = [encoders_cli._row(preset) for preset in read_presets().values()]
    text = io.StringIO()
    Console(file=text, width=width).print(encoders_cli._table(rows, width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert {line.split()[0] for line in lines if line[:1].strip()} >= set(read_presets())
    assert ("licence" in lines[0]) == (width >= 100)


def test_what_is_cached_is_seen(tmp_path, monkeypatch):
    revision = read_presets()["lunit_dino"].pinned
    model = "models--1aurent--vit_small_patch16_224.lunit_dino"
    snapshot = tmp_path / model / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    cached = {e["name"]: e["cached"] for e in json.loads(run("list", "--json").output)}
    assert cached["lunit_dino"] is True
    assert cached["lunit_dino8"] is False
    assert cached["conch"] is None


def test_show_tells_conflicts_figures_and_yaml_that_can_be_pasted():
    output = run("show", "lunit_dino8").output
    assert "Taken: the authors' own" in output
    assert "Lunit Public License (research only)" in output
    pasted = output.partition("parameters_encoders.yml:\n")[2]
    short, _, whole = pasted.partition("which stands for:\n")
    assert yaml.safe_load(short) == {"encoders": {"lunit_dino8": {"preset": "lunit_dino8"}}}
    entry = yaml.safe_load(whole)["encoders"]["lunit_dino8"]
    assert entry == read_presets()["lunit_dino8"].entry
    assert "ri_camelyon: 0.806" in run("show", "virchow2").output
    assert "model: features:<folder>" in run("show", "titan").output
    for name in read_presets():
        assert run("show", name).exit_code == 0


def test_show_of_a_name_that_there_is_not():
    result = run("show", "virchow3")
    assert result.exit_code == 1
    assert "did you mean virchow" in result.output


def test_help_and_list_load_no_torch():
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from pathfm_kedro.cli import cli\n"
        "for words in (['--help'], ['encoders', '--help'], ['encoders', 'list']):\n"
        "    assert CliRunner().invoke(cli, words).exit_code == 0, words\n"
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


# --- check


def test_an_encoder_of_a_cohort_is_checked(project):
    result = run("check", "efficientnet_lite0", "--env", "clinic")
    assert result.exit_code == 0, result.output
    for stated in ("package:efficientnet_lite0", "weights from a file: two loads under different"):
        assert stated in result.output
    assert "FAILED" not in result.output


def test_the_real_weights_are_checked(project, real_data):
    """A real ViT-S/14 from a checkpoint, added with its digest, then checked."""
    path = real_data / "weights" / "vits14_imgfocus_depth8_fp16.safetensors"
    given = {
        "model_kwargs": "{img_size: 518, dynamic_img_size: true, depth: 8, final_norm: false}",
        "mean": "[0.485, 0.456, 0.406]",
        "std": "[0.229, 0.224, 0.225]",
        "input_pixels": "112",
        "pooling": "class_token",
        "sha256": digest_in_index(real_data, path.name),
    }
    words = ["add", "vit", "--model", "timm:vit_small_patch14_dinov2", "--checkpoint", path]
    settings = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    result = run(*words, *settings, "--check", "--env", "clinic")
    assert result.exit_code == 0, result.output
    assert "ok     weights from a file" in result.output
    own = project / "conf" / "clinic" / "parameters_encoders.yml"
    own.write_text(own.read_text().replace(given["sha256"], "f" * 64))
    result = run("check", "vit", "--env", "clinic")
    assert result.exit_code == 1
    assert "download the file again" in result.output


def digest_in_index(real_data, name):
    import csv

    with (real_data / "index.csv").open() as file:
        return next(r["sha256"] for r in csv.DictReader(file) if name in str(r.values()))


def test_a_preset_is_checked_by_its_name(project, monkeypatch):
    """Offline the hub gives nothing: one sentence, and what to do."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("check", "uni2_h")
    assert result.exit_code == 1
    assert "not cached here, and the hub cannot be reached: run 'hf download" in result.output
    result = run("check", "nothing_of_that_name")
    assert (result.exit_code, "there is no preset" in result.output) == (1, True)


def test_a_check_that_fails_ends_with_an_error(project, monkeypatch):
    from pathfm_kedro.encoders import verification

    found = [verification.Check("dimension", False, "3, and 4 is published")]
    monkeypatch.setattr(verification, "check_encoder", lambda *_: iter(found))
    result = run("check", "efficientnet_lite0", "--env", "clinic")
    assert result.exit_code == 1
    assert "FAILED dimension: 3, and 4 is published" in result.output


# --- add


def test_a_preset_is_added_and_dvc_knows(project):
    path = project / "conf" / "clinic" / "parameters_encoders.yml"
    before = path.read_text()
    result = run("add", "uni2", "--preset", "uni2_h", "--set", "batch_size=4", "--env", "clinic")
    assert result.exit_code == 0, result.output
    assert path.read_text().startswith(before)
    plan = read_cohort_plan("clinic", str(project / "conf"))
    assert plan.encoders["uni2"] == {"preset": "uni2_h", "batch_size": 4}
    stages = yaml.safe_load((project / "params.yaml").read_text())["embeddings"]
    assert stages["clinic-uni2"]["encoder"] == "uni2"
    assert "Licence: CC-BY-NC-ND-4.0; not for profit" in result.output
    assert "Next: kedro encoders check uni2 --env clinic" in result.output


def test_other_tiles_than_those_of_training_are_warned_of():
    tile = {"tile": {"pixels": 224, "mpp": 0.5}}
    (licence, warning) = encoders_cli._remarks({"preset": "retccl"}, tile)
    assert licence == "Licence: GPL-3.0; use for profit is unclear"
    assert "retccl was trained on tiles of 256 px at 1 µm per px (authors)" in warning
    assert encoders_cli._remarks({"model": "timm:resnet18"}, tile) == []


@pytest.mark.parametrize(
    ("words", "stated"),
    [
        (["efficientnet_lite0", "--preset", "uni"], "has encoders.efficientnet_lite0 already"),
        (["phantom_truth", "--preset", "uni"], "has encoders.phantom_truth already"),
        (["mine", "--preset", "uni2h"], "did you mean uni2_h"),
        (["mine", "--preset", "conch"], "nothing here loads"),
        (["mine", "--model", "uni"], "begin it with one of"),
        (["a b", "--preset", "uni"], "may hold letters"),
        (["mine"], "give --preset or --model"),
        (["mine", "--preset", "uni", "--set", "pooling"], "write KEY=VALUE"),
        (["mine", "--preset", "uni", "--set", "polling=x"], "unknown keys"),
    ],
)
def test_what_cannot_be_added_changes_nothing(project, words, stated):
    path = project / "conf" / "clinic" / "parameters_encoders.yml"
    before = path.read_text()
    result = run("add", *words, "--env", "clinic")
    assert result.exit_code == 1
    assert stated in result.output
    assert path.read_text() == before


def test_an_encoder_that_a_cohort_leaves_out_is_a_duplicate_too(project):
    path = project / "conf" / "clinic" / "parameters_encoders.yml"
    path.write_text("encoders:\n  noise: null\n")
    assert "already" in run("add", "noise", "--preset", "uni", "--env", "clinic").output


def test_a_cohort_that_there_is_not(project):
    assert (
        "there is no cohort 'nowhere'"
        in run("add", "a", "--preset", "uni", "--env", "nowhere").output
    )


FILES = {
    "empty": "",
    "comments": "# What this cohort changes.\n# encoders:\n#   uni:\n#     model: x\n",
    "null": "encoders:\n  # none yet\n",
    "null and more": "encoders:   # ours\nother:\n  a: 1\n",
    "list": "# a\nencoders:\n  # u\n  u:   # b\n    preset: uni\n\n  # last\n  z: {model: timm:x}\n",
    "list and more": "encoders:\n  uni:\n    preset: uni   # c\n\n# of the next\nother:\n  a: 1\n",
    "wide": "encoders:\n     u:\n          preset: uni\n          mean: [0.5,\n            0.5, 0.5]\n",
    "text": "encoders:\n  uni:\n    model: >-\n      timm:x\n# end",
    "first": "other: 1\nencoders:\n  uni: null\n",
}


@pytest.mark.parametrize("case", FILES)
def test_lines_are_added_and_none_is_changed(case):
    text = FILES[case]
    result = with_encoder(text, "new", {"preset": "uni2_h", "model_kwargs": {"depth": 2}})
    entry = yaml.safe_load(result)["encoders"].pop("new")
    assert entry == {"preset": "uni2_h", "model_kwargs": {"depth": 2}}
    without = result.splitlines()
    for line in text.splitlines():
        assert line == without.pop(without.index(line))
    added = [line.strip() for line in without if line.strip() != "encoders:"]
    assert added == ["new:", "preset: uni2_h", "model_kwargs: {depth: 2}"]
    again = with_encoder(result, "newer", {"preset": "uni"})
    assert list(yaml.safe_load(again)["encoders"])[-2:] == ["new", "newer"]


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("encoders: {uni: {preset: uni}}\n", "write into it by hand\nencoders:\n  new:"),
        ("encoders: [\n", "it is no YAML"),
        ("- a\n", "it holds no keys"),
        ("encoders:\n  new: null\n", "has encoders.new already"),
        ("encoders: 3\n", "write into it by hand"),
    ],
)
def test_a_file_that_lines_cannot_be_added_to(text, stated):
    with pytest.raises(ValueError, match=stated):
        with_encoder(text, "new", {"preset": "uni"})


# --- entries that cannot be, and features


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "harmonised:nowhere", "--set", "mitigation=centring"], "'harmonised:nowhere'"),
        (["--model", "features:.", "--set", "same_as=nowhere"], "same_as is 'nowhere'"),
        (["--model", "features:nowhere"], "there is no such folder"),
        (["--model", "features:.", "--set", "variants=[class_token]"], "as they were pooled"),
        (["--model", "control:nois"], "give control: with one of arrangement_reader"),
        (["--model", "package:resnet"], "give package: with one of efficientnet_lite0"),
    ],
)
def test_what_the_cohort_cannot_run_is_not_written(project, words, message):
    files = [project / "conf/clinic/parameters_encoders.yml", project / "params.yaml"]
    before = [path.read_text() if path.is_file() else None for path in files]
    result = run("add", "mine", *words, "--env", "clinic")
    assert result.exit_code == 1
    assert message in result.output
    assert isinstance(result.exception, SystemExit)
    assert [path.read_text() if path.is_file() else None for path in files] == before


def test_a_name_that_is_neither_the_cohorts_nor_a_preset_tells_both(project):
    result = run("check", "nowhere", "--env", "clinic")
    assert result.exit_code == 1
    assert "cohort clinic has no encoder 'nowhere' (it has efficientnet_lite0, " in result.output


def of_features(project, **keys):
    """A cohort whose manifest names two slides, of which there are features."""
    for name in ("S-1", "S-2"):
        layouts.trident(project.parent / "job", name)
    manifest = "slide_id,path,patient_id,center,label\nS-1,,p,A,x\nS-2,,q,A,y\n"
    (project / "manifest.csv").write_text(manifest)
    written = project / "conf/clinic/globals.yml"
    stated = yaml.safe_load(written.read_text()) | {"manifest": "manifest.csv"}
    written.write_text(yaml.safe_dump(stated))
    entry = {"model": "features:../job"} | keys
    words = [word for key, value in entry.items() for word in ("--set", f"{key}={value}")]
    return words[2:]


def test_features_are_checked_by_their_files(project):
    more = of_features(project)
    added = run("add", "uni", "--model", "features:../job", *more, "--env", "clinic")
    assert added.exit_code == 0, added.output
    result = run("check", "uni", "--env", "clinic")
    assert result.exit_code == 0, result.output
    assert "uni: 2 of 2 slides have a file; layout trident, 8 numbers a vector" in result.output
    assert "published of uni are 1024 numbers" in result.output


def test_features_of_another_length_than_their_preset_are_refused(project):
    more = of_features(project, preset="uni")
    words = ["add", "uni", "--model", "features:../job", *more, "--check", "--env", "clinic"]
    result = run(*words)
    assert result.exit_code == 1
    assert "vectors have 8 numbers, and 1024 are published of the preset 'uni'" in result.output
    assert "no file that was looked at can be used" in result.output
