"""Simulated cohorts with known truth, and what the experiments make of them; see error_rates.py.

Vectors are sums of effects of label, center and patient and of each tile's own noise. Each cohort goes
through the experiments themselves, with the criteria of conf/base; only what makes them slow is changed
(`QUICKER`): fewer draws, fewer settings beside the judged one.
"""

from __future__ import annotations

from simulated_changes import (
    attacked,
    brought,
    in_conflict,
    rotated,
    seen_again,
    stain_read,
    stained,
)
from simulated_cohorts import LABELS, Simulation, knowing
from simulated_neighbours import clusters, index_and_margins, probes
from simulated_searches import of_several_vectors, of_wider_mosaics, retrieved, widened

_NEIGHBOURS = {
    "knows nothing": knowing(),
    "knows nothing, patients far apart": knowing(patient=1.5),
    "knows nothing, centred": knowing(patient=1.0, variant="centring"),
    "knows nothing, ComBat": knowing(patient=1.0, variant="combat"),
    "knows nothing, whitened": knowing(patient=1.0, variant="whitening"),
    "follows the center": knowing(right="fail", center=1.0),
    "follows the center, knows a little": knowing(right="fail", label=0.35, center=1.0),
    "follows the center, centred": knowing(center=1.0, variant="centring"),
    "knows the label": knowing("fail", "pass", label=0.5, center=0.2),
    "knows the label, centred": knowing("fail", "pass", label=0.5, center=0.8, variant="centring"),
    "perfect": knowing("fail", "pass", label=2.0),
}
_SIZES = (24, 48)

#: By the checks that they are for.
SIMULATIONS = {
    "index and margins": Simulation(_NEIGHBOURS, _SIZES, index_and_margins, {"k": 9}),
    "clusters": Simulation(_NEIGHBOURS, _SIZES, clusters),
    "rotation": Simulation(
        {
            "keeps nothing": knowing(right="fail", quarter=9.0, between=9.0),
            "averages over quarter turns": knowing("", quarter=0.0, between=9.0),
            "near the threshold": knowing("", quarter=0.25, between=0.25),
            "invariant but for little": knowing("fail", "pass", quarter=0.1, between=0.1),
            "perfect": knowing("fail", "pass"),
        },
        _SIZES,
        rotated,
    ),
    "stain and scanner": Simulation(
        {
            "keeps nothing": knowing(right="fail", change=9.0),
            "follows the stain": knowing("", center=1.5),
            "near the threshold": knowing("", label=0.5, center=0.12, change=0.28),
            "invariant but for little": knowing("fail", "pass", label=0.5, center=0.04, change=0.1),
            "perfect": knowing("fail", "pass", label=2.0),
        },
        _SIZES,
        stained,
    ),
    "cue conflict": Simulation(
        {
            "knows nothing": knowing(),
            "knows nothing, keeps nothing": knowing(change=9.0),
            "follows the stain": knowing(right="fail", center=1.0),
            "follows the stain, knows a little": knowing(right="fail", label=0.3, center=0.6),
            "knows the label": knowing("fail", "pass", label=0.5, center=0.2, change=0.2),
            "perfect": knowing("fail", "pass", label=2.0),
        },
        _SIZES,
        in_conflict,
    ),
    "field of view": Simulation(
        {
            "knows nothing": knowing(),
            "sees the label in wide fields alone": knowing(right="fail", wide=1.0),
            "near the threshold": knowing("", tile=0.6, wide=0.7),
            "knows the label in both": knowing("fail", "pass", tile=0.7, wide=0.7),
            "perfect": knowing("fail", "pass", tile=2.0, wide=2.0),
        },
        (48, 96),
        widened,
    ),
    "adversarial": Simulation(
        {
            "knows nothing": knowing(clean=1 / LABELS),
            "loses all": knowing(right="fail", lost=1.0),
            "near the threshold": knowing("", lost=0.16),
            "loses little": knowing("fail", "pass", lost=0.03),
            "perfect": knowing("fail", "pass", clean=1.0),
        },
        _SIZES,
        attacked,
    ),
    "retrieval": Simulation(
        {
            "knows nothing": knowing(),
            "blind in one organ": knowing(right="fail", first=1.0),
            "near the threshold": knowing("", first=1.0, second=0.25),
            "knows the label in both": knowing("fail", "pass", first=0.6, second=0.6),
            "perfect": knowing("fail", "pass", first=2.0, second=2.0),
        },
        _SIZES,
        retrieved,
    ),
    "several vectors": Simulation(
        {
            "knows nothing": knowing(),
            "label in one tile of eight": knowing("", some=2.5),
            "label in one tile, not in the mean": knowing(right="fail", hidden=3.0),
            "near the threshold": knowing("", every=0.2, some=0.5),
            "knows the label in every tile": knowing("fail", "pass", every=0.6),
            "perfect": knowing("fail", "pass", every=2.0),
        },
        (48, 96),
        of_several_vectors,
    ),
    "wider mosaics": Simulation(
        {
            "knows nothing": knowing(),
            "sees the label in wide fields alone": knowing(right="fail", wide=1.0),
            "near the threshold": knowing("", tile=0.3, wide=0.35),
            "knows the label in both": knowing("fail", "pass", tile=0.6, wide=0.6),
            "perfect": knowing("fail", "pass", tile=2.0, wide=2.0),
        },
        (48, 96),
        of_wider_mosaics,
    ),
    "same tissue": Simulation(
        {
            "keeps nothing": knowing(right="fail", change=9.0),
            "near the threshold": knowing("", change=2.6),
            "moves a little": knowing("fail", "pass", change=1.0),
            "perfect": knowing("fail", "pass"),
        },
        _SIZES,
        seen_again,
    ),
    "features brought": Simulation(
        {
            "of another encoder": knowing(right="fail", change=9.0),
            "near the threshold": knowing("", change=0.09),
            "rounded": knowing("fail", "pass", change=0.01),
            "perfect": knowing("fail", "pass"),
        },
        _SIZES,
        brought,
    ),
    "stain probe": Simulation(
        {
            "sees no stain": knowing("", stain=0.0),
            "sees some stain": knowing("", stain=0.2),
            "sees the stain": knowing("", stain=0.8),
        },
        _SIZES,
        stain_read,
    ),
    "probes": Simulation(
        {
            "knows nothing": knowing(""),
            "knows the label": knowing("", label=0.3, center=0.2),
            "follows the center, knows a little": knowing("", label=0.35, center=1.0),
        },
        _SIZES,
        probes,
    ),
}
