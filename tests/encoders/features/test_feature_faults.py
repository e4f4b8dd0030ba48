"""Every fault of a file is stated with the file, the row or key, and the mend."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil

import h5py
import numpy as np
import pytest
import torch
import zarr

from pathfm_kedro.encoders.features import (
    FeatureFileError,
    encoder_agrees,
    find_feature_files,
    read_features,
    refuse_off_slide,
    refuse_other_encoder,
    unlike_most,
)
from tests.encoders.features import layouts
from tests.encoders.features.layouts import CORNERS, SIDE, VECTORS, N


def changed(row, value):
    vectors = VECTORS.copy()
    vectors[row] = value
    return vectors


def moved(row, corner):
    corners = CORNERS.copy()
    corners[row] = corner
    return corners


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": changed(3, np.nan)}, "'features': NaN or infinity in row 3: extract"),
        ({"vectors": changed([0, 5], np.inf)}, "NaN or infinity in row 0, 5"),
        ({"vectors": changed(2, 0)}, "a vector of zeros in row 2"),
        ({"vectors": VECTORS[:4]}, "'features' has 4 rows and 'coords' 6"),
        ({"vectors": np.zeros((0,)), "corners": np.zeros((0, 2))}, "no tile .N = 0"),
        ({"vectors": np.zeros((0, 8)), "corners": np.zeros((0, 2))}, "no tile .N = 0"),
        ({"vectors": VECTORS[:, 0]}, r"shape \[6\] is not \[tiles, dimension\]"),
        ({"vectors": VECTORS.astype(np.int32)}, "numbers of type int32 are no features"),
        ({"corners": CORNERS[:, :1]}, r"'coords': shape \[6, 1\] is not \[tiles, 2\]"),
        ({"corners": moved(4, CORNERS[1])}, "rows 1, 4 stand for the same place x=1024, y=2560"),
        ({"corners": CORNERS + 0.5}, "row 0, 1, 2, 3, 4 and 1 more is no whole level-0 pixel"),
        (
            {"corners": moved(2, (20_000, 0))},
            "1 of 6 tiles do not lie on the slide of 20000 x 10000",
        ),
        ({"corners": moved(2, (-1, 0))}, "1 of 6 tiles do not lie on the slide"),
        ({"patch_size_level0": None}, "does not say how large its tiles are"),
    ],
)
def test_faults_of_values(changes, message, tmp_path):
    path = layouts.trident(tmp_path / "features_uni", **changes)
    with pytest.raises(FeatureFileError, match=message) as stated:
        read_features(path)
    assert str(stated.value).startswith("features_uni/S-1.h5")


def test_float64_that_float32_cannot_hold(tmp_path):
    vectors = VECTORS.astype(np.float64)
    vectors[1] = 1e300
    with pytest.raises(FeatureFileError, match="NaN or infinity in row 1: "):
        read_features(layouts.trident(tmp_path, vectors=vectors))


# --- files that are not whole


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
@pytest.mark.parametrize(
    "write",
    [layouts.trident, layouts.clam_pt, layouts.plain_npy, layouts.plain_npz, layouts.parquet],
)
def test_a_file_that_was_cut_short(write, share, tmp_path):
    path = write(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FeatureFileError, match=r"S-1\.\w+: .*copy"):
        read_features(path)


@pytest.mark.parametrize("suffix", [".h5", ".pt", ".npz", ".npy", ".parquet", ".h5ad"])
@pytest.mark.parametrize("content", [b"\0" * 400, b"no such thing " * 40])
def test_a_file_of_another_kind(suffix, content, tmp_path):
    path = tmp_path / f"S-1{suffix}"
    path.write_bytes(content)
    with pytest.raises(FeatureFileError):
        read_features(path)


def test_a_pointer_of_git_lfs(tmp_path):
    path = tmp_path / "S-1.h5"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(FeatureFileError, match="git lfs pull"):
        read_features(path)


@pytest.mark.parametrize(
    "lost",
    [
        "tables/uni_tiles/X",
        "tables/uni_tiles/obs",
        "shapes/tiles/shapes.parquet",
        "tables",
        ".zgroup",
    ],
)
def test_a_store_that_is_not_whole(lost, tmp_path):
    path = layouts.wsidata(tmp_path)
    gone = path / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(FeatureFileError, match=r"S-1\.zarr"):
        read_features(path)


# HDF5 is left out: the library itself ends the process on some wrong bytes.
@pytest.mark.parametrize("write", [layouts.plain_pt, layouts.plain_npz, layouts.parquet])
def test_wrong_bytes_are_told_or_change_numbers_alone(write, tmp_path):
    path = write(tmp_path)
    whole = path.read_bytes()
    for seed in range(25):
        generator = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for at in generator.integers(0, len(whole), 8):
            damaged[at] = generator.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(FeatureFileError):
            read_features(path, slide_mpp=0.25, patch_size=SIDE, patch_level=0)


def test_what_would_not_fit_its_file_is_not_read(tmp_path):
    path = tmp_path / "S-1.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (10**7, 10**4), "f4", chunks=(1, 10**4))
        file["coords"] = CORNERS
    with pytest.raises(FeatureFileError, match="'features' would be 400 GB out of a file of"):
        read_features(path)


def test_places_in_micrometres_that_are_none(tmp_path):
    path = layouts.stamp(tmp_path, corners=moved(2, 0) * np.where(CORNERS[2] == CORNERS, np.nan, 1))
    with pytest.raises(FeatureFileError, match="is no place on a slide"):
        read_features(path)


def test_a_table_that_names_tiles_that_are_not_there(tmp_path):
    path = layouts.wsidata(tmp_path)
    zarr.open_group(path / "tables/uni_tiles/obs", mode="r+")["tile_id"][0] = 99
    with pytest.raises(FeatureFileError, match="row 0 names tiles that shapes/tiles does not have"):
        read_features(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FeatureFileError, match="no such file"):
        read_features(tmp_path / "S-1.h5")


# --- pickles and other files


class _Runs:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (__import__("os").mkdir, (str(self.folder / "ran"),))


def test_a_pickle_is_not_run(tmp_path):
    path = tmp_path / "S-1.pt"
    torch.save({"features": _Runs(tmp_path)}, path)
    with pytest.raises(FeatureFileError, match=r"torch.save\(features, path\)"):
        read_features(path)
    path.write_bytes(pickle.dumps(_Runs(tmp_path)))
    with pytest.raises(FeatureFileError):
        read_features(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"features": [1.0]}, {}, {1: torch.ones(2)}, "text"])
def test_a_pickle_of_other_things_than_tensors(content, tmp_path):
    torch.save(content, tmp_path / "S-1.pt")
    with pytest.raises(FeatureFileError, match="neither a tensor nor a dictionary of tensors"):
        read_features(tmp_path / "S-1.pt")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_numpys_objects_are_not_unpickled(suffix, tmp_path):
    path = tmp_path / f"S-1{suffix}"
    objects = np.array([_Runs(tmp_path)], dtype=object)
    if suffix == ".npy":
        np.save(path, objects)
    else:
        np.savez(path, features=objects)
    with pytest.raises(FeatureFileError, match="Python objects"):
        read_features(path)
    assert not (tmp_path / "ran").exists()


def test_zarrs_objects_are_not_unpickled(tmp_path):
    path = layouts.raw2features(tmp_path)
    array = path / "grids/mpp0.5_px256/features/uni"
    described = json.loads((array / ".zarray").read_text())
    described |= {"filters": [{"id": "pickle", "protocol": 5}], "compressor": None}
    for dtype in ("|O", "<f2"):
        (array / ".zarray").write_text(json.dumps(described | {"dtype": dtype}))
        for chunk in array.glob("[0-9]*"):
            chunk.write_bytes(pickle.dumps(_Runs(tmp_path)))
        with pytest.raises(FeatureFileError, match=r"S-1\.embeddings\.zarr"):
            read_features(path)
    assert not (tmp_path / "ran").exists()


def test_sparse_tensors_are_refused(tmp_path):
    torch.save(torch.eye(3).to_sparse(), tmp_path / "S-1.pt")
    with pytest.raises(FeatureFileError, match="save them dense"):
        read_features(tmp_path / "S-1.pt")


def test_vectors_in_another_file_are_not_followed(tmp_path):
    secret = layouts.trident(tmp_path / "secret")
    path = tmp_path / "S-1.h5"
    with h5py.File(path, "w") as file:
        file["features"] = h5py.ExternalLink(str(secret), "features")
        file["coords"] = CORNERS
    with pytest.raises(FeatureFileError, match="'features' points to another file"):
        read_features(path)
    (tmp_path / "raw").write_bytes(VECTORS.tobytes())
    with h5py.File(path, "w") as file:
        raw = [(str(tmp_path / "raw"), 0, VECTORS.nbytes)]
        file.create_dataset("features", VECTORS.shape, "f4", external=raw)
        file["coords"] = CORNERS
    with pytest.raises(FeatureFileError, match="'features' points to another file"):
        read_features(path)


# --- layouts that are not known


def test_an_unknown_layout_tells_its_keys_and_those_that_are_known(tmp_path):
    path = tmp_path / "S-1.h5"
    with h5py.File(path, "w") as file:
        file["vecs"], file["positions"] = VECTORS, CORNERS
    with pytest.raises(
        FeatureFileError, match=r"keys positions, vecs; .*trident \(features, coords"
    ):
        read_features(path)


def test_a_file_of_patches_is_told_from_one_of_features(tmp_path):
    path = layouts.clam_patches(tmp_path)
    with pytest.raises(FeatureFileError, match="coordinates and no vectors"):
        read_features(path)


@pytest.mark.parametrize("name", ["S-1.csv", "S-1.pkl"])
def test_other_suffixes(name, tmp_path):
    (tmp_path / name).write_text("x")
    with pytest.raises(FeatureFileError, match="are not read"):
        read_features(tmp_path / name)


# --- folders


def test_files_by_slide(tmp_path):
    layouts.trident(tmp_path, "S-2")
    layouts.raw2features(tmp_path, "S-1")
    layouts.plain_npy(tmp_path, "S-3")
    layouts.trident(tmp_path, "S-4.svs")
    layouts.trident(tmp_path, "S_features")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._S-2.h5").write_bytes(b"x")
    assert list(find_feature_files(tmp_path)) == ["S", "S-1", "S-2", "S-3", "S-4"]
    assert "S_features" in find_feature_files(tmp_path, {"S_features"})


def test_two_files_for_one_slide(tmp_path):
    layouts.trident(tmp_path)
    layouts.plain_pt(tmp_path)
    with pytest.raises(
        FeatureFileError, match=r"'S-1' has two files .*S-1\.h5 and S-1\.pt; keep one"
    ):
        find_feature_files(tmp_path)


def test_a_folder_above_the_files_names_the_one_below(tmp_path):
    layouts.clam_h5(tmp_path)
    layouts.clam_pt(tmp_path)
    with pytest.raises(
        FeatureFileError, match="lie in h5_files, pt_files in it; name one of these"
    ):
        find_feature_files(tmp_path)


def test_an_empty_or_missing_folder(tmp_path):
    with pytest.raises(FeatureFileError, match="holds no file of features"):
        find_feature_files(tmp_path)
    with pytest.raises(FeatureFileError, match="no folder of features"):
        find_feature_files(tmp_path / "nowhere")


def test_files_of_another_kind_than_most_are_told():
    usual = {"a": ("tile", 8), "b": ("tile", 8)}
    assert unlike_most({}) == unlike_most(usual) == {}
    found = unlike_most(usual | {"c": ("tile", 16), "d": ("slide", 8)})
    assert found.keys() == {"c", "d"}
    assert "16 numbers, and those of most slides 8" in found["c"]
    assert "one vector of the whole slide, and those of most slides vectors of tiles" in found["d"]
    # Half and half: which half counts must not depend on an order.
    halves = {"a": ("tile", 8), "b": ("slide", 8)}
    assert unlike_most(halves) == unlike_most(dict(reversed(halves.items())))


# --- against the cohort


def test_off_the_slide(tmp_path):
    read = read_features(layouts.trident(tmp_path))
    refuse_off_slide(read, 2049, 2561)
    with pytest.raises(FeatureFileError, match=f"2 of {N} tiles .*row 4, 5; the first at x=2048"):
        refuse_off_slide(read, 2048, 2561)


@pytest.mark.parametrize(
    ("stated", "declared", "agrees"),
    [
        ("uni_v1", "uni", True),
        ("uni_v2", "uni2_h", True),
        ("mahmood-uni", "uni", True),
        ("conch_v15", "conch", False),
        ("conch_v1", "conch", True),
        ("uni_v1", "uni2_h", False),
        ("Virchow2", "virchow2", True),
        ("virchow", "virchow2", False),
        ("phikon_v2", "phikon", False),
        ("prov-gigapath", "gigapath", True),
        ("H-optimus-0", "hoptimus0", True),
        ("resnet50", "our_encoder", None),
        (None, "uni", None),
        ("ours-v3", "uni", None),
        ("kaiko-vitb8", "kaiko_vitb16", False),
        ("kaiko-vitb8", "uni", False),
        ("kaiko-vitl14", "kaiko_vitl", True),
        ("dinov2", "dinov2_b", None),
        ("gigapath", "gigapath_slide", None),
    ],
)
def test_names_of_encoders(stated, declared, agrees):
    assert encoder_agrees(stated, declared) is agrees


def test_a_file_of_another_encoder(tmp_path):
    read = read_features(layouts.trident(tmp_path))
    refuse_other_encoder(read, "uni")
    refuse_other_encoder(read, "my_own")
    with pytest.raises(
        FeatureFileError, match="'uni_v1' made it, and the entry is called 'virchow2'"
    ):
        refuse_other_encoder(read, "virchow2")


def test_tiles_may_reach_over_the_edge(tmp_path):
    assert read_features(layouts.trident(tmp_path, level0_width=2100)).field_px == SIDE
