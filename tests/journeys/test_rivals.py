"""A network that is trained on the cohort and its null, from slides to the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
import yaml

from pathfm_kedro.datasets.shard_files import read_header
from tests.journeys.conftest import (
    SMALL_INHERITANCE,
    SMALL_RETRIEVE,
    SMALL_ROBUSTNESS,
    _environment,
    dvc,
    fresh_clone,
    kedro,
    newest,
    read_table,
    write_parameters,
)

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

COHORT, RIVAL, NULL = "mini", "small_cnn", "small_cnn_random_weights"
EMBED = ("run", "--env", COHORT, "--pipelines", "embed", "--namespaces", f"embed.{RIVAL}")
_LIMIT_SECONDS = 300


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """A drawn cohort of 16 slides in tiles, with a rival, its null and nothing else but colour."""
    folder = fresh_clone(tmp_path_factory)
    kedro(folder, "cohort", "new", COHORT, "--phantom")
    drawn = {"patients_per_cell": 2, "centers": ["north", "south"], "size_px": 1024}
    write_parameters(folder, COHORT, "ingest", phantom=drawn)
    entry = {
        "model": "trained:small_cnn",
        "training": {"epochs": 6, "tiles_per_slide": 16},
        "random_weights": True,
    }
    path = folder / "conf" / COHORT / "parameters_encoders.yml"
    others = yaml.safe_load(path.read_text())["encoders"]
    base = yaml.safe_load((folder / "conf/base/parameters_encoders.yml").read_text())["encoders"]
    left_out = dict.fromkeys(set(base) - {"stain_statistics"})
    assert RIVAL not in others
    write_parameters(folder, COHORT, "encoders", encoders={**left_out, RIVAL: entry})
    write_parameters(folder, COHORT, "retrieve", **SMALL_RETRIEVE)
    write_parameters(folder, COHORT, "inheritance", **SMALL_INHERITANCE)
    write_parameters(folder, COHORT, "robustness", **SMALL_ROBUSTNESS)
    kedro(folder, "cohort", "sync")
    kedro(folder, "run", "--env", COHORT, "--pipelines", "ingest,tile")
    return folder


def killed_after_an_epoch(folder):
    """Start the embed pipeline and kill it once the fit has left a state."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kedro", *EMBED],
        cwd=folder,
        env=_environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + _LIMIT_SECONDS
    states = folder / "data" / COHORT / "06_models/models"
    while not (found := list(states.glob(f"*/{RIVAL}.0/state.safetensors"))):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < limit, "no epoch has ended"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return found[0]


def test_a_rival_is_fitted_and_audited_on_other_patients(mini):
    state = killed_after_an_epoch(mini)
    done = len(json.loads(read_header(state)["text"])["losses"])
    kedro(mini, *EMBED)
    weights = newest(mini, COHORT, f"06_models/models/*/{RIVAL}.0")
    assert weights != state.parent
    stated = json.loads((weights / "fit.json").read_text())
    assert len(stated["losses"]) == 6
    log = (mini / "logs/kedro.log").read_text()
    assert done == 6 or f"training {RIVAL}: going on from the state of an earlier run" in log

    slides = read_table(mini, COHORT, "02_intermediate/slides.parquet")
    patient_of = dict(slides["slide_id", "patient_id"].iter_rows())
    shards = newest(mini, COHORT, f"04_feature/embeddings/*/{RIVAL}")
    index = json.loads((shards / "_index.json").read_text())["slides"]
    done, left = (
        {patient_of[s] for s, entry in index.items() if entry["status"] == status}
        for status in ("done", "left_out")
    )
    pixels = newest(mini, COHORT, f"05_model_input/training_tiles/*/{RIVAL}")
    trained = {patient_of[path.stem] for path in pixels.glob("*.safetensors")}
    assert trained == left
    assert not trained & done
    assert trained | done == set(patient_of.values())


def test_the_audit_reads_what_was_fitted_and_says_so(mini):
    kedro(
        mini, "run", "--env", COHORT, "--pipelines", "embed,retrieve,robustness,inheritance,report"
    )
    rows = read_table(mini, COHORT, "08_reporting/measurements.parquet")
    assert {RIVAL, NULL, "stain_statistics"} <= set(rows["encoder"])
    probe = rows.filter(experiment="linear_probe", metric="balanced_accuracy", encoder=RIVAL)
    pooled = pl.col("setting").str.contains("splits")
    assert probe.filter(~pooled)["n_patients"].drop_nulls().max() <= 8
    # Another network is audited on the other half: together they know of every patient.
    assert f"{RIVAL}__2" in set(rows["encoder"])
    assert probe.filter(pooled)["n_patients"].max() == 16
    index = rows.filter(pooled, experiment="robustness_index", metric="ri", encoder=RIVAL)
    # Half of 16 patients are too few for an index: pooled rows say so.
    assert index.height
    assert index.filter(pl.col("value").is_null())["reason"].str.len_chars().min() > 0
    assert rows.filter(pooled, experiment="retrieval", metric="macro_f1").height
    attacked = rows.filter(experiment="adversarial", encoder=RIVAL)
    assert attacked.height
    report = newest(mini, COHORT, "08_reporting/report.html").read_text()
    assert f"Nothing of {RIVAL} on 8 slides: their patients train it" in report
    assert f"No expectation of chance for {NULL}" in report
    cards = json.loads(newest(mini, COHORT, "04_feature/all_encoder_cards.json").read_text())
    assert (cards[RIVAL]["n_slides"], cards[RIVAL]["n_left_out"]) == (8, 8)
    assert cards[NULL]["role"] == "control"
    assert pl.Series(rows["reason"]).str.contains(r"\bnan\b").any() is False


def test_dvc_fits_a_rival_in_one_stage_and_not_again(mini):
    dvc(mini, "repro", f"rival@{COHORT}-{RIVAL}")
    pinned = mini / "data" / COHORT / f"06_models/models/0-repro/{RIVAL}.0/weights.safetensors"
    before = pinned.stat().st_mtime_ns
    again = dvc(mini, "repro", f"rival@{COHORT}-{RIVAL}")
    assert "didn't change" in again.stdout + again.stderr
    assert pinned.stat().st_mtime_ns == before
    record = mini / "data" / COHORT / f"04_feature/encoder_runtimes/0-repro/{RIVAL}.json"
    path = json.loads(record.read_text())["key"]["checkpoint"]
    assert path == f"data/{COHORT}/06_models/models/0-repro/{RIVAL}.0/weights.safetensors"
