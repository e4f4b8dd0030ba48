"""A cost is measured once, says what it could not measure, and is the same record the next time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pathfm_kedro.datasets.runtime_record import FamilyRecordDataset
from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.cost import CostSettings, CostTrial
from pathfm_kedro.encoders.energy import EnergyMeter
from pathfm_kedro.encoders.operations import operations_per_tile

SETTINGS = CostSettings(measured=True, slides=1, tiles=4, turns=3, idle_seconds=0.001)
NETWORK = EncoderSpec(
    "small", "timm:test_vit", pretrained=False, seed=0, runtime="eager", device="cpu",
    precision="float32",
)  # fmt: skip


def batches(size):
    for start in range(0, 4, size):
        yield np.full((min(size, 4 - start), 160, 160, 3), 200, np.uint8), None


def trial(spec=NETWORK, settings=SETTINGS, **more) -> CostTrial:
    return CostTrial(spec, settings, {"torch": "1"}, "slides", batches, [lambda: None] * 2, **more)


def test_a_record_holds_every_turn_and_why_energy_is_missing(tmp_path):
    found = trial(settings=replace(SETTINGS, powercap=str(tmp_path))).record()
    assert found["flops_per_tile"] == operations_per_tile(NETWORK) > 0
    assert (found["tiles"], len(found["turns"]), len(found["tiling"])) == (4, 3, 2)
    assert all(turn["seconds"] > 0 and turn["joules"] == {} for turn in found["turns"])
    assert "containers" in found["problems"]["rapl"]
    assert found["processor"]


def test_energy_and_memory_are_those_of_the_counters(tmp_path, monkeypatch):
    clock = {"now": 0.0}

    class Counter:
        source = "rapl"

        def joules(self):
            return 100 * clock["now"]

    def sleep(seconds):
        clock["now"] += seconds

    meter = EnergyMeter((Counter(),), clock=lambda: clock["now"], sleep=sleep)
    monkeypatch.setattr(CostSettings, "meter", lambda self, device: meter)
    (tmp_path / "clear_refs").write_text("")
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n")
    found = trial(process=tmp_path).record()
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert found["peak_bytes"] == {"cpu": 2048 * 1024}
    # 100 W by the counter, at rest as in work: nothing is left.
    assert found["idle_watts"] == {"rapl": pytest.approx(100)}
    assert [turn["joules"] for turn in found["turns"]] == [{"rapl": 0.0}] * 3


def test_a_second_run_takes_the_first_record_whatever_the_clock_says(tmp_path):
    from kedro.io.core import Version

    written = []
    for version in ("0-repro", "2026"):
        path = (tmp_path / "small.json").as_posix()
        dataset = FamilyRecordDataset(filepath=path, version=Version(version, version))
        dataset.save(trial())
        written.append((tmp_path / version / "small.json").read_bytes())
    assert written[0] == written[1]


def test_what_a_record_depends_on_is_measured_anew():
    key = trial().key()
    assert key == trial(settings=replace(SETTINGS)).key()
    others = [
        trial(spec=replace(NETWORK, runtime="channels_last")),
        trial(settings=replace(SETTINGS, turns=5)),
        replace(trial(), pixels_key="other slides"),
        replace(trial(), runtime_key={"torch": "2"}),
    ]
    assert all(other.key() != key for other in others)


def test_unmeasured_costs_are_operations_alone_and_know_no_machine():
    found = trial(settings=replace(SETTINGS, measured=False)).record()
    assert found["flops_per_tile"] > 0
    assert (found["turns"], found["peak_bytes"], found["processor"]) == ((), {}, "")
    assert "cost_trial.measured is false" in found["problems"]["trial"]
    assert "processor" not in found["key"]


def test_a_control_costs_nothing_that_can_be_counted():
    found = trial(spec=EncoderSpec("c", "control:stain_statistics", role="control")).record()
    assert found["flops_per_tile"] is None
    assert set(found["problems"]) == {"flops", "trial"}


def test_four_quarter_turns_cost_four_times():
    turned = replace(NETWORK, mitigation="rotation_average")
    assert operations_per_tile(turned) == 4 * operations_per_tile(NETWORK)


def test_slides_that_cannot_be_read_end_no_run():
    def broken(size):
        raise OSError("the slide is not there")
        yield

    found = replace(trial(), batches=broken).record()
    assert "the slide is not there" in found["problems"]["trial"]
    assert found["flops_per_tile"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"turns": 0}, "cost_trial.turns is 0"),
        ({"tdp_watts": 65}, "belong together"),
        ({"tdp_watts": -1.0, "cores": 4}, "cost_trial.tdp_watts is -1"),
        ({"tile": 3}, "its keys are measured, slides"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes, words):
    given = {k: getattr(SETTINGS, k) for k in ("measured", "slides", "tiles", "turns")}
    with pytest.raises(ValueError, match=words):
        CostSettings.from_parameters(given | {"idle_seconds": 1} | changes)
