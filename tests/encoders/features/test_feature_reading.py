"""Every layout gives the same vectors at the same places, whatever its units and keys."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from pathfm_kedro.encoders.features import LAYOUTS, FeatureFileError, read_features
from tests.encoders.features import layouts
from tests.encoders.features.layouts import CORNERS, SIDE, SLIDE_MPP, VECTORS, N

#: What writes a file, what a person has to say, and whether the file holds float16.
CASES = {
    "trident": (layouts.trident, {}, False),
    "clam": (layouts.clam_h5, {"patch_size": 256, "patch_level": 1, "downsamples": [1, 2]}, False),
    "stamp": (layouts.stamp, {"slide_mpp": SLIDE_MPP}, True),
    "slide2vec": (layouts.slide2vec, {}, False),
    "wsidata": (layouts.wsidata, {}, False),
    "raw2features": (layouts.raw2features, {}, True),
    "anndata": (layouts.anndata_h5ad, {}, False),
    "numpy": (layouts.plain_npy, {"patch_size": SIDE, "patch_level": 0}, False),
    "npz": (layouts.plain_npz, {"patch_size": SIDE, "patch_level": 0}, False),
    "pt": (layouts.plain_pt, {"patch_size": SIDE, "patch_level": 0}, False),
    "parquet": (layouts.parquet, {}, False),
}


@pytest.mark.parametrize("layout", CASES)
def test_the_same_vectors_at_the_same_places(layout, tmp_path):
    write, said, half = CASES[layout]
    read = read_features(write(tmp_path), **said)
    expected = VECTORS.astype(np.float16) if half else VECTORS
    assert (read.slide_id, read.layout, read.level) == ("S-1", layout, "tile")
    assert read.vectors.dtype == expected.dtype
    order = np.lexsort((read.y, read.x)) if layout == "wsidata" else np.arange(N)
    np.testing.assert_array_equal(read.vectors[order], expected)
    np.testing.assert_array_equal(np.stack([read.x, read.y], axis=1)[order], CORNERS)
    assert read.x.dtype == np.int64
    assert read.field_px == SIDE
    assert len(read) == N


def test_every_layout_is_told_and_tried():
    assert set(CASES) | {"marugoto"} == set(LAYOUTS)


@pytest.mark.parametrize("layout", ["stamp", "slide2vec", "wsidata", "raw2features"])
def test_sizes_in_micrometres_as_the_file_says(layout, tmp_path):
    write, said, _ = CASES[layout]
    read = read_features(write(tmp_path), **said)
    assert (read.field_um, read.mpp) == (SIDE * SLIDE_MPP, 0.5)
    assert read.encoder in {"uni", "mahmood-uni"}


def test_a_slides_mpp_gives_trident_its_micrometres(tmp_path):
    path = layouts.trident(tmp_path)
    assert read_features(path).field_um is None
    read = read_features(path, slide_mpp=SLIDE_MPP)
    assert (read.field_um, read.mpp, read.encoder) == (128.0, 0.5, "uni_v1")


# --- CLAM


def test_clam_takes_the_size_from_its_folder_of_patches(tmp_path):
    path = layouts.clam_h5(tmp_path)
    layouts.clam_patches(tmp_path)
    assert read_features(path).field_px == SIDE


def test_what_a_person_says_goes_before_the_folder_of_patches(tmp_path):
    path = layouts.clam_h5(tmp_path)
    layouts.clam_patches(tmp_path)
    assert read_features(path, patch_size=300, patch_level=0).field_px == 300


def test_clams_pt_takes_the_places_from_its_h5(tmp_path):
    path = layouts.clam_pt(tmp_path)
    layouts.clam_h5(tmp_path)
    layouts.clam_patches(tmp_path)
    read = read_features(path)
    np.testing.assert_array_equal(np.stack([read.x, read.y], axis=1), CORNERS)
    assert (read.layout, read.field_px) == ("clam", SIDE)


def test_clams_pt_takes_the_places_from_patches_alone(tmp_path):
    path = layouts.clam_pt(tmp_path)
    layouts.clam_patches(tmp_path)
    assert read_features(path).field_px == SIDE


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "patch_size is not given: give the encoder's entry patch_size"),
        ({"patch_size": 256}, "patch_level is not given"),
        ({"patch_size": 256, "patch_level": 1}, "downsamples are known of none"),
        ({"patch_size": 256, "patch_level": -1, "downsamples": [1, 2]}, "a level from 0 on"),
        ({"patch_size": 0, "patch_level": 0}, "a side above 0"),
        (
            {"patch_size": 256, "patch_level": 2, "downsamples": [1, 4]},
            "downsamples are known of 2 levels",
        ),
    ],
)
def test_clam_asks_and_never_guesses(said, message, tmp_path):
    path = layouts.clam_h5(tmp_path)
    with pytest.raises(FeatureFileError, match=message) as stated:
        read_features(path, **said)
    assert "h5_files/S-1.h5" in str(stated.value)


def test_an_older_clam_with_a_further_downsample_is_asked_about(tmp_path):
    path = layouts.clam_h5(tmp_path)
    with h5py.File(layouts.clam_patches(tmp_path), "a") as file:
        file["coords"].attrs["custom_downsample"] = 2
    with pytest.raises(FeatureFileError, match="patch_size is not given"):
        read_features(path)


def test_clams_pt_without_its_h5_says_where_it_must_lie(tmp_path):
    with pytest.raises(FeatureFileError, match=r"without coordinates: .*h5_files/S-1\.h5"):
        read_features(layouts.clam_pt(tmp_path))


# --- micrometres


def test_stamp_without_the_slides_mpp_keeps_micrometres(tmp_path):
    read = read_features(layouts.stamp(tmp_path))
    assert read.x is None
    np.testing.assert_array_equal(read.x_um, CORNERS[:, 0] * SLIDE_MPP)
    placed = read.on_slide(SLIDE_MPP)
    np.testing.assert_array_equal(placed.y, CORNERS[:, 1])
    assert placed.field_px == SIDE


def test_stamp_2_0(tmp_path):
    read = read_features(layouts.stamp(tmp_path, version="2.0"), slide_mpp=SLIDE_MPP)
    assert (read.layout, read.field_px, read.mpp) == ("stamp", SIDE, None)


def test_marugoto_counts_224_for_256_micrometres(tmp_path):
    read = read_features(layouts.marugoto(tmp_path), slide_mpp=0.5)
    assert read.layout == "marugoto"
    np.testing.assert_array_equal(np.stack([read.x, read.y], axis=1), CORNERS)
    assert (read.field_um, read.field_px, read.mpp) == (256, SIDE, 256 / 224)


def test_another_stride_is_of_an_unknown_unit(tmp_path):
    with pytest.raises(FeatureFileError, match=r"not 224 apart .*it is 256"):
        read_features(layouts.marugoto(tmp_path, stride=256))


# --- slide2vec, wsidata, raw2features


def test_slide2vecs_tensor(tmp_path):
    read = read_features(layouts.slide2vec(tmp_path, kind="pt"))
    np.testing.assert_array_equal(read.vectors, VECTORS)
    np.testing.assert_array_equal(read.x, CORNERS[:, 0])


def test_slide2vecs_rows_find_their_places_by_index(tmp_path):
    read = read_features(layouts.slide2vec(tmp_path, indices=[5, 3, 1, 0, 2, 4]))
    np.testing.assert_array_equal(np.stack([read.x, read.y], axis=1), CORNERS)


def test_slide2vec_without_its_tiles_says_which_folder_is_missing(tmp_path):
    path = layouts.slide2vec(tmp_path)
    (tmp_path / "tiles" / "S-1.coordinates.npz").unlink()
    with pytest.raises(FeatureFileError, match="copy the folder tiles beside this one"):
        read_features(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("columns", [True, False])
def test_wsidatas_rows_find_their_places_by_tile_id(zarr_format, columns, tmp_path):
    read = read_features(layouts.wsidata(tmp_path, zarr_format=zarr_format, columns=columns))
    order = np.lexsort((read.y, read.x))
    np.testing.assert_array_equal(np.stack([read.x, read.y], axis=1)[order], CORNERS)
    np.testing.assert_array_equal(read.vectors[order], VECTORS)
    assert read.field_px == SIDE


@pytest.mark.parametrize("write", [layouts.wsidata, layouts.raw2features])
def test_of_several_encoders_one_is_named(write, tmp_path):
    path = write(tmp_path, models=("uni", "conch"))
    with pytest.raises(FeatureFileError, match=r"conch.*uni.*say which by model"):
        read_features(path)
    assert read_features(path, model="conch").encoder == "conch"


def test_of_several_grids_one_is_named(tmp_path):
    path = layouts.raw2features(tmp_path, grids=("mpp0.5_px256", "mpp1_px256"))
    with pytest.raises(FeatureFileError, match="'uni' is 2 of them"):
        read_features(path, model="uni")
    assert read_features(path, model="mpp1_px256/uni").encoder == "uni"


# --- vectors of slides


@pytest.mark.parametrize(
    ("write", "encoder"),
    [
        (layouts.trident_slide, "titan"),
        (layouts.stamp_slide, "titan"),
        (layouts.slide2vec_slide, "prism"),
    ],
)
def test_vectors_of_slides(write, encoder, tmp_path):
    read = read_features(write(tmp_path))
    assert (read.level, read.encoder, read.x, read.field_px) == ("slide", encoder, None, None)
    np.testing.assert_array_equal(read.vectors, VECTORS[:1])


def test_raw2features_vectors_of_slides(tmp_path):
    path = layouts.raw2features(tmp_path, slide=True)
    read = read_features(path, model="slide/titan")
    assert (read.level, read.encoder) == ("slide", "titan")


def test_one_vector_as_npy(tmp_path):
    np.save(tmp_path / "S-1.npy", VECTORS[0])
    assert read_features(tmp_path / "S-1.npy").level == "slide"


def test_several_vectors_without_places_are_no_slide(tmp_path):
    with pytest.raises(FeatureFileError, match="not one vector for the slide"):
        read_features(layouts.trident_slide(tmp_path, vector=VECTORS))


def test_stamps_vector_of_a_patient_is_none_of_a_slide(tmp_path):
    with pytest.raises(FeatureFileError, match="a vector of a patient"):
        read_features(layouts.stamp_slide(tmp_path, kind="patient"))


# --- other forms


def test_coordinates_of_an_npy_may_be_a_table(tmp_path):
    path = layouts.plain_npy(tmp_path, coords="parquet")
    read = read_features(path, patch_size=SIDE, patch_level=0)
    np.testing.assert_array_equal(read.y, CORNERS[:, 1])


def test_parquet_with_a_column_for_each_number_in_any_order(tmp_path):
    read = read_features(layouts.parquet(tmp_path, wide=True))
    np.testing.assert_array_equal(read.vectors, VECTORS)


def test_anndata_with_vectors_in_obsm(tmp_path):
    read = read_features(layouts.anndata_h5ad(tmp_path, dense=False))
    np.testing.assert_array_equal(read.vectors, VECTORS)


def test_anndata_without_corners_is_refused(tmp_path):
    with pytest.raises(FeatureFileError, match="may hold centres or corners: add x and y"):
        read_features(layouts.anndata_h5ad(tmp_path, x_y=False))


def test_a_leading_axis_of_one_slide_is_dropped(tmp_path):
    read = read_features(layouts.trident(tmp_path, vectors=VECTORS[None]))
    np.testing.assert_array_equal(read.vectors, VECTORS)


# --- what rounding costs


def test_float16_is_kept_and_its_loss_bounds_what_was_lost(tmp_path):
    exact = VECTORS.astype(np.float64)
    read = read_features(layouts.trident(tmp_path, vectors=exact.astype(np.float16)))
    true = np.linalg.norm(read.vectors.astype(float) - exact, axis=1) / np.linalg.norm(
        exact, axis=1
    )
    assert read.vectors.dtype == np.float16
    assert 0 < true.max() <= read.loss * (1 + 1e-3)
    assert read.loss <= 2**-11


def test_float64_loses_as_measured(tmp_path):
    exact = np.random.default_rng(1).normal(size=VECTORS.shape)
    read = read_features(layouts.trident(tmp_path, vectors=exact))
    lost = np.linalg.norm(read.vectors - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert (read.dtype, read.vectors.dtype) == ("float64", np.float32)
    assert read.loss == pytest.approx(lost.max())


def test_bfloat16_is_widened_without_loss_and_its_bound_is_stated(tmp_path):
    path = tmp_path / "S-1.pt"
    half = torch.from_numpy(VECTORS.copy()).bfloat16()
    torch.save({"features": half, "coords": torch.from_numpy(CORNERS.copy())}, path)
    read = read_features(path, patch_size=SIDE, patch_level=0)
    true = np.linalg.norm(read.vectors - VECTORS, axis=1) / np.linalg.norm(VECTORS, axis=1)
    assert (read.dtype, read.vectors.dtype) == ("bfloat16", np.float32)
    assert 0 < true.max() <= read.loss <= 2**-8


def test_the_bound_holds_for_numbers_of_every_size(tmp_path):
    # Half the distance to the next number, from NumPy; beyond the largest there is none.
    numbers = np.array([65504, 1, 3e-5, 6e-8], np.float16)
    for number, half in zip(numbers, (16, 2**-11, 2**-25, 2**-25), strict=True):
        read = read_features(layouts.trident(tmp_path, vectors=np.full((N, 1), number)))
        assert read.loss == half / float(number)


def test_float32_loses_nothing(tmp_path):
    assert read_features(layouts.trident(tmp_path)).loss == 0
