"""Tiled TIFFs that OpenSlide opens, decoded without it where that gives the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.slides.interface import Pixels, SlideReader
from pathfm_kedro.slides.ome_tiff import TiffReader

#: TIFF's numbers for JPEG and for Aperio's JPEG 2000 of RGB pixels: decoded here and by OpenSlide with
#: the same libraries, libjpeg-turbo and OpenJPEG, to the same pixels.
_JPEG = 7
_ALIKE = (_JPEG, 33005)


class DirectReader(TiffReader):
    """A TIFF that OpenSlide opens, its tiles decoded without OpenSlide; in doubt OpenSlide decides.

    Pixels equal OpenSlide's where a region begins at a whole pixel of its level. Elsewhere OpenSlide
    interpolates, and this reader begins at the nearest whole pixel.

    Parameters
    ----------
    path
        The file.
    openslide
        The slide as OpenSlide opened it: says what the slide is, and reads what cannot be decoded here
        or may be damaged. Closed with this reader.
    sizes
        Width and height of every level that OpenSlide sees.

    Raises
    ------
    ValueError
        If not every level is a whole grid of RGB tiles in JPEG or Aperio's RGB JPEG 2000. Holes
        OpenSlide may fill from another level.
    """

    def __init__(
        self, path: Path, openslide: SlideReader, sizes: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__(path)
        if not self._is_seen_alike(sizes):
            self._file.close()
            raise ValueError("OpenSlide may see other pixels")
        self._openslide = openslide
        self.description = openslide.description

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Pixels uint8 [height, width, 3]; x, y in level-0 px, width and height in the level's px."""
        try:
            return super().read(x, y, level, width, height)
        except ValueError:
            return self._openslide.read(x, y, level, width, height)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._openslide.__exit__(kind, error, trace)

    def _is_seen_alike(self, sizes: Sequence[tuple[int, int]]) -> bool:
        if self.is_reoriented or tuple(sizes) != tuple(
            (level.width, level.height) for level in self._levels
        ):
            return False
        return all(
            level.page.keyframe.is_tiled
            and level.page.keyframe.compression in _ALIKE
            and level.page.keyframe.planarconfig == 1
            and level.page.keyframe.samplesperpixel == 3
            and all(level.page.databytecounts)
            for level in self._levels
        )

    def _decoded_content(
        self, keyframe: Any, page: Any, index: int, content: bytes
    ) -> NDArray[np.uint8] | None:
        decoded = super()._decoded_content(keyframe, page, index, content)
        if keyframe.compression == _JPEG and (
            decoded is None or not is_whole_jpeg(content) or _ends_undecoded(decoded)
        ):
            raise ValueError("a tile may be damaged")
        return decoded


def is_whole_jpeg(content: bytes) -> bool:
    """Whether a JPEG of one scan begins and ends as it must, without a marker in its data.

    The decoder at hand fills damaged tiles with what it makes of them, without a word. Together with
    :func:`_ends_undecoded` this found every damage of 512 bytes and more that OpenSlide refuses, of 238
    made on a real slide; of single flipped bits and 16 bytes it lets pass most that OpenSlide refuses.

    Examples
    --------
    >>> is_whole_jpeg(bytes.fromhex("ffd8 ffda 0102 ff00 03 ffd9"))
    True
    >>> is_whole_jpeg(bytes.fromhex("ffd8 ffda 0102 0000 00 0000"))
    False
    """
    content = content.rstrip(b"\0")
    if not (content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")):
        return False
    data = content[content.find(b"\xff\xda") + 2 : -2]
    markers = data.count(b"\xff") - data.count(b"\xff\0")
    # Markers at which a decoder may begin again are as good as data.
    return not markers or markers == sum(data.count(bytes((0xFF, 0xD0 + i))) for i in range(8))


def _ends_undecoded(decoded: NDArray[np.uint8]) -> bool:
    """What lies behind the end of too short data libjpeg leaves in the very middle of its range."""
    return bool((decoded[-8:, -8:] == 128).all())
