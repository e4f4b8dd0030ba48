"""Energy is what counters say, whatever they look like; operations are those of closed forms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pathfm_kedro.encoders.energy import (
    CounterError,
    EnergyMeter,
    NvmlCounter,
    RaplCounter,
    open_meter,
)
from pathfm_kedro.encoders.operations import count_operations

RANGE = 262_143_328_850


def zone(root: Path, name: str, kind: str, energy: int, most: int = RANGE) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, content in (("name", kind), ("max_energy_range_uj", most), ("energy_uj", energy)):
        (folder / file).write_text(f"{content}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path) -> dict[str, Path]:
    """Two packages with their parts, as a machine of two sockets shows them."""
    kinds = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "dram",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    (tmp_path / "intel-rapl").mkdir()
    return {name: zone(tmp_path, name, kind, 1_000_000) for name, kind in kinds.items()}


def root_of(zones: dict[str, Path]) -> Path:
    return zones["intel-rapl:0"].parents[1]


def test_packages_and_memory_are_added_and_what_they_hold_is_not(powercap):
    counter = RaplCounter(root_of(powercap))
    for power, file in enumerate(powercap.values()):
        file.write_text(str(1_000_000 + 10**power * 1_000_000))
    # package-0, dram of 0, package-1, dram of 1; neither cores, psys nor the second driver's package.
    assert counter.joules() == pytest.approx(1 + 100 + 1000 + 10_000)


def test_parts_within_their_package_are_found_as_beside_it(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    memory = zone(tmp_path / "intel-rapl:0", "intel-rapl:0:0", "dram", 0)
    beside = zone(tmp_path, "intel-rapl:0:0", "dram", 0)  # a link to the same, on a whole machine
    counter = RaplCounter(tmp_path)
    memory.write_text("3000000")
    beside.write_text("3000000")
    assert counter.joules() == pytest.approx(3)


def test_a_counter_that_wraps_around_goes_on(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 3_000_000)
    counter = RaplCounter(tmp_path)
    for energy, joules in ((2_000_000, 5), (7_000_000, 10), (1_000_000, 10 + RANGE / 1e6 - 6)):
        file.write_text(str(energy))
        assert counter.joules() == pytest.approx(joules)


def test_without_counters_there_is_a_reason_and_the_mend(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        meter = open_meter(gpu=False, root=root)
        assert meter.counters == ()
        assert "containers" in meter.problems["rapl"]
        assert "cost_trial.tdp_watts" in meter.problems["rapl"]
        assert meter.measure(lambda: None).joules == {}


def test_a_counter_for_root_alone_says_which_file_and_the_command(powercap, monkeypatch):
    refused = powercap["intel-rapl:1:0"]
    refused.chmod(0o400)
    read = Path.read_text

    def as_somebody_else(path, *args, **kwargs):
        if not path.stat().st_mode & 0o044:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", as_somebody_else)
    problem = open_meter(gpu=False, root=root_of(powercap)).problems["rapl"]
    assert str(refused) in problem
    assert "sudo chmod a+r" in problem


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_counter_that_is_no_number_is_named(powercap):
    powercap["intel-rapl:0"].write_text("")
    with pytest.raises(CounterError, match=r"intel-rapl:0/energy_uj cannot be read"):
        RaplCounter(root_of(powercap))


class Clock:
    """Time that passes when it is asked to, and a counter that rises with it."""

    source = "rapl"

    def __init__(self) -> None:
        self.now = self.cpu = self.energy = 0.0

    def spend(self, seconds: float, watts: float, cpu: float = 0.0) -> None:
        self.now += seconds
        self.cpu += cpu
        self.energy += watts * seconds

    def joules(self) -> float:
        return self.energy

    def meter(self, **more) -> EnergyMeter:
        return EnergyMeter(
            clock=lambda: self.now,
            cpu_clock=lambda: self.cpu,
            sleep=lambda seconds: self.spend(seconds, 40),
            **more,
        )


def test_what_the_machine_takes_idle_is_subtracted():
    clock = Clock()
    meter = clock.meter(counters=(clock,))
    meter.rest(2.0)
    assert meter.idle_watts == {"rapl": pytest.approx(40)}
    spent = meter.measure(lambda: clock.spend(10, 100, cpu=9))
    assert (spent.seconds, spent.cpu_seconds) == (pytest.approx(10), pytest.approx(9))
    assert spent.joules == {"rapl": pytest.approx(600)}
    # Idle is itself uncertain: work that takes next to nothing takes no less than nothing.
    assert meter.measure(lambda: clock.spend(1, 30)).joules == {"rapl": 0.0}


def test_the_model_is_cpu_time_times_watts_of_a_core_and_stands_aside_for_a_counter():
    clock = Clock()
    work = lambda: clock.spend(10, 100, cpu=5)  # noqa: E731
    assert clock.meter(watts_per_core=15.0).measure(work).joules == {"tdp_model": 75.0}
    both = clock.meter(watts_per_core=15.0, counters=(clock,))
    assert set(both.measure(work).joules) == {"rapl"}


class Nvml:
    """What of pynvml is used."""

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self, energies, counts=True) -> None:
        self.energies, self.counts = energies, counts

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.energies)

    def nvmlDeviceGetHandleByIndex(self, i):  # noqa: N802
        return i

    def nvmlDeviceGetTotalEnergyConsumption(self, i):  # noqa: N802
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return self.energies[i]


def test_gpus_are_added_from_the_first_reading_on(tmp_path):
    nvml = Nvml([500_000, 7_000])
    counter = NvmlCounter(nvml)
    nvml.energies = [512_000, 8_000]
    assert counter.joules() == pytest.approx(13)
    problems = open_meter(gpu=True, root=tmp_path, nvml=Nvml([1], counts=False)).problems
    assert "Volta" in problems["nvml"]
    assert "no GPU" in open_meter(gpu=True, root=tmp_path, nvml=Nvml([])).problems["nvml"]
    assert "nvml" not in open_meter(gpu=False, root=tmp_path, nvml=Nvml([1])).problems


def test_operations_of_layers_are_those_of_the_closed_form():
    import torch

    conv = torch.nn.Conv2d(3, 16, 5, stride=2, padding=2)
    assert count_operations(conv, torch.zeros(1, 3, 32, 32)) == 2 * 3 * 16 * 25 * 16 * 16
    mlp = torch.nn.Sequential(torch.nn.Linear(7, 11), torch.nn.GELU(), torch.nn.Linear(11, 2))
    assert count_operations(mlp, torch.zeros(4, 7)) == 4 * 2 * (7 * 11 + 11 * 2)


def test_operations_of_vit_small_are_those_published_and_hold_attention():
    import timm
    import torch

    model = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=0).eval()
    counted = count_operations(model, torch.zeros(1, 3, 224, 224))
    tokens, width, blocks, hidden = 197, 384, 12, 1536
    products = tokens * width * (4 * width + 2 * hidden) + 2 * tokens**2 * width
    assert counted == 2 * (196 * 768 * width + blocks * products)
    # DeiT-S of Touvron et al. 2021: 4.6 G multiply-adds.
    assert counted / 2e9 == pytest.approx(4.6, abs=0.05)
