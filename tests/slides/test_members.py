"""Every file of a slide counts for it, whatever it is called, and two slides are never one."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    VLWholeSlideMicroscopyImageStorage,
)

from pathfm_kedro.slides.files import SlideError, SlideFiles
from pathfm_kedro.slides.members import dicom_series, dicom_slide, slide_members
from pathfm_kedro.slides.readers import file_fingerprint, open_slide
from tests.conftest import write_tiff


def write_dicom(path: Path, series: str, kind: str = VLWholeSlideMicroscopyImageStorage) -> Path:
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID, header.SeriesInstanceUID = kind, "1.4", series
    header.InstanceNumber = len(path.name)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = kind
    header.file_meta.MediaStorageSOPInstanceUID = "1.4"
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def names(paths) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize(
    "called", [("a.dcm", "b.dcm"), ("a.DCM", "b.Dcm"), ("IM0001", "IM0002"), ("1.2.3.1", "1.2.3.2")]
)
def test_dicom_is_known_by_how_it_begins(tmp_path, called):
    for name in called:
        write_dicom(tmp_path / "s" / name, "1.1")
    (tmp_path / "s" / f"._{called[0]}").write_bytes(b"\0\5\x16\7 resource fork")
    (tmp_path / "s" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "s" / "notes.txt").write_text("x")
    write_dicom(tmp_path / "s" / "DICOMDIR", "1.9")
    assert names(slide_members(tmp_path / "s")) == list(called)
    for name in called:
        assert names(slide_members(tmp_path / "s" / name)) == list(called)


def test_a_series_may_lie_in_a_folder_below(tmp_path):
    write_dicom(tmp_path / "s/DICOM/ST0/a.dcm", "1.1")
    write_dicom(tmp_path / "s/DICOM/ST0/b.dcm", "1.1")
    assert names(dicom_slide(tmp_path / "s")) == ["a.dcm", "b.dcm"]


def test_a_series_in_the_folder_comes_before_those_below(tmp_path):
    write_dicom(tmp_path / "s/a.dcm", "1.1")
    write_dicom(tmp_path / "s/older/a.dcm", "1.2")
    assert dicom_slide(tmp_path / "s") == [tmp_path / "s/a.dcm"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "a folder without DICOM files"),
        (
            {"a.dcm": "1.1", "b.dcm": "1.2"},
            "holds 2 DICOM series: give each slide a folder of its own",
        ),
        ({"x/a.dcm": "1.1", "x/b": "1.2"}, "holds 2 DICOM series"),
        ({"x/a.dcm": "1.1", "y/b.dcm": "1.1"}, "lie in several: name the one that holds the slide"),
    ],
)
def test_what_is_no_one_slide_has_a_reason(tmp_path, files, message):
    (tmp_path / "secret").mkdir()
    for name, series in files.items():
        write_dicom(tmp_path / "secret" / name, series)
    with pytest.raises(ValueError, match=message) as error:
        dicom_slide(tmp_path / "secret")
    assert "secret" not in str(error.value)


def test_of_two_series_one_is_named_by_its_file(tmp_path):
    for name, series in {"a": "1.1", "b": "1.2", "c": "1.1"}.items():
        write_dicom(tmp_path / f"{name}.dcm", series)
    assert names(slide_members(tmp_path / "c.dcm")) == ["a.dcm", "c.dcm"]
    assert names(slide_members(tmp_path / "b.dcm")) == ["b.dcm"]


def test_annotations_beside_a_slide_are_no_second_slide(tmp_path):
    write_dicom(tmp_path / "a.dcm", "1.1")
    write_dicom(tmp_path / "report.dcm", "1.2", ComprehensiveSRStorage)
    assert names(dicom_slide(tmp_path)) == ["a.dcm"]


def test_a_damaged_series_is_left_to_who_opens_it(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"damaged")
    assert dicom_series(tmp_path) == [[tmp_path / "a.dcm"]]


COMPANIONS = {
    "dicom": ("a.dcm", "b.dcm"),
    "mrxs": ("a.mrxs", "a/Data0003.dat"),
    "mrxs_index": ("a.MRXS", "a/Slidedat.ini"),
    "vms": ("a.vms", "a (1,0).jpg"),
    "vmu": ("a.vmu", "a.l0"),
}


@pytest.mark.parametrize("kind", COMPANIONS)
def test_a_fingerprint_changes_with_every_file_of_the_slide(tmp_path, kind):
    name, beside = (tmp_path / part for part in COMPANIONS[kind])
    if kind == "dicom":
        write_dicom(name, "1.1")
        write_dicom(beside, "1.1")
    else:
        beside.parent.mkdir(exist_ok=True)
        beside.write_bytes(b"pixels")
        name.write_text(f"[Virtual Microscope Specimen]\nImageFile(1,0)={beside.name}\nMap=../x\n")
    other = tmp_path / "other.jpg"
    other.write_bytes(b"another slide")
    before = file_fingerprint(name)
    other.write_bytes(b"changed")
    assert file_fingerprint(name) == before
    beside.write_bytes(beside.read_bytes() + b"0")
    assert file_fingerprint(name) != before


def test_a_list_of_images_names_none_outside_its_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (tmp_path / "s").mkdir()
    lines = "\n".join(
        ["ImageFile=../secret.jpg", f"MapFile={tmp_path / 'secret.jpg'}", "no pair", "a="]
    )
    (tmp_path / "s/a.vms").write_text(lines)
    assert names(slide_members(tmp_path / "s/a.vms")) == ["a.vms"]


def test_a_series_by_its_folder_and_by_a_file_is_one_slide(tmp_path):
    for name in "ab":
        write_dicom(tmp_path / f"{name}.dcm", "1.1")
    assert file_fingerprint(tmp_path) == file_fingerprint(tmp_path / "b.dcm")


@pytest.mark.real_data
@pytest.mark.parametrize("rename", [str, str.upper, lambda name: name.split(".")[0]])
@pytest.mark.parametrize("below", [".", "DICOM/SE0"])
def test_a_real_series_is_read_alike_whatever_its_files_are_called(
    real_data, tmp_path, rename, below
):
    source = real_data / "slides/cmu-1-small-region-dicom"
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        shutil.copy(path, folder / rename(path.name))
        (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    with open_slide(source) as expected, open_slide(tmp_path) as found:
        assert found.description == expected.description
        np.testing.assert_array_equal(
            found.read(900, 900, 0, 64, 64), expected.read(900, 900, 0, 64, 64)
        )


FORMS = ["NFC", "NFD", "NFKC", "NFKD"]


@pytest.mark.parametrize("written", FORMS)
@pytest.mark.parametrize("given", FORMS)
@pytest.mark.parametrize(
    "name", ["K\u00f6ln/M\u00fcller \u00e9.tiff", "\u1112\u1161\u11ab/\uac00.tiff"]
)
def test_a_name_is_found_in_any_unicode_form(tmp_path, pink_slide, written, given, name):
    write_tiff(tmp_path / unicodedata.normalize(written, name), pink_slide[:256, :256])
    with SlideFiles(tmp_path).open(unicodedata.normalize(given, name)) as reader:
        assert reader.description.width == 256


def test_of_two_files_that_differ_in_form_only_each_is_found_by_its_own(tmp_path):
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "\u00e4.svs")).write_text(form)
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this disk takes the two for one")
    for form in ("NFC", "NFD"):
        found = SlideFiles(tmp_path).resolve(unicodedata.normalize(form, "\u00e4.svs"))
        assert found.read_text() == form


def test_another_name_is_not_found(tmp_path):
    (tmp_path / "\u00e4.svs").write_text("x")
    with pytest.raises(SlideError, match="no file at"):
        SlideFiles(tmp_path).resolve("a.svs")
    with pytest.raises(SlideError, match="no file at"):
        SlideFiles(tmp_path).resolve("\u00f6.svs")
