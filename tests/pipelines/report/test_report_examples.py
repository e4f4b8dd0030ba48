"""Tiles that fail a check: only where the cohort allows it, few, and nobody's name in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pathfm_kedro.pipelines.report.examples import MAX_EXAMPLES, draw_examples, no_examples
from pathfm_kedro.pipelines.report.page import render_report
from pathfm_kedro.slides.files import SlideFiles

TILE = {"pixels": 32}


@pytest.fixture
def pictured(tmp_path: Path) -> pl.DataFrame:
    """Two pictures, left half dark, of patients whose names stand in the files' names."""
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[:, :16] = 0
    rows = []
    for i in range(2):
        path = f"PATIENT{i}.png"
        if i == 0:
            Image.fromarray(pixels).save(tmp_path / path)
        rows.append(
            {"slide_id": f"PATIENT{i}-01", "path": path, "patient_id": f"PATIENT{i}", "mpp": 0.5,
             "label": "gland", "center": "north"}
        )  # fmt: skip
    return pl.DataFrame(rows)


def examples(n: int, slide: str = "PATIENT0-01", encoder: str = "beta") -> pl.DataFrame:
    rows = [
        {"experiment": "rotation", "encoder": encoder, "example": i + 1, "part": part,
         "tile_id": f"{slide}-0", "slide_id": slide, "x": 0, "y": 0, "field_um": 16.0,
         "angle": angle, "similarity": None}
        for i in range(n)
        for part, angle in (("tile", 0), ("turned", 90))
    ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"similarity": pl.Float64()})


def findings(encoder: str = "beta", verdict: str = "fail", role: str = "encoder") -> pl.DataFrame:
    row = {"experiment": "rotation", "encoder": encoder, "verdict": verdict, "role": role}
    return pl.DataFrame([row])


def test_a_turned_tile_is_shown_turned(pictured, tmp_path) -> None:
    files, allowed = SlideFiles(tmp_path), {"show_tiles": True}
    (shown,) = draw_examples(examples(1), findings(), pictured, files, allowed, TILE)
    still, turned = (picture(tile.source) for tile in shown.tiles)
    assert still[:, :14].mean() < 20 and still[:, 18:].mean() > 235  # noqa: PT018
    # Clockwise, what was left is above.
    assert turned[:14].mean() < 20 and turned[18:].mean() > 235  # noqa: PT018


def test_a_changed_tile_is_shown_with_its_change_alone(pictured, tmp_path) -> None:
    """What is darker by two levels on the right half; alone it is shown forty times as dark."""
    change = np.zeros((32, 32, 3), np.int8)
    change[:, 16:] = -2
    rows = examples(1).drop("part", "angle").unique().join(
        pl.DataFrame({"part": ["tile", "attacked", "difference"], "times": [None, None, 40]}),
        how="cross",
    ).with_columns(
        angle=pl.lit(0),
        read_as=pl.Series(["gland", "stroma", None]),
        change=pl.Series([None, change.tobytes(), change.tobytes()]),
    )  # fmt: skip
    files, allowed = SlideFiles(tmp_path), {"show_tiles": True}
    (shown,) = draw_examples(rows, findings(), pictured, files, allowed, TILE)
    clean, attacked, alone = (picture(tile.source).astype(int) for tile in shown.tiles)
    assert 1 <= clean[:, 20:].mean() - attacked[:, 20:].mean() <= 3
    assert abs(clean[:, :12].mean() - attacked[:, :12].mean()) <= 1
    assert alone[:, :12].mean() == pytest.approx(128, abs=1)
    assert alone[:, 20:].mean() == pytest.approx(128 - 80, abs=1)
    assert [(tile.read_as, tile.times) for tile in shown.tiles] == [
        ("gland", None),
        ("stroma", None),
        (None, 40),
    ]


def test_a_check_shows_few_examples_of_those_that_fail_it(pictured, tmp_path) -> None:
    files, allowed = SlideFiles(tmp_path), {"show_tiles": True}
    many = pl.concat([examples(3), examples(3, encoder="alpha")])
    failed = pl.concat([findings(), findings("alpha")])
    shown = draw_examples(many, failed, pictured, files, allowed, TILE)
    assert [one.encoder for one in shown] == ["alpha", "beta", "alpha"]
    assert len(shown) == MAX_EXAMPLES
    for nobody in (findings(verdict="pass"), findings(role="control")):
        assert draw_examples(many, nobody, pictured, files, allowed, TILE) == []


def test_nothing_is_read_where_tiles_may_not_be_shown(pictured) -> None:
    nowhere = SlideFiles(Path("nowhere"))
    assert draw_examples(examples(1), findings(), pictured, nowhere, {}, TILE) == []
    assert no_examples({"show_tiles": True}) == []


def test_the_page_names_no_patient(pictured, tmp_path, report_inputs: dict[str, Any]) -> None:
    """Neither by a picture nor by the reason why there is none."""
    files, allowed = SlideFiles(tmp_path), {"show_tiles": True}
    both = pl.concat(
        [examples(1), examples(1, "PATIENT1-01").with_columns(example=pl.lit(2, pl.Int64))]
    )
    shown = draw_examples(both, findings(), pictured, files, allowed, TILE)
    page = render_report(**{**report_inputs, "examples": shown})
    assert "Tiles that fail it" in page
    assert page.count('<img src="data:image/jpeg;base64,') == 2
    assert "no picture: " in page
    assert "PATIENT" not in page
    for patient in report_inputs["slides"]["patient_id"].drop_nulls().unique():
        assert f">{patient}<" not in page
        assert f" {patient} " not in page


def picture(source: str) -> np.ndarray:
    import base64
    import io

    content = base64.b64decode(source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)))
