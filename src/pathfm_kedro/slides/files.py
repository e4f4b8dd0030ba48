"""The folder of a cohort's slides, addressed by the paths of its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from pathfm_kedro.slides.readers import SlideReader, open_slide


class SlideError(ValueError):
    """A slide that cannot be used, and why."""


@dataclass(frozen=True)
class SlideFiles:
    """Slides below one folder.

    Attributes
    ----------
    root
        The folder; no path of a manifest leads out of it.
    """

    root: Path

    def resolve(self, path: str) -> Path:
        """Where a manifest's path lies.

        Raises
        ------
        SlideError
            If the path is absolute or climbs out of the folder, or nothing lies there.

        Examples
        --------
        >>> SlideFiles(Path("slides")).resolve("../secret.svs")
        Traceback (most recent call last):
        ...
        pathfm_kedro.slides.files.SlideError: path '../secret.svs' leads out of the manifest's folder
        """
        relative = PurePosixPath(path.replace("\\", "/"))
        absolute = relative.is_absolute() or bool(PureWindowsPath(path).drive)
        if absolute or ".." in relative.parts or "\0" in path or not relative.parts:
            raise SlideError(f"path '{path}' leads out of the manifest's folder")
        found = self.root / relative
        if not found.exists():
            raise SlideError(
                f"no file at '{path}' below the manifest's folder: correct the path or restore the "
                "file"
            )
        return found

    def open(self, path: str) -> SlideReader:
        """Open a slide for reading; close it or use it in a `with` block.

        Raises
        ------
        SlideError
            If there is no such file or no reader can open it.
        """
        found = self.resolve(path)
        try:
            return open_slide(found)
        except (OSError, ValueError) as error:
            raise SlideError(f"'{path}' cannot be opened: {error}") from error
