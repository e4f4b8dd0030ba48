"""Files of features as the tools document their keys, written without the project's own writer."""

from __future__ import annotations

import json
import struct

import h5py
import numpy as np
import polars as pl
import torch
import zarr

N, DIMENSION, SIDE, SLIDE_MPP = 6, 8, 512, 0.25

VECTORS = np.random.default_rng(0).normal(size=(N, DIMENSION)).astype(np.float32)
#: A grid of 3 by 2 tiles that does not begin at 0.
CORNERS = np.array([[SIDE * i + 1024, SIDE * j + 2048] for i in range(3) for j in range(2)])


def trident(folder, name="S-1", vectors=VECTORS, corners=CORNERS, **attributes):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", data=vectors)
        features.attrs["encoder"] = "uni_v1"
        features.attrs["name"] = name
        features.attrs["savetodir"] = "None"
        coords = file.create_dataset("coords", data=corners)
        stated = {
            "patch_size": 256,
            "patch_size_level0": SIDE,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0,
            "name": name,
            "level0_width": 20_000,
            "level0_height": 10_000,
        }
        for key, value in (stated | attributes).items():
            coords.attrs[key] = "None" if value is None else value
    return path


def trident_slide(folder, name="S-1", vector=VECTORS[0]):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=vector).attrs["encoder"] = "titan"
    return path


def clam_h5(folder, name="S-1", vectors=VECTORS, corners=CORNERS):
    path = folder / "h5_files" / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=vectors)
        file.create_dataset("coords", data=corners.astype(np.int32))
    return path


def clam_patches(folder, name="S-1", corners=CORNERS, size=256, level=1, downsample=(2.0, 2.0)):
    path = folder / "patches" / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=corners)
        coords.attrs["patch_size"] = size
        coords.attrs["patch_level"] = level
        coords.attrs["downsample"] = downsample
        coords.attrs["level_dim"] = (20_000, 10_000)
    return path


def clam_pt(folder, name="S-1", vectors=VECTORS):
    path = folder / "pt_files" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(np.array(vectors)), path)
    return path


def stamp(folder, name="S-1", vectors=VECTORS, corners=CORNERS, version="2.1"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("feats", data=vectors.astype(np.float16))
        file.create_dataset("coords", data=corners * SLIDE_MPP)
        file.attrs["extractor"] = "mahmood-uni"
        file.attrs["unit"] = "um"
        if version == "2.0":
            file.attrs["tile_size"] = SIDE * SLIDE_MPP
        else:
            file.attrs["stamp_version"] = "2.5.0"
            file.attrs["tile_size_um"] = SIDE * SLIDE_MPP
            file.attrs["tile_size_px"] = 256
            file.attrs["code_hash"] = "0" * 64
            file.attrs["feat_type"] = "tile"
    return path


def stamp_slide(folder, name="S-1", kind="slide"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("feats", data=VECTORS[:1])
        file.attrs["encoder"] = "titan"
        file.attrs["precision"] = "torch.float32"
        file.attrs["feat_type"] = kind
    return path


def marugoto(folder, name="S-1", stride=224):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("feats", data=VECTORS.astype(np.float16))
        file.create_dataset("coords", data=(CORNERS // SIDE) * stride)
    return path


def hs2p(folder, name="S-1", indices=None):
    tiles = folder / "tiles"
    tiles.mkdir(parents=True, exist_ok=True)
    order = np.arange(N) if indices is None else np.asarray(indices)
    np.savez(
        tiles / f"{name}.coordinates.npz",
        tile_index=order.astype(np.int32),
        x=CORNERS[order, 0],
        y=CORNERS[order, 1],
        tissue_fractions=np.ones(N, np.float32),
    )
    (tiles / f"{name}.coordinates.meta.json").write_text(
        json.dumps(
            {
                "provenance": {"sample_id": name},
                "slide": {"base_spacing_um": SLIDE_MPP, "dimensions": [20_000, 10_000]},
                "tiling": {
                    "requested_tile_size_px": 256,
                    "requested_spacing_um": 0.5,
                    "tile_size_lv0": SIDE,
                },
            }
        )
    )


def slide2vec(folder, name="S-1", kind="npz", indices=None):
    hs2p(folder, name, indices)
    inner = folder / "tile_embeddings"
    inner.mkdir(parents=True, exist_ok=True)
    path = inner / f"{name}.{kind}"
    if kind == "npz":
        np.savez_compressed(path, features=VECTORS, tile_index=np.arange(N, dtype=np.int32))
    else:
        torch.save(torch.from_numpy(VECTORS.copy()), path)
    meta = {
        "sample_id": name,
        "artifact_type": "tile_embeddings",
        "format": kind,
        "feature_dim": DIMENSION,
        "num_tiles": N,
        "encoder_name": "uni",
    }
    (inner / f"{name}.meta.json").write_text(json.dumps(meta))
    return path


def slide2vec_slide(folder, name="S-1"):
    inner = folder / "slide_embeddings"
    inner.mkdir(parents=True, exist_ok=True)
    path = inner / f"{name}.pt"
    torch.save(torch.from_numpy(VECTORS[0].copy()), path)
    meta = {"sample_id": name, "artifact_type": "slide_embeddings", "encoder_name": "prism"}
    (inner / f"{name}.meta.json").write_text(json.dumps(meta))
    return path


def box(x, y, side=SIDE):
    corners = [(x + side, y), (x + side, y + side), (x, y + side), (x, y), (x + side, y)]
    return struct.pack("<BIII", 1, 3, 1, 5) + b"".join(struct.pack("<dd", *c) for c in corners)


def wsidata(folder, name="S-1", models=("uni",), zarr_format=2, columns=True, attributes=True):
    """Rows of the table in another order than the tiles, as after subsetting."""
    path = folder / f"{name}.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    shapes = root.create_group("shapes/tiles")
    shapes.attrs["encoding-type"] = "ngff:shapes"
    shuffled = np.arange(N)[::-1].copy()
    for model in models:
        table = root.create_group(f"tables/{model}_tiles")
        table.attrs.update(
            {
                "encoding-type": "anndata",
                "region": "tiles",
                "region_key": "library_id",
                "instance_key": "tile_id",
            }
        )
        table.create_array("X", data=VECTORS[shuffled])
        table.create_array("obs/tile_id", data=shuffled.astype(np.int64))
    places = {"tile_id": np.arange(N), "geometry": [box(*c) for c in CORNERS.tolist()]}
    if columns:
        places |= {"x": CORNERS[:, 0], "y": CORNERS[:, 1]}
    pl.DataFrame(places).write_parquet(path / "shapes" / "tiles" / "shapes.parquet")
    if attributes:
        root.attrs["tile_spec"] = {
            "tiles": {
                "height": 256,
                "width": 256,
                "mpp": 0.5,
                "ops_level": 0,
                "ops_downsample": 2.0,
            }
        }
        root.attrs["slide_properties"] = {"mpp": SLIDE_MPP, "level_downsample": [1.0, 4.0]}
    return path


def raw2features(folder, name="S-1", grids=("mpp0.5_px256",), models=("uni",), slide=False):
    path = folder / f"{name}.embeddings.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.attrs["raw2features"] = {"schema_version": "0.1", "grids": {key: {} for key in grids}}
    for key in grids:
        grid = root.create_group(f"grids/{key}")
        grid.attrs["raw2features"] = {
            "schema_version": "0.1",
            "source": {"slide_id": name, "mpp_level0": SLIDE_MPP},
            "patching": {
                "target_mpp": 0.5,
                "achieved_mpp": 0.5,
                "patch_px": 256,
                "level0_patch": SIDE,
            },
        }
        grid.create_array("coords", data=CORNERS.astype(np.int32)).attrs["units"] = "level0_px"
        for model in models:
            grid.create_array(f"features/{model}", data=VECTORS.astype(np.float16))
        if slide:
            grid.create_array("slide/titan", data=VECTORS[:1])
    return path


def anndata_h5ad(folder, name="S-1", dense=True, x_y=True):
    """Written by AnnData's own package."""
    import anndata
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5ad"
    # pandas 3 has a type of strings that AnnData does not write yet.
    obs = pd.DataFrame(index=pd.Index([f"tile-{i}" for i in range(N)], dtype=object))
    numbers = range(DIMENSION if dense else 0)
    var = pd.DataFrame(index=pd.Index([str(i) for i in numbers], dtype=object))
    if x_y:
        obs["x"], obs["y"] = CORNERS[:, 0], CORNERS[:, 1]
    made = anndata.AnnData(
        X=VECTORS.copy() if dense else None,
        obs=obs,
        var=var,
        obsm={"spatial": CORNERS + SIDE / 2} | ({} if dense else {"X_uni": VECTORS.copy()}),
        uns={"features": {"field_px": float(SIDE), "slide_mpp": SLIDE_MPP, "encoder": "uni"}},
    )
    made.write_h5ad(path)
    return path


def plain_npy(folder, name="S-1", coords="npy"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npy"
    np.save(path, VECTORS)
    if coords == "npy":
        np.save(folder / f"{name}_coords.npy", CORNERS)
    else:
        table = pl.DataFrame({"x": CORNERS[:, 0], "y": CORNERS[:, 1]})
        table.write_parquet(folder / f"{name}_coords.parquet")
    return path


def plain_npz(folder, name="S-1"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    np.savez(path, features=VECTORS[None], coords=CORNERS[None])
    return path


def plain_pt(folder, name="S-1"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    arrays = {"features": VECTORS.copy(), "coords": CORNERS.copy()}
    torch.save({key: torch.from_numpy(value) for key, value in arrays.items()}, path)
    return path


def parquet(folder, name="S-1", wide=False):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    table = pl.DataFrame({"x": CORNERS[:, 0], "y": CORNERS[:, 1], "patch_size_level0": [SIDE] * N})
    if wide:
        vectors = pl.DataFrame({f"feature_{i}": VECTORS[:, i] for i in range(DIMENSION)})
        table = table.hstack(vectors.select(sorted(vectors.columns, reverse=True)))
    else:
        lists = pl.Series("embedding", VECTORS.tolist(), dtype=pl.List(pl.Float32))
        table = table.with_columns(lists)
    table.write_parquet(path)
    return path
