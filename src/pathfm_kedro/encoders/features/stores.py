"""Zarr stores: SpatialData as wsidata and LazySlide write it, raw2features.

They are read by their documented keys with ``zarr`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathfm_kedro.encoders.features.arrays import read_table
from pathfm_kedro.encoders.features.slide_features import (
    FeatureFileError,
    SlideFeatures,
    TileSize,
    first_number,
    place,
    slide_vector,
    some,
    text_of,
    tile_vectors,
)

if TYPE_CHECKING:
    import zarr

#: Bytes of a box in well-known binary: order, type, 1 ring, 5 points of two float64.
_BOX_BYTES, _BOX_HEAD = 93, 13


@contextmanager
def opened(path: Path) -> Iterator[zarr.Group]:
    """A Zarr group for reading.

    Raises
    ------
    FeatureFileError
        If it is none or is not whole, there or while it is read, or if zarr is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise FeatureFileError(
            f'{place(path)}: Zarr needs the package zarr: pip install "pathfm-kedro[features]"'
        ) from error
    try:
        yield zarr.open_group(path, mode="r")
    except FeatureFileError:
        raise
    except Exception as error:
        # What a store raises depends on its version and on what is missing.
        raise FeatureFileError(
            f"{place(path)}: cannot be read as Zarr ({type(error).__name__}): the folder is not "
            "whole; copy or extract it again"
        ) from error


def read_zarr(path: Path, slide_id: str, said: TileSize, model: str | None) -> SlideFeatures | None:
    """Read what the groups of the store say it is; None where they are of no layout."""
    with opened(path) as root:
        if "grids" in root:
            return _raw2features(root, path, slide_id, said, model)
        if "tables" in root:
            return _wsidata(root, path, slide_id, said, model)
    return None


def keys_of(path: Path) -> list[str]:
    """What lies at the root of the store."""
    with opened(path) as root:
        return sorted(root.keys())


def _group(parent: zarr.Group, key: str) -> zarr.Group | None:
    import zarr

    found = parent.get(key)
    return found if isinstance(found, zarr.Group) else None


def _member(parent: zarr.Group, key: str, path: Path) -> zarr.Group:
    found = _group(parent, key)
    if found is None:
        raise FeatureFileError(
            f"{place(path)}, '{key}': no such group: the store is not whole; extract it again"
        )
    return found


def _values(parent: zarr.Group, key: str, path: Path) -> NDArray[Any]:
    """An array of numbers; anything that would be unpickled is refused before it is read."""
    import zarr

    where = f"{place(path)}, '{parent.path}/{key}'"
    found = parent.get(key)
    if not isinstance(found, zarr.Array):
        raise FeatureFileError(f"{where}: no such array: the store is not whole; extract it again")
    described = str(found.metadata.to_dict()).lower()
    if "pickle" in described or found.dtype.kind not in "iufb":
        raise FeatureFileError(f"{where}: holds {found.dtype} and not numbers: extract it again")
    return np.asarray(found[...])


def _choose(models: Mapping[str, Any], model: str | None, path: Path) -> str:
    """One of a store's models, by its label or the last part of it."""
    if model is None and len(models) == 1:
        return next(iter(models))
    alike = [m for m in models if m == model] or [
        m for m in models if model is not None and m.rpartition("/")[2] == model
    ]
    if len(alike) == 1:
        return alike[0]
    problem = "of several encoders" if model is None else f"'{model}' is {len(alike)} of them"
    raise FeatureFileError(
        f"{place(path)}: holds vectors under {some(sorted(models)) or 'no name'} ({problem}): say "
        "which by model"
    )


def _raw2features(
    root: zarr.Group, path: Path, slide_id: str, said: TileSize, model: str | None
) -> SlideFeatures:
    grids = _group(root, "grids")
    tiles: dict[str, tuple[str, str]] = {}
    slides: dict[str, tuple[str, str]] = {}
    for key in sorted(grids.keys() if grids is not None else ()):
        for kind, into in (("features", tiles), ("slide", slides)):
            inner = _group(root, f"grids/{key}/{kind}")
            for name in sorted(inner.keys() if inner is not None else ()):
                into[f"{key}/{name}"] = (key, name)
    of_slides = bool(model and model.startswith("slide/")) or not tiles
    candidates = slides if of_slides else tiles
    wanted = model.removeprefix("slide/") if model else None
    key, name = candidates[_choose(candidates, wanted, path)]
    grid = _member(root, f"grids/{key}", path)
    if of_slides:
        vector = _values(_member(grid, "slide", path), name, path)
        return slide_vector(slide_id, path, "raw2features", vector, key=name, encoder=name)
    corners = _values(grid, "coords", path)
    unit = text_of(grid["coords"].attrs.get("units"))
    if unit not in (None, "level0_px"):
        raise FeatureFileError(
            f"{place(path)}, 'grids/{key}/coords': units are '{unit}', and 'level0_px' is read: "
            "write the store again"
        )
    header = grid.attrs.get("raw2features")
    header = header if isinstance(header, Mapping) else {}
    patching, source = (
        part if isinstance(part := header.get(name_), Mapping) else {}
        for name_ in ("patching", "source")
    )
    return tile_vectors(
        slide_id,
        path,
        "raw2features",
        _values(_member(grid, "features", path), name, path),
        corners,
        keys=(f"grids/{key}/features/{name}", f"grids/{key}/coords"),
        said=said,
        field_px=first_number(patching, "level0_patch"),
        mpp=first_number(patching, "achieved_mpp", "target_mpp"),
        slide_mpp=first_number(source, "mpp_level0"),
        encoder=name,
    )


def _wsidata(
    root: zarr.Group, path: Path, slide_id: str, said: TileSize, model: str | None
) -> SlideFeatures:
    tables = {
        name: region
        for name in sorted(_member(root, "tables", path).keys())
        if (region := _region(root, name)) is not None
    }
    if model is not None and model not in tables:
        model = next((n for n, region in tables.items() if n == f"{model}_{region}"), model)
    name = _choose(tables, model, path)
    region = tables[name]
    table = _member(root, f"tables/{name}", path)
    places = _shapes(path, region)
    ids = _values(_member(table, "obs", path), "tile_id", path)
    order = {int(tile): row for row, tile in enumerate(places.tile_ids)}
    lost = [row for row, tile in enumerate(ids.tolist()) if int(tile) not in order]
    if lost:
        raise FeatureFileError(
            f"{place(path)}, 'tables/{name}/obs/tile_id': row {some(lost)} names tiles that "
            f"shapes/{region} does not have: write the store again"
        )
    rows = [order[int(tile)] for tile in ids.tolist()]
    spec, properties = _tile_spec(root, region), _properties(root)
    return tile_vectors(
        slide_id,
        path,
        "wsidata",
        _values(table, "X", path),
        places.corners[rows],
        keys=(f"tables/{name}/X", f"shapes/{region}"),
        said=said,
        field_px=places.side or _side(spec, properties),
        mpp=first_number(spec, "mpp"),
        slide_mpp=first_number(properties, "mpp"),
        encoder=name.removesuffix(f"_{region}"),
    )


def _region(root: zarr.Group, name: str) -> str | None:
    """The tiles that a table of vectors is about; None where it is no table of vectors."""
    import zarr

    table = _group(root, f"tables/{name}")
    region = text_of(table.attrs.get("region")) if table is not None else None
    vectors = table.get("X") if table is not None else None
    is_table = isinstance(vectors, zarr.Array) and vectors.ndim == 2 and vectors.shape[1] > 0
    return region if is_table and region and _group(root, f"shapes/{region}") is not None else None


@dataclass(frozen=True)
class _Places:
    """Tiles of a store: their ids [n], upper left corners [n, 2] and side in level-0 pixels."""

    tile_ids: NDArray[Any]
    corners: NDArray[Any]
    side: float | None


def _shapes(path: Path, region: str) -> _Places:
    inner = f"shapes/{region}/shapes.parquet"
    table = read_table(path / inner, where=f"{place(path)}, '{inner}'")
    boxes = _boxes(table["geometry"]) if "geometry" in table.columns else None
    if {"x", "y"} <= set(table.columns):
        corners = table.select("x", "y").to_numpy()
    elif boxes is not None:
        corners = boxes.min(axis=1)
    else:
        raise FeatureFileError(
            f"{place(path)}, 'shapes/{region}': neither columns x and y nor boxes (it has "
            f"{some(table.columns)}): write the store again"
        )
    ids = table["tile_id"].to_numpy() if "tile_id" in table.columns else np.arange(table.height)
    side = None
    if boxes is not None and len(boxes):
        sides = (boxes.max(axis=1) - boxes.min(axis=1)).ravel()
        side = float(sides[0]) if np.allclose(sides, sides[0]) else None
    return _Places(ids, corners, side)


def _boxes(geometry: Any) -> NDArray[np.float64] | None:
    """Corners [n, 5, 2] of boxes in well-known binary; None where there is another shape."""
    import polars as pl

    if geometry.dtype != pl.Binary:
        return None
    blobs = geometry.to_list()
    if any(blob is None or len(blob) != _BOX_BYTES or blob[0] != 1 for blob in blobs):
        return None
    points = [np.frombuffer(blob, "<f8", offset=_BOX_HEAD).reshape(5, 2) for blob in blobs]
    return np.stack(points) if points else None


def _tile_spec(root: zarr.Group, region: str) -> Mapping[str, Any]:
    specs = root.attrs.get("tile_spec")
    spec = specs.get(region) if isinstance(specs, Mapping) else None
    return spec if isinstance(spec, Mapping) else _scalars(root, f"tables/tile_spec/uns/{region}")


def _properties(root: zarr.Group) -> Mapping[str, Any]:
    found = root.attrs.get("slide_properties")
    return found if isinstance(found, Mapping) else _scalars(root, "tables/slide_properties/uns")


def _scalars(root: zarr.Group, key: str) -> dict[str, Any]:
    """Single numbers of a group, as stores before wsidata 0.6 keep them."""
    group = _group(root, key)
    if group is None:
        return {}
    arrays = {name: member for name, member in group.arrays() if member.shape == ()}
    return {name: a[()] for name, a in arrays.items() if a.dtype.kind in "iuf"}


def _side(spec: Mapping[str, Any], properties: Mapping[str, Any]) -> float | None:
    """Side at level 0: pixels of a tile, by the downsample to level 0."""
    if first_number(spec, "raw_width"):
        return first_number(spec, "raw_width")
    width, base = first_number(spec, "width"), first_number(spec, "base_downsample")
    levels, level = properties.get("level_downsample"), spec.get("ops_level")
    if base is None and isinstance(levels, list) and isinstance(level, int) and level < len(levels):
        base = (first_number(spec, "ops_downsample") or 1.0) * float(levels[level])
    return float(int(width * base)) if width and base else None
