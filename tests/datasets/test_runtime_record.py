"""Records: measured once, found again in any version, measured anew where something else is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kedro.io.core import DatasetError, Version

from pathfm_kedro.datasets.runtime_record import FamilyRecordDataset


@dataclass
class Trial:
    """A trial whose outcome differs each time, as that of a race does."""

    of: str = "weights-1"
    measured: list[int] = field(default_factory=list)

    def key(self) -> dict[str, str]:
        return {"of": self.of}

    def record(self) -> dict:
        self.measured.append(1)
        return {"key": self.key(), "speed": len(self.measured)}


def dataset(folder: Path, version: str | None) -> FamilyRecordDataset:
    return FamilyRecordDataset(
        filepath=(folder / "runtimes" / "uni.json").as_posix(),
        version=Version(version, version) if version else None,
    )


@pytest.mark.parametrize("second", ["0-repro", "2030-01-01T00.00.00.000Z"])
def test_a_record_is_measured_once(tmp_path, second):
    trial = Trial()
    dataset(tmp_path, "0-repro").save(trial)
    dataset(tmp_path, second).save(trial)
    assert len(trial.measured) == 1
    assert dataset(tmp_path, second).load() == {"key": {"of": "weights-1"}, "speed": 1}


def test_a_record_of_something_else_is_not_taken(tmp_path):
    trial = Trial()
    dataset(tmp_path, "a").save(trial)
    trial.of = "weights-2"
    dataset(tmp_path, "b").save(trial)
    assert dataset(tmp_path, "a").load()["speed"] == 1
    assert dataset(tmp_path, "b").load()["speed"] == 2
    trial.of = "weights-1"
    dataset(tmp_path, "c").save(trial)
    assert dataset(tmp_path, "c").load()["speed"] == 1


def test_a_copy_has_the_same_bytes(tmp_path):
    for version in ("a", "b"):
        dataset(tmp_path, version).save(Trial())
    first, second = (tmp_path / "runtimes" / v / "uni.json" for v in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '{"key": null}'])
def test_a_torn_record_is_measured_again(tmp_path, broken):
    path = tmp_path / "runtimes" / "a" / "uni.json"
    path.parent.mkdir(parents=True)
    path.write_text(broken)
    dataset(tmp_path, "b").save(Trial())
    assert dataset(tmp_path, "b").load()["speed"] == 1


def test_a_torn_record_says_what_to_do(tmp_path):
    path = tmp_path / "runtimes" / "a" / "uni.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(DatasetError, match=r"uni\.json holds no record: remove the file"):
        dataset(tmp_path, "a").load()


def test_other_encoders_records_are_not_taken(tmp_path):
    dataset(tmp_path, "a").save(Trial())
    other = FamilyRecordDataset(
        filepath=(tmp_path / "runtimes" / "other.json").as_posix(), version=Version("a", "a")
    )
    trial = Trial()
    other.save(trial)
    assert len(trial.measured) == 1


def test_a_record_holds_numbers_only(tmp_path):
    class Endless(Trial):
        def record(self):
            return {"key": self.key(), "speed": float("nan")}

    with pytest.raises(DatasetError):
        dataset(tmp_path, "a").save(Endless())
    assert not dataset(tmp_path, "a").exists()


def test_without_versions_there_is_one_file(tmp_path):
    dataset(tmp_path, None).save(Trial())
    path = tmp_path / "runtimes" / "uni.json"
    assert json.loads(path.read_text()) == dataset(tmp_path, None).load()
