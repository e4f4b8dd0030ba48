"""Encoders with something done against their confounder, each held against the encoder without.

Three kinds of variants go through the same audit: pixels changed before the encoder (stain normalised,
rotations averaged), the center taken out of its vectors (centring, whitening, ComBat), and published
encoders that were made robust from another one (``robustified_from`` in their entry). Of every judged
figure the difference variant − encoder is given, on the same resampled patients and with the null of
:mod:`~pathfm_kedro.statistics.paired_comparison`; intervals and p-values allow for the pairs of variant
and encoder alone, so that they are no wider than among all pairs of the cohort.

Pitfalls
--------
- What helps one check may cost another: read all rows of a variant.
- A published encoder differs from its base by all of its further training, of which what was done for
  robustness is a part.
- Differences are described, not judged. A check that only one of the two passes may still be no
  difference.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from pathfm_kedro.statistics.measurements import measurement_table
from pathfm_kedro.statistics.paired_comparison import (
    Judged,
    difference_row,
    differences,
    judged_keys,
)

MITIGATION = "mitigation"


def compare_with_bases(
    judged: Mapping[str, Judged],
    experiment: str,
    bases: Mapping[str, tuple[str, str]],
    grids: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Differences between variants of encoders and the encoders themselves, on each judged figure.

    Parameters
    ----------
    judged, experiment, grids
        As of :func:`~pathfm_kedro.statistics.paired_comparison.compare_encoders`.
    bases
        Of each variant the encoder that it is held against, and what was done (entry ``mitigation`` of
        the setting). Those that were not judged are passed over.

    Returns
    -------
    DataFrame
        Rows of the measurements table, experiment ``mitigation``: of each variant its figure less the
        encoder's.
    """
    pairs = [
        (name, base) for name, (base, _) in sorted(bases.items()) if {name, base} <= set(judged)
    ]
    rows = (
        difference_row(MITIGATION, key, experiment, name, base, found, grids, bases[name][1])
        for key in judged_keys(judged)
        for name, base, found in differences(key, pairs, judged)
        if (name, base) in pairs
    )
    return measurement_table(rows)
