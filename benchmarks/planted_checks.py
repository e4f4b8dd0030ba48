"""More simulated cohorts: checks that error_rates.py leaves out; see simulated_checks.py and power.py.

Searches by several vectors, words and wide mosaics against those by one vector, slides that show one
tissue twice, and vectors that were brought against the encoder's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from simulated_changes import attacked
from simulated_checks import SIMULATIONS
from simulated_cohorts import (
    CENTERS,
    LABELS,
    Asked,
    D,
    Generator,
    Stored,
    asked,
    block,
    codes,
    effects_of,
    patients_table,
    read,
    tiles_of,
)

from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.mosaic_field import (
    MosaicField,
    mosaic_field_figures,
    mosaic_field_matches,
)
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.pipelines.robustness.adversarial_pool import Adversarial
from pathfm_kedro.pipelines.robustness.feature_agreement import (
    FeatureAgreement,
    feature_agreement_figures,
    feature_agreement_statistics,
)
from pathfm_kedro.pipelines.robustness.same_tissue import (
    SameTissue,
    same_tissue_figures,
    same_tissue_statistics,
)
from pathfm_kedro.statistics.parameters import read_parameters

#: Tiles of a slide's mosaic.
_PATCHES = 6


def _labelled(patients: int, organs: int = 1) -> tuple[pl.DataFrame, Any]:
    """Slides, and the label's effect on each: [patients, D]."""
    slides = patients_table(patients, organs)
    return slides, effects_of(LABELS, 1.0, 0)[codes(slides["label"])]


def several(
    patients: int, generator: Generator, everywhere: float = 0.0, in_one: float = 0.0
) -> list[Asked]:
    """Searches by several vectors and words beside that by the mean.

    Parameters
    ----------
    patients, generator
        How many, and their source.
    everywhere
        Standard deviation of the label's effect on every tile.
    in_one
        The same on one tile of a slide alone; the others take it out of the mean.
    """
    p = read(Retrieval, "retrieval")
    slides, shown = _labelled(patients, organs=2)
    tiles = 0.5 * generator.standard_normal((patients, _PATCHES, D))
    tiles += everywhere * shown[:, None]
    tiles[:, 0] += in_one * shown
    tiles[:, 1:] -= in_one * shown[:, None] / (_PATCHES - 1)
    shards = dict(zip(slides["slide_id"], tiles.astype(np.float32), strict=True))
    found = search_slides(slides, tiles_of(slides, _PATCHES), Stored(embedding=shards), p)
    return [asked(retrieval_figures(found, slides, p), "retrieval", p)]


def wide_mosaics(
    patients: int, generator: Generator, tile: float = 0.0, wide: float = 0.0
) -> list[Asked]:
    """Mosaics of wide fields beside those of tiles: how much of the label either holds."""
    changed = {"fields": [224, 512], "same_tissue": [], "families": ["median_min"]}
    p = read_parameters(MosaicField, "mosaic_field", block("mosaic_field") | changed)
    slides, shown = _labelled(patients)
    strength = np.array([tile, wide])
    parts = generator.standard_normal((patients, p.places, 2, D))
    parts += strength[:, None] * shown[:, None, None]
    shards = dict(zip(slides["slide_id"], parts.astype(np.float32), strict=True))
    places = tiles_of(slides, p.places).join(slides.drop("status"), on="slide_id")
    places = places.with_columns(field=pl.lit("512"), field_um=pl.lit(112.0), mpp=pl.lit(0.5))
    found = mosaic_field_matches(Stored(parts=shards), places, p)
    return [asked(mosaic_field_figures(found, slides, p), "mosaic_field", p)]


def shown_again(
    patients: int, generator: Generator, place: float = 0.0, look: float = 0.0
) -> list[Asked]:
    """Every tissue on two slides: how far vectors follow the place, and how far the slide's look."""
    # Half of conf/base's places: it is twice as quick, and the verdict hangs on patients.
    p = read_parameters(SameTissue, "same_tissue", block("same_tissue") | {"max_places": 32})
    # Without labels no probe is fitted, which is the slow part; it is not judged.
    slides = patients_table(patients).with_columns(label=pl.lit(None, pl.String))
    common = place * generator.standard_normal((patients, p.max_places, D))
    rows, shards = [], {}
    for i, slide in enumerate(slides["slide_id"]):
        for scanner in range(2):
            name = f"{slide}-{scanner}"
            own = 0.3 * generator.standard_normal((p.max_places, D))
            own += look * effects_of(CENTERS, 1.0, 1)[scanner]
            shards[name] = (common[i] + own).astype(np.float32)[:, None]
            rows += [
                {"tile_id": f"{name}-{at}", "slide_id": name, "reference_id": f"{slide}-0"}
                | {"patient_id": slide, "place": at, "region": str(at // 16), "label": None}
                | {"scanner": f"scanner {scanner}", "stain": "one", "rotation_deg": 0.0}
                for at in range(p.max_places)
            ]
    paired = pl.DataFrame(rows, infer_schema_length=None).cast({"label": pl.String})
    of_cohort = Stored(embedding={s: np.zeros((1, D), np.float32) for s in slides["slide_id"]})
    found = same_tissue_statistics(
        Stored(views=shards), paired, slides, tiles_of(slides, 1), of_cohort, p
    )
    pairs = pl.DataFrame(schema={"status": pl.String, "reason": pl.String})
    return [asked(same_tissue_figures(found, pairs, p), "same_tissue", p)]


def brought(patients: int, generator: Generator, off: float = 0.0) -> list[Asked]:
    """Vectors that were brought beside the encoder's own, from which they are off by so much."""
    p = read(FeatureAgreement, "feature_agreement")
    slides = patients_table(patients)
    tiles = tiles_of(slides, 24).with_columns(field_um=pl.lit(112.0), mpp=pl.lit(0.5))
    own = generator.standard_normal((patients, 24, D))
    other = own + off * generator.standard_normal(own.shape)
    ours, theirs = (
        Stored(embedding=dict(zip(slides["slide_id"], v.astype(np.float32), strict=True)))
        for v in (own, other)
    )
    found = feature_agreement_statistics(slides, tiles, theirs, tiles, ours, p)
    return [asked(feature_agreement_figures(found, p), "feature_agreement", p)]


def attacked_pool(patients: int, generator: Generator, **effects: float) -> list[Asked]:
    """Adversarial changes of as many patients as conf/base attacks."""
    return attacked(min(patients, read(Adversarial, "adversarial").max_tiles), generator, **effects)


@dataclass(frozen=True)
class Planted:
    """Encoders of one kind of cohort, of which it is known what they must get.

    Attributes
    ----------
    measured
        ``(patients, generator, **effects) -> figures``.
    truth, good, fault
        Effects: of what knows the truth as the phantom's control does, of a good encoder that does not,
        and of one with the fault that the checks are for.
    checks
        Metrics that the fault is planted for; all that are judged where not given.
    """

    measured: Callable[..., Sequence[Asked]]
    truth: Mapping[str, Any]
    good: Mapping[str, Any]
    fault: Mapping[str, Any]
    checks: tuple[str, ...] = ()

    @classmethod
    def of(cls, simulation: str, good: str, fault: str, *checks: str) -> Planted:
        """Encoders of :data:`SIMULATIONS`, by name."""
        known = SIMULATIONS[simulation]
        effects = [known.encoders[name].effects for name in ("perfect", good, fault)]
        return cls(known.measured, *effects, checks)

    def cohort(self, role: str, patients: int, seed: int) -> pl.DataFrame:
        """Judged rows of one cohort seen by one of the encoders."""
        generator = np.random.default_rng([seed, patients])
        found = self.measured(patients, generator, **getattr(self, role))
        rows = pl.concat(each.rows() for each in found).filter(stratum="all")
        judged = rows.drop_nulls("threshold")
        return judged.filter(pl.col("metric").is_in(self.checks)) if self.checks else judged


#: By the checks that they are for.
PLANTED = {
    "index and margins": Planted.of("index and margins", "knows the label", "follows the center"),
    "clusters": Planted.of("clusters", "knows the label", "follows the center"),
    "rotation": Planted.of("rotation", "invariant but for little", "keeps nothing"),
    "stain and scanner": Planted.of(
        "stain and scanner", "invariant but for little", "keeps nothing"
    ),
    "cue conflict": Planted.of("cue conflict", "knows the label", "follows the stain"),
    "field of view": Planted.of(
        "field of view", "knows the label in both", "sees the label in wide fields alone"
    ),
    "same tissue": Planted(shown_again, {"place": 2.0}, {"place": 0.5}, {"look": 2.0}),
    "adversarial": replace(
        Planted.of("adversarial", "loses little", "loses all"), measured=attacked_pool
    ),
    "retrieval": Planted.of(
        "retrieval", "knows the label in both", "blind in one organ", "f1_range_over_organs"
    ),
    "several vectors": Planted(
        several, {"everywhere": 2.0}, {"everywhere": 0.2}, {"in_one": 3.0}, ("gain_over_mean",)
    ),
    "wide mosaics": Planted(
        wide_mosaics, {"tile": 2.0, "wide": 2.0}, {"tile": 0.4, "wide": 0.4}, {"wide": 1.0}
    ),
    "brought features": Planted(brought, {"off": 0.0}, {"off": 0.03}, {"off": 0.5}),
}
