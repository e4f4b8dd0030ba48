"""Reading one slide's file of features, whatever tool wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pathfm_kedro.encoders.features.finding import slide_of_file
from pathfm_kedro.encoders.features.slide_features import (
    FeatureFileError,
    SlideFeatures,
    TileSize,
    place,
    some,
)
from pathfm_kedro.encoders.loaders.files import is_pointer

#: Layouts that are read, and the keys by which they are recognised.
LAYOUTS: Mapping[str, str] = {
    "trident": "features, coords with patch_size_level0; or features [dimension] of a slide",
    "clam": "features, coords without attributes; or a .pt beside h5_files",
    "stamp": "feats, coords in micrometres",
    "marugoto": "feats, coords 224 apart",
    "slide2vec": ".npz or .pt with a .meta.json beside it",
    "wsidata": ".zarr with tables and shapes (LazySlide)",
    "raw2features": ".zarr with grids",
    "anndata": "X and obs with x and y",
    "numpy": ".npy with <slide>_coords.npy",
    "npz": "features and coords, or features, x and y",
    "pt": "a dictionary of tensors: features and coords",
    "parquet": "x, y and embedding, or x, y and one column for each number",
}


def read_features(
    path: Path,
    *,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    patch_size: int | None = None,
    patch_level: int | None = None,
    downsamples: Sequence[float] | None = None,
    model: str | None = None,
) -> SlideFeatures:
    """Read one slide's features; the layout is recognised by the keys in the file.

    Parameters
    ----------
    path
        The file, or the folder of a ``.zarr``.
    slide_id
        The slide; by the name of the file if not given.
    slide_mpp
        Micrometres per level-0 pixel: places in micrometres become pixels with it, and the sides of
        tiles are known in both.
    patch_size, patch_level, downsamples
        Side of a tile in pixels of the level that it was read from, that level, and the downsample of
        every level: for layouts that do not say how large their tiles are.
    model
        Which of several encoders in one store, ``<name>`` or ``<grid>/<name>``.

    Raises
    ------
    FeatureFileError
        If the file cannot be used, naming it, the row or key, and the mend.
    """
    if path.is_dir() != (path.suffix.lower() == ".zarr") or not path.exists():
        raise FeatureFileError(f"{place(path)}: no such file of features: correct the path")
    slide = slide_id if slide_id is not None else slide_of_file(path.name)
    said = TileSize(slide_mpp, patch_size, patch_level, downsamples)
    _refuse_no_content(path)
    features = _read(path, slide, said, model)
    if features is None:
        known = "; ".join(f"{name} ({keys})" for name, keys in LAYOUTS.items())
        raise FeatureFileError(
            f"{place(path)}: no layout has the keys {some(_keys(path)) or '(none)'}; layouts that "
            f"are read: {known}"
        )
    return features


def _refuse_no_content(path: Path) -> None:
    if path.is_dir():
        return
    if not path.stat().st_size:
        raise FeatureFileError(f"{place(path)}: the file is empty: copy or extract it again")
    if is_pointer(path):
        raise FeatureFileError(
            f"{place(path)}: only a pointer of Git LFS: fetch the file itself with git lfs pull"
        )


def _read(path: Path, slide: str, said: TileSize, model: str | None) -> SlideFeatures | None:
    from pathfm_kedro.encoders.features import arrays, hdf5, stores

    suffix = path.suffix.lower()
    if suffix == ".zarr":
        return stores.read_zarr(path, slide, said, model)
    readers = {
        ".h5": hdf5.read_hdf5,
        ".hdf5": hdf5.read_hdf5,
        ".h5ad": hdf5.read_hdf5,
        ".pt": arrays.read_pt,
        ".npz": arrays.read_npz,
        ".npy": arrays.read_npy,
        ".parquet": arrays.read_parquet,
    }
    if suffix not in readers:
        raise FeatureFileError(
            f"{place(path)}: files that end in '{suffix}' are not read: give {', '.join(readers)} "
            "or .zarr"
        )
    return readers[suffix](path, slide, said)


def _keys(path: Path) -> list[str]:
    from pathfm_kedro.encoders.features import arrays, hdf5, stores

    suffix = path.suffix.lower()
    if suffix == ".zarr":
        return stores.keys_of(path)
    if suffix in (".h5", ".hdf5", ".h5ad"):
        return hdf5.keys_of(path)
    return arrays.keys_of(path)
