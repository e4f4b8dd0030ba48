"""Arrays in ``.pt``, ``.npz``, ``.npy`` and Parquet: CLAM, slide2vec, plain.

A ``.pt`` is a pickle: it is read as tensors alone (``weights_only``), and everything else is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.features.hdf5 import array, opened, patches_files, with_side
from pathfm_kedro.encoders.features.slide_features import (
    FeatureFileError,
    SlideFeatures,
    TileSize,
    declared_sizes,
    first_number,
    place,
    rounding_bound,
    slide_vector,
    some,
    text_of,
    tile_vectors,
)

if TYPE_CHECKING:
    import polars as pl

Arrays = Mapping[str, NDArray[Any]]

#: What vectors and their places are called in a dictionary of arrays.
_VECTORS = ("features", "feats", "embeddings", "embedding", "vectors")
_PLACES = ("coords", "coordinates", "coord")
#: Bits after the leading one of bfloat16, which NumPy does not have.
_BFLOAT16_BITS = 7


def read_pt(path: Path, slide_id: str, said: TileSize) -> SlideFeatures | None:
    """Tensors of a ``.pt``: CLAM, slide2vec, or a dictionary of vectors and coordinates."""
    tensors, was = _tensors(path)
    features = _from_arrays(tensors, path, slide_id, said, bare="clam")
    if features is not None and was == "bfloat16":
        from dataclasses import replace

        bound = rounding_bound(features.vectors, _BFLOAT16_BITS)
        return replace(features, dtype=was, loss=bound)
    return features


def _tensors(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    """Arrays of the file, a bare tensor under the name of none, and the type of the vectors."""
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FeatureFileError(
            f"{place(path)}: holds more than tensors, and to read that would run what is in it: "
            "save the tensor alone (torch.save(features, path)), or give the .h5 of this slide"
        ) from error
    except Exception as error:
        # What PyTorch raises depends on the byte that is wrong.
        raise FeatureFileError(
            f"{place(path)}: cannot be read as tensors of PyTorch ({_first_line(error)}): the "
            "file is cut short, damaged or of another kind; copy or extract it again"
        ) from error
    named = loaded if isinstance(loaded, dict) else {"": loaded}
    odd = [k for k, v in named.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if odd or not named:
        kinds = some([f"{key!r} is {type(named[key]).__name__}" for key in odd]) or "nothing in it"
        raise FeatureFileError(
            f"{place(path)}: neither a tensor nor a dictionary of tensors ({kinds}): save the "
            "tensor alone (torch.save(features, path)), or give the .h5 of this slide"
        )
    kinds_of_numbers = {str(v.dtype).removeprefix("torch.") for v in named.values()}
    try:
        widened = {
            k: (v.float() if v.dtype == torch.bfloat16 else v).detach().numpy()
            for k, v in named.items()
        }
    except (TypeError, RuntimeError) as error:
        raise FeatureFileError(
            f"{place(path)}: tensors that NumPy does not know ({_first_line(error)}): save them "
            "dense, as float32 or float16"
        ) from error
    return widened, "bfloat16" if "bfloat16" in kinds_of_numbers else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def read_npz(path: Path, slide_id: str, said: TileSize) -> SlideFeatures | None:
    """Arrays of a ``.npz``: slide2vec, or vectors with coordinates."""
    return _from_arrays(_numpy_arrays(path), path, slide_id, said, bare="numpy")


def read_npy(path: Path, slide_id: str, said: TileSize) -> SlideFeatures | None:
    """One array, its coordinates in ``<slide>_coords.npy`` or ``.parquet`` beside it."""
    return _from_arrays(_numpy_arrays(path), path, slide_id, said, bare="numpy")


def _numpy_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except Exception as error:
        # What NumPy raises depends on the byte that is wrong.
        what = (
            "holds Python objects, which are not unpickled: save arrays of numbers"
            if "allow_pickle" in str(error)
            else f"cannot be read as arrays of NumPy ({_first_line(error)}): copy or extract it again"
        )
        raise FeatureFileError(f"{place(path)}: {what}") from error


def _from_arrays(
    arrays: Arrays, path: Path, slide_id: str, said: TileSize, *, bare: str
) -> SlideFeatures | None:
    key = next((k for k in ("", *_VECTORS) if k in arrays), None)
    if key is None:
        return None
    vectors, notes = arrays[key], _notes_beside(path)
    if "artifact_type" in notes:
        return _slide2vec(vectors, arrays.get("tile_index"), notes, path, slide_id, said)
    unnamed = "the tensor" if path.suffix.lower() == ".pt" else "the array"
    names = (key or unnamed, next((k for k in _PLACES if k in arrays), "x, y"))
    places = _places_within(arrays)
    layout = bare if key == "" else path.suffix.lower().lstrip(".")
    if places is None:
        places, names, side, said = _places_beside(path, said, names)
    else:
        side = None
    if places is None:
        flat = vectors.ndim == 1 or (vectors.ndim == 2 and len(vectors) == 1)
        if flat:
            return slide_vector(slide_id, path, layout, vectors, key=names[0])
        raise FeatureFileError(
            f"{place(path)}: {list(vectors.shape)} vectors without coordinates: "
            f"{_where_places_go(path)}"
        )
    return tile_vectors(
        slide_id, path, layout, vectors, places, keys=names, said=said, field_px=side
    )


def _where_places_go(path: Path) -> str:
    stem = path.stem
    if path.suffix.lower() == ".pt":
        return (
            f"CLAM keeps them in ../h5_files/{stem}.h5 or ../patches/{stem}.h5; put these there, "
            "or name the folder h5_files"
        )
    return (
        f"put them beside it as {stem}_coords.npy ([tiles, 2], level-0 pixels of the upper left "
        "corners)"
    )


def _places_within(arrays: Arrays) -> NDArray[Any] | None:
    for name in _PLACES:
        if name in arrays:
            return arrays[name]
    if {"x", "y"} <= set(arrays):
        return np.stack([arrays["x"], arrays["y"]], axis=1)
    return None


def _places_beside(
    path: Path, said: TileSize, names: tuple[str, str]
) -> tuple[NDArray[Any] | None, tuple[str, str], float | None, TileSize]:
    """Coordinates of a bare array, from files where tools and people put them."""
    for name in (f"{path.stem}_coords", f"{path.stem}.coords", f"{path.stem}_coordinates"):
        for suffix in (".npy", ".parquet"):
            beside = path.parent / f"{name}{suffix}"
            if beside.is_file():
                places = (
                    _numpy_arrays(beside)[""] if suffix == ".npy" else _columns(beside, ("x", "y"))
                )
                return places, (names[0], beside.name), None, said
    if path.suffix.lower() != ".pt":
        return None, names, None, said
    in_h5 = path.parent / "../h5_files" / f"{path.stem}.h5"
    for other in (*([in_h5] if in_h5.is_file() else []), *patches_files(path)):
        with opened(other) as file:
            if "coords" in file:
                attributes = dict(file["coords"].attrs)
                said, side = with_side(attributes, other, said)
                return array(file, "coords", other), (names[0], place(other)), side, said
    return None, names, None, said


def _notes_beside(path: Path) -> dict[str, Any]:
    """What ``<slide>.meta.json`` says, where slide2vec wrote one."""
    return _json(path.parent / f"{path.stem}.meta.json")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FeatureFileError(
            f"{place(path)}: cannot be read as JSON ({_first_line(error)}): copy or extract it "
            "again"
        ) from error
    return found if isinstance(found, dict) else {}


def _slide2vec(
    vectors: NDArray[Any],
    tile_index: NDArray[Any] | None,
    notes: Mapping[str, Any],
    path: Path,
    slide_id: str,
    said: TileSize,
) -> SlideFeatures:
    encoder = next(
        (
            text_of(notes[k])
            for k in ("encoder_name", "encoder", "model_name", "model")
            if k in notes
        ),
        None,
    )
    kind = text_of(notes.get("artifact_type"))
    if kind == "slide_embeddings":
        return slide_vector(slide_id, path, "slide2vec", vectors, key="features", encoder=encoder)
    if kind != "tile_embeddings":
        raise FeatureFileError(
            f"{place(path)}: artifact_type is '{kind}', and tile_embeddings and slide_embeddings "
            "are read: run slide2vec at the level of tiles or slides"
        )
    sample = text_of(notes.get("sample_id")) or slide_id
    coordinates = _hs2p_file(path, sample)
    places = _numpy_arrays(coordinates)
    missing = {"x", "y"} - set(places)
    if missing:
        raise FeatureFileError(
            f"{place(coordinates)}: lacks {some(sorted(missing))} (it has "
            f"{some(sorted(places))}): run hs2p again"
        )
    corners = np.stack([places["x"], places["y"]], axis=1)
    if tile_index is not None:
        corners = _by_index(corners, places.get("tile_index"), tile_index, path, coordinates)
    geometry = _flat(_json(coordinates.with_suffix(".meta.json")))
    return tile_vectors(
        slide_id,
        path,
        "slide2vec",
        vectors,
        corners,
        keys=("features", coordinates.name),
        said=said,
        field_px=first_number(geometry, "tile_size_lv0", "tile_size_px_lv0"),
        mpp=first_number(geometry, "requested_spacing_um", "spacing_um", "spacing"),
        slide_mpp=first_number(geometry, "base_spacing_um", "spacing_at_level_0"),
        encoder=encoder,
    )


def _hs2p_file(path: Path, sample: str) -> Path:
    for folder in (path.parent.parent / "tiles", path.parent):
        candidate = folder / f"{sample}.coordinates.npz"
        if Path(sample).name == sample and candidate.is_file():
            return candidate
    raise FeatureFileError(
        f"{place(path)}: slide2vec keeps the places of tiles in "
        f"../tiles/{sample}.coordinates.npz, and there is none: copy the folder tiles beside this "
        "one, with its .meta.json files"
    )


def _by_index(
    corners: NDArray[Any],
    known: NDArray[Any] | None,
    wanted: NDArray[Any],
    path: Path,
    coordinates: Path,
) -> NDArray[Any]:
    known = np.arange(len(corners)) if known is None else known
    order = np.argsort(known, kind="stable")
    at = np.searchsorted(known[order], wanted)
    rows = order[np.minimum(at, len(order) - 1)] if len(order) else at
    unknown = np.flatnonzero(known[rows] != wanted) if len(order) else np.arange(len(wanted))
    if len(unknown):
        raise FeatureFileError(
            f"{place(path)}, 'tile_index': row {some(unknown.tolist())} names tiles that "
            f"{place(coordinates)} does not have: both must come from one run"
        )
    return corners[rows]


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a mapping and of the mappings in it."""
    flat = {k: v for k, v in nested.items() if not isinstance(v, Mapping)}
    for inner in nested.values():
        if isinstance(inner, Mapping):
            flat = {k: v for k, v in inner.items() if not isinstance(v, Mapping)} | flat
    return flat


def read_table(path: Path, where: str | None = None) -> pl.DataFrame:
    """A Parquet table, read by Arrow: of a damaged file Polars may never come back."""
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read(use_threads=False)
        table.validate(full=True)
        frame = pl.from_arrow(table)
    except (OSError, ValueError, TypeError, MemoryError, pa.ArrowException) as error:
        raise FeatureFileError(
            f"{where or place(path)}: cannot be read as Parquet ({type(error).__name__}): copy or "
            "write it again"
        ) from error
    assert isinstance(frame, pl.DataFrame)
    return frame


def _columns(path: Path, names: tuple[str, ...]) -> NDArray[Any]:
    table = read_table(path)
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise FeatureFileError(
            f"{place(path)}: no column {some(missing)} (it has {some(table.columns)}): name the "
            "columns of level-0 pixels x and y"
        )
    columns: NDArray[Any] = table.select(names).to_numpy()
    return columns


def read_parquet(path: Path, slide_id: str, said: TileSize) -> SlideFeatures | None:
    """A table of one slide: x, y and a list of numbers, or one column for each number."""
    import polars as pl

    table = read_table(path)
    lists = [n for n in _VECTORS if n in table.columns and table[n].dtype in (pl.List, pl.Array)]
    numbered = sorted(
        (int(found[1]), name)
        for name in table.columns
        if (found := re.fullmatch(r"(?:feature|feat|f|dim|emb|embedding)?_?(\d+)", name))
    )
    if lists:
        vectors, key = _stack_lists(table[lists[0]], path), lists[0]
    elif numbered:
        names = [name for _, name in numbered]
        vectors, key = table.select(names).to_numpy(), f"{names[0]}…{names[-1]}"
    else:
        return None
    notes: dict[str, Any] = {
        name: table[name][0]
        for name in ("patch_size_level0", "field_px", "field_um", "mpp", "slide_mpp")
        if name in table.columns and table.height and table[name].n_unique() == 1
    }
    encoder = table["encoder"][0] if "encoder" in table.columns and table.height else None
    if not {"x", "y"} <= set(table.columns):
        return slide_vector(slide_id, path, "parquet", vectors, key=key, encoder=text_of(encoder))
    return tile_vectors(
        slide_id,
        path,
        "parquet",
        vectors,
        table.select("x", "y").to_numpy(),
        keys=(key, "x, y"),
        said=said,
        **declared_sizes(notes),
        encoder=text_of(encoder),
    )


def _stack_lists(column: pl.Series, path: Path) -> NDArray[Any]:
    import polars as pl

    if column.dtype == pl.Array:
        stacked: NDArray[Any] = column.to_numpy()
        return stacked
    lengths = column.list.len().unique().to_list()
    if len(lengths) > 1 or None in lengths:
        raise FeatureFileError(
            f"{place(path)}, '{column.name}': lists of {some(sorted(map(str, lengths)))} numbers: "
            "all vectors need one length"
        )
    if lengths in ([], [0]):
        return np.zeros((len(column), 0), np.float32)
    flat: NDArray[Any] = column.explode().to_numpy()
    return flat.reshape(len(column), -1)


def keys_of(path: Path) -> list[str]:
    """Names of the file's arrays or columns."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return list(read_table(path).columns)
    return sorted(_tensors(path)[0] if suffix == ".pt" else _numpy_arrays(path))
