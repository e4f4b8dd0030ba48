"""A manifest is checked as a whole and row by row, and every message says how to mend it."""

from __future__ import annotations

import unicodedata

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.pipelines.ingest.manifest import ManifestError, check_manifest
from pathfm_kedro.pipelines.ingest.spelling import latin_letters, plain_name, plain_patient
from tests.conftest import manifest, manifest_row


def test_a_good_manifest_gets_its_defaults():
    table = check_manifest(manifest(manifest_row("b"), manifest_row("a", mpp="0.25")))
    assert table["slide_id"].to_list() == ["a", "b"]
    assert table["organ"].to_list() == ["unspecified"] * 2
    assert table["mpp"].to_list() == [0.25, None]
    assert table["status"].to_list() == ["listed"] * 2


def test_further_columns_are_kept_and_reserved_ones_renamed():
    table = check_manifest(manifest(manifest_row("a", stage="II", status="done", width="7")))
    assert table["stage"].to_list() == ["II"]
    assert table["manifest_status"].to_list() == ["done"]
    assert table["manifest_width"].to_list() == ["7"]


@pytest.mark.parametrize("column", ["slide_id", "path", "patient_id", "center", "label"])
def test_a_missing_column_is_named(column):
    with pytest.raises(ManifestError, match=f"has no column {column}"):
        check_manifest(manifest(manifest_row("a")).drop(column))


def test_no_rows():
    with pytest.raises(ManifestError, match="has no rows"):
        check_manifest(manifest(manifest_row("a")).clear())


def test_a_slide_given_twice_names_the_rows():
    with pytest.raises(ManifestError, match="slide_id 'a' is in rows 2, 4"):
        check_manifest(manifest(manifest_row("a"), manifest_row("b"), manifest_row("a")))


def test_an_empty_slide_id_names_the_row():
    with pytest.raises(ManifestError, match="slide_id is empty in row 3"):
        check_manifest(manifest(manifest_row("a"), manifest_row("")))


@pytest.mark.parametrize("column", ["path", "patient_id", "center", "label"])
def test_an_empty_cell_costs_its_row_only(column):
    table = check_manifest(manifest(manifest_row("a"), manifest_row("b") | {column: ""}))
    bad = table.filter(pl.col("slide_id") == "b").row(0, named=True)
    assert bad["status"] == "unusable"
    assert bad["reason"] == f"row 3: '{column}' is empty: fill it in"
    assert table.filter(pl.col("slide_id") == "a")["status"].item() == "listed"


@pytest.mark.parametrize("mpp", ["0.25um", "-1", "0", "-nanometre", "inf", "1e999"])
def test_an_mpp_that_is_no_resolution_costs_its_row_only(mpp):
    table = check_manifest(manifest(manifest_row("a", mpp=mpp), manifest_row("b", mpp="0.5")))
    assert "is not a positive number" in table["reason"][0]
    assert table["status"].to_list() == ["unusable", "listed"]


NAMES = ["center", "label", "organ", "scanner", "patient_id"]
SPELLINGS = {
    "case": ("North", "north"),
    "sharp_s": ("Gie\u00dfen", "GIESSEN"),
    "blank_inside": ("North East", "NorthEast"),
    "blank_at_the_end": ("North", "North "),
    "no_break_space": ("North East", "North\u00a0East"),
    "zero_width_space": ("North", "Nor\u200bth"),
    "byte_order_mark": ("North", "\ufeffNorth"),
    "soft_hyphen": ("North", "Nor\u00adth"),
    "variation_selector": ("North", "North\ufe0f"),
    "nul": ("North", "North\0"),
    "decomposed": ("K\u00f6ln", "Ko\u0308ln"),
    "full_width": ("North", "\uff2eorth"),
    "ligature": ("office", "o\ufb03ce"),
    "dash": ("North-1", "North\u20131"),
    "underscore": ("North East", "North_East"),
    "hyphen": ("North East", "North-East"),
    "quotation_mark": ("Women's", "Women\u2019s"),
    "number": ("1", "1.0"),
    "cyrillic_capital": ("Centre A", "\u0421entre A"),
    "cyrillic_small": ("Centre A", "C\u0435ntre A"),
    "cyrillic_in_other_case": ("MOSCOW", "\u043coscow"),
    "cyrillic_throughout": ("COMA", "\u0421\u041e\u041c\u0410"),
    "with_a_mark": ("No\u00ebl", "No\u0451l"),
    "greek": ("Athens", "\u0391thens"),
    "greek_or_cyrillic": ("\u0391", "\u0410"),
}


@pytest.mark.parametrize("case", SPELLINGS)
@pytest.mark.parametrize("column", NAMES)
def test_a_name_in_two_spellings_is_refused_with_both_and_their_rows(column, case):
    first, second = SPELLINGS[case]
    rows = [
        manifest_row(name, **{column: text})
        for name, text in zip("abc", (first, second, first), strict=True)
    ]
    with pytest.raises(ManifestError) as error:
        check_manifest(manifest(*rows))
    told = str(error.value)
    assert told.startswith(f"column '{column}': ")
    assert "(rows 2, 4)" in told
    assert "(row 3)" in told
    assert "write one spelling in all these rows" in told
    assert len({part.split("'")[1] for part in told.split(": ", 1)[1].split(" and ")[:2]}) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("007", "7"), ("P01", "p1"), ("P-007", "P 7"), ("7.0", "7"), ("MRN 12", "MRN-12"),
        ("MRN:12", "MRN12"), ("P.1", "P_01"), ("'12", "12"), ('="007"', "7"), ("P1.", "p1"),
        ("TCGA_AA_0001", "TCGA-AA-0001"),
    ],
)  # fmt: skip
def test_a_patient_whose_id_a_program_changed_is_refused(first, second):
    rows = [manifest_row("a", patient_id=first), manifest_row("b", patient_id=second)]
    with pytest.raises(ManifestError, match="would be two patients, and one patient's slides"):
        check_manifest(manifest(*rows))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("P1", "P10"), ("a01b1", "a1b01"), ("1-11", "11-1"), ("2.05", "2.5"), ("0", "00a"),
        ("10", "100"), ("TCGA-01", "TCGA-10"), ("1_11", "11_1"), ("A.1.11", "A.11.1"),
    ],
)  # fmt: skip
def test_patients_whose_ids_differ_in_more_are_two(first, second):
    rows = [manifest_row("a", patient_id=first), manifest_row("b", patient_id=second)]
    assert check_manifest(manifest(*rows))["status"].to_list() == ["listed"] * 2


def test_labels_of_numbers_keep_their_zeros():
    rows = [manifest_row("a", label="01", center="1"), manifest_row("b", label="1", center="01")]
    assert check_manifest(manifest(*rows))["label"].to_list() == ["01", "1"]


def test_a_letter_that_only_looks_latin_is_written_out_with_its_name():
    rows = [manifest_row("a", center="Centre A"), manifest_row("b", center="\u0421entre A")]
    with pytest.raises(ManifestError) as error:
        check_manifest(manifest(*rows))
    assert "'Centre A' (row 2) and '\\u0421entre A' with CYRILLIC CAPITAL LETTER ES (row 3)" in str(
        error.value
    )
    table = manifest(manifest_row("a")).rename({"center": "\u0441enter"})
    with pytest.raises(ManifestError, match=r"rename '\\u0441enter' to 'center'"):
        check_manifest(table)


@pytest.mark.parametrize(
    "points", [range(0x370, 0x400), range(0x400, 0x530)], ids=["greek", "cyrillic"]
)
def test_different_names_in_one_script_stay_different(points):
    letters = {plain_name(chr(point)) for point in points}
    assert len({latin_letters(letter) for letter in letters}) == len(letters)


def test_names_in_another_script_are_names_like_any_other():
    rows = [
        manifest_row(str(i), center=center, patient_id=f"\u0420-{i}")
        for i, center in enumerate(
            ["\u041a.\u0410.", "\u041d\u0418\u0418", "\u041f\u041d\u0418\u0418"]
        )
    ]
    assert check_manifest(manifest(*rows))["status"].to_list() == ["listed"] * 3


def test_many_names_in_two_spellings_are_counted():
    rows = [manifest_row(f"{i}{j}", center="cC"[j] * (i + 1)) for i in range(9) for j in (0, 1)]
    with pytest.raises(ManifestError, match="; and 4 more differ in"):
        check_manifest(manifest(*rows))


@given(st.text(max_size=12))
def test_a_plain_name_is_that_of_all_its_spellings(text):
    plain = plain_name(text)
    assert plain == plain_name(plain)
    assert plain == plain_name(f" {text}\u200b")
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert plain == plain_name(unicodedata.normalize(form, text))
    assert plain_patient(text) == plain_patient(plain)


NOTHING = [
    "NA", "N/A", "n.a.", "None", "NaN", "null", "NULL", "#N/A", "#N/A N/A", "-", "--", "\u2014",
    "\u2212", "?", "???", ".", "_", "/", "*", "<NA>", "NaT", "nil", "\\N", "#NV", "#REF!", "(null)",
    "N / A", "\u200b", "not available", "-nan", "1.#QNAN", "k.A.", "[Not Available]", "'--",
    "not reported", "Not Allowed To Collect", "{null}", "'NA'", "(missing)", "keine Angabe", "-999",
    "-99.0", "#WERT!", "#CALC!", "#NAME?", "Err:508", "none.", "not_available", "N/K",
]  # fmt: skip


@pytest.mark.parametrize("column", ["path", "patient_id", "center", "label"])
@pytest.mark.parametrize("word", NOTHING)
def test_a_word_for_nothing_costs_its_row_and_makes_no_class(word, column):
    table = check_manifest(manifest(manifest_row("a"), manifest_row("b") | {column: word}))
    good, bad = table.to_dicts()
    assert (good["status"], bad["status"]) == ("listed", "unusable")
    assert bad["reason"].startswith(f"row 3: '{column}' is ")
    assert "fill it in" in bad["reason"]


@pytest.mark.parametrize("word", NOTHING)
def test_a_word_for_nothing_is_no_organ_no_scanner_and_no_resolution(word):
    row = check_manifest(manifest(manifest_row("a", organ=word, scanner=word, mpp=word)))
    assert row.select("organ", "scanner", "mpp", "reason").row(0) == (
        "unspecified", "unspecified", None, "",
    )  # fmt: skip


def test_a_slide_id_stands_for_itself_unless_nothing_of_it_is_seen():
    named = check_manifest(manifest(manifest_row("missing"), manifest_row("NA")))
    assert named["status"].to_list() == ["listed"] * 2
    with pytest.raises(ManifestError, match="slide_id is empty in row 2"):
        check_manifest(manifest(manifest_row("\u200b\u00a0")))


@pytest.mark.parametrize(
    "name",
    [
        "+", "++", "0", "no", "blank", "unknown", "nano", "Nancy", "NAT1", "none found", "<5%", "-1",
        "999", "(benign)", "not tumour", "#1", "HER2-", "err:a",
    ],
)  # fmt: skip
def test_a_name_that_only_looks_like_nothing_is_a_name(name):
    assert check_manifest(manifest(manifest_row("a", label=name)))["status"].item() == "listed"


def test_columns_of_subgroups_are_checked_like_names_and_empty_cells_are_none():
    rows = [manifest_row("a", sex="F"), manifest_row("b", sex="N/A"), manifest_row("c", sex="")]
    assert check_manifest(manifest(*rows), ["sex"])["sex"].to_list() == ["F", None, None]
    assert check_manifest(manifest(*rows))["sex"].to_list() == ["F", "N/A", ""]
    other = manifest(*rows, manifest_row("d", sex="f"))
    with pytest.raises(ManifestError, match=r"'F' .* and 'f' .* two subgroups"):
        check_manifest(other, ["sex"])
    with pytest.raises(ManifestError, match=r"names 'sexe', .* did you mean 'sex'"):
        check_manifest(other, ["sexe"])


def test_a_subgroup_that_ingest_writes_itself_is_named_as_it_is_kept():
    rows = [manifest_row("a", vendor="one"), manifest_row("b", vendor="two")]
    with pytest.raises(ManifestError, match="kept as 'manifest_vendor', name that"):
        check_manifest(manifest(*rows), ["vendor"])
    checked = check_manifest(manifest(*rows), ["manifest_vendor"])
    assert checked["manifest_vendor"].to_list() == ["one", "two"]
