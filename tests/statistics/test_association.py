"""Cramér's V against SciPy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats.contingency import association

from pathfm_kedro.statistics.association import cramers_v


@given(
    arrays(np.int64, st.tuples(st.integers(2, 5), st.integers(2, 5)), elements=st.integers(1, 40))
)
def test_equal_to_scipy(table):
    assert np.isclose(cramers_v(table), association(table, method="cramer"), atol=1e-12)


@given(arrays(np.int64, (3, 4), elements=st.integers(0, 20)))
def test_between_none_and_all(table):
    value = cramers_v(table)
    assert value is None or -1e-12 <= value <= 1 + 1e-12


def test_one_column_has_no_association():
    assert cramers_v(np.array([[3], [4]])) is None
