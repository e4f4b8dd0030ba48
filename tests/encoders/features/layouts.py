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


def trident(folder, name="S-1", vectors=VECTORS, corners=CORNERS, encoder="uni_v1", **attributes):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", data=vectors)
        features.attrs["encoder"] = encoder
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


def stamp(
    folder, name="S-1", vectors=VECTORS, corners=CORNERS, version="2.1", encoder="mahmood-uni"
):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("feats", data=vectors.astype(np.float16))
        file.create_dataset("coords", data=corners * SLIDE_MPP)
        file.attrs["extractor"] = encoder
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


def marugoto(folder, name="S-1", vectors=VECTORS, corners=CORNERS, stride=224):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("feats", data=vectors.astype(np.float16))
        file.create_dataset("coords", data=(corners // SIDE) * stride)
    return path


def hs2p(folder, name="S-1", corners=CORNERS, indices=None):
    tiles = folder / "tiles"
    tiles.mkdir(parents=True, exist_ok=True)
    order = np.arange(len(corners)) if indices is None else np.asarray(indices)
    np.savez(
        tiles / f"{name}.coordinates.npz",
        tile_index=order.astype(np.int32),
        x=corners[order, 0],
        y=corners[order, 1],
        tissue_fractions=np.ones(len(corners), np.float32),
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


def slide2vec(
    folder,
    name="S-1",
    vectors=VECTORS,
    corners=CORNERS,
    kind="npz",
    indices=None,
    encoder="uni",
):
    hs2p(folder, name, corners, indices)
    inner = folder / "tile_embeddings"
    inner.mkdir(parents=True, exist_ok=True)
    path = inner / f"{name}.{kind}"
    if kind == "npz":
        index = np.arange(len(vectors), dtype=np.int32)
        np.savez_compressed(path, features=vectors, tile_index=index)
    else:
        torch.save(torch.from_numpy(vectors.copy()), path)
    meta = {
        "sample_id": name,
        "artifact_type": "tile_embeddings",
        "format": kind,
        "feature_dim": DIMENSION,
        "num_tiles": len(vectors),
        "encoder_name": encoder,
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


def wsidata(
    folder,
    name="S-1",
    vectors=VECTORS,
    corners=CORNERS,
    models=("uni",),
    zarr_format=2,
    columns=True,
    attributes=True,
):
    """Rows of the table in another order than the tiles, as after subsetting."""
    path = folder / f"{name}.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    shapes = root.create_group("shapes/tiles")
    shapes.attrs["encoding-type"] = "ngff:shapes"
    shuffled = np.arange(len(vectors))[::-1].copy()
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
        table.create_array("X", data=vectors[shuffled])
        table.create_array("obs/tile_id", data=shuffled.astype(np.int64))
    boxes = pl.Series([box(*c) for c in corners.tolist()], dtype=pl.Binary)
    places = {"tile_id": np.arange(len(corners)), "geometry": boxes}
    if columns:
        places |= {"x": corners[:, 0], "y": corners[:, 1]}
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


def raw2features(
    folder,
    name="S-1",
    vectors=VECTORS,
    corners=CORNERS,
    grids=("mpp0.5_px256",),
    models=("uni",),
    slide=False,
):
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
        grid.create_array("coords", data=corners.astype(np.int32)).attrs["units"] = "level0_px"
        for model in models:
            grid.create_array(f"features/{model}", data=vectors.astype(np.float16))
        if slide:
            grid.create_array("slide/titan", data=VECTORS[:1])
    return path


def anndata_h5ad(
    folder, name="S-1", vectors=VECTORS, corners=CORNERS, dense=True, x_y=True, encoder="uni"
):
    """Written by AnnData's own package."""
    import anndata
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5ad"
    # pandas 3 has a type of strings that AnnData does not write yet.
    obs = pd.DataFrame(index=pd.Index([f"tile-{i}" for i in range(len(vectors))], dtype=object))
    numbers = range(vectors.shape[1] if dense else 0)
    var = pd.DataFrame(index=pd.Index([str(i) for i in numbers], dtype=object))
    if x_y:
        obs["x"], obs["y"] = corners[:, 0], corners[:, 1]
    made = anndata.AnnData(
        X=vectors.copy() if dense else None,
        obs=obs,
        var=var,
        obsm={"spatial": corners + SIDE / 2} | ({} if dense else {"X_uni": vectors.copy()}),
        uns={"features": {"field_px": float(SIDE), "slide_mpp": SLIDE_MPP, "encoder": encoder}},
    )
    made.write_h5ad(path)
    return path


def plain_npy(folder, name="S-1", vectors=VECTORS, corners=CORNERS, coords="npy"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npy"
    np.save(path, vectors)
    if coords == "npy":
        np.save(folder / f"{name}_coords.npy", corners)
    else:
        table = pl.DataFrame({"x": corners[:, 0], "y": corners[:, 1]})
        table.write_parquet(folder / f"{name}_coords.parquet")
    return path


def plain_npz(folder, name="S-1", vectors=VECTORS, corners=CORNERS):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    np.savez(path, features=vectors[None], coords=corners[None])
    return path


def plain_pt(folder, name="S-1", vectors=VECTORS, corners=CORNERS):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    arrays = {"features": vectors.copy(), "coords": corners.copy()}
    torch.save({key: torch.from_numpy(value) for key, value in arrays.items()}, path)
    return path


def parquet(folder, name="S-1", vectors=VECTORS, corners=CORNERS, wide=False, encoder="uni"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    stated = {"patch_size_level0": SIDE, "encoder": encoder}
    columns = {key: pl.repeat(value, len(corners), eager=True) for key, value in stated.items()}
    table = pl.DataFrame({"x": corners[:, 0], "y": corners[:, 1], **columns})
    if wide:
        numbers = pl.DataFrame({f"feature_{i}": vectors[:, i] for i in range(vectors.shape[1])})
        table = table.hstack(numbers.select(sorted(numbers.columns, reverse=True)))
    else:
        lists = pl.Series("embedding", vectors.tolist(), dtype=pl.List(pl.Float32))
        table = table.with_columns(lists)
    table.write_parquet(path)
    return path
