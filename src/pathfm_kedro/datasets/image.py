"""PNG images with a preview in kedro-viz."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from kedro_datasets._typing import ImagePreview
from numpy.typing import NDArray

from pathfm_kedro.datasets.paths import atomic_path
from pathfm_kedro.datasets.versioned import VersionedDataset


class PNGDataset(VersionedDataset[NDArray[np.uint8], NDArray[np.uint8]]):
    """An RGB image, uint8 [height, width, 3], as PNG; kedro-viz shows it."""

    def load(self) -> NDArray[np.uint8]:
        """Read the image."""
        from PIL import Image

        with Image.open(self._get_load_path()) as image:
            return np.asarray(image.convert("RGB"))

    def save(self, data: NDArray[np.uint8]) -> None:
        """Write the image."""
        from PIL import Image

        with atomic_path(Path(self._get_save_path())) as temporary:
            Image.fromarray(data).save(temporary, format="PNG")

    def preview(self) -> ImagePreview:
        """The image as base64, for kedro-viz."""
        content = Path(self._get_load_path()).read_bytes()
        return ImagePreview(base64.b64encode(content).decode("ascii"))
