"""PNG images with a preview in kedro-viz."""

from __future__ import annotations

import base64
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from kedro.io.core import AbstractVersionedDataset, Version
from kedro_datasets._typing import ImagePreview
from numpy.typing import NDArray

from pathfm_kedro.datasets.paths import atomic_path


class PNGDataset(AbstractVersionedDataset[NDArray[np.uint8], NDArray[np.uint8]]):
    """An RGB image, uint8 [height, width, 3], as PNG; kedro-viz shows it."""

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.metadata = metadata
        super().__init__(filepath=PurePosixPath(filepath), version=version)

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

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "version": self._version}
