"""Writing one slide's features in the layouts that other tools read.

Vectors keep their type and every bit. What a layout asks for and the features do not know is left out
or, where the layout has a word for that, is that word: nothing is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.features.slide_features import FeatureFileError, SlideFeatures, place

if TYPE_CHECKING:
    import h5py

#: Layouts that are written.
WRITTEN = ("trident", "anndata", "stamp")
#: What TRIDENT writes where it does not know a value.
_UNKNOWN = "None"


def write_features(
    path: Path,
    layout: str,
    features: SlideFeatures,
    *,
    width: int | None = None,
    height: int | None = None,
) -> None:
    """Write a slide's features; a file that is there is replaced.

    Parameters
    ----------
    path
        The file: ``.h5`` of TRIDENT and STAMP, ``.h5ad`` of AnnData (:func:`suffix_of`).
    layout
        ``trident``, ``anndata`` or ``stamp``.
    features
        What to write; places in level-0 pixels, for ``stamp`` with the slide's mpp or in micrometres.
    width, height
        Of the slide at level 0, if known.

    Raises
    ------
    FeatureFileError
        If the layout is not written, or the features lack what it needs.
    """
    write = _writer(layout)
    try:
        import h5py
    except ImportError as error:
        raise FeatureFileError(
            f'{place(path)}: HDF5 needs h5py: pip install "pathfm-kedro[features]"'
        ) from error
    with h5py.File(path, "w") as file:
        write(file, features, {"level0_width": width, "level0_height": height})


def suffix_of(layout: str) -> str:
    """Suffix of the files of a layout.

    Raises
    ------
    FeatureFileError
        If the layout is not written.

    Examples
    --------
    >>> suffix_of("anndata"), suffix_of("stamp")
    ('.h5ad', '.h5')
    """
    _writer(layout)
    return ".h5ad" if layout == "anndata" else ".h5"


_Write = Callable[["h5py.File", SlideFeatures, Mapping[str, int | None]], None]


def _writer(layout: str) -> _Write:
    writers: dict[str, _Write] = {"trident": _trident, "anndata": _anndata, "stamp": _stamp}
    if layout not in writers:
        raise FeatureFileError(
            f"layout '{layout}' is not written: choose from {', '.join(WRITTEN)}"
        )
    return writers[layout]


def _chunked(file: h5py.File, key: str, vectors: NDArray[Any]) -> h5py.Dataset:
    return file.create_dataset(key, data=vectors, chunks=(1, vectors.shape[1]))


def _corners(features: SlideFeatures, layout: str) -> NDArray[np.int64]:
    if features.x is None or features.y is None:
        raise FeatureFileError(
            f"slide '{features.slide_id}': {layout} needs the places of tiles in level-0 pixels, "
            "and they are known in micrometres: give the slide's mpp"
        )
    return np.stack([features.x, features.y], axis=1)


def _trident(file: h5py.File, features: SlideFeatures, size: Mapping[str, int | None]) -> None:
    if features.level == "slide":
        vector = file.create_dataset("features", data=features.vectors[0])
        vector.attrs["encoder"] = features.encoder or _UNKNOWN
        return
    common = {"name": features.slide_id, "savetodir": _UNKNOWN}
    vectors = _chunked(file, "features", features.vectors)
    vectors.attrs.update({"encoder": features.encoder or _UNKNOWN, **common})
    coords = file.create_dataset("coords", data=_corners(features, "trident"))
    coords.attrs.update(
        {
            "patch_size": _rounded(_pixels_of_tile(features)),
            "patch_size_level0": _rounded(features.field_px),
            "level0_magnification": _UNKNOWN,
            "target_magnification": _UNKNOWN,
            "overlap": _UNKNOWN,
            **{key: _UNKNOWN if value is None else value for key, value in size.items()},
            **common,
        }
    )


def _rounded(value: float | None) -> int | str:
    """As TRIDENT counts: whole pixels."""
    return _UNKNOWN if value is None else round(value)


def _pixels_of_tile(features: SlideFeatures) -> float | None:
    """Side of a tile in the encoder's pixels."""
    if features.field_um is None or features.mpp is None:
        return None
    return features.field_um / features.mpp


def _stamp(file: h5py.File, features: SlideFeatures, size: Mapping[str, int | None]) -> None:
    if features.level == "slide":
        file.create_dataset("feats", data=features.vectors)
        precision = f"torch.{features.vectors.dtype}"
        attributes: dict[str, Any] = {
            "encoder": features.encoder,
            "precision": precision,
            "feat_type": "slide",
        }
    else:
        _chunked(file, "feats", features.vectors)
        file.create_dataset("coords", data=_micrometres(features))
        pixels = _pixels_of_tile(features)
        attributes = {
            "extractor": features.encoder,
            "unit": "um",
            "tile_size_um": features.field_um,
            "tile_size_px": None if pixels is None else round(pixels),
            "feat_type": "tile",
        }
    file.attrs.update({key: value for key, value in attributes.items() if value is not None})


def _micrometres(features: SlideFeatures) -> NDArray[np.float64]:
    if features.x_um is not None and features.y_um is not None and features.field_um is not None:
        return np.stack([features.x_um, features.y_um], axis=1)
    if features.slide_mpp is None or features.field_um is None:
        raise FeatureFileError(
            f"slide '{features.slide_id}': stamp needs places and sides in micrometres, and the "
            "slide's mpp is not known: give the manifest a column mpp, or write another layout"
        )
    return _corners(features, "stamp").astype(np.float64) * features.slide_mpp


def _anndata(file: h5py.File, features: SlideFeatures, size: Mapping[str, int | None]) -> None:
    """The on-disk format of AnnData 0.1.0: each group and array says how it is encoded."""
    _encode(file, "anndata", "0.1.0")
    _encode(_chunked(file, "X", features.vectors), "array")
    columns = {}
    if features.level == "tile":
        corners = _corners(features, "anndata")
        columns = {"x": corners[:, 0], "y": corners[:, 1]}
    _frame(file, "obs", len(features), columns)
    _frame(file, "var", features.dimension, {})
    for key in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
        _encode(file.create_group(key), "dict", "0.1.0")
    if columns and features.field_px is not None:
        centres = corners + features.field_px / 2
        _encode(file["obsm"].create_dataset("spatial", data=centres), "array")
    notes = _encode(file["uns"].create_group("features"), "dict", "0.1.0")
    attributes = {
        "slide_id": features.slide_id,
        "encoder": features.encoder,
        "field_px": features.field_px,
        "field_um": features.field_um,
        "mpp": features.mpp,
        "slide_mpp": features.slide_mpp,
        **size,
    }
    if columns:
        attributes |= {"coordinates": "upper left corner in level-0 pixels; spatial: centre"}
    for key, value in attributes.items():
        if value is not None:
            kind = "string" if isinstance(value, str) else "numeric-scalar"
            _encode(notes.create_dataset(key, data=value), kind)


def _encode(element: Any, kind: str, version: str = "0.2.0") -> Any:
    element.attrs["encoding-type"] = kind
    element.attrs["encoding-version"] = version
    return element


def _frame(file: h5py.File, key: str, rows: int, columns: Mapping[str, NDArray[Any]]) -> None:
    import h5py

    frame = _encode(file.create_group(key), "dataframe")
    frame.attrs["_index"] = "_index"
    frame.attrs.create("column-order", list(columns), dtype=h5py.string_dtype())
    names = np.array([str(row) for row in range(rows)], dtype=object)
    index = frame.create_dataset("_index", data=names, dtype=h5py.string_dtype())
    _encode(index, "string-array")
    for name, values in columns.items():
        _encode(frame.create_dataset(name, data=values), "array")
