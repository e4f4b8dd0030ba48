"""Weights that were fitted to a cohort, and the state of a fit that was interrupted."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kedro.io.core import DatasetError

from pathfm_kedro.datasets.fit_state import StateFile, Tensors
from pathfm_kedro.datasets.paths import atomic_path
from pathfm_kedro.datasets.shard_files import link_or_copy, read_header, write_shard
from pathfm_kedro.datasets.versioned import FamilyDataset
from pathfm_kedro.engine import Note
from pathfm_kedro.engine.failures import CannotWriteError, writing_to
from pathfm_kedro.engine.progress import progress
from pathfm_kedro.project import project_root

logger = logging.getLogger(__name__)

WEIGHTS, HISTORY, STATE = "weights.safetensors", "fit.json", "state.safetensors"
_EPOCH = Note(computed=False)


class ModelFit(Protocol):
    """Deferred work of a node: a fit, run by the dataset that stores the weights."""

    @property
    def title(self) -> str:
        """What the progress bar says."""
        ...

    @property
    def epochs(self) -> int:
        """How many there are at most."""
        ...

    def header(self) -> Mapping[str, str]:
        """What the weights depend on: data, software, settings."""
        ...

    def fit(self, checkpoint: StateFile) -> tuple[Tensors, Mapping[str, Any]]:
        """Weights, and how the fit went."""
        ...


@dataclass(frozen=True)
class FittedModel:
    """Where fitted weights lie.

    Attributes
    ----------
    path
        Of the file, from the project's folder where it lies there.
    header
        What they depend on.
    history
        How the fit went.
    """

    path: str
    header: Mapping[str, str]
    history: Mapping[str, Any]


class FamilyModelDataset(FamilyDataset[ModelFit, FittedModel]):
    """One fitted model in the layout ``<folder>/<version>/<name>/``.

    Saving looks for weights with an equal header, in this version and in the others, and links them.
    Where there are none it runs the fit, which leaves its state after every epoch: a fit that was
    killed goes on from there, in whichever version it began, and repeats at most one epoch.
    """

    @staticmethod
    def is_whole(path: str) -> bool:
        """Weights are written last."""
        return (Path(path) / WEIGHTS).is_file()

    def load(self) -> FittedModel:
        """Where the newest weights lie."""
        folder = Path(self._get_load_path())
        header = read_header(folder / WEIGHTS)
        if header is None:
            raise DatasetError(
                f"{folder / WEIGHTS} is not whole: remove {folder} and run the embed pipeline again"
            )
        history = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
        return FittedModel(_from_project(folder / WEIGHTS), header, history)

    def save(self, data: ModelFit) -> None:
        """Take weights that are there, or fit them."""
        folder = self._place_to_save()
        header = {key: str(value) for key, value in data.header().items()}
        folders = [folder, *self._other_versions(folder)]
        try:
            with writing_to(folder):
                folder.mkdir(parents=True, exist_ok=True)
            found = next((f for f in folders if read_header(f / WEIGHTS) == header), None)
            if found is None:
                self._fit(data, folder, folders, header)
            elif found != folder:
                for name in (HISTORY, WEIGHTS):
                    link_or_copy(found / name, folder / name)
            (folder / STATE).unlink(missing_ok=True)
        except CannotWriteError as error:
            raise DatasetError(f"{error}. The state of the fit is kept") from error

    def _fit(
        self, data: ModelFit, folder: Path, folders: list[Path], header: dict[str, str]
    ) -> None:
        with progress(data.title, data.epochs) as advance:
            states = [each / STATE for each in folders]
            checkpoint = StateFile(states, header, lambda: advance(_EPOCH))
            if checkpoint.load() is not None:
                logger.info("%s: going on from the state of an earlier run", data.title)
            weights, history = data.fit(checkpoint)
        with writing_to(folder):
            with atomic_path(folder / HISTORY) as temporary:
                text = json.dumps(dict(history), indent=1, sort_keys=True)
                temporary.write_text(f"{text}\n", encoding="utf-8")
            # Last: a folder without weights is unfinished.
            write_shard(folder / WEIGHTS, weights, header)


def _from_project(path: Path) -> str:
    """The path as a record may hold it: no folder of this machine where it lies in the project."""
    whole, root = path.absolute(), project_root()
    return (whole.relative_to(root) if whole.is_relative_to(root) else whole).as_posix()
