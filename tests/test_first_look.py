"""What a look at slides and a design proposes and refuses, without a cohort being made."""

from __future__ import annotations

import itertools

import polars as pl
import pytest

from pathfm_kedro.commands.first_look import SlideSize, propose_tiles, without_mpp
from pathfm_kedro.commands.supported_checks import (
    ON_PIXELS,
    patients_by_cell,
    support_lines,
    supported_checks,
)

TILE = {"pixels": 224, "mpp": 0.5}


def proposed(*sizes, tile=TILE):
    found = propose_tiles([SlideSize(*size) for size in sizes], tile)
    return None if found is None else dict(found.parameters)


def test_every_proposal_can_be_cut_from_the_slides_it_is_made_of():
    for side, mpp in itertools.product(
        (96, 128, 200, 256, 300, 512), (0.25, 0.2527, 0.5, 0.504, 1.0)
    ):
        found = proposed((side, side + 40, mpp)) or TILE
        merged = TILE | found
        # As tiles are cut: not finer than the slide, not larger than it.
        assert mpp <= merged["mpp"] * 1.02
        assert merged["pixels"] * merged["mpp"] / mpp <= side + 0.5
        assert merged["pixels"] % 8 == 0


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        # One odd slide of twenty does not decide for all.
        ([(9000, 9000, 0.25)] * 19 + [(9000, 9000, 4.0)], None),
        ([(9000, 9000, 0.25)] * 10 + [(9000, 9000, 1.0)] * 10, {"mpp": 1.0}),
        # 250 µm hold two tiles of 112 µm a side: they are cut as from a slide.
        ([(1000, 1000, 0.25)], None),
        ([(256, 256, 0.5)], {"pixels": 256, "mpp": 0.5, "min_tissue_fraction": 0.0}),
        ([(256, 256, None)], None),
        ([], None),
    ],
)
def test_tiles_fit_what_most_slides_are(sizes, wanted):
    assert proposed(*sizes) == wanted


def test_slides_that_do_not_say_how_large_a_pixel_is_are_counted():
    sizes = [SlideSize(1, 1, None), SlideSize(1, 1, 0.5)]
    assert without_mpp(sizes).startswith("1 of 2 slides do not say")
    assert without_mpp(sizes[1:]) == ""


def cohort(*cells, organ="kidney"):
    """Slides of `n` patients of each (label, center, n)."""
    rows = [
        {"label": label, "center": center, "organ": organ, "patient_id": f"{label}{center}{i}"}
        for label, center, n in cells
        for i in range(n)
    ]
    return pl.DataFrame(rows).with_columns(slide_id="patient_id")


BLOCKS = {
    "robustness_index": {"designs": ["all", "paired_2x2"], "min_patients_per_cell": 2},
    "retrieval": {"scopes": ["within_organ", "across_organs"], "min_patients": 2},
    "linear_probe": {"probe": {"folds": 5}},
    "adaptation": {"encoders": [], "probe": {"folds": 5}},
    "cohort": {"same_tissue": False, "source": "manifest"},
}


def supported(slides):
    return {found.name for found in supported_checks(BLOCKS, slides) if not found.reason}


def test_a_full_design_supports_everything():
    full = cohort(*((label, at, 5) for label in "xy" for at in "AB"))
    assert supported(full) == {
        "robustness_index (all)", "robustness_index (paired_2x2)", "retrieval (within_organ)",
        "retrieval (across_organs)", "linear_probe (probe)",
    }  # fmt: skip


RI = {"robustness_index (all)", "robustness_index (paired_2x2)"}
NO_PAIR = [("x", "A"), ("x", "B"), ("y", "B"), ("y", "C"), ("z", "C"), ("z", "A")]


@pytest.mark.parametrize(
    ("slides", "lost"),
    [
        # One center; label and center confounded; no two labels at the same two centers.
        (cohort(("x", "A", 5), ("y", "A", 5)), RI),
        (cohort(("x", "A", 5), ("y", "B", 5)), RI),
        (cohort(*((*cell, 5) for cell in NO_PAIR)), {"robustness_index (paired_2x2)"}),
        # Too few patients for the folds.
        (cohort(*((a, b, 2) for a in "xy" for b in "AB")), {"linear_probe (probe)"}),
    ],
)
def test_what_a_design_lacks_it_does_not_support(slides, lost):
    full = supported(cohort(*((label, at, 5) for label in "xy" for at in "AB")))
    assert full - supported(slides) == lost


def test_lines_name_each_reason_once_and_what_no_figure_can_decide():
    slides = cohort(("x", "A", 3), ("y", "A", 3))
    lines = support_lines(BLOCKS, slides)
    (one_center,) = [line for line in lines if "one center" in line]
    assert one_center.startswith(
        "  cannot: robustness_index (all), robustness_index (paired_2x2): "
    )
    assert "  undecidable: every check, since 6 patients are fewer than 8" in lines


def test_experiments_on_pixels_are_not_promised_to_a_cohort_of_features():
    blocks = BLOCKS | {"texture": {"probe": {"folds": 2}}}
    slides = cohort(*((label, center, 12) for label in "xy" for center in "AB"))
    with_slides, without = (
        "\n".join(support_lines(blocks | {"cohort": {"source": source}}, slides))
        for source in ("manifest", "features")
    )
    assert "texture (probe)" in with_slides
    assert "texture (probe)" not in without
    assert f"cannot: {', '.join(ON_PIXELS)}: they need pixels" in without


def test_patients_of_a_large_design_are_summed_up():
    table = pl.DataFrame({"label": ["x", "y"], "center": ["A", "A"], "n_patients": [3, 12]})
    assert patients_by_cell(table) == ["      A", "  x   3", "  y  12"]
    many = pl.DataFrame({"center": [f"{i}" for i in range(20)], "n_patients": [*range(20)]})
    assert patients_by_cell(many.with_columns(label=pl.lit("x"))) == [
        "  19 of 20 cells of label and center have patients, 1 to 19 (median 10)"
    ]
