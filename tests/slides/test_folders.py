"""Folders named for center, label and patient become a manifest, or a message that names the path."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

from pathfm_kedro.datasets.slide_files import read_manifest_file
from pathfm_kedro.manifests.folders import FolderError, list_folder, parse_levels
from pathfm_kedro.slides.files import SlideFiles

LEVELS = ("center", "label", "patient")


def fill(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


def listed(folder, levels=LEVELS, **changes):
    return list_folder(folder, levels, changes.pop("start", folder), **changes).manifest


def test_paths_become_rows(tmp_path):
    fill(tmp_path, "B/x/p2/b.svs", "A/y/p1/a.PNG", "A/y/p1/c.ome.tif")
    table = list_folder(tmp_path, LEVELS, tmp_path, 0.5)
    assert table.manifest.to_dicts() == [
        {
            "slide_id": slide_id, "path": path, "patient_id": patient, "center": path[0],
            "label": path[2], "mpp": "0.5",
        }
        for slide_id, path, patient in [
            ("A-y-p1-a", "A/y/p1/a.PNG", "p1"),
            ("A-y-p1-c.ome", "A/y/p1/c.ome.tif", "p1"),
            ("B-x-p2-b", "B/x/p2/b.svs", "p2"),
        ]
    ]  # fmt: skip
    assert table.warnings == ()


def test_levels_may_be_in_any_order_and_more(tmp_path):
    fill(tmp_path, "x/A/block1/p1/a.svs")
    row = listed(tmp_path, parse_levels("label/center/block/patient/")).row(0, named=True)
    assert (row["label"], row["center"], row["block"], row["patient_id"]) == (
        "x",
        "A",
        "block1",
        "p1",
    )
    assert row["slide_id"] == "x-A-block1-p1-a"


def test_without_patients_every_file_is_one_and_a_warning_says_so(tmp_path):
    fill(tmp_path, "A/x/a.svs", "A/x/b.svs")
    listing = list_folder(tmp_path, ("center", "label"), tmp_path)
    assert listing.manifest["patient_id"].to_list() == ["A-x-a", "A-x-b"]
    assert "every file counts as a patient of its own" in listing.warnings[0]


def test_what_is_no_slide_is_left_out_and_counted(tmp_path):
    fill(
        tmp_path, "A/x/p/a.svs", "A/x/p/._a.svs", "A/x/.cache/b.svs", ".hidden/x/p/c.svs",
        "A/x/p/a.xml", "A/notes.txt", "Thumbs.db", "readme",
    )  # fmt: skip
    listing = list_folder(tmp_path, LEVELS, tmp_path)
    assert listing.manifest["path"].to_list() == ["A/x/p/a.svs"]
    assert listing.warnings == (
        "left out as no slides: 4 files (1 .db, 1 .txt, 1 .xml, 1 without suffix)",
    )


def test_slides_of_several_files_are_one_slide(tmp_path):
    fill(
        tmp_path, "A/x/p/m.mrxs", "A/x/p/m/Data0001.dat", "A/x/p/m/preview.png",
        "A/x/v/h.vms", "A/x/v/h(1,0).jpg", "A/x/v/h_map.jpg",
        "A/x/d/series/1.dcm", "A/x/d/series/2.DCM", "A/x/d/series/extra/3.png",
    )  # fmt: skip
    assert set(listed(tmp_path)["path"]) == {"A/x/p/m.mrxs", "A/x/v/h.vms", "A/x/d/series"}


def test_two_dicom_series_in_one_folder_are_refused(tmp_path):
    fill(tmp_path, "A/x/p/s/notes.txt")
    for series, name in [("1.2", "a"), ("1.2", "b"), ("1.3", "c")]:
        described = Dataset()
        described.SeriesInstanceUID = series
        described.file_meta = FileMetaDataset()
        described.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        described.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
        described.file_meta.MediaStorageSOPInstanceUID = "1.4"
        described.save_as(tmp_path / f"A/x/p/s/{name}.dcm", enforce_file_format=True)
        if name == "b":
            assert listed(tmp_path)["path"].to_list() == ["A/x/p/s"]
    with pytest.raises(FolderError, match="'A/x/p/s' holds 2 DICOM series"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("paths", "levels", "message"),
    [
        ((), LEVELS, "no slides and no images below"),
        (("A/x/p/notes.txt",), LEVELS, r"it holds 1 files \(1 .txt\)"),
        (("A/x/p/a.svs", "A/x/b.svs"), LEVELS, "'A/x/b.svs' lies in 2 folders"),
        (("A/x/p/q/a.svs",), LEVELS, "'A/x/p/q/a.svs' lies in 4 folders, and the levels .* are 3"),
        (("A/x/p/a.svs", "A/x/p/a.png"), LEVELS, "would both be slide_id 'A-x-p-a'"),
        (("A/b-c/p/a.svs", "A-b/c/p/a.svs"), LEVELS, "would both be slide_id 'A-b-c-p-a'"),
        (("=A/x/p/a.svs",), LEVELS, "slide_id '=A-x-p-a' begins with '=', which a spreadsheet"),
        (("A/+x/p/a.svs",), LEVELS, r"'A/\+x/p/a.svs': label '\+x' begins with '\+'"),
        (("A/x/-1/a.svs",), LEVELS, "patient_id '-1' begins with '-'"),
        (("A/x/@p/a.svs",), LEVELS, "patient_id '@p' begins with '@'"),
        (("A/x\n/p/a.svs",), LEVELS, "has a character that a manifest cannot hold"),
        (("A/x\\y/p/a.svs",), LEVELS, "has a character that a manifest cannot hold"),
        (("A /x/p/a.svs",), LEVELS, "has a character that a manifest cannot hold"),
        (("A/x/a.svs",), ("center", "patient"), "lack label: an audit needs both"),
        (("A/x/a.svs",), ("center", "label", "label"), "level 'label' is given twice"),
        (("A/x/a.svs",), ("center", "label", "path"), "level 'path' cannot be a column"),
        (("A/x/a.svs",), ("center", "label", ""), "level '' cannot be a column"),
    ],
)
def test_what_cannot_be_a_manifest_is_refused_by_name(tmp_path, paths, levels, message):
    with pytest.raises(FolderError, match=message):
        listed(fill(tmp_path, *paths), levels)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_an_mpp_that_is_none_is_refused(tmp_path, mpp):
    with pytest.raises(FolderError, match="is not a positive number"):
        listed(fill(tmp_path, "A/x/p/a.png"), mpp=mpp)


def test_paths_start_where_the_manifest_lies(tmp_path):
    fill(tmp_path / "images", "A/x/p/a.svs")
    row = listed(tmp_path / "images", start=tmp_path).row(0, named=True)
    assert (row["slide_id"], row["path"]) == ("A-x-p-a", "images/A/x/p/a.svs")
    with pytest.raises(FolderError, match="write it into that folder or one above it"):
        listed(tmp_path / "images", start=tmp_path / "images" / "A")


def test_a_patient_at_two_centers_is_pointed_out(tmp_path):
    fill(tmp_path, "A/x/1/a.svs", "B/x/1/a.svs", "A/y/2/a.svs", "A/x/2/a.svs")
    (warning,) = list_folder(tmp_path, LEVELS, tmp_path).warnings
    assert warning.startswith("1: patients at several centers")


def test_a_circle_of_links_ends_and_a_linked_folder_is_followed(tmp_path):
    fill(tmp_path / "store", "x/p/a.svs")
    fill(tmp_path / "cohort")
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "A").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store" / "x" / "p" / "back").symlink_to(tmp_path / "store")
    assert listed(tmp_path / "cohort")["path"].to_list() == ["A/x/p/a.svs"]


_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1)


@settings(max_examples=60, deadline=None)
@given(parts=st.tuples(*[_NAMES.filter(lambda n: n[0] != "." and len(n.encode()) < 60)] * 4))
def test_any_name_survives_the_file_or_is_refused(tmp_path_factory, parts):
    """What is written reads back as it was, names a file that is there, and is no formula."""
    folder = tmp_path_factory.mktemp("names")
    *folders, name = parts
    fill(folder, "/".join([*folders, f"{name}.png"]))
    with contextlib.suppress(FolderError):
        table = listed(folder)
        table.write_csv(folder / "slides.csv")
        read = read_manifest_file(folder / "slides.csv")
        assert read.equals(table)
        assert not any(cell[0] in "=+-@\t\r" for cell in read.row(0))
        assert SlideFiles(folder).resolve(read["path"].item()).is_file()


@pytest.mark.parametrize(
    ("paths", "column"),
    [
        (("North/x/p1/a.svs", "north/x/p2/b.svs"), "center"),
        (("A/Clear cell/p1/a.svs", "A/clearcell/p2/b.svs"), "label"),
        (("A/x/P01/a.svs", "B/x/p1/b.svs"), "patient_id"),
    ],
)
def test_folders_in_two_spellings_are_refused_with_both(tmp_path, paths, column):
    fill(tmp_path, *paths)
    with pytest.raises(FolderError, match=rf"{column} .* and .* differ in spelling only") as error:
        listed(tmp_path)
    assert all(path in str(error.value) for path in paths)


@pytest.mark.parametrize("path", ["NA/x/p1/a.svs", "A/None/p1/a.svs", "A/x/n.a./a.svs"])
def test_a_folder_named_for_nothing_is_refused(tmp_path, path):
    fill(tmp_path, path)
    with pytest.raises(
        FolderError, match=rf"'{path}': .* is what programs write for an empty cell"
    ):
        listed(tmp_path)
