"""Statistics per patient are read part by part, and their ratios are those of the rows behind them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathfm_kedro.statistics.bootstrap import bootstrap_weights
from pathfm_kedro.statistics.figures import Undefined, measure
from pathfm_kedro.statistics.parameters import ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics

P = ExperimentParameters(draws=300, seed=0)


def table(patients="ppqr", labels="xyxy", views=("clean", "blur")) -> pl.DataFrame:
    """One row per view and patient and label."""
    rows = [
        {
            "view": view,
            "angle": angle,
            "patient_id": patient,
            "label": label,
            "n_tiles": i + 1,
            "n_kept": (i + 1) * 0.5 if view == "clean" else 0.0,
        }
        for view in views
        for angle in (None, 90)
        for i, (patient, label) in enumerate(zip(patients, labels, strict=True))
    ]
    return pl.DataFrame(rows)


STATISTICS = PatientStatistics(table(), P)


def share(part: PatientStatistics):
    part.require_interval()
    return part.ratio(part.sums("n_kept"), part.sums("n_tiles"))


def test_at_keeps_rows_and_names_them():
    part = STATISTICS.at(view="clean", angle=90)
    assert part.setting == {"view": "clean", "angle": 90}
    assert part.table.height == 4
    assert part.patients == ["p", "q", "r"]
    assert (part.n, part.n_patients) == (10, 3)


def test_a_missing_value_is_a_value_to_look_for_and_none_to_name():
    part = STATISTICS.at(view="blur", angle=None)
    assert part.setting == {"view": "blur"}
    assert part.table["angle"].null_count() == part.table.height == 4


def test_sums_are_per_patient_in_the_order_of_names():
    part = STATISTICS.at(view="clean", angle=90)
    np.testing.assert_array_equal(part.sums("n_tiles"), [3, 3, 4])
    shuffled = PatientStatistics(part.table.sample(fraction=1, shuffle=True, seed=1), P)
    np.testing.assert_array_equal(shuffled.sums("n_tiles"), part.sums("n_tiles"))


def test_a_patient_whose_rows_lack_a_figure_has_none():
    rows = STATISTICS.at(view="clean", angle=90).table.with_columns(
        n_kept=pl.when(pl.col("patient_id") == "p").then(None).otherwise("n_kept")
    )
    np.testing.assert_array_equal(np.isnan(PatientStatistics(rows, P).sums("n_kept")), [1, 0, 0])


def test_a_mean_over_angles_counts_each_tile_once():
    both = STATISTICS.at(view="clean")
    assert both.n == 20
    assert both.mean_over("angle").n == 10


def test_a_matrix_has_a_column_for_each_value_that_is_there():
    part = STATISTICS.at(view="clean", angle=90)
    np.testing.assert_array_equal(
        part.matrix("n_tiles", "label", "n_tiles"), [[1, 2], [3, 0], [0, 4]]
    )
    rows = part.table.with_columns(
        n_tiles=pl.when(pl.col("label") == "y").then(0).otherwise("n_tiles")
    )
    assert PatientStatistics(rows, P).matrix("n_tiles", "label", "n_tiles").shape == (3, 1)


def test_within_gives_each_label_a_stratum_of_its_own():
    parts = STATISTICS.at(view="clean", angle=90).within("label")
    assert [part.stratum for part in parts] == ["label=x", "label=y"]
    assert [part.n for part in parts] == [4, 6]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (table().clear(), "no usable slide of the pool has embedded views"),
        (table().filter(patient_id="p"), "the pool holds 1 patient"),
    ],
)
def test_without_two_patients_there_is_no_interval_and_a_reason(rows, told):
    part = PatientStatistics(rows, P)
    with pytest.raises(Undefined, match=told):
        part.require_interval()
    found = measure([part.figure("share", share)], "toy", "uni").row(0, named=True)
    assert found["value"] is None
    assert told in found["reason"]


def test_a_stratum_without_two_patients_is_named():
    (one, _) = PatientStatistics(table("pqr", "xyy"), P).within("label")
    with pytest.raises(Undefined, match="label=x in the pool holds 1 patient"):
        one.require_interval()


def test_a_figure_carries_setting_stratum_and_counts():
    part = STATISTICS.at(view="clean", angle=90).within("label")[1]
    figure = part.figure("share", share, k=5)
    assert figure.setting == {"view": "clean", "angle": 90, "k": 5}
    assert (figure.stratum, figure.n, figure.n_patients) == ("label=y", 6, 2)
    assert part.with_setting(k=5).figure("share", share).setting == {"k": 5}


counts = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=2, max_size=12)


@given(counts)
def test_a_ratio_is_that_of_the_rows_and_its_interval_resamples_patients(pairs):
    rows = pl.DataFrame(
        [
            {"patient_id": f"p{i:02d}", "n_tiles": n, "n_kept": float(min(kept, n))}
            for i, (kept, n) in enumerate(pairs)
        ]
    )
    found = share(PatientStatistics(rows, P))
    assert found.value == pytest.approx(rows["n_kept"].sum() / rows["n_tiles"].sum())
    weights = bootstrap_weights(len(pairs), P.draws, P.seed)
    draws = (weights @ rows["n_kept"].to_numpy()) / (weights @ rows["n_tiles"].to_numpy())
    np.testing.assert_allclose(
        [found.ci_low, found.ci_high], np.quantile(draws, [0.025, 0.975]), rtol=0, atol=0.02
    )
    assert (found.n, found.n_patients) == (rows["n_tiles"].sum(), len(pairs))


@given(st.permutations(range(8)))
def test_the_order_of_rows_changes_nothing(order):
    rows = table()[:8]
    first, again = (share(PatientStatistics(r, P)) for r in (rows, rows[list(order)]))
    assert first == again
