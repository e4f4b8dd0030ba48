"""The state of a fit between two epochs, so that a killed run repeats at most one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.datasets.shard_files import read_header, write_shard
from pathfm_kedro.engine.failures import writing_to

#: Text of a state beside its tensors, and the header of the fit that it belongs to.
_TEXT, _HEADER = "text", "header"

Tensors = dict[str, NDArray[np.generic]]


class StateFile:
    """The state of a fit after its last epoch, in a file that is whole or absent.

    Parameters
    ----------
    path
        Of the file.
    header
        Of the fit: a state of another one is not gone on from.
    begun
        Tensors and text of an earlier run; None to begin anew.
    after
        Called after every epoch.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, str],
        begun: tuple[Tensors, str] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._path, self._header, self._begun, self._after = path, dict(header), begun, after

    @staticmethod
    def read(path: Path, header: Mapping[str, str]) -> tuple[Tensors, str] | None:
        """Tensors and text of a state of this fit; None where there is none."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        found = read_header(path)
        if found is None or json.loads(found.get(_HEADER, "null")) != dict(header):
            return None
        try:
            return dict(load_file(path)), found[_TEXT]
        except (OSError, SafetensorError):
            return None

    def load(self) -> tuple[Tensors, str] | None:
        """What an earlier run left."""
        return self._begun

    def save(self, tensors: Tensors, text: str) -> None:
        """Replace the state."""
        header = {_HEADER: json.dumps(self._header, sort_keys=True), _TEXT: text}
        with writing_to(self._path.parent):
            write_shard(self._path, tensors, header)
        if self._after is not None:
            self._after()
