"""The fields of view of one slide's tiles, read in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.slides.files import SlideFiles
from pathfm_kedro.slides.readers import Pixels, SlideReader, read_field

#: Raised with any change of how pixels are read, so that vectors of other pixels are not reused.
_READER_REVISION = 3


@dataclass(frozen=True)
class TileFields:
    """Where the tiles of one slide lie and how they are read.

    Attributes
    ----------
    files, path
        The cohort's folder and the slide's path in it.
    x, y
        Upper left corners in level-0 px.
    side
        Side of a tile in level-0 px.
    pixels
        Side of a tile as read.
    """

    files: SlideFiles
    path: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    side: float
    pixels: int

    def widened(self, pixels: int) -> TileFields:
        """The same centres with a wider field at the same resolution.

        Parameters
        ----------
        pixels
            Side of the wider field as read.
        """
        side = self.side * pixels / self.pixels
        shift = (side - self.side) / 2
        return TileFields(
            self.files,
            self.path,
            tuple(round(x - shift) for x in self.x),
            tuple(round(y - shift) for y in self.y),
            side,
            pixels,
        )

    def digest(self) -> str:
        """SHA-256 of positions and resolution: changes when a tile does."""
        described = json.dumps([_READER_REVISION, self.x, self.y, round(self.side, 6), self.pixels])
        return hashlib.sha256(described.encode()).hexdigest()

    def batches(self, size: int) -> Iterator[tuple[Pixels, NDArray[np.float32] | None]]:
        """Tiles uint8 [n, pixels, pixels, 3] and, on a phantom, what was drawn on them [n, m]."""
        with self.files.open(self.path) as reader:
            for start in range(0, len(self.x), size):
                corners = list(
                    zip(self.x[start : start + size], self.y[start : start + size], strict=True)
                )
                tiles = np.stack(
                    [read_field(reader, x, y, self.side, self.pixels) for x, y in corners]
                )
                yield tiles, self._truth(reader, corners)

    def _truth(
        self, reader: SlideReader, corners: list[tuple[int, int]]
    ) -> NDArray[np.float32] | None:
        if '"phantom"' not in reader.description.comment:
            return None
        from pathfm_kedro.slides.phantom import tile_truth

        drawn = json.loads(reader.description.comment)
        return np.stack([tile_truth(drawn, x, y, round(self.side)) for x, y in corners])


def slide_fields(
    slides: pl.DataFrame, tiles: pl.DataFrame, files: SlideFiles, pixels: int
) -> list[tuple[dict[str, Any], TileFields]]:
    """Each slide that has tiles, with where they lie.

    Parameters
    ----------
    slides, tiles
        The tables.
    files
        The cohort's folder.
    pixels
        Side of a tile as read.
    """
    rows = {row["slide_id"]: row for row in slides.to_dicts()}
    found = []
    for (slide_id,), group in tiles.group_by("slide_id", maintain_order=True):
        slide = rows[str(slide_id)]
        side = group["field_um"][0] / slide["mpp"]
        corners = TileFields(
            files, slide["path"], tuple(group["x"]), tuple(group["y"]), side, pixels
        )
        found.append((slide, corners))
    return found
