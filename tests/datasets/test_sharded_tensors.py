"""Shards are whole or absent, resumed, linked and byte-identical."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kedro.io.core import DatasetError, Version

from pathfm_kedro.datasets.shard_files import read_header, shard_name
from pathfm_kedro.datasets.sharded_tensors import (
    INDEX_NAME,
    ShardedTensorDataset,
)
from pathfm_kedro.engine import EngineSettings, FitJob, ShardPlan


@dataclass(frozen=True)
class CountingJob:
    slide_id: str
    computed: list = field(default_factory=list, compare=False)
    fails: bool = False
    revision: str = "1"

    def header(self):
        return {"slide": self.slide_id, "revision": self.revision}

    def compute(self):
        self.computed.append(self.slide_id)
        if self.fails:
            raise ValueError("the slide is broken")
        seed = sum(self.slide_id.encode())
        return {"embedding": np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)}


def dataset(folder: Path, version: str) -> ShardedTensorDataset:
    return ShardedTensorDataset(
        filepath=(folder / "uni").as_posix(), version=Version(version, version)
    )


def plan(jobs, workers=1, share=0.5) -> ShardPlan:
    return ShardPlan(jobs, EngineSettings(workers=workers, max_failed_share=share))


def test_an_unchanged_slide_is_linked_from_an_earlier_version(tmp_path):
    computed: list[str] = []
    jobs = [CountingJob(name, computed) for name in "ab"]
    dataset(tmp_path, "1").save(plan(jobs))
    dataset(tmp_path, "2").save(plan([*jobs, CountingJob("c", computed)]))
    assert sorted(computed) == ["a", "b", "c"]
    first, second = (tmp_path / v / "uni" / shard_name("a") for v in "12")
    assert first.samefile(second)


def test_a_changed_header_is_computed_again(tmp_path):
    computed: list[str] = []
    dataset(tmp_path, "1").save(plan([CountingJob("a", computed)]))
    dataset(tmp_path, "2").save(plan([CountingJob("a", computed, revision="2")]))
    assert computed == ["a", "a"]


def test_an_unfinished_version_is_not_loaded_but_its_shards_are_used(tmp_path):
    computed: list[str] = []
    jobs = [CountingJob(name, computed) for name in "ab"]
    dataset(tmp_path, "1").save(plan(jobs))
    (tmp_path / "1" / "uni" / INDEX_NAME).unlink()
    newest = ShardedTensorDataset(
        filepath=(tmp_path / "uni").as_posix(), version=Version(None, "2")
    )
    assert not newest.exists()
    newest.save(plan(jobs))
    assert newest.load().slide_ids == ("a", "b")
    assert sorted(computed) == ["a", "b"]


def test_a_truncated_shard_is_computed_again(tmp_path):
    computed: list[str] = []
    dataset(tmp_path, "1").save(plan([CountingJob("a", computed)]))
    shard = tmp_path / "1" / "uni" / shard_name("a")
    shard.write_bytes(shard.read_bytes()[:-5])
    assert read_header(shard) is None
    dataset(tmp_path, "1").save(plan([CountingJob("a", computed)]))
    assert computed == ["a", "a"]
    assert read_header(shard) is not None


def test_one_bad_slide_is_recorded_and_the_rest_go_on(tmp_path):
    jobs = [CountingJob("a"), CountingJob("b", fails=True), CountingJob("c")]
    data = dataset(tmp_path, "1")
    data.save(plan(jobs))
    loaded = data.load()
    assert loaded.slide_ids == ("a", "c")
    assert loaded.failures == {"b": "ValueError: the slide is broken"}
    assert loaded.stack(["a", "c"]).shape == (6, 4)


def test_too_many_bad_slides_end_the_run_and_keep_the_good_shards(tmp_path):
    jobs = [CountingJob("a"), CountingJob("b", fails=True)]
    with pytest.raises(DatasetError, match=r"1 of 2 slides failed.*b: ValueError"):
        dataset(tmp_path, "1").save(plan(jobs, share=0.1))
    assert read_header(tmp_path / "1" / "uni" / shard_name("a")) is not None
    assert not dataset(tmp_path, "1").exists()


def test_a_slide_that_left_the_cohort_leaves_the_version(tmp_path):
    dataset(tmp_path, "1").save(plan([CountingJob("a"), CountingJob("b")]))
    dataset(tmp_path, "1").save(plan([CountingJob("a")]))
    assert [p.name for p in sorted((tmp_path / "1" / "uni").glob("*.safetensors"))] == [
        shard_name("a")
    ]


def test_one_and_two_threads_give_the_same_bytes(tmp_path):
    for version, workers in (("1", 1), ("2", 2)):
        folder = tmp_path / version
        data = ShardedTensorDataset(filepath=(folder / "uni").as_posix(), version=Version("v", "v"))
        data.save(plan([CountingJob(f"s{i}") for i in range(9)], workers=workers))
    first = {p.name: p.read_bytes() for p in (tmp_path / "1/v/uni").iterdir()}
    second = {p.name: p.read_bytes() for p in (tmp_path / "2/v/uni").iterdir()}
    assert first == second


def test_jobs_run_on_as_many_threads_as_asked(tmp_path):
    seen: set[int] = set()
    barrier = threading.Barrier(2, timeout=20)

    @dataclass(frozen=True)
    class Meeting(CountingJob):
        def compute(self):
            barrier.wait()
            seen.add(threading.get_ident())
            return super().compute()

    dataset(tmp_path, "1").save(plan([Meeting("a"), Meeting("b")], workers=2))
    assert len(seen) == 2


@given(st.text(min_size=1))
def test_every_slide_id_has_a_safe_file_name_of_its_own(slide_id):
    try:
        name = shard_name(slide_id)
    except UnicodeEncodeError:
        return
    assert "/" not in name
    assert "\\" not in name
    assert not name.startswith(".")
    assert name != shard_name(slide_id + "x")


def test_who_made_the_shards_is_kept_in_the_index_and_travels(tmp_path):
    data = dataset(tmp_path, "1")
    data.made_by = {"encoder": "uni", "entry": {"model": "timm:resnet18"}}
    data.save(plan([CountingJob("a"), CountingJob("b")]))
    loaded = dataset(tmp_path, "1").load()
    assert loaded.made_by == data.made_by
    assert loaded.slide_header("a") == {"slide": "a", "revision": "1"}
    copied = pickle.loads(pickle.dumps(loaded))
    assert copied == loaded
    # What was read of 10,000 shards does not travel with every job.
    assert b"revision" not in pickle.dumps(loaded)
    assert copied.slide_header("b") == loaded.slide_header("b")


def test_a_missing_shard_is_named_with_the_mend(tmp_path):
    data = dataset(tmp_path, "1")
    data.save(plan([CountingJob("a")]))
    loaded = data.load()
    (tmp_path / "1" / "uni" / shard_name("a")).unlink()
    with pytest.raises(DatasetError, match=r"slide 'a'.*remove the file"):
        loaded.stack(["a"])


def test_many_failures_are_told_in_few_lines_whatever_their_slides_are_called(tmp_path, caplog):
    names = ["[/bold]\nforged", *[f"s{i}" for i in range(99)]]
    jobs = [CountingJob(name, fails=True) for name in names]
    with caplog.at_level("WARNING"):
        dataset(tmp_path, "1").save(plan(jobs, share=1.0))
    told = caplog.messages
    assert len(told) == 6
    assert told[0] == r"slide [/bold]\nforged: ValueError: the slide is broken"
    assert told[-1].startswith("95 more slides failed")
    # Kedro's console reads brackets as colours unless told otherwise.
    assert all(record.markup is False for record in caplog.records[:-1])
    assert len(dataset(tmp_path, "1").load().failures) == 100


@dataclass(frozen=True)
class EncoderJob(CountingJob):
    encoder: str = "weights-1"

    def header(self):
        return super().header() | {"encoder": self.encoder}


def test_the_same_encoder_under_another_name_takes_over_its_shards(tmp_path):
    """Renamed, or the same weights in another form: the fingerprint tells, not the name."""
    computed: list[str] = []
    jobs = [EncoderJob(name, computed) for name in "ab"]
    dataset(tmp_path, "1").save(plan(jobs))
    for name in ("renamed", "other"):
        renamed = ShardedTensorDataset(
            filepath=(tmp_path / name).as_posix(), version=Version("1", "1")
        )
        renamed.save(plan(jobs if name == "renamed" else [EncoderJob("a", computed, encoder="2")]))
    assert computed == ["a", "b", "a"]
    same = [tmp_path / "1" / name / shard_name("a") for name in ("uni", "renamed")]
    assert same[0].read_bytes() == same[1].read_bytes()


@dataclass(frozen=True)
class CountingFit(FitJob):
    """Adds up the numbers of its epochs, and is killed after some of them."""

    slide_id: str
    epochs: list = field(default_factory=list, compare=False)
    killed_after: int | None = None

    def header(self):
        return {"arm": self.slide_id}

    def fit(self, checkpoint):
        found = checkpoint.load()
        total, done = (0, 0) if found is None else (int(found[0]["total"][0]), int(found[1]))
        for epoch in range(done, 5):
            if epoch == self.killed_after:
                raise KeyboardInterrupt
            total += epoch
            self.epochs.append(epoch)
            checkpoint.save({"total": np.array([total])}, str(epoch + 1))
        return {"embedding": np.array([[total]])}


def test_a_killed_fit_goes_on_from_its_last_epoch_in_the_next_version(tmp_path):
    epochs: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        dataset(tmp_path, "1").save(plan([CountingFit("noise_10", epochs, killed_after=3)]))
    assert epochs == [0, 1, 2]
    dataset(tmp_path, "2").save(plan([CountingFit("noise_10", epochs)]))
    assert epochs == [0, 1, 2, 3, 4]
    assert dataset(tmp_path, "2").load().load_slide("noise_10").tolist() == [[10]]
    assert not list((tmp_path / "2").rglob("*.state"))


def test_a_fit_that_is_not_stored_begins_at_the_first_epoch():
    epochs: list[int] = []
    assert CountingFit("noise_10", epochs).compute()["embedding"].tolist() == [[10]]
    assert epochs == [0, 1, 2, 3, 4]
