"""Fitted weights: found again, taken from other versions, and a killed fit goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from kedro.io.core import DatasetError, Version

from pathfm_kedro.datasets.fitted_model import STATE, WEIGHTS, FamilyModelDataset


class KilledError(BaseException):
    pass


@dataclass
class Counting:
    """A fit of some epochs that adds one to a number in each, and may be killed."""

    epochs: int = 4
    killed_in: int | None = None
    data: str = "d"
    ran: list[int] = field(default_factory=list)
    title: str = "counting"

    def header(self):
        return {"data": self.data}

    def fit(self, checkpoint):
        found = checkpoint.load()
        value, done = (0, 0) if found is None else (found[0]["model.w"][0], json.loads(found[1]))
        while done < self.epochs:
            if done == self.killed_in:
                raise KilledError
            self.ran.append(done)
            value, done = value + 1, done + 1
            checkpoint.save({"model.w": np.array([value])}, json.dumps(done))
        return {"w": np.array([value])}, {"epochs": done}


def store(folder, version="1"):
    return FamilyModelDataset(
        filepath=(folder / "cnn.0").as_posix(), version=Version(None, version)
    )


def test_weights_are_found_again(tmp_path):
    first = Counting()
    store(tmp_path).save(first)
    fitted = store(tmp_path).load()
    assert fitted.header == {"data": "d"}
    assert fitted.history == {"epochs": 4}
    assert (tmp_path / "1" / "cnn.0" / WEIGHTS).is_file()
    assert not (tmp_path / "1" / "cnn.0" / STATE).exists()
    again, elsewhere = Counting(), Counting()
    store(tmp_path).save(again)
    store(tmp_path, "2").save(elsewhere)
    assert again.ran == elsewhere.ran == []
    weights = [(tmp_path / v / "cnn.0" / WEIGHTS).read_bytes() for v in "12"]
    assert weights[0] == weights[1]


def test_other_data_is_another_fit(tmp_path):
    store(tmp_path).save(Counting())
    other = Counting(data="e")
    store(tmp_path, "2").save(other)
    assert other.ran == [0, 1, 2, 3]


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_killed_fit_goes_on_in_this_version_or_the_next(tmp_path, version):
    with pytest.raises(KilledError):
        store(tmp_path).save(Counting(killed_in=3))
    with pytest.raises(DatasetError):
        store(tmp_path).load()
    resumed = Counting()
    store(tmp_path, version).save(resumed)
    assert resumed.ran == [3]
    whole = tmp_path / "whole"
    store(whole).save(Counting())
    expected = (whole / "1" / "cnn.0" / WEIGHTS).read_bytes()
    assert (tmp_path / version / "cnn.0" / WEIGHTS).read_bytes() == expected


def test_the_state_of_another_fit_is_not_gone_on_from(tmp_path):
    with pytest.raises(KilledError):
        store(tmp_path).save(Counting(killed_in=3))
    other = Counting(data="e")
    store(tmp_path, "2").save(other)
    assert other.ran == [0, 1, 2, 3]


def test_a_state_that_is_cut_short_begins_anew(tmp_path):
    with pytest.raises(KilledError):
        store(tmp_path).save(Counting(killed_in=3))
    state = tmp_path / "1" / "cnn.0" / STATE
    state.write_bytes(state.read_bytes()[:-3])
    anew = Counting()
    store(tmp_path).save(anew)
    assert anew.ran == [0, 1, 2, 3]


def test_weights_that_are_cut_short_say_what_to_do(tmp_path):
    store(tmp_path).save(Counting())
    weights = tmp_path / "1" / "cnn.0" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(DatasetError, match=r"is not whole: remove .* and run the embed pipeline"):
        store(tmp_path).load()
    refitted = Counting()
    store(tmp_path, "2").save(refitted)
    assert refitted.ran == [0, 1, 2, 3]
