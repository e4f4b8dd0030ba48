"""HDF5: TRIDENT, CLAM, STAMP and Marugoto, AnnData.

Keys as the tools document them: TRIDENT writes ``features`` and ``coords`` with the size of a tile as
attributes of ``coords``; CLAM the same without attributes, the size lies in ``patches/<slide>.h5``;
STAMP ``feats`` and ``coords`` in micrometres; AnnData ``X`` and ``obs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.features.slide_features import (
    FeatureFileError,
    SlideFeatures,
    TileSize,
    declared_sizes,
    number_of,
    place,
    slide_vector,
    some,
    text_of,
    tile_vectors,
)

if TYPE_CHECKING:
    import h5py

#: Marugoto and STAMP 1 cut tiles of 256 µm into 224 pixels and count places in these pixels.
_MARUGOTO_PX, _MARUGOTO_UM = 224, 256.0
#: Features hardly compress: what would be larger than this many times its file is not in the file.
_DENSEST, _SMALL = 100, 2**28
#: Where CLAM and TRIDENT keep coordinates, seen from the folder of features.
_PATCHES = ("../patches", "../../patches")


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading.

    Raises
    ------
    FeatureFileError
        If it is none or is cut short, there or while it is read, or if h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise FeatureFileError(
            f'{place(path)}: HDF5 needs h5py: pip install "pathfm-kedro[features]"'
        ) from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FeatureFileError:
        raise
    except Exception as error:
        # What the library raises depends on the byte that is wrong.
        raise FeatureFileError(
            f"{place(path)}: cannot be read as HDF5 ({_one_line(error)}): the file is cut short, "
            "damaged or of another kind; copy or extract it again"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def array(file: h5py.Group, key: str, path: Path) -> NDArray[Any]:
    """A dataset of the file itself.

    Raises
    ------
    FeatureFileError
        If it is missing or no array, or if it points into another file: what a file of features
        brings must lie in it.
    """
    import h5py

    link = file.get(key, getlink=True)
    found = None if isinstance(link, h5py.ExternalLink) else file.get(key)
    if isinstance(link, h5py.ExternalLink) or (
        isinstance(found, h5py.Dataset) and (found.external or found.is_virtual)
    ):
        raise FeatureFileError(
            f"{place(path)}: '{key}' points to another file, which is not followed: write the "
            "vectors into the file"
        )
    if not isinstance(found, h5py.Dataset):
        raise FeatureFileError(f"{place(path)}: '{key}' is no array: extract the slide again")
    stored = path.stat().st_size
    if found.nbytes > max(_SMALL, _DENSEST * stored):
        raise FeatureFileError(
            f"{place(path)}: '{key}' would be {found.nbytes / 1e9:,.0f} GB out of a file of "
            f"{stored / 1e6:,.1f} MB: the file is damaged; extract the slide again"
        )
    values: NDArray[Any] = np.asarray(found[()])
    return values


def read_hdf5(path: Path, slide_id: str, said: TileSize) -> SlideFeatures | None:
    """Read what the keys of the file say it is; None where they are of no layout."""
    with opened(path) as file:
        keys = set(file.keys())
        if "feats" in keys or "patch_embeddings" in keys:
            return _stamp(file, path, slide_id, said)
        if "obs" in keys and keys & {"X", "obsm"}:
            return _anndata(file, path, slide_id, said)
        if "features" not in keys:
            if "coords" in keys:
                raise FeatureFileError(
                    f"{place(path)}: holds coordinates and no vectors, as the files of patches of "
                    "TRIDENT and CLAM do: give the folder of features (features_<encoder>, "
                    "h5_files)"
                )
            return None
        if "coords" not in keys:
            return _slide_level(file, path, slide_id)
        return _trident_or_clam(file, path, slide_id, said)


def keys_of(path: Path) -> list[str]:
    """What lies at the root of the file."""
    with opened(path) as file:
        return sorted(file.keys())


def _slide_level(file: h5py.File, path: Path, slide_id: str) -> SlideFeatures:
    encoder = text_of(file["features"].attrs.get("encoder") or file.attrs.get("encoder"))
    vector = array(file, "features", path)
    layout = "trident"
    return slide_vector(slide_id, path, layout, vector, key="features", encoder=encoder)


def _trident_or_clam(file: h5py.File, path: Path, slide_id: str, said: TileSize) -> SlideFeatures:
    attributes = dict(file["coords"].attrs)
    side = number_of(attributes.get("patch_size_level0"))
    encoder = text_of(file["features"].attrs.get("encoder"))
    layout = "trident" if "patch_size_level0" in attributes or encoder else "clam"
    if side is None:
        said, side = with_side(attributes, path, said)
    features = tile_vectors(
        slide_id,
        path,
        layout,
        array(file, "features", path),
        array(file, "coords", path),
        said=said,
        field_px=side,
        encoder=encoder,
        tile_pixels=number_of(attributes.get("patch_size")),
    )
    width, height = (number_of(attributes.get(f"level0_{name}")) for name in ("width", "height"))
    if width and height:
        from pathfm_kedro.encoders.features.faults import refuse_off_slide

        refuse_off_slide(features, int(width), int(height), where=place(path))
    return features


def with_side(
    attributes: Mapping[str, Any], path: Path, said: TileSize
) -> tuple[TileSize, float | None]:
    """The side of CLAM's tiles in level-0 pixels, from the coordinates or the file of patches.

    What a person says goes first. Of an older CLAM with a further downsample of its own, nothing says
    surely what ``patch_size`` counts: the person is asked.
    """
    if said.patch_size is not None:
        return said, None
    sources = [attributes, *_patches_attributes(path)]
    for source in sources:
        size, level = number_of(source.get("patch_size")), source.get("patch_level")
        further = number_of(source.get("custom_downsample")) or 1.0
        downsample = number_of(source.get("downsample"))
        if size is None or level is None or further != 1:
            continue
        if downsample:
            return said, size * downsample
        return replace(said, patch_size=int(size), patch_level=int(level)), None
    return said, None


def _patches_attributes(path: Path) -> Iterator[Mapping[str, Any]]:
    for patches in patches_files(path):
        with opened(patches) as file:
            if "coords" in file:
                yield dict(file["coords"].attrs)


def patches_files(path: Path) -> Iterator[Path]:
    """Files of coordinates of the same slide that lie where CLAM keeps them."""
    for folder in _PATCHES:
        candidate = path.parent / folder / f"{path.stem}.h5"
        if candidate.is_file():
            yield candidate


def _stamp(file: h5py.File, path: Path, slide_id: str, said: TileSize) -> SlideFeatures:
    attributes = dict(file.attrs)
    key = "feats" if "feats" in file else "patch_embeddings"
    encoder = text_of(attributes.get("extractor")) or text_of(attributes.get("encoder"))
    kind = text_of(attributes.get("feat_type"))
    vectors = array(file, key, path)
    if kind == "patient":
        raise FeatureFileError(
            f"{place(path)}: feat_type is 'patient', a vector of a patient and not of a slide: "
            "give STAMP's features of slides or tiles"
        )
    if kind == "slide" or "coords" not in file:
        return slide_vector(slide_id, path, "stamp", vectors, key=key, encoder=encoder)
    coordinates = array(file, "coords", path)
    tile_um = number_of(attributes.get("tile_size_um"))
    unit = text_of(attributes.get("unit"))
    if tile_um is None and unit == "um":
        tile_um = number_of(attributes.get("tile_size"))
    if unit not in (None, "um"):
        raise FeatureFileError(
            f"{place(path)}: unit is '{unit}', and STAMP's coordinates are read in 'um': extract "
            "the slide again"
        )
    layout = "stamp"
    pixels = number_of(attributes.get("tile_size_px"))
    if tile_um is None:
        if len(coordinates):
            _refuse_other_stride(attributes, coordinates, path)
        layout, tile_um, pixels = "marugoto", _MARUGOTO_UM, float(_MARUGOTO_PX)
        coordinates = coordinates.astype(np.float64) * (_MARUGOTO_UM / _MARUGOTO_PX)
    return tile_vectors(
        slide_id,
        path,
        layout,
        vectors,
        coordinates,
        unit="um",
        keys=(key, "coords"),
        said=said,
        field_um=tile_um,
        mpp=tile_um / pixels if pixels else None,
        encoder=encoder,
    )


def _refuse_other_stride(
    attributes: Mapping[str, Any], coordinates: NDArray[Any], path: Path
) -> None:
    """Marugoto's files say nothing; places 224 apart are their sign."""
    stride = number_of(attributes.get("tile_size")) or _stride(coordinates)
    if stride is None or round(stride) != _MARUGOTO_PX:
        seen = "none can be seen" if stride is None else f"it is {stride:g}"
        raise FeatureFileError(
            f"{place(path)}: neither tile_size_um nor unit is given, and tiles are not "
            f"{_MARUGOTO_PX} apart as in Marugoto and STAMP 1 ({seen}), so that the unit of "
            "'coords' is unknown: extract the slide with STAMP 2.1 or later"
        )


def _stride(coordinates: NDArray[Any]) -> float | None:
    if coordinates.ndim != 2:
        return None
    steps = [np.diff(np.unique(axis.astype(np.float64))) for axis in coordinates.T]
    together = np.concatenate(steps) if steps else np.zeros(0)
    return float(together.min()) if len(together) else None


def _anndata(file: h5py.File, path: Path, slide_id: str, said: TileSize) -> SlideFeatures:
    import h5py

    vectors, key = _anndata_vectors(file, path)
    notes = _notes(file)
    encoder = text_of(notes.get("encoder"))
    obs = file["obs"]
    if not isinstance(obs, h5py.Group):
        raise FeatureFileError(
            f"{place(path)}: 'obs' is a table of an old AnnData: write the file with anndata 0.7 "
            "or later"
        )
    if not {"x", "y"} <= set(obs.keys()):
        if len(vectors) == 1:
            return slide_vector(slide_id, path, "anndata", vectors, key=key, encoder=encoder)
        raise FeatureFileError(
            f"{place(path)}: 'obs' has no columns x and y (it has {some(sorted(obs.keys()))}); "
            "obsm['spatial'] is not read, since it may hold centres or corners: add x and y, the "
            "level-0 pixels of each tile's upper left corner"
        )
    corners = np.stack([array(obs, name, path) for name in ("x", "y")], axis=1)
    return tile_vectors(
        slide_id,
        path,
        "anndata",
        vectors,
        corners,
        keys=(key, "obs/x, obs/y"),
        said=said,
        **declared_sizes(notes),
        encoder=encoder,
    )


def _anndata_vectors(file: h5py.File, path: Path) -> tuple[NDArray[Any], str]:
    import h5py

    whole = file.get("X")
    if isinstance(whole, h5py.Group):
        raise FeatureFileError(
            f"{place(path)}: 'X' is sparse, which vectors of an encoder are not: give the "
            "features of the tiles and not counts of genes"
        )
    if isinstance(whole, h5py.Dataset) and whole.ndim == 2 and whole.shape[1]:
        return array(file, "X", path), "X"
    named = [key for key in file.get("obsm", {}) if key.startswith("X_")]
    if len(named) != 1:
        raise FeatureFileError(
            f"{place(path)}: 'X' is empty, and obsm has {some(named) or 'no X_<encoder>'}: keep "
            "the vectors of one encoder in X"
        )
    return array(file["obsm"], named[0], path), f"obsm/{named[0]}"


def _notes(file: h5py.File) -> dict[str, Any]:
    """Numbers and words of ``uns``, those of ``uns/features`` first."""
    import h5py

    found: dict[str, Any] = {}
    uns = file.get("uns")
    if isinstance(uns, h5py.Group):
        for group in (uns, uns.get("features")):
            if isinstance(group, h5py.Group):
                scalars = {k: v for k, v in group.items() if isinstance(v, h5py.Dataset)}
                found |= {k: v[()] for k, v in scalars.items() if v.shape == ()}
    return found
