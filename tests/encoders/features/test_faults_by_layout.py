"""Every layout with every fault: one sentence that names the file and the mend."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_kedro.encoders.features import FeatureFileError
from pathfm_kedro.encoders.features.cohort import FeatureFile
from pathfm_kedro.encoders.spec import EncoderSpec
from tests.encoders.features import layouts
from tests.encoders.features.layouts import CORNERS, SIDE, SLIDE_MPP, VECTORS

SAID = {"patch_size": SIDE, "patch_level": 0}


def clam_pt(folder, name="S-1", vectors=VECTORS, corners=CORNERS):
    layouts.clam_h5(folder, name, VECTORS, corners)
    return layouts.clam_pt(folder, name, vectors)


#: What writes a file, what a person has to say, and whether the file names its encoder.
WRITERS = {
    "trident": (layouts.trident, {}, True),
    "clam": (layouts.clam_h5, SAID, False),
    "clam pt": (clam_pt, SAID, False),
    "stamp": (layouts.stamp, {}, True),
    "marugoto": (layouts.marugoto, {}, False),
    "slide2vec": (layouts.slide2vec, {}, True),
    "wsidata": (layouts.wsidata, {}, False),
    "raw2features": (layouts.raw2features, {}, False),
    "anndata": (layouts.anndata_h5ad, {}, True),
    "npy": (layouts.plain_npy, SAID, False),
    "npz": (layouts.plain_npz, SAID, False),
    "pt": (layouts.plain_pt, SAID, False),
    "parquet": (layouts.parquet, {}, True),
    "parquet, wide": (lambda *words: layouts.parquet(*words, wide=True), {}, True),
}


def changed(rows, value, of=VECTORS):
    copy = of.copy()
    copy[rows] = value
    return copy


FAULTS = {
    "no tile": (VECTORS[:0], CORNERS[:0], r"no tile \(N = 0", "leave the slide out"),
    "NaN": (changed((3, 2), np.nan), CORNERS, "NaN or infinity in row", "extract this slide again"),
    "infinity": (changed((3, 2), np.inf), CORNERS, "NaN or infinity in row", "extract"),
    "zeros": (changed(2, 0), CORNERS, "vector of zeros in row", "remove these tiles"),
    "the same place": (
        VECTORS,
        changed(4, CORNERS[1], CORNERS),
        "stand for the same place",
        "remove",
    ),
    "off the slide": (VECTORS, CORNERS + 40 * SIDE, "do not lie on the slide", "of another slide"),
    "far off": (VECTORS, changed(0, 10**8, CORNERS), "do not lie on the slide", "of another slide"),
    "left of it": (VECTORS, CORNERS - 8 * SIDE, "do not lie on the slide", "of another slide"),
}


def entry(folder, said):
    given = {"model": f"features:{folder}", **said}
    return EncoderSpec.from_parameters("uni", given)


def read(path, said):
    return FeatureFile("S-1", (path,), entry(path.parent, said), SLIDE_MPP, 20_000, 10_000).read()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("layout", WRITERS)
def test_a_fault_names_the_file_and_the_mend(layout, fault, tmp_path):
    write, said, _ = WRITERS[layout]
    vectors, corners, what, mend = FAULTS[fault]
    path = write(tmp_path / "job", "S-1", vectors, corners)
    with pytest.raises(FeatureFileError, match=what) as stated:
        read(path, said)
    told = str(stated.value)
    assert mend in told
    assert told.startswith(f"{path.parent.name}/{path.name}")
    assert str(tmp_path) not in told


@pytest.mark.parametrize("layout", WRITERS)
def test_without_a_fault_it_is_read(layout, tmp_path):
    write, said, _ = WRITERS[layout]
    assert len(read(write(tmp_path / "job", "S-1", VECTORS, CORNERS), said)) == len(VECTORS)


@pytest.mark.parametrize("layout", [name for name, (_, _, names) in WRITERS.items() if names])
def test_another_encoder_than_the_entry_is_told(layout, tmp_path):
    write, said, _ = WRITERS[layout]
    if layout == "parquet, wide":
        path = layouts.parquet(tmp_path / "job", wide=True, encoder="virchow2")
    else:
        path = write(tmp_path / "job", encoder="virchow2")
    with pytest.raises(FeatureFileError, match="'virchow2' made it, and the entry is called 'uni'"):
        read(path, said)


@pytest.mark.parametrize("layout", WRITERS)
def test_one_tile_is_enough(layout, tmp_path):
    """A needle biopsy; of Marugoto's layout the unit shows from two places on."""
    write, said, _ = WRITERS[layout]
    path = write(tmp_path / "job", "S-1", VECTORS[:1], CORNERS[:1])
    if layout == "marugoto":
        with pytest.raises(FeatureFileError, match=r"unit of 'coords' is unknown"):
            read(path, said)
    else:
        assert len(read(path, said)) == 1
