"""Tensors of a cohort, one safetensors file per slide, resumable and fingerprinted."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from kedro.io.core import DatasetError
from numpy.typing import NDArray

from pathfm_kedro.datasets.fit_state import StateFile
from pathfm_kedro.datasets.paths import atomic_path
from pathfm_kedro.datasets.shard_files import link_or_copy, read_header, shard_name, write_shard
from pathfm_kedro.datasets.versioned import FamilyDataset
from pathfm_kedro.engine import FitJob, Note, Outcome, ShardJob, ShardPlan, run_each
from pathfm_kedro.engine.failures import (
    CannotWriteError,
    TooManyFailedError,
    refuse_too_many_failed,
    writing_to,
)
from pathfm_kedro.engine.slides_log import escaped

logger = logging.getLogger(__name__)

#: Written last: a version without it is unfinished and is never loaded, though its shards are reused.
INDEX_NAME = "_index.json"
#: Beside the shard of a fit that is not done: its state after the last epoch.
_STATE = ".state"
#: What a writer leaves behind that was killed: ours, and those of the safetensors library.
_PARTIAL = (".*.part", ".tmp*")
#: Failed slides named on the screen; the log of slides has all.
_NAMED_FAILURES = 5


@dataclass(frozen=True)
class ShardedTensors:
    """Tensors of a cohort, read slide by slide when asked for.

    Attributes
    ----------
    folder
        Where the shards lie.
    index
        Per slide: rows, status ("done", "failed" or "left_out"), reason.
    made_by
        The encoder's name and its entry in the parameters, where there was one.
    """

    folder: Path
    index: Mapping[str, Mapping[str, Any]]
    made_by: Mapping[str, Any] = field(default_factory=dict)
    _headers: dict[str, dict[str, str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        # Jobs on a cluster carry this object, and have no use for what was read here.
        return type(self), (self.folder, self.index, self.made_by)

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides with a whole shard, sorted."""
        return tuple(sorted(s for s, entry in self.index.items() if entry["status"] == "done"))

    @property
    def failures(self) -> dict[str, str]:
        """Reason of every slide that failed."""
        return {s: e["reason"] for s, e in sorted(self.index.items()) if e["status"] == "failed"}

    @property
    def left_out(self) -> dict[str, str]:
        """Reason of every slide that must not be worked on."""
        return {s: e["reason"] for s, e in sorted(self.index.items()) if e["status"] == "left_out"}

    @property
    def header(self) -> dict[str, str]:
        """Header of the first shard: encoder fingerprint, preprocessing, units."""
        for slide_id in self.slide_ids:
            return self.slide_header(slide_id)
        return {}

    def slide_header(self, slide_id: str) -> dict[str, str]:
        """What a slide's shard depends on; empty where it is broken."""
        if slide_id not in self._headers:
            self._headers[slide_id] = read_header(self.folder / shard_name(slide_id)) or {}
        return self._headers[slide_id]

    def tensor_names(self, slide_id: str) -> tuple[str, ...]:
        """Names of a slide's tensors, sorted.

        Raises
        ------
        DatasetError
            If the shard is missing or broken.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder / shard_name(slide_id)
        try:
            with safe_open(path, framework="numpy") as shard:
                return tuple(sorted(shard.keys()))
        except (OSError, SafetensorError) as error:
            raise DatasetError(
                f"shard of slide '{slide_id}' at {path} cannot be read ({error}): remove the file "
                f"and {self.folder / INDEX_NAME}, then run the pipeline that made it again"
            ) from error

    def load_slide(self, slide_id: str, name: str = "embedding") -> NDArray[Any]:
        """One tensor of one slide.

        Raises
        ------
        DatasetError
            If the shard is missing or broken, naming it and the mend.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder / shard_name(slide_id)
        try:
            with safe_open(path, framework="numpy") as shard:
                tensor: NDArray[Any] = shard.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise DatasetError(
                f"shard of slide '{slide_id}' at {path} cannot be read ({error}): remove the file "
                f"and {self.folder / INDEX_NAME}, then run the pipeline that made it again"
            ) from error

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """Rows of the slides one below the other, float32, each slide in the order of its tiles."""
        if not slide_ids:
            return np.zeros((0, 0), np.float32)
        first = self.load_slide(slide_ids[0], name)
        rows = sum(int(self.index[slide_id]["rows"]) for slide_id in slide_ids)
        stacked = np.empty((rows, *first.shape[1:]), np.float32)
        start = 0
        for slide_id in slide_ids:
            part = first if slide_id == slide_ids[0] else self.load_slide(slide_id, name)
            if part.shape[1:] != first.shape[1:]:
                path = self.folder / shard_name(slide_id)
                raise DatasetError(
                    f"shard of slide '{slide_id}' at {path} has vectors of shape {part.shape[1:]}, and "
                    f"that of slide '{slide_ids[0]}' of {first.shape[1:]}: remove the file and "
                    f"{self.folder / INDEX_NAME}, then run the pipeline that made it again"
                )
            if start + len(part) <= rows:
                stacked[start : start + len(part)] = part
            start += len(part)
        if start != rows:
            raise DatasetError(
                f"shards in {self.folder} hold {start} rows where their index says {rows}: remove "
                f"{self.folder / INDEX_NAME} and run the pipeline that made them again"
            )
        return stacked


class ShardedTensorDataset(FamilyDataset[ShardPlan, ShardedTensors]):
    """A folder of safetensors shards, one per slide.

    Saving runs a :class:`~pathfm_kedro.engine.ShardPlan`: a slide whose shard with an equal header
    exists in any version, or under another name of the same encoder, is linked, not computed; the
    others are computed by the plan's engine and written one by one, atomically. The index is written
    last. A run killed at any moment therefore repeats at most the slides in flight.

    Versions share a folder with their family: ``<folder>/<version>/<name>/``.
    """

    #: Written into the index of the next save: headers tell what a shard depends on, and reading an
    #: encoder's fingerprint anew means loading the encoder.
    made_by: Mapping[str, Any] = MappingProxyType({})

    @staticmethod
    def is_whole(path: str) -> bool:
        """The index is written last."""
        return (Path(path) / INDEX_NAME).is_file()

    def load(self) -> ShardedTensors:
        """Open the newest finished version; no tensor is read yet."""
        folder = Path(self._get_load_path())
        try:
            index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
            slides, made_by = index["slides"], index.get("made_by", {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{folder} holds no finished shards ({type(error).__name__}: {error}): run the "
                "pipeline that makes them again; shards that are whole are kept"
            ) from error
        return ShardedTensors(folder, slides, made_by)

    def save(self, data: ShardPlan) -> None:
        """Run the plan's jobs, each into its own shard."""
        folder = self._place_to_save()
        try:
            with writing_to(folder):
                _tidy(folder, {shard_name(job.slide_id) for job in data.jobs})
            if data.prepare is not None and data.jobs:
                data.prepare()
            slides = self._finish_all(folder, data)
            _refuse_failures(slides, data)
            with writing_to(folder), atomic_path(folder / INDEX_NAME) as temporary:
                for slide, reason in data.left_out.items():
                    slides[slide] = {"rows": 0, "status": "left_out", "reason": reason}
                index = {"slides": slides} | ({"made_by": self.made_by} if self.made_by else {})
                text = json.dumps(index, indent=1, sort_keys=True)
                temporary.write_text(f"{text}\n", encoding="utf-8")
        except (CannotWriteError, TooManyFailedError) as error:
            raise DatasetError(f"{error}. Finished shards are kept") from error

    def _finish_all(self, folder: Path, plan: ShardPlan) -> dict[str, dict[str, Any]]:
        """Entry of every slide in the index, sorted; tensors and jobs are not kept."""
        others = (path for path in self._other_versions(folder) if path.is_dir())
        earlier = (*others, *self._same_encoder_under_other_names(plan))
        finish = _Finish(folder, earlier)
        slides: dict[str, dict[str, Any]] = {}
        computed = 0
        with closing(run_each(finish, plan.jobs, plan.engine, plan.title, _note)) as outcomes:
            for outcome in outcomes:
                computed += outcome.reason is None and outcome.result.computed
                slide_id, entry = _index_entry(outcome)
                slides[slide_id] = entry
        logger.info(
            "%s: %d of %d slides computed, the others were there or failed",
            plan.title,
            computed,
            len(slides),
        )
        return dict(sorted(slides.items()))

    def _same_encoder_under_other_names(self, plan: ShardPlan) -> tuple[Path, ...]:
        """Folders of the family whose shards are of the same encoder, by fingerprint.

        Any one shard tells, since a folder is of one encoder.
        """
        if self._version is None or not plan.jobs:
            return ()
        encoder = _encoder_of_plan(plan)
        found = sorted(Path(self._filepath.parent).glob("*/*"), reverse=True) if encoder else ()
        others = (path for path in found if path.name != self._filepath.name and path.is_dir())
        return tuple(path for path in others if _encoder_of(path) == encoder)


def _encoder_of_plan(plan: ShardPlan) -> str | None:
    """Fingerprint of the encoder, from the first slide that can be read; others fail by themselves."""
    for job in plan.jobs:
        try:
            return job.header().get("encoder")
        except (OSError, ValueError):
            continue
    return None


def _encoder_of(folder: Path) -> str | None:
    """Fingerprint in the first whole shard of a folder."""
    headers = (read_header(path) for path in sorted(folder.glob("*.safetensors")))
    return next((header.get("encoder") for header in headers if header), None)


def _tidy(folder: Path, wanted: set[str]) -> None:
    """Make the folder unfinished, with no shard in it that is not wanted and no half-written file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX_NAME).unlink(missing_ok=True)
    for stray in folder.glob("*.safetensors"):
        if stray.name not in wanted:
            stray.unlink()
    for state in folder.glob(f"*{_STATE}"):
        if state.name.removesuffix(_STATE) not in wanted:
            state.unlink()
    for pattern in _PARTIAL:
        for partial in folder.glob(pattern):
            partial.unlink(missing_ok=True)


def _refuse_failures(slides: Mapping[str, Mapping[str, Any]], plan: ShardPlan) -> None:
    """Name the slides that failed, and end the run where they are too many."""
    failed = {s: entry["reason"] for s, entry in slides.items() if entry["status"] == "failed"}
    for slide_id, reason in list(failed.items())[:_NAMED_FAILURES]:
        # Names and reasons come from files: brackets in them are no colours.
        words = escaped(f"slide {slide_id}: {reason}")
        logger.warning("%s", words, extra={"markup": False})
    if len(failed) > _NAMED_FAILURES:
        rest = len(failed) - _NAMED_FAILURES
        logger.warning("%d more slides failed: their reasons are in the log of slides", rest)
    refuse_too_many_failed(failed, len(slides), plan.engine)


@dataclass(frozen=True)
class _Receipt:
    """What comes back of a shard, whoever wrote it."""

    rows: int
    computed: bool


def _note(receipt: _Receipt) -> Note:
    return Note(receipt.rows, receipt.computed)


@dataclass(frozen=True)
class _Finish:
    """Make a job's shard exist in the folder, by the cheapest way.

    A class and not a closure, so that it can be pickled and run where a worker is.
    """

    folder: Path
    earlier: tuple[Path, ...]

    def __call__(self, job: ShardJob) -> _Receipt:
        target = self.folder / shard_name(job.slide_id)
        header = {key: str(value) for key, value in job.header().items()}
        if read_header(target) == header:
            return _Receipt(_rows(target), computed=False)
        for version in self.earlier:
            source = version / target.name
            if read_header(source) == header:
                with writing_to(self.folder):
                    link_or_copy(source, target)
                return _Receipt(_rows(target), computed=False)
        tensors = (
            self._fitted(job, target.name, header) if isinstance(job, FitJob) else job.compute()
        )
        with writing_to(self.folder):
            write_shard(target, tensors, header)
            (self.folder / f"{target.name}{_STATE}").unlink(missing_ok=True)
        return _Receipt(len(next(iter(tensors.values()))), computed=True)

    def _fitted(
        self, job: FitJob, name: str, header: dict[str, str]
    ) -> Mapping[str, NDArray[np.generic]]:
        """What a fit gives, gone on with from the state that an earlier run left."""
        paths = [folder / f"{name}{_STATE}" for folder in (self.folder, *self.earlier)]
        return job.fit(StateFile(paths, header))


def _rows(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as shard:
        return int(shard.get_slice(sorted(shard.keys())[0]).get_shape()[0])


def _index_entry(outcome: Outcome) -> tuple[str, dict[str, Any]]:
    if outcome.reason is not None:
        return outcome.item.slide_id, {"rows": 0, "status": "failed", "reason": outcome.reason}
    return outcome.item.slide_id, {"rows": outcome.result.rows, "status": "done", "reason": ""}
