"""DICOM slides whose frames are stored in another colour space than their header says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Bytes behind the header in which the first frame's JPEG markers lie.
_HEAD_OF_FIRST_FRAME = 1 << 16
_JPEG_START = b"\xff\xd8"
#: Start-of-frame markers of baseline, extended and progressive JPEG.
_START_OF_FRAME = (0xC0, 0xC1, 0xC2)


def is_mislabelled_ycbcr(path: Path) -> bool:
    """Whether a DICOM file says RGB while its JPEG frames must hold YCbCr.

    Some converters write the tag PhotometricInterpretation as RGB and copy JPEG frames with reduced
    chroma. Red, green and blue are never sampled differently, so such frames are YCbCr; a reader that
    takes the tag's word shows glass as salmon.

    Parameters
    ----------
    path
        A DICOM file.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True)
            if header.get("PhotometricInterpretation") != "RGB":
                return False
            sampling = jpeg_sampling(file.read(_HEAD_OF_FIRST_FRAME))
    except (OSError, InvalidDicomError, EOFError):
        return False
    return len(set(sampling)) > 1


def jpeg_sampling(content: bytes) -> tuple[int, ...]:
    """Sampling factors of the components of the first JPEG image in some bytes; empty if there is none.

    Examples
    --------
    >>> jpeg_sampling(b"no image")
    ()
    """
    position = content.find(_JPEG_START)
    if position < 0:
        return ()
    position += 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        if marker in _START_OF_FRAME:
            frame = content[position + 4 : position + 2 + length]
            components = frame[5] if len(frame) > 5 else 0
            return tuple(frame[7 + 3 * i] for i in range(components) if 7 + 3 * i < len(frame))
        position += 2 + length
    return ()


def ycbcr_to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Full-range YCbCr (JFIF) as RGB; [height, width, 3] uint8."""
    from PIL import Image

    height, width = pixels.shape[:2]
    image = Image.frombytes("YCbCr", (width, height), np.ascontiguousarray(pixels).tobytes())
    return np.asarray(image.convert("RGB"))
