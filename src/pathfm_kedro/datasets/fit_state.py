"""The state of a fit between two epochs, so that a killed run repeats at most one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
    paths
        Of the file, and of those that an earlier run may have left elsewhere.
    header
        Of the fit: a state of another one is not gone on from.
    after
        Called after every epoch.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        header: Mapping[str, str],
        after: Callable[[], None] | None = None,
    ) -> None:
        self._path, self._header, self._after = paths[0], dict(header), after
        found = (self.read(path, header) for path in paths)
        self._begun = next((state for state in found if state is not None), None)

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
        """Tensors and text that an earlier run left; None to begin anew."""
        return self._begun

    def save(self, tensors: Tensors, text: str) -> None:
        """Replace the state."""
        header = {_HEADER: json.dumps(self._header, sort_keys=True), _TEXT: text}
        with writing_to(self._path.parent):
            write_shard(self._path, tensors, header)
        if self._after is not None:
            self._after()
