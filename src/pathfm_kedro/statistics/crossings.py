"""Where two curves over a growing number of patients cross for the last time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def crossings(leads: Floats, patients: Floats) -> Floats:
    """From how many patients on a lead stays below 0.

    Between two numbers of patients the lead is linear in their logarithm.

    Parameters
    ----------
    leads
        [m, budgets] of one over the other.
    patients
        [budgets], rising.

    Returns
    -------
    ndarray
        [m]; +∞ where the lead at the largest budget is 0 or more, −∞ where all are below 0.

    Examples
    --------
    >>> leads = np.array([[0.2, -0.2, -0.4], [0.1, -0.1, 0.3], [-0.1, -0.2, -0.1]])
    >>> crossings(leads, np.array([1.0, 4.0, 16.0])).tolist()
    [2.0, inf, -inf]
    """
    ahead = leads >= 0
    last = leads.shape[1] - 1 - ahead[:, ::-1].argmax(axis=1)
    after = np.minimum(last + 1, leads.shape[1] - 1)
    rows = np.arange(len(leads))
    before_lead, after_lead = leads[rows, last], leads[rows, after]
    between = ahead.any(axis=1) & ~ahead[:, -1]
    share = before_lead / np.where(between, before_lead - after_lead, 1.0)
    at = np.log(patients)
    found = np.exp(at[last] + share * (at[after] - at[last]))
    found = np.where(ahead[:, -1], np.inf, found)
    return np.asarray(np.where(ahead.any(axis=1), found, -np.inf))
