"""What is written is read back by each layout's documented keys, and every bit is as it was."""

from __future__ import annotations

from dataclasses import replace

import anndata
import h5py
import numpy as np
import pytest

from pathfm_kedro.encoders.features import (
    WRITTEN,
    FeatureFileError,
    SlideFeatures,
    read_features,
    suffix_of,
    write_features,
)
from tests.encoders.features.layouts import CORNERS, DIMENSION, SIDE, SLIDE_MPP, VECTORS

#: Resolutions of scanners, which no binary number is equal to.
MPPS = [0.25, 0.2528, 0.5021, 0.12125]


def features(vectors=VECTORS, mpp=SLIDE_MPP):
    return SlideFeatures(
        "S-1",
        vectors,
        "tile",
        "ours",
        x=CORNERS[:, 0],
        y=CORNERS[:, 1],
        field_px=float(SIDE),
        field_um=SIDE * mpp,
        mpp=2 * mpp,
        slide_mpp=mpp,
        encoder="uni",
    )


def of_slide():
    return SlideFeatures("S-1", VECTORS[:1], "slide", "ours", encoder="titan")


@pytest.mark.parametrize("layout", WRITTEN)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mpp", MPPS)
def test_a_round_trip_is_equal_to_the_bit(layout, dtype, mpp, tmp_path):
    # Numbers of every size that the type holds, signs of zero included.
    bits = np.random.default_rng(2).integers(
        0, 2 ** (8 * dtype().itemsize), (6, 8), dtype=np.uint64
    )
    vectors = bits.astype(f"u{dtype().itemsize}").view(dtype)
    vectors = np.where(np.isfinite(vectors), vectors, dtype(-0.0))
    path = tmp_path / f"S-1{suffix_of(layout)}"
    write_features(path, layout, features(vectors, mpp))
    back = read_features(path, slide_mpp=mpp)
    assert back.layout == layout
    assert back.vectors.dtype == dtype
    assert back.vectors.tobytes() == np.ascontiguousarray(vectors).tobytes()
    np.testing.assert_array_equal(np.stack([back.x, back.y], axis=1), CORNERS)
    assert (back.encoder, back.slide_id) == ("uni", "S-1")
    assert (back.field_px, back.field_um) == pytest.approx((SIDE, SIDE * mpp))
    assert back.mpp == pytest.approx(2 * mpp)


@pytest.mark.parametrize("layout", WRITTEN)
def test_vectors_of_slides_come_back(layout, tmp_path):
    path = tmp_path / f"S-1{suffix_of(layout)}"
    write_features(path, layout, of_slide())
    back = read_features(path)
    assert (back.level, back.encoder) == ("slide", "titan")
    assert back.vectors.tobytes() == VECTORS[:1].tobytes()


@pytest.mark.parametrize("layout", WRITTEN)
def test_the_same_features_give_the_same_bytes(layout, tmp_path):
    for name in ("a", "b"):
        write_features(tmp_path / name, layout, features())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- by the layouts' own keys, without the project's reader


def test_tridents_keys(tmp_path):
    write_features(tmp_path / "S-1.h5", "trident", features(), width=20_000, height=10_000)
    with h5py.File(tmp_path / "S-1.h5") as file:
        vectors, coords = file["features"], file["coords"]
        assert (vectors.dtype, vectors.shape, vectors.chunks) == (
            np.float32,
            VECTORS.shape,
            (1, DIMENSION),
        )
        assert coords.dtype == np.int64
        assert dict(vectors.attrs) == {"encoder": "uni", "name": "S-1", "savetodir": "None"}
        assert dict(coords.attrs) == {
            "patch_size": 256,
            "patch_size_level0": SIDE,
            "level0_magnification": "None",
            "target_magnification": "None",
            "overlap": "None",
            "level0_width": 20_000,
            "level0_height": 10_000,
            "name": "S-1",
            "savetodir": "None",
        }


def test_tridents_vector_of_a_slide(tmp_path):
    write_features(tmp_path / "S-1.h5", "trident", of_slide())
    with h5py.File(tmp_path / "S-1.h5") as file:
        assert file["features"].shape == (DIMENSION,)
        assert file["features"].attrs["encoder"] == "titan"


def test_stamps_keys(tmp_path):
    write_features(tmp_path / "S-1.h5", "stamp", features())
    with h5py.File(tmp_path / "S-1.h5") as file:
        np.testing.assert_array_equal(file["feats"][:], VECTORS)
        np.testing.assert_array_equal(file["coords"][:], CORNERS * SLIDE_MPP)
        assert dict(file.attrs) == {
            "extractor": "uni",
            "unit": "um",
            "tile_size_um": 128.0,
            "tile_size_px": 256,
            "feat_type": "tile",
        }


def test_anndata_is_read_by_its_own_package(tmp_path):
    write_features(tmp_path / "S-1.h5ad", "anndata", features())
    read = anndata.read_h5ad(tmp_path / "S-1.h5ad")
    assert read.X.dtype == np.float32
    assert read.X.tobytes() == VECTORS.tobytes()
    np.testing.assert_array_equal(read.obs[["x", "y"]].to_numpy(), CORNERS)
    np.testing.assert_array_equal(read.obsm["spatial"], CORNERS + SIDE / 2)
    stated = read.uns["features"]
    assert (stated["slide_id"], stated["encoder"], stated["slide_mpp"]) == ("S-1", "uni", SLIDE_MPP)
    assert read[1:3].to_df().shape == (2, DIMENSION)


def test_anndata_of_a_slide_is_read_by_its_own_package(tmp_path):
    write_features(tmp_path / "S-1.h5ad", "anndata", of_slide())
    assert anndata.read_h5ad(tmp_path / "S-1.h5ad").shape == (1, DIMENSION)


# --- what cannot be written


def test_stamp_without_mpp_is_refused(tmp_path):
    bare = replace(features(), slide_mpp=None, field_um=None)
    with pytest.raises(FeatureFileError, match="mpp is not known: give the manifest a column mpp"):
        write_features(tmp_path / "S-1.h5", "stamp", bare)


@pytest.mark.parametrize("layout", ["trident", "anndata"])
def test_places_in_micrometres_alone_are_refused(layout, tmp_path):
    bare = replace(features(), x=None, y=None, x_um=CORNERS[:, 0] / 4, y_um=CORNERS[:, 1] / 4)
    with pytest.raises(FeatureFileError, match="give the slide's mpp"):
        write_features(tmp_path / "S-1.h5", layout, bare)


def test_an_unknown_layout(tmp_path):
    with pytest.raises(FeatureFileError, match="choose from trident, anndata, stamp"):
        write_features(tmp_path / "S-1.h5", "clam", features())
