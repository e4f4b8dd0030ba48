"""Every way in which a manifest has been seen broken: what is wrong, where, and what to do."""

from __future__ import annotations

import codecs
import gzip
import io
import re

import polars as pl
import pytest
from kedro.io.core import DatasetError

from pathfm_kedro.datasets import schemas
from pathfm_kedro.datasets.slide_files import ManifestDataset, read_manifest_file
from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.design import summarise_design
from pathfm_kedro.pipelines.ingest.manifest import ManifestError, check_manifest
from pathfm_kedro.pipelines.report.text import safe_cells
from pathfm_kedro.slides.files import SlideFiles
from tests.conftest import manifest, manifest_row, write_tiff

HEADER = "slide_id,path,patient_id,center,label,mpp"
ROW = "s1,s1.tiff,p1,A,x,0.5"
GOOD = f"{HEADER}\n{ROW}\n"


def read(folder, content: str | bytes) -> pl.DataFrame:
    path = folder / "slides.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return check_manifest(read_manifest_file(path))


REFUSED = {
    "empty": ("", "the file is empty: its first row names the columns"),
    "blank": ("\n\n", "the file is empty"),
    "only_excels_own_line": ("sep=;", "the manifest has no column slide_id"),
    "header_only": (f"{HEADER}\n", "the manifest has no rows: list one slide per row"),
    "emptied_rows_only": (f"{HEADER}\n,,,,,\n", "the manifest has no rows"),
    "no_header": (f"{ROW}\n{ROW}\n", "its first row must name the columns"),
    "missing_column": (
        GOOD.replace("center,", "").replace("A,", ""),
        "the manifest has no column center",
    ),
    "needed_column_misspelt": (
        GOOD.replace("patient_id", "Patient ID"),
        "rename 'Patient ID' to 'patient_id'",
    ),
    "optional_column_misspelt": (
        GOOD.replace("mpp", "mmp"),
        "the manifest's column 'mmp' looks like a known one misspelt",
    ),
    "column_twice": (
        GOOD.replace("mpp", "label"),
        "its first row has 'label' more than once",
    ),
    "slide_id_twice": (f"{GOOD}{ROW}\n", "slide_id 's1' is in rows 2, 3"),
    "slide_id_twice_but_for_case": (
        f"{GOOD}{ROW.replace('s1,', 'S1,')}\n",
        "the slide_ids s1, S1 in rows 2, 3 differ in case only",
    ),
    "slide_id_twice_but_for_its_form": (
        f"{HEADER}\n\u00e4,s1.tiff,p1,A,x,\na\u0308,s2.tiff,p2,A,x,\n",
        "the slide_ids \u00e4, a\\u0308 in rows 2, 3 differ in case only, or in Unicode form",
    ),
    "center_in_two_spellings": (
        f"{GOOD}s2,s2.tiff,p2,a,x,0.5\n",
        "column 'center': 'A' (row 2) and 'a' (row 3) differ in case, blanks",
    ),
    "patient_in_two_spellings": (
        f"{GOOD}s2,s2.tiff,P01,A,x,0.5\n",
        "column 'patient_id': 'p1' (row 2) and 'P01' (row 3) differ in zeros before a number, case",
    ),
    "slide_id_empty": (f"{GOOD},s2.tiff,p2,A,x,0.5\n", "slide_id is empty in row 3"),
    "slide_id_blank": (f"{GOOD}  ,s2.tiff,p2,A,x,0.5\n", "slide_id is empty in row 3"),
    "too_many_cells": (
        f"{GOOD}s2,s2.tiff,p2,A,x, with a comma,0.5\n",
        "row 3 has 7 cells and the first row names 6 columns",
    ),
    "quotation_mark_not_closed": (
        f'{HEADER}\n"s1,s1.tiff,p1,A,x,0.5\n',
        "row 2 cannot be split into cells",
    ),
    "latin1": (
        f"{HEADER}\n{ROW}\ns2,s2.tiff,p2,Köln,x,0.5\n".encode("latin-1"),
        "row 3 is not UTF-8 text (byte 0xf6): save it as 'CSV UTF-8'",
    ),
    "utf16": (GOOD.encode("utf-16"), "it is UTF-16 text: save it as 'CSV UTF-8'"),
    "workbook": (b"PK\x03\x04rest", "it is an Excel workbook: save it as 'CSV UTF-8'"),
    "utf16_without_its_mark": (GOOD.encode("utf-16-le"), "it is UTF-16 text: save it"),
    "gzip": (gzip.compress(GOOD.encode()), "it is packed by gzip: unpack it"),
    "git_lfs": (b"version https://git-lfs.github.com/spec/v1\n", "run 'git lfs pull'"),
    "web_page": ("<!DOCTYPE html>", "it is a web page or XML: download the table itself"),
    "json": ('[{"slide_id": "s1"}]', "it is JSON: save it as 'CSV UTF-8'"),
    "reserved_column_taken": (
        GOOD.replace("mpp", "status,manifest_status").replace("0.5", "a,b"),
        "the manifest has the columns 'status' and 'manifest_status'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path, case):
    content, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, content)


UNDERSTOOD = {
    "as_it_should_be": GOOD.encode(),
    "semicolons_of_a_spreadsheet": GOOD.replace(",", ";").encode(),
    "upright_strokes": GOOD.replace(",", "|").encode(),
    "excels_own_line": b"sep=;\r\n" + GOOD.replace(",", ";").encode(),
    "excels_own_line_in_other_letters": b'"SEP=|"\n' + GOOD.replace(",", "|").encode(),
    "excels_own_line_with_a_mark": codecs.BOM_UTF8 + b"sep=,\n" + GOOD.encode(),
    "blank_first_lines": b"\n \r\n\n" + GOOD.encode(),
    "emptied_first_rows": b",,,,,\n;;;\n" + GOOD.encode(),
    "blank_then_excels_own_line": b"\nsep=;\n\n" + GOOD.replace(",", ";").encode(),
    "tabs": GOOD.replace(",", "\t").encode(),
    "byte_order_mark": codecs.BOM_UTF8 + GOOD.encode(),
    "windows_line_ends": GOOD.replace("\n", "\r\n").encode(),
    "old_mac_line_ends": GOOD.replace("\n", "\r").encode(),
    "quoted": re.sub(r"[^,\n]+", lambda cell: f'"{cell[0]}"', GOOD).encode(),
    "blanks_around_cells": GOOD.replace(",", " , ").encode(),
    "emptied_rows_and_columns": f"{HEADER},,\n{ROW},,\n,,,,,,,\n\n".encode(),
    "no_end_of_line": GOOD.rstrip().encode(),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_a_manifest_as_programs_write_it_is_understood(tmp_path, case):
    table = read(tmp_path, UNDERSTOOD[case])
    assert table.equals(check_manifest(manifest(manifest_row("s1", patient_id="p1", mpp="0.5"))))


def test_cells_may_hold_separators_and_line_ends(tmp_path):
    table = read(tmp_path, f'{HEADER}\ns1,s1.tiff,p1,"A, ""north""\nwing",x\u2028y,0.5\n')
    assert table["center"].item() == 'A, "north"\nwing'
    assert table["label"].item() == "x\u2028y"


def test_separators_in_quotation_marks_separate_nothing(tmp_path):
    header = HEADER.replace(",", ";")
    table = read(tmp_path, f'{header};"a,b,c,d,e,f,g,h"\n{ROW.replace(",", ";")};1\n')
    assert table["a,b,c,d,e,f,g,h"].to_list() == ["1"]
    assert table["mpp"].to_list() == [0.5]


def test_a_plain_csv_reads_as_polars_reads_it(tmp_path):
    table = "slide_id,note\na,1\nb,\nc,x y\n"
    (tmp_path / "a.csv").write_text(table)
    read_by_polars = pl.read_csv(io.StringIO(table), infer_schema=False)
    assert read_manifest_file(tmp_path / "a.csv").equals(read_by_polars)


ROW_REASONS = {
    "path_empty": ({"path": ""}, "row 3: 'path' is empty: fill it in"),
    "patient_empty": ({"patient_id": ""}, "row 3: 'patient_id' is empty"),
    "center_empty": ({"center": ""}, "row 3: 'center' is empty"),
    "label_empty": ({"label": ""}, "row 3: 'label' is empty"),
    "mpp_text": ({"mpp": "0.25um"}, "row 3: mpp '0.25um' is not a positive number"),
    "mpp_comma": ({"mpp": "0,25"}, "micrometres per pixel, with a point and no comma"),
    "mpp_negative": ({"mpp": "-1"}, "mpp '-1' is not a positive number"),
    "mpp_zero": ({"mpp": "0"}, "mpp '0' is not a positive number"),
    "patient_na": (
        {"patient_id": "NA"},
        "row 3: 'patient_id' is 'NA', which stands for an empty cell",
    ),
    "label_none": (
        {"label": "None"},
        "which stands for an empty cell: fill it in, or spell out what",
    ),
    "mpp_infinite": ({"mpp": "inf"}, "mpp 'inf' is not a positive number"),
    "mpp_absurd": ({"mpp": "500"}, "500 micrometres per pixel is not credible"),
    "absolute": ({"path": "/etc/passwd"}, "path '/etc/passwd' leads out of the manifest's folder"),
    "windows_drive": ({"path": "C:\\s.svs"}, "leads out of the manifest's folder"),
    "climbing": ({"path": "a/../../s.svs"}, "leads out of the manifest's folder"),
    "missing_file": ({"path": "nowhere.svs"}, "no file at 'nowhere.svs'"),
    "name_too_long": ({"path": "a" * 300}, "no file at 'aaa"),
}


@pytest.mark.parametrize("case", ROW_REASONS)
def test_a_bad_row_costs_itself_alone_and_the_table_can_be_stored(tmp_path, pink_slide, case):
    changes, message = ROW_REASONS[case]
    write_tiff(tmp_path / "good.tiff", pink_slide)
    write_tiff(tmp_path / "bad.tiff", pink_slide)
    listed = check_manifest(manifest(manifest_row("good"), manifest_row("bad") | changes))
    engine = {"workers": 1, "max_failed_share": 0.5}
    table = describe_slides(listed, SlideFiles(tmp_path), {"mpp_bounds": [0.05, 10]}, engine)
    bad, good = table.sort("slide_id").to_dicts()
    assert (bad["status"], good["status"]) == ("unusable", "usable")
    assert message in bad["reason"]
    assert str(tmp_path) not in bad["reason"]
    schemas.slides.validate(table)


def test_a_manifest_that_is_not_there_names_the_setting(tmp_path):
    with pytest.raises(DatasetError, match=r"does not exist: correct the path, 'manifest' in"):
        ManifestDataset(filepath=str(tmp_path / "slides.csv")).load()


def test_a_manifest_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = tmp_path / "slides.csv"
    path.write_text(GOOD)

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    with pytest.raises(DatasetError, match=r"Permission denied: .*slides\.csv"):
        ManifestDataset(filepath=str(path)).load()


def test_a_parquet_manifest_that_is_none_says_what_to_do(tmp_path):
    path = tmp_path / "slides.parquet"
    path.write_text(GOOD)
    with pytest.raises(ValueError, match=r"it is no whole Parquet file .* write it again"):
        read_manifest_file(path)


def test_a_parquet_manifest_with_numbers_is_text_and_one_with_lists_is_refused(tmp_path):
    table = manifest(manifest_row("7")).with_columns(slide_id=pl.lit(7), mpp=pl.lit(0.25))
    table.write_parquet(tmp_path / "a.parquet")
    assert check_manifest(read_manifest_file(tmp_path / "a.parquet"))["mpp"].item() == 0.25
    table.with_columns(label=pl.lit([["x"]])).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="column 'label' holds lists or bytes"):
        read_manifest_file(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"c\.parquet cannot be read as a table"):
        read_manifest_file(tmp_path / "c.parquet")


def described(*rows) -> pl.DataFrame:
    """Slides as ingest describes them, without files."""
    return check_manifest(manifest(*rows)).with_columns(
        status=pl.lit("usable"),
        warning=pl.lit(""),
        fingerprint=pl.col("slide_id"),
        tissue_digest=pl.lit(None, pl.String),
    )


DESIGNS = {
    "one_center": (
        [manifest_row("a"), manifest_row("b", label="y")],
        "one center only: whether an encoder follows the center cannot be measured here",
    ),
    "organs_of_some": (
        [manifest_row("a", organ="lung"), manifest_row("b", organ="NA")],
        "1 of 2 slides have no organ and count as one organ of their own",
    ),
    "label_unknown": (
        [manifest_row("a", label="Unknown"), manifest_row("b")],
        "1 slide(s) have the label 'Unknown', which counts as one name: leave the cell empty",
    ),
    "one_label": (
        [manifest_row("a"), manifest_row("b", center="B")],
        "one label only: retrieval and probes have nothing to tell apart",
    ),
    "patient_at_two_centers": (
        [manifest_row("a", patient_id="p"), manifest_row("b", patient_id="p", center="B")],
        "1 patient(s) have slides of more than one center (1 of A, B): see 'patients_of_several'",
    ),
    "patient_with_two_labels": (
        [manifest_row("a", patient_id="p"), manifest_row("b", patient_id="p", label="y")],
        "1 patient(s) have slides of more than one label (1 of x, y): see 'patients_of_several'",
    ),
    "one_file_twice": (
        [manifest_row("a", patient_id="p", path="s"), manifest_row("b", patient_id="p", path="s")],
        "1 group(s) of slides of one patient, 2 slides, are the same file, listed more than once: it "
        "counts more than once",
    ),
    "one_scan_in_two_formats": (
        [manifest_row("a"), manifest_row("b", center="B")],
        "1 group(s) of slides of different patients, 2 slides, show the same tissue in different "
        "files: leakage, the same tissue would be its own neighbour",
    ),
}


@pytest.mark.parametrize("case", DESIGNS)
def test_a_cohort_that_cannot_show_something_is_warned_of(case):
    rows, message = DESIGNS[case]
    table = described(*rows)
    if case == "one_file_twice":
        table = table.with_columns(fingerprint=pl.lit("same"))
    if case == "one_scan_in_two_formats":
        table = table.with_columns(tissue_digest=pl.lit("0f" * 128))
    warnings = summarise_design(table, {"cramers_v_warning": 0.5})[1]["warnings"]
    assert any(warning.startswith(message) for warning in warnings), warnings


def test_a_cell_that_looks_like_a_formula_is_taken_as_text_and_exported_harmless(tmp_path):
    table = read(tmp_path, f"{HEADER}\n=cmd|'/c calc'!A1,s1.tiff,p1,@A,+x,0.5\n")
    exported = safe_cells(table.select("slide_id", "center", "label")).row(0)
    assert exported == ("'=cmd|'/c calc'!A1", "'@A", "'+x")


@pytest.mark.parametrize(
    "slide_id", ["切片" * 200, "s" * 5000, "é\u0301 a/b:*?", "<b>x</b>", "\U0001f9ea"]
)
def test_any_text_can_be_a_slides_id(tmp_path, slide_id):
    from pathfm_kedro.datasets.shard_files import shard_name

    table = read(tmp_path, f"{HEADER}\n{slide_id},s1.tiff,p1,A,x,0.5\n")
    assert table["slide_id"].item() == slide_id
    (tmp_path / shard_name(slide_id)).write_bytes(b"")
    assert shard_name(slide_id) != shard_name(slide_id + "x")


def test_a_manifest_error_is_a_value_error():
    """So that the command line shows its text and no traceback."""
    assert issubclass(ManifestError, ValueError)
